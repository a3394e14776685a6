"""The process in which a training, or the look at its images before it, runs: one for each.

The server starts it with one line of JSON on stdin, which stays open: when it ends, the server is no more,
and the work stops as it does by SIGTERM. It answers on stdout, one line of JSON each time that something
moves, and with a last line that says how it ended. It asks no other host, and gives way to the page by its
priority. Knows jobs, detectors and images; knows no requests, sessions, tokens or clients' names.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ....core.errors import DataError, TrainingError, printable, system_error
from ....core.running import stopping
from ....core.running.progress import Bar, watched
from ....core.running.threads import govern
from ...alone import alone
from .normals import Source, place_of

PRESET = "cpu"  # or gpu, where there is one
GRACE = 20.0  # seconds in which a work that was asked to stop must have stopped
_EVERY = 0.2  # seconds between two lines of progress
_FAILED = "the program failed; the log of the server says where"
_FULL = "there is not the memory for it; take fewer or smaller images"


class Answers:
    """Lines of JSON to the server, on what was stdout; whatever else prints there goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock, self._told = threading.Lock(), (0.0, "")

    def say(self, **said: Any) -> None:
        """Sends a line; nothing where nobody listens any more."""
        with self._lock, suppress(OSError, ValueError):
            self._out.write(json.dumps(said) + "\n")
            self._out.flush()

    def moved(self, bar: Bar, done: int) -> None:
        """Sends how far a part of the work is, not too often.

        Args:
            bar: the part.
            done: the units done.
        """
        now = time.monotonic()
        if bar.title == self._told[1] and now - self._told[0] < _EVERY and done != bar.total:
            return
        self._told = now, bar.title
        title = (
            "Reading the images" if bar.title.startswith("Reading ") else bar.title
        )  # without their folder
        self.say(stage=title, done=done, total=bar.total, unit=bar.unit)


def preset() -> str:
    """Returns the preset for this machine."""
    import torch

    return "gpu" if torch.cuda.is_available() else PRESET


def check(job: Mapping[str, Any]) -> dict[str, Any]:
    """Looks at the images of a job; returns what `checking.look` found."""
    from ....detectors.presets import longest_side
    from ....detectors.registry import detector_class
    from .checking import look

    cls, source = detector_class(job["method"]), Source.of(job["source"])
    most = longest_side(cls.Settings, preset())
    found = look(source, _place(job, source), job["data_root"], cls, job["rate"], most)
    clean: dict[str, Any] = json.loads(without_places(json.dumps(found), job, len(json.dumps(found))))
    return clean


def fit(job: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the model of a job, or goes on with it; returns facts of the model."""
    from ....benchmark.fitting import fit_into
    from ....core.storage import Owner
    from ....detectors.presets import longest_side, settings
    from ....detectors.registry import detector_class

    cls, source, target = detector_class(job["method"]), Source.of(job["source"]), Path(job["target"])
    with Owner(target) as owner:
        given = settings(cls.Settings, preset())
        place, most = _place(job, source), longest_side(cls.Settings, preset())
        listing = source.listing(place, job["data_root"], "train", most)
        normals = listing.read().normals()
        detector = cls(given, false_alarm_rate=job["rate"])
        fit_into(
            target, detector, normals, listing.reading, dataset=place, preset=preset(), split="train",
            data_root=job["data_root"], resume=True, logger="csv", owner=owner,
        )  # fmt: skip
    return {"images": len(normals)}


def report(job: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the report page of a model on the labelled test images of its set, where it has such."""
    from ....data.layouts import MissingSplit
    from ....detectors import Detector
    from ....evaluate.unseen import unseen
    from ....report.gather import compare_trivial, write_run_report

    source, target = Source.of(job["source"]), Path(job["target"])
    if source.kind != "set":
        return {}
    place, detector = _place(job, source), Detector.load(target)
    (h, w, _), read = detector.shape_, detector.facts_["read"]
    from ....data.datasets import open_data
    from ....data.options import ReadOptions

    options = ReadOptions(normal=source.normal, skip_bad=True, progress=True)
    try:
        test = open_data(place, "test", job["data_root"], options.as_fitted(detector.facts_, detector.shape_))
    except MissingSplit:
        return {}
    found = unseen(detector, test).images
    if found.labels is None or not 0 < found.labels.sum() < len(found):
        return {}
    train = open_data(
        place, read["split"], job["data_root"], options.as_fitted(detector.facts_, (h, w, found.shape[2]))
    )
    rows = compare_trivial(train.normals(), found, detector.seed)
    page = Path(job["page"])
    new = page.with_suffix(".part")
    write_run_report(
        new, detector, found, dataset=source.name, false_alarm_rate=job["rate"], comparison=rows,
        normals=train.normals(), normal=source.normal, name=detector.method,
    )  # fmt: skip
    new.replace(page)
    return {"report": True}


def _place(job: Mapping[str, Any], source: Source) -> str:
    """Returns what the images of a job are opened with."""
    if source.kind == "drop":
        folder: str = job["folder"]
        if not os.path.isdir(folder):
            raise DataError("the images of this training are not there any more; delete it and start anew")
        return folder
    return place_of(source.name, job["data_root"] and Path(job["data_root"]))


def _trained(job: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, then writes the report; a report that fails, or is stopped, costs no model."""
    made = fit(job)
    try:
        return made | report(job)
    except stopping.Stopped:
        return made
    except Exception as error:
        traceback.print_exception(error)
        return made


TASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"check": check, "fit": _trained}


def run(job: Mapping[str, Any], answers: Answers) -> None:
    """Does a job, and says how it ended: with `result`, `stopped` or a `problem`.

    Args:
        job: `task` (check or fit), `source`, `method`, `rate`, `data_root`, and where they apply `folder` of
            a drop, `target` (the model folder) and `page` (of the report).
        answers: where to say so.
    """
    warnings.simplefilter("ignore")
    try:
        with watched(answers.moved):
            answers.say(result=TASKS[job["task"]](job))
    except stopping.Stopped:
        answers.say(stopped=True)
    except (DataError, TrainingError) as error:
        answers.say(problem=without_places(str(error), job))
    except (MemoryError, Exception) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return answers.say(problem=_FULL)
        line = system_error(error)
        if not line:
            traceback.print_exception(error)
        answers.say(problem=without_places(line, job) if line else _FAILED)


def without_places(line: str, job: Mapping[str, Any], most: int = 500) -> str:
    """Returns a line without places of this machine, and without options that a page does not have.

    Args:
        line: of an error.
        job: with the places that may stand in it.
        most: characters that are kept.
    """
    for key, shown in (("folder", "the images"), ("target", "the model"), ("data_root", "the sets")):
        if place := job.get(key):
            for one in dict.fromkeys((str(place), os.path.realpath(place))):
                line = line.replace(f"{one}/", "").replace(one, shown)
    for said in ("; repair it, or leave such files out with --skip-bad", " with --size N"):
        line = line.replace(said, "")
    return printable(line)[:most]


def _watch_server() -> None:
    """Stops the work when the server is no more, and ends this process where the work does not hear it."""
    with suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    stopping.ask()
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """Reads the job and does it."""
    line = sys.stdin.buffer.readline()
    if not line:
        return  # the server was gone before it said what to do
    answers = Answers()
    job = json.loads(line)
    with stopping.heard(), alone(0):
        threading.Thread(target=_watch_server, daemon=True).start()
        with suppress(OSError):
            os.nice(5 if job["task"] == "fit" else 0)
        govern()
        run(job, answers)
    os._exit(0)  # threads of libraries may wait for ever


if __name__ == "__main__":
    main()
