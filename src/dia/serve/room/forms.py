"""What the routes of the reading page take, and answers that are no JSON. Knows no room and no session."""

from __future__ import annotations

import gzip
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from ..answers import Problem
from ..limits import Refused
from .images.case import Case
from .mark import Box

BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}
CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "not now: no model is served, or nothing can be done"}
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ReaderForm(_Strict):
    """Who reads."""

    name: str = Field(max_length=400)


class BoxForm(_Strict):
    """A rectangle in native pixels; slices are counted as in their file."""

    slice: int = Field(0, ge=0, le=2**31)
    x: float
    y: float
    w: float = Field(gt=0)
    h: float = Field(gt=0)


class MarkForm(_Strict):
    """What changes of a mark; what is not sent stays."""

    verdict: Literal["agree", "disagree", "unsure", ""] | None = None
    note: str | None = None
    boxes: list[BoxForm] | None = None
    rate: float = Field(gt=0, lt=1)


def within(box: BoxForm, case: Case) -> Box:
    """Returns the part of a box that lies in its slice.

    Args:
        box: as it was sent.
        case: that it was drawn on.

    Raises:
        Refused: no part does (422).
    """
    height, width = case.shape
    at = case.at(box.slice)
    left, top = (round(max(v, 0.0), 2) for v in (box.x, box.y))
    right, bottom = round(min(box.x + box.w, width), 2), round(min(box.y + box.h, height), 2)
    x, y, w, h = left, top, round(right - left, 2), round(bottom - top, 2)
    if at is None or w <= 0 or h <= 0:
        raise Refused(422, "a box lies outside its image")
    return Box(at, x, y, w, h)


def packed(data: bytes, accepted: str) -> Response:
    """Returns bytes, by gzip where the client takes it.

    Args:
        data: the bytes.
        accepted: the header Accept-Encoding.
    """
    headers = {"Vary": "Accept-Encoding"}
    if "gzip" in accepted:
        data = gzip.compress(data, 1)
        headers["Content-Encoding"] = "gzip"
    return Response(data, media_type="application/octet-stream", headers=headers)


def attached(data: bytes, kind: str, name: str) -> Response:
    """Returns a file to save.

    Args:
        data: its bytes.
        kind: its media type.
        name: that it is saved under.
    """
    return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
