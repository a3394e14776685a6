"""The exported graph: one torch module from images of any size to score, p-value and heatmap.

It wraps `Detector.module` in the steps that `dia score` does before and after it. Channels and size are
changed exactly as Pillow changes them in `dia score`, because a pixel that rounds differently makes another
image. Constants are buffers, and shapes other than the model's own are dynamic, so that torch can write the
module as ONNX. Knows no method.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import DataError
from ..detectors import Detector
from ..detectors.calibration import Calibration
from ..detectors.registry import METHODS
from ..features.untrained import double, with_channels

_UNIT = 2**22  # Pillow's weights are whole multiples of 1 / _UNIT
_LOBES = 3  # of the Lanczos filter


def scoring_graph(detector: Detector) -> ScoringGraph:
    """Returns a fitted detector's graph, in eval mode, on the CPU.

    Raises:
        DataError: the method cannot be exported, or not with the settings that the detector was fitted with.
    """
    if not _has_graph(type(detector)):
        raise DataError(f"{detector.method} cannot be exported; there are: {', '.join(exportable_methods())}")
    if reason := detector.cannot_export():
        raise DataError(reason)
    graph = ScoringGraph(detector.shape_, detector.calibration_, detector.module())
    return graph.to("cpu").eval().requires_grad_(False)


def exportable_methods() -> list[str]:
    """Returns the names of the methods that can be exported."""
    return [name for name, cls in METHODS.items() if _has_graph(cls)]


def _has_graph(cls: type[Detector]) -> bool:
    return cls.exports and cls._module is not Detector._module


class ScoringGraph(nn.Module):
    """Maps images of any size to a tuple of score, p-value and the other outputs of the body.

    Args:
        shape: (H, W, C) of the images that `body` takes.
        calibration: the detector's calibration.
        body: a module from `(N, C, H, W)` uint8 to a tuple: the score `(N,)` float64, then the outputs that
            its attribute `outputs` names: `heatmap` `(N, H, W)` float32, `dissolved` `(N, T, H, W, C)` uint8.

    Attributes:
        outputs: the names of the outputs, in order.
    """

    normals: Tensor

    def __init__(self, shape: tuple[int, int, int], calibration: Calibration, body: nn.Module):
        super().__init__()
        self.shape, self.body = shape, body
        self.outputs = ("score", "p_value", *getattr(body, "outputs", ()))
        self.register_buffer("normals", torch.from_numpy(calibration.scores.astype(np.float64)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores `(N, H, W, C)` uint8 images of any H and W, with C = 1 or 3."""
        height, width, channels = self.shape
        x = with_channels(images.permute(0, 3, 1, 2).double(), channels)
        score, *others = self.body(resized(x, height, width).to(torch.uint8))
        above = (self.normals >= score[:, None]).sum(1)
        return score, (1 + above).double() / (1 + len(self.normals)), *others


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Resizes images exactly as Pillow's Lanczos filter does; at its own size an image is unchanged.

    Sums of whole numbers are exact in 64 bits, whatever their order.

    Args:
        x: `(N, C, H, W)` float64, whole numbers from 0 to 255.
        height: the new height in pixels.
        width: the new width in pixels.

    Returns:
        `(N, C, height, width)` float64, whole numbers from 0 to 255.
    """
    x = _rounded(x @ _lanczos(x.shape[3], width).T)
    return _rounded(_lanczos(x.shape[2], height) @ x)


def _rounded(x: Tensor) -> Tensor:
    return ((x + _UNIT // 2) / _UNIT).floor().clamp(0, 255)


def _lanczos(side: int, out: int) -> Tensor:
    """Pillow's weights, `(out, side)`, of a line resized from `side` to `out`: whole numbers in float64."""
    place = torch.arange(side, dtype=torch.float64)
    n = place[-1:] + 1  # = side; a Python number would become a constant, or lose bits, in the exported file
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
