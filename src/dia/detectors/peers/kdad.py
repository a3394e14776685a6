"""KDAD: a thin VGG learns a frozen VGG's outputs on normals, and disagrees elsewhere. Knows `pretrained`.

Source: Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021. With a_l and
b_l the teacher's and the cloner's outputs of the l-th of the last four pools, as one vector each:

    value_l = mean (a_l − b_l)²,   direction_l = 1 − ⟨a_l, b_l⟩ / (‖a_l‖ ‖b_l‖)
    loss = Σ_l direction_l + λ Σ_l value_l, λ = .01;   score = the same of the last three pools
    heatmap = |∂ score / ∂ input|, smoothed by a Gaussian of σ 4

The teacher is VGG-16 and takes ImageNet's normalisation. Batch-norm follows each convolution of the
cloner but those before a pool. Teacher and cloner are both saved, so a model loads with no network
and no hub.

Written from the facts above alone; the official code was neither used nor looked at, so where it differs is
not known. Ours: the side of 128 and the number of epochs; batches from (seed, step), without augmentation,
the last, incomplete one of an epoch dropped; images are resized to squares, not cropped; torch's initial
values of the cloner; the score keeps the loss's λ; absolute gradients are added up over the three channels of
the normalised input, and σ is 4 at a side of 128, in proportion at others. Presets other than `paper` are
small and take a random teacher (timm's initial values keep its outputs alive to the last pool), because
nothing is fetched unasked; the method is meant for `--settings.weights imagenet` or a file. A ResNet, so
`dia:RUN`, cannot stand for the teacher: the cloner is planned after the pools of the VGG. With `lite0` the
teacher is an EfficientNet-Lite and the cloner a quarter as wide, with their maps at strides 4 to 32 in the
place of pools: the idea of the paper, not its networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from ...core.training import Precision, seed_step
from ...features.networks import as_input, to_input
from ...features.standing import LiteFeatures
from ..calibration import Prediction
from .mirrored import Cloner
from .pretrained import Distilled, Presets, PretrainedSettings

CLONER = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))  # channels; a pool after each
TRAINED, SCORED = 4, 3  # of the five pools, the last so many
_SIDE = 128  # at which σ is in pixels


@dataclass(frozen=True)
class KDADSettings(PretrainedSettings):
    """Multiresolution knowledge distillation.

    Args:
        weights: of the teacher: `lite0`, `imagenet`, `none` (random, by seed), or a file.
        size: images are resized to squares of this side, at least 32, which five pools halve.
        epochs: passes over the training normals.
        batch: images per step.
        lr: of Adam.
        value_weight: λ, the weight of the values against the directions.
        sigma: of the heatmap's Gaussian, in pixels of images of side 128.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
    """

    weights: str = "none"
    size: int = _SIDE
    epochs: int = 100
    batch: int = 64
    lr: float = 1e-3
    value_weight: float = 0.01
    sigma: float = 4.0
    precision: Precision = "auto"

    presets: ClassVar[Presets] = {
        "cpu": {"size": 64, "epochs": 2, "batch": 16},
        "gpu": {"epochs": 30},
        "paper": {"precision": "32"},
    }
    least: ClassVar[dict[str, float]] = {"size": 32, "batch": 2, "value_weight": 0, "sigma": 0}


class KDAD(Distilled):
    """A thin cloner learns the last pools of a frozen VGG; the score is its distance to them."""

    method = "kdad"
    family = "teacher and student"
    paper = "Salehi et al., Multiresolution Knowledge Distillation (KDAD), CVPR 2021"
    pretrained = "vgg16"
    maps = True
    Settings: ClassVar[type] = KDADSettings
    parts = ("teacher", "cloner")
    scoring = ("sigma",)
    pixels = 2**19

    def _options(self) -> dict[str, Any]:
        return {"features_only": True}

    def _untrained(self) -> nn.Module:
        return _cloner_of(self.seed, self._widths() if self.s.lite else None)

    def _loss(self, trained: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = _pooled(self.frozen_, x)
        return _disagreement(wanted, _pooled(trained, x), self.s.value_weight).mean()

    def _module(self) -> nn.Module:
        return Disagreement(self.frozen_, self.trained_, self.s)

    def _predict(self, images: np.ndarray, heatmaps: bool, dissolved: bool) -> Prediction:
        """The heatmap is a gradient, which no module gives: one pass forward and back gives both."""
        if not heatmaps:
            return super()._predict(images, heatmaps, dissolved)
        module: Any = self._prepared()
        step, scores, steep = self._at_once(), [], []
        for start in range(0, len(images), step):
            score, slope = _steepness(
                module.of_input, to_input(images[start : start + step], self.s.size, self.where_)
            )
            scores.append(score.double().cpu().numpy())
            steep.append(slope.cpu().numpy())
        sigma = self.s.sigma * self.s.size / _SIDE
        soft = torch.from_numpy(gaussian_filter(np.concatenate(steep), (0, sigma, sigma)))[:, None]
        maps = F.interpolate(soft, images.shape[1:3], mode="bilinear", antialias=True)
        return Prediction(np.concatenate(scores), maps[:, 0].numpy())


def _cloner_of(seed: int, widths: list[int] | None = None) -> nn.Module:
    """The untrained cloner, random by seed: 3×3 convolutions, batch-norm but before pools, ReLU, pools.

    With the widths of another backbone's maps it is the one of `mirrored`.
    """
    layers: list[nn.Module] = []
    channels = 3
    with torch.random.fork_rng(devices=[]):
        seed_step(seed, 2**32 - 5)
        if widths is not None:
            return Cloner(widths)
        for block in CLONER:
            for i, wide in enumerate(block, 1):
                layers.append(nn.Conv2d(channels, wide, 3, padding=1))
                if i < len(block):
                    layers.append(nn.BatchNorm2d(wide))
                layers.append(nn.ReLU(inplace=True))
                channels = wide
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _pooled(network: Any, x: Tensor) -> list[Tensor]:
    """Outputs of the last four pools or strides, `(N, C_l, h_l, w_l)` each, of `(N, 3, S, S)`."""
    if isinstance(network, LiteFeatures | Cloner):
        return list(network(x)[-TRAINED:])
    outputs = []
    for layer in network.children():
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            outputs.append(x)
    return outputs[-TRAINED:]


def _disagreement(teacher: list[Tensor], cloner: list[Tensor], value_weight: float) -> Tensor:
    """Σ_l direction_l + λ Σ_l value_l of each image, `(N,)`, of outputs `(N, ...)` of some layers."""
    pairs = [(a.flatten(1).float(), b.flatten(1).float()) for a, b in zip(teacher, cloner, strict=True)]
    direction = [1 - F.cosine_similarity(a, b) for a, b in pairs]
    value = [(a - b).square().mean(1) for a, b in pairs]
    return torch.stack(direction).sum(0) + value_weight * torch.stack(value).sum(0)


def _steepness(score: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, and how steep they are by place.

    Args:
        score: from `(N, C, H, W)` to `(N,)`; a score must be its image's own.
        x: `(N, C, H, W)`.

    Returns:
        The scores `(N,)`, and Σ over channels of |∂ score / ∂ x|, `(N, H, W)`.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        scores = score(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
    return scores.detach(), gradient.abs().sum(1)


class Disagreement(nn.Module):
    """The score: how far the cloner is from the teacher in the last three pools.

    Args:
        teacher: frozen.
        cloner: trained.
        settings: of the method.
    """

    def __init__(self, teacher: nn.Module, cloner: nn.Module, settings: KDADSettings):
        super().__init__()
        self.teacher, self.cloner = teacher, cloner
        self.size, self.value_weight = settings.size, settings.value_weight

    def of_input(self, x: Tensor) -> Tensor:
        """Returns the scores `(N,)` of the networks' input `(N, 3, S, S)`."""
        pairs = _pooled(self.teacher, x)[-SCORED:], _pooled(self.cloner, x)[-SCORED:]
        return _disagreement(*pairs, self.value_weight)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Returns the scores `(N,)` of `(N, C, H, W)` uint8."""
        return (self.of_input(as_input(x, self.size)).double(),)
