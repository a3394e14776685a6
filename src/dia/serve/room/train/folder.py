"""The folder of the models that are trained on the page, and what lies beside each: state, curve, normals.

Knows files and their places; knows no process, and no image.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ....core.storage import owned
from ...limits import Refused
from .normals import Source

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
LOST = 3600.0  # seconds after which what an unanswered start left is taken away
_POINTS = 400  # of a curve, at most
_MOST_RUNS = 500
_STATES = ("running", "stopped", "failed", "done")


class Folder:
    """The runs in a folder.

    Args:
        runs: the folder; it may be absent.

    Attributes:
        run: the one that this server trains; None where there is none.
    """

    def __init__(self, runs: Path):
        self.runs = Path(runs).absolute()
        self.run: str | None = None
        self._lock = threading.RLock()
        self._sweep()

    def normals_of(self, name: str) -> Path:
        """Returns where the dropped normals of a run lie."""
        return self.runs / f"{name}.normals"

    def report_of(self, name: str) -> Path:
        """Returns where the report page of a run lies."""
        return self.runs / f"{name}.report.html"

    def check_name(self, name: str) -> str:
        """Returns the name of a run.

        Raises:
            Refused: it cannot be one (422).
        """
        if not NAME.fullmatch(name):
            raise Refused(422, "a name has letters a–z, digits, - and _, begins with a letter or digit, and "
                          "has at most 60 of them")  # fmt: skip
        return name

    def there(self, name: str) -> bool:
        """Returns whether anything of this name lies in the folder of runs."""
        names = (name, f"{name}.job.json", f"{name}.normals")
        return any(os.path.lexists(self.runs / one) for one in names)

    def facts(self, name: str) -> dict[str, Any] | None:
        """Returns what was kept of a training; None where nothing was, or it is damaged."""
        try:
            found = json.loads((self.runs / f"{name}.job.json").read_bytes())
            whole = found["state"] in _STATES and found["run"] == name and Source.of(found["source"])
            return found if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def state(self, name: str, facts: Mapping[str, Any] | None) -> str:
        """Returns the state of a run: running, stopped, failed, done, or "" where there is none.

        Args:
            name: of the run.
            facts: of it.
        """
        if name == self.run or owned(self.runs / name):
            return "running"
        if self._is_model(name):
            return "done"
        if facts is None:
            return ""
        return "failed" if facts["state"] == "failed" else "stopped"  # whoever ran it is no more

    def names(self) -> Iterator[str]:
        """Yields the names of all runs: models, and trainings without one."""
        try:
            found = sorted(os.listdir(self.runs))
        except OSError:
            return
        some = dict.fromkeys(one.removesuffix(".job.json") for one in found if not one.startswith("."))
        for name in [*some][: 4 * _MOST_RUNS]:
            if NAME.fullmatch(name) and (self._is_model(name) or f"{name}.job.json" in found):
                yield name

    def curve(self, name: str) -> tuple[str, list[list[float]]]:
        """Returns the stage that was trained last, and [step, loss] of it, as far as that is written.

        Args:
            name: of the run.
        """
        files = [*(self.runs / f"{name}.logs").glob("*/version_*/metrics.csv")]
        if not files:
            return "", []
        stage = max(files, key=lambda f: f.stat().st_mtime_ns).parent.parent
        points: dict[float, float] = {}
        for file in sorted(stage.glob("version_*/metrics.csv"), key=lambda f: f.stat().st_mtime_ns):
            with suppress(OSError), file.open(newline="") as lines:
                for row in csv.DictReader(lines):
                    with suppress(ValueError, KeyError, TypeError):
                        points[float(row["step"])] = float(row["loss"])
        steps = sorted(points)
        kept = steps[:: max(1, -(-len(steps) // _POINTS))]
        return stage.name, [[s, points[s]] for s in dict.fromkeys([*kept, *steps[-1:]])]

    def forget(self, name: str) -> None:
        """Deletes the dropped normals of a run; its model stays, and can no longer show them as neighbours.

        Args:
            name: of the run.

        Raises:
            Refused: it is under way (409).
        """
        with self._lock:
            if self.state(name, self.facts(name)) == "running":
                raise Refused(409, "this training is under way; stop it first")
            _remove(self.normals_of(name))

    def delete(self, name: str) -> None:
        """Deletes a run with all that belongs to it.

        Args:
            name: of the run.

        Raises:
            Refused: there is none (404), or it is under way (409).
        """
        with self._lock:
            if not (state := self.state(name, self.facts(name))) and not self.there(name):
                raise Refused(404, "there is no such run")
            if state == "running":
                raise Refused(409, "this training is under way; stop it first")
            for one in (self.runs / f".{name}.work", self.normals_of(name), self.runs / f"{name}.logs",
                        self.report_of(name), self.runs / name, self.runs / f".{name}.lock",
                        self.runs / f"{name}.job.json"):  # fmt: skip
                _remove(one)

    def _is_model(self, name: str) -> bool:
        return (self.runs / name / "config.json").is_file()

    def _write(self, name: str, facts: Mapping[str, Any]) -> None:
        """Writes the facts of a run, whole or not at all."""
        new = self.runs / f".{name}.job-{secrets.token_hex(4)}"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.runs / f"{name}.job.json")

    def _sweep(self) -> None:
        """Takes away what a start that was never answered has left, once it is surely no other server's."""
        with suppress(OSError):
            for path in self.runs.iterdir():
                ours = re.fullmatch(r"\.[\w-]+\.(normals|job)-[0-9a-f]{8}", path.name)
                if ours and time.time() - path.stat().st_mtime > LOST:
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
