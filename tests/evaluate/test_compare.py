"""Differences: against definitions, published tables, known properties, and simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dia.benchmark.grid import load_grid
from dia.benchmark.published import paper_table
from dia.evaluate.compare import compared, holm, paired_difference, relative_gain


def data(seed, seeds=1, p=9, n=7):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[np.ones(p, int), np.zeros(n, int)])
    scores = rng.normal(size=(2, seeds, p + n)) + labels
    return labels, *scores


@pytest.mark.parametrize("ties", [False, True])
def test_the_variance_is_delongs_by_its_definition(ties):
    labels, a, b = data(3, p=30, n=40)
    a, b = (np.round(a), np.round(b)) if ties else (a, b)
    pos, neg = labels == 1, labels == 0
    above = [s[0][pos][:, None] - s[0][neg] for s in (a, b)]
    kernels = [(d > 0) + 0.5 * (d == 0) for d in above]
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


@pytest.mark.parametrize("seeds", [1, 3])
def test_copies_as_one_patient_change_nothing(seeds):
    labels, a, b = data(4, seeds, p=12, n=9)
    units = np.random.default_rng(0).permutation(21)
    five = [np.repeat(x, 5, axis=-1) for x in (labels, a, b, units)]
    np.testing.assert_allclose(paired_difference(*five), paired_difference(labels, a, b), rtol=1e-9)
    assert paired_difference(labels, a, b, units) == paired_difference(labels, a, b)
    assert paired_difference(*five[:3]).p < paired_difference(*five).p


def test_the_variance_by_patient_is_obuchowskis_by_its_definition():
    """Patients of one to three images, some with images of both kinds."""
    rng = np.random.default_rng(8)
    labels, a, b = data(5, p=20, n=25)
    units = rng.integers(0, 18, 45)
    d = paired_difference(labels, a, b, units)
    pos, neg = labels == 1, labels == 0
    above = [s[0][pos][:, None] > s[0][neg] for s in (a, b)]
    x, y = (above[0].mean(1) - above[1].mean(1) * 1.0, above[0].mean(0) - above[1].mean(0) * 1.0)
    x, y = x - d.value, y - d.value
    sums = {u: (x[units[pos] == u].sum(), y[units[neg] == u].sum()) for u in set(units)}
    i10, i01, i = len({*units[pos]}), len({*units[neg]}), len(sums)
    s10 = i10 / ((i10 - 1) * 20) * sum(p**2 for p, _ in sums.values())
    s01 = i01 / ((i01 - 1) * 25) * sum(n**2 for _, n in sums.values())
    s11 = i / (i - 1) * sum(p * n for p, n in sums.values())
    variance = s10 / 20 + s01 / 25 + 2 * s11 / (20 * 25)
    from scipy.stats import t

    freedom = variance**2 / ((s10 / 20) ** 2 / (i10 - 1) + (s01 / 25) ** 2 / (i01 - 1))
    width = t.ppf(0.975, min(freedom, i - 1)) * np.sqrt(variance)
    assert d.high - d.value == pytest.approx(width)


def test_by_patient_no_difference_is_rarely_found_and_by_image_often():
    """Two methods that are equally good, each with an opinion of its own on each patient."""
    found = {"patients": 0, "images": 0}
    for seed in range(400):
        rng = np.random.default_rng([seed, 3])
        labels, patient = np.repeat([0, 1], 120), np.repeat(np.arange(40), 6)
        a, b = (labels + rng.normal(size=40)[patient] + 0.3 * rng.normal(size=240) for _ in range(2))
        found["patients"] += paired_difference(labels, a, b, patient).p < 0.05
        found["images"] += paired_difference(labels, a, b).p < 0.05
    assert found["patients"] <= 40  # 20 are expected, and 40 never by chance
    assert found["images"] > 80


@settings(max_examples=25)
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
    for _ in range(150):
        labels = np.r_[np.ones(60, int), np.zeros(60, int)]
        common = rng.normal(size=120) + labels
        scores = [
            common + rng.normal(size=(3, 1)) * 0.3 * rng.normal(size=120) + rng.normal(size=(3, 120))
            for _ in range(2)
        ]
        d = paired_difference(labels, *scores)
        covered += d.low <= 0 <= d.high
    assert 0.93 <= covered / 150 <= 1


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


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_nothing_and_bonferroni(p):
    p, corrected = np.array(p), holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(p * len(p), 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_pairs_are_compared_over_the_seeds_both_have_and_corrected_together():
    labels, a, b = data(4, 3, p=20, n=20)
    by_seed = {"a": dict(enumerate(a)), "b": dict(enumerate(b)), "c": {1: a[1] + b[1]}, "none": {7: a[0]}}
    made = compared(labels, by_seed, combinations(by_seed, 2))
    assert [(c.first, c.second, c.seeds) for c in made] == [
        ("a", "b", (0, 1, 2)), ("a", "c", (1,)), ("b", "c", (1,)),
    ]  # fmt: skip
    assert made[0].difference == paired_difference(labels, a, b)
    assert made[2].difference == paired_difference(labels, b[1], a[1] + b[1])
    np.testing.assert_allclose([c.p_holm for c in made], holm([c.difference.p for c in made]))
    assert compared(labels, by_seed, [("a", "none"), ("a", "absent")]) == []


def test_the_papers_gain_is_its_tables_only_with_its_ablations_figure_for_oct():
    dia, csi = ({d: m for d, (m, _) in paper_table()[m].aurocs.items()} for m in ("dia", "csi"))
    assert len(dia) == 6
    assert 100 * relative_gain(list(dia.values()), [csi[d] for d in dia]) == pytest.approx(18.93, abs=5e-3)
    dia["oct2017"] = load_grid("transform-shift").published["oct2017"]["diffusion/rotation"]
    assert 100 * relative_gain(list(dia.values()), [csi[d] for d in dia]) == pytest.approx(18.41, abs=5e-3)


@pytest.mark.parametrize(("ours", "base"), [([1], [1, 2]), ([], []), ([1], [0])])
def test_a_gain_needs_a_base(ours, base):
    with pytest.raises(ValueError, match="base"):
        relative_gain(ours, base)
