"""The untrained views, their symmetric copies, distances to normals and the evidence of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from dia.detectors.diaplus import NEAR, Scale, log_distance
from dia.detectors.nearest import Nearest
from dia.features.untrained import Shape, Statistics, copies, cosines, passed, possible


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_copies_are_numpys_turns_of_the_image_or_of_its_mirror_image():
    x = np.arange(12).reshape(3, 4)
    for i in (0, 2, 4, 6):
        want = np.rot90(x[:, ::-1] if i >= 4 else x, i % 4)
        np.testing.assert_array_equal(copies(torch.from_numpy(x), (i,))[0].numpy(), want)
    x = np.arange(9).reshape(3, 3)
    eight = copies(torch.from_numpy(x), possible(3, 3)).numpy()
    for i, copy in enumerate(eight):
        np.testing.assert_array_equal(copy, np.rot90(x[:, ::-1] if i >= 4 else x, i % 4))
    assert len({e.tobytes() for e in eight}) == 8
    assert possible(3, 4) == (0, 2, 4, 6)


def plain_statistics(image):
    """Those of one image `(H, W, C)` uint8, by numpy, Pillow and scipy."""
    fractions = (0.05, 0.25, 0.5, 0.75, 0.95)
    y = np.asarray(Image.fromarray(image).convert("L") if image.shape[2] == 3 else image[..., 0]) / 255.0
    bands = [y, *(ndimage.gaussian_filter(y, sigma) for sigma in (0.7, 1.0, 2.0, 4.0))]
    energies = [((fine - coarse) ** 2).mean() for fine, coarse in pairwise(bands)]
    steep = np.abs(np.diff(y, axis=0)).mean() + np.abs(np.diff(y, axis=1)).mean()
    made = [y.mean(), y.std(), steep, *np.log(np.array(energies) + 1e-8), *np.quantile(y, fractions)]
    if image.shape[2] == 3:
        red, green, blue = (image[..., i] / 255.0 for i in range(3))
        for opponent in (red - green, (red + green) / 2 - blue):
            made += [opponent.std(), *np.quantile(opponent, fractions)]
    return made


SIDES = st.integers(2, 40)


@given(SIDES, SIDES, st.sampled_from([1, 3]), st.integers(1, 256), st.integers(0, 99))
@run_settings(max_examples=40, deadline=None)
def test_statistics_are_those_of_numpy_and_scipy(height, width, channels, levels, seed):
    images = np.random.default_rng(seed).integers(0, levels, (3, height, width, channels), dtype=np.uint8)
    ours = Statistics(height, width)(tensor(images)).numpy()
    np.testing.assert_allclose(ours, [plain_statistics(image) for image in images], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sides", [(5, 64), (33, 2)])
@pytest.mark.parametrize("sigma", [0.7, 3.0, 12.0])  # the widest reaches beyond both edges
def test_a_gaussian_multiplies_cosines(sides, sigma):
    x = np.random.default_rng(0).random(sides)
    down, across = (cosines(side).numpy() for side in sides)
    np.testing.assert_allclose(down.T @ (down @ x @ across.T) @ across, x, atol=1e-12)  # and back
    blurred = down.T @ (passed(sides, sigma).numpy() * (down @ x @ across.T)) @ across
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(x, sigma), atol=1e-12)


def test_shape_of_stripes_is_in_the_orientation_of_their_gradient():
    stripes = np.zeros((1, 32, 32, 1), np.uint8)
    stripes[:, :, ::8] = stripes[:, :, 1::8] = stripes[:, :, 2::8] = stripes[:, :, 3::8] = 200
    for copy, orientation in ((0, 0), (1, 4)):  # the gradient runs across; turned, down
        x = copies(tensor(stripes), (copy,))[0]
        of_block = Shape(32, 32)(x).view(4, 8, 49).mean((0, 2))
        assert int(of_block.argmax()) == orientation
        assert float(of_block[orientation]) > 10 * float(of_block[(orientation + 4) % 8])


@given(st.floats(0.3, 1.0), st.integers(0, 55), st.integers(0, 99))
@run_settings(max_examples=25, deadline=None)
def test_shape_sees_no_brightness_and_hardly_contrast(gain, offset, seed):
    x = np.random.default_rng(seed).integers(0, 200, (1, 1, 32, 32))
    x = torch.from_numpy(x).double()  # not rounded, so that only gain and offset change
    first, second = Shape(32, 32)(x), Shape(32, 32)(x * gain + offset)
    assert float((first - second).abs().max()) < 1e-3
    assert float((first**2).sum()) == pytest.approx(49, rel=1e-3)  # blocks of norm 1


def test_shape_of_nothing_is_nothing():
    assert float(Shape(20, 31)(torch.full((1, 3, 20, 31), 90, dtype=torch.uint8)).abs().max()) < 0.1


def test_distances_are_means_over_the_k_nearest_whatever_the_parts(monkeypatch):
    bank = np.array([[0, 0], [3, 4], [0, 1], [10, 10]])
    assert float(Nearest(bank, 3)(torch.zeros(1, 2))) == pytest.approx((0 + 1 + 5) / 3)
    assert Nearest(bank, 9).k == 4
    random = np.random.default_rng(0)
    x, many = torch.from_numpy(random.normal(size=(5, 3))), random.normal(size=(11, 3)).astype(np.float32)
    apart = np.linalg.norm(x.float().numpy()[:, None] - many[None].astype(np.float64), axis=2)
    for k in (1, 3, 20):
        want = np.sort(apart, 1)[:, :k].mean(1)
        for part in (4096, 4):
            monkeypatch.setattr("dia.detectors.nearest._PART", part)
            np.testing.assert_allclose(Nearest(many, k)(x), want, rtol=1e-9)


@pytest.mark.parametrize("bank", [np.empty((0, 3)), np.array([[0.0, np.nan]])])
def test_a_bank_without_normals_or_with_numbers_that_are_none_is_refused(bank):
    with pytest.raises(ValueError, match="a bank needs normals"):
        Nearest(bank, 1)


def test_the_scale_counts_in_spreads_above_the_median():
    scale = Scale.of(np.array([1.0, 2.0, 4.0, 0.0, 5.0]))
    assert (scale.median, scale.spread) == (2, pytest.approx(np.sqrt((2**2 + 3**2) / 2)))
    values = torch.tensor([2.0, 2 + scale.spread, 0], dtype=torch.float64)
    np.testing.assert_allclose(scale(values), [0, 1, -2 / scale.spread])
    assert Scale.of(np.full(3, 7.0)).spread == 0.05  # normals that are all alike


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.lists(st.floats(0, 1e12), min_size=2))
@run_settings(max_examples=80, deadline=None)
def test_evidence_is_finite_and_rises_with_distance(of_normals, distances):
    median = float(np.median(of_normals))
    d = np.sort(distances)
    scale = Scale.of(log_distance(torch.tensor(of_normals, dtype=torch.float64), median).numpy())
    evidence = scale(log_distance(torch.from_numpy(d), median)).numpy()
    assert np.isfinite(evidence).all()
    assert (np.diff(evidence) >= 0).all()
    assert float(log_distance(torch.zeros(1), 1.0)) == pytest.approx(np.log(NEAR))


def test_copies_among_the_normals_do_not_widen_the_scale():
    apart = np.linspace(1, 2, 21)
    with_copies = np.concatenate([np.zeros(6), apart])
    wide, usual = (
        Scale.of(log_distance(torch.from_numpy(d), float(np.median(d))).numpy()).spread
        for d in (with_copies, apart)
    )
    assert wide < 1.5 * usual
