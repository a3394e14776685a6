"""Views of whole images: each a vector, compared with the nearest normal, or one number.

Knows features of images.

| view | what it is |
|---|---|
| cells | the middle map of the backbone, averaged in 2×2 cells, each of norm 1 |
| standardised | the same of the smoothed map, standardised by channel, in 3×3 cells |
| coarse | the coarse map in 2×2 cells, each of norm 1 |
| pooled | the last features, of norm 1 |
| shape, statistics | untrained (`features/untrained.py`) |
| detail | minus the log distance of features to those of the blurred image: little detail is anomalous |
| gain | the log distance to dissolved copies, more than `detail`'s: what dissolving removes and a blur not |

`cells` and `standardised` are measured in a metric that evens out the directions in which normals spread: the
inverse root of the cells' covariance, shrunk towards a multiple of the identity (Hastie, Tibshirani and
Friedman, "Elements of Statistical Learning", 2nd ed., sec. 4.3.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..features.backbone import Backbone, Maps
from ..features.untrained import CONSTANT, Linear, double, pooling, smoothed

# part of the maps, cells on a side, whether the map is smoothed and scaled, whether cells are evened
CELLS: dict[str, tuple[str, int, bool, bool]] = {
    "cells": ("middle", 2, False, True),
    "standardised": ("middle", 3, True, True),
    "coarse": ("coarse", 2, False, False),
}
SHRINKAGE = 0.1  # of the covariance, where normals are many
BLUR = 14 / 64  # of the side of the image: the width of the blur of `detail`
_LEAST = 1e-6  # for spreads and distances that vanish


class Vector(nn.Module):
    """A view with a vector: measured raw, settled by normals, then finished for the comparison.

    Attributes:
        learns: whether settling learns anything.
    """

    learns = False

    def raw(self, x: Tensor, maps: Maps) -> Tensor:
        """Measures images.

        Args:
            x: `(N, C, H, W)` whole numbers in 0–255.
            maps: of the backbone.
        """
        raise NotImplementedError

    def settle(self, raw: np.ndarray, count: int) -> None:
        """Learns from `raw` measurements of normals; most views learn nothing.

        Args:
            raw: of some normals.
            count: of all: what is learned of some is regularised as if it were of all.
        """

    def finish(self, raw: Tensor) -> Tensor:
        """Returns the vectors `(N, D)` of `raw` measurements."""
        return raw

    def forward(self, x: Tensor, maps: Maps) -> Tensor:
        """Returns the vectors `(N, D)` of images.

        Args:
            x: as in `raw`.
            maps: of the backbone.
        """
        return self.finish(self.raw(x, maps))


class Pooled(Vector):
    """The last features of the backbone, of norm 1."""

    def raw(self, x: Tensor, maps: Maps) -> Tensor:
        """Returns `(N, D)`; x is not used.

        Args:
            x: `(N, C, H, W)` whole numbers in 0–255.
            maps: of the backbone.
        """
        return unit(maps.pooled)


class Untrained(Vector):
    """Untrained features of pixels.

    Args:
        module: from `(N, C, H, W)` whole numbers in 0–255 to `(N, D)` float64.
        scaled: D, where the features are standardised by the normals; None where they are not.
    """

    def __init__(self, module: nn.Module, scaled: int | None = None):
        super().__init__()
        self.module, self.learns = module, scaled is not None
        self.mean: Tensor | None
        for name in ("mean", "std"):
            self.register_buffer(name, None if scaled is None else torch.ones(scaled, dtype=torch.float64))

    def raw(self, x: Tensor, maps: Maps) -> Tensor:
        """Returns `(N, D)` float64; maps are not used.

        Args:
            x: `(N, C, H, W)` whole numbers in 0–255.
            maps: of the backbone.
        """
        made: Tensor = self.module(x)
        return made

    def settle(self, raw: np.ndarray, count: int) -> None:
        """Learns mean and deviation of each feature.

        Args:
            raw: measurements of normals.
            count: how many normals there are in all.
        """
        if self.mean is not None:
            std = raw.std(0)
            self.mean.copy_(torch.from_numpy(raw.mean(0)))
            self.get_buffer("std").copy_(torch.from_numpy(np.where(std > CONSTANT, std, 1.0)))

    def finish(self, raw: Tensor) -> Tensor:
        """Standardises, where the view does."""
        return raw if self.mean is None else (raw - self.mean) / self.get_buffer("std")


class Cells(Vector):
    """Mean features of g×g cells of a map, each of norm 1, side by side.

    Args:
        part: of the `Maps`.
        cells: g.
        like: the map `(1, C, h, w)` of some image, for its size.
        channels: mean and deviation `(C,)` of the smoothed map's channels over normals; None: the map is
            taken as it is.
        even: whether cells are compared in a metric of the normals, `evened`.
    """

    def __init__(
        self,
        part: str,
        cells: int,
        like: Tensor,
        channels: tuple[Tensor, Tensor] | None = None,
        even: bool = False,
    ):
        super().__init__()
        self.part, self.count, self.learns, size = part, cells**2, even, int(like.shape[1])
        self.pool = Linear(*(pooling(int(side), cells).float() for side in like.shape[2:]))
        for name, values in zip(("mean", "std"), channels or (None, None), strict=True):
            self.register_buffer(name, None if values is None else values[:, None, None].clone())
        self.register_buffer("metric", torch.eye(size) if even else None)
        self.mean: Tensor | None
        self.metric: Tensor | None

    def raw(self, x: Tensor, maps: Maps) -> Tensor:
        """Returns the cells `(N, g², C)`; x is not used.

        Args:
            x: `(N, C, H, W)` whole numbers in 0–255.
            maps: of the backbone.
        """
        made: Tensor = getattr(maps, self.part)
        if self.mean is not None:
            made = (smoothed(made) - self.mean) / self.get_buffer("std")
        return unit(self.pool(made).flatten(2).transpose(1, 2))

    def settle(self, raw: np.ndarray, count: int) -> None:
        """Learns the metric.

        Args:
            raw: measurements of normals.
            count: how many normals there are in all.
        """
        if self.metric is not None:
            self.metric.copy_(torch.from_numpy(evened(raw, count)))

    def finish(self, raw: Tensor) -> Tensor:
        """Returns `(N, g²·C)`."""
        made = raw if self.metric is None else raw @ self.metric
        return made.flatten(1) / self.count**0.5


def evened(cells: np.ndarray, count: int) -> np.ndarray:
    """Returns the metric in which cells spread alike in all directions, but for shrinkage, `(C, C)` float32.

    Args:
        cells: `(N, P, C)` of normals: their spread about the mean of each cell counts.
        count: normals for whose number the covariance is shrunk, N or more.
    """
    spread = (cells - cells.mean(0)).reshape(-1, cells.shape[-1]).astype(np.float64)
    n, channels = spread.shape
    shrinkage = max(SHRINKAGE, channels / (channels + count * cells.shape[1]))
    covariance = spread.T @ spread / n
    size = max(np.trace(covariance) / channels, _LEAST**2)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * size * np.eye(channels))
    return (vectors / np.sqrt(np.maximum(values, _LEAST * size)) * np.sqrt(size)).astype(np.float32)


def unit(x: Tensor) -> Tensor:
    """Divides the last axis by its norm."""
    return x / (x**2).sum(-1, keepdim=True).sqrt().clamp(min=_LEAST)


class Change(nn.Module):
    """How far a changed image is from the image itself, in the fine features of the backbone.

    Args:
        backbone: of the features.
        mean: `(C,)` of the fine map's channels over normals.
        std: `(C,)` of them.
    """

    def __init__(self, backbone: Backbone, mean: Tensor, std: Tensor):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, fine: Tensor, changed: Tensor) -> Tensor:
        """Returns the logarithm of the mean over places of 1 − cosine, `(N,)` float64.

        Args:
            fine: the fine map `(N, C, h, w)` of images.
            changed: the changed images, `(N, 1 or 3, S, S)` in [0, 1].
        """
        before, after = self._scaled(fine), self._scaled(self.backbone.fine(changed))
        away = 1 - (before * after).sum(1)
        return (away.mean((1, 2)).double() + double(_LEAST)).log()

    def _scaled(self, x: Tensor) -> Tensor:
        x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        return x / (x**2).sum(1, keepdim=True).sqrt().clamp(min=_LEAST)
