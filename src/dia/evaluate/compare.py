"""Compares methods on the same test images with intervals; `ranking` does over data sets. Knows numbers only.

Variances are those of `detectors.paired`, which names their sources. For many tests at once: Holm,
Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from ..detectors.paired import difference


class Difference(NamedTuple):
    """A difference of AUROCs: the value, its 95 % interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


class Compared(NamedTuple):
    """Two methods on one data set: first minus second, Holm's p among all compared, the seeds both have."""

    first: str
    second: str
    difference: Difference
    p_holm: float
    seeds: tuple[int, ...]


def paired_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, units: np.ndarray | None = None
) -> Difference:
    """The mean AUROC of `first` over its seeds minus that of `second`, paired by seed and image.

    The variance is that of `detectors.paired.difference`, of images and of seeds. The interval's width is
    Student's, with degrees of freedom by Welch and Satterthwaite: few seeds make it wide. With one seed,
    images alone count, and nothing is known of other seeds.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        first: `(S, N)` raw scores, a row for each seed.
        second: `(S, N)`, rows of the same seeds.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.

    Returns:
        The difference with its 95 % interval and p-value; NaN where a class has one image or patient.

    Raises:
        ValueError: shapes that differ, or one class only.
    """
    labels, first, second = np.asarray(labels), np.atleast_2d(first), np.atleast_2d(second)
    if first.shape != second.shape or first.shape[1:] != labels.shape:
        raise ValueError(
            f"scores {first.shape} and {second.shape} of labels {labels.shape} must be (seeds, images) alike"
        )
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError("labels must hold both 0 (normal) and 1 (anomalous)")
    value, variance, freedom = difference(labels, first, second, units)
    if variance == 0:  # the same scores
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    error = float(np.sqrt(variance))
    width = float(student.ppf(0.975, freedom)) * error
    return Difference(value, value - width, value + width, float(2 * student.sf(abs(value) / error, freedom)))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Corrects p-values `(m,)` for their number: one falls below α by chance in at most α of cases."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def compared(
    labels: np.ndarray,
    scores: Mapping[str, Mapping[int, np.ndarray]],
    pairs: Iterable[tuple[str, str]],
    units: np.ndarray | None = None,
) -> list[Compared]:
    """Takes the `paired_difference` of pairs of methods on one data set, over the seeds that both have.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: by method, by seed, `(N,)`.
        pairs: names of two methods each; those without a seed in common are left out.
        units: as for `paired_difference`.

    Returns:
        One comparison for each pair that is left, in order.
    """
    found: list[tuple[str, str, Difference, tuple[int, ...]]] = []
    for first, second in pairs:
        one, other = scores.get(first, {}), scores.get(second, {})
        if seeds := tuple(sorted(set(one) & set(other))):
            a, b = (np.stack([side[s] for s in seeds]) for side in (one, other))
            found.append((first, second, paired_difference(labels, a, b, units), seeds))
    known = [d.p for _, _, d, _ in found if np.isfinite(d.p)]
    corrected = iter(holm(known))
    return [
        Compared(a, b, d, float(next(corrected)) if np.isfinite(d.p) else np.nan, s) for a, b, d, s in found
    ]


def relative_gain(ours: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> float:
    """Returns the mean over data sets of (ours − base) / base, as the paper states its gain; 0.1 is 10 %.

    Args:
        ours: `(N,)` AUROCs.
        base: `(N,)` of the same data sets, above 0.

    Raises:
        ValueError: lengths that differ, none at all, or a base that is not above 0.
    """
    ours, base = np.asarray(ours, dtype=float), np.asarray(base, dtype=float)
    if ours.shape != base.shape or ours.ndim != 1 or not len(ours) or not (base > 0).all():
        raise ValueError(f"ours {ours.shape} and base {base.shape} must be (data sets,) alike, base above 0")
    return float(np.mean((ours - base) / base))
