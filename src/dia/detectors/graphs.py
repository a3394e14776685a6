"""What each method's score and heatmap are as a torch module, and `graph_of`, which makes the whole of them.

`body` knows a detector by its class. Networks, augmentation and scores that are torch already are taken as
they are; the rest stands in `graph.py`. Tests hold every method's graph against its detector.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from ..amplify.inputs import as_input as encoder_tensor
from ..amplify.shifts import SHIFTS
from ..core.errors import DataError
from ..dissolve import Dissolving, StandIn
from ..dissolve.base import fit_in
from .base import Detector
from .baselines import (
    FLOOR,
    RINGS,
    Blur,
    Brightness,
    Gradient,
    NormalisedPixels,
    Pca,
    Pixels,
    Spectrum,
    Std,
    rings,
)
from .csi import CSI, Part, normality, projections
from .diaplus import PLACE, REMOVALS, STANDARDISED, TURNED, UNTRAINED, WHOLE, DIAPlus
from .features import copies
from .graph import (
    Evidence,
    GaussianBlur,
    Linear,
    Whole,
    double,
    nearest_mean,
    pooling,
    resizing,
    with_channels,
)
from .nearest import NEAR, TINY
from .peers.backbones import as_input
from .peers.kdad import KDAD
from .peers.msc import MSC, nearest_sum
from .peers.transformaly import HALF, Gaussian, Transformaly, block_errors, tokens
from .peers.uniad import UniAD, anomaly_map, features, greatest_mean
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
    from .registry import METHODS

    return [name for name, cls in METHODS.items() if body.dispatch(cls) is not body.dispatch(object)]


# --- contrast -----------------------------------------------------------------------------------------------


class Contrast(nn.Module):
    """CSI's score, of some of its parts."""

    def __init__(self, detector: CSI, parts: tuple[Part, ...]):
        super().__init__()
        if detector.s.score_draws == "own":
            raise DataError(
                "score_draws own draws from the pixels and cannot be exported; "
                "fit with --settings.score_draws shared"
            )
        self.amplify, self.parts, self.encoder = detector.s.amplify, parts, detector.encoder_
        self.views = detector._views()
        for name in ("bank_", "lambda_", "mu_"):
            self.register_buffer(name, getattr(detector, name).cpu())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        z, s = projections(self.encoder, encoder_tensor(x, self.amplify), self.amplify.shift, self.views)
        bank, lambda_, mu = (self.get_buffer(name) for name in ("bank_", "lambda_", "mu_"))
        return (-normality(z, s, bank, lambda_, mu, self.parts).double(),)


class Features(nn.Module):
    """`dia+`'s view `contrast`: features of the shifted images, each of norm 1, side by side."""

    def __init__(self, detector: DIAPlus):
        super().__init__()
        self.amplify, self.encoder = detector.s.amplify, detector.encoder_

    def forward(self, x: Tensor) -> Tensor:
        """Of `(N, C, H, W)` uint8."""
        k_shifts, shift = SHIFTS[self.amplify.shift]
        x = encoder_tensor(x, self.amplify)
        h = self.encoder(torch.cat([shift(x, k) for k in range(k_shifts)]))[0]
        h = F.normalize(h.view(k_shifts, x.shape[0], -1), dim=-1, eps=1e-12)
        return h.transpose(0, 1).flatten(1)


@body.register
def _(detector: CSI) -> nn.Module:
    return Contrast(detector, detector.s.score_parts)


# --- residuals ----------------------------------------------------------------------------------------------


class Dissolve(nn.Module):
    """Dissolves at several t, which share one pass."""

    t: Tensor

    def __init__(self, dissolver: Dissolving, ts: tuple[int, ...]):
        super().__init__()
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
        return ((y + 1) * 127.5).clamp(0, 255).view(many, n, *x.shape[1:])


class Residuals(nn.Module):
    """`Residual`, of what a removal gave: energies on the grid, and the statistics with the heatmap."""

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

    def residual(self, x: Tensor, removed: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 and `(T, N, C, H, W)` to `(T, N, H, W)`."""
        return (x.float() - removed.float()).mean(2)

    def energies(self, r: Tensor) -> Tensor:
        """`(N, T, 6, 6)`."""
        return torch.log(self.pool(r**2) + 1).transpose(0, 1)

    def scaled(self, energies: Tensor) -> Tensor:
        """`(..., T·36)`, in standard deviations of the normals."""
        return (energies - self.get_buffer("energy_mean")) / self.get_buffer("energy_std")

    def statistics(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Greatest |z| of each map `(N, M)`, and the map of joint distances `(N, H', W')`, not enlarged."""
        detail = torch.log(self.wider((r - self.fine(r)) ** 2) + 1)
        maps = torch.stack([self.wide(r), self.wider(r), detail], 1).flatten(0, 1).transpose(0, 1)
        z = (maps - self.get_buffer("mean")) / self.get_buffer("std")  # (N, M, H, W)
        placed = z[..., ::STRIDE, ::STRIDE].permute(2, 3, 0, 1)
        squared = (placed @ self.get_buffer("precision") * placed).sum(-1).permute(2, 0, 1)
        return z.abs().amax((-2, -1)), self.joint(squared.clamp(min=0).sqrt())

    def parts(self, r: Tensor, greatest: Tensor, distance: Tensor) -> Tensor:
        """The evidence of its three parts, `(N, 3)`."""
        overall = nearest_mean(self.scaled(self.energies(r).flatten(1)), self.get_buffer("bank"), NEIGHBOURS)
        columns = torch.cat([greatest.double(), distance.amax((1, 2)).double()[:, None], overall[:, None]], 1)
        e = self.evidence(columns)
        return torch.cat([e[:, :-2].amax(1, keepdim=True), e[:, -2:]], 1)


def joined(evidence: Tensor) -> Tensor:
    """As `residual.joined`."""
    return evidence.logsumexp(1) - double(np.log(evidence.shape[1]))


class BlurBody(nn.Module):
    """`trivial:blur`."""

    outputs = ("heatmap",)

    def __init__(self, residuals: Residuals):
        super().__init__()
        self.residuals = residuals

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        r = self.residuals.residual(x, self.residuals.remove(x))
        greatest, distance = self.residuals.statistics(r)
        return joined(self.residuals.parts(r, greatest, distance)), self.residuals.enlarge(distance)


class DIAPlusBody(nn.Module):
    """`dia+`: the mean evidence of its views, or the most unusual place."""

    outputs = ("heatmap", "dissolved")

    def __init__(self, detector: DIAPlus):
        super().__init__()
        s, side = detector.s, detector.shape_[:2]
        self.views, self.neighbours, self.symmetries = detector._wanted, s.neighbours, detector.symmetries_
        dissolve = Dissolve(detector.dissolver_, s.residual_ts)
        self.residuals = nn.ModuleDict({"dissolved": Residuals(detector.residual_, dissolve, *side)})
        self.measures = nn.ModuleDict()
        for name in self.views:
            if name in UNTRAINED:
                self.measures[name] = UNTRAINED[name](*side)
            elif name == "spectrum":
                self.measures[name] = Rings(*side)
            elif name == "contrast":
                self.measures[name] = Features(detector)
            elif name == "blurred":
                self.residuals[name] = Residuals(detector.blur_, _blur(s.blur_sigmas, *side), *side)
            self.register_buffer(f"bank_{name}", torch.from_numpy(detector.banks_[name].bank))
        for name, (mean, std) in detector.scaling_.items():
            self.register_buffer(f"mean_{name}", torch.from_numpy(mean))
            self.register_buffer(f"std_{name}", torch.from_numpy(std))
        self.medians, self.scales, self.margin = detector.medians_, detector.scales_, s.margin

    def standardised(self, name: str, values: Tensor) -> Tensor:
        """As `Scale` has it."""
        scale = self.scales[name]
        return (values - double(scale.median)) / double(scale.spread)

    def measured(self, name: str, x: Tensor, r: Tensor) -> Tensor:
        """The features of copies, `(S, N, D)`, scaled as in the bank."""
        if name in REMOVALS:
            residuals: Any = self.residuals[name]
            r = r if name == "dissolved" else residuals.residual(x, residuals.remove(x))
            turned: Tensor = residuals.scaled(copies(residuals.energies(r), self.symmetries).flatten(2))
            return turned
        which = self.symmetries if name in TURNED else (0,)
        features = torch.stack([self.measures[name](copy) for copy in copies(x, which).unbind(0)])
        if name in STANDARDISED:
            features = (features - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"std_{name}")
        return features

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        residuals: Any = self.residuals["dissolved"]
        dissolved = residuals.remove(x)
        r = residuals.residual(x, dissolved)
        greatest, distance = residuals.statistics(r)
        views = []
        for name in self.views:
            features = self.measured(name, x, r).float()
            d = nearest_mean(features, self.get_buffer(f"bank_{name}"), self.neighbours).amin(0)
            logs = (d / double(max(self.medians[name], TINY)) + double(NEAR)).log()
            views.append(self.standardised(name, logs))
        scores = [self.standardised(WHOLE, torch.stack(views).mean(0))] if views else []
        if PLACE in self.scales:
            place = self.standardised(PLACE, residuals.parts(r, greatest, distance)[:, 0])
            scores.append(place - double(self.margin) if scores else place)
        score = torch.stack(scores).amax(0)
        return score, residuals.enlarge(distance), dissolved.round().to(torch.uint8).permute(1, 0, 3, 4, 2)


def _blur(sigmas: tuple[float, ...], height: int, width: int) -> GaussianBlur:
    unit = min(height, width) / 64
    return GaussianBlur(tuple(sigma * unit for sigma in sigmas))


@body.register
def _(detector: Blur) -> nn.Module:
    side = detector.shape_[:2]
    return BlurBody(Residuals(detector.residual_, _blur(detector.s.sigmas, *side), *side))


body.register(DIAPlus, DIAPlusBody)


# --- methods that start from a pretrained network -----------------------------------------------------------


class KDADBody(nn.Module):
    """`kdad`'s score; its heatmap is a gradient, which a graph does not take."""

    def __init__(self, detector: KDAD):
        super().__init__()
        self.teacher, self.cloner, self.size = detector.teacher_, detector.cloner_, detector.s.size
        self.of_input = detector._of_input

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        return (self.of_input(as_input(x, self.size)).double(),)


class MSCBody(nn.Module):
    """`msc`."""

    bank: Tensor

    def __init__(self, detector: MSC):
        super().__init__()
        self.network, self.size, self.neighbours = detector.network_, detector.s.size, detector.s.neighbours
        self.register_buffer("bank", detector.bank_)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        phi = F.normalize(self.network(as_input(x, self.size)), dim=1)
        return (nearest_sum(phi, self.bank, self.neighbours),)


class UniADBody(nn.Module):
    """`uniad`."""

    outputs = ("heatmap",)

    def __init__(self, detector: UniAD):
        super().__init__()
        self.network, self.rebuilder, self.size = detector.network_, detector.rebuilder_, detector.s.size
        down, across = (resizing(self.size, n, antialias=True) for n in detector.shape_[:2])
        self.to_shape = Linear(down.float(), across.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        f = features(self.network, as_input(x, self.size))
        maps = anomaly_map(self.rebuilder(f), f)
        return greatest_mean(maps).double(), self.to_shape(maps)


class LogLikelihood(nn.Module):
    """`Gaussian.log_likelihood` of `(N, d)` float64."""

    def __init__(self, gaussian: Gaussian):
        super().__init__()
        scaled = np.linalg.inv(gaussian.factor) / gaussian.deviation  # (d, d)
        self.register_buffer("mean", torch.from_numpy(gaussian.mean))
        self.register_buffer("whiten", torch.from_numpy(np.ascontiguousarray(scaled.T)))
        self.greatest = float(gaussian.log_likelihood(gaussian.mean[None])[0])

    def forward(self, x: Tensor) -> Tensor:
        """`(N,)`."""
        z = (x - self.get_buffer("mean")) @ self.get_buffer("whiten")
        return double(self.greatest) - 0.5 * (z**2).sum(1)


class TransformalyBody(nn.Module):
    """`transformaly`."""

    def __init__(self, detector: Transformaly):
        super().__init__()
        self.teacher, self.student, self.size = detector.teacher_, detector.student_, detector.s.size
        self.register_buffer("mean", torch.from_numpy(detector.mean_))
        self.register_buffer("whiten", torch.from_numpy(detector.whiten_))
        self.of_class, self.of_errors = LogLikelihood(detector.of_class_), LogLikelihood(detector.of_errors_)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        between = tokens(self.teacher, as_input(x, self.size, HALF, HALF))
        errors = torch.stack(block_errors(between, self.student)[1:-1], 1).double()
        classes = self.teacher.norm(between[-1])[:, 0].double()
        whitened = (classes - self.get_buffer("mean")) @ self.get_buffer("whiten")
        return (-(self.of_class(whitened) + self.of_errors(errors)),)


for _method, _graph in (
    (KDAD, KDADBody), (MSC, MSCBody), (UniAD, UniADBody), (Transformaly, TransformalyBody)
):  # fmt: skip
    body.register(_method, _graph)


# --- untrained rows -----------------------------------------------------------------------------------------


def luma(x: Tensor) -> Tensor:
    """`(N, C, H, W)` uint8 to `(N, H, W)` in [0, 1], float64, as `trivial.luma`."""
    return with_channels(x.double(), 1)[:, 0] / 255


class OneNumber(nn.Module):
    """Brightness, std or gradient energy, in standard deviations of the normals."""

    def __init__(self, detector: Brightness | Std | Gradient):
        super().__init__()
        self.kind = type(detector)
        self.mean, self.std = float(detector.mean_[0]), float(detector.std_[0])

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        y = luma(x)
        if self.kind is Brightness:
            feature = y.mean((1, 2))
        elif self.kind is Std:
            feature = y.var((1, 2), correction=0).sqrt()
        else:
            feature = y.diff(dim=1).abs().mean((1, 2)) + y.diff(dim=2).abs().mean((1, 2))
        return (((feature - double(self.mean)) / double(self.std)).abs(),)


class PixelsBody(nn.Module):
    """The nearest normal at 16×16, as it is or normalised."""

    def __init__(self, detector: Pixels | NormalisedPixels):
        super().__init__()
        self.normalised = isinstance(detector, NormalisedPixels)
        self.small = Linear(*(resizing(side, 16, antialias=True) for side in detector.shape_[:2]))
        self.register_buffer("bank", torch.from_numpy(detector.normals_.bank))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        flat = self.small(luma(x)).flatten(1)
        if self.normalised:
            flat = flat - flat.mean(1, keepdim=True)
            flat = flat / flat.var(1, correction=0, keepdim=True).sqrt().clamp(min=1e-6)
        return (nearest_mean(flat.float(), self.get_buffer("bank"), 1),)


class Rings(nn.Module):
    """The features of `trivial:spectrum`: the Fourier transform as products with its cosines and sines."""

    def __init__(self, height: int, width: int):
        super().__init__()
        window = np.outer(np.hanning(height), np.hanning(width))
        self.register_buffer("window", torch.from_numpy(window))
        for name, side in (("down", height), ("across", width)):
            waves = np.fft.fft(np.eye(side), norm="ortho")  # symmetric
            for part, values in (("cos", waves.real), ("sin", waves.imag)):
                self.register_buffer(f"{name}_{part}", torch.from_numpy(np.ascontiguousarray(values)))
        ring = rings(height, width).ravel()
        count = np.maximum(np.bincount(ring, minlength=RINGS)[:RINGS], 1)
        self.register_buffer("rings", torch.from_numpy((ring[:, None] == np.arange(RINGS)) / count))

    def forward(self, x: Tensor) -> Tensor:
        """Of `(N, C, H, W)` uint8."""
        get = self.get_buffer
        y = luma(x)
        y = (y - y.mean((1, 2), keepdim=True)) * get("window")
        cosines, sines = get("down_cos") @ y, get("down_sin") @ y
        real = cosines @ get("across_cos") - sines @ get("across_sin")
        imaginary = cosines @ get("across_sin") + sines @ get("across_cos")
        power = (real**2 + imaginary**2).flatten(1) @ get("rings")
        # log(power + FLOOR); as that sum, the exporter takes the addend for nothing and leaves it out
        return (power / double(FLOOR) + 1).log() + double(np.log(FLOOR))


class Measured(nn.Module):
    """An untrained row: features, standardised, and their mean distance to the nearest normals."""

    def __init__(self, features: nn.Module, detector: Any):
        super().__init__()
        self.features, self.neighbours = features, detector.normals_.k
        for name, values in (
            ("mean", detector.mean_), ("std", detector.std_), ("bank", detector.normals_.bank),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        features = (self.features(x) - self.get_buffer("mean")) / self.get_buffer("std")
        return (nearest_mean(features.float(), self.get_buffer("bank"), self.neighbours),)


class PcaBody(nn.Module):
    """`trivial:pca`."""

    outputs = ("heatmap",)

    def __init__(self, detector: Pca):
        super().__init__()
        sides = [(side, min(side, 32)) for side in detector.shape_[:2]]
        self.small = Linear(*(resizing(side, low, antialias=True) for side, low in sides))
        smooth = [torch.from_numpy(ndimage.gaussian_filter1d(np.eye(low), 1, axis=0)) for _, low in sides]
        down, across = (resizing(low, side) @ s for (side, low), s in zip(sides, smooth, strict=True))
        self.enlarge = Linear(down, across)
        self.register_buffer("mean", torch.from_numpy(detector.mean_))
        self.register_buffer("components", torch.from_numpy(detector.components_))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `(N, C, H, W)` uint8."""
        y, components = self.small(luma(x)), self.get_buffer("components")
        centred = y.flatten(1) - self.get_buffer("mean")
        residual = centred - centred @ components.T @ components
        return (residual**2).mean(1), self.enlarge(residual.abs().view(y.shape)).float()


for _row in (Brightness, Std, Gradient):
    body.register(_row, OneNumber)
for _row in (Pixels, NormalisedPixels):
    body.register(_row, PixelsBody)
body.register(Pca, PcaBody)


@body.register
def _(detector: Spectrum) -> nn.Module:
    return Measured(Rings(*detector.shape_[:2]), detector)
