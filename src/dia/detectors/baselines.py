"""The untrained rows every claim must beat: fixed numbers of an image, or its pixels, against normals.

They may know the training normals and nothing else: no labels, no anomalies, no test images, no network, no
random draw; nothing is tuned, and no sign is chosen. An image is its luma (ITU-R 601) in [0, 1].

| row | what it measures | source |
|---|---|---|
| brightness, std, gradient | one number, two-sided z-score | – |
| statistics | these three, four log band energies, five quantiles | Burt and Adelson, 1983 (bands) |
| spectrum | log power in 14 rings of frequency | – |
| hog | histograms of oriented gradients | Dalal and Triggs, CVPR 2005 |
| lbp | histograms of uniform local binary patterns | Ojala et al., PAMI 24(7), 2002 |
| pixels, pixels-normalised | distance to the nearest normal at 16×16 | Cover and Hart, 1967 |
| pca | error of reconstruction from principal components | Turk and Pentland, 1991 (eigenfaces) |

Statistics, spectrum, hog and lbp: features standardised by the normals, mean distance to the nearest three.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.feature import hog, local_binary_pattern
from sklearn.decomposition import PCA

from ..dissolve.controls import gaussian
from .base import Detector
from .cache import Stages
from .nearest import Nearest
from .residual import Residual, joined

_CHUNK = 256  # images measured at once
FLOOR = 1e-8  # added to energies before the logarithm: far below one step of 8 bits, squared
_CONSTANT = 1e-9  # a feature that spreads less than this over the normals is left unscaled
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # .299, .587, .114 of 2¹⁶
SIGMAS = (0.7, 1.0, 2.0, 4.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RINGS = 14
_LBP = ((8, 1), (16, 2))  # points, radius


@dataclass(frozen=True)
class TrivialSettings:
    """What the untrained rows share.

    Args:
        neighbours: nearest normals averaged over; one for the pixel rows, none for one number and PCA.
    """

    neighbours: int = 3


def luma(images: np.ndarray) -> np.ndarray:
    """`(N, H, W, 1 or 3)` uint8 to `(N, H, W)` in [0, 1], in 255 steps, rounded as PIL does."""
    if images.shape[-1] == 1:
        return images[..., 0] / 255
    return ((images.astype(np.uint32) @ _LUMA + 2**15) >> 16) / 255


def resized(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """Each side brought into [low, high], bilinearly and antialiased; unchanged if it is."""
    size = [int(np.clip(side, low, high)) for side in x.shape[1:]]
    if size == list(x.shape[1:]):
        return x
    return F.interpolate(torch.from_numpy(x)[:, None], size, mode="bilinear", antialias=True)[:, 0].numpy()


def rings(height: int, width: int) -> np.ndarray:
    """The ring of each frequency of an `(H, W)` Fourier transform; the corners lie beyond the last."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return np.floor(radius * 2 * RINGS + 1e-9).astype(int)


class _Measured(Detector):
    """Features of each image, standardised by mean and std of the training normals."""

    family = "untrained"
    Settings: ClassVar[type] = TrivialSettings

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        """Luma `(N, H, W)` to `(N,)` or `(N, D)`, each image on its own."""
        raise NotImplementedError

    def _measure(self, images: np.ndarray) -> np.ndarray:
        chunks = (images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK))
        return np.concatenate([self._features(luma(c)).reshape(len(c), -1) for c in chunks])

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        raw = self._measure(images)
        self.mean_, std = raw.mean(0), raw.std(0)
        self.std_ = np.where(std > _CONSTANT, std, 1.0)

    def _standardised(self, images: np.ndarray) -> np.ndarray:
        return (self._measure(images) - self.mean_) / self.std_

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_, "std": self.std_}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.mean_, self.std_ = tensors["mean"], tensors["std"]


class _OneNumber(_Measured):
    """Two-sided: how many standard deviations from the mean of the normals."""

    def _score(self, images: np.ndarray) -> np.ndarray:
        return np.abs(self._standardised(images)[:, 0])


class _Neighbours(_Measured):
    """Mean Euclidean distance to the nearest normals."""

    _nearest: ClassVar[int | None] = None  # as the settings say

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        super()._fit(images, spare, stages)
        self._index(self._standardised(images))

    def _index(self, bank: np.ndarray) -> None:
        self.normals_ = Nearest(bank, self._nearest or self.s.neighbours)

    def _score(self, images: np.ndarray) -> np.ndarray:
        return self.normals_.distances(self._standardised(images))

    def _tensors(self) -> dict[str, np.ndarray]:
        return super()._tensors() | {"bank": self.normals_.bank}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        self._index(tensors["bank"])


class _NearestPixels(_Neighbours):
    """The nearest normal alone, in pixels as they are."""

    _nearest = 1

    def _standardised(self, images: np.ndarray) -> np.ndarray:
        return self._measure(images)


class Brightness(_OneNumber):
    """Mean luma."""

    method = "trivial:brightness"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        return x.mean((1, 2))


class Std(_OneNumber):
    """Standard deviation of luma."""

    method = "trivial:std"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        return x.std((1, 2))


class Gradient(_OneNumber):
    """Gradient energy: mean absolute difference of neighbouring pixels, down plus across."""

    method = "trivial:gradient"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        down, across = np.abs(np.diff(x, axis=1)), np.abs(np.diff(x, axis=2))
        return down.mean((1, 2)) + across.mean((1, 2))


class Statistics(_Neighbours):
    """Mean, std and gradient energy; log energies of four difference-of-Gaussian bands; five quantiles."""

    method = "trivial:statistics"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        columns = [row._features(x) for row in (Brightness, Std, Gradient)]
        finer = x
        for sigma in SIGMAS:
            coarser = ndimage.gaussian_filter(x, (0, sigma, sigma))
            columns.append(np.log(((finer - coarser) ** 2).mean((1, 2)) + FLOOR))
            finer = coarser
        return np.stack([*columns, *np.quantile(x, QUANTILES, axis=(1, 2))], 1)


class Spectrum(_Neighbours):
    """Log mean power in rings of equal width from 0 to half a cycle per pixel; mean removed, Hann window."""

    method = "trivial:spectrum"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        h, w = x.shape[1:]
        centred = x - x.mean((1, 2), keepdims=True)
        window = np.outer(np.hanning(h), np.hanning(w))
        power = np.abs(np.fft.fft2(centred * window, norm="ortho")) ** 2
        ring = rings(h, w)
        means = [power[:, ring == i].sum(1) / max((ring == i).sum(), 1) for i in range(RINGS)]
        return np.log(np.stack(means, 1) + FLOOR)


class Hog(_Neighbours):
    """HOG of 8 orientations, cells of 4×4 pixels, blocks of 2×2 cells.

    Sides above 32 px are first brought to 32, so that there are at most 1568 numbers; those below 8 px to 8.
    """

    method = "trivial:hog"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        return np.stack([hog(i, 8, (4, 4), (2, 2)) for i in resized(x, 8, 32)])


class Lbp(_Neighbours):
    """Histograms, each of sum 1, of uniform patterns at (8 points, radius 1) and (16, 2): 10 + 18 numbers."""

    method = "trivial:lbp"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        def histogram(image: np.ndarray, points: int, radius: int) -> np.ndarray:
            codes = local_binary_pattern(image, points, radius, "uniform").astype(int)
            return np.bincount(codes.ravel(), minlength=points + 2) / codes.size

        grey = np.round(x * 255).astype(np.uint8)
        return np.stack([np.concatenate([histogram(i, *pattern) for pattern in _LBP]) for i in grey])


class Pixels(_NearestPixels):
    """16×16 pixels."""

    method = "trivial:pixels"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        return resized(x, 16, 16).reshape(len(x), -1)


class NormalisedPixels(_NearestPixels):
    """The same, each image with mean 0 and std 1; one without contrast becomes 0."""

    method = "trivial:pixels-normalised"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        flat = Pixels._features(x)
        flat = flat - flat.mean(1, keepdims=True)
        return flat / np.maximum(flat.std(1, keepdims=True), 1e-6)


class Pca(_Measured):
    """Mean squared error of reconstruction from the components that keep 95 % of the variance.

    Of luma at most 32×32 px. One-sided: more error is more anomalous, also where that is wrong.
    """

    method = "trivial:pca"

    @staticmethod
    def _features(x: np.ndarray) -> np.ndarray:
        return resized(x, 1, 32)

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        x = self._measure(images)
        self.mean_, self.components_ = x.mean(0), np.zeros((0, x.shape[1]))
        if x.std(0).max() > _CONSTANT:  # identical images have no components
            pca = PCA(0.95, svd_solver="covariance_eigh").fit(x)
            self.components_ = np.ascontiguousarray(pca.components_)  # as they are saved

    def _residual(self, images: np.ndarray) -> np.ndarray:
        x = self._measure(images) - self.mean_
        return x - x @ self.components_.T @ self.components_

    def _score(self, images: np.ndarray) -> np.ndarray:
        return (self._residual(images) ** 2).mean(1)

    def _heatmap(self, images: np.ndarray) -> np.ndarray:
        """|residual|, smoothed with σ = 1 at the size of the components, at the size of the images."""
        n, h, w, _ = images.shape
        residual = self._residual(images).reshape(n, 1, min(h, 32), min(w, 32))
        smooth = torch.from_numpy(ndimage.gaussian_filter(np.abs(residual), (0, 0, 1, 1)))
        return F.interpolate(smooth, (h, w), mode="bilinear")[:, 0].numpy().astype(np.float32)

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_, "components": self.components_}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.mean_, self.components_ = tensors["mean"], tensors["components"]


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
