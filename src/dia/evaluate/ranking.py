"""Compares methods over data sets: by ranks, and by how likely one is better. Knows numbers only.

Each data set gives one number of each method. Sources: Demšar, "Statistical Comparisons of Classifiers over
Multiple Data Sets", JMLR 7, 2006, for ranks; Benavoli, Mangili, Corani, Zaffalon and Ruggeri, "A Bayesian
Wilcoxon signed-rank test based on the Dirichlet process", ICML 2014, and Benavoli, Corani, Demšar and
Zaffalon, "Time for a Change: a Tutorial for Comparing Multiple Classifiers Through Bayesian Analysis", JMLR
18, 2017, for probabilities and the region of practical equivalence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

PRIOR = 0.5  # strength of the pseudo-observation, as in the tutorial's code; a data set has strength 1
ROPE = 0.01  # AUROCs no further apart are practically equal


class Friedman(NamedTuple):
    """Friedman's test: its statistic, the p-value of no difference, `(k,)` mean ranks (1 = best)."""

    statistic: float
    p: float
    ranks: np.ndarray


class Nemenyi(NamedTuple):
    """Nemenyi's test after Friedman's.

    Mean ranks further apart than `critical` differ; `p` is `(k, k)`; `groups` are the largest sets of methods
    (indices, best first) of which no two differ, none within another, each of two or more.
    """

    critical: float
    p: np.ndarray
    groups: list[tuple[int, ...]]


class Probabilities(NamedTuple):
    """Of the first being better, both practically equal, the second better; they sum to 1."""

    first: float
    equal: float
    second: float


class Against(NamedTuple):
    """A method (first) and a reference (second) over the data sets that both have.

    `difference` is the mean of the first minus the second, `wins` on how many sets the first is higher.
    """

    method: str
    datasets: tuple[str, ...]
    difference: float
    wins: int
    probabilities: Probabilities


def friedman(aurocs: np.ndarray) -> Friedman:
    """Tests whether any of k methods differs from the others in its ranks over N data sets; ties by midranks.

    The χ² approximation is rough for small N and k (Demšar advises N > 10 and k > 5), and few data sets give
    the test little power: a large p says nothing.

    Args:
        aurocs: `(N, k)`, higher = better.

    Returns:
        The statistic, its p-value and the mean ranks.

    Raises:
        ValueError: fewer than two data sets or three methods, or values that are not finite.
    """
    aurocs = np.asarray(aurocs, dtype=float)
    if aurocs.ndim != 2 or aurocs.shape[0] < 2 or aurocs.shape[1] < 3:
        raise ValueError(f"aurocs {aurocs.shape} must be (data sets, methods): two or more by three or more")
    if not np.isfinite(aurocs).all():
        raise ValueError("aurocs hold NaN or infinite values: leave methods out that lack a data set")
    ranks = rankdata(-aurocs, axis=1)
    if (ranks == ranks[0, 0]).all():  # all tied everywhere, where the statistic is 0 / 0
        return Friedman(0.0, 1.0, ranks.mean(0))
    statistic, p = friedmanchisquare(*aurocs.T)
    return Friedman(float(statistic), float(p), ranks.mean(0))


def nemenyi(ranks: np.ndarray, datasets: int, level: float = 0.95) -> Nemenyi:
    """Compares all methods with each other by their mean ranks.

    The critical difference is q·√(k(k+1) / 6N), where q is the quantile of the studentized range for infinite
    degrees of freedom, divided by √2.

    Args:
        ranks: `(k,)` mean ranks, of `friedman`, k ≥ 2.
        datasets: the number N of data sets over which they are means, at least 1.
        level: 1 − α, in (0, 1).

    Returns:
        The critical difference, the p-values of all pairs and the groups that do not differ.

    Raises:
        ValueError: fewer methods or data sets, or a level outside (0, 1).
    """
    ranks = np.asarray(ranks, dtype=float)
    k = len(ranks)
    if k < 2 or datasets < 1 or not 0 < level < 1:
        raise ValueError(f"{k} methods on {datasets} data sets at {level}: need ≥ 2, ≥ 1, and in (0, 1)")
    error = float(np.sqrt(k * (k + 1) / (6 * datasets)))  # of mean ranks apart, if no method differs
    critical = float(studentized_range.ppf(level, k, np.inf)) / np.sqrt(2) * error
    apart = np.abs(ranks[:, None] - ranks)
    p = studentized_range.sf(apart * np.sqrt(2) / error, k, np.inf)
    order = np.argsort(ranks, kind="stable")
    ends = np.searchsorted(ranks[order], ranks[order] + critical, side="right")  # where each one's group ends
    # a group lies within the one before unless it goes further
    starts = [i for i in range(k) if i == 0 or ends[i] > ends[i - 1]]
    groups = [tuple(map(int, order[i : ends[i]])) for i in starts if ends[i] - i > 1]
    return Nemenyi(critical, np.clip(p, 0, 1), groups)


def bayesian_signed_rank(
    differences: Sequence[float] | np.ndarray, rope: float = ROPE, samples: int = 50_000, seed: int = 0
) -> Probabilities:
    """The Bayesian signed-rank test: how likely one method is better than another on a data set to come.

    Data sets weigh as a sample of the Dirichlet process says, whose prior is one pseudo-observation of
    difference 0 and strength `PRIOR`. In each sample the pairs of data sets, each with itself too, vote by
    their mean difference: above the rope, within it, below it (on its border half and half). The
    probabilities are the shares of samples in which each of the three has the most weight. Unlike a
    p-value, they can say that methods are practically equal. Related data sets count as independent, and
    then the probabilities are too sure.

    Args:
        differences: `(N,)`, the first method's number minus the second's on each data set; N ≥ 1.
        rope: differences from −rope to rope are practically none, ≥ 0. With 0 none are equal but exact ties.
        samples: of the posterior; the error of a probability is at most 0.5 / √samples.
        seed: of the samples.

    Returns:
        The three probabilities.

    Raises:
        ValueError: no differences, values that are not finite, a negative rope or fewer than one sample.

    Example:
        >>> found = bayesian_signed_rank([0.05, 0.04, 0.06, 0.03, 0.05])
        >>> found.first > 0.95, found.second < 0.01
        (True, True)
    """
    z = np.asarray(differences, dtype=float)
    if z.ndim != 1 or not len(z) or not np.isfinite(z).all():
        raise ValueError(f"differences {z.shape} must be one finite number for each data set, one or more")
    if rope < 0 or samples < 1:
        raise ValueError(f"rope {rope} must be 0 or more, and samples {samples} 1 or more")
    drawn = np.random.default_rng(seed).dirichlet(np.r_[PRIOR, np.ones(len(z))], samples)  # (S, N + 1)
    means = np.add.outer(np.r_[0, z], np.r_[0, z]) / 2
    first, second = (
        ((drawn @ np.heaviside(sign * means - rope, 0.5)) * drawn).sum(1) for sign in (1, -1)
    )  # (S,) the weight of the pairs on either side
    votes = np.stack([first, 1 - (first + second), second], 1)
    won = votes == votes.max(1, keepdims=True)
    return Probabilities(*map(float, (won / won.sum(1, keepdims=True)).mean(0)))


def against(
    aurocs_by_method: Mapping[str, Mapping[str, float]], reference: str, rope: float = ROPE
) -> list[Against]:
    """Compares every method with one of them by the Bayesian signed-rank test over data sets.

    Args:
        aurocs_by_method: by method, by data set.
        reference: a method of these, such as the default.
        rope: as for `bayesian_signed_rank`.

    Returns:
        One comparison for each other method that has a data set in common with it, in order.

    Raises:
        ValueError: no such reference.
    """
    if reference not in aurocs_by_method:
        raise ValueError(f"no method {reference!r}; there are: {', '.join(aurocs_by_method)}")
    base, found = aurocs_by_method[reference], []
    for method, own in aurocs_by_method.items():
        if method != reference and (datasets := tuple(d for d in own if d in base)):
            z = np.array([own[d] - base[d] for d in datasets])
            likely = bayesian_signed_rank(z, rope)
            found.append(Against(method, datasets, float(z.mean()), int((z > 0).sum()), likely))
    return found
