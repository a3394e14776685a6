"""Checks of a data set before it is trusted: counts, duplicates, leaks across splits, label conflicts.

Knows only `ImageSet`. Two images are the same when their pixels are (grey repeated to RGB counts as grey),
and nearly the same as `duplicates.py` has it. Other slices of one patient are not found.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from itertools import combinations
from typing import Any

import numpy as np

from .duplicates import Near, limit_of, nearest, thumbnails
from .imageset import ANOMALOUS, NORMAL, ImageSet

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
