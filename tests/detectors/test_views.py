"""Views of whole images, by hand and by what must not change them; distances that leave out one's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from scipy import ndimage

from dia.detectors.nearest import Nearest, left_out
from dia.detectors.views import Cells, Change, Pooled, Untrained, evened, unit
from dia.features.backbone import Maps, load_backbone
from dia.features.untrained import Statistics, blurring, smoothed


def maps_of(part: torch.Tensor) -> Maps:
    return Maps(part, part, part, part.mean((2, 3)))


def tensor(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def squared(metric):
    """The matrix of squared distances in a metric, which has no sign nor order of axes."""
    return metric.astype(np.float64) @ metric.T.astype(np.float64)


CROSS = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])[:, None]  # (4, 1, 2)


# --- the metric ---------------------------------------------------------------------------------------------


def test_the_metric_by_hand():
    # covariance diag(2, 1/2) of mean 5/4, shrunk by 2/(2 + 4) to diag(7/4, 3/4)
    np.testing.assert_allclose(squared(evened(CROSS, 4)), np.diag([5 / 7, 5 / 3]), rtol=1e-5, atol=1e-6)
    little = np.diag([1.25 / 1.925, 1.25 / 0.575])  # shrunk by 1/10, as where normals are many
    for metric in (evened(np.tile(CROSS, (50, 1, 1)), 200), evened(CROSS, 200)):
        np.testing.assert_allclose(squared(metric), little, rtol=1e-5, atol=1e-6)
    pairs = CROSS.reshape(2, 2, 2)  # two cells of two images: four values, as above, but for the means
    np.testing.assert_allclose(
        squared(evened(pairs, 2)), squared(evened((pairs - pairs.mean(0)).reshape(4, 1, 2), 4)), rtol=1e-5
    )


@given(st.floats(1e-3, 1e3), st.floats(0, np.pi), st.integers(0, 99))
@run_settings(max_examples=30, deadline=None)
def test_the_metric_knows_no_unit_turns_with_the_cells_and_sees_no_place(scale, angle, seed):
    random = np.random.default_rng(seed)
    cells = random.normal(size=(20, 4, 3)) * [1, 3, 0.2]
    of = squared(evened(cells, 20))
    np.testing.assert_allclose(squared(evened(cells * scale, 20)), of, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        squared(evened(cells + random.normal(size=(4, 3)), 20)), of, rtol=1e-4, atol=1e-5
    )
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(squared(evened(cells @ turn, 20)), turn.T @ of @ turn, rtol=1e-4, atol=1e-5)


def test_a_round_cloud_is_only_turned():
    round_ = np.concatenate([np.eye(3), -np.eye(3)])[:, None] * 5
    np.testing.assert_allclose(squared(evened(round_, 6)), np.eye(3), atol=1e-6)


def test_cells_that_are_all_alike_or_in_one_direction_give_a_finite_metric():
    flat = np.ones((6, 4, 3))
    of = squared(evened(flat, 6))
    assert np.isfinite(of).all()
    np.testing.assert_allclose(of, of[0, 0] * np.eye(3), atol=1e-6)
    line = np.random.default_rng(0).normal(size=(50, 4, 1)) * [1.0, 0, 0]
    of = squared(evened(line, 50))
    assert np.isfinite(of).all()
    assert of[1, 1] > of[0, 0]  # what never varied counts most


# --- cells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("side", [7, 8])
def test_cells_of_a_constant_map_are_its_direction(grid, side):
    value = torch.tensor([3.0, 0, 4])
    constant = maps_of(value[None, :, None, None].expand(2, 3, side, side))
    cells = Cells("middle", grid, constant.middle)
    vectors = cells(torch.zeros(2, 1, 9, 9), constant)
    assert vectors.shape == (2, 3 * grid**2)
    torch.testing.assert_close(vectors * grid, torch.tensor([0.6, 0, 0.8]).repeat(2, grid**2))
    # as usual as can be in each channel: nothing is left of which there is a direction
    usual = Cells("middle", grid, constant.middle, (value, torch.ones(3)))
    assert float(usual(torch.zeros(2, 1, 9, 9), constant).abs().max()) == 0


@pytest.mark.parametrize("side", [7, 8])
def test_cells_are_means_of_their_part_of_the_map_and_have_norm_1(side):
    x, mean, std = tensor(4, 5, side, side), tensor(5, seed=1), tensor(5, seed=2) + 0.5
    plain = Cells("coarse", 2, x).raw(x, maps_of(x))
    torch.testing.assert_close(plain, unit(F.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)))
    torch.testing.assert_close(plain.norm(dim=2), torch.ones(4, 4))
    scaled = Cells("coarse", 2, x, (mean, std)).raw(x, maps_of(x))
    by_hand = (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - mean[:, None, None]) / std[:, None, None]
    want = unit(F.adaptive_avg_pool2d(by_hand, 2).flatten(2).transpose(1, 2))
    torch.testing.assert_close(scaled, want, rtol=1e-4, atol=1e-5)


def test_an_evened_view_measures_distances_in_its_metric():
    x = tensor(30, 5, 6, 6)
    view = Cells("middle", 2, x, even=True)
    raw = view.raw(x, maps_of(x))
    torch.testing.assert_close(view.finish(raw), raw.flatten(1) / 2)  # not settled yet
    view.settle(raw.numpy(), len(raw))
    made = view(torch.zeros(30, 1, 9, 9), maps_of(x))
    away = (raw[0] - raw[1]).double().numpy()
    want = np.einsum("pi,ij,pj->", away, squared(evened(raw.numpy(), 30)), away) / 4
    assert float(((made[0] - made[1]) ** 2).sum()) == pytest.approx(want, rel=1e-4)


def test_the_edges_of_a_smoothed_map_are_means_of_fewer():
    corner = smoothed(torch.tensor([[1.0, 2, 9], [3, 6, 9], [9, 9, 9]])[None, None])[0, 0]
    assert float(corner[0, 0]) == 3  # (1 + 2 + 3 + 6) / 4
    assert float(corner[1, 1]) == pytest.approx(57 / 9)


def test_the_pooled_view_sees_directions_alone():
    x = tensor(3, 5, 2, 2)
    torch.testing.assert_close(Pooled()(x, maps_of(x)), Pooled()(x, maps_of(x * 7)))
    assert float(unit(torch.zeros(1, 4)).abs().max()) == 0


def test_statistics_are_standardised_by_the_normals():
    x = (tensor(9, 1, 12, 12) * 255).round()
    x[:, :, 0, 0] = 0  # the least value never varies
    view = Untrained(Statistics(12, 12), 12)
    raw = view.raw(x, maps_of(x))
    raw[:, 3] = 0.5  # nor does this one
    view.settle(raw.numpy(), len(raw))
    made = view.finish(raw)
    np.testing.assert_allclose(made.mean(0), np.zeros(12), atol=1e-9)
    std = made.std(0, correction=0)
    np.testing.assert_allclose(std, np.where(np.arange(12) == 3, 0, 1), atol=1e-9)


# --- change -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def change():
    backbone = load_backbone("lite0", "none")
    fine = backbone.fine(tensor(8, 1, 64, 64, seed=5))
    return Change(backbone, fine.mean((0, 2, 3)), fine.std((0, 2, 3)))


def test_the_change_is_least_for_the_unchanged_image_and_grows_with_noise(change):
    x = torch.from_numpy(ndimage.gaussian_filter(tensor(5, 1, 64, 64).numpy(), (0, 0, 2, 2)))
    fine, noise = change.backbone.fine(x), tensor(5, 1, 64, 64, seed=1) - 0.5
    by_noise = torch.stack([change(fine, x + amount * noise) for amount in (0, 0.02, 0.1, 0.5)])
    assert by_noise.dtype == torch.float64
    assert (by_noise.diff(dim=0) > 0).all()
    assert by_noise[0] == pytest.approx(np.log(1e-6), abs=1)  # nothing but rounding
    assert (by_noise <= np.log(2 + 1e-6)).all()


def test_the_change_of_each_image_is_its_own(change):
    x, changed = tensor(6, 1, 64, 64), tensor(6, 1, 64, 64, seed=1)
    fine = change.backbone.fine(x)
    alone = torch.cat([change(fine[i : i + 1], changed[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(change(fine, changed), alone, rtol=0, atol=1e-4)


def test_what_blurs_is_scipys_and_scales_with_the_side():
    x = tensor(2, 1, 32, 32)
    want = ndimage.gaussian_filter(x.numpy(), (0, 0, 4, 4), mode="reflect")
    np.testing.assert_allclose(blurring(32, 4)(x), want, atol=1e-5)
    torch.testing.assert_close(
        blurring(32, 7)(torch.full((1, 3, 32, 32), 0.7)), torch.full((1, 3, 32, 32), 0.7)
    )


# --- neighbours ---------------------------------------------------------------------------------------------


def by_force(bank, owner, k):
    bank = bank.float().double().numpy()
    k = min(k, len(bank) - np.unique(owner, return_counts=True)[1].max())
    found = []
    for x, own in zip(bank, owner, strict=True):
        found.append(np.sort(np.linalg.norm(bank[owner != own] - x, axis=1))[:k].mean())
    return np.array(found)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 50), st.integers(0, 99))
@run_settings(max_examples=50, deadline=None)
def test_each_is_measured_by_those_of_others(n, per, k, seed):
    random = np.random.default_rng(seed)
    bank = torch.from_numpy(random.normal(size=(n, 3)))
    owner = random.integers(0, max(n // per, 1), n)
    owner[0] = n  # two owners at least
    want, rows = by_force(bank, owner, k), random.permutation(n)[: n // 2 + 1]
    np.testing.assert_allclose(left_out(bank, owner, k), want, rtol=1e-9)
    np.testing.assert_allclose(left_out(bank, owner, k, rows), want[rows], rtol=1e-9)


def test_many_are_measured_in_parts():
    random = np.random.default_rng(0)
    bank, owner = torch.from_numpy(random.normal(size=(1300, 2))), random.integers(0, 300, 1300)
    np.testing.assert_allclose(left_out(bank, owner, 3), by_force(bank, owner, 3), rtol=1e-9)


def test_copies_of_one_owner_do_not_meet_and_those_of_two_are_at_0():
    bank = torch.tensor([[0.0, 0], [0, 0], [3, 4], [1e4, 1], [1e4, 1]])
    np.testing.assert_array_equal(left_out(bank, np.array([0, 0, 1, 2, 3])), [5, 5, 5, 0, 0])


def test_a_normal_is_measured_like_an_image_by_a_bank_without_it():
    bank = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    for k in (1, 3):
        own = left_out(torch.from_numpy(bank), np.arange(12), k)
        for i in range(12):
            others = Nearest(np.delete(bank, i, 0), k)
            assert float(others(torch.from_numpy(bank[i : i + 1]))) == pytest.approx(own[i], rel=1e-9)
