"""The options that several commands share, each written once, and the console.

A dataclass here is a group of arguments; `help.py` makes flags of its fields. The groups also do what their
options mean: `Images` reads images, `Model` loads a model, `Output` prints facts. This file imports torch
nowhere, as scoring with an exported file needs none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jsonargparse.typing import OpenUnitInterval
from rich.console import Console
from rich.table import Table

from ..data.formats.windowing import AXES
from ..data.formats.windowing import PRESETS as WINDOWS
from ..data.options import ReadOptions

if TYPE_CHECKING:
    from ..data.imageset import ImageSet
    from ..data.readers import Listing
    from ..deploy.onnx_model import OnnxModel
    from ..detectors import Detector

__all__ = ["AXES", "WINDOWS"]  # named in docstrings

Preset = Literal["cpu", "gpu", "paper"]  # as `detectors.presets.PRESETS`, which takes torch

err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 140)


def remark(line: str, style: str | None = None) -> None:
    """Prints a line on stderr unchanged, whatever its length and characters.

    Args:
        line: the line.
        style: a style of rich, such as a colour.
    """
    err.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def result(line: str) -> None:
    """Prints a line on stdout unchanged, whatever its length and characters."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def remark_skipped(lines: Sequence[str]) -> None:
    """Prints the names of unreadable files on stderr."""
    for line in lines:
        remark(f"skipped: {line}", "yellow")


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
        if self.json:
            return print(json.dumps(facts))
        table = Table(show_header=False, box=None)
        for key, value in facts.items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            if isinstance(value, list | tuple) and value and isinstance(value[0], float):
                text = " – ".join(f"{v:.4g}" for v in value)
            table.add_row(key.replace("_", " "), text)
        out.print(table)


@dataclass(frozen=True, kw_only=True)
class DataRoot:
    """The folder of the known data sets.

    Args:
        data_root: folder of the sets of `dia data list` (default: $DIA_DATA)
    """

    data_root: str | None = os.environ.get("DIA_DATA")  # read here: workers elsewhere may have another


@dataclass(frozen=True, kw_only=True)
class Reading(DataRoot):
    """Images.

    Args:
        normal: class folders or label values that are normal, comma separated; all others are anomalous
        skip_bad: leave out unreadable files, and list them
        window: grey values of DICOM, NIfTI and float images: {WINDOWS} (Hounsfield units), CENTER,WIDTH, voi
            (each file's own) or full (all that its bits allow); default: as the model was fitted, or else voi
        axis: the axis of NIfTI slices: {AXES}; default: as the model was fitted, or else axial
        slices: the slices of each volume to read, as 10:-10; default: as the model was fitted, or else all
    """

    normal: str | None = None
    skip_bad: bool = False
    window: str | None = None
    axis: str | None = None
    slices: str | None = None

    def options(self) -> ReadOptions:
        """Returns the options of reading that these flags stand for."""
        return ReadOptions(
            normal=self.normal, skip_bad=self.skip_bad, window=self.window, axis=self.axis, slices=self.slices
        )


@dataclass(frozen=True, kw_only=True)
class Images(Reading):
    """Images.

    Args:
        data: a folder, .npz, .csv or image, or the name of a set of `dia data list`
        split: train, val, test or all, if the data have splits
        workers: threads that decode images (default: one for each core)
    """

    data: str
    split: str = "test"
    workers: int | None = None

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
        from ..data.datasets import open_data

        options = replace(self.options(), workers=self.workers, progress=sys.stderr.isatty(), **sizes)
        images = open_data(self.data, self.split, self.data_root, options.as_fitted(facts or {}))
        remark_skipped(images.skipped)
        return images

    def read_for(self, detector: Detector) -> ImageSet:
        """Reads all images as those were read on which a model was fitted."""
        h, w, c = detector.shape_
        return self.read(detector.facts_, size=(h, w), channels=c)

    def listing_for(self, detector: Detector | OnnxModel) -> Listing:
        """Lists the images without reading pixels; they will be read as those of a model's fit."""
        from ..data.datasets import open_listing

        options = self.options().as_fitted(detector.facts_, detector.shape_)
        return open_listing(self.data, self.split, self.data_root, options)


@dataclass(frozen=True, kw_only=True)
class TrainingImages(Images):
    """Images."""

    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device on which torch runs.

    Args:
        device: auto, cpu, cuda or cuda:N
    """

    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Model(Device):
    """A fitted model.

    Args:
        run: a folder written by `dia fit`
    """

    run: str

    def load(self) -> Detector:
        """Loads the model."""
        from ..detectors import Detector

        return Detector.load(self.run, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The threshold of a fitted model.

    Args:
        false_alarm_rate: share of normal images to flag at most, on average (default: the one given to
            `dia fit`)
    """

    false_alarm_rate: OpenUnitInterval | None = None

    def of(self, detector: Detector | OnnxModel) -> float:
        """Returns the rate as given, else the model's own."""
        return float(detector.false_alarm_rate if self.false_alarm_rate is None else self.false_alarm_rate)


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
