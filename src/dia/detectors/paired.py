"""The difference of two AUROCs of the same images, and how far it varies by chance. Knows numbers only.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
Operating Characteristic Curves", Biometrics 1988; Sun and Xu, IEEE Signal Processing Letters 2014, for its
computation by ranks; Obuchowski, "Nonparametric Analysis of Clustered ROC Curve Data", Biometrics 1997, for
several images of one patient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Paired(NamedTuple):
    """A difference of AUROCs.

    Attributes:
        value: in [−1, 1].
        variance: of it; NaN where a class has one image or patient.
        freedom: degrees of freedom of the variance, by Welch and Satterthwaite.
    """

    value: float
    variance: float
    freedom: float

    def p_above(self, times: float = 1.0) -> float:
        """Returns the one-sided p-value, by Student's t, of a true difference of 0 or less.

        Args:
            times: what the variance is too small by.
        """
        if self.variance == 0:  # each image says the same
            return float(self.value <= 0)
        return float(student.sf(self.value / np.sqrt(self.variance * times), self.freedom))


def difference(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    units: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Paired:
    """Takes the mean AUROC of `first` over its seeds minus that of `second`, paired by seed and image.

    Two sources of chance are counted. The images: DeLong's paired variance of the difference averaged over
    the seeds; where a patient has several images, Obuchowski's, which counts patients. The seeds: the
    variance of the differences by seed, over their number. Their sum counts what image and seed do together
    twice, so that the variance is, if anything, too great. With one seed, images alone count.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous; both are there.
        first: `(S, N)` raw scores, higher = more anomalous, a row for each seed.
        second: `(S, N)`, rows of the same seeds.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        weights: `(N,)`, above 0: what each image counts among those of its class; equal where None.
    """
    labels, weights = np.asarray(labels), np.ones(len(labels)) if weights is None else weights
    code = np.unique(np.arange(len(labels)) if units is None else units, return_inverse=True)[1]
    many = int(code.max()) + 1
    if single := many == len(labels):
        code = np.arange(many)  # whatever the names of the units
    pairs = [
        (_placements(labels, a, weights), _placements(labels, b, weights))
        for a, b in zip(first, second, strict=True)
    ]
    parts, sums = list[tuple[float, float]](), list[np.ndarray]()  # variances with their degrees of freedom
    for side, own in enumerate((labels == 1, labels == 0)):
        d, w = np.mean([a[side] - b[side] for a, b in pairs], axis=0), weights[own]
        of_unit = np.bincount(code[own], (d - _mean(d, w)) * w, many) / w.sum()
        count = len(np.unique(code[own]))  # one tells of no other
        known = count / (count - 1) * float(of_unit @ of_unit) if count > 1 else np.nan
        parts.append((known, max(count - 1, 1)))
        sums.append(of_unit)
    w = weights[labels == 1]
    by_seed = np.array([_mean(a[0], w) - _mean(b[0], w) for a, b in pairs])
    if len(by_seed) > 1:
        parts.append((float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1))
    apart = sum(v for v, _ in parts)
    shared = 2 * many / (many - 1) * float(sums[0] @ sums[1]) if many > 1 else np.nan
    variance = apart + shared if apart + shared > 0 else apart
    freedom = variance**2 / sum(v**2 / f for v, f in parts if v) if variance else np.inf
    return Paired(float(by_seed.mean()), variance, freedom if single else min(freedom, many - 1))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(values @ weights / weights.sum())


def _placements(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of normals below each anomalous image, and of anomalous images above each normal.

    Ties count half. The mean of either, by weight, is the AUROC.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.
        weights: `(N,)`, above 0.

    Returns:
        `(P,)` and `(N − P,)` in [0, 1].
    """
    anomalous, normal = labels == 1, labels == 0
    of_anomalous = _below(scores[anomalous], scores[normal], weights[normal])
    return of_anomalous, 1 - _below(scores[normal], scores[anomalous], weights[anomalous])


def _below(scores: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the share, by weight, of others that lie below each score; equal ones count half."""
    order = np.argsort(others, kind="stable")
    sums, others = np.r_[0, np.cumsum(weights[order])], others[order]
    low, high = np.searchsorted(others, scores, "left"), np.searchsorted(others, scores, "right")
    share: np.ndarray = (sums[low] + sums[high]) / 2 / sums[-1]
    return share
