"""Runs a Lightning module for a number of steps: checkpoints, resume, precision, progress. Knows no model.

The modules it runs draw every batch and every random number from (seed, step) alone, through
`batch_indices` and `seed_step`, so a run killed at any moment and resumed ends with the same weights.
"""

from __future__ import annotations

import logging
import warnings
from functools import lru_cache
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

CHECKPOINT = "last.ckpt"


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer finite. Names the step."""


class _StopOnNonFinite(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {trainer.global_step}; lower the learning rate "
                f"and run again (the last good checkpoint is kept)"
            )


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def seed_step(seed: int, step: int) -> None:
    """Sets torch's generators for one step, whatever came before."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))


def batch_indices(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Indices of the batch at `step`: a seeded permutation per epoch, the incomplete last batch dropped."""
    batch = min(batch, n)
    epoch, place = divmod(step, n // batch)
    return _permutation(n, seed, epoch)[place * batch : (place + 1) * batch]


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def train(
    module: L.LightningModule,
    *,
    steps: int,
    workdir: Path,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
    checkpoint_every: int = 100,
) -> None:
    """Trains `module` for `steps` optimiser steps, with a checkpoint in `workdir` every so many.

    Args:
        module: its `training_step` makes its own batch from `self.global_step`.
        workdir: holds `last.ckpt` while training; a finished run leaves it there.
        resume: go on from that checkpoint if there is one; otherwise it is ignored and overwritten.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; bf16 mixed precision on CUDA.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    where = choose_device(device)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = workdir / CHECKPOINT
    if not resume:
        checkpoint.unlink(missing_ok=True)
    callbacks: list[Callback] = [
        _StopOnNonFinite(),
        ModelCheckpoint(
            workdir,
            filename=checkpoint.stem,
            every_n_train_steps=checkpoint_every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
    ]
    if progress:
        callbacks.append(RichProgressBar(leave=True))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="gpu" if where.type == "cuda" else "cpu",
            devices=[where.index or 0] if where.type == "cuda" else 1,
            precision="bf16-mixed" if where.type == "cuda" else "32-true",
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            default_root_dir=workdir,
        )
        trainer.fit(
            module,
            DataLoader(range(steps), batch_size=None),  # type: ignore[arg-type]
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,
        )
    module.to(where).eval()
