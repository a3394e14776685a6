"""The HTTP service: scores, heatmaps and dissolved copies of images that are sent, as JSON.

Knows requests and answers; `predictor.py`, `batching.py` and `uploads.py` do the work, and `middleware.py`
guards it. Keeps nothing of a request once it is answered.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from ..core.environment import environment
from ..core.errors import DataError
from ..deploy.predictor import Inferencer, Picture, Reading, Verdict
from ..evaluate.findings import why_none
from ..evaluate.volume_scores import TOP_K, volume_scores
from ..report.pictures import DISSOLVE_TS, colour
from ..report.style import LIMITS
from .attempts import Attempts
from .batching import Batcher
from .limits import Deadline, Limits, Refused
from .middleware import LOG, LOOPBACK, Counter, Guard, Work
from .uploads import Unpacking, plain_name

PATHS = ("/score", "/dissolve", "/model", "/health")
_MULTIPART = Form(media_type="multipart/form-data")
_FILES = Field(description="images, or zips of images", min_length=1)


class ScoreForm(BaseModel):
    """Images to score, and options."""

    model_config = ConfigDict(extra="forbid")
    files: list[UploadFile] = _FILES
    heatmaps: Literal["none", "png", "raw"] = Field(
        "none",
        description="png: coloured, on one scale for all answers; raw: float32, little-endian, row by row; "
        "both of the model's height and width, as base64",
    )
    findings: Literal["none", "list"] = Field(
        "none",
        description="list: what is higher in the heatmap than the given share of normal images is anywhere, "
        "with box, contour, area and p-value",
    )
    false_alarm_rate: float | SkipJsonSchema[None] = Field(
        None,
        description="share of normal images flagged; default: the model's",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},  # said here, checked by the model
    )


class DissolveForm(BaseModel):
    """Images to dissolve, and diffusion steps."""

    model_config = ConfigDict(extra="forbid")
    files: list[UploadFile] = _FILES
    t: list[int] = Field(list(DISSOLVE_TS), description="diffusion steps, one or several")


class FileError(BaseModel):
    """A file that was left out, and why."""

    name: str
    error: str


class Found(BaseModel):
    """One place of an image, in pixels of its file, x and y from the outer edge of the first."""

    slice: int = Field(description="number of the image in its file, from 0")
    box: tuple[int, int, int, int] = Field(description="x, y, width, height")
    contour: list[list[tuple[float, float]]] = Field(description="rings of x, y; the last may be holes")
    area_px: int
    area_mm2: float | None = Field(description="null where the file does not tell the size of pixels")
    centroid: tuple[float, float]
    peak: float = Field(description="greatest value of the heatmap in it")
    p_value: float = Field(description="share of normal images with such a peak, at most")
    lesion: int = Field(description="equal for findings that touch from slice to slice of a file")


class Scored(BaseModel):
    """One image, frame or slice."""

    name: str
    score: float = Field(description="raw, higher = more anomalous")
    p_value: float = Field(description="conformal: share of normal images at least as anomalous, at most")
    flagged: bool = Field(description="score above the threshold")
    heatmap: str | None = Field(None, description="base64, where asked for")
    findings: list[Found] | None = Field(None, description="where asked for")


class Volume(BaseModel):
    """A file of several images, by their scores."""

    name: str
    images: int
    flagged: int
    max_score: float
    top_mean: float = Field(description=f"of the {TOP_K} greatest scores")
    p_value: float = Field(description="the least of its images', times their number: Bonferroni's")


class ScoreAnswer(BaseModel):
    """Images in the order of their files."""

    images: list[Scored]
    volumes: list[Volume]
    errors: list[FileError]
    false_alarm_rate: float
    threshold: float | None = Field(description="null where the held-out normals are too few for the rate")
    heat_scale: tuple[float, float] | None = Field(description="where the colours of a png begin and end")
    no_findings: str = Field("", description="why nothing can be found at this rate, where that is so")
    model: dict[str, Any]


class DissolvedCopy(BaseModel):
    """An image at one diffusion step."""

    t: int
    png: str = Field(description="base64, of the model's height and width")


class Dissolved(BaseModel):
    """One image, frame or slice."""

    name: str
    dissolved: list[DissolvedCopy]


class DissolveAnswer(BaseModel):
    """Images in the order of their files."""

    images: list[Dissolved]
    errors: list[FileError]


class Health(BaseModel):
    """State and load of the service."""

    status: Literal["ok", "failing"]
    model_loaded: bool
    active_requests: int
    waiting_images: int


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


def _problem(description: str, **headers: str) -> dict[str, Any]:
    shown = {
        name.replace("_", "-"): {"required": True, "schema": {"type": "string", "enum": [value]}}
        for name, value in headers.items()
    }
    return {"model": Problem, "description": description, "headers": shown}


_ANY: dict[int | str, dict[str, Any]] = {
    400: _problem("a malformed request, or a host name that is not served"),
    401: _problem("no token, or a wrong one", WWW_Authenticate="Bearer"),
    429: _problem("too many wrong tokens", Retry_After="2"),
    500: _problem("an error of the service"),
}
_HEALTH: dict[int | str, dict[str, Any]] = {400: _ANY[400], 500: _ANY[500], 503: {"model": Health}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **_ANY,
    403: _problem("sent by a page of another site"),
    408: _problem("did not arrive in time"),
    413: _problem("above a limit"),
    422: _problem("no file could be read, or a value that cannot be"),
    503: _problem("busy", Retry_After="1"),
    504: _problem("not done in time"),
}
_DISSOLVED = _PROBLEMS | {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}


def build_app(
    inferencer: Inferencer,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    token: str | None = None,
    *,
    hosts: Sequence[str] | None = LOOPBACK,
) -> FastAPI:
    """Returns the service as an ASGI application.

    Sets Pillow's limit on pixels, which holds for the whole process.

    Args:
        inferencer: the model.
        limits: of a request, and of all together.
        token: asked for by all but `/health` and the documentation; None to ask for nothing.
        hosts: names that the service answers to; None for any.
    """
    Image.MAX_IMAGE_PIXELS = max(limits.max_pixels // 2, 1)  # Pillow refuses what is above twice this
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # and warns below
    batcher, counter, attempts = Batcher(inferencer.score, limits), Counter(), Attempts()
    threads = ThreadPoolExecutor(limits.max_concurrent, "dia-request")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        attempts.close()
        batcher.close()
        threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPIOffline(
        title="Dissolving Is Amplifying",
        description=f"Scores images by how unlike the normal ones they are on which "
        f"`{inferencer.detector.method}` was fitted. {LIMITS}",
        version=environment()["versions"]["dia"] or "",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.attempts = attempts
    app.add_middleware(
        Guard, paths=PATHS, limits=limits, token=token, hosts=hosts, counter=counter, attempts=attempts
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    # the guard asks for the token; this tells the documentation of it
    needs = [] if token is None else [Depends(HTTPBearer(auto_error=False))]

    async def in_thread(request: Request, make: Callable[[Deadline], Response]) -> Response:
        work: Work = request.state.work
        work.thread = threads.submit(make, work.deadline)
        return await asyncio.wrap_future(work.thread)

    @app.post("/score", response_model=ScoreAnswer, responses=_PROBLEMS, dependencies=needs)
    async def score(request: Request, form: Annotated[ScoreForm, _MULTIPART]) -> Response:
        """Scores images: p-value, flag, and a heatmap where asked for."""
        _check_query(request)
        sent = await request.form()
        if twice := [
            name for name in ("heatmaps", "findings", "false_alarm_rate") if len(sent.getlist(name)) > 1
        ]:
            raise Refused(422, f"{twice[0]}: sent more than once")
        rate = inferencer.rate if form.false_alarm_rate is None else form.false_alarm_rate
        threshold = _asked(inferencer.threshold, rate)
        find = form.findings == "list"
        if (form.heatmaps != "none" or find) and not inferencer.has_heatmaps:
            raise Refused(
                422, f"{inferencer.detector.method} has no heatmaps; send heatmaps=none, findings=none"
            )

        def make(deadline: Deadline) -> Response:
            reading, counts = _read(inferencer, form.files, limits, limits.max_images, deadline, find)
            wanted = form.heatmaps != "none"
            verdict = batcher.score(reading.images(inferencer.shape), wanted or find, deadline)
            heat_scale = inferencer.heat_scale if form.heatmaps == "png" else None
            request.state.work.note = _note(reading)
            images = _scored(reading, verdict, threshold, heat_scale, wanted)
            if find and verdict.heatmaps is not None:
                first = 0
                for _, count in counts:  # findings are joined within a file
                    deadline.check()
                    own = slice(first, first := first + count)
                    found = inferencer.findings(reading.pictures[own], verdict.heatmaps[own], rate)
                    for image, places in zip(images[own], found, strict=True):
                        image.findings = [Found(**place) for place in places]
            answer = ScoreAnswer(
                images=images,
                no_findings=why_none(inferencer.detector.heat_, rate) if find else "",
                volumes=_volumes(counts, verdict, threshold),
                errors=_errors(reading),
                false_alarm_rate=rate,
                threshold=threshold if np.isfinite(threshold) else None,
                heat_scale=heat_scale,
                model=inferencer.about(),
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        return await in_thread(request, make)

    @app.post("/dissolve", response_model=DissolveAnswer, responses=_DISSOLVED, dependencies=needs)
    async def dissolve(request: Request, form: Annotated[DissolveForm, _MULTIPART]) -> Response:
        """Dissolves images: as JSON, or as a zip of PNGs with `Accept: application/zip`."""
        _check_query(request)
        ts = list(dict.fromkeys(form.t))
        _asked(inferencer.check_steps, ts)
        if not (most := limits.max_images // len(ts)):
            raise Refused(413, f"{len(ts)} values of t; at most {limits.max_images} are accepted")
        zipped = "application/zip" in request.headers.get("accept", "")

        def make(deadline: Deadline) -> Response:
            reading, _ = _read(inferencer, form.files, limits, most, deadline)
            request.state.work.note = _note(reading)
            copies = _dissolved(inferencer, reading, ts, limits.batch, deadline)
            if zipped:
                return Response(_as_zip(copies, reading.errors), media_type="application/zip")
            answer = DissolveAnswer(
                images=[
                    Dissolved(name=name, dissolved=[DissolvedCopy(t=t, png=_base64(png)) for t, png in pngs])
                    for name, pngs in copies
                ],
                errors=_errors(reading),
            )
            return Response(answer.model_dump_json(), media_type="application/json")

        return await in_thread(request, make)

    @app.get("/model", dependencies=needs, responses=_ANY)
    async def model() -> dict[str, Any]:
        """Facts of the model; and the limits of the service."""
        return {**inferencer.about(), "limits": vars(limits)}

    @app.get("/health", response_model=Health, responses=_HEALTH)
    async def health(response: Response) -> Health:
        """Returns state and load of the service. Needs no token."""
        if not batcher.alive:
            response.status_code = 503
        return Health(
            status="ok" if batcher.alive else "failing",
            model_loaded=True,
            active_requests=counter.active,
            waiting_images=batcher.waiting,
        )

    def described() -> dict[str, Any]:
        """The description by FastAPI, with the diffusion steps of this model."""
        found = FastAPI.openapi(app)
        steps = found["components"]["schemas"]["DissolveForm"]["properties"]["t"]["items"]
        steps |= {"minimum": 0, "maximum": max(inferencer.t_max - 1, 0)}
        return found

    app.openapi = described  # type: ignore[method-assign]
    return app


# --- requests ---------------------------------------------------------------------------------------------


def _read(
    inferencer: Inferencer,
    files: Sequence[UploadFile],
    limits: Limits,
    most: int,
    deadline: Deadline,
    spacing: bool = False,
) -> tuple[Reading, list[tuple[str, int]]]:
    """The pictures of the uploads, and the number of pictures of each file."""
    pictures: list[Picture] = []
    counts: list[tuple[str, int]] = []
    try:
        kept = tempfile.TemporaryDirectory(prefix="dia-request-")
    except OSError as error:
        LOG.error("no temporary folder can be written: %s", error)
        raise Refused(503, "the service cannot keep files now; try again later") from error
    with kept as folder:
        unpacked = Unpacking(Path(folder), limits, deadline)
        for sent in files:
            unpacked.add(sent.filename or "", sent.file)
        errors = unpacked.errors
        for file, name in zip(unpacked.files, unpacked.names, strict=True):
            deadline.check()
            one = inferencer.read([file], names=[name], most=most - len(pictures), spacing=spacing)
            if one.left_out:
                raise Refused(413, f"more than {most} images; send fewer at a time")
            pictures += one.pictures
            errors += one.errors
            counts.append((name, len(one.pictures)))
    if not pictures:
        first = ": ".join(errors[0]) if errors else "a zip without images"
        raise Refused(422, f"no image could be read; the first: {first}")
    return Reading(pictures, errors), counts


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


# --- answers ----------------------------------------------------------------------------------------------


def _scored(
    reading: Reading, verdict: Verdict, threshold: float, scale: tuple[float, float] | None, drawn: bool
) -> list[Scored]:
    heat: list[str] | list[None] = [None] * len(reading.pictures)
    if drawn and verdict.heatmaps is not None:
        shown = verdict.heatmaps if scale is None else colour(verdict.heatmaps, scale)
        heat = [_base64(m.astype("<f4").tobytes() if scale is None else _png(m)) for m in shown]
    return [
        Scored(
            name=p.name, score=s, p_value=round(float(q), 6), flagged=s > threshold, heatmap=h, findings=None
        )
        for p, s, q, h in zip(reading.pictures, verdict.scores.tolist(), verdict.p_values, heat, strict=True)
    ]


def _volumes(counts: Sequence[tuple[str, int]], verdict: Verdict, threshold: float) -> list[Volume]:
    """The volumes: files with several images. Files are known by their number, as names may be equal."""
    owners = [str(i) for i, (_, count) in enumerate(counts) for _ in range(count)]
    of_several = [owner if counts[int(owner)][1] > 1 else None for owner in owners]
    out = []
    for found in volume_scores(zip(of_several, owners, verdict.scores.tolist(), strict=True)):
        own = np.array(of_several) == found.volume
        out.append(
            Volume(
                name=counts[int(found.volume)][0],
                images=found.slices,
                flagged=int((verdict.scores[own] > threshold).sum()),
                max_score=found.max,
                top_mean=found.top_k_mean,
                p_value=found.p_value(float(verdict.p_values[own].min())),
            )
        )
    return out


def _dissolved(
    inferencer: Inferencer, reading: Reading, ts: Sequence[int], batch: int, deadline: Deadline
) -> list[tuple[str, list[tuple[int, bytes]]]]:
    """(name, (t, PNG) of each t) of each picture; the model is free for others between batches."""
    images, out = reading.images(inferencer.shape), []
    for start in range(0, len(images), batch):
        deadline.check()
        copies = inferencer.dissolve(images[start : start + batch], ts)
        for i, picture in enumerate(reading.pictures[start : start + batch]):
            out.append((picture.name, [(t, _png(copies[j, i])) for j, t in enumerate(ts)]))
    return out


def _as_zip(
    copies: Sequence[tuple[str, list[tuple[int, bytes]]]], errors: Sequence[tuple[str, str]]
) -> bytes:
    buffer = io.BytesIO()
    # stored: PNGs are small already; without the time, which a clock that is wrong may put before 1980
    with zipfile.ZipFile(buffer, "w") as packed:
        for i, (name, pngs) in enumerate(copies):
            safe = re.sub(r"[^\w.#-]+", "_", name)
            for t, png in pngs:
                packed.writestr(zipfile.ZipInfo(f"{i:04d}_{safe}_t{t:03d}.png"), png)
        if errors:
            packed.writestr(
                zipfile.ZipInfo("errors.json"), json.dumps([{"name": n, "error": e} for n, e in errors])
            )
    return buffer.getvalue()


def _errors(reading: Reading) -> list[FileError]:
    return [FileError(name=name, error=line) for name, line in reading.errors]


def _note(reading: Reading) -> str:
    return f", {len(reading.pictures)} images, {len(reading.errors)} errors"


def _png(image: np.ndarray) -> bytes:
    """`(H, W, 1 or 3)` uint8 as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
