"""The untrained rows every claim must beat: fixed numbers of an image, or its pixels, against normals.

They may know the training normals and nothing else: no labels, no anomalies, no test images, no network, no
random draw but that of blur's folds; nothing is tuned, and no sign is chosen. An image is its luma (ITU-R
601) in [0, 1]; for blur it is the mean of its channels.

| row | what it measures | source |
|---|---|---|
| brightness, std, gradient | one number, two-sided z-score | – |
| statistics | these three, four log band energies, five quantiles | Burt and Adelson, 1983 (bands) |
| spectrum | log power in 14 rings of frequency | – |
| hog | histograms of oriented gradients | Dalal and Triggs, CVPR 2005 |
| lbp | histograms of uniform local binary patterns | Ojala et al., PAMI 24(7), 2002 |
| pixels, pixels-normalised | distance to the nearest normal at 16×16 | Cover and Hart, 1967 |
| pca | error of reconstruction from principal components | Turk and Pentland, 1991 (eigenfaces) |
| blur | the most unusual place in what blurs remove, the control of `dia+` | `places.py` |

Statistics, spectrum, hog and lbp: features standardised by the normals, mean distance to the nearest three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.feature import hog, local_binary_pattern
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ...data.imageset import subsample
from ...features import untrained as features
from ...features.backbone import Squares
from ...features.untrained import (
    CONSTANT,
    Linear,
    as_tensor,
    luma,
    measured,
    resizer,
    resizing,
    with_channels,
)
from ..base import Detector
from ..nearest import Nearest
from ..places import Places, Residuals, folds_of, owners_of
from ..saving import StageCache, module_tensors

_LBP = ((8, 1), (16, 2))  # points, radius
_LARGEST = 32  # side of what HOG and PCA see
_SIDE = 256  # of the squares of which blurs take something, at most
_BYTES = 2**29  # of the maps of the normals from which places are fitted, at most
_ROOM = 2**20  # pixels of one pass of blurs
_SOURCE = "residual"  # of the places


@dataclass(frozen=True)
class TrivialSettings:
    """The settings of the untrained rows.

    Args:
        neighbours: nearest normals averaged over; one for the pixel rows, none for one number and PCA.
    """

    neighbours: int = 3


# --- modules of features ------------------------------------------------------------------------------------


class Grey(nn.Module):
    """The features of an image's luma, `(N, D)` float64.

    Args:
        features: makes, from height and width, a module for grey images `(N, 1, H, W)` of whole numbers in
            0–255, float64.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    def __init__(self, features: Callable[[int, int], nn.Module], height: int, width: int):
        super().__init__()
        self.features = features(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, 1 or 3, H, W)` uint8."""
        made: Tensor = self.features(with_channels(x.double(), 1))
        return made


class Number(nn.Module):
    """One number of each image.

    Args:
        of: from luma `(N, H, W)` in [0, 1] to `(N,)`.
        height: is not used.
        width: is not used.
    """

    def __init__(self, of: Callable[[Tensor], Tensor], height: int, width: int):
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` uint8 to `(N, 1)`."""
        return self.of(luma(x))[:, None]


class ByImage(nn.Module):
    """A numpy function of each image, which no graph can hold.

    Args:
        of: from luma `(H, W)` in [0, 1] to `(D,)`.
        low: smallest side that `of` sees; smaller images are enlarged to it.
        high: largest side that `of` sees; larger images are reduced to it.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    def __init__(self, of: Callable[[np.ndarray], np.ndarray], low: int, high: int, height: int, width: int):
        super().__init__()
        self.of, self.size = of, [min(max(side, low), high) for side in (height, width)]

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8."""
        y = luma(x)
        if self.size != list(y.shape[1:]):
            y = F.interpolate(y[:, None], self.size, mode="bilinear", antialias=True)[:, 0]
        return torch.from_numpy(np.stack([self.of(image) for image in y.numpy()]))


class Normalised(nn.Module):
    """Features with mean 0 and std 1 in each image; without contrast they become 0.

    Args:
        features: makes, from height and width, a module from `(N, C, H, W)` uint8 to `(N, D)`.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    def __init__(self, features: Callable[[int, int], nn.Module], height: int, width: int):
        super().__init__()
        self.features = features(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8."""
        flat = self.features(x)
        flat = flat - flat.mean(1, keepdim=True)
        return flat / flat.var(1, correction=0, keepdim=True).sqrt().clamp(min=1e-6)


# --- modules of scores --------------------------------------------------------------------------------------


class Standardised(nn.Module):
    """Features in standard deviations of the normals, and the score made of them.

    Args:
        features: from `(N, C, H, W)` uint8 to `(N, D)` float64.
        mean: `(D,)` of the normals.
        std: `(D,)` of the normals.
        score: from `(N, D)` to `(N,)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, features: nn.Module, mean: np.ndarray, std: np.ndarray, score: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.features, self.score = features, score
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Takes `(N, C, H, W)` uint8."""
        return (self.score((self.features(x) - self.mean) / self.std),)


class Reconstruction(nn.Module):
    """Squared error of reconstruction from principal components, with a heatmap.

    Args:
        small: brings luma to the size of the components.
        mean: `(D,)` of the normals.
        components: `(K, D)`.
        sides: (side, side of the components) down and across.
    """

    outputs = ("heatmap",)
    mean: Tensor
    components: Tensor

    def __init__(
        self, small: nn.Module, mean: np.ndarray, components: np.ndarray, sides: list[tuple[int, int]]
    ):
        super().__init__()
        self.small, self.sides = small, sides
        smooth = (torch.from_numpy(ndimage.gaussian_filter1d(np.eye(low), 1, axis=0)) for _, low in sides)
        self.large = Linear(*(resizing(low, side) @ s for (side, low), s in zip(sides, smooth, strict=True)))
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("components", torch.from_numpy(components))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The heatmap is |residual|, smoothed with σ = 1 at the size of the components, and enlarged."""
        centred = self.small(x) - self.mean
        residual = centred - centred @ self.components.T @ self.components
        maps = residual.abs().view(-1, *(low for _, low in self.sides))
        return (residual**2).mean(1), self.large(maps).float()


class Small(nn.Module):
    """Luma of at most 32×32 px, flat.

    Args:
        sides: (side, side to reduce it to) down and across.
    """

    def __init__(self, sides: list[tuple[int, int]]):
        super().__init__()
        self.small = Linear(*(resizing(side, low, antialias=True) for side, low in sides))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` uint8 to `(N, h·w)` float64."""
        return self.small(luma(x)).flatten(1)


class BlurPlaces(nn.Module):
    """The most unusual place in what blurs remove, with a heatmap of all places.

    Args:
        maps: from `(N, C, H, W)` uint8 to what is fitted, `(N, 3·B, h, w)`.
        places: fitted on them.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    outputs = ("heatmap",)

    def __init__(self, maps: nn.Module, places: Places, height: int, width: int):
        super().__init__()
        self.maps, self.places = maps, places
        self.to_image = resizer((places.grid, places.grid), (height, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes `(N, C, H, W)` uint8."""
        oddest, places = self.places({_SOURCE: self.maps(x)})
        return oddest, self.to_image(places)


# --- detectors ----------------------------------------------------------------------------------------------


class _Untrained(Detector):
    """Compares features of an image, standardised by the normals, with the nearest normals."""

    family = "untrained"
    Settings: ClassVar[type] = TrivialSettings
    features_of: ClassVar[Any]  # makes, from (H, W), the module that measures each image on its own
    standardised: ClassVar[bool] = True
    neighbours: ClassVar[int | None] = None  # averaged over, or 0 for |z| of one number; None: the settings'

    @property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray]:
        same = np.zeros_like(self.mean_), np.ones_like(self.std_)
        return (self.mean_, self.std_) if self.standardised else same

    def _index(self, bank: np.ndarray) -> None:
        self.normals_ = Nearest(bank, self.s.neighbours if self.neighbours is None else self.neighbours)

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        raw = measured(self.features_of(*images.shape[1:3]), images)
        self.mean_, std = raw.mean(0), raw.std(0)
        self.std_ = np.where(std > CONSTANT, std, 1.0)
        if self.neighbours != 0:
            mean, std = self._scaling
            self._index((raw - mean) / std)

    def _module(self) -> nn.Module:
        score = self.normals_ if self.neighbours != 0 else lambda z: z[:, 0].abs()
        return Standardised(self.features_of(*self.shape_[:2]), *self._scaling, score)

    def _tensors(self) -> dict[str, np.ndarray]:
        bank = {} if self.neighbours == 0 else {"bank": self.normals_.bank.numpy()}
        return {"mean": self.mean_, "std": self.std_} | bank

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.mean_, self.std_ = tensors["mean"], tensors["std"]
        if self.neighbours != 0:
            self._index(tensors["bank"])


class Brightness(_Untrained):
    """Mean luma, two-sided."""

    method = "trivial:brightness"
    neighbours = 0
    features_of = partial(Number, features.brightness)


class Std(_Untrained):
    """Standard deviation of luma, two-sided."""

    method = "trivial:std"
    neighbours = 0
    features_of = partial(Number, features.deviation)


class Gradient(_Untrained):
    """Gradient energy, two-sided: mean absolute difference of neighbouring pixels, down plus across."""

    method = "trivial:gradient"
    neighbours = 0
    features_of = partial(Number, features.gradient)


class Statistics(_Untrained):
    """Mean, std and gradient energy; log energies of four difference-of-Gaussian bands; five quantiles."""

    method = "trivial:statistics"
    features_of = partial(Grey, features.Statistics)


class Spectrum(_Untrained):
    """Log mean power in rings of equal width from 0 to half a cycle per pixel; mean removed, Hann window."""

    method = "trivial:spectrum"
    features_of = features.Spectrum


class Hog(_Untrained):
    """HOG of 8 orientations, cells of 4×4 pixels, blocks of 2×2 cells.

    Sides above 32 px are first brought to 32, so that there are at most 1568 numbers; those below 8 px to 8.
    """

    method = "trivial:hog"
    exports = False  # scikit-image's
    features_of = partial(ByImage, lambda y: hog(y, 8, (4, 4), (2, 2)), 8, _LARGEST)


def _patterns(y: np.ndarray) -> np.ndarray:
    grey = np.round(y * 255).astype(np.uint8)
    parts = []
    for points, radius in _LBP:
        codes = local_binary_pattern(grey, points, radius, "uniform").astype(int)
        parts.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
    return np.concatenate(parts)


class Lbp(_Untrained):
    """Histograms, each of sum 1, of uniform patterns at (8 points, radius 1) and (16, 2): 10 + 18 numbers."""

    method = "trivial:lbp"
    exports = False  # scikit-image's
    features_of = partial(ByImage, _patterns, 1, 2**20)


class Pixels(_Untrained):
    """The nearest normal at 16×16 pixels."""

    method = "trivial:pixels"
    standardised = False
    neighbours = 1
    features_of: ClassVar[Any] = partial(Grey, features.Pixels)


class NormalisedPixels(Pixels):
    """The nearest normal at 16×16 pixels, each image with mean 0 and std 1; without contrast it becomes 0."""

    method = "trivial:pixels-normalised"
    features_of = partial(Normalised, Pixels.features_of)


class Pca(Detector):
    """Mean squared error of reconstruction from the components that keep 95 % of the variance.

    Of luma at most 32×32 px. One-sided: more error is more anomalous, also where that is wrong.
    """

    method = "trivial:pca"
    family = "untrained"
    maps = True
    Settings: ClassVar[type] = TrivialSettings

    @property
    def _sides(self) -> list[tuple[int, int]]:
        return [(side, min(side, _LARGEST)) for side in self.shape_[:2]]

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        x = measured(Small(self._sides), images)
        self.mean_, self.components_ = x.mean(0), np.zeros((0, x.shape[1]))
        if x.std(0).max() > CONSTANT:  # identical images have no components
            pca = PCA(0.95, svd_solver="covariance_eigh").fit(x)
            self.components_ = np.ascontiguousarray(pca.components_)  # as they are saved

    def _module(self) -> nn.Module:
        return Reconstruction(Small(self._sides), self.mean_, self.components_, self._sides)

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean_, "components": self.components_}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.mean_, self.components_ = tensors["mean"], tensors["components"]


@dataclass(frozen=True)
class BlurSettings:
    """The settings of `trivial:blur`.

    Args:
        sigmas: widths of the blurs in pixels of an image whose side is 64; they scale with each side.
    """

    sigmas: tuple[float, ...] = (0.7, 1.5, 3.0, 6.0)


class Blur(Detector):
    """Judges the places of what Gaussian blurs remove as `dia+` does; no backbone, no whole image."""

    method = "trivial:blur"
    family = "untrained"
    maps = True
    revision = 3  # places; before, three statistics joined
    Settings: ClassVar[type] = BlurSettings

    def _maps(self) -> nn.Module:
        """Makes the module of what is judged. Images become squares of their longer side, or of 256 px."""
        height, width, _ = self.shape_
        side = min(max(height, width), _SIDE)
        return nn.Sequential(Squares(height, width, side), Residuals(side, self.s.sigmas))

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        make, step = self._maps(), self._at_once()
        with torch.inference_mode():
            one: Tensor = make(as_tensor(images[:1]))
            kept = subsample(np.arange(len(images)), max(_BYTES // one.nbytes, 2))
            maps = one.new_empty(len(kept), *one.shape[1:])
            for i in range(0, len(kept), step):
                maps[i : i + step] = make(as_tensor(images[kept[i : i + step]]))
            folds = folds_of(owners_of(self._units[kept]), self.seed)
            self.places_ = Places.of({_SOURCE: maps}, folds)[0].made

    def _module(self) -> nn.Module:
        return BlurPlaces(self._maps(), self.places_, *self.shape_[:2])

    def _at_once(self) -> int:
        return max(min(32, _ROOM // max(self.shape_[:2]) ** 2), 1)  # more fall out of the caches

    def _tensors(self) -> dict[str, np.ndarray]:
        return module_tensors(self.places_, "places.")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.places_ = Places.restored(tensors, "places.")
