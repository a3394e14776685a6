"""Runs a training for a number of steps with Lightning: checkpoints, resume, precision, processes, progress.

Knows no model. Lightning takes seconds to import, so this file is imported where a training begins.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from ..errors import TrainingError, first_line
from ..processes import barrier, bf16_is_fast, choose_device, is_main, processes
from ..settings import flat
from ..tracking import EVERY, logging_curves, stage_logger
from ..training import CHECKPOINT, Precision, Timed, not_finite
from . import stopping
from .progress import Bar
from .taps import written_gradients
from .threads import adapt


class _Training(L.LightningModule):
    """Lightning's side of a training: its checkpoints hold the module's state under the module's names."""

    def __init__(self, module: Timed):
        super().__init__()
        self.module = module

    @property
    def terms(self) -> dict[str, torch.Tensor]:
        return self.module.terms

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.module.global_step = self.global_step
        return self.module.training_step(batch, index)

    def configure_optimizers(self) -> Any:
        return self.module.configure_optimizers()

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        if self.module.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.module.clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.module.after_step()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.module.on_load_checkpoint(checkpoint)


class Shown(Callback):
    """Before each step takes as many threads as there are free cores, and moves the bar.

    Args:
        bar: its total is that of the trainer where it has none.
    """

    def __init__(self, bar: Bar):
        self.bar = bar

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        """Runs before each batch.

        Args:
            trainer: of Lightning, like the others.
            module: that is trained.
            batch: of the loader.
            batch_idx: its number in the epoch.
        """
        adapt()
        self.bar.update(trainer.fit_loop.total_batch_idx + 1, self.bar.total or _steps_of(trainer))


def _steps_of(trainer: L.Trainer) -> int | None:
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
    return int(batches * epochs) if epochs > 0 and batches != float("inf") else None


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C end a training as it ends all else; Lightning makes it exit status 1."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


class _Leaves(Callback):
    """Leaves a checkpoint where the process was asked to stop, and ends the training there.

    Args:
        checkpoint: the file.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if stopping.wanted():
            trainer.save_checkpoint(self.checkpoint)
            stopping.check()


class _StopOnNonFinite(Callback):
    """Stops before the weights are changed."""

    def on_before_backward(self, trainer, module, loss) -> None:  # type: ignore[no-untyped-def]
        if not torch.isfinite(loss):
            step, own = trainer.global_step, module.module
            raise not_finite(loss.item(), step, own.batch_at(step), len(own.images))


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
        Stopped: the process was asked to stop; the checkpoint is of the last step.
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
    stage = workdir.name.rpartition("-")[0] or workdir.name
    bar = Bar(f"Training the {stage}", steps, "step", shown=progress and is_main())
    callbacks = [Shown(bar), _StopOnNonFinite(), saved, _Leaves(checkpoint)]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        if is_main():
            callbacks += curves(stage, module.s, module.seed)
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
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader: Any = DataLoader(range(steps), batch_size=None)  # type: ignore[arg-type]
        going_on = checkpoint if checkpoint.exists() else None
        taps = written_gradients(module) if low and where.type == "cpu" else nullcontext()
        with bar, interruptible(), taps:
            trainer.fit(_Training(module), loader, ckpt_path=going_on, weights_only=True)
    module.to(where).eval()
    if bad := [n for n, p in module.named_parameters() if not torch.isfinite(p).all()]:
        raise TrainingError(f"{bad[0]} became NaN or infinite in the last step; lower the learning rate")


def curves(stage: str, settings: Any, seed: int) -> list[Callback]:
    """Makes the callbacks with which a `Trainer` logs a stage.

    Args:
        stage: its name, as "encoder".
        settings: the settings of the stage, logged with it.
        seed: logged with it.

    Returns:
        One callback; none where `tracking` is off.
    """
    if not logging_curves():
        return []
    own = flat(settings) if is_dataclass(settings) else {}
    return [_Curves(stage, {"stage": stage, "seed": seed, **own})]


class _Curves(Callback):
    """Logs a stage; a logger that fails is given up with one line, and the training goes on."""

    def __init__(self, stage: str, facts: dict[str, Any]):
        self.logger: Logger | None = None
        self.stage, self.rate = stage, float("nan")
        with self._tried():
            self.logger, about = stage_logger(stage) or (None, {})
            plain = (bool, int, float, str, type(None))
            known = {k: v if isinstance(v, plain) else str(v) for k, v in {**about, **facts}.items()}
            if self.logger:
                self.logger.log_hyperparams(known)

    @contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.logger = None
            said = f"the curves of the {self.stage} are logged no more ({first_line(error)[:300]})"
            with warnings.catch_warnings():  # around a training they are off
                warnings.simplefilter("always")
                warnings.warn(f"{said}; the training goes on", stacklevel=2)

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:  # type: ignore[no-untyped-def]
        self.rate = optimizer.param_groups[0]["lr"]  # before the schedule moves on

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        step = trainer.fit_loop.total_batch_idx + 1  # batches; `global_step` counts each optimiser's
        if step % EVERY and step not in (1, trainer.max_steps):
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        # anomalib's modules log for themselves
        values = {**trainer.callback_metrics, "loss": loss, "learning_rate": self.rate}
        values |= {f"loss_{k}": v for k, v in getattr(module, "terms", {}).items()}
        known = {k: float(v) for k, v in values.items() if isinstance(v, float | torch.Tensor)}
        with self._tried():
            if self.logger:
                self.logger.log_metrics(known, step)

    def _end(self, status: str) -> None:
        with self._tried():
            if self.logger:
                self.logger.finalize(status)

    def teardown(self, trainer, module, stage) -> None:  # type: ignore[no-untyped-def]
        self._end("success")

    def on_exception(self, trainer, module, exception) -> None:  # type: ignore[no-untyped-def]
        self._end("failed")
