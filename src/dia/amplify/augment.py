"""The SimCLR augmentation of CSI, batched on the device. Knows only `(N, C, H, W)` images in [0, 1].

Colour jitter and grey come from kornia; the random resized crop is one affine grid with reflection
padding, as CSI has it and kornia does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class AugmentSettings:
    """Strength of the augmentation.

    Args:
        jitter: brightness, contrast, saturation and hue ranges (grey images know only the first two).
        jitter_p: probability of jitter for an image.
        grey_p: probability that a colour image turns grey.
        crop: least and greatest area of the crop, as a fraction of the image.
        ratio: least and greatest width : height of the crop.
        score_crop: area of the crop when scoring.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    crop: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    score_crop: float = 0.54


class Augment(nn.Module):
    """Random colour jitter, grey and crop; each image of the batch draws its own.

    Args:
        settings: the ranges.
        channels: 1 or 3.
        scoring: crop to the fixed area `score_crop`, with one draw shared by the whole batch, so that
            an image's score does not depend on its neighbours.
    """

    def __init__(self, settings: AugmentSettings, channels: int, *, scoring: bool = False):
        super().__init__()
        s, self.s, self.scoring = settings, settings, scoring
        steps: list[nn.Module] = []
        if channels == 3:
            steps.append(K.ColorJiggle(*s.jitter, p=s.jitter_p, same_on_batch=scoring))
            steps.append(K.RandomGrayscale(p=s.grey_p, same_on_batch=scoring))
        elif any(s.jitter[:2]):
            for amount, kind in zip(s.jitter[:2], (K.RandomBrightness, K.RandomContrast), strict=True):
                steps.append(kind((1 - amount, 1 + amount), p=s.jitter_p, same_on_batch=scoring))
        self.colour = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` in [0, 1] to the same shape and range."""
        x = self.colour(x)
        n = 1 if self.scoring else len(x)
        area = (self.s.score_crop, self.s.score_crop) if self.scoring else self.s.crop
        theta = crop_matrices(n, area, self.s.ratio).to(x)
        grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def crop_matrices(n: int, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """`(n, 2, 3)` affine matrices of random crops: area uniform, log ratio uniform, place uniform inside."""
    size = torch.empty(n).uniform_(*area)
    aspect = torch.empty(n).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (size * aspect).sqrt().clamp(max=1), (size / aspect).sqrt().clamp(max=1)
    x, y = ((torch.rand(n) * 2 - 1) * (1 - side) for side in (w, h))
    zero = torch.zeros(n)
    return torch.stack([torch.stack([w, zero, x], 1), torch.stack([zero, h, y], 1)], 1)
