"""The encoder: a ResNet-18 with a projection head and a shift head. Knows nothing of losses or data.

Source: He et al., "Deep Residual Learning", CVPR 2016; heads as in CSI (projection 512–512–128).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stem = Literal["cifar", "patch", "imagenet"]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential()
        if stride > 1 or inputs != outputs:
            narrow = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(narrow, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class Encoder(nn.Module):
    """A ResNet-18 of a given width.

    Args:
        channels: 1 or 3.
        shifts: K, outputs of the shift head.
        width: channels of the first stage (64 in the paper); the features have 8 times as many.
        stem: `cifar` (3×3, for ≤ 32 px), `imagenet` (7×7 stride 2, pooled), or `patch` (one convolution
            down to a grid of about 16×16, which ends in a 2×2 map: several times faster on a CPU).
        side: of the images in pixels, which decides the stride of `patch`.
    """

    def __init__(self, channels: int, shifts: int, width: int = 64, stem: Stem = "cifar", side: int = 32):
        super().__init__()
        fold = max(round(side / 16), 1)
        kernel, stride, pad = {"cifar": (3, 1, 1), "patch": (fold + 2, fold, 1), "imagenet": (7, 2, 3)}[stem]
        self.channels = channels
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, kernel, stride, pad, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity(),
        )
        stages, inputs = [], width
        for i, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
            stages += [_Block(inputs, outputs, 1 if i == 0 else 2), _Block(outputs, outputs, 1)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.features = inputs
        self.project = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, 128))
        self.shift = nn.Linear(inputs, shifts)
        # channels last: faster convolutions, on CPUs most of all. Not below 8 channels, where the gradient of
        # a strided 1×1 convolution writes past its memory without AVX512 (uxlfoundation/oneDNN#6035)
        self.layout = torch.channels_last if width >= 8 else torch.contiguous_format
        self.to(memory_format=self.layout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns penultimate features `(N, 8·width)`, projections `(N, 128)` and shift logits `(N, K)`.

        Args:
            x: `(N, C, H, W)` in [0, 1]; an encoder of three channels takes grey images as well.
        """
        x = ((x.expand(-1, self.channels, -1, -1) - 0.5) / 0.5).contiguous(memory_format=self.layout)
        h = self.stages(self.stem(x)).mean((-2, -1))
        return h, self.project(h), self.shift(h)
