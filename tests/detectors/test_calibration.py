"""Conformal calibration: numbers by hand, the guarantee by simulation, and what thresholds mean."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from dia.detectors.calibration import Calibration
from dia.detectors.residual import evidence, kernel_and_tail

few_levels = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)  # full of ties
any_scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def test_p_values_by_hand():
    c = Calibration.of(np.array([2.0, 3.0, 1.0, 2.0]))
    asked = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
    assert c.p_values(asked).tolist() == [1.0, 1.0, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_threshold_by_hand():
    c = Calibration.of(np.array([2.0, 3.0, 1.0, 2.0]))
    assert [c.threshold(r) for r in (0.1, 0.2, 0.4, 0.5, 0.6, 0.9)] == [np.inf, 3.0, 2.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize(("n", "rate", "finite"), [(18, 0.05, False), (19, 0.05, True), (99, 0.009, False)])
def test_too_few_normals_for_the_rate_flag_nothing(n, rate, finite):
    c = Calibration.of(np.arange(n))
    assert np.isfinite(c.threshold(rate)) == finite
    assert finite or c.p_values(np.array([1e300])) > rate


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5])
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Calibration.of(np.arange(9)).threshold(rate)


@given(st.one_of(few_levels, any_scores), st.one_of(few_levels, any_scores), st.integers(1, 199))
def test_above_the_threshold_means_p_at_most_the_rate(held_out, scores, permille):
    c, rate = Calibration.of(np.array(held_out)), permille / 200
    asked = np.array(scores + held_out)
    assert ((asked > c.threshold(rate)) == (c.p_values(asked) <= rate + 1e-9)).all()


@given(few_levels)
def test_p_values_count_the_normals_at_least_as_high(held_out):
    asked = np.arange(-4, 5, 0.5)
    p = Calibration.of(np.array(held_out)).p_values(asked)
    expected = [(1 + sum(h >= s for h in held_out)) / (1 + len(held_out)) for s in asked]
    np.testing.assert_allclose(p, expected)


def simulate(levels=None, n=19, runs=20_000):
    """p-values of one new normal each against n exchangeable ones, in as many runs."""
    rng = np.random.default_rng(0)
    scores = rng.gumbel(size=(runs, n + 1))
    scores = scores if levels is None else np.round(scores * levels)
    return np.array([Calibration.of(row[1:]).p_values(row[:1])[0] for row in scores])


def test_p_values_of_exchangeable_normals_are_uniform():
    ranks = np.rint(simulate() * 20).astype(int)
    counts = np.bincount(ranks, minlength=21)[1:]
    assert counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("levels", [None, 1])
def test_p_is_at_most_alpha_no_more_often_than_alpha(levels):
    p = simulate(levels)
    for alpha in (0.05, 0.1, 0.13, 0.25, 0.5):
        assert stats.binomtest(int((p <= alpha).sum()), len(p), alpha, "greater").pvalue > 0.001


distinct = st.lists(st.integers(-1000, 1000), min_size=2, max_size=60, unique=True)


def assert_monotone(held_out):
    c = Calibration.of(np.array(held_out, float))
    low, high = min(held_out), max(held_out)
    asked = np.sort(np.r_[np.linspace(low - 10, high + 10, 400), held_out, np.array(held_out) + 1e-6])
    found = evidence(asked, c.scores)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= -1e-9).all()


@given(distinct)
def test_more_anomalous_is_never_less_evidence(held_out):
    assert_monotone(held_out)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=60))
@example([0, 1, 1, 1])
@example([0] * 10)
def test_more_anomalous_is_never_less_evidence_with_ties(held_out):
    assert_monotone(held_out)


@given(distinct)
def test_evidence_is_continuous_and_keeps_rising_beyond_the_normals(held_out):
    c = Calibration.of(np.array(held_out, float))
    top = max(held_out)
    edges = np.r_[np.array(held_out, float), top + np.array([0.5, 10.0, 1e4])]
    small = 1e-9
    step = evidence(edges + small, c.scores) - evidence(edges - small, c.scores)
    width, _, _ = kernel_and_tail(c.scores)
    assert (np.abs(step) <= 2 * small / width * 1.01 + 1e-12).all()  # the kernel bounds the slope
    beyond = evidence(top + np.array([0.0, 1.0, 2.0, 3.0]), c.scores)
    assert (np.diff(beyond) > 0).all()
    assert np.diff(beyond) == pytest.approx(np.diff(beyond)[0], rel=1e-6)  # an exponential tail


def test_evidence_follows_minus_log_p_among_the_normals():
    scores = np.random.default_rng(0).normal(size=2000)
    c = Calibration.of(scores)
    asked = np.linspace(-2, 0.8, 50)
    np.testing.assert_allclose(evidence(asked, c.scores), -np.log(c.p_values(asked)), atol=0.05)
    normal = stats.norm.sf(3.5)  # far in the tail, beyond what 2000 normals can say
    assert 0.5 < evidence(np.array([3.5]), c.scores)[0] / -np.log(normal) < 1.5


def test_evidence_by_hand():
    c = Calibration.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    width, edge, excess = kernel_and_tail(c.scores)
    # std √2 = 1.414, interquartile range 2 / 1.34 = 1.493; logistic of standard deviation .9 · 1.414 · 5^-.2
    assert width == pytest.approx(0.9 * 2**0.5 * 5**-0.2 * 3**0.5 / np.pi)
    assert (edge, excess) == (5.0, width)  # the tail has one normal, no excess
    p = np.mean([1 / (1 + np.exp((2.5 - x) / width)) for x in c.scores])
    assert evidence(np.array([2.5]), c.scores)[0] == pytest.approx(-np.log(p))
    at_edge = evidence(np.array([5.0]), c.scores)[0]
    assert evidence(np.array([7.0]), c.scores)[0] == pytest.approx(at_edge + 2 / width)


def test_the_last_digits_of_equal_normals_are_no_evidence():
    c = Calibration.of(np.full(10, 7.0))
    low, high = evidence(np.array([7.0, 7.0 * (1 + 1e-7)]), c.scores)
    assert high - low < 0.02
