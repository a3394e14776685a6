"""Checks of a data set before it is trusted: counts, duplicates, leaks across splits, label conflicts.

Knows only `ImageSet`. Two images are the same when their pixels are (grey repeated to RGB counts as grey).

Near-duplicates are images as alike as an image and its re-saved copy, or far more alike than is usual in the
set. Grey thumbnails are compared, standardised, so that brightness and contrast do not count; their distance
is 1 − correlation, in [0, 2]. The limit is measured on the set itself: the greater of

- the distance that 95 % of copies of its own images stay below: copies saved as JPEG, shrunk and enlarged
  again, or a tenth brighter;
- a tenth of the median distance from an image to the nearest other, for copies that were trimmed a little; at
  most .01.

Images of one patient, or slices of one volume, are alike without being copies and are not compared within a
split; a patient whose images are in two splits is a leak.

No label enters. In a set whose images are all nearly alike, as generated ones are, the first is the finer
limit. Mirrored, turned or much cropped copies are not found, nor other slices or views of a patient who is
not known.
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

from ..data.imageset import ANOMALOUS, NORMAL, ImageSet, codes_of, resize

SHOWN = 20  # examples named per finding
SIDE = 16  # of a thumbnail, in pixels
COPIES = 100  # images of which copies are made, to measure the limit
QUANTILE = 0.95  # of the distances to those copies
SHARE = 0.1  # of the usual distance to the nearest image
MOST = 0.01  # the widest limit
_LEAST = 1e-5  # the narrowest: thumbnails are single precision
_BLOCK = 2**24  # pairs compared at once: 64 MiB


class Nearest(NamedTuple):
    """The nearest of other images, for each of N images.

    Args:
        image: `(N,)` int, number of the nearest image.
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
        where images are slices `volumes` and `slices`, and where patients are known `patients`; where files
        of other kinds lie in the folder, `not_read`: how many, by the end of their names.
        `leaks`: per pair of splits with images in common `between`, `images` (how many different ones they
        share) and `pairs` (names and labels on both sides, the first 20).
        `shared_patients`: per pair of splits with patients in common `between`, `patients` (how many),
        `images` (how many of theirs each split has) and `pairs` (the first image of each of the first 20
        patients on both sides). Patients themselves are not named.
        `label_conflicts`: `images` (pixel-identical with different labels) and the first 20 `groups`.
        `near_duplicates`: `limit` (measured on the first split's normals); `within`, by split, and `between`,
        per pair of splits: `images` (how many of the split, or of the second one, have another within the
        limit, identical ones included), `of` (how many images there are), `different_labels` (how many of the
        found have a nearest image of the other label) and the first 20 `pairs`, nearest first. They are to be
        looked at: not all are mistakes.
        `ok`: no (identical) duplicates, leaks, shared patients or conflicts.
    """
    where = {split: _by_pixels(s) for split, s in sets.items()}
    splits = {split: _summary(s, where[split]) for split, s in sets.items()}
    leaks = []
    for a, b in combinations(sets, 2):
        common = [h for h in where[a] if h in where[b]]  # in the order of `a`
        pairs = [{split: _one(sets[split], where[split][h][0]) for split in (a, b)} for h in common[:SHOWN]]
        if common:
            leaks.append({"between": [a, b], "images": len(common), "pairs": pairs})
    same: dict[str, list[dict]] = defaultdict(list)  # identical images, over all splits
    for split, s in sets.items():
        for h, found in where[split].items():
            same[h] += [{"split": split, **_one(s, i)} for i in found]
    shared = [_shared_patients(a, sets[a], b, sets[b]) for a, b in combinations(sets, 2)]
    shared = [found for found in shared if found]
    conflicts = [g for g in same.values() if {NORMAL, ANOMALOUS} <= {image["label"] for image in g}]
    return {
        "splits": splits,
        "leaks": leaks,
        "shared_patients": shared,
        "label_conflicts": {"images": len(conflicts), "groups": conflicts[:SHOWN]},
        "near_duplicates": _near_duplicates(sets),
        "ok": not (leaks or shared or conflicts or any(s["duplicates"]["images"] for s in splits.values())),
    }


def _shared_patients(a: str, first: ImageSet, b: str, second: ImageSet) -> dict[str, Any]:
    """Finds patients with images in two splits; nothing where there are none, or patients are not known."""
    sides = {split: defaultdict[str, list[int]](list) for split in (a, b)}
    for split, s in ((a, first), (b, second)):
        for i, patient in enumerate(s.patients):
            if patient is not None:
                sides[split][patient].append(i)
    both = [patient for patient in sides[a] if patient in sides[b]]  # in the order of the first
    if not both:
        return {}
    ends = ((a, first), (b, second))
    return {
        "between": [a, b],
        "patients": len(both),
        "images": {split: sum(len(sides[split][p]) for p in both) for split, _ in ends},
        "pairs": [{split: _one(s, sides[split][p][0]) for split, s in ends} for p in both[:SHOWN]],
    }


def _by_pixels(s: ImageSet) -> dict[str, list[int]]:
    """Returns the positions of each different image, by hash."""
    where = defaultdict(list)
    for i, x in enumerate(s.images):
        if x.shape[-1] == 3 and (x == x[..., :1]).all():
            x = x[..., :1]
        h = hashlib.sha256(repr(x.shape).encode())
        h.update(np.ascontiguousarray(x).tobytes())
        where[h.hexdigest()].append(i)
    return dict(where)


def _summary(s: ImageSet, where: dict[str, list[int]]) -> dict[str, Any]:
    groups = [[s.names[i] for i in found] for found in where.values() if len(found) > 1]
    slices = [v for v in s.volumes if v is not None]
    anomalous, unlabelled = len(s.anomalies()), len(s) * (s.labels is None)
    return {
        "images": len(s),
        "normal": len(s) - anomalous - unlabelled,
        "anomalous": anomalous,
        "unlabelled": unlabelled,
        **dict(zip(("height", "width", "channels"), s.shape, strict=True)),
        "with_mask": None if s.masks is None else int(s.masks.any(axis=(1, 2)).sum()),
        "skipped": list(s.skipped),
        **({"not_read": dict(s.unread)} if s.unread else {}),
        "sha256": s.sha256(),
        "duplicates": {"images": len(s) - len(where), "groups": groups[:SHOWN]},
        **({"volumes": len(set(slices)), "slices": len(slices)} if slices else {}),
        **({"patients": s.n_patients} if s.n_patients else {}),
    }


def _near_duplicates(sets: dict[str, ImageSet]) -> dict[str, Any]:
    limit = near_duplicate_limit(next(iter(sets.values())).normals().images)
    small = {split: thumbnails(s.images) for split, s in sets.items()}
    within, between = {}, []
    for split, s in sets.items():
        near = nearest_images(small[split], units=s.units)
        within[split] = _pairs(s, s, near, limit, ("earlier", "image"))
    for a, b in combinations(sets, 2):
        found = _pairs(sets[a], sets[b], nearest_images(small[b], small[a]), limit, (a, b))
        if found["images"]:
            between.append({"between": [a, b], **found})
    return {"limit": limit, "within": within, "between": between}


def _pairs(a: ImageSet, b: ImageSet, near: Nearest, limit: float, sides: tuple[str, str]) -> dict[str, Any]:
    """Counts the images of `b` that have a near-duplicate in `a`, with examples."""
    found = np.flatnonzero(near.distance <= limit)
    found = found[np.argsort(near.distance[found], kind="stable")]
    pairs: list[dict[str, Any]] = [
        {
            sides[0]: _one(a, int(near.image[i])),
            sides[1]: _one(b, int(i)),
            "distance": round(float(near.distance[i]), 6),
        }
        for i in found
    ]
    different = sum({p[side]["label"] for side in sides} == {NORMAL, ANOMALOUS} for p in pairs)
    return {"images": len(found), "of": len(b), "different_labels": different, "pairs": pairs[:SHOWN]}


def _one(s: ImageSet, i: int) -> dict[str, Any]:
    return {"name": s.names[i], "label": None if s.labels is None else int(s.labels[i])}


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Makes standardised grey thumbnails of 16 × 16 pixels, by which near-duplicates are found.

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
    """Measures the greatest distance at which two images of this kind count as near-duplicates.

    Args:
        images: `(N, H, W, 1 or 3)` uint8, on which the limit is measured as described at the top of the file.

    Returns:
        A distance, 1 − correlation, between 1e-5 and 0.01.
    """
    few = np.unique(np.linspace(0, len(images) - 1, min(COPIES, len(images))).round().astype(int))
    compared = (thumbnails(np.stack([images[i], *_copies(images[i])])) for i in few)
    apart = [1 - small[1:] @ small[0] for small in compared if small[0].any()]
    usual = nearest_images(thumbnails(images)).distance
    usual = usual[np.isfinite(usual)]
    wide = SHARE * float(np.median(usual)) if len(usual) else 0.0
    resaved = float(np.quantile(np.concatenate(apart), QUANTILE)) if apart else 0.0
    return min(max(resaved, wide, _LEAST), MOST)


def nearest_images(
    images: np.ndarray, among: np.ndarray | None = None, units: Sequence[str | None] = ()
) -> Nearest:
    """Finds the nearest image to each of `images` among others, some rows at a time to bound memory.

    Args:
        images: `(N, 256)` thumbnails.
        among: `(M, 256)` thumbnails of other images; None to compare each with those before it in `images`.
        units: where `among` is None, the patient or volume of each: images of one are not compared.

    Returns:
        The number and the distance of the nearest image, for each of the N images.
    """
    others = images if among is None else among
    unit = codes_of(units, len(images))
    index, best = np.zeros(len(images), int), np.full(len(images), -np.inf)
    rows = max(1, _BLOCK // max(len(others), 1))
    for start in range(0, len(images) if len(others) else 0, rows):
        i = np.arange(start, min(start + rows, len(images)))
        alike = images[i] @ others[: len(others) if among is not None else i[-1] + 1].T
        if among is None:
            j = np.arange(alike.shape[1])
            alike[(i[:, None] <= j) | (unit[i][:, None] == unit[j])] = -np.inf
        index[i], best[i] = alike.argmax(1), alike.max(1)
    flat = ~images.any(1)  # nothing to compare
    return Nearest(index, np.where(flat, np.inf, np.maximum(1 - best, 0)))


def has_near_duplicate(test: ImageSet, normals: ImageSet) -> np.ndarray:
    """Returns whether each test image, or a near-duplicate of it, is among the training normals.

    Args:
        test: N images.
        normals: the images that a model is fitted on; the limit is measured on them.

    Returns:
        `(N,)` bool.
    """
    found = nearest_images(thumbnails(test.images), thumbnails(normals.images))
    return np.asarray(found.distance <= near_duplicate_limit(normals.images))


def _copies(image: np.ndarray) -> list[np.ndarray]:
    """Makes copies as saving anew does: JPEG, three quarters of the size and back, brighter."""
    h, w, c = image.shape
    stream = io.BytesIO()
    _pil(image).save(stream, "JPEG", quality=75)
    jpeg = np.asarray(Image.open(stream).convert("L" if c == 1 else "RGB")).reshape(h, w, c)
    small = resize(image, max(round(0.75 * h), 1), max(round(0.75 * w), 1))
    brighter = np.clip(np.rint(image * 1.1 + 5), 0, 255).astype(np.uint8)
    return [jpeg, resize(small, h, w), brighter]


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
