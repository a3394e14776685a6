"""Checks of a data set before it is trusted: counts, duplicates, leaks across splits, label conflicts.

Knows only `ImageSet`. Two images are the same when their pixels are (grey repeated to RGB counts as grey).

Near-duplicates are images as alike as an image and its re-saved copy, or far more alike than is usual in the
set. Grey thumbnails are compared, standardised, so that brightness and contrast do not count; their distance
is 1 − correlation, in [0, 2]. The limit is measured on the set itself: the greater of

- the distance that 95 % of copies of its own images stay below: copies saved as JPEG, shrunk and enlarged
  again, or a tenth brighter;
- a tenth of the median distance from an image to the nearest other, for copies that were trimmed a little; at
  most .01.

No label enters. In a set whose images are all nearly alike, as generated ones are, the first is the finer
limit. Mirrored, turned or much cropped copies are not found, nor other slices or views of one patient.
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
SIDE = 16  # of a thumbnail, in pixels
COPIES = 100  # images of which copies are made, to measure the limit
QUANTILE = 0.95  # of the distances to those copies
SHARE = 0.1  # of the usual distance to the nearest image
MOST = 0.01  # the widest limit
_LEAST = 1e-5  # the narrowest: thumbnails are single precision
_BLOCK = 2048  # images on either side compared at once: 16 MiB


class Nearest(NamedTuple):
    """The nearest among other images, for each of N images.

    Args:
        image: `(N,)` int, number of the nearest one.
        distance: `(N,)` float, the distance to it, 1 − correlation; infinite where there is none to compare.
    """

    image: np.ndarray
    distance: np.ndarray


def check(sets: dict[str, ImageSet]) -> dict[str, Any]:
    """Counts and findings over the splits of one data set, ready for JSON.

    Args:
        sets: the image sets by split name.

    Returns:
        `splits`: per split `images`, `normal`, `anomalous`, `unlabelled`, `height`, `width`, `channels`,
        `with_mask` (images with any anomalous pixel; None without masks), `skipped`, `sha256`,
        `duplicates` (`images`: how many repeat an earlier one; `groups`: names of the first 20 groups), and
        where images are slices `volumes` and `slices`, their numbers.
        `leaks`: per pair of splits with images in common `between`, `images` (how many different ones they
        share) and `pairs` (names and labels on both sides, the first 20).
        `label_conflicts`: `images` (pixel-identical with different labels) and the first 20 `groups`.
        `near_duplicates`: `limit` (measured on the first split's normals); `within`, by split, and `between`,
        per pair of splits: `images` (how many of the split, or of the second one, have another within the
        limit, identical ones included), `of` (how many images there are), `different_labels` (how many of the
        found have a nearest image of the other label) and the first 20 `pairs`, nearest first. They are to be
        looked at: not all are mistakes.
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
    slices = [v for v in s.volumes if v is not None]
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
        **({"volumes": len(set(slices)), "slices": len(slices)} if slices else {}),
    }


def _near_duplicates(sets: dict[str, ImageSet]) -> dict[str, Any]:
    limit = near_duplicate_limit(next(iter(sets.values())).normals().images)
    small = {split: thumbnails(s.images) for split, s in sets.items()}
    within = {
        split: _pairs(s, s, nearest_images(small[split], volumes=s.volumes), limit, ("earlier", "image"))
        for split, s in sets.items()
    }
    between = [
        {
            "between": [a, b],
            **_pairs(sets[a], sets[b], nearest_images(small[b], small[a]), limit, (a, b)),
        }
        for a, b in combinations(sets, 2)
    ]
    return {"limit": limit, "within": within, "between": [pair for pair in between if pair["images"]]}


def _pairs(a: ImageSet, b: ImageSet, near: Nearest, limit: float, sides: tuple[str, str]) -> dict[str, Any]:
    """The images of `b` that have a near-duplicate in `a`, counted and with examples."""
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


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey thumbnails of 16 × 16 pixels, standardised, as near-duplicates are looked for.

    Args:
        images: `(N, H, W, 1 or 3)` uint8.

    Returns:
        `(N, 256)` float32, each of mean 0 and length 1; all 0 for a flat image.
    """
    out = np.empty((len(images), SIDE * SIDE), np.float32)
    for i, image in enumerate(images):
        grey = _pil(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        x = np.asarray(grey, np.float32).ravel()
        x -= x.mean()
        length = float(np.linalg.norm(x))
        out[i] = x / length if length > 1 else 0
    return out


def near_duplicate_limit(images: np.ndarray) -> float:
    """The greatest distance at which two images of this kind count as near-duplicates.

    Args:
        images: `(N, H, W, 1 or 3)` uint8, on which the limit is measured as described at the top of the file.

    Returns:
        A distance, 1 − correlation, between 1e-5 and 0.01.
    """
    few = np.unique(np.linspace(0, len(images) - 1, min(COPIES, len(images))).round().astype(int))
    apart = [1 - small[1:] @ small[0] for i in few if (small := _with_copies(images[i]))[0].any()]
    usual = nearest_images(thumbnails(images)).distance
    usual = usual[np.isfinite(usual)]
    wide = SHARE * float(np.median(usual)) if len(usual) else 0.0
    resaved = float(np.quantile(np.concatenate(apart), QUANTILE)) if apart else 0.0
    return min(max(resaved, wide, _LEAST), MOST)


def nearest_images(
    images: np.ndarray, among: np.ndarray | None = None, volumes: Sequence[str | None] = ()
) -> Nearest:
    """The nearest image to each of `images` among others, block by block: memory is that of the thumbnails.

    Args:
        images: `(N, 256)`, of `thumbnails`.
        among: `(M, 256)`, those of other images; None for the ones that stand before each in `images`.
        volumes: where `among` is None, the volume that each is a slice of: slices of one are not compared.

    Returns:
        The nearest one's number and distance, for each of the N images.
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
    return Nearest(index, np.where(flat, np.inf, np.maximum(1 - best, 0)))


def has_near_duplicate(test: ImageSet, normals: ImageSet) -> np.ndarray:
    """Whether each test image has a near-duplicate, or is itself, among the training normals.

    Args:
        test: N images.
        normals: the images that a model is fitted on; the limit is measured on them.

    Returns:
        `(N,)` bool.
    """
    found = nearest_images(thumbnails(test.images), thumbnails(normals.images))
    return np.asarray(found.distance <= near_duplicate_limit(normals.images))


def _with_copies(image: np.ndarray) -> np.ndarray:
    return thumbnails(np.stack([image, *_copies(image)]))


def _copies(image: np.ndarray) -> list[np.ndarray]:
    """Copies of an image as saving anew makes them: JPEG, three quarters of the size and back, brighter."""
    h, w, c = image.shape
    stream = io.BytesIO()
    _pil(image).save(stream, "JPEG", quality=75)
    jpeg = np.asarray(Image.open(stream).convert("L" if c == 1 else "RGB")).reshape(h, w, c)
    small = resize(image, max(round(0.75 * h), 1), max(round(0.75 * w), 1))
    brighter = np.clip(np.rint(image * 1.1 + 5), 0, 255).astype(np.uint8)
    return [jpeg, resize(small, h, w), brighter]


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
