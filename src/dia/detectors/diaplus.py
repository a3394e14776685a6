"""`dia+`: DIA's encoder, joined with what dissolving and blurring remove, and with the spectrum.

Ours, not of the paper. Eight pieces of evidence (−log of a smoothed conformal p-value, on normals that
trained nothing): the contrastive score; the three residual statistics of `residual.py` for dissolving at
several t; the same three for Gaussian blurs, the control, which it contains because neither beats the other
everywhere; and the untrained row `trivial:spectrum`, for what lies in no one place. They are joined by the
harmonic mean of the p-values, with no label and no weight to choose. Held-out normals then calibrate the
joined score, so its p-values are valid though the parts depend on each other. The heatmap comes from
dissolving alone.

Dissolved images are not rounded to whole grey values: a pixel on the edge of two of them would hang on the
last digits of the machine's sums.

Contrastive scores, all from the same encoder: `paper` (csi.py), `cosine` (its first term), and
`mahalanobis` (Lee et al., NeurIPS 2018, one class) or `neighbours` on penultimate features of the
unaugmented image, summed over the shifts. One choice for all data sets: `mahalanobis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from ..calibrate import Calibration
from ..dissolve.base import T_MAX
from ..settings import chosen, require
from .base import Stages, module_tensors
from .blur import blurred
from .csi import normality, spread
from .dia import DIA, DIASettings
from .residual import PARTS, Residual, joined, nearest
from .trivial import Spectrum

FEATURE_NEIGHBOURS = 3


@dataclass(frozen=True)
class DIAPlusSettings(DIASettings):
    """DIA joined with the residuals; what is not named here is as for `dia`.

    Args:
        contrast: how the encoder scores.
        residual_ts: diffusion steps of the residual.
        blur_sigmas: widths of the control's blurs, in pixels of an image whose shorter side is 64.
    """

    contrast: Literal["paper", "cosine", "mahalanobis", "neighbours"] = "mahalanobis"
    residual_ts: tuple[int, ...] = (20, 50, 100, 300)
    blur_sigmas: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen(self, "contrast")
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
    """Contrast, residuals and spectrum, joined without labels. Has heatmaps."""

    method = "dia+"
    family = "contrastive and residual"
    revision = 2  # smooth evidence, dissolved images not rounded, the spectrum joined
    paper = ""
    Settings: ClassVar[type] = DIAPlusSettings

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        dissolver = self._fit_dissolver(images, stages)
        self._fit_amplified(images, dissolver, stages)
        if self.s.contrast in ("paper", "cosine"):
            self._fit_bank(images)
        else:
            h = self._features(spread(images, self.s.bank_size))  # (K, N, D)
            if self.s.contrast == "mahalanobis":
                self.centre_, self.precision_ = gaussians(h)
            else:
                self.features_ = h
        self.residual_ = Residual(self._remove).fit(images, spare)
        self.blur_ = Residual(self._blur).fit(images, spare)
        self.spectrum_ = Spectrum()
        self.spectrum_._fit(images, spare, stages)
        self.normals_ = {
            "contrast": Calibration.of(self._contrast(spare)),
            "spectrum": Calibration.of(self.spectrum_._score(spare)),
        }

    def _remove(self, images: np.ndarray) -> np.ndarray:
        return self.dissolver_.dissolve(images, self.s.residual_ts, rounded=False)

    def _blur(self, images: np.ndarray) -> np.ndarray:
        return blurred(images, self.s.blur_sigmas)

    def _contrast(self, images: np.ndarray) -> np.ndarray:
        """The contrastive score, `(N,)`."""
        if self.s.contrast == "paper":
            return super()._score(images)
        if self.s.contrast == "cosine":
            z, s = self._projections(images)
            n = normality(z, s, self.bank_, self.lambda_, self.mu_, ("cosine", "norm"))
            return -n.double().cpu().numpy()
        h = self._features(images)
        if self.s.contrast == "neighbours":
            return np.sum(
                [nearest(a, b, FEATURE_NEIGHBOURS) for a, b in zip(h, self.features_, strict=True)], axis=0
            )
        return mahalanobis(h, self.centre_, self.precision_).sum(0)

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The evidence of each part, `(N,)` each; `joined`, they are the score."""
        out = {"contrast": self.normals_["contrast"].evidence(self._contrast(images))}
        for name, residual in (("dissolve", self.residual_), ("blur", self.blur_)):
            evidence = residual.evidence(images).T
            out |= {f"{name}:{part}": e for part, e in zip(PARTS, evidence, strict=True)}
        return out | {"spectrum": self.normals_["spectrum"].evidence(self.spectrum_._score(images))}

    def _score(self, images: np.ndarray) -> np.ndarray:
        return joined(np.column_stack(list(self.parts(images).values())))

    def _heatmap(self, images: np.ndarray) -> np.ndarray:
        return self.residual_.heatmap(images)

    _OWN = ("centre", "precision", "features", "bank", "lambda", "mu")

    def _tensors(self) -> dict[str, np.ndarray]:
        own = {k: getattr(self, f"{k}_") for k in self._OWN if hasattr(self, f"{k}_")}
        own = {k: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in own.items()}
        encoder = module_tensors(self.encoder_, "encoder.")
        residuals = self.residual_.tensors() | self.blur_.tensors("blur")
        spectrum = {f"spectrum.{k}": v for k, v in self.spectrum_._tensors().items()}
        normals = {f"normals.{k}": c.scores for k, c in self.normals_.items()}
        return encoder | own | residuals | spectrum | normals

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        if "bank" in tensors:
            super()._restore(tensors, folder)
        else:
            self._restore_encoder(tensors)
            self._restore_dissolver(folder)
        for name in ("centre", "precision", "features"):
            if name in tensors:
                setattr(self, f"{name}_", tensors[name])
        self.normals_ = {k: Calibration(tensors[f"normals.{k}"]) for k in ("contrast", "spectrum")}
        self.spectrum_ = Spectrum()
        self.spectrum_._restore({k: tensors[f"spectrum.{k}"] for k in ("mean", "std", "bank")}, folder)
        self.residual_ = Residual(self._remove).restore(tensors)
        self.blur_ = Residual(self._blur).restore(tensors, "blur")


def gaussians(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres `(K, D)` and precisions `(K, D, D)` of features `(K, N, D)`, by Ledoit and Wolf's estimate."""
    fits = [LedoitWolf().fit(f) for f in h]
    return np.stack([f.location_ for f in fits]), np.stack([f.precision_ for f in fits])


def mahalanobis(h: np.ndarray, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Distances `(K, N)` of features `(K, N, D)` from the centre of their shift."""
    c = h - centre[:, None]
    return np.asarray(np.sqrt(np.einsum("knd,kde,kne->kn", c, precision, c, optimize=True)))
