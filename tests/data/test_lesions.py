"""Lesions: in their place, of their size and strength, the same whoever stands beside them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion

from dia.core.errors import DataError
from dia.data.lesions import KINDS, Ground, body, paste
from dia.data.phantoms import load

EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def phantoms():
    return load("train", n=12, size=48).images


@EVERY
def test_only_the_place_changes_and_the_mask_is_there(kind, phantoms):
    pasted, masks = paste(phantoms, kind, 0.25, 0.8, seed=1)
    changed = (pasted != phantoms).any(-1)
    assert masks.any((1, 2)).all()
    assert changed.any((1, 2)).all()
    far = np.stack([~binary_dilation(m, iterations=14) for m in masks])
    assert not changed[far].any()
    difference = np.abs(pasted.astype(float) - phantoms)[..., 0]
    assert difference[masks].mean() > 3 * difference[~masks].mean()


@EVERY
def test_an_image_has_the_same_lesion_in_any_batch(kind, phantoms):
    whole, masks = paste(phantoms, kind, 0.2, 0.5)
    for i in (0, 7):
        alone, mask = paste(phantoms[i : i + 1], kind, 0.2, 0.5)
        assert np.array_equal(alone[0], whole[i])
        assert np.array_equal(mask[0], masks[i])
    turned, _ = paste(phantoms[::-1], kind, 0.2, 0.5)
    assert np.array_equal(turned[::-1], whole)
    other, _ = paste(phantoms, kind, 0.2, 0.5, seed=1)
    assert not np.array_equal(other, whole)


@EVERY
def test_more_contrast_is_more_change_in_the_same_place(kind, phantoms):
    changes = []
    for contrast in (0.1, 0.4, 1.0):
        pasted, _ = paste(phantoms, kind, 0.25, contrast)
        changes.append(np.abs(pasted.astype(float) - phantoms).sum((1, 2, 3)))
    assert (np.diff(changes, axis=0).mean(1) > 0).all()


@pytest.mark.parametrize("kind", ["nodule", "texture", "haze", "blur", "missing", "displaced"])
@pytest.mark.parametrize("size", [0.2, 0.4])
def test_the_mask_has_the_area_of_the_size(kind, size, phantoms):
    _, masks = paste(phantoms, kind, size, 0.5)
    expected = np.pi * (size * 48 / 2) ** 2
    assert masks.sum((1, 2)).mean() == pytest.approx(expected, rel=0.1)


def test_a_streak_is_thin():
    _, masks = paste(load("train", n=8, size=64).images, "streak", 0.5, 0.5)
    assert 0.03 < masks.sum((1, 2)).mean() / 64**2 * 4 / np.pi / 0.5**2 < 0.25


def test_the_dome_of_a_nodule_is_a_share_of_the_grey_range():
    ramp = np.tile(np.linspace(60, 160, 40).astype(np.uint8), (40, 1))[None, ..., None]
    grey = Ground.of(ramp[0])
    assert grey.range == pytest.approx(90, abs=3)  # 5th to 95th percentile
    pasted, _ = paste(ramp, "nodule", 0.4, 0.5)
    assert np.abs(pasted.astype(int) - ramp).max() == pytest.approx(45, abs=2)


def test_texture_keeps_the_mean_and_has_its_standard_deviation():
    flat = np.full((1, 96, 96, 1), 128, np.uint8)
    flat[0, :48] = 100  # range 28
    pasted, masks = paste(flat, "texture", 0.9, 0.8)
    change = (pasted.astype(float) - flat)[..., 0]
    core = binary_erosion(masks[0], iterations=22)[None]  # the profile is flat there
    assert abs(change[core].mean()) < 1
    assert change[core].std() == pytest.approx(0.8 * 28 / 2, rel=0.15)


def test_blur_of_what_is_flat_is_nothing():
    flat = np.full((2, 24, 24, 3), 90, np.uint8)
    for kind in ("blur", "missing", "displaced"):
        pasted, masks = paste(flat, kind, 0.3, 1.0)
        assert np.array_equal(pasted, flat)
        assert masks.any((1, 2)).all()


def test_lesions_lie_in_the_body():
    images = load("train", n=12, size=64).images.copy()
    images[images < 60] = 0  # black around the body
    for kind in KINDS:
        _, masks = paste(images, kind, 0.2, 0.8)
        for image, mask in zip(images, masks, strict=True):
            assert body(image[..., 0].astype(float))[mask].mean() > 0.85, kind


@pytest.mark.parametrize("level", [0, 255])
def test_background_is_black_or_white_and_a_dark_organ_is_not(level):
    image = np.full((40, 40), float(level))
    image[8:32, 8:32] = 120
    image[18:22, 18:22] = level  # does not touch the border
    inside = body(image)
    assert inside[20, 20]
    assert not inside[:6].any()
    assert inside.mean() == pytest.approx(0.36, abs=0.1)


def test_without_background_all_is_body():
    rng = np.random.default_rng(0)
    assert body(rng.uniform(100, 140, (20, 30))).all()
    assert body(np.zeros((20, 20))).all()  # nothing would be left


@hypothesis_settings(max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    shape=st.tuples(st.integers(8, 33), st.integers(8, 33), st.sampled_from([1, 3])),
    size=st.floats(0.01, 1),
    contrast=st.floats(0.01, 1),
    constant=st.booleans(),
    seed=st.integers(0, 5),
)
def test_any_image_takes_any_lesion(kind, shape, size, contrast, constant, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    if constant:
        images[:] = images[0, 0, 0, 0]
    before = images.copy()
    pasted, masks = paste(images, kind, size, contrast, seed=seed)
    assert pasted.shape == images.shape
    assert pasted.dtype == np.uint8
    assert masks.shape == images.shape[:3]
    assert masks.any((1, 2)).all()
    assert np.array_equal(images, before)


def test_grey_in_three_channels_stays_grey(phantoms):
    colour = np.repeat(phantoms[:4], 3, axis=3)
    for kind in KINDS:
        pasted, _ = paste(colour, kind, 0.3, 0.5)
        assert np.array_equal(pasted[..., 0], pasted[..., 2]), kind


def test_sizes_and_contrasts_of_each_image(phantoms):
    sizes, contrasts = np.linspace(0.1, 0.4, 12), np.linspace(0.9, 0.2, 12)
    together, _ = paste(phantoms, "haze", sizes, contrasts)
    one, _ = paste(phantoms[5:6], "haze", sizes[5], contrasts[5])
    assert np.array_equal(together[5], one[0])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("tumour", 0.2, 0.5), "no lesion 'tumour'; there are: nodule"),
        (("nodule", 0.0, 0.5), "size of a lesion must lie in"),
        (("nodule", 0.2, 1.5), "contrast of a lesion must lie in"),
    ],
)
def test_what_cannot_be_pasted_is_refused(arguments, match, phantoms):
    with pytest.raises(DataError, match=match):
        paste(phantoms, *arguments)


def test_images_that_are_no_images_are_refused():
    with pytest.raises(DataError, match="at least 8 pixels"):
        paste(np.zeros((1, 7, 20, 1), np.uint8), "nodule", 0.2, 0.5)
    with pytest.raises(DataError, match="uint8"):
        paste(np.zeros((1, 9, 20, 1)), "nodule", 0.2, 0.5)
