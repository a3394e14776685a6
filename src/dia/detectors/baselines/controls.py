"""Controls: what a score or a heatmap reaches without comparing with any normal. Each is a row of its own.

A claim about features, dissolving or places has to beat them. Knows the backbone and squares; of the normals
at most the mean and deviation of the features' channels. Nothing is trained, and no sign is chosen.

| control | score | heatmap |
|---|---|---|
| detail | minus the log distance of fine features to those of the blurred image, as a view of `dia+` | – |
| length | the greatest value of the map | the length of the features at stride 32 |
| centre | 0, for every image | minus the distance to the image's centre |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...core.processes import choose_device
from ...core.settings import check, require
from ...data.imageset import subsample
from ...features.backbone import Backbone, Squares, load_backbone, restore_backbone, weights_of
from ...features.package import LITE
from ...features.untrained import blurring, passes, resizer
from ..base import Detector
from ..calibration import LOOKED
from ..saving import StageCache, module_tensors
from ..views import BLUR, Change

_ROOM = 2**20  # pixels of one pass
_TINY = 1e-6  # for the deviation of channels that do not vary


@dataclass(frozen=True)
class ControlSettings:
    """The settings of controls on a backbone.

    Args:
        backbone: as for `dia+`.
        weights: as for `dia+`.
        size: side in pixels of the squares in which images are seen.
    """

    backbone: str = "lite0"
    weights: str = "lite0"
    size: int = 128

    def __post_init__(self) -> None:
        check(self, size="[32, 1024]")
        require(self.size % 32 == 0, "size", "must be a multiple of 32")
        require(bool(self.weights), "weights", "must be lite0, imagenet, none, a file or dia:RUN, not empty")
        fits = self.weights not in LITE or self.backbone in LITE
        require(fits, "weights", f"{self.weights} are not those of {self.backbone}: imagenet, none or a file")


@dataclass(frozen=True)
class LengthSettings(ControlSettings):
    """The settings of `control:length`, whose squares are those of the coarse map of `dia+`."""

    size: int = 320


@dataclass(frozen=True)
class CentreSettings:
    """`control:centre` has no settings."""


class _OnBackbone(Detector):
    family = "control"
    Settings: ClassVar[type] = ControlSettings

    def weights_source(self) -> str:
        """Returns where the backbone's weights are from, for the ledger."""
        return weights_of(self.s.backbone, self.s.weights, seed=self.seed)

    def _at_once(self) -> int:
        return max(_ROOM // max(self.s.size, *self.shape_[:2]) ** 2, 1)

    def _squares(self) -> Squares:
        height, width, _ = self.shape_
        return Squares(height, width, self.s.size)

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        self.where_ = choose_device(self.device)
        self.backbone_ = load_backbone(self.s.backbone, self.s.weights, seed=self.seed).to(self.where_)

    def _tensors(self) -> dict[str, np.ndarray]:
        return module_tensors(self.backbone_.network, "backbone.")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.where_ = choose_device(self.device)
        found = restore_backbone(self.s.backbone, self.s.weights, tensors, "backbone.")
        self.backbone_ = found.to(self.where_)


class DetailScore(nn.Module):
    """Minus the log distance of features to those of the blurred image.

    Args:
        change: measures it.
        squares: in which images are seen.
        side: of them, in pixels.
    """

    def __init__(self, change: Change, squares: Squares, side: int):
        super().__init__()
        self.change, self.squares, self.blur = change, squares, blurring(side, BLUR * side)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Returns the scores `(N,)` float64 of `(N, C, H, W)` uint8."""
        small = self.squares(x)
        return (-self.change(self.change.backbone(small).fine, self.blur(small)),)


class Detail(_OnBackbone):
    """Little fine detail is anomalous; one-sided."""

    method = "control:detail"

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        super()._fit(images, reference, stages)
        squares = self._squares().to(self.where_)
        with torch.inference_mode():
            seen = passes(subsample(images, LOOKED), self._at_once(), self.where_)
            fine = torch.cat([self.backbone_(squares(x)).fine.cpu() for x in seen])
        self.channels_ = fine.mean((0, 2, 3)), fine.std((0, 2, 3), correction=0).clamp(min=_TINY)

    def _module(self) -> nn.Module:
        return DetailScore(Change(self.backbone_, *self.channels_), self._squares(), self.s.size)

    def _tensors(self) -> dict[str, np.ndarray]:
        return super()._tensors() | {"channels": torch.stack(self.channels_).numpy()}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore({k: v for k, v in tensors.items() if k != "channels"}, folder)
        mean, std = torch.from_numpy(tensors["channels"])
        self.channels_ = mean, std


class Lengths(nn.Module):
    """The length of coarse features by place.

    Args:
        backbone: of the features.
        squares: in which images are seen.
        sides: height and width of the images.
        side: of the coarse map.
    """

    outputs = ("heatmap",)

    def __init__(self, backbone: Backbone, squares: Squares, sides: tuple[int, int], side: int):
        super().__init__()
        self.backbone, self.squares = backbone, squares
        self.to_image = resizer((side, side), sides)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes `(N, C, H, W)` uint8."""
        length = (self.backbone(self.squares(x)).coarse ** 2).sum(1).sqrt()
        return length.amax((1, 2)).double(), self.to_image(length).float()


class Length(_OnBackbone):
    """Long features are anomalous, wherever they are."""

    method = "control:length"
    maps = True
    Settings: ClassVar[type] = LengthSettings

    @torch.inference_mode()
    def _module(self) -> nn.Module:
        probe = torch.zeros(1, 3, self.s.size, self.s.size, device=self.where_)
        side = int(self.backbone_(probe).coarse.shape[-1])
        height, width, _ = self.shape_
        return Lengths(self.backbone_, self._squares(), (height, width), side)


class Centred(nn.Module):
    """Minus the distance to the centre, in halves of the longer side.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    outputs = ("heatmap",)
    near: Tensor

    def __init__(self, height: int, width: int):
        super().__init__()
        down, across = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
        away = (down[:, None] ** 2 + across[None] ** 2).sqrt() / (max(height, width) / 2)
        self.register_buffer("near", -away.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes `(N, C, H, W)` uint8."""
        nothing = 0 * x[:, 0, 0, 0].double()
        return nothing, nothing[:, None, None].float() + self.near


class Centre(Detector):
    """The middle of every image is anomalous, and every image as much as another."""

    method = "control:centre"
    family = "control"
    maps = True
    Settings: ClassVar[type] = CentreSettings

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        """Nothing is fitted."""

    def _module(self) -> nn.Module:
        return Centred(*self.shape_[:2])

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"sides": np.array(self.shape_[:2])}

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        """Nothing was fitted."""
