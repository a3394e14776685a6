"""Heatmaps in colours, and sheets of images with captions as one PNG. Draws what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from ..dissolve import Dissolving

DISSOLVE_TS = (50, 100, 200, 400)  # diffusion steps of the paper's poster
COLOURS = mpl.colormaps["inferno"]


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
        path: the PNG, whose folder is made if absent.
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
    canvas.save(path)
    return path
