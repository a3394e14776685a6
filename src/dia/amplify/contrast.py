"""Contrastive training of the encoder against dissolved copies: batches, loss, optimiser, one fit function.

Knows encoder, augmentation, loss and bank; knows nothing of scores or labels.
Source: "Dissolving Is Amplifying", ECCV 2024; without dissolved views it is CSI, NeurIPS 2020.
Deviation: the last batch of an epoch is filled up, so that all have one size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ..core.errors import DataError
from ..core.processes import gather, processes, share
from ..core.settings import chosen, require
from ..core.training import Precision, Timed, batch_indices, seed_step, train, used_indices
from .augment import Augment, AugmentSettings, Device
from .encoder import Encoder, Stem
from .loss import contrastive_loss, simsiam_loss, targets
from .shifts import SHIFTS

_IMAGENET = 64  # px: up to which the stem `imagenet` leaves a map of at most 2×2


class Dissolved(Protocol):
    """Where dissolved views come from: a bank or live dissolving."""

    ts: tuple[int, ...]

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Dissolved copies `(B, H, W, C)` uint8 of images `index`, mirrored where `flip`, at `ts[level]`."""


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
        steps: optimiser steps; null: those of `epochs`.
        epochs: length of training where `steps` is null, in epochs of ⌈N / batch⌉ batches of the N normals,
        epoch_batches: but at most so many.
        batch: images per step; the encoder sees 3·K times as many.
        optimizer: `adamw`, or `lars` as in the paper (needs the extra `paper`).
        lr: peak learning rate; warmed up linearly, then lowered along a half cosine.
        warmup: share of the steps that warm up.
        weight_decay: of all weights.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
        dissolved_in_shift: the shift classifier is taught the dissolved rows too, as published.
        simsiam_weight: weight of a SimSiam term between all views, an option of the official code; with its
            predictor 128–32–128, which plays no part in scores.
        t_per: t is drawn anew for each `batch`, each `shift` of it (as published), or each `image`.
        t_sampler: which of the diffusion steps: `uniform`; `beta`, by Beta(`t_beta`) from the least to the
            greatest; or `cycled`, by a Beta that changes with the epoch, see `cycled_beta`.
        t_beta: the two parameters; (1, 1.7) prefers small t, (1.7, 1) large ones.
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
        for name in ("stem", "shift", "optimizer", "precision", "t_per", "t_sampler"):
            chosen(self, name)
        least = {"size": 8, "width": 1, "epochs": 1, "epoch_batches": 1, "batch": 2, "steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            require(value is None or value >= low, f"amplify.{name}", f"must be at least {low}, not {value}")
        for name in ("temperature", "lr"):
            require(getattr(self, name) > 0, f"amplify.{name}", f"must be above 0, not {getattr(self, name)}")
        for name in ("shift_weight", "simsiam_weight", "weight_decay"):
            value = getattr(self, name)
            require(value >= 0, f"amplify.{name}", f"must not be negative, as {value} is")
        require(0 <= self.warmup <= 1, "amplify.warmup", f"must be a share of the steps, not {self.warmup}")
        require(
            len(self.t_beta) == 2 and min(self.t_beta) > 0,
            "amplify.t_beta", f"must be two numbers above 0, not {self.t_beta}",
        )  # fmt: skip

    def batches(self, n: int) -> int:
        """Batches of an epoch over n images, the last one filled up."""
        return min(math.ceil(n / min(self.batch, n)), self.epoch_batches)

    def length(self, n: int) -> int:
        """Optimiser steps on n images."""
        return self.epochs * self.batches(n) if self.steps is None else self.steps

    def stem_of(self, shape: tuple[int, int, int]) -> tuple[int, Stem]:
        """(side in pixels, stem) with which the encoder takes images of `shape` (H, W, C).

        Raises:
            SettingsError: a stem that would leave them a map of 2×2 or less, where another would not.
        """
        side = min(self.size, max(shape[:2]))
        stem: Stem = self.stem if self.stem != "auto" else "imagenet" if side > _IMAGENET else "cifar"
        require(
            stem != "imagenet" or side > _IMAGENET,
            "amplify.stem",
            f"imagenet leaves a 2×2 map of images of {side} px; take cifar, or images above {_IMAGENET} px "
            "(--size, amplify.size)",
        )
        return side, stem

    def check_installed(self) -> None:
        """Complains before any training where a library of these settings is absent."""
        if self.optimizer == "lars" and find_spec("timm") is None:
            raise DataError("amplify.optimizer lars needs timm: pip install 'dia-anomaly[paper]'")


def encoder_input(
    images: np.ndarray, settings: AmplifySettings, device: torch.device | str = "cpu"
) -> Tensor:
    """`(N, H, W, C)` uint8 to square `(N, C, S, S)` float32 in [0, 1], S = min(size, longer side)."""
    return as_input(torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2), settings)


def as_input(x: Tensor, settings: AmplifySettings) -> Tensor:
    """The same of a tensor `(N, C, H, W)` uint8."""
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    side = min(settings.size, max(x.shape[-2:]))
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
    return x


def trained_on(n: int, settings: AmplifySettings, seed: int) -> np.ndarray:
    """Which of n images training will ever look at: fewer than all where it is shorter than an epoch."""
    return used_indices(n, settings.batch, seed, settings.length(n), settings.batches(n))


def build_encoder(shape: tuple[int, int, int], settings: AmplifySettings) -> Encoder:
    """The untrained encoder for images of `shape` (H, W, C); raises as `AmplifySettings.stem_of`."""
    side, stem = settings.stem_of(shape)
    channels = 3 if settings.rgb else shape[2]
    return Encoder(channels, SHIFTS[settings.shift][0], settings.width, stem, side)


def learn(
    images: np.ndarray,
    dissolved: Dissolved | None,
    settings: AmplifySettings,
    *,
    seed: int = 0,
    device: str = "auto",
    workdir: Path,
    resume: bool = False,
    progress: bool = False,
    watchers: Sequence[Callback] = (),
) -> tuple[Encoder, float]:
    """Trains an encoder on normal images `(N, H, W, C)` uint8; CSI where `dissolved` is None.

    `watchers` see the module, whose `encoder` is the network, after each step.

    Returns:
        The encoder in eval mode, and the seconds training took, interrupted runs included.
    """
    start = time.perf_counter()
    module = ContrastiveTraining(images, dissolved, settings, seed)
    train(
        module,
        steps=settings.length(len(images)),
        workdir=workdir,
        resume=resume,
        device=device,
        precision=settings.precision,
        progress=progress,
        watchers=watchers,
    )
    return module.encoder.requires_grad_(False), module.seconds_before + time.perf_counter() - start


def untrained_encoder(shape: tuple[int, int, int], settings: AmplifySettings, seed: int) -> Encoder:
    """The encoder with the weights from which `learn` starts."""
    with torch.random.fork_rng():
        seed_step(seed, 2**32 - 2)
        return build_encoder(shape, settings)


def training_rows(
    images: np.ndarray, dissolved: Dissolved | None, settings: AmplifySettings, *, seed: int = 0
) -> Tensor:
    """What the encoder is shown of a batch in its first step, `(views·K·B, C, S, S)`, ordered as the loss."""
    with torch.random.fork_rng():
        module = ContrastiveTraining(images, dissolved, settings, seed)
        seed_step(seed, 0)
        return module.augmented(np.arange(len(images)))


def draw_levels(
    count: int, shifts: int, batch: int, settings: AmplifySettings, epoch: int, device: Device = None
) -> Tensor:
    """Which of `count` diffusion steps each dissolved view takes: `(shifts, batch)` int64 in [0, count).

    A level is ⌊count·U⌋, so that with the steps 30–99 t = ⌊100·(.3 + .7·U)⌋ as published.
    """
    s = settings
    shape = {"batch": (1, 1), "shift": (shifts, 1), "image": (shifts, batch)}[s.t_per]
    if s.t_sampler == "uniform":
        level = torch.randint(0, count, shape, device=device)
    else:
        a, b = s.t_beta if s.t_sampler == "beta" else cycled_beta(epoch)
        beta = torch.distributions.Beta(torch.tensor(a, device=device), torch.tensor(b, device=device))
        level = (count * beta.sample(shape)).long().clamp(max=count - 1)
    return level.expand(shifts, batch)


def cycled_beta(epoch: int) -> tuple[float, float]:
    """Parameters (α, β) of the official code's option that changes with the epoch, of period 30.

    Beta(20, 2 + 1.2·e) in the epochs e = 0 to 14, from large t towards the middle; then mirrored: epoch
    29 − e takes the mirror image Beta(2 + 1.2·e, 20) of epoch e, and goes on to small t.
    """
    e = epoch % 30
    return (20.0, 2 + 1.2 * e) if e < 15 else (2 + 1.2 * (29 - e), 20.0)


class ContrastiveTraining(Timed):
    """The training itself, of one process's share of each batch: views, loss and optimiser.

    Args:
        images: `(N, H, W, C)` uint8, normal.
        dissolved: where dissolved views come from; None trains CSI.
        settings: of the training.
        seed: of weights, batches and all draws.
    """

    def __init__(self, images: np.ndarray, dissolved: Dissolved | None, settings: AmplifySettings, seed: int):
        super().__init__()
        self.images, self.dissolved, self.s, self.seed = images, dissolved, settings, seed
        self.encoder = untrained_encoder(images.shape[1:], settings, seed)
        self.predictor = _predictor(self.encoder, seed) if settings.simsiam_weight else None
        self.augment = Augment(settings.augment, images.shape[-1])
        self.k, self.shift = SHIFTS[settings.shift]
        self.targets: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    def batch_at(self, step: int) -> np.ndarray:
        """Indices of the images of a step's batch."""
        n = len(self.images)
        return batch_indices(n, self.s.batch, self.seed, step, self.s.batches(n))

    def views(self, index: Any, part: slice = slice(None)) -> Tensor:
        """Rows `(views·K·b, C, S, S)` in [0, 1] in the order of `loss.py`, before augmentation.

        Plain views: x twice, each flipped at random. Dissolved view: for each shift a flip of its own, and a
        t as `draw_levels` says, drawn for the whole batch; `part` is the share of the batch that is made.
        """
        batch, index = len(index), index[part]
        x = self.plain(index)
        flips = torch.rand(2, batch, device=self.device)[:, part] < 0.5
        plain = (torch.where(flip[:, None, None, None], x.flip(-1), x) for flip in flips)
        rows = [self.shift(v, k) for v in plain for k in range(self.k)]
        if self.dissolved is not None:
            flip = torch.rand(self.k, batch, device=self.device)[:, part] < 0.5
            epoch = self.global_step // self.s.batches(len(self.images))
            count = len(self.dissolved.ts)
            level = draw_levels(count, self.k, batch, self.s, epoch, self.device)[:, part]
            rows += [self.shift(self.dissolved_copies(index, flip[k], level[k]), k) for k in range(self.k)]
        return torch.cat(rows)

    def plain(self, index: Any) -> Tensor:
        """Images `index`, `(b, C, S, S)` in [0, 1]."""
        return encoder_input(self.images[index], self.s, self.device)

    def dissolved_copies(self, index: Any, flip: Tensor, level: Tensor) -> Tensor:
        """Their dissolved copies, mirrored where `flip`, each at its level of t. Same shape."""
        assert self.dissolved is not None
        taken = self.dissolved.take(index, flip.cpu().numpy(), level.cpu().numpy())
        return encoder_input(taken, self.s, self.device)

    @torch.no_grad()
    def augmented(self, index: Any) -> Tensor:
        """This process's augmented rows of the batch `index`, `(views·K·b, C, S, S)`.

        Chance is drawn for the whole batch, so that it does not depend on the number of processes.
        """
        part = share(len(index))
        rows = self.views(index, part)
        blocks = len(rows) // (part.stop - part.start)  # views·K
        draws = self.augment.draw(blocks * len(index), rows.device)
        mine = torch.arange(blocks * len(index), device=rows.device).view(blocks, -1)[:, part].flatten()
        return self.augment(rows, draws.rows(mine))

    def loss(self, z: Tensor, logits: Tensor) -> Tensor:
        """Loss of the whole batch from this process's projections and shift logits `(views·K·b, ...)`.

        Every process sums over all anchors; the gradients, added up where projections were gathered and
        averaged by DDP over the processes, are those of one process with the whole batch.
        """
        size = processes()[1]
        n_views = 2 if self.dissolved is None else 3
        local, mine = len(z) // (n_views * self.k), z
        if size > 1:  # (W, views·K·b, D) to (views·K·B, D)
            z = gather(z).view(size, n_views * self.k, local, -1).transpose(0, 1).flatten(0, 2)
        positive, excluded, right = self._targets(local * size, local, n_views, z.device)
        loss = contrastive_loss(z, positive, excluded, self.s.temperature)
        self.terms = {"contrastive": loss.detach()}
        if self.k > 1:
            shift = F.cross_entropy(logits[: len(right)].float(), right)
            loss = loss + self.s.shift_weight * shift
            self.terms["shift"] = shift.detach()
        if self.predictor is not None:
            alike = simsiam_loss(self.predictor(mine), mine, n_views)
            loss = loss + self.s.simsiam_weight * alike
            self.terms["simsiam"] = alike.detach()
        return loss

    def _targets(
        self, batch: int, local: int, views: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`loss.targets` of a batch, and the right shift of this process's rows; kept on the device."""
        key = batch, local, views, device
        if key not in self.targets:
            positive, excluded = targets(batch, self.k, views, self.s.exclude_own)
            taught = views if self.s.dissolved_in_shift else 2
            right = torch.arange(self.k).repeat_interleave(local).repeat(taught)
            self.targets[key] = positive.to(device), excluded.to(device), right.to(device)
        return self.targets[key]

    def training_step(self, batch: int, _: int) -> Tensor:
        """The loss of Lightning's next step."""
        seed_step(self.seed, self.global_step)
        return self.step_loss(self.batch_at(self.global_step))

    def step_loss(self, index: Any) -> Tensor:
        """Loss of the batch `index`, drawn by torch's generators as they stand."""
        _, z, logits = self.encoder(self.augmented(index))
        return self.loss(z, logits)

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule for Lightning."""
        optimizer = make_optimizer(self.parameters(), self.s, self.s.lr)
        sequence = schedule(optimizer, self.s, len(self.images))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": sequence, "interval": "step"}}


def make_optimizer(weights: Iterable[nn.Parameter], s: AmplifySettings, lr: float | Tensor) -> Any:
    """The optimiser of these settings; with a tensor of the device as rate, it can be captured in a graph."""
    if s.optimizer == "lars":
        s.check_installed()
        from timm.optim import Lars

        return Lars(
            weights,
            lr=lr,
            momentum=0.9,
            weight_decay=s.weight_decay,
            trust_coeff=0.001,
            always_adapt=True,
            # with a rate in a tensor timm would take one weight at a time, and wait for the device at each
            **({"foreach": True} if isinstance(lr, Tensor) else {}),
        )
    on_device = isinstance(lr, Tensor) and lr.is_cuda
    return torch.optim.AdamW(weights, lr, weight_decay=s.weight_decay, fused=True, capturable=on_device)


def schedule(optimizer: torch.optim.Optimizer, s: AmplifySettings, n: int) -> Any:
    """The rate over the steps on n images: up linearly from a tenth, then down a half cosine."""
    steps = s.length(n)
    warm = max(round(s.warmup * steps), 1)
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warm, 1)),
        ],
        milestones=[warm],
    )


def learning_rates(s: AmplifySettings, n: int) -> list[float]:
    """The rate of every step on n images."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], s.lr)
    rates, over = [], schedule(optimizer, s, n)
    for _ in range(s.length(n)):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        over.step()
    return rates


def _predictor(encoder: Encoder, seed: int) -> nn.Module:
    """SimSiam's predictor, a bottleneck of a quarter of the projection."""
    last = encoder.project[-1]
    assert isinstance(last, nn.Linear)
    width = last.out_features
    with torch.random.fork_rng():
        seed_step(seed, 2**32 - 3)
        return nn.Sequential(
            nn.Linear(width, width // 4, bias=False),
            nn.BatchNorm1d(width // 4),
            nn.ReLU(),
            nn.Linear(width // 4, width),
        )
