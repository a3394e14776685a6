"""Comparisons over data sets: against published examples, hand-made cases and known properties."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dia.evaluate.ranking import against, bayesian_signed_rank, friedman, nemenyi

# Demšar, JMLR 2006, table 6: AUC of C4.5 with four choices of m and cf on fourteen data sets
C45 = """
.763 .768 .771 .798 .599 .591 .590 .569
.954 .971 .968 .967 .628 .661 .654 .657
.882 .888 .886 .898 .936 .931 .916 .931
.661 .668 .609 .685 .583 .583 .563 .625
.775 .838 .866 .875 1. 1. 1. 1.
.940 .962 .965 .962 .619 .666 .614 .669
.972 .981 .9751 .975 .957 .978 .946 .970
"""


def test_friedman_is_demsars_example():
    aurocs = np.array(C45.split(), float).reshape(14, 4)
    f = friedman(aurocs)
    np.testing.assert_allclose(f.ranks, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    n, k = aurocs.shape
    plain = 12 * n / (k * (k + 1)) * (np.sum(f.ranks**2) - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=5e-3)  # his, without the correction for ties
    assert f.statistic == pytest.approx(plain / (1 - 78 / (n * (k**3 - k))))  # three pairs, one four
    c = nemenyi(f.ranks, n, level=0.9)
    assert c.critical == pytest.approx(1.12, abs=5e-3)
    assert c.p[0, 3] < 0.1 < c.p[2, 3]  # as he finds at .1


def test_critical_values_are_demsars():
    for level, published in ((0.95, DEMSAR_05), (0.9, DEMSAR_10)):
        for k, q in enumerate(published, 2):
            error = np.sqrt(k * (k + 1) / 6)
            assert nemenyi(np.arange(k), 1, level).critical / error == pytest.approx(q, abs=1e-3)


DEMSAR_05 = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
DEMSAR_10 = (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920)

tables = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).integers(0, 6, np.random.default_rng(seed).integers(3, 8, 2)) / 5
)


@given(tables, st.integers(0, 99))
def test_ranks_follow_methods_and_forget_scales(aurocs, seed):
    f = friedman(aurocs)
    order = np.random.default_rng(seed).permutation(aurocs.shape[1])
    turned = friedman(np.exp(3 * aurocs)[::-1, order])
    np.testing.assert_allclose(turned.ranks, f.ranks[order])
    assert turned[:2] == pytest.approx(f[:2])
    assert f.ranks.sum() == pytest.approx(aurocs.shape[1] * (aurocs.shape[1] + 1) / 2)
    assert 0 <= f.p <= 1


@given(tables, st.sampled_from([0.05, 0.5, 0.95]))
def test_groups_are_the_largest_sets_of_which_no_two_differ(aurocs, level):
    ranks = friedman(aurocs).ranks
    k, c = len(ranks), nemenyi(ranks, len(aurocs), level)

    def alike(group):
        return all(abs(ranks[i] - ranks[j]) <= c.critical for i, j in combinations(group, 2))

    sets = [set(g) for r in range(2, k + 1) for g in combinations(range(k), r) if alike(g)]
    wanted = [g for g in sets if not any(g < other for other in sets)]
    assert sorted(map(sorted, c.groups)) == sorted(map(sorted, wanted))
    apart = np.abs(ranks[:, None] - ranks)
    clear = np.abs(apart - c.critical) > 1e-6
    assert ((c.p < 1 - level) == (apart > c.critical))[clear].all()


def test_all_tied_is_no_difference():
    assert friedman(np.full((3, 4), 0.7))[:2] == (0, 1)


@pytest.mark.parametrize("aurocs", [np.ones((1, 4)), np.ones((4, 2)), np.full((3, 3), np.nan), np.ones(5)])
def test_too_little_for_ranks_is_refused(aurocs):
    with pytest.raises(ValueError, match="aurocs"):
        friedman(aurocs)


def test_two_methods_and_one_data_set_have_a_critical_difference_less_has_not():
    assert nemenyi(np.arange(2), 1).critical > 0
    for k, n, level in ((1, 4, 0.95), (3, 0, 0.95), (3, 4, 1.0)):
        with pytest.raises(ValueError, match="need"):
            nemenyi(np.arange(k), n, level)


# --- the Bayesian signed-rank test: an error of .0022 or less is that of 50,000 samples -------------------

NEAR = 0.015


def test_one_difference_far_outside_the_rope_by_hand():
    """The prior has weight w ~ Beta(1/2, 1), P(w < x) = √x. Its pair with itself alone lies in the rope.

    So the rope has w² of the weight, and the method wins where w² < 1/2: with probability √√(1/2).
    """
    found = bayesian_signed_rank([0.5])
    assert found.first == pytest.approx(0.5**0.25, abs=NEAR)
    assert found.second == 0
    assert bayesian_signed_rank([-0.5])[::-1] == found


def test_a_difference_whose_pair_with_the_prior_is_in_the_rope_by_hand():
    """Now the method has only its pair with itself, (1 − w)², and wins where w < 1 − √(1/2)."""
    assert bayesian_signed_rank([0.015]).first == pytest.approx((1 - 0.5**0.5) ** 0.5, abs=NEAR)


def test_all_within_the_rope_is_equal():
    assert bayesian_signed_rank([0.004, -0.009, 0.0, 0.0099]) == (0, 1, 0)
    assert bayesian_signed_rank([0.0, 0.0], rope=0).equal < 1  # ties, half and half on either side


def test_symmetric_differences_favour_neither():
    found = bayesian_signed_rank([0.2, -0.2, 0.05, -0.05, 0.01, -0.01])
    assert found.first == pytest.approx(found.second, abs=2 * NEAR)
    assert found.first > 0.2


differences = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=14)


@settings(max_examples=40)
@given(differences, st.sampled_from([0.0, 0.01, 0.05]), st.integers(0, 99))
def test_probabilities_sum_to_one_and_turn_with_the_sign(z, rope, seed):
    found = bayesian_signed_rank(z, rope, samples=500, seed=seed)
    turned = bayesian_signed_rank(-np.array(z), rope, samples=500, seed=seed)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    assert turned[::-1] == pytest.approx(found, abs=1e-9)
    assert found == bayesian_signed_rank(z, rope, samples=500, seed=seed)


def test_more_data_sets_that_agree_make_it_surer():
    few, many = (bayesian_signed_rank([0.03] * n) for n in (2, 12))
    assert few.first < many.first
    assert many.first > 0.99


def test_it_is_the_sum_over_pairs_by_its_definition():
    z, rope = np.array([0.06, -0.03, 0.015, 0.0, -0.005]), 0.01
    votes = np.zeros(3)
    for w in np.random.default_rng(3).dirichlet([0.5, 1, 1, 1, 1, 1], 400):
        weight = [0.0, 0.0, 0.0]
        for a, wa in zip([0, *z], w, strict=True):
            for b, wb in zip([0, *z], w, strict=True):
                weight[0 if a + b > 2 * rope else 2 if a + b < -2 * rope else 1] += wa * wb
        votes[np.argmax(weight)] += 1
    np.testing.assert_allclose(bayesian_signed_rank(z, rope, samples=400, seed=3), votes / 400)


@pytest.mark.parametrize(
    ("z", "how"), [([], {}), ([np.nan], {}), ([[0.1]], {}), ([0.1], {"rope": -1}), ([0.1], {"samples": 0})]
)
def test_what_no_probability_follows_from_is_refused(z, how):
    with pytest.raises(ValueError, match="must be"):
        bayesian_signed_rank(z, **how)


def test_methods_against_the_default_on_the_sets_both_have():
    aurocs = {
        "ours": {"a": 0.9, "b": 0.8, "c": 0.7},
        "worse": {"a": 0.6, "b": 0.81},
        "same": {"c": 0.7, "b": 0.8, "a": 0.9},
        "elsewhere": {"z": 0.9},
    }
    worse, same = against(aurocs, "ours")
    assert (worse.method, worse.datasets, worse.wins) == ("worse", ("a", "b"), 1)
    assert worse.difference == pytest.approx(-0.145)
    assert worse.probabilities == bayesian_signed_rank([0.6 - 0.9, 0.81 - 0.8])
    assert same.probabilities == (0, 1, 0)
    assert (same.difference, same.wins) == (0, 0)
    with pytest.raises(ValueError, match="no method 'theirs'"):
        against(aurocs, "theirs")
