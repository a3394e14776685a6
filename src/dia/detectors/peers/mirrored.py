"""What four methods build around a ResNet, VGG or transformer, built around a backbone of other widths.

RD4AD's bottleneck and student, KDAD's cloner, Transformaly's students, EfficientAD's teacher. Each follows
the method's own plan, with the widths and strides of the backbone's maps. Knows maps and widths; knows no
weights. Ours, not of the papers: rows made with them are named so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features.shared import sharing


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3×3 convolution with batch-norm and ReLU; of stride ½ where `stride` is 0, it doubles the side."""
    conv: nn.Module = (
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        if stride
        else nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """RD4AD's: three maps brought to the last one's side, joined, and halved once more.

    Args:
        widths: channels of the maps, the first of the greatest side, each half the side of the one before.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        first, second, third = widths
        self.first = nn.Sequential(_block(first, second, 2), _block(second, third, 2))
        self.second = _block(second, third, 2)
        self.joined = nn.Sequential(_block(3 * third, 2 * third, 2), _block(2 * third, 2 * third, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns `(N, 2·C₃, h/2, w/2)` of three maps."""
        first, second, third = maps
        made: Tensor = self.joined(torch.cat([self.first(first), self.second(second), third], 1))
        return made


class Student(nn.Module):
    """RD4AD's: from the bottleneck back to the three maps. The last layer is linear, as the backbone's are.

    Args:
        widths: as for `Bottleneck`.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        inputs, self.up, self.out = 2 * widths[-1], nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths):
            wide = max(width, 64)  # a backbone's first maps are narrow
            self.up.append(nn.Sequential(_block(inputs, wide, 0), _block(wide, wide, 1)))
            self.out.append(nn.Conv2d(wide, width, 1))
            inputs = wide

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns three maps, the first of the greatest side."""
        made = []
        for up, out in zip(self.up, self.out, strict=True):
            x = up(x)
            made.append(out(x))
        return made[::-1]


class Cloner(nn.ModuleList):
    """KDAD's: a thin network whose maps have the backbone's sides and widths; inside, a quarter of them.

    Args:
        widths: channels of the backbone's maps, the first at stride 2, each half the side of the one before.
    """

    def __init__(self, widths: Sequence[int]):
        layers, inputs = [], 3
        for width in widths:
            thin = max(width // 4, 8)
            layers.append(
                nn.Sequential(_block(inputs, thin, 2), _block(thin, thin, 1), nn.Conv2d(thin, width, 1))
            )
            inputs = width
        super().__init__(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns a map for each width, of `(N, 3, S, S)`."""
        made = []
        for layer in self:
            x = layer(x)
            made.append(x)
        return made


class Students(nn.ModuleList):
    """Transformaly's idea on maps: each student makes the backbone's next map of the one before.

    Args:
        widths: channels of the backbone's maps, each half the side of the one before.
    """

    def __init__(self, widths: Sequence[int]):
        pairs = pairwise(widths)
        super().__init__(
            nn.Sequential(_block(a, b, 2), _block(b, b, 1), nn.Conv2d(b, b, 1)) for a, b in pairs
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Returns the students' maps, the second to the last, of the backbone's."""
        return [student(x) for student, x in zip(self, maps, strict=False)]


class PatchTeacher(nn.Module):
    """EfficientAD's teacher: two maps of the backbone, side by side, on the grid of the student.

    Args:
        network: takes `(N, 3, S, S)` in ImageNet's normalisation, and gives two maps.
        normalise: makes that of images in [0, 1].
        margin: cells that the student's grid, of a quarter of the side, is short of.
    """

    def __init__(self, network: Any, normalise: Any, margin: int):
        super().__init__()
        self.network, self.normalise, self.margin = network, normalise, margin
        self.out_channels = sum(network.feature_info.channels())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Returns `(N, C, S/4 − margin, S/4 − margin)` of `(N, 3, S, S)` in [0, 1]."""
        x, side = (x[None] if x.ndim == 3 else x), x.shape[-1] // 4  # anomalib's penalty is one image
        with sharing(None) if self.training else nullcontext():  # what is drawn in training never comes again
            seen = self.network(self.normalise(x))
        maps = [F.interpolate(m, (side, side), mode="bilinear") for m in seen]
        cut = slice(self.margin // 2, side - self.margin + self.margin // 2)
        return torch.cat(maps, 1)[..., cut, cut]
