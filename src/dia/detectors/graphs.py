"""What each method's score and heatmap are as a torch module, and `graph_of`, which makes the whole of them.

`body` knows a detector by its class. Networks, augmentation and scores that are torch already are taken as
they are; the rest stands in `graph.py`. Tests hold every method's graph against its detector.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
from torch import Tensor, nn

from ..amplify.learning import as_input
from ..amplify.shifts import SHIFTS
from ..calibrate import Calibration
from ..data.imageset import DataError
from ..dissolve import Dissolving, StandIn
from ..dissolve.base import fit_in
from .base import Detector
from .blur import Blur
from .csi import CSI, Part, normality, projections
from .diaplus import FEATURE_NEIGHBOURS, DIAPlus
from .graph import Evidence, GaussianBlur, Linear, Whole, nearest_mean, pooling, resizing
from .residual import GRID, NEIGHBOURS, STRIDE, Residual, smoothing


def graph_of(detector: Detector) -> Whole:
    """The whole of a fitted detector's scoring, in eval mode, on the CPU.

    Raises:
        DataError: its method cannot be exported.
    """
    whole = Whole(detector.shape_, detector.calibration_, body(detector))
    return whole.to("cpu").eval().requires_grad_(False)


@singledispatch
def body(detector: Detector) -> nn.Module:
    """Of `(N, C, H, W)` uint8 in the detector's own shape; see `Whole`."""
    raise DataError(f"{detector.method} cannot be exported; there are: {', '.join(exportable())}")


def exportable() -> list[str]:
    """The methods that have a graph."""
    from . import METHODS

    return [name for name, cls in METHODS.items() if body.dispatch(cls) is not body.dispatch(object)]


# --- contrast -----------------------------------------------------------------------------------------------


class Contrast(nn.Module):
    """CSI's score, of some of its parts."""

    def __init__(self, detector: CSI, parts: tuple[Part, ...]):
        super().__init__()
        if detector.augment_.hsv is not None:
            raise DataError(
                "amplify.augment.colour hsv draws inside kornia and cannot be exported; fit with matrix"
            )
        self.amplify, self.parts, self.encoder = detector.s.amplify, parts, detector.encoder_
        self.views = detector._views()
        for name in ("bank", "lambda", "mu"):
            self.register_buffer(name, getattr(detector, f"{name}_").cpu())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        z, s = projections(self.encoder, as_input(x, self.amplify), self.amplify.shift, self.views)
        bank, lambda_, mu = (self.get_buffer(name) for name in ("bank", "lambda", "mu"))
        return (-normality(z, s, bank, lambda_, mu, self.parts).double(),)


class Features(nn.Module):
    """`dia+`'s scores in the features of the shifted images: Mahalanobis, or nearest neighbours."""

    def __init__(self, detector: DIAPlus):
        super().__init__()
        self.amplify, self.encoder = detector.s.amplify, detector.encoder_
        self.mahalanobis = detector.s.contrast == "mahalanobis"
        if self.mahalanobis:
            self.register_buffer("centre", torch.from_numpy(detector.centre_)[:, None])
            self.register_buffer("precision", torch.from_numpy(detector.precision_))
        else:
            self.register_buffer("bank", torch.from_numpy(detector.features_))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        k_shifts, shift = SHIFTS[self.amplify.shift]
        x = as_input(x, self.amplify)
        h = self.encoder(torch.cat([shift(x, k) for k in range(k_shifts)]))[0]
        h = h.view(k_shifts, x.shape[0], -1).double()
        if not self.mahalanobis:
            return (nearest_mean(h, self.get_buffer("bank"), FEATURE_NEIGHBOURS).sum(0),)
        c = h - self.get_buffer("centre").double()
        return (((c @ self.get_buffer("precision").double()) * c).sum(-1).sqrt().sum(0),)


@body.register
def _(detector: CSI) -> nn.Module:
    return Contrast(detector, detector.s.score_parts)


# --- residuals ----------------------------------------------------------------------------------------------


class Dissolve(nn.Module):
    """Dissolves at several t, which share one pass."""

    t: Tensor

    def __init__(self, dissolver: Dissolving, ts: tuple[int, ...], rounded: bool):
        super().__init__()
        self.rounded = rounded
        if isinstance(dissolver, StandIn) and dissolver.settings.kind == "noise":
            raise DataError("dissolver.kind noise is drawn from the pixels and cannot be exported")
        self.dissolver, self.network = dissolver, getattr(dissolver, "unet_", None)
        self.register_buffer("t", torch.tensor(ts))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(T, N, C, H, W)` float32 in [0, 255]."""
        n, many = x.shape[0], len(self.t)
        rows = (x.float() / 127.5 - 1).repeat(many, 1, 1, 1)
        z, undo = fit_in(rows, self.dissolver.settings.size, *self.dissolver._working(int(x.shape[1])))
        y = undo(self.dissolver._remove(z, self.t[:, None].expand(many, n).reshape(-1)))
        y = ((y + 1) * 127.5).clamp(0, 255).view(many, n, *x.shape[1:])
        return y.round() if self.rounded else y


class Residuals(nn.Module):
    """`Residual`: evidence of its three parts `(N, 3)`, heatmap `(N, H, W)`, and what `remove` gave."""

    def __init__(self, residual: Residual, remove: nn.Module, height: int, width: int):
        super().__init__()
        self.remove = remove
        unit = min(height, width) / 64
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)

        def smooth(h: int, w: int, sigma: float) -> Linear:
            return Linear(torch.from_numpy(smoothing(h, sigma)), torch.from_numpy(smoothing(w, sigma)))

        self.fine, self.wide, self.wider = (smooth(height, width, k * unit) for k in (1, 2, 3))
        self.joint = smooth(rows, columns, unit)
        self.pool = Linear(pooling(height, GRID).float(), pooling(width, GRID).float())
        self.enlarge = Linear(resizing(rows, height).float(), resizing(columns, width).float())
        for name in ("mean", "std", "precision", "energy_mean", "energy_std", "bank"):
            self.register_buffer(name, torch.from_numpy(getattr(residual, f"{name}_")))
        self.evidence = Evidence(residual.normals_)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        removed = self.remove(x)  # (T, N, C, H, W)
        r = (x.float() - removed.float()).mean(2)  # (T, N, H, W)
        detail = torch.log(self.wider((r - self.fine(r)) ** 2) + 1)
        maps = torch.stack([self.wide(r), self.wider(r), detail], 1).flatten(0, 1).transpose(0, 1)
        energies = torch.log(self.pool(r**2) + 1).transpose(0, 1).flatten(1)
        z = (maps - self.get_buffer("mean")) / self.get_buffer("std")  # (N, M, H, W)
        greatest = z.abs().amax((-2, -1))
        placed = z[..., ::STRIDE, ::STRIDE].permute(2, 3, 0, 1)
        squared = (placed @ self.get_buffer("precision") * placed).sum(-1).permute(2, 0, 1)
        distance = self.joint(squared.clamp(min=0).sqrt())
        scaled = (energies - self.get_buffer("energy_mean")) / self.get_buffer("energy_std")
        overall = nearest_mean(scaled, self.get_buffer("bank"), NEIGHBOURS)
        columns = torch.cat([greatest.double(), distance.amax((1, 2)).double()[:, None], overall[:, None]], 1)
        e = self.evidence(columns)
        e = torch.cat([e[:, :-2].amax(1, keepdim=True), e[:, -2:]], 1)
        return e, self.enlarge(distance), removed


def joined(evidence: Tensor) -> Tensor:
    """As `residual.joined`."""
    return evidence.logsumexp(1) - np.log(evidence.shape[1])


class BlurBody(nn.Module):
    """`trivial:blur`."""

    outputs = ("heatmap",)

    def __init__(self, residuals: Residuals):
        super().__init__()
        self.residuals = residuals

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        evidence, heatmap, _ = self.residuals(x)
        return joined(evidence), heatmap


class DIAPlusBody(nn.Module):
    """`dia+`: seven pieces of evidence."""

    outputs = ("heatmap", "dissolved")

    def __init__(self, contrast: nn.Module, normals: Calibration, dissolve: Residuals, blur: Residuals):
        super().__init__()
        self.contrast, self.evidence = contrast, Evidence(normals.scores[:, None])
        self.dissolve, self.blur = dissolve, blur

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        contrast = self.evidence(self.contrast(x)[0][:, None])
        evidence, heatmap, dissolved = self.dissolve(x)
        score = joined(torch.cat([contrast, evidence, self.blur(x)[0]], 1))
        return score, heatmap, dissolved.round().to(torch.uint8).permute(1, 0, 3, 4, 2)


def _blur(sigmas: tuple[float, ...], height: int, width: int) -> GaussianBlur:
    unit = min(height, width) / 64
    return GaussianBlur(tuple(sigma * unit for sigma in sigmas))


@body.register
def _(detector: Blur) -> nn.Module:
    side = detector.shape_[:2]
    return BlurBody(Residuals(detector.residual_, _blur(detector.s.sigmas, *side), *side))


@body.register
def _(detector: DIAPlus) -> nn.Module:
    s, side = detector.s, detector.shape_[:2]
    contrast: nn.Module
    if s.contrast == "paper":
        contrast = Contrast(detector, s.score_parts)
    else:
        contrast = Contrast(detector, ("cosine", "norm")) if s.contrast == "cosine" else Features(detector)
    remove = Dissolve(detector.dissolver_, s.residual_ts, s.residual_rounded)
    dissolve = Residuals(detector.residual_, remove, *side)
    blur = Residuals(detector.blur_, _blur(s.blur_sigmas, *side), *side)
    return DIAPlusBody(contrast, detector.contrast_, dissolve, blur)
