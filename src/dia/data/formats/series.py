"""Series: which images of one DICOM series make a volume, in which order, and what is odd about them.

Knows places: planes, positions, numbers. Knows no file, and none of the texts that a header holds but to
compare them.

- A series is divided where images cannot lie in one stack: by size, plane and spacing of pixels.
- Where positions repeat, it is divided by the first attribute (or two) of `MARKS` that tells the images there
  apart: time, acquisition, echo, b-value. An attribute by which no position repeats divides nothing, as in
  scans whose slices each have an acquisition number of their own. If none tells them apart and nearly all
  positions repeat equally often, their numbers do: the first at each position, the second, and so on.
- A part is sorted by position along the normal of its plane; where positions are not known, by number; else
  it stays as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

MARKS = (
    *("TemporalPositionIdentifier", "AcquisitionNumber", "StackID", "EchoNumbers", "EchoTime"),
    *("InversionTime", "DiffusionBValue", "TriggerTime", "ImageType"),
)
_COSINES = 0.02  # planes that differ by less, some degree, are one
_SPACING = 0.01  # likewise, as a share
_SAME, _SHARE = 0.01, 0.05  # positions nearer than this, in mm and as a share of most distances, are one
_MOST = 0.8  # share of positions that repeat equally often, for numbers to tell them apart
_GAP = 1.5  # times the usual distance
_FEW = 3  # images that each have a plane of their own are no series round an axis
_KINDS = 1000  # of planes or spacings in one series; with more, each image has its own


class Place(NamedTuple):
    """What a header says of one image's place in its series: for comparing only, never to be kept or shown.

    Args:
        shape: rows, columns, samples of a pixel.
        plane: the six direction cosines of rows and columns; None where the file does not say.
        spacing: between rows and between columns, mm; None where the file does not say.
        point: where its first pixel lies, mm; None where the file does not say.
        number: of the image in its series; None where the file does not say.
        scout: it is a localizer, on which a scan was planned.
        marks: the values of `MARKS`; None for those that the file lacks.
    """

    shape: tuple[int, int, int] = (0, 0, 0)
    plane: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None
    number: int | None = None
    scout: bool = False
    marks: tuple[str | float | None, ...] = (None,) * len(MARKS)


class Stacks(NamedTuple):
    """A series, divided and sorted.

    Args:
        parts: the numbers of the images of each part, in order.
        by: what it was divided by, in words; empty where it is one part.
        missing: slices that seem to be missing within the parts.
        repeated: images that lie where another one of their part does.
    """

    parts: list[list[int]]
    by: list[str]
    missing: int
    repeated: int


def stacks(places: Sequence[Place]) -> Stacks:
    """Divides and sorts the images of a series.

    Args:
        places: of N images.

    Returns:
        Parts that hold each of the N once.
    """
    by: list[str] = []
    parts = [list(range(len(places)))]
    parts = _apart(parts, "size", by, lambda part: [places[i].shape for i in part])
    parts = _apart(parts, "orientation", by, lambda part: _alike([places[i].plane for i in part], _plane))
    parts = _apart(parts, "spacing", by, lambda part: _alike([places[i].spacing for i in part], _spacing))
    done, missing, repeated = [], 0, 0
    for part in parts:
        for own in _phases(part, places, by):
            level = _levels(own, places)
            numbered = all(places[i].number is not None for i in own)
            keys = {
                i: (0 if level is None else level[k], places[i].number or 0 if numbered else 0)
                for k, i in enumerate(own)
            }
            done.append(sorted(own, key=keys.__getitem__))
            if level is not None and max(level):
                repeated += len(own) - len(set(level))
                missing += _missing(own, places)
    return Stacks(done, list(dict.fromkeys(by)), missing, repeated)


def _apart(
    parts: list[list[int]], name: str, by: list[str], kinds: Callable[[list[int]], Sequence[Hashable]]
) -> list[list[int]]:
    """Divides parts by the kind of each image; not where each has its own, as planes round an axis."""
    divided: list[list[int]] = []
    for part in parts:
        found: dict[Hashable, list[int]] = {}
        for i, kind in zip(part, kinds(part), strict=True):
            found.setdefault(kind, []).append(i)
        whole = len(found) == 1 or (name != "size" and _FEW < len(found) == len(part))
        divided += [part] if whole else found.values()
        by += [] if whole else [name]
    return divided


def _alike(values: Sequence[tuple[float, ...] | None], same: Callable[..., bool]) -> list[int | None]:
    """Numbers the values, those that are nearly the same alike; None for none."""
    kinds: list[tuple[float, ...]] = []
    found: list[int | None] = []
    for value in values:
        if value is None:
            found.append(None)
            continue
        number = next((k for k, kind in enumerate(kinds) if same(kind, value)), len(kinds))
        if number >= _KINDS:
            return [*range(len(values))]
        kinds += [value] * (number == len(kinds))
        found.append(number)
    return found


def _plane(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < _COSINES


def _spacing(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) <= _SPACING * max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def _positions(part: Sequence[int], places: Sequence[Place]) -> np.ndarray | None:
    """Returns positions along the normal of the first image's plane, mm; None where one of them lacks it."""
    planes, points = ([places[i].plane for i in part], [places[i].point for i in part])
    first = planes[0]
    known = [p for p in points if p is not None]
    if first is None or len(known) < len(part) or not all(p and _plane(first, p) for p in planes):
        return None
    return np.array(known) @ np.cross(first[:3], first[3:])


def _levels(part: Sequence[int], places: Sequence[Place]) -> list[int] | None:
    """Numbers the positions of a part from the lowest on, the same ones alike; None without positions."""
    where = _positions(part, places)
    if where is None or not np.isfinite(where).all():
        return None
    order = np.argsort(where, kind="stable")
    steps = np.diff(where[order])
    usual = float(np.quantile(steps[steps > 0], 0.9)) if (steps > 0).any() else 1.0
    apart = steps > min(_SAME, _SHARE * usual)
    levels = np.empty(len(part), int)
    levels[order] = np.concatenate([[0], np.cumsum(apart)])
    return levels.tolist()


def _phases(part: list[int], places: Sequence[Place], by: list[str]) -> list[list[int]]:
    """Divides a part in which positions repeat, by what tells the images there apart."""
    level = _levels(part, places)
    if level is None:
        return [part]
    times = Counter(level)
    most = max(times.values())
    if most == 1 or len(times) == 1:  # all lie in one place, as those of a film
        return [part]
    many = [*((k,) for k in range(len(MARKS))), *combinations(range(len(MARKS)), 2)]
    for chosen in many:
        values = [tuple(places[i].marks[k] for k in chosen) for i in part]
        if not most <= len(set(values)) <= 2 * most:
            continue
        if len({*zip(values, level, strict=True)}) == len(part):  # no position repeats within a value
            by.append(" and ".join(MARKS[k] for k in chosen))
            return [
                [i for i, own in zip(part, values, strict=True) if own == value]
                for value in sorted(set(values), key=lambda v: [(isinstance(x, str), x or 0) for x in v])
            ]
    if sum(n == most for n in times.values()) < _MOST * len(times):
        return [part]
    order = sorted(range(len(part)), key=lambda k: (level[k], places[part[k]].number or 0))
    if len({(level[k], places[part[k]].number) for k in order}) < len(part):
        return [part]  # copies of one another, or without numbers
    by.append("InstanceNumber")
    seen: Counter[int] = Counter()
    ranked: list[list[int]] = [[] for _ in range(most)]
    for k in order:
        ranked[seen[level[k]]].append(part[k])
        seen[level[k]] += 1
    return ranked


def _missing(part: Sequence[int], places: Sequence[Place]) -> int:
    """Counts the slices that are missing between others, by the usual distance."""
    level, where = _levels(part, places), _positions(part, places)
    if level is None or where is None:
        return 0
    steps = np.diff(sorted(dict(zip(level, where.tolist(), strict=True)).values()))
    if len(steps) < 2:
        return 0
    usual = float(np.median(steps))
    return int(sum(round(float(step) / usual) - 1 for step in steps if step > _GAP * usual))
