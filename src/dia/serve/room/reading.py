"""The routes of the reading page: what is dropped, the list, one case with its pictures, and marks.

Knows requests and answers; `cases`, `drops` and `store` do the work. What a client may ask for is what it
dropped in its own session: each id is random and is looked up there alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Header, Path, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from ...core.errors import DataError
from ...evaluate.findings import of_case
from ..answers import png
from ..limits import Deadline, Refused
from ..sessions import plain_reader, session_of
from .base import Room
from .cases import Cases
from .drops import Drops
from .forms import BINARY, CONFLICT, CSV, JPEG, PNG, MarkForm, ReaderForm, attached, packed, within
from .images.case import Case, lineage_of
from .images.native import sent
from .mark import Key, Mark, as_coco, as_csv
from .told import listed, mark_told, state_of, threshold_of, told, unmarked

_LOG = logging.getLogger("dia.serve")
_GAIN = 4  # of the difference: fixed, so that strengths and images can be compared
_NEAREST = 4  # normals beside an image
_UPLOADS = 8  # requests whose files are taken at a time
_HEAVY = 8  # pictures of one session that are made at a time
Id = Annotated[str, Path(max_length=64)]
Slice = Annotated[int, Path(ge=0, le=2**31)]
Rate = Annotated[float, Query(gt=0, lt=1, description="false-alarm rate")]


class _Heavy:
    """Counts the pictures that are made for a session."""

    def __init__(self) -> None:
        self._left = threading.BoundedSemaphore(_HEAVY)

    @contextmanager
    def one(self) -> Generator[None, None, None]:
        """One more; refused (503) where many are being made."""
        if not self._left.acquire(blocking=False):
            raise Refused(503, "pictures are still being made; try again in a moment")
        try:
            yield
        finally:
            self._left.release()


def routes(room: Room) -> APIRouter:
    """Returns the routes.

    Args:
        room: the shared parts.
    """
    router = APIRouter(prefix="/room", tags=["reading"], responses=CONFLICT)
    threads = ThreadPoolExecutor(_UPLOADS, "dia-upload")
    room.at_end.append(lambda: threads.shutdown(wait=False, cancel_futures=True))

    def cases_of(request: Request) -> Cases:
        return Cases.of(session_of(request), room)

    def drops_of(request: Request) -> Drops:
        return Drops.of(session_of(request), room.limits)

    def key_of(request: Request, case: Case) -> Key:
        return Key(case.now.lineage, case.now.sha256, session_of(request).reader)

    def slice_of(request: Request, id: str, k: int) -> tuple[Cases, Case, int]:
        """The case, and which of its slices has the number `k` in the file."""
        cases = cases_of(request)
        case = cases.get(id)
        if (at := case.at(k)) is None:
            raise Refused(404, f"there is no slice {k}; this image has {len(case.slices)}")
        return cases, case, at

    # --- state --------------------------------------------------------------------------------------

    @router.get("/state")
    def state(request: Request) -> JSONResponse:
        """Who reads, the model in use, and what a page needs to draw scores and heatmaps."""
        return JSONResponse({"reader": session_of(request).reader, **state_of(room)})

    @router.put("/reader")
    def reader(request: Request, form: ReaderForm) -> JSONResponse:
        """Sets the reader's name, where no login gave it."""
        session = session_of(request)
        if session.named:
            raise Refused(409, "the name was given at the login; log out to change it")
        session.reader = plain_reader(form.name)
        return JSONResponse({"reader": session.reader})

    @router.get("/threshold")
    def threshold(request: Request, rate: Rate) -> JSONResponse:
        """The score and the heat above which is flagged at a rate."""
        session_of(request)
        return JSONResponse(threshold_of(room.current.get().inferencer, rate))

    # --- drops --------------------------------------------------------------------------------------

    @router.post("/drops")
    def begin(request: Request) -> JSONResponse:
        """Begins a drop, to which files are then sent."""
        return JSONResponse({"drop": drops_of(request).new()})

    @router.post("/drops/{drop}/files")
    async def files(request: Request, drop: Id, files: Annotated[list[UploadFile], File()]) -> JSONResponse:
        """Adds files to a drop; zips are unpacked. Names may have folders; they are never used as paths."""
        drops, work = drops_of(request), getattr(request.state, "work", None)
        deadline = work.deadline if work else Deadline(room.limits.max_seconds)

        def add() -> dict[str, Any]:
            kept = drops.add(drop, ((one.filename or "", one.file) for one in files), deadline)
            return {"files": len(kept.names), "bytes": kept.bytes, "problems": _problems(kept.problems)}

        thread = threads.submit(add)
        if work:
            work.thread = thread  # counts until it ends
        return JSONResponse(await asyncio.wrap_future(thread))

    @router.post("/drops/{drop}/read", status_code=202)
    def read(request: Request, drop: Id) -> JSONResponse:
        """Begins to read and score a drop, in the background; its files are deleted once read."""
        room.current.get()
        cases = cases_of(request)
        cases.add(drops_of(request).take(drop))
        return JSONResponse({}, 202)

    @router.delete("/drops/{drop}")
    def cancel(request: Request, drop: Id) -> JSONResponse:
        """Deletes a drop, or ends the reading of it; what is scored stays."""
        drops_of(request).cancel(drop)
        cases_of(request).cancel(drop)
        return JSONResponse({})

    # --- the list -----------------------------------------------------------------------------------

    @router.get("/list", responses={204: {"description": "nothing has changed"}})
    def list_(request: Request, since: Annotated[str, Query(max_length=100)] = "") -> Response:
        """All cases of this session, and how far reading and scoring are."""
        cases, me = cases_of(request), session_of(request).reader
        with _stored():
            version = f"{cases.version}.{room.marks.version()}.{hash(me) & 0xFFFFFFFF:x}"
        if since == version:
            return Response(status_code=204)
        progress, done = cases.progress()
        with _stored():
            every = listed(cases, room.marks, me)
        found = cases.drift() if every else None
        return JSONResponse({
            "version": version,
            "progress": {
                "files": progress.files, "read": progress.read, "images": progress.images,
                "scored": progress.scored, "done": done, "problems": _problems(progress.problems),
            },
            "drift": found and {"alarm": found["alarm"], "words": found["words"]},
            "cases": every,
        })  # fmt: skip

    @router.delete("/cases")
    def forget(request: Request) -> JSONResponse:
        """Forgets all images of this session; marks stay."""
        cases_of(request).clear()
        return JSONResponse({})

    # --- one case -----------------------------------------------------------------------------------

    @router.get("/cases/{id}")
    def case(request: Request, id: Id) -> JSONResponse:
        """One case with the scores of its slices, and the marks of all readers."""
        case, me = cases_of(request).get(id), session_of(request).reader
        key, judged = key_of(request, case), case.now
        with _stored():
            marks, mine = room.marks.of_case(key.lineage, key.sha256), room.marks.find(key)
        marks = [case.named(mark) for mark in marks]
        marks.sort(key=lambda mark: mark.key.reader != me)
        own = next((mark for mark in marks if mark.key.reader == me), None)
        slices = zip(case.numbers, judged.scores.tolist(), judged.p_values.tolist(), strict=True)
        return JSONResponse({
            **told(case, own, len(marks) - (own is not None), me),
            "slices": [{"number": k, "score": score, "p_value": round(p, 6)} for k, score, p in slices],
            "channels": case.channels, "dtype": case.dtype, "range": case.range(), "levels": case.levels,
            "spacing": case.spacing, "model_shape": judged.images.shape[1:3],
            "heat": judged.maps is not None, "marks": [mark_told(mark, me) for mark in marks],
            "history": mine.history if mine else 0,
        })  # fmt: skip

    @router.get("/cases/{id}/thumb", responses=JPEG)
    def thumb(request: Request, id: Id) -> Response:
        """A small picture of the slice with the greatest score."""
        return Response(cases_of(request).get(id).thumb(), media_type="image/jpeg")

    @router.get("/cases/{id}/slices/{k}/pixels", responses=BINARY)
    def pixels(
        request: Request, id: Id, k: Slice, accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        """A slice at its own size and depth, row by row, little-endian."""
        _, case, at = slice_of(request, id, k)
        return packed(sent(case.slices[at], case.dtype, case.channels), accept_encoding)

    @router.get("/cases/{id}/slices/{k}/heat", responses=BINARY)
    def heat(request: Request, id: Id, k: Slice, accept_encoding: Annotated[str, Header()] = "") -> Response:
        """The heatmap of a slice at the model's size, float32, little-endian."""
        _, case, at = slice_of(request, id, k)
        if case.now.maps is None:
            raise Refused(409, "this model has no heatmaps")
        (found,) = case.now.heat([at], 1)
        return packed(found.astype("<f4").tobytes(), accept_encoding)

    @router.get("/cases/{id}/findings")
    def findings(request: Request, id: Id, rate: Rate) -> JSONResponse:
        """The connected places above the level of heat at a rate, joined across slices."""
        cases = cases_of(request)
        case = cases.get(id)
        judged = case.now
        scale = None if judged.maps is None else judged.served.inferencer.detector.heat_

        def make() -> dict[str, Any]:
            maps = [] if scale is None else judged.heat(range(len(case.slices)), room.limits.batch)
            return of_case(maps, scale, rate, size=case.shape, spacing=case.spacing, numbers=case.numbers)

        with session_of(request).hold(_Heavy, _Heavy).one():
            return JSONResponse(cases.picture((id, judged.served.number, "findings", rate), make))

    def nearest_of(request: Request, id: str, k: int) -> Any:
        cases, case, at = slice_of(request, id, k)
        served = case.now.served

        def make() -> Any:
            return served.inferencer.nearest(case.now.images[at][None], k=_NEAREST)

        with session_of(request).hold(_Heavy, _Heavy).one():
            return cases.picture((id, served.number, k, "nearest"), make), served.inferencer.why_no_normals

    @router.get("/cases/{id}/slices/{k}/nearest")
    def nearest(request: Request, id: Id, k: Slice) -> JSONResponse:
        """The training normals most like a slice."""
        found, why = nearest_of(request, id, k)
        distances = [] if found is None else found.distances[0].tolist()
        normals = [
            {"url": f"/room/cases/{id}/slices/{k}/nearest/{j}", "distance": round(distance, 4)}
            for j, distance in enumerate(distances)
        ]
        return JSONResponse({"normals": normals, "why": "" if normals else why})

    @router.get("/cases/{id}/slices/{k}/nearest/{j}", responses=PNG)
    def normal(request: Request, id: Id, k: Slice, j: Slice) -> Response:
        """One of these normals, at the model's size."""
        found, why = nearest_of(request, id, k)
        if found is None or j >= found.images.shape[1]:
            raise Refused(404, why or f"there is no normal {j}")
        return Response(png(found.images[0, j]), media_type="image/png")

    @router.get("/cases/{id}/slices/{k}/dissolved", responses=PNG)
    def dissolved(
        request: Request,
        id: Id,
        k: Slice,
        t: Annotated[int, Query(ge=0, le=10**6)],
        what: Literal["image", "difference"] = "image",
    ) -> Response:
        """A slice dissolved at step t, or what that took away, about mid-grey; at the model's size."""
        cases, case, at = slice_of(request, id, k)
        served, image = case.now.served, case.now.images[at]
        with _asked():
            served.inferencer.check_steps([t])

        def make() -> np.ndarray:
            return np.asarray(served.inferencer.dissolve(image[None], [t])[0, 0])

        with session_of(request).hold(_Heavy, _Heavy).one():
            copy = cases.picture((id, served.number, k, "dissolved", t), make)
        if what == "difference":
            taken = (image.astype(np.float32) - copy).mean(-1, keepdims=True)
            copy = np.clip(np.rint(128 + _GAIN * taken / 2), 0, 255).astype(np.uint8)
        return Response(png(copy), media_type="image/png")

    # --- marks --------------------------------------------------------------------------------------

    @router.patch("/cases/{id}/mark")
    def mark(request: Request, id: Id, form: MarkForm) -> JSONResponse:
        """Changes what is sent of my mark, and nothing else."""
        case = cases_of(request).get(id)
        boxes = None if form.boxes is None else [within(box, case) for box in form.boxes]
        with _asked():
            seen = case.seen(form.rate)
        with _stored():
            try:
                made = room.marks.change(
                    key_of(request, case), seen, verdict=form.verdict, note=form.note, boxes=boxes
                )
            except DataError:
                raise
            except ValueError as error:
                raise Refused(422, str(error)) from error
        made = case.named(made)
        return JSONResponse({"mark": mark_told(made, made.key.reader), "history": made.history})

    @router.post("/cases/{id}/undo")
    def undo(request: Request, id: Id) -> JSONResponse:
        """Takes back my last change to a case."""
        case = cases_of(request).get(id)
        with _stored():
            made = room.marks.undo(key_of(request, case))
        if made is None:
            raise Refused(409, "there is nothing to undo")
        made = case.named(made)
        return JSONResponse({"mark": mark_told(made, made.key.reader), "history": made.history})

    def exported(request: Request, what: str) -> list[tuple[str, Mark]]:
        """The names and marks of this list, highest score first; or of all that were ever made."""
        cases = cases_of(request)
        with _stored():
            pairs = cases.with_marks(room.marks)
            if what == "all":
                held = {(case.now.lineage, case.now.sha256): case for case in cases.all()}
                lineages = {key[0] for key in held} | _lineage(room)
                marks = [mark for lineage in sorted(lineages) for mark in room.marks.of_lineage(lineage)]
                of_marks = [(held.get((mark.key.lineage, mark.key.sha256)), mark) for mark in marks]
                return [(case.name, case.named(mark)) if case else ("", mark) for case, mark in of_marks]
        of: dict[str, list[Mark]] = {}
        for case, mark in pairs:
            of.setdefault(case.id, []).append(mark)
        ranked = sorted(cases.all(), key=lambda case: -case.now.score)
        return [(case.name, m) for case in ranked for m in of.get(case.id) or [unmarked(case)]]

    @router.get("/export.csv", responses=CSV)
    def export_csv(request: Request, what: Literal["list", "all"] = "list") -> Response:
        """This list with the marks of all readers, or all marks of this model, as CSV."""
        text = as_csv(exported(request, what))
        return attached(text.encode(), "text/csv; charset=utf-8", f"dia-{what}.csv")

    @router.get("/export.json")
    def export_json(request: Request, what: Literal["list", "all"] = "list") -> Response:
        """The same as COCO: images, boxes and one category."""
        text = json.dumps(as_coco(exported(request, what)), allow_nan=False)
        return attached(text.encode(), "application/json", f"dia-{what}.json")

    return router


# --- answers ----------------------------------------------------------------------------------------------


@contextmanager
def _stored() -> Generator[None, None, None]:
    """What goes wrong with the file of marks is told in the log: it names a place of this machine."""
    try:
        yield
    except DataError as error:
        _LOG.error("%s", error)
        raise Refused(500, "the marks cannot be saved or read; the server's log says why") from error


@contextmanager
def _asked() -> Generator[None, None, None]:
    """The model's complaint about a value becomes a refusal."""
    try:
        yield
    except DataError as error:
        raise Refused(422, str(error)) from error


def _lineage(room: Room) -> set[str]:
    return {lineage_of(room.current.get().inferencer)} if room.current.there else set()


def _problems(problems: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "error": line} for name, line in problems]
