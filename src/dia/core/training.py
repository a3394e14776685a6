"""Runs a Lightning module for a number of steps: checkpoints, resume, precision, processes. Knows no model.

The modules it runs draw every batch and every random number from (seed, step) alone, through
`batch_indices` and `seed_step`, so a run killed at any moment and resumed ends with the same weights.

Several processes (`torchrun ... dia fit ...`) share each batch: all draw the whole of it, and each works on
its `share`. So the settings mean the same whatever the number of processes.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from .errors import TrainingError
from .processes import barrier, bf16_is_fast, choose_device, is_main, processes
from .tracking import curves

CHECKPOINT = "last.ckpt"
Precision = Literal["auto", "32", "bf16"]


class _StopOnNonFinite(Callback):
    """Stops before the weights are changed."""

    def on_before_backward(self, trainer, module, loss) -> None:  # type: ignore[no-untyped-def]
        if not torch.isfinite(loss):
            step = trainer.global_step
            raise not_finite(loss.item(), step, module.batch_at(step), len(module.images))


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


class Timed(L.LightningModule):
    """A module whose checkpoints hold how long it was trained before an interruption.

    Attributes:
        seconds_before: seconds of training in the runs before this one.
        terms: the terms of the last loss, detached, by name, where it has several.
    """

    s: Any  # settings
    seed: int
    images: np.ndarray

    def batch_at(self, step: int) -> np.ndarray:
        """Returns the indices of the images in a step's batch."""
        return batch_indices(len(self.images), self.s.batch, self.seed, step)

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, torch.Tensor] = {}
        self.started, self.seconds_before = time.perf_counter(), 0.0

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


def train(
    module: Timed,
    *,
    steps: int,
    workdir: Path,
    resume: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = False,
    checkpoint_every: int = 100,
) -> None:
    """Trains `module` for `steps` optimiser steps, with a checkpoint in `workdir` every so many.

    Args:
        module: its `training_step` makes its own batch from `self.global_step`.
        steps: optimiser steps in all, those before an interruption included.
        workdir: holds `last.ckpt` while training; a finished run leaves it there. Curves are logged under
            its name, up to the hash.
        resume: continue from that checkpoint if there is one; otherwise it is ignored and overwritten.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it, else 32.
        progress: show a bar.
        checkpoint_every: steps between checkpoints.

    Raises:
        TrainingError: the loss is NaN or infinite; names the step, and holds the batch.
    """
    where, (_, size) = choose_device(device), processes()
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = workdir / CHECKPOINT
    if not resume and is_main():
        checkpoint.unlink(missing_ok=True)
    barrier()
    low = precision == "bf16" or (precision == "auto" and bf16_is_fast(where))
    devices: int | list[int] = [where.index or 0] if where.type == "cuda" else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    saved = ModelCheckpoint(
        workdir, filename=checkpoint.stem, every_n_train_steps=checkpoint_every,
        save_on_train_epoch_end=False, enable_version_counter=False,
    )  # fmt: skip
    callbacks = [_StopOnNonFinite(), saved]
    if progress and is_main():
        callbacks.append(RichProgressBar(leave=True))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        if is_main():
            callbacks += curves(workdir.name.rpartition("-")[0] or workdir.name, module.s, module.seed)
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="gpu" if where.type == "cuda" else "cpu",
            devices=devices if size == 1 else local,
            num_nodes=size // local,
            # with one shift, the shift head has no gradient
            strategy="auto" if size == 1 else "ddp_find_unused_parameters_true",
            sync_batchnorm=size > 1 and where.type == "cuda",  # torch has it for accelerators only
            use_distributed_sampler=False,  # the loader only counts steps
            precision="bf16-mixed" if low else "32-true",
            callbacks=callbacks, default_root_dir=workdir, logger=False,
            enable_progress_bar=progress and is_main(), enable_model_summary=False,
        )  # fmt: skip
        loader: Any = DataLoader(range(steps), batch_size=None)  # type: ignore[arg-type]
        going_on = checkpoint if checkpoint.exists() else None
        trainer.fit(module, loader, ckpt_path=going_on, weights_only=True)
    module.to(where).eval()
