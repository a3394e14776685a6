"""MSC: a pretrained ResNet adapted to the normals by a contrastive loss about their centre.

Knows `backbones` and augmentations.

Source: Reiss and Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection", AAAI 2023. With φ the
unit-length pooled features of the network and c their mean over the training normals before training:

    v = (φ − c) / ‖φ − c‖,   loss = NT-Xent of v over two augmented views of each image, τ = .25
    angular (a switch): + mean ‖φ₁ − c‖² + ‖φ₂ − c‖²
    score = Σ of the 2 smallest ‖φ(x) − φ_m‖² over the training normals m

Frozen: the stem, layer1 and layer2; batch-norm always uses its stored statistics. What was trained (layer3
and layer4) and what was not are both saved, so a model loads with no network and no hub.

Written from the paper's facts alone; the official code was neither used nor looked at, so where it differs
is not known. Ours: views and batches come from (seed, step); the last, incomplete batch of an epoch is
dropped; images are resized to squares, not cropped; the blur's width scales with the image's side; SGD has no
momentum; the bank is capped at `bank_size`. Presets other than `paper` are small, and take random weights,
because nothing is fetched unasked, with a learning rate for them (not tuned): `--settings.weights imagenet`,
a file, or `dia:RUN` is what the method is meant for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import kornia.filters as KF
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...amplify.augment import Augment, AugmentSettings
from ...amplify.loss import contrastive_loss, targets
from ...core.processes import choose_device, gather, processes, share
from ...core.settings import require
from ...core.training import Precision, Timed, batch_indices, seed_step
from ...data.imageset import subsample
from ...features.networks import as_input, backbone, normalised, restored, to_input
from ..nearest import nearest_squared
from ..saving import StageCache, module_tensors
from .pretrained import Presets, Pretrained, PretrainedSettings

TRAINED = ("layer3", "layer4")
_MOCO = AugmentSettings(crop=(0.2, 1.0))
_BLUR, _BLUR_P, _SIDE = (0.1, 2.0), 0.5, 224  # MoCo v2's blur: range of σ at a side of 224


@dataclass(frozen=True)
class MSCSettings(PretrainedSettings):
    """Mean-shifted contrastive loss.

    Args:
        backbone: timm's name of the ResNet; `weights` of `dia:RUN` bring their own.
        weights: `imagenet`, `none` (random, by seed), a file, or `dia:RUN`.
        size: images are resized to squares of this side.
        epochs: passes over the training normals.
        batch: images per step; the network sees two views of each.
        lr: of plain SGD.
        weight_decay: of the trained layers.
        temperature: τ.
        angular: add the angular term.
        augment: MoCo v2's crop, jitter and grey (its blur and flip are fixed).
        neighbours: nearest normals whose squared distances are summed.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
    """

    backbone: Literal["resnet18", "resnet50", "resnet152", "wide_resnet50_2"] = "resnet152"
    weights: str = "none"
    size: int = 224
    epochs: int = 20
    batch: int = 64
    lr: float = 1e-5
    weight_decay: float = 5e-5
    temperature: float = 0.25
    angular: bool = False
    augment: AugmentSettings = field(default_factory=lambda: _MOCO)
    neighbours: int = 2
    bank_size: int = 16384
    precision: Precision = "auto"

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 3, "lr": 1e-3},
        "gpu": {"backbone": "resnet50", "size": 128, "lr": 1e-3},
        "paper": {"precision": "32"},
    }
    least: ClassVar[dict[str, float]] = {"size": 16, "batch": 2, "weight_decay": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.bank_size >= self.neighbours
        require(fits, "bank_size", f"must hold the {self.neighbours} neighbours, not {self.bank_size}")


class MSC(Pretrained):
    """A pretrained ResNet, adapted by the mean-shifted contrastive loss, with nearest normals."""

    method = "msc"
    family = "contrastive"
    paper = "Reiss and Hoshen, MeanShift (MSC), AAAI 2023"
    pretrained = "resnet152"
    Settings: ClassVar[type] = MSCSettings

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        s = self.s
        self.where_ = choose_device(self.device)
        self.network_ = backbone(s.backbone, s.weights, seed=self.seed).to(self.where_)
        scoring = {"neighbours": MSCSettings.neighbours, "bank_size": MSCSettings.bank_size}
        path = stages.path("msc", replace(s, **scoring), self.weights_source(), self.seed, images)
        centre = _features(self.network_, images, s.size).mean(0)
        module = MeanShifted(self.network_, centre, images, s, self.seed)
        stages.trained(path, module, len(images), s, self.device)
        self.centre_ = module.centre  # of the network as it was before training, found or made
        self.bank_ = _features(self.network_, subsample(images, s.bank_size), s.size)

    def _module(self) -> nn.Module:
        return MeanShiftedDistance(self.network_, self.bank_, self.s)

    def _tensors(self) -> dict[str, np.ndarray]:
        own = {"centre": self.centre_.cpu().numpy(), "bank": self.bank_.cpu().numpy()}
        return module_tensors(self.network_, "network.") | own

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.where_ = choose_device(self.device)
        self.network_ = restored(self.s.backbone, tensors, "network.").to(self.where_)
        self.centre_, self.bank_ = (torch.from_numpy(tensors[k]).to(self.where_) for k in ("centre", "bank"))


@torch.inference_mode()
def _features(network: nn.Module, images: np.ndarray, size: int) -> Tensor:
    """Unit features φ `(N, D)` of uint8 images `(N, H, W, C)`, in several passes."""
    device = next(network.parameters()).device
    step = max(Pretrained.pixels // size**2, 4)
    parts = (images[i : i + step] for i in range(0, len(images), step))
    return torch.cat([F.normalize(network(to_input(part, size, device)), dim=1) for part in parts])


class MeanShiftedDistance(nn.Module):
    """The score: the sum of the smallest squared distances of unit features to those of normals.

    Args:
        network: adapted to the normals.
        bank: `(M, D)` unit features of normals.
        settings: of the method.
    """

    bank: Tensor

    def __init__(self, network: nn.Module, bank: Tensor, settings: MSCSettings):
        super().__init__()
        self.network, self.size, self.neighbours = network, settings.size, settings.neighbours
        self.register_buffer("bank", bank)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Returns the scores `(N,)` of `(N, C, H, W)` uint8."""
        phi = F.normalize(self.network(as_input(x, self.size)), dim=1)
        return (nearest_squared(phi, self.bank, self.neighbours).sum(1),)


class MeanShifted(Timed):
    """The training: two views of each image of a batch, all drawn from (seed, step).

    Args:
        network: frozen, in eval mode; gives features `(N, D)`. Its last two layers are trained in place.
        centre: c `(D,)`.
        images: `(N, H, W, C)` uint8.
        settings: of the method.
        seed: of batches and views.
    """

    centre: Tensor

    def __init__(
        self, network: nn.Module, centre: Tensor, images: np.ndarray, settings: MSCSettings, seed: int
    ):
        super().__init__()
        self.network, self.images, self.s, self.seed = network, images, settings, seed
        for name in TRAINED:
            getattr(network, name).requires_grad_(True)
        self.register_buffer("centre", centre.clone())
        self.augment = Augment(settings.augment, images.shape[-1])

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all but the network, whose batch-norm keeps the statistics it came with."""
        super().train(mode)
        self.network.eval()
        return self

    @torch.no_grad()
    def views(self, index: np.ndarray) -> Tensor:
        """Returns this process's views of the batch `index`, `(2·b, 3, S, S)` normalised: first, then second.

        Chance is drawn for the whole batch, so that it does not depend on the number of processes.
        """
        n, part = len(index), share(len(index))
        mine = torch.arange(2 * n).view(2, n)[:, part].flatten()
        draws = self.augment.draw(2 * n).rows(mine)
        flip = (torch.rand(2 * n) < 0.5)[mine].to(self.device)
        blur = (torch.rand(2 * n) < _BLUR_P)[mine].to(self.device)
        sigma = torch.empty(2 * n).uniform_(*_BLUR)[mine].to(self.device) * (self.s.size / _SIDE)
        x = to_input(self.images[index[part]], self.s.size, self.device, mean=(0, 0, 0), std=(1, 1, 1))
        x = self.augment(x[:, : self.augment.channels].repeat(2, 1, 1, 1), draws)
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        x[blur] = _blurred(x[blur], sigma[blur], _BLUR[1] * self.s.size / _SIDE)
        return normalised(x.expand(-1, 3, -1, -1))

    def loss(self, phi: Tensor) -> Tensor:
        """Returns the loss of unit features `(2·b, D)`, over all processes' rows."""
        shifted, size = phi - self.centre, processes()[1]
        local = len(phi) // 2
        if size > 1:  # (W, 2·b, D) to (2·B, D)
            shifted = gather(shifted).view(size, 2, local, -1).transpose(0, 1).flatten(0, 2)
        positive, excluded = targets(local * size, 1, 2)
        loss = contrastive_loss(shifted, positive.to(phi.device), excluded.to(phi.device), self.s.temperature)
        if self.s.angular:
            loss = loss + 2 * (phi - self.centre).square().sum(1).mean()  # the mean of both views, twice
        return loss

    def training_step(self, *_: Any) -> Tensor:
        """Returns the loss of the batch at the current step."""
        seed_step(self.seed, self.global_step)
        index = batch_indices(len(self.images), self.s.batch, self.seed, self.global_step)
        with torch.autocast(self.device.type, enabled=False):  # low precision is for the network alone
            views = self.views(index)
        phi = self.network(views)
        with torch.autocast(self.device.type, enabled=False):
            return self.loss(F.normalize(phi.float(), dim=1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns plain SGD of the trained layers."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, self.s.lr, weight_decay=self.s.weight_decay)


def _blurred(x: Tensor, sigma: Tensor, greatest: float) -> Tensor:
    """Each image of `(N, C, H, W)` by its own σ `(N,)`, at most `greatest`, which sets the window."""
    if not len(x):
        return x
    window = min(2 * int(np.ceil(3 * greatest)) + 1, 2 * min(x.shape[-2:]) - 1)
    return KF.gaussian_blur2d(x, (window, window), sigma[:, None].expand(-1, 2).clamp(min=1e-3))
