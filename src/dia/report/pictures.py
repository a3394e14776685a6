"""Heatmaps in colours, and sheets of images with captions as one PNG. Draws what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.formats.mark import save_marked
from .constants import DISSOLVE_TS

if TYPE_CHECKING:
    from ..dissolve import Dissolving

COLOURS = mpl.colormaps["inferno"]
_MOST_HEAT = 0.65  # of a colour over an image
_CONTOUR = (0, 255, 255)  # no colour of the heatmap
_BAR, _LOWEST, _HIGHEST, _GREY = (
    12,
    64,
    320,
    110,
)  # of the scale: width, least and greatest height, background


def scale_of(heatmaps: np.ndarray) -> tuple[float, float]:
    """The 1st and 99.9th percentile of all pixels, the ends of the colour scale."""
    low, high = np.percentile(heatmaps, [1, 99.9])
    return float(low), float(high)


def colour(heatmaps: np.ndarray, scale: tuple[float, float] | None = None) -> np.ndarray:
    """Heatmaps in colours, dark to bright, on one common scale.

    Args:
        heatmaps: `(…, H, W)` float.
        scale: values at the ends of the colours; `scale_of` the heatmaps where None.

    Returns:
        `(…, H, W, 3)` uint8.

    Example:
        >>> colour(np.array([[0.0, 1.0]]), (0, 1)).tolist()
        [[[0, 0, 3], [252, 254, 164]]]
    """
    low, high = scale_of(heatmaps) if scale is None else scale
    scaled = np.clip((heatmaps - low) / max(high - low, 1e-9), 0, 1)
    return (COLOURS(scaled)[..., :3] * 255).astype(np.uint8)


def overlay(
    image: np.ndarray, heatmap: np.ndarray, scale: tuple[float, float], level: float | None = None
) -> np.ndarray:
    """An image with its heatmap over it, clearer where it is low, and a contour.

    Args:
        image: `(H, W, 1 or 3)` uint8.
        heatmap: `(H, W)` float.
        scale: the values at the ends of the colours.
        level: the value around which the contour is drawn; None for none.

    Returns:
        `(H, W, 3)` uint8.
    """
    low, high = scale
    weight = _MOST_HEAT * np.clip((heatmap - low) / max(high - low, 1e-9), 0, 1)[..., None]
    mixed = (1 - weight) * image + weight * colour(heatmap, scale)
    if level is not None:
        inside, width = heatmap > level, max(round(min(heatmap.shape) / 250), 1)
        mixed[inside & ~_eroded(inside, width)] = _CONTOUR
    return np.rint(mixed).astype(np.uint8)


def _eroded(inside: np.ndarray, width: int) -> np.ndarray:
    """Takes the border off a region, `(H, W)` bool; no scipy, as scoring an exported file needs none."""
    for _ in range(width):
        x = np.pad(inside, 1, mode="edge")
        inside = x[1:-1, 1:-1] & x[:-2, 1:-1] & x[2:, 1:-1] & x[1:-1, :-2] & x[1:-1, 2:]
    return inside


def with_scale(
    pictures: Sequence[np.ndarray], scale: tuple[float, float], level: float | None = None
) -> Image.Image:
    """Pictures of one size side by side, pixel by pixel, and at their right the scale of colours.

    Args:
        pictures: each `(H, W, 1 or 3)` uint8.
        scale: the values at the ends of the colours.
        level: the value of the contour, which the scale marks; None for none.

    Returns:
        The picture; its top left is that of the first picture. Low ones leave room for the scale below them.
    """
    height, width = pictures[0].shape[:2]
    font = ImageFont.load_default(11)
    ends = {scale[1]: "white", scale[0]: "white"} | ({} if level is None else {level: _CONTOUR})
    names = {value: f"{value:.3g}" for value in ends}
    strip = _BAR + 12 + max(round(font.getlength(name)) for name in names.values())
    canvas = Image.new("RGB", (len(pictures) * width + strip, max(height, _LOWEST)))
    for i, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(np.broadcast_to(picture, (height, width, 3))), (i * width, 0))
    left, top, bottom = len(pictures) * width + 4, 7, min(canvas.height, _HIGHEST) - 7
    values = np.linspace(scale[1], scale[0], bottom - top)[:, None].repeat(_BAR, 1)
    grey = np.full((*values.shape, 1), _GREY, np.uint8)
    canvas.paste(Image.fromarray(overlay(grey, values, scale)), (left, top))
    pen, room = ImageDraw.Draw(canvas), max(scale[1] - scale[0], 1e-9)
    for value, ink in ends.items():
        y = top + (bottom - top) * (1 - np.clip((value - scale[0]) / room, 0, 1))
        pen.line([(left, y), (left + _BAR + 2, y)], fill=ink)
        pen.text((left + _BAR + 5, y), names[value], fill=ink, font=font, anchor="lm")
    return canvas


def dissolved_columns(
    dissolver: Dissolving, images: np.ndarray, ts: Sequence[int] = DISSOLVE_TS
) -> list[tuple[str, np.ndarray]]:
    """Columns of a sheet: images as they are, and dissolved at each t.

    Args:
        dissolver: a fitted dissolver.
        images: `(N, H, W, C)` uint8.
        ts: T diffusion steps in 0–999.

    Returns:
        T + 1 captions, each with `(N, H, W, C)` uint8.
    """
    dissolved = dissolver.dissolve(images, ts)
    return [("image", images), *((f"t = {t}", d) for t, d in zip(ts, dissolved, strict=True))]


def sheet(
    path: Path, columns: Sequence[tuple[str, np.ndarray]], rows: Sequence[str] = (), side: int = 128
) -> Path:
    """Writes a grid of images.

    Args:
        path: the picture, marked as no scan; its folder is made if absent.
        columns: caption and N images of each column, `(N, H, W, C)` uint8 or `(N, H, W)` bool.
        rows: captions of the N rows.
        side: height in pixels to which small images are enlarged, by a whole factor.

    Returns:
        The path.
    """
    font = ImageFont.load_default(13)
    height, width = columns[0][1].shape[1:3]
    factor = max(side // height, 1)
    h, w, gap, top = height * factor, width * factor, 4, 22
    left = 8 + max((int(font.getlength(r)) for r in rows), default=0) if rows else 0
    n = len(columns[0][1])
    canvas = Image.new("RGB", (left + len(columns) * (w + gap), top + n * (h + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for j, (caption, images) in enumerate(columns):
        x = left + j * (w + gap)
        pen.text((x + w / 2, top / 2), caption, fill="black", font=font, anchor="mm")
        for i, image in enumerate(images):
            pixels = image.astype(np.uint8) * 255 if image.dtype == bool else image
            picture = Image.fromarray(
                pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels
            )
            canvas.paste(
                picture.convert("RGB").resize((w, h), Image.Resampling.NEAREST), (x, top + i * (h + gap))
            )
    for i, caption in enumerate(rows):
        pen.text((left - 6, top + i * (h + gap) + h / 2), caption, fill="black", font=font, anchor="rm")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_marked(canvas, path)
    return path
