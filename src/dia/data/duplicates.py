"""Near-duplicates: images as alike as an image and its re-saved copy, or far more alike than is usual.

Knows pixels only. Compared are grey thumbnails, standardised, so that brightness and contrast do not count;
their distance is 1 − correlation, in [0, 2]. How near is near is measured on the set itself: the greater of

- what 95 % of copies of its own images have: saved as JPEG, shrunk and enlarged again, a tenth brighter;
- a tenth of the median distance from an image to the nearest other, for copies that were trimmed a little; at
  most .01.

No label enters. In a set whose images are all nearly alike, as generated ones, the first is the finer one.
Mirrored, turned or much cropped copies are not found, nor other views of the same patient.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .imageset import ImageSet, resize

SIDE = 16  # of thumbnails
COPIES = 100  # images of which copies are made
QUANTILE = 0.95  # of their distances
SHARE = 0.1  # of the usual distance to the nearest
MOST = 0.01  # no limit is wider
_LEAST = 1e-5  # nor narrower: single precision
_BLOCK = 2048  # rows and columns compared at once: 16 MiB


class Near(NamedTuple):
    """Of N images, the nearest among others, and the distance to it, 1 − correlation; both `(N,)`.

    The distance is infinite where there is none to compare with.
    """

    image: np.ndarray
    distance: np.ndarray


def thumbnails(images: np.ndarray) -> np.ndarray:
    """`(N, H, W, 1 or 3)` uint8 to `(N, 256)` float32, each of mean 0 and length 1; 0 of flat images."""
    out = np.empty((len(images), SIDE * SIDE), np.float32)
    for i, image in enumerate(images):
        grey = _pil(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        x = np.asarray(grey, np.float32).ravel()
        x -= x.mean()
        length = float(np.linalg.norm(x))
        out[i] = x / length if length > 1 else 0
    return out


def limit_of(images: np.ndarray) -> float:
    """How far apart two images of this kind are, at most, to count as near-duplicates; see above."""
    few = np.unique(np.linspace(0, len(images) - 1, min(COPIES, len(images))).round().astype(int))
    apart = [1 - small[1:] @ small[0] for i in few if (small := _with_copies(images[i]))[0].any()]
    usual = nearest(thumbnails(images)).distance
    usual = usual[np.isfinite(usual)]
    wide = SHARE * float(np.median(usual)) if len(usual) else 0.0
    resaved = float(np.quantile(np.concatenate(apart), QUANTILE)) if apart else 0.0
    return min(max(resaved, wide, _LEAST), MOST)


def nearest(images: np.ndarray, among: np.ndarray | None = None, volumes: Sequence[str | None] = ()) -> Near:
    """The nearest to each of `images` among others, block by block: memory is that of the thumbnails.

    Args:
        images: `(N, 256)`, of `thumbnails`.
        among: `(M, 256)`, those of others; None for those that stand before it in `images`.
        volumes: where `among` is None, the volume that each is a slice of: slices of one are not compared.
    """
    within = among is None
    others = images if among is None else among
    ids = (
        np.unique([v or f"\0{i}" for i, v in enumerate(volumes)], return_inverse=True)[1] if volumes else None
    )
    index, best = np.zeros(len(images), int), np.full(len(images), -np.inf)
    for start in range(0, len(images), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(images)))
        end = rows.stop if within else len(others)
        for first in range(0, end, _BLOCK):
            columns = slice(first, min(first + _BLOCK, end))
            alike = images[rows] @ others[columns].T
            if within:
                i, j = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)
                alike[i <= j] = -np.inf
                if ids is not None:
                    alike[ids[i] == ids[j]] = -np.inf
            at = alike.argmax(1)
            value = alike[np.arange(len(at)), at]
            better = value > best[rows]
            best[rows] = np.where(better, value, best[rows])
            index[rows] = np.where(better, at + first, index[rows])
    flat = ~images.any(1)  # nothing to compare
    return Near(index, np.where(flat, np.inf, np.maximum(1 - best, 0)))


def copied(test: ImageSet, normals: ImageSet) -> np.ndarray:
    """`(N,)` bool: which test images have a near-duplicate (or the same image) among training normals."""
    return np.asarray(
        nearest(thumbnails(test.images), thumbnails(normals.images)).distance <= limit_of(normals.images)
    )


def _with_copies(image: np.ndarray) -> np.ndarray:
    return thumbnails(np.stack([image, *_copies(image)]))


def _copies(image: np.ndarray) -> list[np.ndarray]:
    """As they come about by saving anew: a JPEG, three quarters of the size and back, a tenth brighter."""
    h, w, c = image.shape
    stream = io.BytesIO()
    _pil(image).save(stream, "JPEG", quality=75)
    jpeg = np.asarray(Image.open(stream).convert("L" if c == 1 else "RGB")).reshape(h, w, c)
    small = resize(image, max(round(0.75 * h), 1), max(round(0.75 * w), 1))
    brighter = np.clip(np.rint(image * 1.1 + 5), 0, 255).astype(np.uint8)
    return [jpeg, resize(small, h, w), brighter]


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
