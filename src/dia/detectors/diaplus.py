"""`dia+`: how far an image is from its nearest normal, in several views, of which dissolving makes one.

Ours, not of the paper. Views, each a vector of an image: its shape and its statistics (`features.py`,
untrained), and what dissolving at several t takes away, by place (`residual.py`). Each gives the distance
to the nearest training normal; its logarithm, standardised by held-out normals, is the view's evidence, and
the mean of all views that of the whole image. Beside it stands the most unusual place: the greatest
deviation of what dissolving takes away (`single` in `residual.py`). The score is the greater of the two,
where a place has to be more unusual than a whole by a margin, because among many places one is always
unusual. No label and no setting by data set enters. Other views can be chosen: `pixels`; `blurred`, the
control of `dissolved`; `spectrum`; `contrast`, the features of an encoder trained against dissolved copies,
as in the paper. Where lesions are known to be small, `whole: false` leaves the score to the places.

Which turned and mirrored copies of an image are normal too is learned from the normals: those that lie about
as near to *other* normals as the images themselves do. Then the nearest of the copies counts.

The heatmap is what dissolving takes away, place by place against normals. Dissolved images are not rounded to
whole grey values: a pixel on the edge of two of them would depend on the last digits of the machine's sums.

Why these views, and what was tried: docs/decisions/0020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..amplify.encoder import Encoder
from ..amplify.inputs import as_input
from ..amplify.settings import AmplifySettings
from ..amplify.shifts import SHIFTS
from ..core.processes import choose_device
from ..core.settings import check, require
from ..data.imageset import ImageSet, subsample
from ..dissolve import Control, DissolverSettings
from ..dissolve.base import T_MAX
from .dia import DIA
from .features import (
    CONSTANT,
    Pixels,
    Shape,
    Spectrum,
    Statistics,
    as_tensor,
    copies,
    double,
    measured,
    passes,
    possible,
)
from .nearest import Nearest
from .presets import check_dissolved
from .residual import Dissolve, Measured, Residual, blur
from .saving import StageCache, module_tensors

View = Literal["shape", "statistics", "pixels", "dissolved", "blurred", "spectrum", "contrast"]
VIEWS: tuple[View, ...] = get_args(View)
WHOLE, PLACE = "whole", "place"
UNTRAINED: dict[str, type[nn.Module]] = {
    "shape": Shape, "statistics": Statistics, "pixels": Pixels, "spectrum": Spectrum,
}  # fmt: skip
_PREFIX = {"dissolved": "residual", "blurred": "blur"}  # of their tensors
REMOVALS = tuple(_PREFIX)
TURNED = ("shape", "pixels", *REMOVALS)  # the views that copies change
STANDARDISED = ("statistics", "spectrum")  # place by place by the normals; removals are in `residual.py`
NEAR = 0.01  # of the median distance of normals: what lies nearer is as good as there
TINY = 1e-6  # for the median where normals equal one another
_LEAST_SPREAD = 0.05  # of log distances
_AS_NEAR = 1.05  # times the distance of the image itself: a copy this near is as normal
_ASKED = 300  # normals whose copies are measured
_PIXELS = 2**22  # of the images of one pass


@dataclass(frozen=True)
class ContrastSettings:
    """The view `contrast`, which is off by default: an encoder trained as `dia` trains it.

    Args:
        amplify: encoder and contrastive training.
        ts: diffusion steps from which t is drawn, ascending; `amplify.t_per` and `t_sampler` say how.
        live: dissolve during training instead of once before it; the same views, slower.
        bank_gb: space on disk for the dissolved copies, as for `dia`.
    """

    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    ts: tuple[int, ...] = (30, 53, 76, 99)
    live: bool = False
    bank_gb: float = 16.0

    def __post_init__(self) -> None:
        check_dissolved(self)


@dataclass(frozen=True)
class DIAPlusSettings:
    """Nearest normals in several views.

    Args:
        dissolver: the diffusion model, or a control that stands in for it.
        contrast: of the view `contrast`; it does nothing without it.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        views: of the whole image: some of `shape`, `statistics`, `pixels`, `dissolved`, `blurred`, `spectrum`
            and `contrast`.
        places: whether the most unusual place counts.
        margin: by how many deviations it has to be more unusual than the whole.
        neighbours: nearest normals averaged over, in every view.
        symmetries: which turned and mirrored copies count as normal: `auto` learns it from the normals,
            `none`, or `all`.
        residual_ts: diffusion steps at which is dissolved.
        blur_sigmas: of the view `blurred`: widths of the blurs, in pixels of an image whose shorter side is
            64; they do nothing without it.
        whole: whether the whole image counts; without, `places` alone score, for lesions known to be small.
    """

    dissolver: DissolverSettings = field(default_factory=DissolverSettings)
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    bank_size: int = 16384
    views: tuple[View, ...] = ("shape", "statistics", "dissolved")
    places: bool = True
    margin: float = 2.0
    neighbours: int = 1
    symmetries: Literal["auto", "none", "all"] = "auto"
    residual_ts: tuple[int, ...] = (20, 50, 100, 300)
    blur_sigmas: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0)
    whole: bool = True

    def __post_init__(self) -> None:
        check(self, bank_size="[1, inf)", margin="[0, inf)", neighbours="[1, inf)",
              residual_ts=f"[0, {T_MAX - 1}]", blur_sigmas="[0, inf)")  # fmt: skip
        known = set(self.views) <= set(VIEWS) and len(set(self.views)) == len(self.views)
        require(known and bool(self.views), "views", f"must be some of {', '.join(VIEWS)}, once each")
        require(self.whole or self.places, "whole", "or places must be true; nothing is left to score by")
        kind = self.dissolver.kind
        leaves = kind not in ("none", "identity")
        require(leaves, "dissolver.kind", f"{kind} leaves dia+ no residual; use dia with it")
        for name in ("residual_ts", "blur_sigmas"):
            require(bool(getattr(self, name)), name, "must not be empty")

    def idle(self) -> tuple[str, ...]:
        """Returns the settings that do nothing, as the others stand."""
        views = {"contrast": "contrast", "blur_sigmas": "blurred"}
        return tuple(name for name, view in views.items() if not (self.whole and view in self.views))

    @staticmethod
    def from_0_1(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Converts the settings in a model's folder; those of 0.1 had `contrast`'s among their own."""
        if "amplify" not in values:
            return values
        moved = {"amplify", "ts", "live", "bank_gb"}
        kept = {k: v for k, v in values.items() if k not in (*moved, "samples", "score_parts", "score_draws")}
        return kept | {"contrast": {k: values[k] for k in moved if k in values}}


class Scale(nn.Module):
    """Where held-out normals lie: their median, and how far above it they go.

    Args:
        median: of their values.
        spread: root mean square of the distance from the median, of the values above it: copies of one image
            among the normals, which lie far below, say nothing of how far normals lie apart.
    """

    def __init__(self, median: float, spread: float):
        super().__init__()
        self.median, self.spread = median, spread

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Makes a scale from values `(S,)` of normals that trained nothing."""
        median = float(np.median(values))
        above = values[values > median] - median
        spread = float(np.sqrt((above**2).mean())) if len(above) else 0.0
        return cls(median, max(spread, _LEAST_SPREAD))

    def forward(self, values: Tensor) -> Tensor:
        """Returns the distance of values `(N,)` from the median, in spreads."""
        return (values - double(self.median)) / double(self.spread)


def log_distance(distances: Tensor, median: float) -> Tensor:
    """Returns the logarithm of distances as multiples of a median, bounded below.

    Args:
        distances: `(N,)`.
        median: of normals.
    """
    return (distances / double(max(median, TINY)) + double(NEAR)).log()


class Contrast(nn.Module):
    """The view `contrast`: features of the shifted images, each of norm 1, side by side.

    Args:
        encoder: trained against dissolved copies.
        settings: of its input and its shifts.
    """

    def __init__(self, encoder: Encoder, settings: AmplifySettings):
        super().__init__()
        self.encoder, self.settings = encoder, settings

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8."""
        k_shifts, shift = SHIFTS[self.settings.shift]
        x = as_input(x, self.settings)
        h = self.encoder(torch.cat([shift(x, k) for k in range(k_shifts)]))[0]
        h = F.normalize(h.view(k_shifts, x.shape[0], -1), dim=-1, eps=1e-12)
        return h.transpose(0, 1).flatten(1)


class Features(nn.Module):
    """The features of one view, for several copies of an image.

    Args:
        name: of the view.
        module: of its features; of a removal its residual.
        symmetries: which copies count as normal.
        scaling: mean and deviation `(D,)` of the normals, where the view is standardised.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        symmetries: tuple[int, ...],
        scaling: tuple[np.ndarray, np.ndarray] | None,
    ):
        super().__init__()
        self.name, self.module = name, module
        self.which = symmetries if name in TURNED else (0,)
        self.scaled = scaling is not None
        for part, values in zip(("mean", "std"), scaling or (), strict=False):
            self.register_buffer(part, torch.from_numpy(values))

    def forward(self, x: Tensor, dissolved: Measured) -> Tensor:
        """Returns `(S, N, D)` float32.

        Args:
            x: `(N, C, H, W)` uint8.
            dissolved: the measurements of what dissolving removes from x.
        """
        if isinstance(self.module, Residual):
            seen = dissolved if self.name == "dissolved" else self.module(x)
            return self.module.scaled(copies(seen.energies, self.which).flatten(2)).float()
        made = torch.stack([self.module(copy) for copy in copies(x, self.which).unbind(0)])
        if self.scaled:
            made = (made - self.get_buffer("mean")) / self.get_buffer("std")
        return made.float()


class Joined(nn.Module):
    """The score: the mean evidence of the views, or the most unusual place; the heatmap; dissolved copies.

    Args:
        residual: of dissolving.
        features: by view.
        banks: of normals, by view.
        medians: of the distances of other normals, by view.
        scales: of each view, of their mean (`WHOLE`) and of the most unusual place (`PLACE`), as far as used.
        margin: by how much a place has to be more unusual than the whole.
    """

    outputs = ("heatmap", "dissolved")

    def __init__(
        self,
        residual: Residual,
        features: dict[str, Features],
        banks: dict[str, Nearest],
        medians: dict[str, float],
        scales: dict[str, Scale],
        margin: float,
    ):
        super().__init__()
        self.residual, self.medians, self.margin = residual, medians, margin
        self.features, self.banks = nn.ModuleDict(features), nn.ModuleDict(banks)
        self.scales = nn.ModuleDict(scales)

    def distances(self, x: Tensor, seen: Measured) -> dict[str, Tensor]:
        """Returns, by view, the distance of each image to its nearest normal, `(N,)` float64.

        Args:
            x: `(N, C, H, W)` uint8.
            seen: the residual's measurements of x.
        """
        return {name: self.banks[name](features(x, seen)).amin(0) for name, features in self.features.items()}

    def logs(self, distances: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the logarithms of distances, as multiples of the median of normals."""
        return {name: log_distance(d, self.medians[name]) for name, d in distances.items()}

    def parts(self, x: Tensor, seen: Measured) -> dict[str, Tensor]:
        """Returns the parts of the score, `(N,)` each, 0 for a usual normal: each view, `whole`, and `place`.

        Args:
            x: `(N, C, H, W)` uint8.
            seen: the residual's measurements of x.
        """
        logs = self.logs(self.distances(x, seen))
        made = {name: self.scales[name](log) for name, log in logs.items()}
        if made:
            made[WHOLE] = self.scales[WHOLE](torch.stack(list(made.values())).mean(0))
        if PLACE in self.scales:
            made[PLACE] = self.scales[PLACE](self.residual.single(seen))
        return made

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes `(N, C, H, W)` uint8."""
        seen = self.residual(x)
        parts = self.parts(x, seen)
        if WHOLE in parts and PLACE in parts:
            score = torch.maximum(parts[WHOLE], parts[PLACE] - double(self.margin))
        else:
            score = parts[WHOLE if WHOLE in parts else PLACE]
        dissolved = seen.removed.round().to(torch.uint8).permute(1, 0, 3, 4, 2)
        return score, self.residual.heatmap(seen), dissolved


class DIAPlus(DIA):
    """Distance to the nearest normal in several views, joined without labels. Has heatmaps."""

    method = "dia+"
    family = "joined views"
    maps = True
    revision = 3  # nearest normals in views; before, p-values of contrast, residuals and spectrum
    paper = ""
    Settings: ClassVar[type] = DIAPlusSettings

    @property
    def _contrast(self) -> ContrastSettings:
        contrast: ContrastSettings = self.s.contrast
        return contrast

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self.where_ = choose_device(self.device)
        dissolver = self._fit_dissolver(images, reference, self.s.residual_ts, stages)
        if "contrast" in self._wanted:
            self._fit_amplified(images, dissolver, stages)
        self.residuals_ = self._residuals()
        for residual in self.residuals_.values():
            residual.fit(images)
        images = subsample(images, self.s.bank_size)
        shape = measured(Shape(*self.shape_[:2]), images)
        self.symmetries_ = self._learned(images, shape)
        self.scaling_: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.banks_: dict[str, Nearest] = {}
        for name in self._wanted:
            if name in REMOVALS:
                bank = self.residuals_[name].nearest.bank.cpu().numpy()
            elif name == "shape":
                bank = shape
            else:
                feature = self._feature(name).to(self.where_)
                bank = measured(feature, images, self._at_once(), self.where_)
            if name in STANDARDISED:
                mean, std = bank.mean(0), bank.std(0)
                self.scaling_[name] = mean, np.where(std > CONSTANT, std, 1.0)
                bank = (bank - mean) / self.scaling_[name][1]
            self.banks_[name] = Nearest(bank, self.s.neighbours)
        self._calibrate(reference)

    def _calibrate(self, reference: np.ndarray) -> None:
        """Sets the scales of all evidence by normals that trained nothing, dissolved once."""
        self.medians_, self.scales_ = dict.fromkeys(self._wanted, 1.0), {}
        module, columns, found = self._module().to(self.where_), [], []
        residual = self.residuals_["dissolved"]
        with torch.inference_mode():
            for x in passes(reference, self._at_once(), self.where_):
                seen = module.residual(x)
                columns.append(residual.columns(seen).cpu().numpy())
                found.append({k: d.cpu().numpy() for k, d in module.distances(x, seen).items()})
        residual.calibrate(np.concatenate(columns))
        if blurred := self.residuals_.get("blurred"):
            blurred.calibrate(blurred.measured(reference))
        distances = {name: np.concatenate([part[name] for part in found]) for name in self._wanted}
        module.medians = self.medians_ = {name: float(np.median(d)) for name, d in distances.items()}
        logs = module.logs({name: torch.from_numpy(d) for name, d in distances.items()})
        self.scales_ = {name: Scale.of(log.numpy()) for name, log in logs.items()}
        if views := [self.scales_[name](log) for name, log in logs.items()]:
            self.scales_[WHOLE] = Scale.of(torch.stack(views).mean(0).numpy())
        if self.s.places:
            evidence = residual.parts(torch.from_numpy(np.concatenate(columns)).to(self.where_))
            self.scales_[PLACE] = Scale.of(evidence[:, 0].cpu().numpy())

    def _learned(self, images: np.ndarray, shape: np.ndarray) -> tuple[int, ...]:
        """Which copies of a normal image lie as near to other normals as it does itself, by their shape."""
        there = possible(*images.shape[1:3])
        if self.s.symmetries != "auto":
            return there if self.s.symmetries == "all" else (0,)
        index = np.linspace(0, len(images) - 1, min(len(images), _ASKED)).astype(int)
        bank = torch.from_numpy(shape.astype(np.float32))
        module, x = Shape(*self.shape_[:2]), as_tensor(images[index])
        medians = []
        for copy in copies(x, there):
            d = torch.cdist(module(copy).float(), bank)
            d[torch.arange(len(index)), torch.from_numpy(index)] = torch.inf
            medians.append(float(d.amin(1).median()))
        return tuple(i for i, m in zip(there, medians, strict=True) if m <= _AS_NEAR * medians[0])

    # --- views ------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> tuple[str, ...]:
        return self.s.views if self.s.whole else ()

    def _residuals(self) -> dict[str, Residual]:
        """Makes the residual of dissolving, and of blurring where it is a view."""
        side = self.shape_[:2]
        removals: dict[str, nn.Module] = {"dissolved": Dissolve(self.dissolver_, self.s.residual_ts)}
        if "blurred" in self._wanted:
            removals["blurred"] = blur(self.s.blur_sigmas, *side)
        return {name: Residual(remove, *side).to(self.where_) for name, remove in removals.items()}

    def _feature(self, name: str) -> nn.Module:
        if name in REMOVALS:
            return self.residuals_[name]
        if name == "contrast":
            return Contrast(self.encoder_, self.s.contrast.amplify)
        return UNTRAINED[name](*self.shape_[:2])

    # --- scores -----------------------------------------------------------------------------------------

    def _at_once(self) -> int:
        return max(min(256, _PIXELS // (self.shape_[0] * self.shape_[1])), 32)

    def _module(self) -> Joined:
        features = {
            name: Features(name, self._feature(name), self.symmetries_, self.scaling_.get(name))
            for name in self._wanted
        }
        residual = self.residuals_["dissolved"]
        return Joined(residual, features, self.banks_, self.medians_, self.scales_, self.s.margin)

    def cannot_export(self) -> str:
        """Returns the reason where each image has noise of its own, which no graph can hold."""
        if isinstance(self.dissolver_, Control) and self.dissolver_.settings.kind == "noise":
            return "dissolver.kind noise is drawn from the pixels and cannot be exported"
        return ""

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Returns the features of shape, `(N, 1568)` float32; see `features.py`."""
        return measured(Shape(*self.shape_[:2]), self._check(images)).astype(np.float32)

    # --- folders ----------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, np.ndarray]:
        out = {"symmetries": np.array(self.symmetries_)}
        for name, residual in self.residuals_.items():
            out |= residual.tensors(_PREFIX[name])
        if hasattr(self, "encoder_"):
            out |= module_tensors(self.encoder_, "encoder.")
        # the banks of removals are those of their residuals
        out |= {f"bank.{k}": b.bank.cpu().numpy() for k, b in self.banks_.items() if k not in REMOVALS}
        for name, pair in self.scaling_.items():
            out |= {f"{part}.{name}": v for part, v in zip(("mean", "std"), pair, strict=True)}
        out |= {f"median.{k}": np.array(m) for k, m in self.medians_.items()}
        return out | {f"scale.{k}": np.array([s.median, s.spread]) for k, s in self.scales_.items()}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        views, self.where_ = self._wanted, choose_device(self.device)
        if "contrast" in views:
            self._restore_encoder(tensors)
        self._restore_dissolver(folder)
        self.residuals_ = self._residuals()
        for name, residual in self.residuals_.items():
            residual.restore(tensors, _PREFIX[name])
        self.symmetries_ = tuple(tensors["symmetries"].tolist())
        if not set(self.symmetries_) <= set(possible(*self.shape_[:2])):
            raise ValueError(f"symmetries {self.symmetries_} do not keep the shape of its images")
        self.scaling_ = {k: (tensors[f"mean.{k}"], tensors[f"std.{k}"]) for k in STANDARDISED if k in views}
        names = {k: f"{_PREFIX[k]}.bank" if k in REMOVALS else f"bank.{k}" for k in views}
        self.banks_ = {k: Nearest(tensors[name], self.s.neighbours) for k, name in names.items()}
        self.medians_ = {k: tensors[f"median.{k}"].item() for k in views}
        kept = [*views, *([WHOLE] if views else []), *([PLACE] if self.s.places else [])]
        self.scales_ = {k: Scale(*tensors[f"scale.{k}"].tolist()) for k in kept}
