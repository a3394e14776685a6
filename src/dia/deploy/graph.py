"""Scoring as one torch module, from images of any size to score, p-value and heatmap: what is exported.

It wraps `Detector.module` with what `dia score` does before it and after it. Channels and size are brought
about to the bit as Pillow does it in `dia score`, because a pixel that rounds otherwise is another image.
Constants are buffers and shapes beyond the model's own are dynamic, so that torch can write the whole as
ONNX or TorchScript. Knows no method.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import DataError
from ..detectors import Detector
from ..detectors.calibration import Calibration
from ..detectors.features import double, with_channels
from ..detectors.registry import METHODS

_UNIT = 2**22  # Pillow's weights are whole numbers of this part
_LOBES = 3  # of Lanczos


def graph_of(detector: Detector) -> Whole:
    """The whole of a fitted detector's scoring, in eval mode, on the CPU.

    Raises:
        DataError: its method, or what it was fitted with, cannot be exported.
    """
    if not _has_graph(type(detector)):
        raise DataError(f"{detector.method} cannot be exported; there are: {', '.join(exportable())}")
    if reason := detector.cannot_export():
        raise DataError(reason)
    whole = Whole(detector.shape_, detector.calibration_, detector.module())
    return whole.to("cpu").eval().requires_grad_(False)


def exportable() -> list[str]:
    """The methods that can be exported."""
    return [name for name, cls in METHODS.items() if _has_graph(cls)]


def _has_graph(cls: type[Detector]) -> bool:
    return cls.exports and cls._module is not Detector._module


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


def _sinc(x: Tensor) -> Tensor:
    angle = torch.where(x == 0, 1.0, x) * double(math.pi)
    return torch.where(x == 0, 1.0, angle.sin() / angle)
