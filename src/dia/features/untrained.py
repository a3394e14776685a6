"""Untrained features of images: torch modules, each written once, used by many methods.

The baselines take them from grey images, `dia+` as its views. Fitting, scoring and an exported graph run the
same modules, in float64, each image on its own. They know images alone.

| module | what | source |
|---|---|---|
| Shape | energies of the gradient by orientation in 8×8 cells, blocks of 2×2 cells normalised | HOG: Dalal and Triggs, CVPR 2005; orientations by steering, so that nothing jumps: Freeman and Adelson, PAMI 13(9), 1991 |
| Statistics | mean, std and gradient energy, four log band energies, five quantiles; of colours also std and quantiles of two opponent channels | Burt and Adelson, 1983 (bands) |
| Spectrum | log power in 14 rings of frequency | – |
| Pixels | 16×16 pixels, in colour where there is one | Cover and Hart, 1967 (nearest neighbours) |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft, ndimage
from torch import Tensor, nn

from ..core.running.threads import adapt

FLOOR = 1e-8  # added to energies before the logarithm: far below one step of 8 bits, squared
SIGMAS = (0.7, 1.0, 2.0, 4.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
RINGS = 14
PIXELS = 16
SIDE, CELLS, ORIENTATIONS = 32, 8, 8
CONSTANT = 1e-9  # a feature that spreads less than this over the normals is left unscaled
_LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 of 2¹⁶, as Pillow has it
_SHARPNESS = 8  # power of the cosine by which a gradient counts for an orientation
_CLIP = 0.2  # of a normalised block, as Dalal and Triggs have it
_LEAST = 1e-6  # gradient that is none: far below one step of 8 bits
_FAINT = 1e-4  # a block of less is not brought to norm 1


# --- images as tensors, and linear maps of them -------------------------------------------------------------


def as_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Converts images to the tensor that every module takes.

    Args:
        images: `(N, H, W, C)` uint8.
        device: where the result lies.

    Returns:
        `(N, C, H, W)` uint8.
    """
    adapt()
    # a copy: one image of a reversed array counts as contiguous, and torch takes no negative strides
    return torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).contiguous()


def passes(images: np.ndarray, step: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Yields images `step` at a time, as `as_tensor` converts them.

    Args:
        images: `(N, H, W, C)` uint8.
        step: images in one pass.
        device: where the tensors lie.
    """
    return (as_tensor(images[i : i + step], device) for i in range(0, len(images), step))


@torch.inference_mode()
def measured(
    module: Callable[[Tensor], Tensor],
    images: np.ndarray,
    step: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Returns what a module gives for images, some at a time, `(N, ...)`.

    Args:
        module: from `(N, C, H, W)` uint8 to `(N, ...)`, on the device.
        images: `(N, H, W, C)` uint8.
        step: images in one pass.
        device: computes.
    """
    return np.concatenate([module(x).cpu().numpy() for x in passes(images, step, device)])


def with_channels(x: Tensor, channels: int) -> Tensor:
    """Converts images to grey or RGB, as `ImageSet.with_channels` does.

    Args:
        x: `(N, 1 or 3, H, W)` float64, whole numbers.
        channels: 1 or 3.

    Returns:
        `(N, channels, H, W)`.
    """
    # first, middle and last channel: the three there are, or three times the one; grey's luma is itself
    x = x.index_select(1, torch.arange(3, device=x.device) * (x.shape[1] - 1) // 2)
    if channels == 3:
        return x
    red, green, blue = _LUMA
    y = x[:, :1] * red + x[:, 1:2] * green + x[:, 2:] * blue
    return ((y + 2**15) / 2**16).floor()


def luma(x: Tensor) -> Tensor:
    """Returns the luma `(N, H, W)` float64 in [0, 1] of `(N, 1 or 3, H, W)` uint8, rounded as Pillow does."""
    return with_channels(x.double(), 1)[:, 0] / 255


def double(x: float) -> Tensor:
    """Returns a constant of 64 bits; a bare number is written to ONNX in 32."""
    return torch.tensor(x, dtype=torch.float64)


class Linear(nn.Module):
    """A linear function of every line of a map, down and across, as products with its matrices.

    Args:
        down: `(H', H)`.
        across: `(W', W)`.
    """

    down: Tensor
    across: Tensor

    def __init__(self, down: Tensor, across: Tensor):
        super().__init__()
        self.register_buffer("down", down, persistent=False)  # made anew by whoever makes the module
        self.register_buffer("across", across.T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., H, W)` to `(..., H', W')`."""
        return self.down @ x @ self.across


def resizing(side: int, out: int, *, antialias: bool = False) -> Tensor:
    """Returns the matrix of torch's bilinear resizing of a line, `(out, side)` float64.

    Args:
        side: pixels of the line.
        out: pixels of the result.
        antialias: as in torch.
    """
    lines = torch.eye(side, dtype=torch.float64)[None, None]
    return F.interpolate(lines, (out, side), mode="bilinear", antialias=antialias)[0, 0]


def pooling(side: int, out: int) -> Tensor:
    """Returns the matrix of torch's adaptive mean pooling of a line, `(out, side)` float64.

    Args:
        side: pixels of the line.
        out: pixels of the result.
    """
    return F.adaptive_avg_pool2d(torch.eye(side, dtype=torch.float64)[None], (out, side))[0]


@lru_cache(maxsize=64)
def smoothing(side: int, sigma: float, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Returns scipy's Gaussian filter of a line as a matrix, `(side, side)`.

    Args:
        side: pixels of the line.
        sigma: width of the Gaussian in pixels.
        dtype: type of the matrix.
    """
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0).astype(dtype)


def resizer(sides: tuple[int, int], to: tuple[int, int], *, antialias: bool = False) -> nn.Module:
    """Returns bilinear resizing of maps, in 32 bits; nothing is done where they keep their size.

    Args:
        sides: height and width in pixels.
        to: those of the result.
        antialias: as in torch.
    """
    if sides == to:
        return nn.Identity()
    return Linear(*(resizing(n, m, antialias=antialias).float() for n, m in zip(sides, to, strict=True)))


def blurring(side: int, sigma: float) -> Linear:
    """Returns scipy's Gaussian filter of squares.

    Args:
        side: of the squares, in pixels.
        sigma: width of the Gaussian in pixels.
    """
    line = torch.from_numpy(smoothing(side, sigma))
    return Linear(line, line)


def cosines(side: int) -> Tensor:
    """Returns the orthonormal cosine transform of a line (DCT-II), `(side, side)` float64.

    Args:
        side: pixels of the line.
    """
    return torch.from_numpy(fft.dct(np.eye(side), axis=0, norm="ortho"))


def passed(sides: tuple[int, int], sigma: float) -> Tensor:
    """Returns what scipy's Gaussian filter, whose mirrored edges cosines share, leaves of each: `(H, W)`.

    Args:
        sides: H and W in pixels.
        sigma: width of the Gaussian in pixels.
    """
    lines = [
        (cosines(n) @ torch.from_numpy(smoothing(n, sigma, np.float64)) @ cosines(n).T).diagonal()
        for n in sides
    ]
    return torch.outer(*lines)


def smoothed(x: Tensor) -> Tensor:
    """Averages a map `(N, C, h, w)` over 3×3 neighbours, fewer at its edges."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


# --- features -----------------------------------------------------------------------------------------------


def brightness(y: Tensor) -> Tensor:
    """Returns the mean of luma `(N, H, W)`: `(N,)`."""
    return y.mean((1, 2))


def deviation(y: Tensor) -> Tensor:
    """Returns the standard deviation of luma `(N, H, W)`: `(N,)`."""
    return y.var((1, 2), correction=0).sqrt()


def gradient(y: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbours in luma `(N, H, W)`, down plus across: `(N,)`."""
    return y.diff(dim=1).abs().mean((1, 2)) + y.diff(dim=2).abs().mean((1, 2))


def copies(x: Tensor, which: tuple[int, ...]) -> Tensor:
    """Returns turned and mirrored copies, `(S, ..., H, W)`.

    Args:
        x: `(..., H, W)`.
        which: for each of S copies i: it is turned by i % 4 quarters, and mirrored before where i ≥ 4.
    """
    return torch.stack([_copy(x, i) for i in which])


def _copy(x: Tensor, i: int) -> Tensor:
    x, turns = x.flip(-1) if i >= 4 else x, i % 4
    if turns in (0, 2):
        return x.flip(-2, -1) if turns else x
    return x.transpose(-2, -1).flip(-2 if turns == 1 else -1)


def possible(height: int, width: int) -> tuple[int, ...]:
    """Returns which copies keep the shape: all eight of a square, else four.

    Args:
        height: in pixels.
        width: in pixels.
    """
    return tuple(range(8)) if height == width else (0, 2, 4, 6)


class Shape(nn.Module):
    """Shape features of images: `(N, 1568)` float64, in blocks of norm 1, or 0 where nothing is."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.small = Linear(*(resizing(side, SIDE, antialias=True) for side in (height, width)))
        self.cells = Linear(pooling(SIDE, CELLS), pooling(SIDE, CELLS))
        angle = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
        for name, values in (("cos", np.cos(angle)), ("sin", np.sin(angle))):
            self.register_buffer(name, torch.from_numpy(values)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8; energies are summed over the channels."""
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
    """Statistics of images: `(N, 12)` float64 for grey ones, `(N, 24)` for colours."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.transform = Linear(cosines(height), cosines(width))
        # energies of the bands, by Parseval: of each cosine what one blur leaves and the next does not
        left = [torch.ones(height, width), *(passed((height, width), sigma) for sigma in SIGMAS)]
        energies = [((fine - coarse) ** 2).flatten() / (height * width) for fine, coarse in pairwise(left)]
        self.register_buffer("energies", torch.stack(energies, 1), persistent=False)
        # numpy's quantiles: between the two values about the place (n − 1)·q
        place = torch.from_numpy((height * width - 1) * np.array(QUANTILES))
        ranks = torch.stack([place.floor(), place.ceil()]).int() + 1
        self.register_buffer("ranks", ranks[:, :, None], persistent=False)  # from 1
        self.register_buffer("part", place.frac())

    def _quantiles(self, levels: Tensor, count: int) -> Tensor:
        """Returns the quantiles `(N, 5)` of whole numbers `(N, H, W)` float64 in 0 to count − 1, counted."""
        flat = levels.flatten(1).long()
        each = torch.ones_like(flat, dtype=torch.int32)
        counts = each.new_zeros(flat.shape[0], count).scatter_add(1, flat, each).cumsum(1)
        low, high = ((counts[:, None] < rank).sum(2).double() for rank in self.get_buffer("ranks"))
        return low + (high - low) * self.get_buffer("part")

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8: luma first, then red − green and (red + green)/2 − blue."""
        y = luma(x)
        bands = _floored_log((self.transform(y) ** 2).flatten(1) @ self.get_buffer("energies"))
        parts = [torch.stack([brightness(y), deviation(y), gradient(y)], 1), bands]
        parts.append(self._quantiles((y * 255).round(), 256) / 255)
        if x.shape[1] == 3:
            red, green, blue = x.double().unbind(1)
            for opponent, steps in ((red - green, 1), ((red + green) / 2 - blue, 2)):  # steps of a level
                quantiles = self._quantiles((opponent + 255) * steps, 510 * steps + 1) / steps - 255
                parts += [deviation(opponent)[:, None] / 255, quantiles / 255]
        return torch.cat(parts, 1)


class Pixels(nn.Module):
    """Reduced pixels of images: `(N, 256·C)` float64 in [0, 1]."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.small = Linear(*(resizing(side, PIXELS, antialias=True) for side in (height, width)))

    def forward(self, x: Tensor) -> Tensor:
        """Takes `(N, C, H, W)` uint8; smaller images are enlarged."""
        return self.small(x.double() / 255).flatten(1)


class Spectrum(nn.Module):
    """Log mean power in rings of equal width from 0 to half a cycle per pixel; mean removed, Hann window.

    The result is `(N, 14)` float64. The Fourier transform is written as products with its
    cosines and sines, which every exporter knows.
    """

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
        """Takes `(N, C, H, W)` uint8."""
        get = self.get_buffer
        y = luma(x)
        y = (y - y.mean((1, 2), keepdim=True)) * get("window")
        cosines, sines = get("down_cos") @ y, get("down_sin") @ y
        real = cosines @ get("across_cos") - sines @ get("across_sin")
        imaginary = cosines @ get("across_sin") + sines @ get("across_cos")
        power = (real**2 + imaginary**2).flatten(1) @ get("rings")
        return _floored_log(power)


def rings(height: int, width: int) -> np.ndarray:
    """Returns the ring of each frequency of a Fourier transform, `(H, W)`; corners lie beyond the last.

    Args:
        height: H.
        width: W.
    """
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return np.floor(radius * 2 * RINGS + 1e-9).astype(int)


def _floored_log(energy: Tensor) -> Tensor:
    """Returns log(energy + FLOOR), written so that exporters do not drop the small addend."""
    return (energy / double(FLOOR) + 1).log() + double(np.log(FLOOR))
