"""DeLong and the paired difference: against the definition, known properties, and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dia.evaluate.compare import paired_difference, placements


def data(seed, seeds=1, p=9, n=7, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[np.ones(p, int), np.zeros(n, int)])
    scores = rng.normal(size=(2, seeds, p + n)) + labels
    return labels, *(np.round(scores) if ties else scores)


@given(st.integers(0, 999), st.booleans())
def test_placements_are_shares_of_the_other_class(seed, ties):
    labels, scores, _ = data(seed, ties=ties)
    up, down = placements(labels, scores[0])
    pos, neg = scores[0][labels == 1], scores[0][labels == 0]
    kernel = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    np.testing.assert_allclose(up, kernel.mean(1))
    np.testing.assert_allclose(down, kernel.mean(0))
    assert up.mean() == pytest.approx(roc_auc_score(labels, scores[0]))


def test_the_variance_is_delongs_by_its_definition():
    labels, a, b = data(3, p=30, n=40)
    pos, neg = labels == 1, labels == 0
    kernels = [(s[0][pos][:, None] > s[0][neg]).astype(float) for s in (a, b)]
    s10 = np.cov([k.mean(1) for k in kernels])
    s01 = np.cov([k.mean(0) for k in kernels])
    s = s10 / 30 + s01 / 40
    contrast = np.array([1, -1])
    error = float(np.sqrt(contrast @ s @ contrast))
    d = paired_difference(labels, a, b)
    from scipy.stats import t

    f = error**4 / (np.var(kernels[0].mean(1) - kernels[1].mean(1), ddof=1) ** 2 / 30**2 / 29
                    + np.var(kernels[0].mean(0) - kernels[1].mean(0), ddof=1) ** 2 / 40**2 / 39)  # fmt: skip
    assert d.high - d.value == pytest.approx(t.ppf(0.975, f) * error)
    assert d.value == pytest.approx(roc_auc_score(labels, a[0]) - roc_auc_score(labels, b[0]))


@given(st.integers(0, 999), st.integers(1, 4))
def test_turned_round_the_sign_turns(seed, seeds):
    labels, a, b = data(seed, seeds)
    d, e = paired_difference(labels, a, b), paired_difference(labels, b, a)
    np.testing.assert_allclose([d.value, d.low, d.high, d.p], [-e.value, -e.high, -e.low, e.p], atol=1e-12)
    assert d.low <= d.value <= d.high
    assert (d.p < 0.05) == (d.low > 0 or d.high < 0)
    assert paired_difference(labels, a, a) == (0, 0, 0, 1)


def test_increasing_transforms_change_nothing():
    labels, a, b = data(1, 3)
    assert paired_difference(labels, np.exp(a), b * 7 + 3) == pytest.approx(paired_difference(labels, a, b))


def test_seeds_that_disagree_widen_the_interval():
    labels, a, _ = data(2, 1, p=60, n=60)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=a.shape) * s for s in (0.1, 3, 6)]
    apart = np.concatenate([a + x for x in noise])
    alike = np.concatenate([a + noise[0]] * 3)
    base = np.concatenate([a] * 3)
    wide, narrow = (paired_difference(labels, x, base) for x in (apart, alike))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # both methods alike in truth; seeds and images both add chance
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        labels = np.r_[np.ones(60, int), np.zeros(60, int)]
        common = rng.normal(size=120) + labels
        scores = [
            common + rng.normal(size=(3, 1)) * 0.3 * rng.normal(size=120) + rng.normal(size=(3, 120))
            for _ in range(2)
        ]
        d = paired_difference(labels, *scores)
        covered += d.low <= 0 <= d.high
    assert 0.93 <= covered / 300 <= 1


@pytest.mark.parametrize(
    ("labels", "first", "second"),
    [
        (np.r_[0, 1], np.zeros((1, 2)), np.zeros((2, 2))),
        (np.r_[0, 1, 1], np.zeros((1, 2)), np.zeros((1, 2))),
        (np.r_[1, 1], np.zeros((1, 2)), np.zeros((1, 2))),
    ],
)
def test_what_does_not_fit_is_refused(labels, first, second):
    with pytest.raises(ValueError, match=r"alike|both"):
        paired_difference(labels, first, second)
