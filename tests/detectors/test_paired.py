"""Paired differences of AUROCs by weight, against their definition; without weights: `test_compare`."""

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from dia.detectors.paired import difference
from dia.evaluate.compare import paired_difference


def drawn(seed, p=20, n=25):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([1, 0], [p, n]))
    first, second = rng.normal(size=(2, 1, p + n)) + labels
    return labels, first, np.round(second), rng.integers(0, 18, p + n), rng.uniform(0.2, 3, p + n)


def test_the_value_is_that_of_weighted_aurocs():
    labels, first, second, _, weights = drawn(0)
    by_hand = [roc_auc_score(labels, s[0], sample_weight=weights) for s in (first, second)]
    assert difference(labels, first, second, weights=weights).value == pytest.approx(by_hand[0] - by_hand[1])


@pytest.mark.parametrize("clustered", [False, True])
def test_the_variance_by_weight_is_that_of_sums_over_units(clustered):
    labels, first, second, units, weights = drawn(1)
    units = units if clustered else np.arange(45)
    found = difference(labels, first, second, units if clustered else None, weights)
    pos, neg = labels == 1, labels == 0
    a, b = weights[pos] / weights[pos].sum(), weights[neg] / weights[neg].sum()
    above = [s[0][pos][:, None] - s[0][neg] for s in (first, second)]
    kernel = np.subtract(*[(d > 0) + 0.5 * (d == 0) for d in above])
    x, y = a * (kernel @ b - found.value), b * (a @ kernel - found.value)
    sums = np.array([(x[units[pos] == u].sum(), y[units[neg] == u].sum()) for u in np.unique(units)])
    counts = [len(np.unique(units[side])) for side in (pos, neg)]
    parts = [count / (count - 1) * (sums[:, k] ** 2).sum() for k, count in enumerate(counts)]
    together = 2 * len(sums) / (len(sums) - 1) * (sums[:, 0] * sums[:, 1]).sum()
    assert found.variance == pytest.approx(sum(parts) + together)


def test_images_of_weight_two_are_two_images():
    labels, first, second, *_ = drawn(2)
    twice = np.repeat(np.arange(45), np.where(labels == 0, 2, 1))
    units = np.arange(45)[twice]
    weights = np.where(labels == 0, 2.0, 1.0)
    one = difference(labels, first, second, np.arange(45), weights)
    two = difference(labels[twice], first[:, twice], second[:, twice], units)
    assert one.value == pytest.approx(two.value)
    assert one.variance == pytest.approx(two.variance)


@pytest.mark.parametrize("seed", range(4))
def test_the_one_sided_p_is_half_of_the_two_sided_or_its_rest(seed):
    labels, first, second, units, _ = drawn(seed)
    found, both = difference(labels, first, second, units), paired_difference(labels, first, second, units)
    assert found.value == both.value
    assert found.p_above() == pytest.approx(both.p / 2 if both.value > 0 else 1 - both.p / 2)
    by_hand = t.sf(found.value / np.sqrt(2.25 * found.variance), found.freedom)
    assert found.p_above(2.25) == pytest.approx(by_hand)


def test_the_same_scores_are_no_gain():
    labels, first, *_ = drawn(3)
    assert difference(labels, first, first).p_above() == 1
    perfect = labels[None].astype(float)
    assert difference(labels, perfect, -perfect).p_above() == 0
