"""The settings of contrastive training. Knows no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from ..core.errors import DataError
from ..core.settings import check, require
from ..core.training import Precision
from .augment import AugmentSettings
from .encoder import Stem

_IMAGENET = 64  # px: up to which the stem `imagenet` leaves a map of at most 2×2


@dataclass(frozen=True)
class AmplifySettings:
    """How the encoder is built and trained.

    Args:
        size: images are resized to squares of at most this side.
        width: channels of the ResNet-18's first stage (64 in the paper).
        stem: first layers of the encoder: `cifar`, `patch` or `imagenet`; `auto` is `imagenet` for images
            above 64 px, where it leaves a map of at least 3×3, and `cifar` below.
        rgb: give grey images to the encoder as three channels, as the paper does.
        shift: the shifted instances: `rotation`, `cutperm` or `none`.
        exclude_own: an anchor does not see its own dissolved copy (the released default).
        temperature: τ of NT-Xent.
        shift_weight: weight of the shift classification.
        augment: the SimCLR augmentation.
        steps: optimiser steps; null: as many as `epochs` takes.
        epochs: length of training where `steps` is null, in epochs of ⌈N / batch⌉ batches of the N normals.
        epoch_batches: batches of an epoch at most.
        batch: images per step; the encoder sees 3·K times as many.
        optimizer: `adamw`, or `lars` as in the paper (needs the extra `paper`).
        lr: peak learning rate; warmed up linearly, then lowered along a half cosine.
        warmup: share of the steps that warm up.
        weight_decay: of all weights.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
        dissolved_in_shift: the shift classifier is taught the dissolved rows too, as published.
        simsiam_weight: weight of a SimSiam term between all views, an option of the official code; its
            predictor 128–32–128 plays no part in scores.
        t_per: t is drawn anew for each `batch`, each `shift` of it (as published), or each `image`.
        t_sampler: how t is drawn: `uniform`; `beta`, by Beta(`t_beta`) from the least to the greatest; or
            `cycled`, by a Beta that changes with the epoch, see `cycled_beta`.
        t_beta: the two parameters of `beta`; (1, 1.7) prefers small t, (1.7, 1) large ones.
    """

    size: int = 64
    width: int = 64
    stem: Literal["auto", "cifar", "patch", "imagenet"] = "auto"
    rgb: bool = False
    shift: Literal["rotation", "cutperm", "none"] = "rotation"
    exclude_own: bool = True
    temperature: float = 0.5
    shift_weight: float = 1.0
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    steps: int | None = 300
    epochs: int = 1000
    epoch_batches: int = 200
    batch: int = 32
    optimizer: Literal["adamw", "lars"] = "adamw"
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-6
    precision: Precision = "auto"
    dissolved_in_shift: bool = True
    simsiam_weight: float = 0.0
    t_per: Literal["batch", "shift", "image"] = "shift"
    t_sampler: Literal["uniform", "beta", "cycled"] = "uniform"
    t_beta: tuple[float, float] = (1.0, 1.7)

    def __post_init__(self) -> None:
        check(
            self, "amplify.", size="[8, inf)", width="[1, inf)", epochs="[1, inf)", epoch_batches="[1, inf)",
            batch="[2, inf)", steps="[1, inf)", temperature="(0, inf)", lr="(0, inf)", warmup="[0, 1]",
            shift_weight="[0, inf)", simsiam_weight="[0, inf)", weight_decay="[0, inf)", t_beta="(0, inf)",
        )  # fmt: skip
        require(len(self.t_beta) == 2, "amplify.t_beta", f"must be two numbers, not {self.t_beta}")

    def batches(self, n: int) -> int:
        """Returns the number of batches of an epoch over n images, the last one filled up."""
        return min(math.ceil(n / min(self.batch, n)), self.epoch_batches)

    def length(self, n: int) -> int:
        """Returns the number of optimiser steps on n images."""
        return self.epochs * self.batches(n) if self.steps is None else self.steps

    def stem_of(self, shape: tuple[int, int, int]) -> tuple[int, Stem]:
        """Returns side in pixels and stem with which the encoder takes images of `shape` (H, W, C).

        Raises:
            SettingsError: the stem would leave a map of 2×2 or less, where another would not.
        """
        side = min(self.size, max(shape[:2]))
        stem: Stem = self.stem if self.stem != "auto" else "imagenet" if side > _IMAGENET else "cifar"
        remedy = f"take cifar, or images above {_IMAGENET} px (--size, amplify.size)"
        holds = stem != "imagenet" or side > _IMAGENET
        require(holds, "amplify.stem", f"imagenet leaves a 2×2 map of images of {side} px; {remedy}")
        return side, stem

    def check_installed(self) -> None:
        """Raises `DataError` before any training where a library that these settings need is absent."""
        if self.optimizer == "lars" and find_spec("timm") is None:
            raise DataError("amplify.optimizer lars needs timm: pip install 'dia-anomaly[paper]'")
