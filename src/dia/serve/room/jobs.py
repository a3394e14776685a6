"""Trainings and looks at their images: one at a time, each in a process of its own; their state on the disk.

Beside the model `RUNS/NAME` lies `RUNS/NAME.job.json`, written before anything is answered, so that a server
that starts again shows what was stopped or failed and goes on with it. Normals that were dropped lie in
`RUNS/NAME.normals`, under numbers, until they are deleted. Knows processes, files and states; knows no
requests, and no image.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ...core.storage import owned
from ..limits import Refused
from .normals import Source, place_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
BUSY = "another check or training is under way; wait for it, or stop it"
GRACE = 25.0  # seconds after which a process that does not stop is killed
LOST = 3600.0  # seconds after which what an unanswered start left is taken away
_POINTS = 400  # of a curve, at most
_MOST_RUNS = 500
_STATES = ("running", "stopped", "failed", "done")


class Child:
    """A process of `work.py`.

    Args:
        job: what it does; see `work.run`.
        ended: called once, in a thread of its own, when the process has ended.

    Attributes:
        said: what it said last of each kind: `stage`, `done`, `total`, `unit`, `result`, `problem`, `stopped`.
    """

    command = (sys.executable, "-m", "dia.serve.room.work")

    def __init__(self, job: Mapping[str, Any], ended: Callable[[Child], None]):
        environment = {k: v for k, v in os.environ.items() if k != "DIA_TOKEN"} | {"HF_HUB_OFFLINE": "1"}
        self.said: dict[str, Any] = {}
        self.asked_to_stop = False
        self.begun = self._stage_begun = time.monotonic()
        self._lock, self._ended = threading.Lock(), ended
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(job).encode() + b"\n")  # stays open: its end is our end
            self.process.stdin.flush()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError), self._lock:
                said = json.loads(line)
                if said.get("stage", self.said.get("stage")) != self.said.get("stage"):
                    self._stage_begun = time.monotonic()
                    self.said.pop("done", None)
                self.said |= said
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._ended(self)

    def progress(self) -> dict[str, Any]:
        """Returns `stage`, `step`, `steps`, `unit`, `seconds` and `left_seconds` (of the stage; None)."""
        with self._lock:
            said, now = dict(self.said), time.monotonic()
        done, total, spent = said.get("done") or 0, said.get("total"), now - self._stage_begun
        left = spent / done * (total - done) if total and 0 < done < total and spent > 1 else None
        return {
            "stage": said.get("stage", "Starting"), "step": done, "steps": total, "unit": said.get("unit", ""),
            "seconds": now - self.begun, "left_seconds": left,
        }  # fmt: skip

    def stop(self) -> None:
        """Asks the process to leave a checkpoint and to end; one that does not is killed."""
        self.asked_to_stop = True
        self._signal(signal.SIGTERM)
        killer = threading.Timer(GRACE, self._signal, [signal.SIGKILL])
        killer.daemon = True
        killer.start()

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def join(self, seconds: float | None = None) -> bool:
        """Waits for its end and for what follows from that.

        Args:
            seconds: at most.

        Returns:
            Whether it has ended.
        """
        self._thread.join(seconds)
        return not self._thread.is_alive()


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


class Jobs:
    """The trainings of this server.

    Args:
        runs: the folder of their models; made where it is absent.
        data_root: the folder of sets that may be named; None for none.
    """

    def __init__(self, runs: Path, data_root: Path | None = None):
        self.runs, self.data_root = Path(runs).absolute(), data_root and Path(data_root).absolute()
        self._lock = threading.RLock()
        self._child: Child | None = None  # the one at work
        self.run: str | None = None  # that is trained
        self._sweep()

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
        """Begins a training on what a session has checked, as it was checked; a drop is moved beside the model.

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
                "format": 1, "run": name, "method": checked.method, "rate": checked.rate, "state": "running", "begun": now(),
                "source": asdict(replace(checked.source, leave_out=())), "seconds": 0.0, "problem": None,
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
                raise Refused(409, "this training is under way" if state == "running" else "nothing to go on with")
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
        """Moves the chosen files of a drop beside the model, all of them or none, and writes the run's facts."""
        assert checked.source is not None
        out, new = {*checked.source.leave_out}, self.runs / f".{name}.normals-{secrets.token_hex(4)}"
        new.mkdir(mode=0o700)
        try:
            for own in sorted(checked.drop.names):
                if own in out or own.partition("/")[0] in out:
                    continue
                (new / own).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.move(checked.drop.folder / own, new / own)
            self._write(name, facts)
            new.rename(self.normals_of(name))
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            (self.runs / f"{name}.job.json").unlink(missing_ok=True)
            checked.close()
            said = os.strerror(error.errno or 5)
            raise Refused(507, f"the images could not be kept ({said}); make room, and drop them again") from None

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

    def close(self, seconds: float = GRACE) -> None:
        """Stops what is under way, which leaves a checkpoint, and waits for that.

        Args:
            seconds: to wait at most.
        """
        with self._lock:
            child = self._child
        if child is not None:
            child.stop()
            child.join(seconds)

    # --- runs on the disk ---------------------------------------------------------------------------------

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
            raise Refused(422, "a name has letters a–z, digits, - and _, begins with a letter or digit, and has "
                          "at most 60 of them")  # fmt: skip
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


def now() -> str:
    """Returns the time, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _died(code: int | None) -> str:
    if code in (-signal.SIGKILL, 137):
        return "the system ended the training, most often because memory ran out; take fewer or smaller images"
    return f"the training ended by itself (exit status {code}); the log of the server says more"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
