"""Contrastive training of the encoder against dissolved copies: batches, loss, optimiser, one fit function.

Knows encoder, augmentation, loss and bank; knows nothing of scores or labels.
Source: "Dissolving Is Amplifying", ECCV 2024; without dissolved views it is CSI, NeurIPS 2020.
Deviation: the last batch of an epoch is filled up, so that all have one size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ..core.processes import gather, processes, share
from ..core.training import Timed, batch_indices, seed_step, train, used_indices
from .augment import Augment, Device
from .encoder import Encoder
from .inputs import encoder_input, untrained_encoder
from .loss import contrastive_loss, simsiam_loss, targets
from .optimise import make_optimizer, schedule
from .settings import AmplifySettings
from .shifts import SHIFTS


class Dissolved(Protocol):
    """Where dissolved views come from: a bank or live dissolving."""

    ts: tuple[int, ...]

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Dissolved copies `(B, H, W, C)` uint8 of images `index`, mirrored where `flip`, at `ts[level]`."""


def trained_on(n: int, settings: AmplifySettings, seed: int) -> np.ndarray:
    """Which of n images training will ever look at: fewer than all where it is shorter than an epoch."""
    return used_indices(n, settings.batch, seed, settings.length(n), settings.batches(n))


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
