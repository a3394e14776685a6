"""The common parts of methods with a pretrained network: settings, presets, training with a frozen teacher.

Knows backbones, detectors and training; knows no method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from ...core.processes import choose_device, share
from ...core.settings import check, plain, require
from ...core.training import Timed, seed_step
from ...features.networks import backbone, describe, restored, to_input
from ...features.own import MEAN, OWN, STD, Channels
from ...features.package import LITE
from ..base import Detector
from ..saving import StageCache, load_module, module_tensors

Presets = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PretrainedSettings:
    """Base of settings: a number must be above 0, or at least what `least` says; words are those of the type.

    Args:
        steps: of the optimiser, for methods that train; null: as many as `epochs` make.

    Attributes:
        presets: what differs from the defaults, by preset; `paper` also takes the ImageNet weights.
        least: the smallest value of each number that has one.
    """

    steps: int | None = None

    presets: ClassVar[Presets] = {}
    least: ClassVar[dict[str, float]] = {}

    def __post_init__(self) -> None:
        numbers = [name for name, hint in get_type_hints(type(self)).items() if hint in (int, float)]
        check(self, **{n: f"[{self.least[n]}, inf)" if n in self.least else "(0, inf)" for n in numbers})
        require(self.steps is None or self.steps > 1, "steps", f"must be at least 2, not {self.steps}")
        weights = getattr(self, "weights", "none")
        require(bool(weights), "weights", "must be imagenet, none or a file, not empty")
        if weights.startswith(OWN):
            method = type(self).__name__.removesuffix("Settings").lower()
            fits = self.takes_own_encoder()
            require(
                fits, "weights", f"{OWN}RUN is a ResNet, which {method} cannot take: imagenet, none or a file"
            )
            require(weights != OWN, "weights", f"{OWN}RUN must name the folder of a fitted csi or dia")
        if weights in LITE:
            fits = self.takes_lite()
            require(
                fits, "weights", f"{weights} cannot stand for {getattr(self, 'backbone', 'this network')}"
            )

    def takes_own_encoder(self) -> bool:
        """Returns whether `weights` may be `dia:RUN`: only a ResNet can stand for a ResNet."""
        return "resnet" in getattr(self, "backbone", "")

    def takes_lite(self) -> bool:
        """Returns whether `weights` may be `lite0`, which brings its own architecture."""
        return True

    @property
    def lite(self) -> bool:
        """Whether an EfficientNet-Lite is in the place of the method's own network."""
        return getattr(self, "weights", "none") in LITE

    @classmethod
    def preset(cls, name: str) -> Self:
        """Returns `paper` as published, as far as known; the others are for two cores or one accelerator."""
        published: dict[str, Any] = {}
        if name == "paper" and hasattr(cls, "weights"):
            published = {"weights": "imagenet"}
        return cls(**published | cls.presets.get(name, {}))


class Pretrained(Detector):
    """Base of detectors whose network may start from pretrained weights."""

    pixels: ClassVar[int] = 2**20  # of one forward pass when scoring

    def weights_source(self) -> str:
        """Returns where the network's first weights are from, as the ledger says it."""
        if not self.pretrained:
            return super().weights_source()
        return describe(self._architecture(), self.s.weights, seed=self.seed)

    def _architecture(self) -> str:
        if getattr(self.s, "lite", False):
            return "resnet18"  # in whose place it stands
        return str(getattr(self.s, "backbone", self.pretrained))

    def _at_once(self) -> int:
        return max(self.pixels // self.s.size**2, 4)


class Learner(Timed):
    """The training of the second network with Adam; batches and chance come from (seed, step).

    Args:
        network: trained in place.
        loss: gives the loss of `network` on a batch `(N, 3, S, S)`. It is no module, so that checkpoints do
            not hold the frozen network.
        images: `(N, H, W, C)` uint8.
        settings: of the method; `size`, `batch` and `lr` are used here.
        seed: of the batches.
        mean: of each channel, for the normalisation of the batch.
        std: of each channel.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[nn.Module, Tensor], Tensor],
        images: np.ndarray,
        settings: Any,
        seed: int,
        mean: Channels = MEAN,
        std: Channels = STD,
    ):
        super().__init__()
        self.network, self.loss, self.images, self.s, self.seed = network, loss, images, settings, seed
        self.mean, self.std = mean, std

    def training_step(self, *_: Any) -> Tensor:
        """Returns the mean loss of this process's share of the batch at the current step."""
        index = self.batch_at(self.global_step)
        part = share(len(index))
        x = to_input(self.images[index[part]], self.s.size, self.device, mean=self.mean, std=self.std)
        seed_step(self.seed, self.global_step + part.start * 2**32)  # each process draws for itself
        return self.loss(self.network, x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam of the network."""
        return torch.optim.Adam(self.network.parameters(), self.s.lr)


class Distilled(Pretrained):
    """Base of detectors with a frozen network and a second one that learns from its outputs on normals.

    Attributes:
        parts: names of the two networks in saved folders.
        normalisation: mean and deviation of each channel, of what the networks take.
        learner: the training.
        scoring: settings that matter to scores alone, so that a change of them trains nothing anew.
        frozen_: the frozen network.
        trained_: the second one.
    """

    parts: ClassVar[tuple[str, str]]
    scoring: ClassVar[tuple[str, ...]] = ()
    normalisation: ClassVar[tuple[Channels, Channels]] = (MEAN, STD)  # an EfficientNet-Lite takes ImageNet's
    learner: ClassVar[type[Learner]] = Learner

    def _options(self) -> dict[str, Any]:
        """Arguments of `timm.create_model` for the frozen network."""
        return {}

    def _normalisation(self) -> tuple[Channels, Channels]:
        return (MEAN, STD) if self.s.lite else self.normalisation

    def _widths(self) -> list[int]:
        """The channels of the maps of a frozen network made with `features_only`."""
        return [int(c) for c in self.frozen_.feature_info.channels()]

    def _untrained(self) -> nn.Module:
        """The second network before training, random by seed; the frozen one is there already."""
        raise NotImplementedError

    def _loss(self, trained: nn.Module, x: Tensor) -> Tensor:
        """The mean loss of a batch `(N, 3, S, S)`."""
        raise NotImplementedError

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        s, self.where_ = self.s, choose_device(self.device)
        frozen = backbone(self._architecture(), s.weights, seed=self.seed, **self._options())
        self.frozen_: Any = frozen.to(self.where_)
        self.trained_: Any = self._untrained().to(self.where_)
        key = {name: value for name, value in plain(s).items() if name not in self.scoring}
        path = stages.path(self.method, self.parts, key, self.weights_source(), self.seed, images)
        learner = self.learner(self.trained_, self._loss, images, s, self.seed, *self._normalisation())
        stages.trained(path, learner, len(images), s, self.device)

    def _tensors(self) -> dict[str, np.ndarray]:
        frozen, trained = self.parts
        return module_tensors(self.frozen_, f"{frozen}.") | module_tensors(self.trained_, f"{trained}.")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.where_ = choose_device(self.device)
        frozen, trained = self.parts
        network = restored(self._architecture(), tensors, f"{frozen}.", **self._options())
        self.frozen_ = network.to(self.where_)
        self.trained_ = self._untrained().to(self.where_).eval().requires_grad_(False)
        load_module(self.trained_, tensors, f"{trained}.")
