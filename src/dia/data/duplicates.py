"""Near-duplicates: images as alike as an image and its re-saved copy.

Knows pixels only. Compared are grey thumbnails, standardised, so that brightness and contrast do not count;
their distance is 1 − correlation, in [0, 2]. How near is near is measured on the set itself: its own images
are saved as JPEG, shrunk and enlarged again, and brightened, and two images are near-duplicates if they lie
no farther apart than 95 % of these copies do from their originals. No label and no pair of the set enters.
Mirrored, turned or cropped copies are not found, nor other views of the same patient.
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
MOST = 0.01  # no limit is wider
_LEAST = 1e-5  # nor narrower: single precision
_BLOCK = 2048  # rows and columns compared at once: 16 MiB


class Near(NamedTuple):
    """Of N images, the nearest among others.

    Args:
        image: `(N,)` index of the nearest; 0 where there is none to compare with.
        distance: `(N,)` to it, 1 − correlation; infinite where there is none.
    """

    image: np.ndarray
    distance: np.ndarray


def thumbnails(images: np.ndarray) -> np.ndarray:
    """`(N, H, W, 1 or 3)` uint8 to `(N, 256)` float32, each of mean 0 and length 1; 0 of flat images."""
    out = np.empty((len(images), SIDE * SIDE), np.float32)
    for i, image in enumerate(images):
        grey = _pil(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        x = np.asarray(grey, np.float32).ravel()
        x -= x.mean()
        length = float(np.linalg.norm(x))
        out[i] = x / length if length > 1 else 0
    return out


def limit_of(images: np.ndarray) -> float:
    """How far apart an image of this kind and its re-saved copy are, at most, in 95 % of cases."""
    chosen = (
        images[np.unique(np.linspace(0, len(images) - 1, COPIES).round().astype(int))] if len(images) else []
    )
    distances = [
        1 - float(a @ b)
        for image in chosen
        for original, *copies in [thumbnails(np.stack([image, *_copies(image)]))]
        if original.any()
        for a, b in ((original, copy) for copy in copies)
    ]
    found = float(np.quantile(distances, QUANTILE)) if distances else _LEAST
    return min(max(found, _LEAST), MOST)


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
