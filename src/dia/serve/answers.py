"""The service's forms and answers: what is sent and said, as JSON or a zip.

Knows pictures, verdicts and their words; knows nothing of models, requests or time.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import UploadFile
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from ..evaluate.volume_scores import TOP_K, volume_scores
from ..report.constants import DISSOLVE_TS

if TYPE_CHECKING:
    from ..deploy.predictor import Picture, Reading, Verdict  # which import torch

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

    slice: int = Field(description="number of the image in its volume, from 0, as in its file")
    box: tuple[int, int, int, int] = Field(description="x, y, width, height")
    contour: list[list[tuple[float, float]]] = Field(description="rings of x, y; the last may be holes")
    area_px: int
    area_mm2: float | None = Field(description="null where the file does not tell the size of pixels")
    centroid: tuple[float, float]
    peak: float = Field(description="greatest value of the heatmap in it")
    p_value: float = Field(description="share of normal images with such a peak, at most")
    lesion: int = Field(description="equal for findings that touch from slice to slice of a volume")


class Scored(BaseModel):
    """One image, frame or slice."""

    name: str
    score: float = Field(description="raw, higher = more anomalous")
    p_value: float = Field(description="conformal: share of normal images at least as anomalous, at most")
    flagged: bool = Field(description="score above the threshold")
    heatmap: str | None = Field(None, description="base64, where asked for")
    findings: list[Found] | None = Field(None, description="where asked for")


class Volume(BaseModel):
    """A volume of several images, by their scores; a file may hold more than one."""

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


# --- answers ----------------------------------------------------------------------------------------------


def scored(
    reading: Reading,
    verdict: Verdict,
    threshold: float,
    scale: tuple[float, float] | None,
    wanted: bool = True,
) -> list[Scored]:
    """Returns the answer's images.

    Args:
        reading: the pictures.
        verdict: on them, with heatmaps where they were made.
        threshold: above which a score is flagged.
        scale: where the heatmaps' colours begin and end; None for raw ones.
        wanted: whether heatmaps that were made were asked for.
    """
    heat: list[str] | list[None] = [None] * len(reading.pictures)
    if wanted and verdict.heatmaps is not None:
        from ..report.pictures import colour  # which imports matplotlib

        shown = verdict.heatmaps if scale is None else colour(verdict.heatmaps, scale)
        heat = [in_base64(m.astype("<f4").tobytes() if scale is None else png(m)) for m in shown]
    return [
        Scored(
            name=p.name, score=s, p_value=round(float(q), 6), flagged=s > threshold, heatmap=h, findings=None
        )
        for p, s, q, h in zip(reading.pictures, verdict.scores.tolist(), verdict.p_values, heat, strict=True)
    ]


def volumes(pictures: Sequence[Picture], verdict: Verdict, threshold: float) -> list[Volume]:
    """Returns the answer's volumes of several images; a file may hold more than one.

    Args:
        pictures: in the order of their files, by whose numbers volumes of equal names are told apart.
        verdict: on the pictures.
        threshold: above which a score is flagged.
    """
    out, scores = [], verdict.scores
    for (_, name), group in groupby(range(len(pictures)), lambda i: (pictures[i].file, pictures[i].volume)):
        own = [*group]
        if name is None or len(own) < 2:
            continue
        (found,) = volume_scores((name, pictures[i].name, float(scores[i])) for i in own)
        out.append(
            Volume(
                name=name,
                images=found.slices,
                flagged=int((scores[own] > threshold).sum()),
                max_score=found.max,
                top_mean=found.top_k_mean,
                p_value=found.p_value(float(verdict.p_values[own].min())),
            )
        )
    return out


def as_zip(copies: Sequence[tuple[str, list[tuple[int, bytes]]]], errors: Sequence[tuple[str, str]]) -> bytes:
    """Returns dissolved copies as a zip.

    Args:
        copies: (name, (t, PNG) of each t) of each picture.
        errors: (name, one line) of files left out.
    """
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


def errors_of(reading: Reading) -> list[FileError]:
    """Returns the answer's errors."""
    return [FileError(name=name, error=line) for name, line in reading.errors]


def note(reading: Reading) -> str:
    """Returns what the log says of an answer."""
    return f", {len(reading.pictures)} images, {len(reading.errors)} errors"


def png(image: np.ndarray) -> bytes:
    """Returns `(H, W, 1 or 3)` uint8 as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def in_base64(data: bytes) -> str:
    """Returns bytes as JSON can have them."""
    return base64.b64encode(data).decode()
