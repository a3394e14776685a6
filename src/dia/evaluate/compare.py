"""Comparing two methods on the same test images, with intervals. Knows labels and scores only.

Source: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
Operating Characteristic Curves", Biometrics 1988; Sun and Xu, IEEE Signal Processing Letters 2014, for its
computation by midranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student


class Difference(NamedTuple):
    """A difference of AUROCs: the value, its interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each anomalous image the share of normals below it, and of each normal that of anomalous above it.

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
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, *, level: float = 0.95
) -> Difference:
    """Mean AUROC of `first` over its seeds, minus that of `second` over the same seeds, on the same images.

    Two sources of chance are counted. The images: DeLong's paired variance of the difference averaged over
    the seeds. The seeds: the variance of the differences by seed, over their number. Their sum counts what
    image and seed do together twice, so that the interval is, if anything, too wide. Its width is Student's,
    with degrees of freedom by Welch and Satterthwaite: few seeds make it wide. With one seed, images alone
    count, and nothing is known of other seeds.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        first: `(S, N)` raw scores, a row for each seed.
        second: `(S, N)`, rows of the same seeds.
        level: of the interval.

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
    pairs = [(placements(labels, a), placements(labels, b)) for a, b in zip(first, second, strict=True)]
    by_seed = np.array([a[0].mean() - b[0].mean() for a, b in pairs])
    value = float(by_seed.mean())
    parts = []  # (variance, degrees of freedom)
    for side in (0, 1):
        d = np.mean([a[side] - b[side] for a, b in pairs], axis=0)
        parts.append((d.var(ddof=1) / len(d), len(d) - 1))
    if len(by_seed) > 1:
        parts.append((by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1))
    variance = sum(v for v, _ in parts)
    if variance == 0:  # the same scores
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    freedom = variance**2 / sum(v**2 / f for v, f in parts if v)
    error = float(np.sqrt(variance))
    width = float(student.ppf((1 + level) / 2, freedom)) * error
    return Difference(value, value - width, value + width, float(2 * student.sf(abs(value) / error, freedom)))
