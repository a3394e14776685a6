"""Checks of a data set before it is trusted: counts, duplicates, leaks across splits, label conflicts.

Knows only `ImageSet`. Two images are the same when their pixels are (grey repeated to RGB counts as grey),
and nearly the same as `duplicates.py` has it. Other slices of one patient are not found.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .imageset import ANOMALOUS, NORMAL, ImageSet, resize

SHOWN = 20  # examples named per finding


def check(sets: dict[str, ImageSet]) -> dict[str, Any]:
    """Counts and findings over the splits of one data set, ready for JSON.

    Args:
        sets: the image sets by split name.

    Returns:
        `splits`: per split `images`, `normal`, `anomalous`, `unlabelled`, `height`, `width`, `channels`,
        `with_mask` (images with any anomalous pixel; None without masks), `skipped`, `sha256`, and
        `duplicates` (`images`: how many repeat an earlier one; `groups`: names of the first 20).
        `leaks`: per pair of splits with images in common `between`, `images` (how many different ones)
        and `pairs` (names and labels on both sides, the first 20).
        `label_conflicts`: `images` (pixel-identical with different labels) and the first 20 `groups`.
        `near_duplicates`: `limit` (of 1 − correlation, by the first split's normals); `within`, by split, and
        `between`, per pair of splits: `images` (how many of the split, or of the second one, have another at
        most so far; identical ones among them), `of` (how many there are), `different_labels` (of the found,
        where the nearest has the other label) and the first 20 `pairs`, nearest first. To be looked at: not
        all are mistakes.
        `ok`: no (identical) duplicates, leaks or conflicts.
    """
    where = {split: _by_pixels(s) for split, s in sets.items()}
    splits = {split: _summary(s, where[split]) for split, s in sets.items()}
    leaks = []
    for a, b in combinations(sets, 2):
        common = [h for h in where[a] if h in where[b]]  # in the order of `a`
        pairs = [{split: _one(sets[split], where[split][h][0]) for split in (a, b)} for h in common[:SHOWN]]
        if common:
            leaks.append({"between": [a, b], "images": len(common), "pairs": pairs})
    conflicts = _conflicts(sets, where)
    clean = not leaks and not conflicts and not any(s["duplicates"]["images"] for s in splits.values())
    return {
        "splits": splits,
        "leaks": leaks,
        "label_conflicts": {"images": len(conflicts), "groups": conflicts[:SHOWN]},
        "near_duplicates": _near_duplicates(sets),
        "ok": clean,
    }


def _by_pixels(s: ImageSet) -> dict[str, list[int]]:
    """Positions of each different image, by hash."""
    where = defaultdict(list)
    for i, x in enumerate(s.images):
        if x.shape[-1] == 3 and (x == x[..., :1]).all():
            x = x[..., :1]
        h = hashlib.sha256(repr(x.shape).encode())
        h.update(np.ascontiguousarray(x).tobytes())
        where[h.hexdigest()].append(i)
    return dict(where)


def _summary(s: ImageSet, where: dict[str, list[int]]) -> dict[str, Any]:
    height, width, channels = s.shape
    known = s.labels is not None
    groups = [[s.names[i] for i in found] for found in where.values() if len(found) > 1]
    return {
        "images": len(s),
        "normal": int(np.sum(s.labels == NORMAL)) if known else 0,
        "anomalous": int(np.sum(s.labels == ANOMALOUS)) if known else 0,
        "unlabelled": 0 if known else len(s),
        "height": height,
        "width": width,
        "channels": channels,
        "with_mask": None if s.masks is None else int(s.masks.any(axis=(1, 2)).sum()),
        "skipped": list(s.skipped),
        "sha256": s.sha256(),
        "duplicates": {"images": len(s) - len(where), "groups": groups[:SHOWN]},
    }


def _near_duplicates(sets: dict[str, ImageSet]) -> dict[str, Any]:
    limit = limit_of(next(iter(sets.values())).normals().images)
    small = {split: thumbnails(s.images) for split, s in sets.items()}
    within = {
        split: _pairs(s, s, nearest(small[split], volumes=s.volumes), limit, ("earlier", "image"))
        for split, s in sets.items()
    }
    between = [
        {
            "between": [a, b],
            **_pairs(sets[a], sets[b], nearest(small[b], small[a]), limit, (a, b)),
        }
        for a, b in combinations(sets, 2)
    ]
    return {"limit": limit, "within": within, "between": [pair for pair in between if pair["images"]]}


def _pairs(a: ImageSet, b: ImageSet, near: Near, limit: float, sides: tuple[str, str]) -> dict[str, Any]:
    """What of `b` has a near-duplicate in `a`, as `near` says."""
    found = np.flatnonzero(near.distance <= limit)
    found = found[np.argsort(near.distance[found], kind="stable")]
    of_a, of_b = (np.full(len(s), -1) if s.labels is None else s.labels for s in (a, b))
    first, second = of_a[near.image[found]], of_b[found]
    return {
        "images": len(found),
        "of": len(b),
        "different_labels": int(np.sum((first != second) & (first >= 0) & (second >= 0))),
        "pairs": [
            {
                sides[0]: _one(a, int(near.image[i])),
                sides[1]: _one(b, int(i)),
                "distance": round(float(near.distance[i]), 6),
            }
            for i in found[:SHOWN]
        ],
    }


def _one(s: ImageSet, i: int) -> dict[str, Any]:
    return {"name": s.names[i], "label": None if s.labels is None else int(s.labels[i])}


def _conflicts(sets: dict[str, ImageSet], where: dict[str, dict[str, list[int]]]) -> list[list[dict]]:
    """Groups of identical images, over all splits, that carry both labels."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for split, s in sets.items():
        for h, found in where[split].items():
            groups[h] += [{"split": split, **_one(s, i)} for i in found]
    return [g for g in groups.values() if {NORMAL, ANOMALOUS} <= {image["label"] for image in g}]


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
