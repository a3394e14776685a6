"""Conformal calibration: numbers by hand, the guarantee by simulation, and what thresholds mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dia.data.imageset import units_of
from dia.detectors.calibration import Calibration, effective, one_of_each

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


def of_patients(rng, count, between=1.0):
    """Scores of `count` patients with 1 to 30 images each, most of their spread between patients."""
    each = rng.integers(1, 31, count)
    effect = np.repeat(rng.normal(0, between, count), each)
    return effect + rng.normal(0, 0.3, len(effect)), np.repeat(np.arange(count), each)


def simulated_by_patient(runs=4000, count=19, *, one_each):
    """p-values of one image of a new patient each, calibrated on the images of other patients."""
    p = np.empty(runs)
    for run in range(runs):
        rng = np.random.default_rng([run, 5])
        scores, patient = of_patients(rng, count + 1)
        new, known = scores[patient == count], scores[patient < count]
        if one_each:
            known = known[one_of_each(units_of([str(i) for i in patient[patient < count]]), len(known), run)]
        p[run] = Calibration.of(known).p_values(rng.choice(new, 1))[0]
    return p


def test_one_image_of_each_patient_keeps_the_promise_and_all_their_images_do_not():
    p = simulated_by_patient(one_each=True)
    for alpha in (0.05, 0.1, 0.25, 0.5):
        assert stats.binomtest(int((p <= alpha).sum()), len(p), alpha, "greater").pvalue > 0.001
        assert stats.binomtest(int((p <= alpha).sum()), len(p), alpha).pvalue > 0.001  # and none too many
    p = simulated_by_patient(one_each=False)
    assert stats.binomtest(int((p <= 0.05).sum()), len(p), 0.05, "greater").pvalue < 1e-4


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_the_effective_number_of_units_is_theirs_where_they_are_of_one_size(sizes):
    volumes = [f"v{i}" for i, n in enumerate(sizes) for _ in range(n)]
    found = effective(units_of(volumes=volumes), len(volumes))
    assert 1 <= found <= len(sizes) + 1e-9
    assert (abs(found - len(sizes)) < 1e-9) == (len(set(sizes)) == 1)
    assert effective((), len(volumes)) == len(volumes)


def test_of_volumes_the_promise_is_broken_by_no_more_than_is_said():
    """K volumes of equal size, all slices kept: P(p ≤ α) ≤ α + (1 − α) / (K + 1), and of a slice more."""
    runs, count, each = 4000, 9, 20
    p = np.empty(runs)
    for run in range(runs):
        rng = np.random.default_rng([run, 6])
        scores = rng.normal(size=(count + 1, 1)) + 0.1 * rng.normal(size=(count + 1, each))
        p[run] = Calibration.of(scores[1:].ravel()).p_values(scores[0, :1])[0]
    for alpha in (0.05, 0.2, 0.5):
        most = alpha + (1 - alpha) / (count + 1) + 1 / (count * each)
        assert stats.binomtest(int((p <= alpha).sum()), runs, most, "greater").pvalue > 0.001
