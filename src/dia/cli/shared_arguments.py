"""The arguments that several commands have: images, model, device, grids. Parses only."""

from __future__ import annotations

import os
from typing import Any, Literal

from ..data.formats.windowing import AXES
from ..data.formats.windowing import PRESETS as WINDOWS
from .help import ArgumentParser


def data_arguments(parser: ArgumentParser, split: str) -> None:
    """The images, and how they are read; `split` is the default of --split."""
    parser.add_argument(
        "data", type=str, help="a folder, .npz, .csv or image, or the name of a set of `dia data list`"
    )
    group = parser.add_argument_group("images")
    group.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                       help="folder in which sets of `dia data list` lie (default: $DIA_DATA)")  # fmt: skip
    group.add_argument(
        "--split", type=str, default=split, help="train, val, test or all, where the data have splits"
    )
    reading_arguments(group)
    group.add_argument(
        "--workers", type=int | None, help="threads that decode images (default: one for each core)"
    )
    view_arguments(group, "each file's own (voi)" if split == "train" else "as the model was fitted")


def reading_arguments(parser: Any) -> None:
    """What is normal, and what becomes of files that cannot be read."""
    parser.add_argument(
        "--normal", type=str | None,
        help="class folders or label values that are normal, comma separated; all others are anomalous",
    )  # fmt: skip
    parser.add_argument("--skip_bad", action="store_true", help="leave unreadable files out, and list them")


def view_arguments(parser: Any, default: str) -> None:
    """What is seen of deep and three-dimensional files."""
    parser.add_argument(
        "--window", type=str | None,
        help=f"grey values of DICOM, NIfTI and float images: {', '.join(WINDOWS)} (Hounsfield units), "
        f"CENTER,WIDTH, voi (each file's own) or full (all that its bits allow); default: {default}",
    )  # fmt: skip
    parser.add_argument("--axis", type=str | None, help=f"of NIfTI slices: {', '.join(AXES)}; default: axial")
    parser.add_argument("--slices", type=str | None, help="of each volume, as 10:-10; default: all")


def run_arguments(parser: ArgumentParser) -> None:
    """A fitted model, and where it runs."""
    parser.add_argument("run", type=str, help="a folder written by `dia fit`")
    device_argument(parser)


def device_argument(parser: ArgumentParser) -> None:
    """Where torch runs."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")


def rate_argument(parser: ArgumentParser) -> None:
    """Of the threshold of a model that has one already."""
    parser.add_argument(
        "--false_alarm_rate", type=float | None,
        help="share of normal images to flag at most, on average (default: the one given to `dia fit`)",
    )  # fmt: skip


def json_argument(parser: ArgumentParser) -> None:
    """The form of what is printed."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def grid_arguments(parser: ArgumentParser, ledger: str, scores: str = "results/scores") -> None:
    """Where a grid of runs reads and writes, and how many run at a time."""
    parser.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="folder in which the data sets lie (default: $DIA_DATA)")  # fmt: skip
    parser.add_argument("--ledger", type=str, default=ledger, help="file of a JSON line for each run")
    parser.add_argument(
        "--scores", type=str, default=scores, help="raw scores, for paired intervals and curves"
    )
    parser.add_argument("--work", type=str, default=".work", help="keeps finished stages; safe to delete")
    device_argument(parser)
    parser.add_argument(
        "--workers", type=int | None,
        help="runs at a time, each in a process of its own with its share of the cores; default: one, in "
        "this process; with ray one for each GPU, or else CPU core",
    )  # fmt: skip
    parser.add_argument(
        "--memory_gb", type=float | None,
        help="of all workers together; default: with several, four fifths of the machine's",
    )  # fmt: skip
    executor_arguments(
        parser, "over a cluster, whose machines must see data, ledger, scores and work under one path each"
    )


def executor_arguments(parser: ArgumentParser, on_ray: str) -> None:
    """This machine or a cluster."""
    parser.add_argument("--executor", type=Literal["local", "ray"], default="local", help=f"ray: {on_ray}")
    parser.add_argument(
        "--ray_address", type=str | None,
        help="HOST:PORT of a Ray cluster that runs; default: start Ray on this machine",
    )  # fmt: skip
