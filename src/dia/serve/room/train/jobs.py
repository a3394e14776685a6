"""Trainings and looks at their images: one at a time, each in a process of its own; their state on the disk.

Beside the model `RUNS/NAME` lies `RUNS/NAME.job.json`, written before anything is answered, so that a server
that starts again shows what was stopped or failed and goes on with it. Normals that were dropped lie in
`RUNS/NAME.normals`, under numbers, until they are deleted. Knows processes, files and states; knows no
requests, and no image.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...limits import Refused
from .child import GRACE, Child
from .folder import Folder
from .normals import Source, place_of

BUSY = "another check or training is under way; wait for it, or stop it"


@dataclass
class Checked:
    """What a session is about to train on: its source, and what was found in it. One for each session.

    Args:
        drop: of `Drops`, taken out of it; None for a set.
        source: None until a check was asked for.
        method: for which was looked.
        rate: of false alarms, likewise.
        result: of `checking.look`; None while it is under way, or where it failed.
        problem: one line where it failed.
        child: the process that looks.
        seen: when the session last asked, in seconds of a clock that never goes back.
    """

    drop: Any = None
    source: Source | None = None
    method: str = ""
    rate: float = 0.0
    result: dict[str, Any] | None = None
    problem: str = ""
    child: Child | None = None
    seen: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """Ends the check; what was dropped stays."""
        child, self.child = self.child, None
        if child is not None:
            child.stop()
            child.join(GRACE)

    def close(self) -> None:
        """Ends the check, and deletes what was dropped."""
        self.cancel()
        drop, self.drop = self.drop, None
        self.source = self.result = None
        self.problem = ""
        if drop is not None:
            drop.close()


class Jobs(Folder):
    """The trainings of this server.

    Args:
        runs: the folder of their models; made where it is absent.
        data_root: the folder of sets that may be named; None for none.
    """

    def __init__(self, runs: Path, data_root: Path | None = None):
        super().__init__(runs)
        self.data_root = data_root and Path(data_root).absolute()
        self._child: Child | None = None  # the one at work

    # --- looking at images --------------------------------------------------------------------------------

    def check(self, checked: Checked, source: Source, method: str, rate: float) -> None:
        """Begins to look at a source.

        Args:
            checked: of the session, with its drop where there is one.
            source: the images.
            method: that will be trained.
            rate: false-alarm rate, in (0, 1).

        Raises:
            Refused: something else is under way (409).
        """
        job = self._job(source, method, rate) | {"task": "check"}
        if checked.drop is not None:
            job["folder"] = str(checked.drop.folder)

        def ended(child: Child) -> None:
            with self._lock:
                self._free(child)
                if checked.child is not child:
                    return  # cancelled
                checked.child = None
                if found := child.said.get("result"):
                    size = found["size"] and tuple(found["size"])
                    checked.result = found
                    checked.source = replace(source, size=size, images=found["images"])
                elif not child.asked_to_stop:
                    checked.problem = child.said.get("problem") or "the check ended before it was done"

        with self._lock:
            self._refuse_busy()
            checked.source, checked.result, checked.problem = source, None, ""
            checked.method, checked.rate = method, rate
            checked.child = self._child = Child(job, ended)

    # --- training -----------------------------------------------------------------------------------------

    def start(self, checked: Checked, name: str) -> None:
        """Begins a training on what a session has checked; a drop is moved beside the model.

        Args:
            checked: of the session.
            name: of the run.

        Raises:
            Refused: something else is under way, the name is taken, or the images were not checked or are not
                usable (409); the name cannot be one (422).
        """
        self.check_name(name)
        with self._lock:
            self._refuse_busy()
            if checked.source is None or checked.result is None:
                raise Refused(409, "have the images checked first")
            if not checked.result["usable"]:
                raise Refused(409, "these images cannot be trained on; the check says why")
            if self.there(name):
                raise Refused(409, f"there is a run named {name} already; choose another name, or delete it")
            self.runs.mkdir(parents=True, exist_ok=True)
            facts = {
                "format": 1, "run": name, "method": checked.method, "rate": checked.rate, "state": "running",
                "begun": now(), "source": asdict(replace(checked.source, leave_out=())), "seconds": 0.0,
                "problem": None,
            }  # fmt: skip
            if checked.source.kind == "drop":
                self._move(checked, name, facts)
            else:
                self._write(name, facts)
            checked.close()
            self._train(name, facts)

    def resume(self, name: str) -> None:
        """Goes on with a training that was stopped or failed.

        Raises:
            Refused: there is none, it is done or under way (409).
        """
        with self._lock:
            self._refuse_busy()
            facts = self.facts(name)
            if (state := self.state(name, facts)) not in ("stopped", "failed") or facts is None:
                raise Refused(
                    409, "this training is under way" if state == "running" else "nothing to go on with"
                )
            facts |= {"state": "running", "problem": None}
            self._write(name, facts)
            self._train(name, facts)

    def stop(self) -> None:
        """Asks the training, or the check, that is under way to stop; nothing where there is none."""
        with self._lock:
            child = self._child
        if child is not None:
            child.stop()

    def _train(self, name: str, facts: dict[str, Any]) -> None:
        job = self._job(Source.of(facts["source"]), facts["method"], facts["rate"]) | {
            "task": "fit", "target": str(self.runs / name), "folder": str(self.normals_of(name)),
            "page": str(self.report_of(name)),
        }  # fmt: skip
        before = facts["seconds"]

        def ended(child: Child) -> None:
            with self._lock:
                said = child.said
                problem = said.get("problem")
                done = "result" in said or self._is_model(name)
                state = "done" if done else "failed" if problem else "stopped"
                if state == "stopped" and not (child.asked_to_stop or said.get("stopped")):
                    state, problem = "failed", _died(child.process.returncode)
                spent = round(before + time.monotonic() - child.begun, 1)
                changes = {"state": state, "problem": problem, "seconds": spent, "ended": now()}
                self._write(name, {**facts, **changes})
                self.run = None
                self._free(child)

        self.run = name
        self._child = Child(job, ended)

    def _move(self, checked: Checked, name: str, facts: Mapping[str, Any]) -> None:
        """Moves the chosen files of a drop beside the model, all or none, and writes the run's facts."""
        assert checked.source is not None
        out, new = {*checked.source.leave_out}, self.runs / f".{name}.normals-{secrets.token_hex(4)}"
        new.mkdir(mode=0o700)
        try:
            for own in sorted(checked.drop.names):
                if own in out or own.partition("/")[0] in out:
                    continue
                place = new / (own if checked.source.patients else own.replace("/", "-"))
                place.parent.mkdir(mode=0o700, exist_ok=True)
                shutil.move(checked.drop.folder / own, place)
            self._write(name, facts)
            new.rename(self.normals_of(name))
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            (self.runs / f"{name}.job.json").unlink(missing_ok=True)
            checked.close()
            said = os.strerror(error.errno or 5)
            raise Refused(
                503, f"the images could not be kept ({said}); make room, and drop them again"
            ) from None

    # --- the one at work ----------------------------------------------------------------------------------

    @property
    def child(self) -> Child | None:
        """The process at work; None where there is none."""
        return self._child

    def _job(self, source: Source, method: str, rate: float) -> dict[str, Any]:
        root = None if self.data_root is None else str(self.data_root)
        if source.kind == "set":
            place_of(source.name, self.data_root)  # refused here, before a process is started
        return {"source": asdict(source), "method": method, "rate": rate, "data_root": root}

    def _refuse_busy(self) -> None:
        if self._child is not None:
            raise Refused(409, BUSY)

    def _free(self, child: Child) -> None:
        if self._child is child:
            self._child = None

    def close(self, seconds: float = 8.0) -> None:
        """Stops what is under way, which leaves a checkpoint, and waits for that.

        Args:
            seconds: to wait at most.
        """
        with self._lock:
            child = self._child
        if child is not None:
            child.stop()
            child.join(seconds)


def now() -> str:
    """Returns the time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _died(code: int | None) -> str:
    if code in (-signal.SIGKILL, 137):
        return (
            "the system ended the training, most often because memory ran out; take fewer or smaller images"
        )
    return f"the training ended by itself (exit status {code}); the log of the server says more"
