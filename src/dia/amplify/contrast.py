"""Contrastive training of the encoder against dissolved copies: the views, the loss and the optimiser.

Knows encoder, augmentation and loss, and takes dissolved copies from a bank; knows no score and no label.
Source: "Dissolving Is Amplifying", ECCV 2024; without dissolved views it is CSI, NeurIPS 2020.
Deviation: the last batch of an epoch is filled up, so that all have one size.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.processes import gather, processes, share
from ..core.training import Timed, batch_indices, seed_step
from .augment import Augment
from .encoder import Encoder
from .inputs import encoder_input, untrained_encoder
from .levels import draw_levels
from .loss import contrastive_loss, simsiam_loss, targets
from .optimise import make_optimizer, schedule
from .settings import AmplifySettings
from .shifts import SHIFTS


class Dissolved(Protocol):
    """A source of dissolved copies: a bank, or live dissolving."""

    ts: tuple[int, ...]

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Returns dissolved copies `(B, H, W, C)` uint8.

        Args:
            index: `(B,)` int, which images.
            flip: `(B,)` bool, where an image is mirrored first.
            level: `(B,)` int, the place of each image's t in `ts`.
        """


class ContrastiveTraining(Timed):
    """The training of one process's share of each batch: views, loss and optimiser.

    Args:
        images: `(N, H, W, C)` uint8, normal.
        dissolved: the source of dissolved copies; None trains CSI.
        settings: of the training.
        seed: decides the weights, batches and all draws.
    """

    positive: Tensor
    excluded: Tensor
    right: Tensor

    def __init__(self, images: np.ndarray, dissolved: Dissolved | None, settings: AmplifySettings, seed: int):
        super().__init__()
        self.images, self.dissolved, self.s, self.seed = images, dissolved, settings, seed
        self.encoder = untrained_encoder(images.shape[1:], settings, seed)
        self.predictor = _predictor(self.encoder, seed) if settings.simsiam_weight else None
        self.augment = Augment(settings.augment, images.shape[-1])
        self.k, self.shift = SHIFTS[settings.shift]
        self.n_views = 2 if dissolved is None else 3
        # kept as buffers, so that they follow the module to its device
        batch = min(settings.batch, len(images))
        positive, excluded = targets(batch, self.k, self.n_views, settings.exclude_own)
        local, taught = batch // processes()[1], self.n_views if settings.dissolved_in_shift else 2
        right = torch.arange(self.k).repeat_interleave(local).repeat(taught)  # shift of this process's rows
        for name, values in (("positive", positive), ("excluded", excluded), ("right", right)):
            self.register_buffer(name, values, persistent=False)

    def batch_at(self, step: int) -> np.ndarray:
        """Returns the indices of the images of a step's batch."""
        n = len(self.images)
        return batch_indices(n, self.s.batch, self.seed, step, self.s.batches(n))

    def views(self, index: Any, part: slice = slice(None)) -> Tensor:
        """Makes the rows of a batch before augmentation, in the order of `loss.py`.

        Plain views are x twice, each flipped at random. The dissolved view has a flip of its own for each
        shift, and t from `draw_levels`. All draws are made for the whole batch.

        Args:
            index: `(B,)`, the images of the batch.
            part: the share of the batch, b images, that is made.

        Returns:
            `(views·K·b, C, S, S)` in [0, 1].
        """
        batch, index = len(index), index[part]
        x = self.plain(index)
        flips = torch.rand(2, batch, device=self.device)[:, part] < 0.5
        plain = (torch.where(flip[:, None, None, None], x.flip(-1), x) for flip in flips)
        rows = [self.shift(v, k) for v in plain for k in range(self.k)]
        if self.dissolved is not None:
            flip = torch.rand(self.k, batch, device=self.device)[:, part] < 0.5
            epoch, count = self.global_step // self.s.batches(len(self.images)), len(self.dissolved.ts)
            level = draw_levels(count, self.k, batch, self.s, epoch, self.device)[:, part]
            rows += [self.shift(self.dissolved_copies(index, flip[k], level[k]), k) for k in range(self.k)]
        return torch.cat(rows)

    def plain(self, index: Any) -> Tensor:
        """Returns the images `index`, `(b, C, S, S)` in [0, 1]."""
        return encoder_input(self.images[index], self.s, self.device)

    def dissolved_copies(self, index: Any, flip: Tensor, level: Tensor) -> Tensor:
        """Returns dissolved copies, `(b, C, S, S)` in [0, 1].

        Args:
            index: `(b,)`, which images.
            flip: `(b,)` bool, where an image is mirrored first.
            level: `(b,)` int, the place of each image's t in the grid.
        """
        assert self.dissolved is not None
        taken = self.dissolved.take(index, flip.cpu().numpy(), level.cpu().numpy())
        return encoder_input(taken, self.s, self.device)

    @torch.no_grad()
    def augmented(self, index: Any) -> Tensor:
        """Returns this process's augmented rows of the batch `index`, `(views·K·b, C, S, S)`.

        All draws are made for the whole batch, so that they do not depend on the number of processes.
        """
        part = share(len(index))
        rows = self.views(index, part)
        blocks = self.n_views * self.k
        draws = self.augment.draw(blocks * len(index), rows.device)
        mine = torch.arange(blocks * len(index), device=rows.device).view(blocks, -1)[:, part].flatten()
        return self.augment(rows, draws.rows(mine))

    def loss(self, z: Tensor, logits: Tensor) -> Tensor:
        """Computes the loss of the whole batch from this process's rows.

        Every process sums over all anchors; the gradients, added up where projections were gathered and
        averaged by DDP over the processes, are those of one process with the whole batch.

        Args:
            z: projections `(views·K·b, D)`.
            logits: shift logits `(views·K·b, K)`.

        Returns:
            A scalar.
        """
        size, blocks = processes()[1], self.n_views * self.k
        mine = z
        if size > 1:  # (W, views·K·b, D) to (views·K·B, D)
            z = gather(z).view(size, blocks, len(z) // blocks, -1).transpose(0, 1).flatten(0, 2)
        loss = contrastive_loss(z, self.positive, self.excluded, self.s.temperature)
        self.terms = {"contrastive": loss.detach()}
        if self.k > 1:
            shift = F.cross_entropy(logits[: len(self.right)].float(), self.right)
            loss = loss + self.s.shift_weight * shift
            self.terms["shift"] = shift.detach()
        if self.predictor is not None:
            alike = simsiam_loss(self.predictor(mine), mine, self.n_views)
            loss = loss + self.s.simsiam_weight * alike
            self.terms["simsiam"] = alike.detach()
        return loss

    def training_step(self, batch: int, _: int) -> Tensor:
        """Returns the loss of Lightning's next step.

        Args:
            batch: is not used; the batch follows from the step.
            _: is not used.
        """
        seed_step(self.seed, self.global_step)
        return self.step_loss(self.batch_at(self.global_step))

    def step_loss(self, index: Any) -> Tensor:
        """Returns the loss of the batch `index`, drawn by torch's generators as they stand."""
        _, z, logits = self.encoder(self.augmented(index))
        return self.loss(z, logits)

    def configure_optimizers(self) -> Any:
        """Returns optimiser and schedule for Lightning."""
        optimizer = make_optimizer(self.parameters(), self.s, self.s.lr)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(self.s, len(self.images)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def _predictor(encoder: Encoder, seed: int) -> nn.Module:
    """Builds SimSiam's predictor, a bottleneck of a quarter of the projection."""
    width: Any = encoder.project[-1].out_features
    with torch.random.fork_rng():
        seed_step(seed, 2**32 - 3)
        narrow = nn.Linear(width, width // 4, bias=False), nn.BatchNorm1d(width // 4), nn.ReLU()
        return nn.Sequential(*narrow, nn.Linear(width // 4, width))
