"""The options that several commands share, each written once, and the console.

A dataclass here is a group of arguments; `help.py` makes flags of its fields. The groups also do what their
options mean: `Images` reads images, `Model` loads a model, `Output` prints facts. This file imports torch
nowhere, as scoring with an exported file needs none.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jsonargparse.typing import register_type
from rich.console import Console

from ..core.errors import DataError
from ..core.running.progress import Bar, begun, console, log
from ..data.formats.windowing import AXES
from ..data.formats.windowing import PRESETS as WINDOWS
from ..data.options import ReadOptions

if TYPE_CHECKING:
    from ..data.imageset import ImageSet
    from ..data.readers import Listing
    from ..deploy.onnx_model import OnnxModel
    from ..detectors import Detector
    from ..evaluate.unseen import Unseen

__all__ = ["AXES", "WINDOWS"]  # named in docstrings

Preset = Literal["cpu", "gpu", "paper"]  # as `detectors.presets.PRESETS`, which takes torch

err = console
_said = logging.getLogger("dia.said")  # what was printed too


class _Out(Console):
    """Stdout, which is not printed on while something is under way; in a pipe no line is cut."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        begun()
        super().print(*args, **kwargs)


out = _Out(width=None if sys.stdout.isatty() else 1000, emoji=False)  # `:b:` may stand in a name


_LOGS = (".log", ".txt")  # endings of files that a log may be added to


class Share(float):
    """A share of more than 0 and less than 1, written as 0.05 or 5%."""

    @classmethod
    def of(cls, value: object) -> Share:
        """Reads a share.

        Raises:
            ValueError: it is none.
        """
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = float("nan")
        if not 0 < number < 1:
            raise ValueError(f"must be a share above 0 and below 1, as 0.05 or 5%, not {text[:50]}")
        return cls(number)


register_type(Share, serializer=float, deserializer=Share.of)


class _OnStderr(logging.Handler):
    """Lines of the log between bars; what was printed already is left out."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != _said.name:
            err.print(record.getMessage(), style="dim", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def speaking(*, quiet: bool, verbose: bool, log_file: str | None) -> Iterator[None]:
    """Says as much as a command's user wants.

    Args:
        quiet: results and errors alone.
        verbose: each part of the work, with its time, also where stderr is no terminal.
        log_file: file to which the same lines are appended, with what is printed on stderr.

    Raises:
        DataError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [_OnStderr()] if verbose and not quiet else []
    if log_file:
        there = Path(log_file)
        if there.suffix.lower() not in _LOGS and there.exists() and there.stat().st_size:
            raise DataError(
                f"--log-file {log_file}: this exists and may be no log; choose a name in .log or .txt"
            )
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            raise DataError(f"--log-file {log_file}: {error.strerror}; choose another file") from error
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = log.level, err.quiet
    for handler in handlers:
        log.addHandler(handler)
    if handlers:
        log.setLevel(logging.INFO)
    err.quiet = err.quiet or quiet
    try:
        yield
    finally:
        begun()
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(before[0])
        err.quiet = before[1]


def remark(line: str, style: str | None = None) -> None:
    """Prints a line on stderr unchanged, whatever its length and characters.

    Args:
        line: the line.
        style: a style of rich, such as a colour.
    """
    begun()
    err.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    _said.info("%s", line)


def failure(line: str) -> None:
    """Prints an error on stderr, also where the user wants quiet."""
    begun()
    quiet, err.quiet = err.quiet, False
    err.print(f"dia: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    err.quiet = quiet
    _said.error("%s", line)


def result(line: str) -> None:
    """Prints a line on stdout unchanged, whatever its length and characters."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def remark_skipped(lines: Sequence[str]) -> None:
    """Prints the names of unreadable files on stderr."""
    for line in lines:
        remark(f"skipped: {line}", "yellow")


def remark_no_threshold(detector: Detector | OnnxModel, share: float) -> None:
    """Says why nothing can be flagged at a false-alarm rate, and what would mend it, where that is so.

    Args:
        detector: fitted.
        share: the false-alarm rate.
    """
    if not np.isfinite(detector.threshold(share)):
        remark(detector.calibration_.too_few_for(share), "yellow")


def finite(x: float) -> float | None:
    """Returns a number for JSON, which holds no infinity: None instead."""
    return float(x) if np.isfinite(x) else None


@dataclass(frozen=True, kw_only=True)
class Output:
    """The form of the output.

    Args:
        json: print one JSON object instead of a table
    """

    json: bool = False

    def show(self, facts: Mapping[str, Any]) -> None:
        """Prints facts by name as a table, or as JSON."""
        begun()
        if self.json:
            return print(json.dumps(facts))
        width = max((len(key) for key in facts), default=0)
        for key, value in facts.items():
            if key == "threshold" and value is None:
                value = "none: nothing is flagged"
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            if isinstance(value, list | tuple) and value and isinstance(value[0], float):
                text = " – ".join(f"{v:.4g}" for v in value)
            # whole lines: a pipe would get cut or padded ones from a table
            result(f" {key.replace('_', ' '):<{width}}  {text}".rstrip())


@dataclass(frozen=True, kw_only=True)
class DataRoot:
    """The folder of the known data sets.

    Args:
        data_root: folder of the sets of `dia data list` (default: $DIA_DATA)
    """

    data_root: str | None = os.environ.get("DIA_DATA")  # read here: workers elsewhere may have another


@dataclass(frozen=True, kw_only=True)
class Reading(DataRoot):
    r"""Images.

    Args:
        normal: class folders or label values that are normal, comma separated; all others are anomalous
        group_by: how names tell the patient, whose images are never on two sides: a regular expression, as
            'person(\d+)', whose first group (or all of it) is the patient's name; or folder, for the
            innermost folder's name (default: the column patient of a manifest, or DICOM's PatientID)
        skip_bad: leave out unreadable files, and list them
        window: black and white of images of more than 8 bits: {WINDOWS} (Hounsfield units), LOW:HIGH,
            CENTER,WIDTH, LOW%:HIGH% (percentiles of the training normals), full (all that a type allows),
            volume (percentiles of each volume) or voi (a DICOM file's own, else as 0.1%:99.9%); default: as
            the model was fitted, or else voi
        axis: the axis of NIfTI slices: {AXES}; default: as the model was fitted, or else axial
        slices: the slices of each volume to read, as 10:-10; default: as the model was fitted, or else all
        channel: of files of several volumes (4-D) read this one alone, counted from 0; default: as the model
            was fitted, or else all of them
    """

    normal: str | None = None
    group_by: str | None = None
    skip_bad: bool = False
    window: str | None = None
    axis: str | None = None
    slices: str | None = None
    channel: int | None = None

    def options(self) -> ReadOptions:
        """Returns the options of reading that these flags stand for."""
        return ReadOptions(
            normal=self.normal, group_by=self.group_by, skip_bad=self.skip_bad, window=self.window,
            axis=self.axis, slices=self.slices, channel=self.channel,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Images(Reading):
    """Images.

    Args:
        data: a folder, .npz, .csv, .xlsx or image, or the name of a set of `dia data list`
        split: train, val, test or all, where the data have splits of their own; else all images are taken
        workers: threads that decode images (default: one for each core)
    """

    data: str
    split: str = "test"
    workers: int | None = None

    def options(self) -> ReadOptions:
        """Returns the options of reading; what is judged is never divided."""
        return replace(super().options(), divide=False)

    def listing(self, facts: Mapping[str, Any] | None = None, **sizes: Any) -> Listing:
        """Lists the images without reading pixels.

        Args:
            facts: as for `read`.
            sizes: as for `read`.

        Returns:
            The listing, whose `read` shows a bar.
        """
        options = replace(self.options(), workers=self.workers, progress=True, **sizes)
        return self._listing(options.as_fitted(facts or {}))

    def read(self, facts: Mapping[str, Any] | None = None, **sizes: Any) -> ImageSet:
        """Reads all images, and prints the names of unreadable files that were left out.

        Args:
            facts: a model's `facts_`, whose window, axis and slices are the defaults.
            sizes: `size`, `max_size` and `channels` of `ReadOptions`.

        Returns:
            The images, uint8.

        Raises:
            DataError: the data cannot be found or read.
        """
        images = self.listing(facts, **sizes).read()
        remark_skipped(images.skipped)
        return images

    def read_for(self, detector: Detector) -> ImageSet:
        """Reads all images as those were read on which a model was fitted."""
        h, w, c = detector.shape_
        return self.read(detector.facts_, size=(h, w), channels=c)

    def listing_for(self, detector: Detector | OnnxModel) -> Listing:
        """Lists the images without reading pixels; they will be read as those of a model's fit."""
        return self._listing(self.options().as_fitted(detector.facts_, detector.shape_))

    def _listing(self, options: ReadOptions) -> Listing:
        """Lists the images, and says what names told of patients."""
        from ..data.datasets import open_listing

        found = open_listing(self.data, self.split, self.data_root, options)
        if found.grouped:
            remark(found.grouped)
        return found


@dataclass(frozen=True, kw_only=True)
class Judged(Images):
    """Images.

    Args:
        keep_seen: judge the images that the model was fitted on too; they are left out otherwise
    """

    keep_seen: bool = False

    def unseen(
        self, detector: Detector, *, keep: bool = False, labelled: bool = False
    ) -> tuple[Unseen, Listing]:
        """Reads the images that a model was not fitted on, and prints the names of the others.

        Args:
            detector: the model.
            keep: keep the others, as `keep_seen` does.
            labelled: whether labels of both classes are needed, which is looked at before pixels are read.

        Returns:
            The images, and the listing that they and the others are from.

        Raises:
            DataError: the data cannot be read, the model was fitted on all of them, or labels are missing.
        """
        from ..evaluate.unseen import unseen

        h, w, c = detector.shape_
        listing = self.listing(detector.facts_, size=(h, w), channels=c)
        y = listing.labels
        if labelled and (y is None or not 0 < y.sum() < len(y)):
            raise DataError(
                f"{self.data}: evaluation needs labels of both classes (normal and anomalous); without "
                "labels use `dia score`, or name the normal class with --normal"
            )
        read = listing.read()
        remark_skipped(read.skipped)
        found = unseen(detector, read, keep=keep or self.keep_seen)
        if line := found.remark():
            remark(line, "yellow")
        if not len(found.images):
            raise DataError(
                f"{self.data}: the model was fitted on all {len(read)} images; give others, or keep them "
                "with --keep-seen"
            )
        return found, listing


@dataclass(frozen=True, kw_only=True)
class Normals(Images):
    """Images.

    Args:
        all: take all images as normal, whatever the names of their folders
    """

    split: str = "train"
    all: bool = False

    def listing(self, facts: Mapping[str, Any] | None = None, **sizes: Any) -> Listing:
        """Lists the images without reading pixels.

        Args:
            facts: as for `read`.
            sizes: as for `read`.

        Returns:
            The listing.

        Raises:
            DataError: the names of sub-folders say that the folder holds more than normal images.
        """
        from ..data.layouts import refuse_mixed

        found = super().listing(facts, **sizes)
        normal = [e for e in found.entries if e.label != 1]
        if normal and not self.all and os.path.isdir(self.data):
            refuse_mixed(self.data, normal, self.normal, self._command())
        return found

    def _command(self) -> str:
        return "dia stress RUN"


@dataclass(frozen=True, kw_only=True)
class TrainingImages(Normals):
    """Images."""

    def _command(self) -> str:
        return "dia fit"

    def options(self) -> ReadOptions:
        """Returns the options of reading: class folders without a split are divided here, and only here."""
        return replace(super().options(), divide=True)


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device on which torch runs.

    Args:
        device: auto, cpu, cuda or cuda:N
    """

    device: str = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise DataError(f"--device {self.device}: not known; there are auto, cpu, cuda and cuda:N")


@dataclass(frozen=True, kw_only=True)
class Model(Device):
    """A fitted model.

    Args:
        run: a folder written by `dia fit`
    """

    run: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not os.path.exists(self.run):  # told before torch is loaded
            raise DataError(f"{self.run}: there is no such model; `dia fit` makes one")

    def load(self) -> Detector:
        """Loads the model."""
        with Bar("Loading the model"):
            from ..detectors import Detector

            return Detector.load(self.run, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The threshold of a fitted model.

    Args:
        false_alarm_rate: share of normal images to flag at most, on average, as 0.05 or 5% (default: the
            one given to `dia fit`)
    """

    false_alarm_rate: Share | None = None

    def of(self, detector: Detector | OnnxModel) -> float:
        """Returns the rate as given, else the model's own; says so where it gives no threshold."""
        share = float(detector.false_alarm_rate if self.false_alarm_rate is None else self.false_alarm_rate)
        remark_no_threshold(detector, share)
        return share


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """This machine or a cluster.

    Args:
        executor: local, or ray: on the CPU cores or GPUs of a machine or cluster, whose machines must see all
            files under the same paths
        ray_address: HOST:PORT of a running Ray cluster; default: start Ray on this machine
    """

    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
