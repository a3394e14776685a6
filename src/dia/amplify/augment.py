"""The SimCLR augmentation of CSI, batched on the device. Knows only `(N, C, H, W)` images in [0, 1].

All a view's colour changes are one affine map of its channels, and its random resized crop is one affine
grid with reflection padding, so a view is made in two passes over its pixels. The draws come first, for a
whole batch, on the CPU: they do not depend on the device, nor on how many processes share the batch.

Colour as one matrix: Karras et al., "Training GANs with Limited Data", NeurIPS 2020, appendix C: hue turns
about the grey axis. `colour="hsv"` is the published per-image HSV jitter instead, through kornia.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.imageset import LUMA
from ..settings import chosen, require

_LUMA = torch.tensor(LUMA)


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
        colour: `matrix`, one affine map of the channels; or `hsv`, kornia's jitter in HSV, several times
            slower on colour images (grey ones always take the first).
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    crop: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    score_crop: float = 0.54
    colour: Literal["matrix", "hsv"] = "matrix"

    def __post_init__(self) -> None:
        chosen(self, "colour")
        turn = 0.5 if self.colour == "hsv" else 1.0  # of the colour circle, that hue can be asked to take
        require(
            len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= turn,
            "augment.jitter",
            f"must be four numbers from 0, the last (hue) at most {turn:g}, not {self.jitter}",
        )
        for name in ("jitter_p", "grey_p"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name}", f"must lie in [0, 1], not {value}")
        for name, most in (("crop", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            require(
                0 < low <= high <= most, f"augment.{name}", f"must be low, high above 0, not {low}, {high}"
            )
        require(0 < self.score_crop <= 1, "augment.score_crop", f"must lie in (0, 1], not {self.score_crop}")


class Draws(NamedTuple):
    """What chance decided for n views: colour maps `(n, C, C + 1)` and crops `(n, 2, 3)`."""

    colour: Tensor
    crop: Tensor

    def rows(self, index: Tensor) -> Draws:
        """Those of some views."""
        return Draws(self.colour[index], self.crop[index])


class Augment(nn.Module):
    """Random colour jitter, grey and crop; each image of the batch has its own draw.

    Args:
        settings: the ranges.
        channels: 1 or 3.
        scoring: crop to the fixed area `score_crop`, with one draw shared by the whole batch, so that
            an image's score does not depend on its neighbours.
    """

    def __init__(self, settings: AugmentSettings, channels: int, *, scoring: bool = False):
        super().__init__()
        s, self.s, self.channels, self.scoring = settings, settings, channels, scoring
        self.hsv: nn.Module | None = None
        if s.colour == "hsv" and channels == 3:
            self.hsv = nn.Sequential(
                K.ColorJiggle(*s.jitter, p=s.jitter_p, same_on_batch=scoring),
                K.RandomGrayscale(p=s.grey_p, same_on_batch=scoring),
            )

    def draw(self, n: int) -> Draws:
        """The draws for n views, from torch's CPU generator; one for all of them when scoring."""
        n = 1 if self.scoring else n
        area = (self.s.score_crop, self.s.score_crop) if self.scoring else self.s.crop
        return Draws(colour_matrices(n, self.s, self.channels), crop_matrices(n, area, self.s.ratio))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """`(N, C, H, W)` in [0, 1] to the same shape and range."""
        colour, crop = self.draw(len(x)) if draws is None else draws
        if self.hsv is not None:
            x = self.hsv(x)
        elif self.channels == 1:
            m = colour.to(x)[..., None]
            x = (x * m[:, :, :1] + m[:, :, 1:]).clamp_(0, 1)
        else:
            m = colour.to(x).expand(x.shape[0], 3, 4)
            x = torch.baddbmm(m[:, :, 3:], m[:, :, :3], x.flatten(2)).clamp_(0, 1).view(x.shape)
        grid = crop_grid(crop.to(x), *x.shape[-2:])
        # where all share one crop they are channels of one image, for which its weights are found once
        y = x.flatten(0, 1)[None] if len(grid) == 1 else x
        return F.grid_sample(y, grid, padding_mode="reflection", align_corners=False).view(x.shape)


def colour_matrices(n: int, s: AugmentSettings, channels: int) -> Tensor:
    """`(n, C, C + 1)` affine maps of the channels: brightness added, then contrast, saturation, hue, grey.

    Brightness b and contrast c are (x + b)·c, as kornia has them; saturation blends with the luma.
    """
    wide = torch.tensor(s.jitter)
    b, c, saturation, turn = ((torch.rand(n, 4) * 2 - 1) * wide * (torch.rand(n, 1) < s.jitter_p)).unbind(1)
    shift = b * (1 + c)
    if channels == 1:
        return torch.stack([1 + c, shift], 1)[:, None]
    grey = (torch.rand(n) < s.grey_p).float()
    keep, angle = ((1 + saturation) * (1 - grey))[:, None, None], turn[:, None, None] * (2 * math.pi)
    eye, third = torch.eye(3), torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # [n×] of the grey axis
    hue = angle.cos() * eye + (1 - angle.cos()) * third + angle.sin() * cross
    m = hue @ (keep * eye + (1 - keep) * _LUMA.expand(3, 3)) * (1 + c)[:, None, None]
    return torch.cat([m, shift[:, None, None].expand(n, 3, 1)], 2)


def crop_matrices(n: int, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """`(n, 2, 3)` affine matrices of random crops: area uniform, log ratio uniform, place uniform inside."""
    size = torch.empty(n).uniform_(*area)
    aspect = torch.empty(n).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (size * aspect).sqrt().clamp(max=1), (size / aspect).sqrt().clamp(max=1)
    x, y = ((torch.rand(n) * 2 - 1) * (1 - side) for side in (w, h))
    zero = torch.zeros(n)
    return torch.stack([torch.stack([w, zero, x], 1), torch.stack([zero, h, y], 1)], 1)


def crop_grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """`(n, H, W, 2)`: what `F.affine_grid` gives, without its matrix product: crops do not turn."""
    grid = matrices.new_empty(len(matrices), height, width, 2)
    for axis, side in enumerate((width, height)):
        place = (torch.arange(side, device=grid.device, dtype=grid.dtype) * 2 + 1) / side - 1
        along = matrices[:, axis, axis, None] * place + matrices[:, axis, 2, None]  # (n, side)
        grid[..., axis] = along[:, None, :] if axis == 0 else along[:, :, None]
    return grid
