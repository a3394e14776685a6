"""The application: the HTTP service, and the reading room where there is one, behind one guard.

The service's routes are here: scores, heatmaps and dissolved copies of images that are sent. It keeps nothing
of a request once it is answered. Knows requests; `batching.py`, `uploads.py` and `answers.py` do the work,
and `middleware.py` guards it. Imports no torch, so that a page is there before a model is.
"""

from __future__ import annotations

import asyncio
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from PIL import Image

from .. import __version__
from ..core.errors import DataError
from ..report.constants import LIMITS
from .answers import (
    DissolveAnswer,
    Dissolved,
    DissolvedCopy,
    DissolveForm,
    Found,
    Health,
    Problem,
    ScoreAnswer,
    ScoreForm,
    as_zip,
    errors_of,
    in_base64,
    note,
    png,
    scored,
    volumes,
)
from .attempts import LOG, Attempts, Keys
from .current import Current, Served
from .limits import Deadline, Limits, Refused
from .middleware import LOOPBACK, Counter, Guard, Work
from .room import pages
from .uploads import Unpacking, plain_name

if TYPE_CHECKING:
    from ..deploy.predictor import Inferencer, Picture, Reading
    from .room.base import Room

_MULTIPART = Form(media_type="multipart/form-data")
_TAGS: list[str | Enum] = ["service"]
_SWEEP = 60.0  # seconds between two looks for sessions that have ended


def _problem(description: str, **headers: str) -> dict[str, Any]:
    shown = {
        name.replace("_", "-"): {"required": True, "schema": {"type": "string", "enum": [value]}}
        for name, value in headers.items()
    }
    return {"model": Problem, "description": description, "headers": shown}


_ANY: dict[int | str, dict[str, Any]] = {
    400: _problem("a malformed request, or a host name that is not served"),
    401: _problem("no token, or a wrong one", WWW_Authenticate="Bearer"),
    403: _problem("sent by a page of another site"),
    429: _problem("too many wrong tokens", Retry_After="2"),
    500: _problem("an error of the service"),
}
_NONE = _problem("no model is served")
_HEALTH: dict[int | str, dict[str, Any]] = {
    400: _ANY[400],
    403: _ANY[403],
    500: _ANY[500],
    503: {"model": Health},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **_ANY,
    408: _problem("did not arrive in time"),
    409: _NONE,
    413: _problem("above a limit"),
    422: _problem("no file could be read, or a value that cannot be"),
    503: _problem("busy", Retry_After="1"),
    504: _problem("not done in time"),
}
_DISSOLVED = _PROBLEMS | {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}
_MODEL = _ANY | {409: _NONE, 503: _PROBLEMS[503]}
_ROOM = _PROBLEMS | {401: _problem("no session"), 404: _problem("there is none such")}


def build_app(
    current: Current,
    token: str | None = None,
    *,
    hosts: Sequence[str] | None = LOOPBACK,
    room: Room | None = None,
    parts: bool = True,
) -> FastAPI:
    """Returns the application, an ASGI one.

    Sets Pillow's limit on pixels, which holds for the whole process.

    Args:
        current: the model in use, and the limits.
        token: asked for by all but `/health`, the login and what it looks like; None to ask for nothing.
        hosts: names that the service answers to; None for any.
        room: the reading room; None for the service alone.
        parts: whether the room's parts are there at once; otherwise `add_parts` adds them.
    """
    limits = current.limits
    Image.MAX_IMAGE_PIXELS = max(limits.max_pixels // 2, 1)  # Pillow refuses what is above twice this
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # and warns below
    counter, attempts = Counter(), Attempts()
    keys = Keys(token, attempts)
    threads = ThreadPoolExecutor(limits.max_concurrent, "dia-request")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(room)) if room else None
        yield
        if sweeping:
            sweeping.cancel()
        attempts.close()
        await asyncio.to_thread(_end, room, current)
        threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Dissolving Is Amplifying",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.attempts = attempts
    app.add_middleware(
        Guard, limits=limits, keys=keys, sessions=room.sessions if room else None, hosts=hosts,
        counter=counter, current=current,
    )  # fmt: skip
    app.add_exception_handler(RequestValidationError, _invalid)
    # the guard asks for the token; this tells the documentation of it
    needs = [] if token is None else [Depends(HTTPBearer(auto_error=False))]
    _add_service(app, current, counter, threads, needs)
    app.include_router(pages.docs())
    if room is not None:
        app.include_router(pages.routes(room, keys))
        if parts:
            add_parts(app, room)

    def described() -> dict[str, Any]:
        """The description by FastAPI, with what depends on the model in use."""
        served = current.served
        on = f" on which `{served.inferencer.detector.method}` was fitted" if served else ""
        app.description = f"Scores images by how unlike the normal ones they are{on}. {LIMITS}"
        app.openapi_schema = None
        found = FastAPI.openapi(app)
        steps = found["components"]["schemas"]["DissolveForm"]["properties"]["t"]["items"]
        steps |= {"minimum": 0, "maximum": max(served.inferencer.t_max - 1, 0) if served else 999}
        return found

    app.openapi = described  # type: ignore[method-assign]
    return app


def add_parts(app: FastAPI, room: Room) -> None:
    """Adds the routes of the room's parts, which import torch.

    Args:
        app: of `build_app`.
        room: what it was built with.
    """
    from .room import reading, teaching, training

    for part in (reading, teaching, training):
        app.include_router(part.routes(room), responses=_ROOM, tags=["reading room"])


async def _sweep(room: Room) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        room.sessions.sweep()


def _end(room: Room | None, current: Current) -> None:
    """Ends what works, and deletes what is held for readers."""
    for close in [*(room.at_end if room else ()), *([room.sessions.close] if room else ()), current.close]:
        try:
            close()
        except Exception as error:
            LOG.error("one part did not end well: %s", type(error).__name__)


# --- routes -----------------------------------------------------------------------------------------------


def _add_service(
    app: FastAPI, current: Current, counter: Counter, threads: ThreadPoolExecutor, needs: Sequence[Any]
) -> None:
    limits = current.limits

    async def in_thread(request: Request, make: Callable[[Deadline], Response]) -> Response:
        work: Work = request.state.work
        work.thread = threads.submit(make, work.deadline)
        return await asyncio.wrap_future(work.thread)

    @app.post("/score", response_model=ScoreAnswer, responses=_PROBLEMS, dependencies=needs, tags=_TAGS)
    async def score(request: Request, form: Annotated[ScoreForm, _MULTIPART]) -> Response:
        """Scores images: p-value, flag, and a heatmap where asked for."""
        _check_query(request)
        sent = await request.form()
        once = ("heatmaps", "findings", "false_alarm_rate")
        if twice := [name for name in once if len(sent.getlist(name)) > 1]:
            raise Refused(422, f"{twice[0]}: sent more than once")
        served: Served = request.state.served
        inferencer = served.inferencer
        rate = inferencer.rate if form.false_alarm_rate is None else form.false_alarm_rate
        threshold = _asked(inferencer.threshold, rate)
        wanted, find = form.heatmaps != "none", form.findings == "list"
        if (wanted or find) and not inferencer.has_heatmaps:
            method = inferencer.detector.method
            raise Refused(422, f"{method} has no heatmaps; send heatmaps=none, findings=none")

        def make(deadline: Deadline) -> Response:
            from ..evaluate.findings import why_none  # which imports scipy

            reading = _read(inferencer, form.files, limits, limits.max_images, deadline, find)
            verdict = served.batcher.score(reading.images(inferencer.shape), wanted or find, deadline)
            heat_scale = inferencer.heat_scale if form.heatmaps == "png" else None
            request.state.work.note = note(reading)
            images = scored(reading, verdict, threshold, heat_scale, wanted)
            if find and verdict.heatmaps is not None:
                for _, group in groupby(range(len(images)), lambda i: reading.pictures[i].file):
                    deadline.check()
                    first, *others = group  # findings are joined within a volume, which is of one file
                    own = slice(first, first + 1 + len(others))
                    found = inferencer.findings(reading.pictures[own], verdict.heatmaps[own], rate)
                    for image, places in zip(images[own], found, strict=True):
                        image.findings = [Found(**place) for place in places]
            answer = ScoreAnswer(
                images=images,
                no_findings=why_none(inferencer.detector.heat_, rate) if find else "",
                volumes=volumes(reading.pictures, verdict, threshold),
                errors=errors_of(reading),
                false_alarm_rate=rate,
                threshold=threshold if np.isfinite(threshold) else None,
                heat_scale=heat_scale,
                model=inferencer.about(),
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        return await in_thread(request, make)

    @app.post(
        "/dissolve", response_model=DissolveAnswer, responses=_DISSOLVED, dependencies=needs, tags=_TAGS
    )
    async def dissolve(request: Request, form: Annotated[DissolveForm, _MULTIPART]) -> Response:
        """Dissolves images: as JSON, or as a zip of PNGs with `Accept: application/zip`."""
        _check_query(request)
        inferencer = request.state.served.inferencer
        ts = list(dict.fromkeys(form.t))
        _asked(inferencer.check_steps, ts)
        if not (most := limits.max_images // len(ts)):
            raise Refused(413, f"{len(ts)} values of t; at most {limits.max_images} are accepted")
        zipped = "application/zip" in request.headers.get("accept", "")

        def make(deadline: Deadline) -> Response:
            reading = _read(inferencer, form.files, limits, most, deadline)
            request.state.work.note = note(reading)
            copies = _dissolved(inferencer, reading, ts, limits.batch, deadline)
            if zipped:
                return Response(as_zip(copies, reading.errors), media_type="application/zip")
            answer = DissolveAnswer(
                images=[
                    Dissolved(name=name, dissolved=[DissolvedCopy(t=t, png=in_base64(p)) for t, p in pngs])
                    for name, pngs in copies
                ],
                errors=errors_of(reading),
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        return await in_thread(request, make)

    @app.get("/model", dependencies=needs, responses=_MODEL, tags=_TAGS)
    async def model(request: Request) -> dict[str, Any]:
        """Facts of the model; and the limits of the service."""
        return {**request.state.served.inferencer.about(), "limits": vars(limits)}

    @app.get("/health", response_model=Health, responses=_HEALTH, tags=_TAGS)
    async def health(response: Response) -> Health:
        """Returns state and load of the service. Needs no token."""
        served = current.served
        alive = served is None or served.batcher.alive
        if not alive:
            response.status_code = 503
        return Health(
            status="ok" if alive else "failing",
            model_loaded=served is not None,
            active_requests=counter.active,
            waiting_images=served.batcher.waiting if served else 0,
        )


# --- requests ---------------------------------------------------------------------------------------------


def _read(
    inferencer: Inferencer,
    files: Sequence[UploadFile],
    limits: Limits,
    most: int,
    deadline: Deadline,
    spacing: bool = False,
) -> Reading:
    """The pictures of the uploads, each with the number of its file."""
    from ..deploy.predictor import Reading

    pictures: list[Picture] = []
    try:
        kept = tempfile.TemporaryDirectory(prefix="dia-request-")
    except OSError as error:
        LOG.error("no temporary folder can be written: %s", error)
        raise Refused(503, "the service cannot keep files now; try again later") from error
    with kept as folder:
        unpacked = Unpacking(Path(folder), limits, deadline)
        for sent in files:
            unpacked.add(sent.filename or "", sent.file)
        errors, series = unpacked.errors, inferencer.series(unpacked.files)
        for i, (file, name) in enumerate(zip(unpacked.files, unpacked.names, strict=True)):
            deadline.check()
            one = inferencer.read(
                [file], names=[name], most=most - len(pictures), spacing=spacing, series=series
            )
            if one.left_out:
                raise Refused(413, f"more than {most} images; send fewer at a time")
            pictures += [replace(picture, file=i) for picture in one.pictures]
            errors += one.errors
    if not pictures:
        first = ": ".join(errors[0]) if errors else "a zip without images"
        raise Refused(422, f"no image could be read; the first: {first}")
    return Reading(pictures, errors)


def _dissolved(
    inferencer: Inferencer, reading: Reading, ts: Sequence[int], batch: int, deadline: Deadline
) -> list[tuple[str, list[tuple[int, bytes]]]]:
    """(name, (t, PNG) of each t) of each picture; the model is free for others between batches."""
    images, out = reading.images(inferencer.shape), []
    for start in range(0, len(images), batch):
        deadline.check()
        copies = inferencer.dissolve(images[start : start + batch], ts)
        for i, picture in enumerate(reading.pictures[start : start + batch]):
            out.append((picture.name, [(t, png(copies[j, i])) for j, t in enumerate(ts)]))
    return out


def _check_query(request: Request) -> None:
    if request.url.query:
        raise Refused(422, "options are sent as form fields, not in the address")


def _asked(do: Callable[..., Any], *values: Any) -> Any:
    """Calls the model; its complaint about the values becomes a refusal."""
    try:
        return do(*values)
    except DataError as error:
        raise Refused(422, str(error)) from error


async def _invalid(_: Request, error: Exception) -> Response:
    """Returns the first validation error as one line, which quotes the field's name and nothing else sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(plain_name(str(part)) for part in first["loc"][1:])  # a client's may be anything
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)
