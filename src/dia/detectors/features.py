"""What an image is compared by without any training: shape, statistics, pixels; and its symmetric copies.

Torch functions of float64, the same when scoring and in an exported graph. They know images alone, each on
its own.

| view | what | source |
|---|---|---|
| shape | energies of the gradient by orientation in 8×8 cells, blocks of 2×2 cells normalised | HOG: Dalal and Triggs, CVPR 2005; orientations by steering, so that nothing jumps: Freeman and Adelson, PAMI 13(9), 1991 |
| statistics | those of `trivial:statistics`; of colours also std and quantiles of two opponent channels | Burt and Adelson, 1983 (bands) |
| pixels | 16×16 pixels, in colour | Cover and Hart, 1967 (nearest neighbours) |
"""  # noqa: E501

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .baselines import FLOOR, QUANTILES, SIGMAS
from .graph import Linear, pooling, resizing, with_channels
from .residual import smoothing

SIDE, CELLS, ORIENTATIONS = 32, 8, 8
_SHARPNESS = 8  # power of the cosine by which a gradient counts for an orientation
_CLIP = 0.2  # of a normalised block, as Dalal and Triggs have it
_LEAST = 1e-6  # gradient that is none: far below one step of 8 bits
_FAINT = 1e-4  # a block of less is not brought to norm 1
PIXELS = 16


def copies(x: Tensor, which: tuple[int, ...]) -> Tensor:
    """`(..., H, W)` turned i % 4 quarters, mirrored before where i ≥ 4, for each i: `(S, ..., H, W)`."""
    return torch.stack([_copy(x, i) for i in which])


def _copy(x: Tensor, i: int) -> Tensor:
    x = x.flip(-1) if i >= 4 else x
    turns = i % 4
    if turns == 2:
        return x.flip(-2, -1)
    if turns:
        return x.transpose(-2, -1).flip(-2 if turns == 1 else -1)
    return x


def possible(height: int, width: int) -> tuple[int, ...]:
    """The copies that keep the shape: all eight of a square, else four."""
    return tuple(range(8)) if height == width else (0, 2, 4, 6)


class Shape(nn.Module):
    """Of images `(N, C, H, W)` uint8: `(N, 1568)` float64, in blocks of norm 1, or 0 where nothing is."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.small = Linear(*(resizing(side, SIDE, antialias=True) for side in (height, width)))
        self.cells = Linear(pooling(SIDE, CELLS), pooling(SIDE, CELLS))
        angle = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
        for name, values in (("cos", np.cos(angle)), ("sin", np.sin(angle))):
            self.register_buffer(name, torch.from_numpy(values)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Energies are summed over the channels."""
        y = F.pad(self.small(x.double() / 255), (1, 1, 1, 1), mode="replicate")[:, :, None]
        across = y[..., 1:-1, 2:] - y[..., 1:-1, :-2]  # (N, C, 1, SIDE, SIDE)
        down = y[..., 2:, 1:-1] - y[..., :-2, 1:-1]
        length = (across**2 + down**2).sqrt().clamp(min=_LEAST)
        cosine = (across * self.get_buffer("cos") + down * self.get_buffer("sin")) / length
        energy = (length * (cosine**2) ** (_SHARPNESS // 2)).sum(1)  # (N, ORIENTATIONS, SIDE, SIDE)
        c = self.cells(energy)
        last = CELLS - 1
        corners = [c[..., i : i + last, j : j + last] for i in (0, 1) for j in (0, 1)]
        blocks = torch.stack(corners, 1).flatten(1, 2)  # (N, 4·ORIENTATIONS, 7, 7)
        return _normalised(_normalised(blocks).clamp(max=_CLIP)).flatten(1)


def _normalised(blocks: Tensor) -> Tensor:
    return blocks / (blocks**2).sum(1, keepdim=True).sqrt().clamp(min=_FAINT)


class Statistics(nn.Module):
    """Of images `(N, C, H, W)` uint8: `(N, 12)` float64 of grey ones, `(N, 24)` of colours."""

    def __init__(self, height: int, width: int):
        super().__init__()
        sides = [[smoothing(side, sigma, np.float64) for side in (height, width)] for sigma in SIGMAS]
        self.bands = nn.ModuleList(Linear(*(torch.from_numpy(m) for m in pair)) for pair in sides)
        # numpy's quantiles: between the two values about the place (n − 1)·q
        place = (height * width - 1) * np.array(QUANTILES)
        self.low = np.floor(place).astype(int).tolist()
        self.high = np.ceil(place).astype(int).tolist()
        self.register_buffer("part", torch.from_numpy(place - np.floor(place)))

    def _quantiles(self, x: Tensor) -> Tensor:
        ordered = x.flatten(1).sort(1).values
        low, high = ordered[:, self.low], ordered[:, self.high]
        return low + (high - low) * self.get_buffer("part")

    def forward(self, x: Tensor) -> Tensor:
        """Luma first, then red − green and (red + green)/2 − blue."""
        y = with_channels(x.double(), 1)[:, 0] / 255
        gradient = y.diff(dim=1).abs().mean((1, 2)) + y.diff(dim=2).abs().mean((1, 2))
        columns = [y.mean((1, 2)), y.var((1, 2), correction=0).sqrt(), gradient]
        finer = y
        for band in self.bands:
            coarser = band(y)
            energy = ((finer - coarser) ** 2).mean((1, 2))
            # log(energy + FLOOR); as that sum, exporters take the addend for nothing and leave it out
            columns.append((energy / FLOOR + 1).log() + np.log(FLOOR))
            finer = coarser
        parts = [torch.stack(columns, 1), self._quantiles(y)]
        if x.shape[1] == 3:
            red, green, blue = (x.double() / 255).unbind(1)
            for opponent in (red - green, (red + green) / 2 - blue):
                parts += [opponent.var((1, 2), correction=0).sqrt()[:, None], self._quantiles(opponent)]
        return torch.cat(parts, 1)


class Pixels(nn.Module):
    """Of images `(N, C, H, W)` uint8: `(N, 256·C)` float64 in [0, 1]."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.small = Linear(*(resizing(side, PIXELS, antialias=True) for side in (height, width)))

    def forward(self, x: Tensor) -> Tensor:
        """Smaller images are enlarged."""
        return self.small(x.double() / 255).flatten(1)
