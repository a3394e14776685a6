"""Scoring as one torch module, from images of any size to score, p-value and heatmap: the parts all share.

Made for export: constants are buffers, shapes beyond the model's own are dynamic, and nothing is a numpy
call, so that torch can write the whole as ONNX or TorchScript. Each part repeats what Pillow, scipy or
numpy do in `dia score`: to the bit where they round to whole grey values, because a pixel that rounds
otherwise is another image, and to the digits of its type elsewhere. Knows no method; `graphs.py` does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calibration import Calibration

_UNIT = 2**22  # Pillow's weights are whole numbers of this part
_LOBES = 3  # of Lanczos
_LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 of 2¹⁶, as Pillow has it
_TRUNCATE = 4.0  # scipy's Gaussians end after so many σ


class Whole(nn.Module):
    """Images as they come to a tuple of what `outputs` names: score, p-value, and what else the body gives.

    Args:
        shape: (H, W, C) of the images that `body` takes.
        calibration: of the detector.
        body: from `(N, C, H, W)` uint8 to a tuple of the score `(N,)` float64 and what its `outputs` name:
            `heatmap` `(N, H, W)` float32, `dissolved` `(N, T, H, W, C)` uint8.
    """

    normals: Tensor

    def __init__(self, shape: tuple[int, int, int], calibration: Calibration, body: nn.Module):
        super().__init__()
        self.shape, self.body = shape, body
        self.outputs = ("score", "p_value", *getattr(body, "outputs", ()))
        self.register_buffer("normals", torch.from_numpy(calibration.scores.astype(np.float64)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`(N, H, W, C)` uint8, of any H and W, C = 1 or 3."""
        height, width, channels = self.shape
        x = with_channels(images.permute(0, 3, 1, 2).double(), channels)
        score, *others = self.body(resized(x, height, width).to(torch.uint8))
        above = (self.normals >= score[:, None]).sum(1)
        return score, (1 + above).double() / (1 + len(self.normals)), *others


def with_channels(x: Tensor, channels: int) -> Tensor:
    """`(N, 1 or 3, H, W)` whole numbers of float64 as grey or RGB, as `ImageSet.with_channels`."""
    # first, middle and last channel: the three there are, or three times the one; grey's luma is itself
    x = x.index_select(1, torch.arange(3, device=x.device) * (x.shape[1] - 1) // 2)
    if channels == 3:
        return x
    red, green, blue = _LUMA
    y = x[:, :1] * red + x[:, 1:2] * green + x[:, 2:] * blue
    return ((y + 2**15) / 2**16).floor()


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """`(N, C, H, W)` whole numbers 0–255 of float64 to another size, as Pillow's Lanczos, to the bit.

    Sums of whole numbers are exact in 64 bits, whatever their order. At its own size an image is unchanged.
    """
    x = _rounded(x @ lanczos(x.shape[3], width).T)
    return _rounded(lanczos(x.shape[2], height) @ x)


def _rounded(x: Tensor) -> Tensor:
    return ((x + _UNIT // 2) / _UNIT).floor().clamp(0, 255)


def lanczos(side: int, out: int) -> Tensor:
    """`(out, side)`: Pillow's weights of a line resized from `side` to `out`, whole numbers in float64."""
    place = torch.arange(side, dtype=torch.float64)
    n = place[-1:] + 1  # the side; a number of its own would be cut to 32 bits, or to a constant, by a trace
    scale = n / out
    wide = scale.clamp(min=1)
    centre = ((torch.arange(out, dtype=torch.float64) + 0.5) * scale)[:, None]
    first = (centre - _LOBES * wide + 0.5).floor()
    end = (centre + _LOBES * wide + 0.5).floor()
    at = (place - centre + 0.5) * (1 / wide)
    inside = (place >= first) & (place < end) & (at >= -_LOBES) & (at < _LOBES)
    weight = torch.where(inside, _sinc(at) * _sinc(at / _LOBES), 0.0)
    weight = weight / weight.sum(1, keepdim=True)
    return weight.sign() * (weight.abs() * _UNIT + 0.5).floor()


def double(x: float) -> Tensor:
    """A constant of 64 bits; a bare number is written to ONNX in 32."""
    return torch.tensor(x, dtype=torch.float64)


def _sinc(x: Tensor) -> Tensor:
    angle = torch.where(x == 0, 1.0, x) * double(math.pi)
    return torch.where(x == 0, 1.0, angle.sin() / angle)


class Evidence(nn.Module):
    """`Calibration.evidence` of several scores at once, each by its own normals.

    Args:
        normals: `(S, P)`: of each of P scores those of S normals, ascending.
    """

    normals: Tensor
    width: Tensor
    edge: Tensor
    excess: Tensor

    def __init__(self, normals: np.ndarray):
        super().__init__()
        self.register_buffer("normals", torch.from_numpy(normals.astype(np.float64)))
        smoothing = [Calibration(column.astype(np.float64)).smoothing() for column in normals.T]
        for name, values in zip(("width", "edge", "excess"), zip(*smoothing, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, scores: Tensor) -> Tensor:
        """`(N, P)` to `(N, P)` float64."""
        scores = scores.double()
        above = ((self.normals - scores.minimum(self.edge)[:, None]) / self.width).sigmoid().mean(1)
        return (scores - self.edge).clamp(min=0) / self.excess - above.log()


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
        self.register_buffer("down", down)
        self.register_buffer("across", across.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """`(..., H, W)` to `(..., H', W')`."""
        return self.down @ x @ self.across


def resizing(side: int, out: int, *, antialias: bool = False) -> Tensor:
    """`(out, side)`: the matrix of torch's bilinear resizing of a line, float64."""
    lines = torch.eye(side, dtype=torch.float64)[None, None]
    return F.interpolate(lines, (out, side), mode="bilinear", antialias=antialias)[0, 0]


def pooling(side: int, out: int) -> Tensor:
    """`(out, side)`: the matrix of torch's adaptive mean pooling of a line, float64."""
    return F.adaptive_avg_pool2d(torch.eye(side, dtype=torch.float64)[None], (out, side))[0]


class GaussianBlur(nn.Module):
    """scipy's Gaussian filter of uint8 images at several σ, to the bit.

    scipy adds up the two sides of its window pair by pair, from the ends to the middle, and cuts off what
    is below a whole number; on even ground the sum is whole but for its last bit, so the order decides.

    Args:
        sigmas: in pixels.
    """

    weights: Tensor

    def __init__(self, sigmas: tuple[float, ...]):
        super().__init__()
        from scipy.ndimage import gaussian_filter1d

        reach = [int(_TRUNCATE * sigma + 0.5) for sigma in sigmas]
        self.reach = max(reach)
        weights = np.zeros((self.reach + 1, len(sigmas)))  # zeros beyond a window change no sum
        for i, (sigma, most) in enumerate(zip(sigmas, reach, strict=True)):
            unit = np.zeros(2 * most + 1)
            unit[most] = 1
            weights[: most + 1, i] = gaussian_filter1d(unit, sigma, mode="constant")[most:]
        self.register_buffer("weights", torch.from_numpy(weights)[..., None, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8 to `(S, N, C, H, W)` whole numbers in float64."""
        return self._along(self._along(x.double()[None], 3), 4)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        n = int(x.shape[dim])
        mirrored = torch.from_numpy(np.pad(np.arange(n), self.reach, mode="symmetric")).to(x.device)
        x = x.index_select(dim, mirrored)
        total = x.narrow(dim, self.reach, n) * self.weights[0]
        for k in range(self.reach, 0, -1):
            total = total + (
                x.narrow(dim, self.reach - k, n) + x.narrow(dim, self.reach + k, n)
            ) * self.weights[k]  # fmt: skip
        return total.floor()


def nearest_mean(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Mean Euclidean distance of `(..., N, D)` to the k nearest of `(..., M, D)`: `(..., N)` float64."""
    x, bank = x.double(), bank.double()
    squared = (x**2).sum(-1, keepdim=True) + (bank**2).sum(-1)[..., None, :] - 2 * x @ bank.transpose(-1, -2)
    nearest = squared.topk(min(k, bank.shape[-2]), largest=False).values
    return nearest.clamp(min=0).sqrt().mean(-1)
