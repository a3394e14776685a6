"""Findings: the connected places of a heatmap above a level learned on normals, each with its own p-value.

Knows heatmaps, sizes and numbers; knows no model, no file and no page, and needs no torch.

The level at a rate is the value that at most this share of normal images exceeds anywhere: so at most this
share has a finding, however large the image is and however many places it has. The p-value of a finding is
the rank of its peak among the peaks of normals' heatmaps, (1 + #{peaks ≥ peak}) / (n + 1). What is above the
level has a p-value of at most the rate, by construction: a finding with a greater one cannot exist. Where
the normals are too few for a rate, the level is infinite and nothing is found; `why_none` says so. Slices of
a volume each have their chance: a lesion's p-value is Bonferroni's over the slices.

A place is made of pixels of the heatmap, joined where they touch (8-connected). At the size of the image's
own file the heatmap is read between its pixels (bilinear), so masks and contours are smooth, but they know no
more than the heatmap does. Positions are x and y in the file's pixels, 0 at the outer edge of the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..detectors.calibration import Calibration, HeatScale, fewest_for

_TOLERANCE = 0.05  # pixels of the heatmap by which a contour may leave its points out


@dataclass(frozen=True, eq=False)
class Finding:
    """One place above the level.

    Args:
        slice: number of its image in the volume's file, from 0, whichever slices were looked at.
        box: x, y, width and height in whole pixels of the image's file.
        mask: `(height, width)` bool, its pixels within the box; at least one is True.
        contour: rings of `(K, 2)` float x and y, not closed by a repeated point, outer ones first.
        holes: how many of these, the last ones, go round a hole.
        area_mm2: of its pixels; None where their size is not known.
        peak: the greatest value of the heatmap in it.
        peak_at: x and y of that.
        p_value: of the peak, at most the rate.
        lesion: equal for findings that touch in neighbouring slices, from 1; 0 before they are joined.
    """

    slice: int
    box: tuple[int, int, int, int]
    mask: np.ndarray
    contour: Sequence[np.ndarray]
    holes: int
    area_mm2: float | None
    peak: float
    peak_at: tuple[float, float]
    p_value: float
    lesion: int = 0

    @property
    def area_px(self) -> int:
        """Pixels of the image's file."""
        return int(self.mask.sum())

    @property
    def centroid(self) -> tuple[float, float]:
        """X and y of the middle of its pixels."""
        y, x = (np.flatnonzero(n) @ n[n > 0] / n.sum() + 0.5 for n in (self.mask.sum(1), self.mask.sum(0)))
        return self.box[0] + float(x), self.box[1] + float(y)

    def to_json(self) -> dict[str, Any]:
        """Returns what the service and the reading room tell of it."""
        return {
            "slice": self.slice, "box": list(self.box),
            "contour": [ring.tolist() for ring in self.contour], "area_px": self.area_px,
            "area_mm2": self.area_mm2, "centroid": [round(v, 2) for v in self.centroid], "peak": self.peak,
            "p_value": round(self.p_value, 6), "lesion": self.lesion,
        }  # fmt: skip


@dataclass(frozen=True)
class Lesion:
    """Findings that touch from slice to slice.

    Args:
        number: from 1, the highest peak first.
        slices: numbers of its slices, ascending.
        volume_mm3: None where the size of pixels or the distance of slices is not known.
        peak: the greatest of its findings.
        p_value: the least of its findings times the number of slices that were looked at, at most 1.
    """

    number: int
    slices: tuple[int, ...]
    volume_mm3: float | None
    peak: float
    p_value: float


def why_none(heat: HeatScale | None, rate: float) -> str:
    """Returns why nothing can be found at a rate, and the remedies; empty where findings are possible.

    Args:
        heat: the heatmaps of normals; None where the model keeps none.
        rate: share of normal images that may have a finding.
    """
    if heat is None:
        return "no findings: the model keeps no heatmaps of normals; fit dia+, or give it some: dia calibrate"
    if (n := len(heat.peaks)) < (needed := fewest_for(rate)):
        return (
            f"no findings: a rate of {rate:.3g} needs heatmaps of {needed} normals, and the model keeps "
            f"those of {n}; take a rate of {1 / (n + 1):.2g} or more, or calibrate it on more normals"
        )
    return ""


def findings_of(
    heatmap: np.ndarray,
    heat: HeatScale,
    rate: float,
    *,
    size: tuple[int, int] | None = None,
    spacing: tuple[float, float] | None = None,
    slice: int = 0,
) -> list[Finding]:
    """Finds the places of one heatmap that are above the level.

    Args:
        heatmap: `(H, W)` at the model's size, higher where more anomalous.
        heat: the heatmaps of normals.
        rate: share of normal images that may have a finding, in (0, 1).
        size: (height, width) of the image's file; the heatmap's own where None.
        spacing: mm between rows and between columns of the file; None where not known.
        slice: kept as `Finding.slice`.

    Returns:
        The findings, the highest peak first; none where the normals are too few for the rate.

    Raises:
        ValueError: the rate lies outside (0, 1).
    """
    level, values = heat.level(rate), np.asarray(heatmap, np.float64)
    above = values > level
    if not above.any():
        return []
    try:
        from scipy import ndimage
        from skimage import measure  # noqa: F401 - asked for here, where it can be told
    except ImportError as error:
        raise DataError("findings need two more packages: pip install scipy scikit-image") from error
    labels, _ = ndimage.label(above, np.ones((3, 3)))
    calibration = Calibration.of(heat.peaks)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        own = _Place(values, labels, number, place, level, size or values.shape)
        box, mask = own.pixels()
        contour, holes = own.contour()
        area = None if spacing is None else round(float(mask.sum()) * spacing[0] * spacing[1], 4)
        p = float(calibration.p_values(np.array([own.peak]))[0])
        found.append(Finding(slice, box, mask, contour, holes, area, own.peak, own.peak_at, p))
    return sorted(found, key=lambda f: -f.peak)


def joined(
    slices: Iterable[Sequence[Finding]], *, distance: float | None = None
) -> tuple[list[list[Finding]], list[Lesion]]:
    """Joins findings whose pixels overlap in neighbouring slices of one volume to lesions.

    Slices are neighbours where their numbers, `Finding.slice`, differ by 1.

    Args:
        slices: the findings of each slice that was looked at, in the order of the volume.
        distance: mm between neighbouring slices; None where not known, or not the same everywhere.

    Returns:
        The same findings with their lesions' numbers, and the lesions, the highest peak first.
    """
    found = [list(own) for own in slices]
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(key: tuple[int, int]) -> tuple[int, int]:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    for k, own in enumerate(found):
        for i, finding in enumerate(own):
            root((k, i))
            for j, before in enumerate(found[k - 1] if k else ()):
                if _overlap(finding, before):
                    parent[root((k, i))] = root((k - 1, j))
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for key in parent:
        members.setdefault(root(key), []).append(key)
    ranked = sorted(members.values(), key=lambda keys: -max(found[k][i].peak for k, i in keys))
    lesions = []
    for number, keys in enumerate(ranked, 1):
        parts = [found[k][i] for k, i in keys]
        areas = [f.area_mm2 for f in parts if f.area_mm2 is not None]
        known = distance is not None and len(areas) == len(parts)
        volume = round(sum(areas) * float(distance or 0), 4) if known else None
        p = min(1.0, len(found) * min(f.p_value for f in parts))
        lesions.append(
            Lesion(number, tuple(sorted({f.slice for f in parts})), volume, max(f.peak for f in parts), p)
        )
        for k, i in keys:
            found[k][i] = replace(found[k][i], lesion=number)
    return found, lesions


def of_case(
    heatmaps: np.ndarray | Sequence[np.ndarray],
    heat: HeatScale | None,
    rate: float,
    *,
    size: tuple[int, int] | None = None,
    spacing: tuple[float, float, float | None] | None = None,
    numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns the findings of one case, an image or the slices of a volume, as JSON.

    Args:
        heatmaps: `(N, H, W)` at the model's size, in the order of the volume.
        heat: the heatmaps of normals; None where the model keeps none.
        rate: share of normal images (slices) that may have a finding, in (0, 1).
        size: (height, width) of the image's file; the heatmaps' own where None.
        spacing: mm between rows, between columns and between slices; None where not known.
        numbers: of the N slices in their file, kept as `Finding.slice`; 0, 1, … where None.

    Returns:
        `findings` as `Finding.to_json`, `lesions`, `level` (None where nothing can be found) and `words`.
    """
    none = why_none(heat, rate)
    if heat is None or none:
        return {"findings": [], "lesions": [], "level": None, "words": none}
    plane, distance = (None, None) if spacing is None else (spacing[:2], spacing[2])
    slices, lesions = joined(
        (
            findings_of(m, heat, rate, size=size, spacing=plane, slice=k)
            for k, m in zip(range(len(heatmaps)) if numbers is None else numbers, heatmaps, strict=True)
        ),
        distance=distance,
    )
    return {
        "findings": [f.to_json() for own in slices for f in own],
        "lesions": [told(lesion) for lesion in lesions],
        "level": heat.level(rate),
        "words": f"at most {100 * rate:.3g} % of normal {'slices' if len(slices) > 1 else 'images'} have a "
        "finding, on average",
    }


def told(lesion: Lesion) -> dict[str, Any]:
    """Returns a lesion as JSON."""
    return {
        "lesion": lesion.number, "slices": list(lesion.slices), "volume_mm3": lesion.volume_mm3,
        "peak": lesion.peak, "p_value": round(lesion.p_value, 6),
    }  # fmt: skip


def mask_of(findings: Sequence[Finding], size: tuple[int, int]) -> np.ndarray:
    """Draws findings of one image.

    Args:
        findings: of that image.
        size: its (height, width).

    Returns:
        `(height, width)` uint32: the lesion's number (1 where they are not joined), 0 where nothing is.
    """
    drawn = np.zeros(size, np.uint32)
    for f in findings:
        x, y, w, h = f.box
        drawn[y : y + h, x : x + w][f.mask] = max(f.lesion, 1)
    return drawn


class _Place:
    """One connected place of a heatmap, alone: others are lowered to the level.

    A cell of four neighbouring pixels has pixels of one place only, so nothing between them changes.
    """

    def __init__(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        number: int,
        place: tuple[Any, ...],
        level: float,
        size: tuple[int, ...],
    ):
        inside = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in place)
        own = labels[inside] == number
        self.start = inside[0].start, inside[1].start
        self.values = np.where(own, values[inside], np.minimum(values[inside], level))
        self.level, self.small, self.size = level, values.shape, size
        at = np.unravel_index(np.argmax(np.where(own, self.values, -np.inf)), own.shape)
        self.peak = float(self.values[at])
        row, column = (int(a) + s for a, s in zip(at, self.start, strict=True))
        self.peak_at = self._native(column, 1), self._native(row, 0)

    def _native(self, index: Any, axis: int) -> Any:
        """Returns the position in the file of the middle of a pixel of the heatmap."""
        return (index + 0.5) * self.size[axis] / self.small[axis]

    def pixels(self) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """Returns the box and, in it, the file's pixels whose middles are above the level; one at least."""
        values, first = self.values, []
        for axis in (0, 1):
            start, length = self.start[axis], values.shape[axis]
            ends = self._native(np.array([start - 1, start + length]), axis)
            low, high = max(int(ends[0]), 0), min(int(np.ceil(ends[1])), self.size[axis])
            at = (np.arange(low, high) + 0.5) * self.small[axis] / self.size[axis] - 0.5 - start
            at = np.clip(at, 0, length - 1)
            below = np.floor(at).astype(int)
            over, share = np.minimum(below + 1, length - 1), at - below
            shape = (-1, 1) if axis == 0 else (1, -1)
            a, b = np.take(values, below, axis), np.take(values, over, axis)
            values = a + share.reshape(shape) * (b - a)  # exactly a where b is a
            first.append(low)
        inside = values > self.level
        if not inside.any():  # it lies between the middles of the file's pixels
            x, y = (min(int(p), s - 1) for p, s in zip(self.peak_at, self.size[::-1], strict=True))
            return (x, y, 1, 1), np.ones((1, 1), bool)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        box = (first[1] + int(left), first[0] + int(top), int(right - left), int(bottom - top))
        return box, inside[top:bottom, left:right]

    def contour(self) -> tuple[list[np.ndarray], int]:
        """Returns its rings, outer ones first, and how many go round holes."""
        from skimage.measure import approximate_polygon, find_contours

        # once more the edge, then what is below the level: a ring round a place at the image's edge is closed
        framed = np.pad(np.pad(self.values, 1, "edge"), 1, constant_values=self.level - 1)
        rings: list[tuple[float, np.ndarray]] = []
        for ring in find_contours(framed, self.level, fully_connected="high"):
            at = ring - 2 + self.start
            at = np.clip(at, -0.5, np.array(self.small) - 0.5)
            at = approximate_polygon(at, _TOLERANCE)[:-1]
            y, x = self._native(at[:, 0], 0), self._native(at[:, 1], 1)
            rings.append(((x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2, np.stack([x, y], 1).round(2)))
        rings.sort(key=lambda ring: -abs(ring[0]))
        outer = [ring for area, ring in rings if area * rings[0][0] > 0 or area == 0]
        holes = [ring for area, ring in rings if area * rings[0][0] < 0]
        return outer + holes, len(holes)


def _overlap(a: Finding, b: Finding) -> bool:
    """Returns whether two findings of neighbouring slices have a pixel in common."""
    if abs(a.slice - b.slice) != 1:  # a slice between them is missing
        return False
    left, top = max(a.box[0], b.box[0]), max(a.box[1], b.box[1])
    right = min(a.box[0] + a.box[2], b.box[0] + b.box[2])
    bottom = min(a.box[1] + a.box[3], b.box[1] + b.box[3])
    if left >= right or top >= bottom:
        return False
    parts = (f.mask[top - f.box[1] : bottom - f.box[1], left - f.box[0] : right - f.box[0]] for f in (a, b))
    return bool(np.logical_and(*parts).any())
