"""Findings of a heatmap: level, p-values, areas, contours, lesions across slices; FROC by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dia.detectors.calibration import HeatScale
from dia.evaluate.findings import findings_of, joined, mask_of, of_case, why_none
from dia.evaluate.metrics import froc, recall_at

HEAT = HeatScale(0.0, np.arange(1.0, 40.0))  # 39 normals, peaks 1 to 39: at 5 % the level is 38


def heatmap(*blocks, shape=(10, 12)):
    """Zeros, with (rows, columns, value) set."""
    made = np.zeros(shape)
    for rows, columns, value in blocks:
        made[rows, columns] = value
    return made


def test_p_is_the_rank_of_the_peak_among_those_of_normals():
    found = findings_of(heatmap((slice(1, 3), slice(1, 4), 39.0), (7, 8, 100.0), (5, 1, 38.0)), HEAT, 0.05)
    assert [f.peak for f in found] == [100.0, 39.0]  # 38 is the level, and not above it
    assert [f.p_value for f in found] == [1 / 40, 2 / 40]
    assert [f.box for f in found] == [(8, 7, 1, 1), (1, 1, 3, 2)]
    assert [f.peak_at for f in found] == [(8.5, 7.5), (1.5, 1.5)]
    assert found[1].area_px == 6
    assert found[1].centroid == (2.5, 2.0)
    assert found[1].area_mm2 is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.05, 0.11, 0.3, 0.9]), st.integers(1, 80))
def test_no_finding_has_a_p_above_the_rate_and_every_place_above_the_level_is_found(seed, rate, n):
    rng = np.random.default_rng(seed)
    heat = HeatScale(0.0, np.sort(rng.integers(0, 12, n).astype(float)))  # with ties
    values = rng.integers(0, 14, (9, 7)).astype(float)
    size = tuple(rng.integers(1, 40, 2).tolist())
    found = findings_of(values, heat, rate, size=size)
    assert all(f.p_value <= rate + 1e-12 for f in found)
    level = heat.level(rate)
    assert bool(found) == bool((values > level).any())
    assert bool(why_none(heat, rate)) == np.isinf(level)
    for f in found:
        x, y, w, h = f.box
        assert x >= 0
        assert y >= 0
        assert x + w <= size[1]
        assert y + h <= size[0]
        assert f.mask.shape == (h, w)
        assert f.mask.any(0).all() or f.area_px >= 1  # a box is no larger than its mask
        assert f.mask[0].any()
        assert f.mask[-1].any()
        assert f.mask[:, 0].any()
        assert f.mask[:, -1].any()
        ends = np.concatenate(f.contour)
        assert (ends >= 0).all()
        assert (ends <= np.array(size[::-1]) + 1e-9).all()


def test_the_share_of_normals_with_a_finding_is_the_rate_at_most():
    """Over draws of 39 normals and one new one, all alike: P(finding) ≤ 2 / 40 by exchangeability."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        maps = rng.normal(size=(40, 4, 4))
        hits += bool(findings_of(maps[0], HeatScale.of(maps[1:]), 0.05))
    assert hits / 2000 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_places_that_touch_at_a_corner_are_one_and_others_are_two():
    found = findings_of(heatmap((2, 2, 50.0), (3, 3, 60.0), (3, 6, 70.0)), HEAT, 0.05)
    assert [(f.peak, f.area_px) for f in found] == [(70.0, 1), (60.0, 2)]


@pytest.mark.parametrize("size", [(10, 12), (40, 48), (400, 120), (5, 6), (1, 1)])
def test_masks_of_one_image_do_not_overlap_and_areas_scale_with_the_file(size):
    values = heatmap((slice(2, 6), slice(2, 7), 80.0), (slice(2, 5), slice(9, 12), 60.0))
    found = findings_of(values, HEAT, 0.05, size=size, spacing=(0.5, 0.25))
    assert len(found) == 2
    assert all(f.area_mm2 == pytest.approx(f.area_px * 0.125) for f in found)
    if min(size) >= 5:
        assert (mask_of(found, size) > 0).sum() == sum(f.area_px for f in found)
    if size[0] >= 40:  # the place of 4 × 5 pixels, give or take half a pixel around it
        scale = size[0] * size[1] / 120
        assert 3 * 4 * scale < found[0].area_px < 5 * 6 * scale


def test_the_contour_encloses_the_mask_with_its_hole():
    from skimage.draw import polygon2mask

    values = heatmap((slice(2, 9), slice(2, 9), 80.0), (slice(4, 7), slice(4, 7), 0.0), shape=(12, 12))
    (found,) = findings_of(values, HEAT, 0.05, size=(240, 240))
    assert len(found.contour) == 2
    assert found.holes == 1
    drawn = np.zeros((240, 240), bool)
    for ring in found.contour:
        drawn ^= polygon2mask((240, 240), ring[:, ::-1] - 0.5)
    whole = mask_of([found], (240, 240)) > 0
    assert (drawn ^ whole).sum() < 0.03 * whole.sum()  # between pixels the one is linear, the other bilinear


def test_a_place_at_the_edge_has_a_closed_contour_along_it():
    (found,) = findings_of(np.full((4, 6), 50.0), HEAT, 0.05, size=(8, 12))
    (ring,) = found.contour
    x, y = ring.T
    assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == 8 * 12 == found.area_px


def test_lesions_join_overlapping_findings_of_neighbouring_slices():
    a = heatmap((slice(1, 4), slice(1, 4), 50.0))
    fork = heatmap((slice(1, 4), slice(1, 4), 50.0), (slice(1, 4), slice(7, 10), 90.0))
    both = heatmap((slice(2, 4), slice(1, 10), 60.0))
    apart = heatmap((8, 11, 45.0))
    stack = [a, fork, both, np.zeros((10, 12)), a, apart]
    slices, lesions = joined(
        [findings_of(m, HEAT, 0.05, spacing=(2.0, 0.5), slice=k) for k, m in enumerate(stack)], distance=3.0
    )
    assert [lesion.slices for lesion in lesions] == [(0, 1, 2), (4,), (5,)]
    assert [f.lesion for own in slices for f in own] == [1, 1, 1, 1, 2, 3]
    assert lesions[0].volume_mm3 == (9 + 9 + 9 + 18) * 3.0
    assert lesions[0].peak == 90.0
    assert [lesion.p_value for lesion in lesions] == pytest.approx([6 / 40] * 3)  # six slices were looked at


def test_of_unknown_spacing_there_is_no_area_and_no_volume():
    found = of_case([heatmap((2, 2, 50.0))] * 2, HEAT, 0.05, spacing=None)
    assert found["findings"][0]["area_mm2"] is None
    assert found["lesions"][0]["volume_mm3"] is None
    found = of_case([heatmap((2, 2, 50.0))] * 2, HEAT, 0.05, spacing=(1.0, 1.0, None))
    assert found["findings"][0]["area_mm2"] == 1.0
    assert found["lesions"][0]["volume_mm3"] is None
    assert found["level"] == 38.0
    assert [f["lesion"] for f in found["findings"]] == [1, 1]


def test_too_few_normals_give_no_finding_and_one_line():
    found = of_case([np.full((4, 4), 1e9)], HEAT, 0.01)
    assert found["findings"] == []
    assert found["level"] is None
    assert "99 normals" in found["words"]
    assert "\n" not in found["words"]
    assert "0.025" in found["words"]
    assert "no heatmaps of normals" in of_case([np.zeros((4, 4))], None, 0.05)["words"]


# --- FROC ---------------------------------------------------------------------------------------------------


def test_froc_by_hand():
    """Two images of 1 × 9 pixels: lesions at 0 to 2 and at 6 in the first, at 4 in the second.

    Local maxima and their values: first 9 (in lesion), 7 (no lesion, at 4), 5 (in lesion, at 6); second 8 (no
    lesion, at 0), 6 (in lesion, at 4). By falling threshold: 9: 1 of 3, no false; 8: 1, 1 false; 7: 1, 2
    false; 6: 2, 2 false; 5: 3, 2 false.
    """
    masks = np.zeros((2, 1, 9), bool)
    masks[0, 0, [0, 1, 2, 6]] = masks[1, 0, 4] = True
    maps = np.zeros((2, 1, 9))
    maps[0, 0, [1, 4, 6]] = 9, 7, 5
    maps[1, 0, [0, 4]] = 8, 6
    assert recall_at(masks, maps, 9) == (1 / 3, 0.0)
    assert recall_at(masks, maps, 8) == (1 / 3, 0.5)
    assert recall_at(masks, maps, 6) == (2 / 3, 1.0)
    assert recall_at(masks, maps, 5) == (1.0, 1.0)
    assert froc(masks, maps, at=(0, 0.5, 1)) == {"recall@0": 1 / 3, "recall@0.5": 1 / 3, "recall@1": 1.0}


def test_froc_is_as_fine_among_the_highest_peaks_where_there_are_many():
    """The highest of some hundred maxima of each of 50 images lies in its lesion: none need be false."""
    rng = np.random.default_rng(0)
    maps, masks = rng.random((50, 32, 32)), np.zeros((50, 32, 32), bool)
    for image, mask, place in zip(maps, masks, rng.integers(0, 1024, 50), strict=True):
        image.flat[place], mask.flat[place] = 1.5 + rng.random(), True
    assert recall_at(masks, maps, 1.2) == (1.0, 0.0)
    found = froc(masks, maps)
    assert found["recall@0.5"] == found["recall@2"] == 1


def test_one_finding_as_large_as_the_image_marks_one_lesion_at_most():
    masks = np.zeros((1, 5, 5), bool)
    masks[0, 0, 0] = masks[0, 4, 4] = masks[0, 2, 2] = True
    maps = np.ones((1, 5, 5))
    maps[0, 2, 2] = 2
    assert recall_at(masks, maps, 0.5) == (1 / 3, 0.0)


def test_several_findings_in_one_lesion_count_once_and_normal_images_count():
    masks = np.zeros((2, 1, 7), bool)
    masks[0] = True
    maps = np.zeros((2, 1, 7))
    maps[0, 0, [0, 3, 6]] = 5
    maps[1, 0, 2] = 5
    assert recall_at(masks, maps, 5) == (1.0, 0.5)


def test_froc_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="no anomalous"):
        recall_at(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2)), 0)
    with pytest.raises(ValueError, match="resize"):
        recall_at(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3)), 0)
