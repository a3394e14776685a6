"""`dia+`: how far an image is from its nearest normal, in several views, of which dissolving makes one.

Ours, not of the paper. Views, each a vector of an image: its shape and its statistics (`views.py`,
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
whole grey values: a pixel on the edge of two of them would hang on the last digits of the machine's sums.

Why these views, and what was tried: docs/decisions/0020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ..core.settings import chosen, require
from ..data.imageset import ImageSet, subsample
from ..dissolve.base import T_MAX
from .baselines import Spectrum, blurred, luma
from .cache import Stages
from .dia import DIA, DIASettings
from .features import Pixels, Shape, Statistics, copies, possible
from .nearest import Nearest, Scale, log_distance
from .residual import Residual, grid_energies
from .saving import module_tensors

View = Literal["shape", "statistics", "pixels", "dissolved", "blurred", "spectrum", "contrast"]
VIEWS: tuple[View, ...] = (
    "shape", "statistics", "pixels", "dissolved", "blurred", "spectrum", "contrast",
)  # fmt: skip
WHOLE, PLACE = "whole", "place"
UNTRAINED: dict[str, Callable[[int, int], nn.Module]] = {
    "shape": Shape, "statistics": Statistics, "pixels": Pixels,
}  # fmt: skip
REMOVALS = ("dissolved", "blurred")
TURNED = ("shape", "pixels", *REMOVALS)  # the views that copies change
STANDARDISED = ("statistics", "spectrum")  # place by place by the normals; removals are in `residual.py`
_AS_NEAR = 1.05  # times the distance of the image itself: a copy this near is as normal
_ASKED = 300  # normals whose copies are measured
_CONSTANT = 1e-9  # a feature that spreads less than this over the normals is left unscaled
_CHUNK = 256


@dataclass(frozen=True)
class DIAPlusSettings(DIASettings):
    """What is not named here is as for `dia`; `amplify`, `ts`, `live`, `bank_gb` matter to `contrast` alone.

    Args:
        views: of the whole image: some of `shape`, `statistics`, `pixels`, `dissolved`, `blurred`, `spectrum`
            and `contrast`.
        places: whether the most unusual place counts.
        margin: by how many deviations it has to be more unusual than the whole.
        whole: whether the whole image counts; without, `places` alone score, for lesions known to be small.
        neighbours: nearest normals averaged over, in every view.
        symmetries: which turned and mirrored copies count as normal: `auto` learns it from the normals,
            `none`, or `all`.
        residual_ts: diffusion steps at which is dissolved.
        blur_sigmas: widths of the control's blurs, in pixels of an image whose shorter side is 64.
    """

    views: tuple[View, ...] = ("shape", "statistics", "dissolved")
    places: bool = True
    margin: float = 2.0
    neighbours: int = 1
    symmetries: Literal["auto", "none", "all"] = "auto"
    residual_ts: tuple[int, ...] = (20, 50, 100, 300)
    blur_sigmas: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0)
    whole: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen(self, "symmetries")
        known = set(self.views) <= set(VIEWS) and len(set(self.views)) == len(self.views)
        require(known and bool(self.views), "views", f"must be some of {', '.join(VIEWS)}, once each")
        require(self.whole or self.places, "whole", "or places must be true; nothing is left to score by")
        require(self.margin >= 0, "margin", f"must be at least 0, not {self.margin}")
        require(self.neighbours >= 1, "neighbours", f"must be at least 1, not {self.neighbours}")
        kind = self.dissolver.kind
        require(
            kind not in ("none", "identity"),
            "dissolver.kind",
            f"{kind} leaves dia+ no residual; use dia with it",
        )
        for name, most in (("residual_ts", T_MAX - 1), ("blur_sigmas", np.inf)):
            values = getattr(self, name)
            require(
                bool(values) and min(values) >= 0 and max(values) <= most,
                name,
                f"must lie in 0–{most}, not {values}",
            )


class DIAPlus(DIA):
    """Distance to the nearest normal in several views, joined without labels. Has heatmaps."""

    method = "dia+"
    family = "joined views"
    revision = 3  # nearest normals in views; before, p-values of contrast, residuals and spectrum
    paper = ""
    Settings: ClassVar[type] = DIAPlusSettings

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        dissolver = self._fit_dissolver(images, spare, self.s.residual_ts, stages)
        if "contrast" in self._wanted:
            self._fit_amplified(images, dissolver, stages)
        self.residual_ = Residual(self._remove).fit(images, spare)
        if "blurred" in self._wanted:
            self.blur_ = Residual(self._blur).fit(images, spare)
        images = subsample(images, self.s.bank_size)
        shape = self._untrained("shape", images, (0,))[0]
        self.symmetries_ = self._learned(images, shape)
        self.scaling_: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.banks_: dict[str, Nearest] = {}
        for name in self._wanted:
            if name in REMOVALS:
                self.banks_[name] = Nearest(self._residual(name).bank_, self.s.neighbours)
            else:
                bank = shape if name == "shape" else self._raw(name, images, (0,))[0]
                if name in STANDARDISED:
                    std = bank.std(0)
                    self.scaling_[name] = bank.mean(0), np.where(std > _CONSTANT, std, 1.0)
                self.banks_[name] = Nearest(self._scaled(name, bank), self.s.neighbours)
        distances = self.distances(spare)
        self.medians_ = {name: float(np.median(d)) for name, d in distances.items()}
        logs = {name: log_distance(d, self.medians_[name]) for name, d in distances.items()}
        self.scales_ = {name: Scale.of(log) for name, log in logs.items()}
        if views := [self.scales_[name].standardised(log) for name, log in logs.items()]:
            self.scales_[WHOLE] = Scale.of(np.mean(views, axis=0))
        if self.s.places:
            self.scales_[PLACE] = Scale.of(self.residual_.single(spare)[0])

    def _learned(self, images: np.ndarray, shape: np.ndarray) -> tuple[int, ...]:
        """Which copies of a normal image lie as near to other normals as it does itself, by their shape."""
        there = possible(*images.shape[1:3])
        if self.s.symmetries != "auto":
            return there if self.s.symmetries == "all" else (0,)
        index = np.linspace(0, len(images) - 1, min(len(images), _ASKED)).astype(int)
        bank = torch.from_numpy(shape.astype(np.float32))
        medians = []
        for copy in self._untrained("shape", images[index], there):
            d = torch.cdist(torch.from_numpy(copy.astype(np.float32)), bank)
            d[torch.arange(len(index)), torch.from_numpy(index)] = torch.inf
            medians.append(float(d.amin(1).median()))
        return tuple(i for i, m in zip(there, medians, strict=True) if m <= _AS_NEAR * medians[0])

    @property
    def _wanted(self) -> tuple[str, ...]:
        return self.s.views if self.s.whole else ()

    # --- views ------------------------------------------------------------------------------------------

    def _remove(self, images: np.ndarray) -> np.ndarray:
        return self.dissolver_.dissolve(images, self.s.residual_ts, rounded=False)

    def _blur(self, images: np.ndarray) -> np.ndarray:
        return blurred(images, self.s.blur_sigmas)

    def _residual(self, name: str) -> Residual:
        return self.residual_ if name == "dissolved" else self.blur_

    @torch.inference_mode()
    def _untrained(self, name: str, images: np.ndarray, which: tuple[int, ...]) -> np.ndarray:
        module = UNTRAINED[name](*images.shape[1:3])
        parts = []
        for start in range(0, len(images), _CHUNK):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + _CHUNK])).permute(0, 3, 1, 2)
            parts.append(np.stack([module(copy).numpy() for copy in copies(x, which)]))
        return np.concatenate(parts, 1)

    def _raw(
        self, name: str, images: np.ndarray, which: tuple[int, ...], dissolved: np.ndarray | None = None
    ) -> np.ndarray:
        """Features of copies of the images, `(S, N, D)`; of one where copies do not change them.

        `dissolved` are the energies of dissolving, where they are known already.
        """
        if name in UNTRAINED:
            return self._untrained(name, images, which if name in TURNED else (0,))
        if name in REMOVALS:
            residual = self._residual(name)
            known = dissolved if name == "dissolved" else None
            energies = grid_energies(images, residual.remove) if known is None else known  # (N, T, 6, 6)
            return copies(torch.from_numpy(energies), which).flatten(2).numpy()
        if name == "spectrum":
            return Spectrum._features(luma(images))[None]
        h = self._features(images)
        h /= np.maximum(np.linalg.norm(h, axis=-1, keepdims=True), 1e-12)
        return np.concatenate(list(h), axis=1)[None]

    def _scaled(self, name: str, features: np.ndarray) -> np.ndarray:
        if name in REMOVALS:
            residual = self._residual(name)
            return (features - residual.energy_mean_) / residual.energy_std_
        mean, std = self.scaling_.get(name, (0.0, 1.0))
        return np.asarray((features - mean) / std)

    def distances(self, images: np.ndarray, dissolved: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """By view, the distance of each image to its nearest normal, `(N,)`; `dissolved` as in `_raw`."""
        out = {}
        for name in self._wanted:
            x = self._scaled(name, self._raw(name, images, self.symmetries_, dissolved))
            out[name] = np.min([self.banks_[name].distances(copy) for copy in x], axis=0)
        return out

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What makes the score, `(N,)` each, 0 for a usual normal: each view, `whole`, and `place`."""
        single, dissolved = self.residual_.single(images) if PLACE in self.scales_ else (None, None)
        out = {
            name: self.scales_[name].standardised(log_distance(d, self.medians_[name]))
            for name, d in self.distances(images, dissolved).items()
        }
        if out:
            out[WHOLE] = self.scales_[WHOLE].standardised(np.mean(list(out.values()), axis=0))
        if single is not None:
            out[PLACE] = self.scales_[PLACE].standardised(single)
        return out

    def _score(self, images: np.ndarray) -> np.ndarray:
        parts = self.parts(images)
        if WHOLE in parts and PLACE in parts:
            return np.maximum(parts[WHOLE], parts[PLACE] - self.s.margin)
        return parts[WHOLE if WHOLE in parts else PLACE]

    def _heatmap(self, images: np.ndarray) -> np.ndarray:
        return self.residual_.heatmap(images)

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """What images are compared by: their shape, `(N, 1568)` float32; see `views.py`."""
        return self._untrained("shape", self._check(images), (0,))[0].astype(np.float32)

    # --- folders ----------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, np.ndarray]:
        out = {"symmetries": np.array(self.symmetries_)} | self.residual_.tensors()
        if hasattr(self, "encoder_"):
            out |= module_tensors(self.encoder_, "encoder.")
        if hasattr(self, "blur_"):
            out |= self.blur_.tensors("blur")
        # the banks of removals are those of their residuals
        out |= {f"bank.{k}": b.bank for k, b in self.banks_.items() if k not in REMOVALS}
        for name, pair in self.scaling_.items():
            out |= {f"{part}.{name}": v for part, v in zip(("mean", "std"), pair, strict=True)}
        out |= {f"median.{k}": np.array(m) for k, m in self.medians_.items()}
        return out | {f"scale.{k}": np.array([s.median, s.spread]) for k, s in self.scales_.items()}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        views = self._wanted
        if "contrast" in views:
            self._restore_encoder(tensors)
        self._restore_dissolver(folder)
        self.residual_ = Residual(self._remove).restore(tensors)
        if "blurred" in views:
            self.blur_ = Residual(self._blur).restore(tensors, "blur")
        self.symmetries_ = tuple(tensors["symmetries"].tolist())
        if not set(self.symmetries_) <= set(possible(*self.shape_[:2])):
            raise ValueError(f"symmetries {self.symmetries_} do not keep the shape of its images")
        self.scaling_ = {k: (tensors[f"mean.{k}"], tensors[f"std.{k}"]) for k in STANDARDISED if k in views}
        self.banks_ = {
            k: Nearest(self._residual(k).bank_ if k in REMOVALS else tensors[f"bank.{k}"], self.s.neighbours)
            for k in views
        }
        self.medians_ = {k: tensors[f"median.{k}"].item() for k in views}
        kept = [*views, *([WHOLE] if views else []), *([PLACE] if self.s.places else [])]
        self.scales_ = {k: Scale(*tensors[f"scale.{k}"].tolist()) for k in kept}
