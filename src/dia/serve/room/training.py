"""The routes of the page that trains: what was dropped or chosen is checked, trained on, and served.

Knows requests, sessions and words; the work is in `train/`, most of it in processes of their own. Names of a
reader's files stay in the session: neither the disk nor the log learns them.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ...core.errors import DataError
from ..limits import Refused
from ..sessions import Session, session_of
from .train.asked import OF, CheckAsked, RunAsked, StartAsked, methods
from .train.jobs import BUSY, Checked, Jobs
from .train.normals import NO_SET, Source, folders_of, folders_told, own_names, sets_in, told_apart
from .train.runs import Runs

if TYPE_CHECKING:
    from .base import Room

IDLE = 900.0  # seconds without a request of its session after which what was checked is deleted
_LOOK = 15.0  # seconds between two looks for that


def _take(session: Session, id: str) -> Any:
    from .drops import Drops

    return Drops.of(session).take(id)


def routes(room: Room, take: Callable[[Session, str], Any] = _take) -> APIRouter:
    """Makes the routes.

    Args:
        room: what the parts of the reading room share.
        take: takes a drop out of a session's.
    """
    jobs = Jobs(room.runs, room.data_root)
    page = Training(room, jobs, take)
    room.at_end.append(page.close)
    router = APIRouter(prefix="/room/train")

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

    @router.get("/check/thumbs/{number}", response_class=Response, responses=OF["image/jpeg"])
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

    @router.get("/report/{run}", response_class=Response, responses=OF["text/html"])
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
        self._runs = Runs(jobs)
        self._offered: tuple[float, dict[str, tuple[str, str]]] = (-1e9, {})
        self._all: dict[int, Checked] = {}  # with drops, of all sessions, for the sweeper
        self._timer, self._ended = threading.Timer(0, lambda: None), False

    def checked(self, session: Session) -> Checked:
        """Returns what a session is about to train on."""
        found = session.hold(Checked, Checked)
        found.seen = time.monotonic()
        return found

    def sweep(self, late: float | None = None) -> None:
        """Deletes what sessions have dropped that ask no more; again and again, while there is any.

        Args:
            late: in seconds of a clock that never goes back; `IDLE` ago where None.
        """
        late = time.monotonic() - IDLE if late is None else late
        for key, one in list(self._all.items()):
            if one.seen < late:
                one.close()
            if one.drop is None:
                del self._all[key]
        if self._all and not self._ended:
            self._timer = threading.Timer(_LOOK, self.sweep)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Stops what is under way, which leaves a checkpoint."""
        self._ended = True
        self._timer.cancel()
        self.jobs.close()

    # --- what is asked ------------------------------------------------------------------------------------

    def check(self, session: Session, asked: CheckAsked) -> None:
        """Begins to look at a drop, a set, or once more at what the session has.

        Args:
            session: who asks.
            asked: for what.

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
            before, self._all[id(checked)] = bool(self._all), checked
            if not before:
                self.sweep()
        elif asked.data is not None:
            if asked.data not in sets_in(self.jobs.data_root):
                raise Refused(422, NO_SET)
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

    def start(self, session: Session, asked: StartAsked) -> None:
        """Begins a training.

        Args:
            session: who asks.
            asked: for what.

        Raises:
            Refused: see `Jobs.start`; or what is asked for is not what was checked (409).
        """
        checked = self.checked(session)
        self.jobs.check_name(asked.name)
        source = checked.source
        other = asked.data is not None and (source is None or source.name != asked.data)
        if other or (asked.drop is not None and (checked.drop is None or checked.drop.id != asked.drop)):
            raise Refused(409, "have the images checked first")
        if asked.method is not None and checked.result is not None and asked.method != checked.method:
            raise Refused(
                409, f"the images were checked for {checked.method}; check them for the other method"
            )
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
            Refused: there is no such run (404); the name cannot be one (422); it is being taught (409).
        """
        self.jobs.check_name(run)
        if not self.jobs.there(run):
            raise Refused(404, "there is no such run")
        if (self.jobs.runs / run).resolve() in self.room.writing:
            raise Refused(409, "this model is being taught; wait until that is done")
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

        Args:
            session: who asks.
            number: of the picture, from 0.

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
            "job": self._job(checked), "check": self._check(checked),
            "runs": self._runs.rows(self._serving()),
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
                "words": child.words(moved)}  # fmt: skip

    def _check(self, checked: Checked) -> dict[str, Any] | None:
        source = checked.source
        if source is None:
            return None
        names: Mapping[str, str] = checked.drop.names if checked.drop is not None else {}
        made = {
            "state": "checking" if checked.child else "ready" if checked.result else "failed",
            "kind": source.kind, "name": source.name, "patients": source.patients,
            "method": checked.method, "rate": checked.rate,
            "problem": own_names(checked.problem, names) or None,
            "left_out": [list(p) for p in checked.drop.problems][:50] if checked.drop is not None else [],
        }  # fmt: skip
        if not (found := checked.result):
            return made
        made |= {k: own_names(found[k], names) for k in ("headline", "findings", "usable", "images", "kinds",
                                                          "sizes", "size", "problems")}  # fmt: skip
        made["thumbs"] = len(found["thumbs"]) if checked.drop is not None else 0
        made["folders"] = folders_told(source, names, found)
        return made

    def facts(self, run: str) -> dict[str, Any]:
        """Returns the facts of a run.

        Raises:
            Refused: there is none (404); the name cannot be one (422).
        """
        self.jobs.check_name(run)
        if (found := self._runs.facts(run, self._serving())) is None:
            raise Refused(404, "there is no such run")
        return found

    def _serving(self) -> str | None:
        try:
            run = Path(self.room.current.get().run).absolute()
        except Refused:  # there is none, or none yet
            return None
        return run.name if run.parent == self.jobs.runs else None


def _said(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers={"Cache-Control": "no-store"})
