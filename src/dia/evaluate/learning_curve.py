"""How a detector does by the number of normals it is fitted on, and whether more normals would help.

Knows detectors and labelled images; knows no files and no page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from sklearn.metrics import roc_auc_score

from ..data.imageset import ImageSet

SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)
DRAWS = 3
_CLIMBS = 0.005  # image AUROC; less is no news to anybody


@dataclass(frozen=True)
class Point:
    """The image AUROC of fits on as many normals.

    Args:
        normals: how many.
        aurocs: of each draw; one where all normals are taken.
    """

    normals: int
    aurocs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return fmean(self.aurocs)


def learning_curve(
    fit: Callable[[ImageSet, int], Callable[[ImageSet], np.ndarray]],
    normals: ImageSet,
    test: ImageSet,
    *,
    draws: int = DRAWS,
    fewest: int = 5,
) -> list[Point]:
    """Fits anew on fewer normals, drawn at random, and on all of them, and measures each fit.

    Args:
        fit: from normals and the number of the draw to a function that scores images, `(N,)`.
        normals: N normal images.
        test: labelled images, of both kinds.
        draws: fits on each number of normals but the last.
        fewest: normals of the first point.

    Returns:
        Points by rising number of normals, from `SIZES` as far as there are normals, half of them, and all.
    """
    labels, count = np.asarray(test.labels), len(normals)
    half = count // 2
    sizes = [n for n in SIZES if fewest <= n < 0.8 * half] + [half] * (fewest <= half)
    points = []
    for n in (*sizes, count):
        found = []
        for k in range(draws if n < count else 1):
            index = np.sort(np.random.default_rng([n, k]).permutation(count)[:n])
            found.append(float(roc_auc_score(labels, fit(normals.subset(index), k)(test))))
        points.append(Point(n, tuple(found)))
    return points


def climbs(points: Sequence[Point]) -> str:
    """Says in a sentence whether the curve still rises at its end.

    The AUROC with all normals is compared with that of half of them: the rise counts if it exceeds .005 and
    the deviation over the draws.

    Args:
        points: of `learning_curve`.
    """
    last = points[-1]
    half = next((p for p in points if p.normals == last.normals // 2), None)
    if half is None:
        return "There are too few normals for a curve."
    rise = last.mean - half.mean
    spread = stdev(half.aurocs) if len(half.aurocs) > 1 else 0.0
    told = f"Twice as many normals ({last.normals} for {half.normals}) changed the AUROC by {rise:+.3f}"
    if rise > max(_CLIMBS, spread):
        return (
            f"{told}: the curve still climbs at its end. More normals would help, or test images have near "
            "copies among the normals, as where a patient's images are on both sides."
        )
    return f"{told}: more normals of this kind would help little."
