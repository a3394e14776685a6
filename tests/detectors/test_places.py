"""Places: Gaussians by hand in numpy, judged by others, restored, and greatest where something was put."""

import numpy as np
import pytest
import torch
from conftest import SEED
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from dia.data import phantoms
from dia.detectors.places import (
    FOLDS,
    Gaussians,
    Moments,
    Places,
    Residuals,
    Source,
    Standard,
    folds_of,
    greatest,
    owners_of,
)
from dia.detectors.saving import module_tensors
from dia.features.backbone import Squares
from dia.features.untrained import as_tensor

SIDE = 32


def maps_of(n=12, channels=3, side=4, seed=0):
    """Maps whose channels depend on one another and differ in mean and scale by place, float64."""
    draw = np.random.default_rng([seed, SEED])
    mixed = np.einsum(
        "ck,nkhw->nchw", draw.normal(size=(channels, channels)), draw.normal(size=(n, channels, side, side))
    )
    return torch.from_numpy(mixed * draw.uniform(0.5, 2, (side, side)) + draw.normal(size=(side, side)))


# --- Gaussians ---------------------------------------------------------------------------------------------


def log_mahalanobis(normals, x, grid):
    """Log distances `(M, h, w)` of `x` `(M, C, h, w)`, written out place by place."""
    n, channels, height, width = normals.shape
    mean = normals.mean((0, 2, 3), keepdims=True)[0] if grid == 1 else normals.mean(0)
    mean = np.broadcast_to(mean, normals.shape[1:])
    block = height // grid, width // grid

    def values(of, i, j):  # `(C, M·places)` less their means
        rows = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
        return (of - mean)[:, :, rows[0], rows[1]].transpose(1, 0, 2, 3).reshape(channels, -1)

    plain = np.array([[np.cov(values(normals, i, j), bias=True) for j in range(grid)] for i in range(grid)])
    plain = plain.reshape(grid, grid, channels, channels)
    near = [slice(max(i - 1, 0), i + 2) for i in range(grid)]
    smooth = np.array([[plain[rows, columns].mean((0, 1)) for columns in near] for rows in near])
    some = channels / (channels + n)
    shrunk = (1 - some) * smooth + some * smooth.mean((0, 1))
    out = np.empty((len(x), height, width))
    for row in range(height):
        for column in range(width):
            covariance = shrunk[row // block[0], column // block[1]]
            ridge = 0.02 * np.trace(covariance) / channels * np.eye(channels)
            d = x[:, :, row, column] - mean[:, row, column]
            squared = (d @ np.linalg.inv(covariance + ridge) * d).sum(1)
            out[:, row, column] = np.log(squared) / 2
    return out


@pytest.mark.parametrize("grid", [1, 2, 4])  # one Gaussian; a covariance of 2×2 places; one of each place
def test_gaussians_are_the_mahalanobis_distance_with_shrinkage(grid):
    normals, x = maps_of(), maps_of(5, seed=1)
    found = Gaussians.of(Moments.of(normals, grid))(x)
    np.testing.assert_allclose(found, log_mahalanobis(normals.numpy(), x.numpy(), grid), rtol=1e-7, atol=1e-9)


def test_moments_of_parts_add_up():
    x = maps_of()
    whole = Moments.sum([Moments.of(x[:5], 4), Moments.of(x[5:], 4)])
    assert whole.number == 12
    for found, want in zip(whole[1:], Moments.of(x, 4)[1:], strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("grid", [1, 4])
def test_gaussians_that_moved_see_what_was_moved_as_before(grid):
    z, new = maps_of(), maps_of(5, seed=1)
    scale = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)[:, None, None]
    mean = torch.tensor([5.0, -2.0, 100.0], dtype=torch.float64)[:, None, None]
    before = Gaussians.of(Moments.of(z, grid))
    after = before.moved(mean.expand_as(before.mean), scale)
    torch.testing.assert_close(after(new * scale + mean), before(new))


def test_a_distance_that_vanishes_has_a_logarithm():
    same = maps_of(1).repeat(6, 1, 1, 1)
    found = Gaussians.of(Moments.of(same, 4))(same)
    assert torch.isfinite(found).all()


def test_standard_averages_mean_and_deviation_over_neighbouring_places():
    values = maps_of(20, 1)[:, 0]
    mean, std = values.mean(0).numpy(), values.std(0, correction=0).numpy()
    corner = (mean[:2, :2].mean(), std[:2, :2].mean() + 0.02)
    found = Standard.of(values)(values)
    np.testing.assert_allclose(found[:, 0, 0], (values[:, 0, 0] - corner[0]) / corner[1])
    np.testing.assert_allclose(
        found[:, 1, 2], (values[:, 1, 2] - mean[:3, 1:].mean()) / (std[:3, 1:].mean() + 0.02)
    )
    whole = Standard.of(values, one=True)(values)
    np.testing.assert_allclose(whole, (values - values.mean()) / (values.numpy().std() + 0.02))


# --- judged by others --------------------------------------------------------------------------------------


def distances(maps, folds):
    """The log distances of normals, each by Gaussians of other folds, before they are standardised."""
    return Source.of(maps, folds).crossed


def test_each_fold_is_judged_by_gaussians_of_the_others():
    maps, folds = maps_of(15), folds_of(np.arange(15), SEED)
    mean, std = maps.mean(0), maps.std((0, 2, 3), correction=0)[:, None, None]
    z, found = (maps - mean) / std, distances(maps, folds)
    for fold in folds:
        others = np.setdiff1d(np.arange(15), fold)
        torch.testing.assert_close(found[fold], Gaussians.of(Moments.of(z[others], 4))(z[fold]))


def test_an_outlier_changes_how_others_are_judged_and_not_its_own_fold():
    """Of one channel, in which distances do not depend on the scale."""
    maps, folds = maps_of(20, 1), folds_of(np.arange(20), SEED)
    planted, odd = maps.clone(), int(folds[0][0])
    planted[odd, 0, 2, 2] += 100
    before, after = distances(maps, folds), distances(planted, folds)
    torch.testing.assert_close(after[folds[0][1:]], before[folds[0][1:]], rtol=1e-6, atol=1e-6)
    assert float((after - before)[np.concatenate(folds[1:]), 2, 2].abs().median()) > 0.1
    # by Gaussians that have seen it, the outlier would look far less odd than it is
    found = Source.of(planted, folds)
    source, own = found.made, found.made.standard(found.crossed)
    assert own[odd].argmax() == own.amax(0).argmax() == 2 * 4 + 2
    assert float(after[odd, 2, 2] - source.gaussians(planted)[odd, 2, 2]) > 1


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda x: len(set(x)) > 1),
    st.integers(0, 99),
)
def test_folds_keep_owners_together_and_hold_every_normal_once(owner, seed):
    owner = np.array(owner)
    folds = folds_of(owner, seed)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(owner)))
    held = [set(owner[fold].tolist()) for fold in folds]
    assert sum(map(len, held)) == len(set(owner.tolist()))  # no owner is in two
    assert len(folds) == min(FOLDS, len(set(owner.tolist())))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for fold, again in zip(folds, folds_of(owner, seed), strict=True):
        np.testing.assert_array_equal(fold, again)


def test_owners_are_volumes_or_the_slices_of_one_alone():
    np.testing.assert_array_equal(owners_of(np.array(["b", "a", "b"])), [1, 0, 1])
    np.testing.assert_array_equal(owners_of(np.array(["a", "a", "a"])), [0, 1, 2])


# --- what blurs remove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (90, 1)])
def test_blurs_remove_nothing_of_a_constant_image(side, channels):
    for value in (0.0, 0.3, 1.0):
        made = Residuals(side)(torch.full((1, channels, side, side), value))
        assert made.shape == (1, 12, min(side, 32), min(side, 32))
        assert float(made.abs().max()) < 1e-3  # of 255


def test_residuals_are_means_and_log_energy_of_what_scipys_blur_removes():
    x = torch.from_numpy(np.random.default_rng(SEED).random((2, 3, 64, 64))).float()
    made = Residuals(64, (1.5, 4.0))(x).numpy()

    def smooth(y, sigma):
        return ndimage.gaussian_filter(y, (0, sigma, sigma))

    y = x.numpy().astype(float).mean(1) * 255
    for i, sigma in enumerate((1.5, 4.0)):
        r = y - smooth(y, sigma)
        detail = np.log(smooth((r - smooth(r, 1)) ** 2, 3) + 1)
        for found, full in zip(
            made[:, 3 * i :].swapaxes(0, 1), (smooth(r, 2), smooth(r, 3), detail), strict=False
        ):
            np.testing.assert_allclose(found, full.reshape(2, 32, 2, 32, 2).mean((2, 4)), atol=2e-3)


def test_residuals_do_not_see_brightness_and_are_shifted_with_the_image():
    x = torch.from_numpy(np.random.default_rng(SEED).random((1, 1, 32, 32))).float() / 2
    module = Residuals(32, (0.7, 1.5))
    torch.testing.assert_close(module(x + 0.4), module(x), rtol=0, atol=2e-3)
    shifted = module(x.roll((3, 5), (2, 3)))[:, :, 16:20, 16:20]  # far from the edges, which are mirrored
    torch.testing.assert_close(shifted, module(x)[:, :, 13:17, 11:15], rtol=0, atol=2e-2)


# --- places ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measure():
    module = nn.Sequential(Squares(SIDE, SIDE, SIDE), Residuals(SIDE))
    return lambda images: {"residual": module(as_tensor(images))}


@pytest.fixture(scope="module")
def normals():
    return phantoms.load("train", n=60, size=SIDE, seed=SEED).images


@pytest.fixture(scope="module")
def fitted(normals, measure):
    return Places.of(measure(normals), folds_of(np.arange(len(normals)), SEED))


@pytest.mark.parametrize("at", [(6, 20), (14, 14), (22, 8)])
def test_a_bright_blob_raises_its_place_most(normals, measure, fitted, at):
    (found, _), blob = fitted, tuple(slice(k, k + 4) for k in at)
    marked = normals[:8].copy()
    marked[:, blob[0], blob[1]] = 255  # phantoms end near 200
    (least, before), (most, after) = found.made(measure(normals[:8])), found.made(measure(marked))
    about = np.zeros((SIDE, SIDE), bool)
    about[tuple(slice(k - 2, k + 6) for k in at)] = True  # blurs remove something of its neighbours, too
    for made in (after, after - before):
        assert about.ravel()[made.flatten(1).argmax(1).numpy()].all()
    assert torch.equal(most, after.amax((1, 2)).double())
    assert (most > least + 3).all()
    assert (most > found.judged.max()).all()


def test_normals_are_about_0_and_1_everywhere(fitted):
    own = fitted[1]
    assert float(own.mean()) == pytest.approx(0, abs=0.1)
    assert 0.6 < float(own.std()) < 1.4


def test_normals_are_judged_as_new_images_are_by_what_has_not_seen_them(normals, measure):
    """Fitted on some, others are as unusual as those themselves, in each of ten draws of few normals."""
    everything, shares = measure(phantoms.load("train", n=220, size=SIDE, seed=SEED + 1).images), []
    new = {"residual": everything["residual"][200:]}
    for start in range(0, 200, 20):
        maps = {"residual": everything["residual"][start : start + 20]}
        parts = folds_of(np.arange(20), SEED, 20)
        found, _ = Places.of(maps, folds_of(np.arange(20), SEED), parts)
        odd = found.made(new)[0]
        both = found.crossed, found.judged
        shares.append([float((odd[:, None] > own.quantile(0.8)).float().mean()) for own in both])
    before, now = np.mean(shares, 0)
    assert before > 0.35  # of a fifth: standards that have seen a normal make it look usual
    assert now < 0.25


def test_a_fold_is_judged_as_images_are_that_were_not_fitted_on(normals, measure):
    maps, folds = measure(normals), folds_of(np.arange(len(normals)), SEED)
    parts = folds_of(np.arange(len(normals)), SEED, 20)
    assert all(any(set(part) <= set(fold) for fold in folds) for part in parts)
    found, shown = Places.of(maps, folds, parts)
    for part, judge in zip(parts, found.judges, strict=True):
        oddest, places = judge({name: m[part] for name, m in maps.items()})
        torch.testing.assert_close(oddest, found.judged[part], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(places, shown[part], rtol=1e-4, atol=1e-3)


def test_scale_and_offset_of_a_channel_do_not_count(normals, measure):
    folds = folds_of(np.arange(len(normals)), SEED)
    first = measure(normals)["residual"]
    scaled = first * torch.linspace(0.5, 8, first.shape[1])[:, None, None] + 3
    made = [Places.of({"residual": maps}, folds)[1] for maps in (first, scaled)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=2e-2)


def test_places_of_two_sources_on_their_grids_add_up_and_are_restored(normals, measure):
    maps = measure(normals) | {"fine": maps_of(len(normals), 5, 16).float()}
    places = Places.of(maps, folds_of(np.arange(len(normals)), SEED))[0].made
    apart = {name: places.sources[name](m) for name, m in maps.items()}
    larger = nn.functional.interpolate(apart["fine"][:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
    want = places.standard(apart["residual"] + larger)
    torch.testing.assert_close(places(maps)[1], want, rtol=1e-4, atol=1e-4)
    restored = Places.restored(module_tensors(places, "of."), "of.")
    assert all(map(torch.equal, restored(maps), places(maps)))
    assert restored.sides == places.sides


def test_of_two_sums_the_more_unusual_counts_and_the_finer_is_shown(normals, measure):
    n, folds = len(normals), folds_of(np.arange(len(normals)), SEED)
    usual = measure(normals) | {"fine": maps_of(n, 5, 16).float()}
    maps = usual | {"overview": maps_of(n, 5, 8).float() * 3 + 1}
    found, shown = Places.of(maps, folds)
    places = found.made
    apart = {name: places.sources[name](m) for name, m in maps.items()}
    coarse = nn.functional.interpolate(apart["overview"][:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
    second = places.overview(apart["residual"] + coarse)
    its, map_alone = Places.of(usual, folds)
    alone = its.made
    oddest, made = places(maps)
    torch.testing.assert_close(made, alone(usual)[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shown, map_alone, rtol=1e-4, atol=1e-4)
    want = greatest(made).maximum(greatest(second))
    torch.testing.assert_close(oddest, want, rtol=1e-4, atol=1e-4)
    assert (found.judged >= its.judged - 1e-4).all()
    assert (found.crossed >= its.crossed - 1e-4).all()
    assert (found.crossed > its.crossed + 1e-3).any()
    restored = Places.restored(module_tensors(places, "of."), "of.")
    assert all(map(torch.equal, restored(maps), places(maps)))


def test_a_standard_is_moved_to_the_scale_of_other_values():
    values, others = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([10.0, 14.0, 18.0])
    moved = Standard(torch.full((1, 1), 2.0), torch.full((1, 1), 4.0)).moved(values, others)
    # 6 is 1, the median of the values, and becomes 14; distances from it grow fourfold
    found = moved(torch.tensor([[[2.0, 6.0, 10.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[10.0, 14.0, 18.0]]]), rtol=0, atol=0.02)
