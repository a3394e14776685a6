"""The pieces of the review page: HTML with the pictures inside, and the colour scales beside them.

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
        trim_blocks=True, lstrip_blocks=True
    )
    .get_template("view.html.j2")
    .module
)  # fmt: skip

header, keys, progress, done = _macros.header, _macros.keys, _macros.progress, _macros.done
drift = _macros.drift
gone, title, state, no_dissolver = _macros.gone, _macros.title, _macros.state, _macros.no_dissolver


def meaning(rate: float, n: int) -> str:
    """Returns what a false-alarm rate means, and the smallest possible one in tenths of a per cent.

    Args:
        rate: in (0, 1).
        n: number of calibration normals.
    """
    return _macros.meaning(rate, math.ceil(1000 / (n + 1) - 1e-9) / 1000, n)


def table(rows: Sequence[Row], every: Sequence[Row], sort: str, descending: bool) -> str:
    """Returns the list, and how many images are flagged and marked.

    Args:
        rows: shown, in order.
        every: all rows of the worklist.
        sort: the key of `SORTS` they are sorted by.
        descending: whether the greatest comes first.
    """
    flagged, marked = sum(r.flagged for r in every), sum(bool(r.mark and r.mark.verdict) for r in every)
    pairs = [(r, _uri(r.thumbnail, "jpeg")) for r in rows]
    return _macros.table(pairs, len(every), flagged, marked, sort, descending, MOST_IMAGES)


def picture(row: Row, scale: tuple[float, float] | None) -> str:
    """Returns the image, its heatmap over it, and the scale of its colours.

    Args:
        row: the open one.
        scale: heat at which the colours begin and end; None without heatmaps.
    """
    if row.heatmap is None or scale is None:
        return _macros.picture(row, _png(row.image), "", (0, 0), "")
    heat = (row.heatmap - scale[0]) / max(scale[1] - scale[0], 1e-9)
    ramp = np.linspace(0, 1, 128)[None].repeat(8, axis=0)
    return _macros.picture(row, _png(row.image), _png(_overlay(heat)), scale, _png(_overlay(ramp)))


def dissolved(row: Row, image: np.ndarray, t: int) -> str:
    """Returns the image dissolved at t, and the residual.

    Args:
        row: the open one.
        image: `(H, W, C)` uint8, dissolved.
        t: the diffusion step.
    """
    return _macros.dissolved(row, t, _png(image), _png(_residual(row.image, image)), GAIN)


def nearest(found: Nearest | None, why: str) -> str:
    """Returns the nearest normals of one image, or why there are none.

    Args:
        found: of the one image; None without normals.
        why: the reason for None.
    """
    one = found and zip(map(_png, found.images[0]), found.names[0], found.distances[0], strict=True)
    return _macros.nearest(list(one or ()), why)


def _overlay(heat: np.ndarray) -> np.ndarray:
    """`(H, W)` heat, 0–1 along the scale, to `(H, W, 4)` uint8: the lower, the more transparent."""
    heat = np.clip(heat, 0, 1)
    colour = _COLOURS(heat)
    colour[..., 3] = np.minimum(heat / _SOLID, 1)
    return np.rint(colour * 255).astype(np.uint8)


def _residual(image: np.ndarray, dissolved: np.ndarray) -> np.ndarray:
    """The residual, 128 + 4 · mean of x − D(x) over the channels: `(H, W, 1)` uint8, of `(H, W, C)` uint8."""
    difference = (image.astype(np.float32) - dissolved).mean(-1, keepdims=True)
    return np.clip(np.rint(128 + GAIN * difference), 0, 255).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """`(H, W, 1, 3 or 4)` uint8 as a data URI: no file, no address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return _uri(buffer.getvalue(), "png")


def _uri(data: bytes, kind: str) -> str:
    """An encoded picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
