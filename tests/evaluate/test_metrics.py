"""Metrics against scikit-learn, a plain threshold sweep, and small cases worked by hand."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from dia.evaluate.metrics import image_metrics, pixel_metrics, resampled_units, roc_band

RNG = np.random.default_rng(0)


def cases(n=300, levels=None):
    labels = RNG.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = RNG.normal(size=n) + labels
    return labels, scores if levels is None else np.round(scores * levels) / levels


@pytest.mark.parametrize("levels", [None, 1, 4])
def test_image_metrics_equal_sklearn_with_and_without_ties(levels):
    labels, scores = cases(levels=levels)
    m = image_metrics(labels, scores, n_boot=200)
    assert m["auroc"] == roc_auc_score(labels, scores)
    assert m["ap"] == average_precision_score(labels, scores)
    assert m["auroc_ci"][0] < m["auroc"] < m["auroc_ci"][1]


def test_bootstrap_agrees_with_resampling_by_index():
    labels, scores = cases(200, levels=3)
    pos, neg = scores[labels == 1], scores[labels == 0]
    rng = np.random.default_rng(1)
    y = np.r_[np.ones(len(pos)), np.zeros(len(neg))]
    plain = [
        roc_auc_score(y, np.r_[rng.choice(pos, len(pos)), rng.choice(neg, len(neg))]) for _ in range(400)
    ]
    ours = image_metrics(labels, scores, n_boot=4000)["auroc_ci"]
    np.testing.assert_allclose(ours, np.quantile(plain, (0.025, 0.975)), atol=0.015)


def test_images_of_one_patient_each_are_images():
    labels, scores = cases(200, levels=3)
    plain = image_metrics(labels, scores, n_boot=50)
    assert plain == image_metrics(labels, scores, np.arange(200)[::-1], n_boot=50)


def test_one_patient_of_a_class_tells_nothing_of_others():
    labels, scores = cases(40, levels=3)
    units = np.where(labels == 1, 0, np.arange(40))
    found = image_metrics(labels, scores, units, n_boot=50)
    assert found["auroc_ci"] == [0.0, 1.0]
    assert image_metrics(labels, scores, np.zeros(40, int), n_boot=50)["auroc_ci"] == [0.0, 1.0]


def test_copies_as_one_patient_change_no_interval_and_as_images_halve_it():
    labels, scores = cases(150)
    four = np.repeat(labels, 4), np.repeat(scores, 4)
    of_one = image_metrics(labels, scores, n_boot=4000)["auroc_ci"]
    by_patient = image_metrics(*four, np.repeat(np.arange(150), 4), n_boot=4000)
    np.testing.assert_allclose(by_patient["auroc_ci"], of_one, atol=0.01)
    low, high = image_metrics(*four, n_boot=4000)["auroc_ci"]
    assert (high - low) / np.diff(of_one)[0] == pytest.approx(0.5, abs=0.08)
    assert by_patient["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    _, low, high = roc_band(*four, np.repeat(np.arange(150), 4), n_boot=300)
    assert (high - low).mean() > 1.5 * np.subtract(*roc_band(*four, n_boot=300)[:0:-1]).mean()


def test_intervals_by_patient_are_as_wide_as_the_spread_over_samples():
    """Forty patients of each class with eight images each, half of the variance between patients."""

    def sample(seed):
        rng = np.random.default_rng(seed)
        labels, patient = np.repeat([0, 1], 320), np.repeat(np.arange(80), 8)
        return labels, labels + rng.normal(size=80)[patient] + rng.normal(size=640), patient

    spread = np.std([roc_auc_score(*sample(s)[:2]) for s in range(300)])
    widths = [np.diff(image_metrics(*sample(s), n_boot=300)["auroc_ci"])[0] for s in range(10)]
    assert np.mean(widths) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.2)
    naive = [np.diff(image_metrics(*sample(s)[:2], n_boot=300)["auroc_ci"])[0] for s in range(10)]
    assert np.mean(naive) < 0.65 * np.mean(widths)


def test_patients_with_images_of_both_kinds_are_drawn_as_wholes():
    labels = np.tile([0, 1], 3)
    units = np.repeat(np.arange(3), 2)
    for drawn in resampled_units(labels, units, 40, 0, 6):
        assert (drawn[:, ::2] == drawn[:, 1::2]).all()
        assert (drawn.sum(1) == 6).all()
    one = image_metrics(labels, [0.0, 1, 0, 1, 0, 1], units, n_boot=20)
    assert one["auroc_ci"] == [1, 1]
    mixed = np.array([0, 0, 0, 1, 1, 2])  # a patient of both kinds is the only source of anomalous images
    assert np.isfinite(image_metrics([0, 0, 1, 0, 0, 0], np.arange(6.0), mixed, n_boot=50)["auroc_ci"]).all()


def test_fpr95_by_hand():
    # 20 anomalous at 1..20: 19 of them (95 %) are at 2 or above. Normal at .5, 1.5, 2, 30: two of four are.
    labels = np.r_[np.ones(20), np.zeros(4)]
    scores = np.r_[np.arange(1, 21), 0.5, 1.5, 2, 30]
    assert image_metrics(labels, scores, n_boot=0)["fpr95"] == 0.5


def test_constant_scores_are_chance():
    m = image_metrics([0, 0, 0, 1], [7, 7, 7, 7], n_boot=50)
    assert (m["auroc"], m["auroc_ci"], m["ap"], m["fpr95"]) == (0.5, [0.5, 0.5], 0.25, 1.0)


def test_bootstrap_is_fast_and_repeatable():
    labels, scores = cases(1000)
    start = time.process_time()
    first = image_metrics(labels, scores)
    assert time.process_time() - start < 4
    assert first == image_metrics(labels, scores) != image_metrics(labels, scores, seed=1)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [1.0, 2.0], "one class"),
        ([0, 1], [1.0, np.nan], "index 1"),
        ([0, 1], [1.0, np.inf], "infinite"),
        ([0, 1], [1.0, 2.0, 3.0], "one value per image"),
        ([0, 2], [1.0, 2.0], "recode"),
        ([], [], "one class"),
    ],
)
def test_image_metrics_errors_are_one_line(labels, scores, message):
    with pytest.raises(ValueError, match=message) as e:
        image_metrics(labels, scores)
    assert "\n" not in str(e.value)


def test_roc_band_holds_the_curve():
    labels, scores = cases(400)
    fpr, low, high = roc_band(labels, scores, n_boot=200, points=51)
    assert fpr.shape == low.shape == high.shape == (51,)
    assert (low <= high).all()
    assert high[-1] == low[-1] == 1
    area = roc_auc_score(labels, scores)
    assert auc(fpr, low) < area < auc(fpr, high)


def swept_pro(masks, heatmaps, limit=0.3):
    """PRO as in the MVTec AD evaluation code: a curve over every distinct value, then trapezoids."""
    regions = []
    for m, h in zip(masks, heatmaps, strict=True):
        lab, n = ndimage.label(m, np.ones((3, 3)))
        regions += [h[lab == k] for k in range(1, n + 1)]
    thresholds = np.unique(heatmaps)[::-1]
    fpr = np.r_[0, [np.mean(heatmaps[~masks] >= t) for t in thresholds]]
    pro = np.r_[0, [np.mean([np.mean(r >= t) for r in regions]) for t in thresholds]]
    # np.interp would pick one end of a vertical step at the limit; none of the cases has one just there
    keep = fpr < limit
    x, y = np.r_[fpr[keep], limit], np.r_[pro[keep], np.interp(limit, fpr, pro)]
    return auc(x, y) / limit


@pytest.mark.parametrize("levels", [None, 2, 20])
def test_pixel_metrics_equal_a_full_sweep(levels):
    masks = np.zeros((3, 11, 13), bool)
    masks[0, 1:4, 1:5] = masks[0, 6:9, 8:10] = masks[2, 0, 0] = masks[2, 1, 1] = True
    heat = RNG.normal(size=masks.shape) + masks
    heat = heat if levels is None else np.round(heat * levels) / levels
    m = pixel_metrics(masks, heat)
    assert m["pixel_auroc"] == pytest.approx(roc_auc_score(masks.ravel(), heat.ravel()))
    assert m["pro"] == pytest.approx(swept_pro(masks, heat))


def test_pro_two_regions_by_hand():
    # Ten normal pixels at 0..9. Region A, one pixel above them all: area 1 at every rate. Region B, four
    # pixels: two at 8.5 (one of ten normal is above: from rate .1), two at 0.5 (from .9, past .3: nothing).
    # B: .5 · (.3 - .1) / .3 = 1/3. PRO = (1 + 1/3) / 2, where a mean over pixels would give (1 + 4/3) / 5.
    heat = np.array([[[99, 0, 8.5, 8.5, 0.5, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9]]])
    masks = np.zeros(heat.shape, bool)
    masks[0, 0, [0, 2, 3, 4, 5]] = True
    assert pixel_metrics(masks, heat)["pro"] == pytest.approx(2 / 3)


def test_diagonal_neighbours_are_one_region_and_images_never_join():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 1, 1] = True
    heat = np.zeros((2, 4, 4))
    heat[0, 1, 1] = heat[1, 1, 1] = 1  # half of the first region, all of the second, no false alarm
    untouched = 0.3**2 / 2 / 0.3  # the other half ties with every normal pixel: the ramp of chance
    assert pixel_metrics(masks, heat)["pro"] == pytest.approx((0.5 + 0.5 * untouched + 1) / 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), min_size=2, max_size=60))
def test_unchanged_by_strictly_increasing_transforms(pairs):
    labels = np.array([True, False] + [a for a, _ in pairs])
    scores = np.array([0, 0] + [b for _, b in pairs], float)
    other = np.arctan(scores) * 3 + np.exp(scores / 30)
    assert image_metrics(labels, scores, n_boot=20) == image_metrics(labels, other, n_boot=20)
    shape = (1, 1, -1)
    a = pixel_metrics(labels.reshape(shape), scores.reshape(shape))
    assert a == pixel_metrics(labels.reshape(shape), other.reshape(shape))
    assert a["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize(
    ("masks", "heat", "message"),
    [
        (np.ones((2, 3, 3), bool), np.ones((2, 3, 4)), "resize"),
        (np.zeros((1, 2, 2), bool), np.ones((1, 2, 2)), "both anomalous and normal"),
        (np.eye(2, dtype=bool)[None], np.full((1, 2, 2), np.nan), "NaN"),
    ],
)
def test_pixel_metrics_errors(masks, heat, message):
    with pytest.raises(ValueError, match=message):
        pixel_metrics(masks, heat)
