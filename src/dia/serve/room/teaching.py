"""The routes of teaching: the marks of a session teach the model in use, and are taken back again.

One update at a time, in a thread of its own, whatever reader began it; the model in use answers meanwhile.
The folder is replaced whole, so a stop in between leaves the model before or after. Knows requests,
sessions and the model in use; `deploy.update` does the work.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from ...core.errors import DataError, first_line, printable
from ...data.imageset import codes_of
from ...deploy.update import undo_folder, update_folder
from ...deploy.update.marks import majority
from ...detectors.teaching.lesson import FEWEST, LEVEL
from ...detectors.teaching.model import cannot_teach
from ...detectors.teaching.order import next_to_mark
from ...detectors.teaching.probe import weight_of
from ...detectors.teaching.taught import summary_of
from ..current import Served
from ..limits import Refused
from ..middleware import frames
from ..sessions import session_of
from .base import Room
from .cases import Cases
from .images.case import Marked
from .mark import UNSURE

_LOG = logging.getLogger("dia.serve")
_BUSY = "the model is being taught; wait until that is done"
_STOPPED = "the service is stopping"
_END = 30.0  # seconds that the end of the service waits for an update


class TeachForm(BaseModel):
    """Nothing is asked for but to begin."""

    model_config = ConfigDict(extra="forbid")


class Teaching:
    """The one update that may run, and what became of the last.

    Args:
        room: the shared parts.
    """

    next = staticmethod(next_to_mark)  # which images are worth marking next

    def __init__(self, room: Room):
        self.room = room
        self.last: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether an update or undo runs."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, marked: Sequence[Marked]) -> None:
        """Begins to teach the model in use.

        Args:
            marked: images with labels, of one image several where several readers marked it.

        Raises:
            Refused: an update runs, no model is in use, it cannot be taught, or there is no mark (409).
        """
        served = self.room.current.get()
        detector = served.inferencer.detector
        if detector.taught_ is None and (reason := cannot_teach(detector)):
            raise Refused(409, f"this model cannot be taught: {reason}")
        images, labels, flagged, units = agreed(marked, served.inferencer.shape)
        if not len(images):
            raise Refused(409, "no image of this session is marked normal or anomalous; mark some first")
        about = {"readers": sorted({one.reader for one in marked if one.reader})}

        def work() -> tuple[bool, dict[str, Any]]:
            made = update_folder(
                served.run, images, labels, about, flagged=flagged, units=units,
                device=self.room.current.device,
            )  # fmt: skip
            told = {"kept": made.kept, "words": made.words, "before": made.before, "after": made.after}
            return made.kept, told

        self._start(served, work)

    def undo(self) -> None:
        """Begins to bring back the model in use as it was fitted.

        Raises:
            Refused: an update runs, no model is in use, or nothing was taught (409).
        """
        served = self.room.current.get()
        if served.inferencer.detector.taught_ is None:
            raise Refused(409, "no marks have taught this model; there is nothing to undo")

        def work() -> tuple[bool, dict[str, Any]]:
            undo_folder(served.run)
            words = "the model is as it was fitted; your marks are kept"
            return True, {"kept": False, "words": words, "before": None, "after": None}

        self._start(served, work)

    def close(self) -> None:
        """Waits for the update that runs, for a while; what is not done by then changes nothing."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None:
            thread.join(_END)

    def _start(self, served: Served, work: Callable[[], tuple[bool, dict[str, Any]]]) -> None:
        folder = served.run.resolve()

        def run() -> None:
            try:
                changed, told = work()
                if changed and self.room.current.served is served:
                    self.room.current.serve(served.run, normals=served.inferencer.normals)
            except Exception as error:
                _LOG.warning("an update of the model failed: %s", frames(error))
                line = first_line(error) if isinstance(error, DataError) else "the update failed; see the log"
                for place in (str(served.run), str(served.run.resolve()), str(served.run.parent.resolve())):
                    line = line.replace(f"{place}: ", "").replace(place, served.run.name)
                told = {"kept": False, "words": printable(line), "before": None, "after": None}
            finally:
                self.room.writing.discard(folder)
            self.last = told

        with self._lock:
            if self.running:
                raise Refused(409, _BUSY)
            if self._closed:
                raise Refused(503, _STOPPED)
            self.last = None
            self.room.writing.add(folder)
            self._thread = threading.Thread(target=run, name="dia-teach", daemon=True)
            self._thread.start()


def agreed(
    marked: Sequence[Marked], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Makes of several readers' marks of an image one, that of most; images in dispute are left out.

    Args:
        marked: images with labels.
        shape: (H, W, C) of the images that the model takes; others are left out.

    Returns:
        Images `(M, H, W, C)` uint8, each once, labels `(M,)`, flags `(M,)` bool, and units `(M,)`: whole
        numbers that are equal for images of one patient or case.
    """
    votes: dict[str, list[Marked]] = defaultdict(list)
    for one in marked:
        if one.image.shape == shape:
            votes[one.sha256].append(one)
    labels = majority({sha: [one.label for one in of] for sha, of in votes.items()})
    images = np.array([votes[sha][0].image for sha in labels], np.uint8).reshape(-1, *shape)
    flagged = np.array([any(one.flagged for one in votes[sha]) for sha in labels], bool)
    units = codes_of([votes[sha][0].unit for sha in labels], len(labels))
    return images, np.array(list(labels.values()), int), flagged, units


def routes(room: Room) -> APIRouter:
    """Returns the routes.

    Args:
        room: the shared parts.
    """
    router, teaching = APIRouter(prefix="/room/teach"), Teaching(room)
    room.at_end.append(teaching.close)

    @router.get("")
    def state(request: Request) -> JSONResponse:
        """The marks of this session, what was taught, and what became of the last update."""
        running = teaching.running  # asked first: what follows is then what it left
        cases = Cases.of(session_of(request), room)
        served = room.current.served
        marked = cases.marked(room.marks)
        unsure = len({case.id for case, mark in cases.with_marks(room.marks) if mark.verdict == UNSURE})
        told: dict[str, Any] = {
            "marks": {"usable": 0, "anomalous": 0, "normal": 0, "unsure": unsure}, "taught": None,
            "advice": "no model is served", "watch": [], "running": running, "last": teaching.last,
        }  # fmt: skip
        if served is None:
            return JSONResponse(told)
        _, labels, _, units = agreed(marked, served.inferencer.shape)
        counts = {"usable": len(labels), "anomalous": int(labels.sum()), "normal": int((labels == 0).sum())}
        detector = served.inferencer.detector
        told |= {
            "marks": counts | {"unsure": unsure}, "taught": summary_of(detector.facts_.get("taught")),
            "advice": advice(detector, labels, units), "watch": watched(detector, cases),
        }  # fmt: skip
        return JSONResponse(told)

    @router.post("", status_code=202)
    def teach(request: Request, form: TeachForm) -> JSONResponse:
        """Begins to teach the model in use by the marks of all readers on the images of this session."""
        teaching.begin(Cases.of(session_of(request), room).marked(room.marks))
        return JSONResponse({"running": True}, 202)

    @router.post("/undo", status_code=202)
    def undo(request: Request) -> JSONResponse:
        """Begins to bring back the model as it was fitted; marks stay."""
        session_of(request)
        teaching.undo()
        return JSONResponse({"running": True}, 202)

    return router


def advice(detector: Any, labels: np.ndarray, units: np.ndarray) -> str:
    """Returns what would make an update possible, or better, in a line.

    Args:
        detector: the model in use.
        labels: `(M,)` of the marks of this session; those that it has learned from count too.
        units: `(M,)` whole numbers, equal for images of one patient or case.
    """
    if detector.taught_ is None and (reason := cannot_teach(detector)):
        return f"this model cannot be taught: {reason}"
    anomalous, n = len(set(units[labels == 1])), len(labels)
    if detector.taught_ is not None:
        earlier = detector.taught_.learned
        anomalous, n = anomalous + len(set(earlier.units[earlier.labels == 1])), n + len(earlier)
    if not weight_of(n):
        return "five marks or fewer change nothing; mark what is flagged first"
    if anomalous < FEWEST:
        return f"at least {FEWEST} patients or cases marked anomalous are needed to judge an update"
    tried = f"an update is tried, and kept only if it ranks better, not likely by chance (p ≤ {LEVEL})"
    return tried if n >= 20 else f"{tried}; with 20 marks it has its full weight"


def watched(detector: Any, cases: Cases) -> list[dict[str, Any]]:
    """Returns missed anomalies with scores and p-values before and after, as far as this session holds them.

    Args:
        detector: the model in use.
        cases: of the session, whose names they have.
    """
    watch = (detector.facts_.get("taught") or {}).get("watch") or ()
    held = {sha: case for case in cases.all() for sha in case.now.hashes}
    keys = ("before", "after", "p_before", "p_after")
    return [
        {"id": held[sha].id, "name": held[sha].name, **{key: one.get(key) for key in keys}}
        for one in watch
        if (sha := one.get("sha256")) in held
    ]
