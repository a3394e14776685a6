"""Where curves of training go: CSV files, TensorBoard or MLflow, by Lightning's own loggers. Knows no model.

`with tracking("tensorboard", "logs"): detector.fit(images)` logs each stage of that fit as a run of its own:
its settings, and every so many steps the loss, its terms and the learning rate. Nothing is drawn at random
and the training does not change; several may log into one folder at once. No image, name or path of the data
is logged, and nothing is sent except to the server that MLFLOW_TRACKING_URI names, if it is set. MLflow
itself adds the names of user and program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .storage import locked

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

LOGGERS = ("none", "csv", "tensorboard", "mlflow")
EVERY = 10  # steps; the first and the last are logged too
EXPERIMENT = "dia"  # in MLflow

_make: ContextVar[Callable[[str], Logger] | None] = ContextVar("make", default=None)
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never written to)


def logging_curves() -> bool:
    """Returns whether trainings are being logged."""
    return _make.get() is not None


def stage_logger(stage: str) -> tuple[Logger, Mapping[str, Any]] | None:
    """Returns the logger of a stage, and what is logged with its settings; None where `tracking` is off."""
    make = _make.get()
    return None if make is None else (make(stage), _about.get())


def check_logger(logger: str) -> None:
    """Checks, before anything is trained, that a logger is known and installed.

    Raises:
        DataError: it is not; the message says the remedy.
    """
    if logger not in LOGGERS:
        raise DataError(f"logger {logger} is not known; there are: {', '.join(LOGGERS)}")
    if logger in ("tensorboard", "mlflow") and find_spec(logger) is None:
        raise DataError(f"logger {logger} needs {logger}: pip install 'dia-anomaly[tracking]'")


def _new_version(folder: Path) -> str:
    """Makes the next folder `version_N`, which no other process has."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(p.name[8:]) for p in folder.glob("version_*") if p.name[8:].isdecimal()]
    for number in count(max(numbers, default=-1) + 1):
        with suppress(FileExistsError):  # another was faster
            (folder / f"version_{number}").mkdir()
            return f"version_{number}"
    raise AssertionError("there is always a next number")


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
        from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

        if logger == "csv":
            version = _new_version(folder / stage)
            # of the steps that are logged, each is written at once: a fit that is killed keeps its curve
            return CSVLogger(folder, name=stage, version=version, flush_logs_every_n_steps=1)
        if logger == "tensorboard":
            version = _new_version(folder / stage)
            return TensorBoardLogger(folder, name=stage, version=version, default_hp_metric=False)
        # no telemetry; and a folder is all that MLflow's small package can write without a server. A server
        # that does not answer is asked for seconds, where MLflow would ask for minutes
        own = dict.fromkeys(("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_ALLOW_FILE_STORE"), "true")
        own |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
        for name, value in own.items():
            os.environ.setdefault(name, value)
        named = f"{run}/{stage}" if run else stage
        if there := os.environ.get("MLFLOW_TRACKING_URI"):
            return MLFlowLogger(EXPERIMENT, named, there)
        made = MLFlowLogger(EXPERIMENT, named, folder.resolve().as_uri())
        with locked(folder.with_name(f".{folder.name}.mlflow.lock")):
            made.experiment  # noqa: B018 - makes the store's folders, which no two processes may do at once
        return made

    tokens = _make.set(None if logger == "none" else make), _about.set(about or {})
    try:
        yield
    finally:
        _make.reset(tokens[0])
        _about.reset(tokens[1])
