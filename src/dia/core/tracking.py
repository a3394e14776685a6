"""Curves of training into CSV files, TensorBoard or MLflow, by Lightning's own loggers. Knows no model.

`with tracking("tensorboard", "logs"): detector.fit(images)` logs each stage of that fit as a run of its own:
its settings, and every so many steps the loss, its terms and the learning rate. Nothing is drawn at random
and the training does not change. No image, name or path of the data is logged, and nothing is sent except to
the server that MLFLOW_TRACKING_URI names, if it is set. MLflow itself adds the names of user and program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from .errors import DataError
from .settings import flat

LOGGERS = ("none", "csv", "tensorboard", "mlflow")
EVERY = 10  # steps; the first and the last are logged too
EXPERIMENT = "dia"  # in MLflow

_make: ContextVar[Callable[[str], Logger] | None] = ContextVar("make", default=None)
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never written to)


def logging_curves() -> bool:
    """Returns whether trainings are being logged."""
    return _make.get() is not None


def check_logger(logger: str) -> None:
    """Checks, before anything is trained, that a logger is known and installed.

    Raises:
        DataError: it is not; the message says the remedy.
    """
    if logger not in LOGGERS:
        raise DataError(f"logger {logger} is not known; there are: {', '.join(LOGGERS)}")
    if logger in ("tensorboard", "mlflow") and find_spec(logger) is None:
        raise DataError(f"logger {logger} needs {logger}: pip install 'dia-anomaly[tracking]'")


@contextmanager
def tracking(
    logger: str, folder: Path | str, *, run: str = "", about: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Logs every training within.

    Args:
        logger: `none`, `csv`, `tensorboard` or `mlflow`.
        folder: holds `STAGE/version_N`, one for each stage of each fit; with `mlflow` a store of its own,
            unless the environment names another in MLFLOW_TRACKING_URI.
        run: with `mlflow` runs are named `RUN/STAGE`.
        about: logged with the settings of each stage.

    Raises:
        DataError: the logger is not known or not installed.
    """
    check_logger(logger)
    folder = Path(folder)

    def make(stage: str) -> Logger:
        if logger == "csv":
            return CSVLogger(folder, name=stage, flush_logs_every_n_steps=EVERY)
        if logger == "tensorboard":
            return TensorBoardLogger(folder, name=stage, default_hp_metric=False)
        # no telemetry; and a folder is all that MLflow's small package can write without a server
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_ALLOW_FILE_STORE"):
            os.environ.setdefault(name, "true")
        store = os.environ.get("MLFLOW_TRACKING_URI") or folder.resolve().as_uri()
        return MLFlowLogger(EXPERIMENT, f"{run}/{stage}" if run else stage, store)

    tokens = _make.set(None if logger == "none" else make), _about.set(about or {})
    try:
        yield
    finally:
        _make.reset(tokens[0])
        _about.reset(tokens[1])


def curves(stage: str, settings: Any, seed: int) -> list[Callback]:
    """Makes the callbacks with which a `Trainer` logs a stage.

    Args:
        stage: its name, as "encoder".
        settings: the settings of the stage, logged with it.
        seed: logged with it.

    Returns:
        One callback; none where `tracking` is off.
    """
    make = _make.get()
    if make is None:
        return []
    own = flat(settings) if is_dataclass(settings) else {}
    return [_Curves(make(stage), {**_about.get(), "stage": stage, "seed": seed, **own})]


class _Curves(Callback):
    def __init__(self, logger: Logger, facts: dict[str, Any]):
        self.logger, self.rate = logger, float("nan")
        plain = (bool, int, float, str, type(None))
        logger.log_hyperparams({k: v if isinstance(v, plain) else str(v) for k, v in facts.items()})

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
        self.logger.log_metrics(known, step)

    def teardown(self, trainer, module, stage) -> None:  # type: ignore[no-untyped-def]
        self.logger.finalize("success")

    def on_exception(self, trainer, module, exception) -> None:  # type: ignore[no-untyped-def]
        self.logger.finalize("failed")
