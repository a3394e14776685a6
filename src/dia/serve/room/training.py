"""The routes of the page that trains: what was dropped or chosen is checked, trained on, and served.

Knows requests, sessions and words; the work is in `jobs.py` and, in processes of their own, in `work.py`.
Names of a reader's files stay in the session: neither the disk nor the log learns them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ...core.errors import DataError
from ...data.layouts import meaning
from ..limits import Refused
from ..sessions import Session, session_of
from .jobs import BUSY, Checked, Child, Jobs
from .normals import Source, folders_of, place_of, sets_in, told_apart

if TYPE_CHECKING:
    from .base import Room

IDLE = 900.0  # seconds without a request of its session after which what was checked is deleted
_LOOK = 15.0  # seconds between two looks for that
_NUMBERED = re.compile(r"\d{5}/\d{5}\.[a-z0-9.]+")  # a file of a drop
_MOST_JSON = 2**24  # bytes of a model's JSON that a list of runs reads
METHODS: dict[str, tuple[str, str]] = {  # of this package that need no weights from elsewhere: line, warning
    "dia+": ("Compares with all normals in the features of a pretrained network; minutes. The default.", ""),
    "dia": (
        "The published method: learns to dissolve fine structure, then what is left of normals.",
        "Trains two networks: on a processor without a GPU, about ten minutes for 1,000 small images and hours "
        "for large ones. No heatmaps.",
    ),
    "csi": (
        "Contrastive learning without dissolving; a baseline to compare with.",
        "Trains a network: minutes for small images, hours for large ones without a GPU. No heatmaps.",
    ),
}


class CheckAsked(BaseModel):
    """What is to be looked at: a drop, a set, or once more what the session has.

    Args:
        drop: id of a drop.
        data: name of a set.
        folders: those that hold normals; all that do not say otherwise where None.
        patients: whether each folder is one patient's.
        method: that will be trained.
        rate: of false alarms.
    """

    model_config = ConfigDict(extra="forbid")
    drop: str | None = Field(None, max_length=100)
    data: str | None = Field(None, max_length=300)
    folders: list[str] | None = Field(None, max_length=5000)
    patients: bool = False
    method: str = Field("dia+", max_length=100)
    rate: float = Field(0.05, gt=0, lt=1)


class StartAsked(BaseModel):
    """The training of what was checked.

    Args:
        name: of the run.
        drop: the drop that was checked.
        data: or the set.
        method: as it was checked for.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=100)
    drop: str | None = Field(None, max_length=100)
    data: str | None = Field(None, max_length=300)
    method: str | None = Field(None, max_length=100)


class RunAsked(BaseModel):
    """A run.

    Args:
        run: its name.
    """

    model_config = ConfigDict(extra="forbid")
    run: str = Field(max_length=100)


def _take(session: Session, id: str) -> Any:
    from .drops import Drops

    return Drops.of(session).take(id)


def methods() -> list[dict[str, str]]:
    """Returns the methods that can be trained here: this package's, and those that plug-ins brought."""
    from ...detectors import registry

    own = [{"name": n, "line": line, "warning": warning} for n, (line, warning) in METHODS.items()]
    others = [n for n in registry.METHODS if n not in registry._BUILT_IN]
    return own + [{"name": n, "line": "A method of a plug-in.", "warning": ""} for n in others]


def routes(room: Room, take: Callable[[Session, str], Any] = _take) -> APIRouter:
    """Makes the routes.

    Args:
        room: what the parts of the reading room share.
        take: takes a drop out of a session's.
    """
    jobs = Jobs(room.runs, room.data_root)
    page = Training(room, jobs, take)

    @asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(page.sweep_for_ever())
        yield
        sweeper.cancel()
        await asyncio.to_thread(jobs.close)

    router = APIRouter(prefix="/room/train", tags=["train"], lifespan=life)

    @router.get("")
    def state(request: Request) -> JSONResponse:
        """Returns the job, the session's check, the runs and what can be chosen."""
        return _said(page.state(session_of(request)))

    @router.post("/check", status_code=202)
    def check(request: Request, asked: CheckAsked) -> JSONResponse:
        """Begins to look at images."""
        page.check(session_of(request), asked)
        return _said({}, 202)

    @router.delete("/check")
    def forget_check(request: Request) -> JSONResponse:
        """Ends the session's check and deletes what was dropped."""
        page.checked(session_of(request)).close()
        return _said({})

    @router.get("/check/thumbs/{number}")
    def thumb(request: Request, number: int) -> Response:
        """Returns a picture of one of the dropped images."""
        return Response(
            page.thumb(session_of(request), number), media_type="image/jpeg",
            headers={"Cache-Control": "private, no-store"},
        )  # fmt: skip

    @router.post("/start", status_code=202)
    def start(request: Request, asked: StartAsked) -> JSONResponse:
        """Begins the training of what was checked."""
        page.start(session_of(request), asked)
        return _said({}, 202)

    @router.post("/stop", status_code=202)
    def stop(request: Request) -> JSONResponse:
        """Asks what is under way to stop."""
        page.stop(session_of(request))
        return _said({}, 202)

    @router.post("/resume", status_code=202)
    def resume(request: Request, asked: RunAsked) -> JSONResponse:
        """Goes on with a run that was stopped or failed."""
        session_of(request)
        page.named(asked.run, lambda: jobs.resume(asked.run))
        return _said({}, 202)

    @router.post("/serve")
    def serve(request: Request, asked: RunAsked) -> JSONResponse:
        """Puts a trained model in the place of the one in use."""
        session_of(request)
        return _said({"number": page.serve(asked.run)})

    @router.post("/forget")
    def forget(request: Request, asked: RunAsked) -> JSONResponse:
        """Deletes the dropped normals of a run."""
        session_of(request)
        page.named(asked.run, lambda: jobs.forget(asked.run))
        return _said({})

    @router.delete("/runs/{run}")
    def delete(request: Request, run: str) -> JSONResponse:
        """Deletes a run with all that belongs to it."""
        session_of(request)
        page.delete(run)
        return _said({})

    @router.get("/runs/{run}")
    def facts(request: Request, run: str) -> JSONResponse:
        """Returns the facts of a run: what it was trained on, its scores of normals, its curve."""
        session_of(request)
        return _said(page.facts(run))

    @router.get("/report/{run}")
    def report(request: Request, run: str) -> Response:
        """Returns the report page of a run on labelled test images, as a file: it has styles of its own."""
        session_of(request)
        jobs.check_name(run)
        if not (file := jobs.report_of(run)).is_file():
            raise Refused(404, "this run has no report: its set has no labelled test images")
        return FileResponse(file, media_type="text/html", filename=f"{run}-report.html")

    return router


class Training:
    """What the routes do, without requests.

    Args:
        room: the shared parts.
        jobs: the trainings.
        take: takes a drop out of a session's.
    """

    def __init__(self, room: Room, jobs: Jobs, take: Callable[[Session, str], Any]):
        self.room, self.jobs, self._take = room, jobs, take
        self._read: dict[Path, tuple[int, dict[str, Any]]] = {}  # models, by the time of their config.json
        self._offered: tuple[float, dict[str, tuple[str, str]]] = (-1e9, {})
        self._all: dict[int, Checked] = {}  # of all sessions, for the sweeper

    def checked(self, session: Session) -> Checked:
        """Returns what a session is about to train on."""
        found = session.hold(Checked, Checked)
        found.seen = time.monotonic()
        self._all[id(found)] = found
        return found

    async def sweep_for_ever(self) -> None:
        """Deletes dropped images of sessions that ask no more."""
        while True:
            await asyncio.sleep(_LOOK)
            await asyncio.to_thread(self.sweep, time.monotonic() - IDLE)

    def sweep(self, late: float) -> None:
        """Deletes what was checked by sessions that have not asked since.

        Args:
            late: in seconds of a clock that never goes back.
        """
        for key, one in list(self._all.items()):
            if one.seen < late:
                del self._all[key]
                one.close()

    # --- what is asked ------------------------------------------------------------------------------------

    def check(self, session: Session, asked: CheckAsked) -> None:
        """Begins to look at a drop, a set, or once more at what the session has.

        Raises:
            Refused: something else is under way, or there is no such drop, set, method or folder.
        """
        if asked.method not in {m["name"] for m in methods()}:
            raise Refused(422, "there is no such method here; choose one of the list")
        checked = self.checked(session)
        busy = self.jobs.child
        if busy is not None and busy is not checked.child:
            raise Refused(409, BUSY)
        if asked.drop is not None:
            drop = self._take(session, asked.drop)
            checked.close()
            checked.drop = drop
        elif asked.data is not None:
            self._known(asked.data)
            checked.close()
        else:
            checked.cancel()
        self.jobs.check(checked, self._source(checked, asked), asked.method, asked.rate)

    def _source(self, checked: Checked, asked: CheckAsked) -> Source:
        if checked.drop is not None:
            names: Mapping[str, str] = checked.drop.names
            if not names:
                checked.close()
                raise Refused(422, "nothing that was dropped can be read as an image")
            if asked.folders is None:
                return Source("drop", leave_out=told_apart(names), patients=asked.patients)
            own = set(folders_of(names))
            if not asked.folders or not set(asked.folders) <= own:
                raise Refused(422, "choose at least one of the folders that were dropped")
            files = {f for f in told_apart(names) if "/" in f}
            out = (own - set(asked.folders)) | files
            return Source("drop", leave_out=tuple(sorted(out)), patients=asked.patients)
        name = asked.data if asked.data is not None else checked.source and checked.source.name
        if not name:
            raise Refused(409, "drop images, or choose a set, first")
        if any("," in one for one in asked.folders or ()):
            raise Refused(422, "a folder with a comma in its name cannot be chosen; rename it")
        normal = ",".join(asked.folders) if asked.folders else None
        return Source("set", name, normal=normal, patients=asked.patients)

    def _known(self, name: str) -> None:
        try:
            place_of(name, self.jobs.data_root)
        except DataError as error:
            raise Refused(422, str(error)) from None

    def start(self, session: Session, asked: StartAsked) -> None:
        """Begins a training.

        Raises:
            Refused: see `Jobs.start`; or what is asked for is not what was checked (409).
        """
        checked = self.checked(session)
        self.jobs.check_name(asked.name)
        source = checked.source
        other = asked.data is not None and (source is None or source.name != asked.data)
        if other or asked.drop is not None and (checked.drop is None or checked.drop.id != asked.drop):
            raise Refused(409, "have the images checked first")
        if asked.method is not None and checked.result is not None and asked.method != checked.method:
            raise Refused(409, f"the images were checked for {checked.method}; check them for the other method")
        self.jobs.start(checked, asked.name)

    def stop(self, session: Session) -> None:
        """Stops a training, or the session's own check.

        Raises:
            Refused: the check of another session is under way (409).
        """
        checked, child = self.checked(session), self.jobs.child
        if self.jobs.run is None and child is not None and child is not checked.child:
            raise Refused(409, "images of another reader are being checked; that ends by itself")
        self.jobs.stop()

    def named(self, run: str, do: Callable[[], None]) -> None:
        """Does something with a run whose name can be one.

        Args:
            run: its name.
            do: what.

        Raises:
            Refused: there is no such run (404); the name cannot be one (422).
        """
        self.jobs.check_name(run)
        if not self.jobs.there(run):
            raise Refused(404, "there is no such run")
        do()

    def serve(self, run: str) -> int:
        """Serves a model.

        Returns:
            Its number.

        Raises:
            Refused: it is no model, or it cannot be loaded (409).
        """

        def load() -> None:
            if self.jobs.state(run, self.jobs.facts(run)) != "done":
                raise Refused(409, "this run has no model yet")
            try:
                self.room.current.serve(self.jobs.runs / run)
            except DataError as error:
                line = str(error).replace(f"{self.jobs.runs}/", "")
                raise Refused(409, f"the model cannot be served: {line}") from None

        self.named(run, load)
        return self.room.current.get().number

    def delete(self, run: str) -> None:
        """Deletes a run.

        Raises:
            Refused: there is none, it is under way, or it is the model in use.
        """
        if run == self._serving():
            raise Refused(409, "this model is in use; serve another one first")
        self.named(run, lambda: self.jobs.delete(run))

    def thumb(self, session: Session, number: int) -> bytes:
        """Returns a picture of one of the session's dropped images, JPEG.

        Raises:
            Refused: there is none (404).
        """
        checked = self.checked(session)
        thumbs = (checked.result or {}).get("thumbs", []) if checked.drop is not None else []
        if not 0 <= number < len(thumbs):
            raise Refused(404, "there is no such picture")
        return base64.b64decode(thumbs[number])

    # --- what is answered ---------------------------------------------------------------------------------

    def state(self, session: Session) -> dict[str, Any]:
        """Returns all that the page shows."""
        checked = self.checked(session)
        if time.monotonic() - self._offered[0] > 10:
            self._offered = time.monotonic(), sets_in(self.jobs.data_root)
        return {
            "job": self._job(checked), "check": self._check(checked), "runs": self._runs(),
            "sets": [{"name": name, "about": about} for name, (about, _) in self._offered[1].items()],
            "methods": methods(), "data_root": self.jobs.data_root is not None,
            "model": self.room.current.there,
        }  # fmt: skip

    def _job(self, checked: Checked) -> dict[str, Any] | None:
        child, run = self.jobs.child, self.jobs.run
        if child is None:
            return None
        moved = child.progress()
        if run is None:
            own = child is checked.child
            words = moved["stage"] if own else "images of another reader are being checked"
            return {"id": child.process.pid, "run": None, "state": "checking", "own": own, **moved,
                    "curve": [], "problem": None, "words": words}  # fmt: skip
        stage, curve = self.jobs.curve(run)
        return {"id": child.process.pid, "run": run, "state": "running", "own": True, **moved, "curve": curve,
                "curve_of": stage, "problem": None, "stopping": child.asked_to_stop,
                "words": _far(child, moved)}  # fmt: skip

    def _check(self, checked: Checked) -> dict[str, Any] | None:
        source = checked.source
        if source is None:
            return None
        names: Mapping[str, str] = checked.drop.names if checked.drop is not None else {}
        made = {
            "state": "checking" if checked.child else "ready" if checked.result else "failed",
            "kind": source.kind, "name": source.name, "patients": source.patients,
            "method": checked.method, "rate": checked.rate,
            "problem": _own_names(checked.problem, names) or None,
            "left_out": [list(p) for p in checked.drop.problems][:50] if checked.drop is not None else [],
        }  # fmt: skip
        if not (found := checked.result):
            return made
        made |= {k: _own_names(found[k], names) for k in ("headline", "findings", "usable", "images", "kinds",
                                                          "sizes", "size", "problems")}  # fmt: skip
        made["thumbs"] = len(found["thumbs"]) if checked.drop is not None else 0
        made["folders"] = self._folders(source, names, found)
        return made

    def _folders(self, source: Source, names: Mapping[str, str], found: Mapping[str, Any]) -> list[dict[str, Any]]:
        if source.kind == "set":
            chosen = (source.normal or "").split(",") if source.normal else None
            return [{"id": name, "name": name, "images": n, "chosen": chosen is None or name in chosen,
                     "meaning": told} for name, n, told in found["folders"]]  # fmt: skip
        counted = dict.fromkeys(folders := folders_of(names), 0)
        for own in names:
            counted[own.partition("/")[0]] += 1
        return [{"id": own, "name": folders[own] or "(loose files)", "images": n,
                 "chosen": own not in source.leave_out,
                 "meaning": meaning(Path(folders[own]).name)} for own, n in counted.items()]  # fmt: skip

    def _serving(self) -> str | None:
        try:
            run = Path(self.room.current.get().run).absolute()
        except Refused:  # there is none, or none yet
            return None
        return run.name if run.parent == self.jobs.runs else None

    def _runs(self) -> list[dict[str, Any]]:
        serving = self._serving()
        made = []
        for name in self.jobs.names():
            facts = self.jobs.facts(name)
            state = self.jobs.state(name, facts)
            model = self._model(name) if state == "done" else {}
            about = facts or {}
            source = about.get("source") or {}
            made.append({
                "name": name, "state": state, "serving": name == serving,
                "method": model.get("method") or about.get("method"),
                "normals": model.get("normals") or source.get("images") or None,
                "of": source.get("name") or None,
                "when": about.get("begun") or model.get("when"), "seconds": about.get("seconds"),
                "rate": model.get("rate") or about.get("rate"), "threshold": model.get("threshold"),
                "problem": about.get("problem") if state == "failed" else None,
                "kept": self.jobs.normals_of(name).is_dir(), "report": self.jobs.report_of(name).is_file(),
                "step": None,
            })  # fmt: skip
        return sorted(made, key=lambda run: run["when"] or "", reverse=True)

    def _model(self, name: str) -> dict[str, Any]:
        """Returns facts of a model folder, read once; none where it is damaged."""
        from datetime import datetime

        from ...detectors.calibration import Calibration

        folder = self.jobs.runs / name
        try:
            file = folder / "config.json"
            stamp = file.stat().st_mtime_ns
            if (known := self._read.get(folder)) and known[0] == stamp:
                return known[1]
            if max(file.stat().st_size, (folder / "calibration.json").stat().st_size) > _MOST_JSON:
                return {}
            config = json.loads(file.read_bytes())
            scores = json.loads((folder / "calibration.json").read_bytes())["held_out_normal_scores"]
            rate = float(config["false_alarm_rate"])
            calibration = Calibration.of(scores)
            threshold = calibration.threshold(rate)
            made = {
                "method": str(config["method"]), "normals": int(config["n_train"]), "rate": rate,
                "calibrated": len(scores), "threshold": threshold if threshold < float("inf") else None,
                "few": calibration.too_few_for(rate), "shape": config["shape"],
                "fit_seconds": config["fit_seconds"], "scores": calibration.scores.tolist(),
                "versions": config["facts"].get("versions"), "device": config["facts"].get("device"),
                "patients": config["facts"].get("patients"), "weights": config["facts"].get("weights"),
                "when": datetime.fromtimestamp(stamp / 1e9).astimezone().isoformat(timespec="seconds"),
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        self._read[folder] = stamp, made
        return made

    def facts(self, run: str) -> dict[str, Any]:
        """Returns the facts of a run, for its own report: what is known of it without any labelled image.

        Raises:
            Refused: there is none (404).
        """
        self.jobs.check_name(run)
        rows = {row["name"]: row for row in self._runs()}
        if run not in rows:
            raise Refused(404, "there is no such run")
        model = dict(self._model(run))
        scores = model.pop("scores", [])
        stage, curve = self.jobs.curve(run)
        return {**rows[run], **model, "histogram": histogram(scores), "curve": curve, "curve_of": stage}


def histogram(scores: list[float], bins: int = 30) -> list[list[float]]:
    """Returns [from, to, count] of scores, in bins of equal width.

    Args:
        scores: ascending.
        bins: how many.
    """
    import numpy as np

    if not scores:
        return []
    counts, edges = np.histogram(scores, bins)
    return [[float(a), float(b), int(n)] for a, b, n in zip(edges, edges[1:], counts, strict=True)]


def _far(child: Child, moved: Mapping[str, Any]) -> str:
    if child.asked_to_stop:
        return "Stopping, and leaving a checkpoint"
    unit = f" {moved['unit']}" if moved["unit"] else ""
    far = f":{unit} {moved['step']} of {moved['steps']}" if moved["steps"] else ""
    return f"{moved['stage']}{far}"


def _own_names(value: Any, names: Mapping[str, str]) -> Any:
    """Puts a reader's own names in the place of a drop's numbers."""
    if not names or not value:
        return value
    if isinstance(value, dict):
        return {k: _own_names(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [_own_names(v, names) for v in value]
    if not isinstance(value, str):
        return value
    file, mark, number = value.partition("#")
    if file in names:
        return names[file] + mark + number
    return _NUMBERED.sub(lambda m: names.get(m[0], m[0]), value)


def _said(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers={"Cache-Control": "no-store"})
