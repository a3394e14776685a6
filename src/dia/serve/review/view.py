"""How the review page's pieces look: HTML with the pictures inside, on colour scales that are told.

Knows rows of a worklist; knows no page framework, requests or files of marks.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ...deploy.predictor import Nearest
from .worklist import MOST_IMAGES, Row

GAIN = 4  # of the residual: fixed, so that strengths and images can be compared
_COLOURS = mpl.colormaps["inferno"]
_SOLID = 0.75  # share of the scale from which a heatmap hides what is under it

_macros: Any = (
    Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    .get_template("view.html.j2")
    .module
)  # fmt: skip

header, keys, progress, done = _macros.header, _macros.keys, _macros.progress, _macros.done
gone, title, state, no_dissolver = _macros.gone, _macros.title, _macros.state, _macros.no_dissolver


def meaning(rate: float, n: int) -> str:
    """What a false-alarm rate means with n calibration normals, and the smallest in tenths of a per cent."""
    return _macros.meaning(rate, math.ceil(1000 / (n + 1) - 1e-9) / 1000, n)


def table(rows: Sequence[Row], every: Sequence[Row], sort: str, descending: bool) -> str:
    """The list: `rows` of `every` one, and how many are flagged and marked."""
    flagged, marked = sum(r.flagged for r in every), sum(bool(r.mark and r.mark.verdict) for r in every)
    pairs = [(r, uri(r.thumbnail, "jpeg")) for r in rows]
    return _macros.table(pairs, len(every), flagged, marked, sort, descending, MOST_IMAGES)


def picture(row: Row, scale: tuple[float, float] | None) -> str:
    """The image, its heatmap over it, and the scale of its colours."""
    if row.heatmap is None or scale is None:
        return _macros.picture(row, png(row.image), "", (0, 0), "")
    heat = (row.heatmap - scale[0]) / max(scale[1] - scale[0], 1e-9)
    ramp = np.linspace(0, 1, 128)[None].repeat(8, axis=0)
    return _macros.picture(row, png(row.image), png(overlay(heat)), scale, png(overlay(ramp)))


def dissolved(row: Row, image: np.ndarray, t: int) -> str:
    """The image dissolved at t, and what that took away."""
    return _macros.dissolved(row, t, png(image), png(residual(row.image, image)), GAIN)


def nearest(found: Nearest | None, why: str) -> str:
    """The nearest normals of one image, or why there are none."""
    one = found and zip(map(png, found.images[0]), found.names[0], found.distances[0], strict=True)
    return _macros.nearest(list(one or ()), why)


def overlay(heat: np.ndarray) -> np.ndarray:
    """`(H, W)` heat, 0–1 along the scale, to `(H, W, 4)` uint8: the lower, the more transparent."""
    heat = np.clip(heat, 0, 1)
    colour = _COLOURS(heat)
    colour[..., 3] = np.minimum(heat / _SOLID, 1)
    return np.rint(colour * 255).astype(np.uint8)


def residual(image: np.ndarray, dissolved: np.ndarray) -> np.ndarray:
    """x − D(x) of `(H, W, C)` uint8 images, mean of the channels: `(H, W, 1)` uint8, 128 + 4 × difference."""
    difference = (image.astype(np.float32) - dissolved).mean(-1, keepdims=True)
    return np.clip(np.rint(128 + GAIN * difference), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """`(H, W, 1, 3 or 4)` uint8 as a data URI: no file, no address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return uri(buffer.getvalue(), "png")


def uri(data: bytes, kind: str) -> str:
    """An encoded picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
