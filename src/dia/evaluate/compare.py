"""Compares methods on the same test images with intervals; `ranking` does over data sets. Knows numbers only.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
Operating Characteristic Curves", Biometrics 1988; Sun and Xu, IEEE Signal Processing Letters 2014, for its
computation by midranks; Obuchowski, "Nonparametric Analysis of Clustered ROC Curve Data", Biometrics 1997,
for several images of one patient; Holm, Scandinavian Journal of Statistics 1979, for many tests at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student


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


def _placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of normals below each anomalous image, and of anomalous images above each normal.

    Ties count half. The mean of either is the AUROC.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.

    Returns:
        `(P,)` and `(N − P,)` in [0, 1].
    """
    anomalous, normal = scores[labels == 1], scores[labels == 0]
    p, n = len(anomalous), len(normal)
    ranks = rankdata(np.r_[anomalous, normal])
    of_anomalous = (ranks[:p] - rankdata(anomalous)) / n
    of_normal = 1 - (ranks[p:] - rankdata(normal)) / p
    return of_anomalous, of_normal


def paired_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, units: np.ndarray | None = None
) -> Difference:
    """The mean AUROC of `first` over its seeds minus that of `second`, paired by seed and image.

    Two sources of chance are counted. The images: DeLong's paired variance of the difference averaged over
    the seeds. The seeds: the variance of the differences by seed, over their number. Their sum counts what
    image and seed do together twice, so that the interval is, if anything, too wide. Where a patient has
    several images, the variance of the images is Obuchowski's, which counts patients. Its width is Student's,
    with degrees of freedom by Welch and Satterthwaite: few seeds make it wide. With one seed, images alone
    count, and nothing is known of other seeds.

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
    pairs = [(_placements(labels, a), _placements(labels, b)) for a, b in zip(first, second, strict=True)]
    by_seed = np.array([a[0].mean() - b[0].mean() for a, b in pairs])
    value = float(by_seed.mean())
    parts, shared = list[tuple[float, float]](), 0.0  # (variance, degrees of freedom)
    sides = [np.mean([a[side] - b[side] for a, b in pairs], axis=0) for side in (0, 1)]
    if units is None or len(np.unique(units)) == len(labels):
        parts += [
            (
                d.var(ddof=1) / len(d) if len(d) > 1 else np.nan,
                max(len(d) - 1, 1),
            )  # one image tells of no other
            for d in sides
        ]
    else:
        parts, shared = _clustered(labels, sides, np.asarray(units))
    if len(by_seed) > 1:
        parts.append((by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1))
    apart = sum(v for v, _ in parts)
    variance = apart + shared if apart + shared > 0 else apart
    if variance == 0:  # the same scores
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    freedom = variance**2 / sum(v**2 / f for v, f in parts if v)
    freedom = freedom if units is None else min(freedom, len(np.unique(units)) - 1)
    error = float(np.sqrt(variance))
    width = float(student.ppf(0.975, freedom)) * error
    return Difference(value, value - width, value + width, float(2 * student.sf(abs(value) / error, freedom)))


def _clustered(
    labels: np.ndarray, sides: Sequence[np.ndarray], units: np.ndarray
) -> tuple[list[tuple[float, float]], float]:
    """Returns Obuchowski's variances of both sides with degrees of freedom, and twice their covariance.

    Args:
        labels: `(N,)`.
        sides: of the anomalous images, and of the normal ones, what is averaged, in the order of the images.
        units: `(N,)`.
    """
    code, parts, sums = np.unique(units, return_inverse=True)[1], list[tuple[float, float]](), []
    for d, own in zip(sides, (labels == 1, labels == 0), strict=True):
        of_unit = np.bincount(code[own], d - d.mean(), code.max() + 1) / len(d)
        count = len(np.unique(code[own]))
        known = count / (count - 1) * float(of_unit @ of_unit) if count > 1 else np.nan  # as of one image
        parts.append((known, max(count - 1, 1)))
        sums.append(of_unit)
    count = len(sums[0])
    return parts, 2 * count / (count - 1) * float(sums[0] @ sums[1]) if count > 1 else np.nan


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
