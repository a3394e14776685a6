"""What a training is: a module whose every step is decided by (seed, step) alone. Knows no model.

The modules draw every batch and every random number from (seed, step) alone, through
`batch_indices` and `seed_step`, so a run killed at any moment and resumed ends with the same weights.

Several processes (`torchrun ... dia fit ...`) share each batch: all draw the whole of it, and each works on
its `share`. So the settings mean the same whatever the number of processes. `running/loop.py` runs the steps:
this file imports no Lightning, which takes seconds, as scoring needs none.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from .errors import TrainingError

CHECKPOINT = "last.ckpt"
Precision = Literal["auto", "32", "bf16"]


def not_finite(loss: float, step: int, index: np.ndarray, n: int) -> TrainingError:
    """Makes the error of a loss that is not finite.

    Args:
        loss: NaN or infinite.
        step: of the training, from 0.
        index: indices of the images in the batch.
        n: the number of training images.

    Returns:
        The error, to be raised.
    """
    return TrainingError(
        f"the loss became {loss} at step {step} (the last good checkpoint is kept); lower the learning rate, "
        "or look at the images of this batch", index.tolist(), n,
    )  # fmt: skip


class Timed(torch.nn.Module):
    """A module that `loop.train` trains, whose checkpoints hold how long it was trained before.

    Its `training_step(batch, index)` returns the loss of the batch that follows from `global_step`, and its
    `configure_optimizers` what Lightning takes.

    Attributes:
        global_step: the step that comes next, from 0.
        seconds_before: seconds of training in the runs before this one.
        terms: the terms of the last loss, detached, by name, where it has several.
    """

    s: Any  # settings
    seed: int
    images: np.ndarray
    clip: float | None = None  # the greatest norm of all gradients together
    global_step: int = 0

    def batch_at(self, step: int) -> np.ndarray:
        """Returns the indices of the images in a step's batch."""
        return batch_indices(len(self.images), self.s.batch, self.seed, step)

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, torch.Tensor] = {}
        self.started, self.seconds_before = time.perf_counter(), 0.0

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU where there are none."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Returns the loss of the batch of `global_step`.

        Args:
            batch: what Lightning's loader gives, which is not used.
            index: likewise.
        """
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Returns the optimiser, and where there is one the schedule, as Lightning takes them."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Runs after each step of the optimiser, before a checkpoint of that step is written."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the seconds so far."""
        checkpoint["seconds"] = self.seconds_before + time.perf_counter() - self.started

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads the seconds before the interruption."""
        self.seconds_before = checkpoint["seconds"]


def seed_step(seed: int, step: int) -> None:
    """Seeds torch's generators for one step, independent of the steps before.

    Args:
        seed: of the training.
        step: from 0.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))


def batch_indices(n: int, batch: int, seed: int, step: int, per_epoch: int | None = None) -> np.ndarray:
    """Draws the batch at `step` from a seeded permutation of the images for each epoch.

    Args:
        n: number of images.
        batch: images in a batch; n where that is less.
        seed: of the permutations.
        step: from 0.
        per_epoch: batches of an epoch; by default as many as are full. Where they are more, the last is
            filled up with the first images of the epoch.

    Returns:
        `(batch,)` indices.
    """
    batch = min(batch, n)
    epoch, place = divmod(step, per_epoch or n // batch)
    return np.take(_permutation(n, seed, epoch), range(place * batch, (place + 1) * batch), mode="wrap")


def used_indices(n: int, batch: int, seed: int, steps: int, per_epoch: int | None = None) -> np.ndarray:
    """Returns the images that any of the first batches holds.

    Args:
        n: number of images.
        batch: as for `batch_indices`, like the others.
        seed: of the permutations.
        steps: number of batches.
        per_epoch: batches of an epoch.

    Returns:
        Ascending indices; all n where at most a few are left out.
    """
    per_epoch = per_epoch or n // min(batch, n)
    if steps >= 2 * per_epoch and per_epoch >= n // min(batch, n):
        return np.arange(n)  # each epoch may have dropped a few
    return np.unique(np.concatenate([batch_indices(n, batch, seed, i, per_epoch) for i in range(steps)]))


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
