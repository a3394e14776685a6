"""The SimCLR augmentation of CSI, batched on the device. Knows only `(N, C, H, W)` images in [0, 1].

Colour jitter as published: hue, saturation and value change in HSV, by a shift and two factors; contrast
stretches each channel about its mean over the image; which of the two comes first is drawn for the batch. The
random resized crop is one affine grid with reflection padding. All draws come first, for a whole batch, from
the generator of the device they are wanted on, so that a training step never leaves it.

Source: Chen et al., "A Simple Framework for Contrastive Learning" (SimCLR), ICML 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor, nn

from ..core.settings import check, require
from ..data.imageset import LUMA

Device = torch.device | str | None


@dataclass(frozen=True)
class AugmentSettings:
    """Strength of the augmentation.

    Args:
        jitter: ranges b, c, s, h of brightness, contrast, saturation (factors in [1 − b, 1 + b] and so on)
            and hue (a shift in [−h, h] of the colour circle). Grey images know only the first two.
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

    def __post_init__(self) -> None:
        check(
            self, "augment.", jitter="[0, 1]", jitter_p="[0, 1]", grey_p="[0, 1]", crop="(0, 1]",
            ratio="(0, inf)", score_crop="(0, 1]",
        )  # fmt: skip
        require(len(self.jitter) == 4, "augment.jitter", f"must be four numbers, not {self.jitter}")
        for name in ("crop", "ratio"):
            low, high = getattr(self, name)
            require(low <= high, f"augment.{name}", f"must be low, high, not {low}, {high}")


class Draws(NamedTuple):
    """The random draws for n views.

    Args:
        factors: `(n, 4)`: factors of value, contrast and saturation (1 = unchanged); the hue's turn.
        grey: `(n,)` bool, whether a view turns grey.
        contrast_first: `(n,)` bool, whether contrast comes before the change in HSV; one value for a batch.
        crop: `(n, 2, 3)` affine matrices.
    """

    factors: Tensor
    grey: Tensor
    contrast_first: Tensor
    crop: Tensor

    def rows(self, index: Tensor) -> Draws:
        """Returns the draws of the views `index`."""
        return Draws(*(t[index] for t in self))


class Augment(nn.Module):
    """Random colour jitter, grey and crop; each image of the batch has its own draw.

    Args:
        settings: the ranges.
        channels: 1 or 3.
        scoring: whether crops have the fixed area `score_crop`.

    Example:
        >>> augment = Augment(AugmentSettings(), channels=1)
        >>> augment(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 1, 28, 28])
    """

    def __init__(self, settings: AugmentSettings, channels: int, *, scoring: bool = False):
        super().__init__()
        self.s, self.channels = settings, channels
        self.area = (settings.score_crop, settings.score_crop) if scoring else settings.crop

    def draw(self, n: int, device: Device = None) -> Draws:
        """Draws for n views from torch's generator of a device.

        Args:
            n: the number of views.
            device: where the draws lie; the CPU by default.
        """
        s, (b, c, saturation, hue) = self.s, self.s.jitter
        u = (torch.rand(n, 4, device=device) * 2 - 1) * (torch.rand(n, 1, device=device) < s.jitter_p)
        factors = torch.stack([1 + b * u[:, 0], 1 + c * u[:, 1], 1 + saturation * u[:, 2], hue * u[:, 3]], 1)
        grey = torch.rand(n, device=device) < s.grey_p
        first = (torch.rand(1, device=device) < 0.5).expand(n)
        return Draws(factors, grey, first, crop_matrices(n, self.area, s.ratio, device))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Augments images.

        Args:
            x: `(N, C, H, W)` in [0, 1].
            draws: for N views, or one for all; drawn anew by default.

        Returns:
            `(N, C, H, W)` in [0, 1].
        """
        d = self.draw(len(x), x.device) if draws is None else Draws(*(t.to(x.device) for t in draws))
        x = jitter(x, d)
        if self.channels == 3:
            luma = sum(part * x[:, i : i + 1] for i, part in enumerate(LUMA))
            x = torch.where(d.grey[:, None, None, None], luma, x)
        grid = crop_grid(d.crop, *x.shape[-2:])
        # where all share one crop they are channels of one image, for which its weights are found once
        y = x.flatten(0, 1)[None] if len(grid) == 1 else x
        return F.grid_sample(y, grid, padding_mode="reflection", align_corners=False).view(x.shape)


def jitter(x: Tensor, draws: Draws) -> Tensor:
    """Applies colour jitter.

    Contrast is m + c·(x − m), with m the mean of a channel over the image; the change in HSV multiplies value
    and saturation by their factors and shifts hue. Each is clamped to [0, 1]. A grey image has no hue and no
    saturation, so that its value is the image itself.

    Args:
        x: `(N, C, H, W)` in [0, 1], C 1 or 3.
        draws: for N images, or one for all.

    Returns:
        `(N, C, H, W)` in [0, 1].
    """
    value, contrast, saturation, hue = draws.factors[:, :, None, None, None].unbind(1)
    first = draws.contrast_first[:, None, None, None]
    x = _stretched(x, torch.where(first, contrast, 1))
    if x.shape[1] == 1:
        x = x * value
    else:
        h, s, v = rgb_to_hsv(x).unsqueeze(2).unbind(1)
        h = (h + 2 * math.pi * hue) % (2 * math.pi)
        x = hsv_to_rgb(torch.cat([h, (s * saturation).clamp(0, 1), (v * value).clamp(0, 1)], 1))
    return _stretched(x.clamp(0, 1), torch.where(first, 1, contrast))


def _stretched(x: Tensor, contrast: Tensor) -> Tensor:
    mean = x.mean((-2, -1), keepdim=True)
    return (mean + contrast * (x - mean)).clamp(0, 1)


def crop_matrices(
    n: int, area: tuple[float, float], ratio: tuple[float, float], device: Device = None
) -> Tensor:
    """Draws affine matrices of random crops: uniform in area, log ratio, and place inside the image.

    Args:
        n: the number of crops.
        area: least and greatest area, as a fraction of the image.
        ratio: least and greatest width : height.
        device: where the matrices lie; the CPU by default.

    Returns:
        `(n, 2, 3)`.
    """
    size = torch.empty(n, device=device).uniform_(*area)
    aspect = torch.empty(n, device=device).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (size * aspect).sqrt().clamp(max=1), (size / aspect).sqrt().clamp(max=1)
    x, y = ((torch.rand(n, device=device) * 2 - 1) * (1 - side) for side in (w, h))
    zero = torch.zeros(n, device=device)
    return torch.stack([torch.stack([w, zero, x], 1), torch.stack([zero, h, y], 1)], 1)


def crop_grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Returns the grid of `F.affine_grid` without its matrix product, since crops do not turn.

    Args:
        matrices: `(n, 2, 3)`, of crops.
        height: H in pixels.
        width: W in pixels.

    Returns:
        `(n, H, W, 2)`.
    """
    grid = matrices.new_empty(len(matrices), height, width, 2)
    for axis, side in enumerate((width, height)):
        place = (torch.arange(side, device=grid.device, dtype=grid.dtype) * 2 + 1) / side - 1
        along = matrices[:, axis, axis, None] * place + matrices[:, axis, 2, None]  # (n, side)
        grid[..., axis] = along[:, None, :] if axis == 0 else along[:, :, None]
    return grid
