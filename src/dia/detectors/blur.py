"""The control for dissolving: the residual statistics of `dia+`, with a Gaussian blur in place of diffusion.

Untrained but for the statistics of normals. Knows `residual.py` and the blur.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..dissolve.stand_ins import gaussian
from .base import Detector, Stages
from .residual import Residual, joined


@dataclass(frozen=True)
class BlurSettings:
    """Residuals of Gaussian blurs.

    Args:
        sigmas: widths of the blurs in pixels of an image whose shorter side is 64; they scale with it.
    """

    sigmas: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0)


def blurred(images: np.ndarray, sigmas: tuple[float, ...]) -> np.ndarray:
    """Blurs `(N, H, W, C)` images at several widths, which scale with the shorter side."""
    unit = min(images.shape[1:3]) / 64
    return gaussian(images, [sigma * unit for sigma in sigmas])


class Blur(Detector):
    """What Gaussian blurs remove, judged as `dia+` judges what dissolving removes."""

    method = "trivial:blur"
    family = "untrained"
    revision = 2  # smooth evidence
    Settings: ClassVar[type] = BlurSettings

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        self.residual_ = Residual(self._remove).fit(images, spare)

    def _remove(self, images: np.ndarray) -> np.ndarray:
        return blurred(images, self.s.sigmas)

    def _score(self, images: np.ndarray) -> np.ndarray:
        return joined(self.residual_.evidence(images))

    def _heatmap(self, images: np.ndarray) -> np.ndarray:
        return self.residual_.heatmap(images)

    def _tensors(self) -> dict[str, np.ndarray]:
        return self.residual_.tensors()

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.residual_ = Residual(self._remove).restore(tensors)
