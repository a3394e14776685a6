"""Stand-ins for the diffusion model, against scipy and the formula, and in its place everywhere."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft, ndimage

from dia.amplify.contrast import AmplifySettings, ContrastiveTraining
from dia.core.errors import DataError
from dia.core.training import seed_step
from dia.detectors.base import Detector
from dia.detectors.dia import CSI, DIA, CSISettings, DIASettings
from dia.dissolve import Control, Dissolver, DissolverSettings, load_dissolver, make_dissolver
from dia.dissolve.bank import DissolvedBank, LiveDissolving
from dia.dissolve.controls import dct_matrix, gaussian_width
from dia.dissolve.schedule import cosine_alphas_cumprod

KINDS = ("gaussian", "median", "noise", "shrink", "bottleneck", "identity")


def control(kind, **more):
    return Control(DissolverSettings(**{"size": 64, "kind": kind} | more), device="cpu")


def test_the_gaussian_is_scipys_within_its_window(make_images):
    x = make_images(3, 20, 24, 3)
    sigma = gaussian_width(7)
    assert sigma == pytest.approx(1.4)
    expected = ndimage.gaussian_filter(
        x.astype(float), (0, sigma, sigma, 0), mode="mirror", radius=(0, 3, 3, 0)
    )
    assert np.abs(control("gaussian").dissolve(x, 50) - expected).max() <= 0.51


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.5])
def test_a_gaussian_of_any_width_is_scipys(make_images, sigma):
    x = make_images(2, 28, 24, 1)
    reach = int(np.ceil(4 * sigma))
    expected = ndimage.gaussian_filter(
        x.astype(float), (0, sigma, sigma, 0), mode="mirror", radius=(0, reach, reach, 0)
    )
    assert np.abs(control("gaussian", sigma=sigma).dissolve(x, 50, rounded=False) - expected).max() < 0.01


@pytest.mark.parametrize("kernel", [3, 7])
def test_the_median_is_scipys(make_images, kernel):
    x = make_images(2, 17, 20, 1)
    x[0, 8, 9] = 255  # a speck, which a median removes
    expected = ndimage.median_filter(x, (1, kernel, kernel, 1), mode="mirror")
    assert np.array_equal(control("median", kernel=kernel).dissolve(x, 50), expected)


@pytest.mark.parametrize("t", [30, 100, 200])
def test_noise_has_the_strength_of_the_formula(t):
    a = float(cosine_alphas_cumprod()[t])
    x = torch.zeros(8, 1, 48, 48)
    y = control("noise")(x, t)
    assert float(y.std()) == pytest.approx((1 / a - 1) ** 0.5, rel=0.03)
    assert float(y.mean()) == pytest.approx(0, abs=0.01)
    per_image = control("noise")(torch.rand(4, 1, 16, 16), torch.tensor([10, 30, 100, 300]))
    assert per_image.shape == (4, 1, 16, 16)


def test_noise_is_each_images_own_and_always_the_same(make_images):
    x = make_images(5)
    d = control("noise")
    whole = d.dissolve(x, 100)
    assert np.array_equal(d.dissolve(x, 100), whole)
    assert np.array_equal(d.dissolve(x[::-1], 100)[::-1], whole)
    assert np.array_equal(d.dissolve(x, 100, batch=2), whole)
    added = whole.astype(int) - x
    inside = (whole > 0) & (whole < 255)
    both = inside[0] & inside[1]
    assert abs(np.corrcoef(added[0][both], added[1][both])[0, 1]) < 0.25  # no pattern to learn by heart
    assert not np.array_equal(d.dissolve(x, 99), whole)


@pytest.mark.parametrize("t", [1, 60, 900])
def test_noise_of_a_strength_has_it_at_every_t(t):
    x = torch.linspace(-0.3, 0.3, 8)[:, None, None, None].expand(
        8, 1, 48, 48
    )  # equal images have equal noise
    y = control("noise", noise=12.75)(x, t) - x
    assert float(y.std()) == pytest.approx(0.1, rel=0.03)  # of 18,432 draws: six standard errors
    assert float(y.mean()) == pytest.approx(0, abs=0.01)


# --- shrinking the cosine transform ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 28, 64])
def test_the_cosine_matrix_is_orthonormal_and_scipys(n):
    d = dct_matrix(n)
    torch.testing.assert_close(d @ d.T, torch.eye(n, dtype=torch.float64))
    x = np.random.default_rng(n).normal(size=(n, 3))
    np.testing.assert_allclose(d.numpy() @ x, fft.dct(x, axis=0, norm="ortho"), atol=1e-12)


def test_shrinking_two_by_two_by_hand():
    # 180 100   the mean, 120, stays; columns differ by 2·40, rows by 2·20, and the diagonals by nothing:
    # 140  60   coefficients 240, 80, 40, 0 of the matrices ½·[[1, 1], [1, 1]], ½·[[1, −1], [1, −1]], …
    x = np.array([[[[180], [100]], [[140], [60]]]], np.uint8)
    y = control("shrink", threshold=50).dissolve(x, 30, rounded=False)[0, ..., 0]
    # 80 → 30 and 40 → 0: 120 ± 15
    np.testing.assert_allclose(y, [[135, 105], [135, 105]], atol=1e-3)
    np.testing.assert_allclose(
        control("shrink", threshold=30).dissolve(x, 30, rounded=False)[0, ..., 0],
        [[120 + 25 + 5, 120 - 25 + 5], [120 + 25 - 5, 120 - 25 - 5]], atol=1e-3,
    )  # fmt: skip


@given(st.integers(0, 6), st.integers(0, 8), st.floats(-1.2, 1.2), st.floats(0, 150))
def test_one_coefficient_shrinks_by_exactly_the_threshold(row, column, size, threshold):
    c = np.zeros((7, 9))
    c[0, 0], c[row, column] = 1.0, size if (row, column) != (0, 0) else 1.0
    x = torch.from_numpy(fft.idctn(c, norm="ortho"))[None, None].float()  # within [−1, 1]
    y = fft.dctn(control("shrink", threshold=threshold)(x, 30)[0, 0].double().numpy(), norm="ortho")
    expected = c.copy()
    if (row, column) != (0, 0):
        expected[row, column] = np.sign(size) * max(abs(size) - threshold / 127.5, 0)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("grey", [0, 1, 93, 255])
def test_shrinking_and_the_bottleneck_leave_constant_images(grey):
    x = np.full((2, 20, 13, 3), grey, np.uint8)
    for d in (control("shrink", threshold=1e6), control("bottleneck", bottleneck=5)):
        assert np.array_equal(d.dissolve(x, 30), x)


def test_endless_shrinking_leaves_the_mean_of_each_channel(make_images):
    x = make_images(3, 20, 24, 3)
    y = control("shrink", threshold=1e5).dissolve(x, 30, rounded=False)
    np.testing.assert_allclose(y, np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape), atol=0.01)
    assert np.array_equal(control("shrink", threshold=0).dissolve(x, 30), x)


# --- the bottleneck -------------------------------------------------------------------------------------


def test_a_checkerboard_does_not_pass_the_bottleneck():
    x = (np.indices((16, 16)).sum(0) % 2 * 200 + 20).astype(np.uint8)[None, ..., None]
    y = control("bottleneck", bottleneck=8).dissolve(x, 30, rounded=False)[0, ..., 0]
    # halved by weights 1, 3, 3, 1, whose signs cancel; by 3, 3, 1 at a border: 1/7 is left, 1/49 in a corner
    np.testing.assert_allclose(y[3:-3], 120, atol=1e-3)
    np.testing.assert_allclose(np.abs(y[[0, 0, -1, -1], [0, -1, 0, -1]] - 120), 100 / 49, atol=1e-3)
    one = control("bottleneck", bottleneck=1).dissolve(x, 30)
    assert np.array_equal(one, np.full_like(x, 120))


@pytest.mark.parametrize("side", [28, 32, 500])
def test_a_bottleneck_no_smaller_than_the_image_is_none(make_images, side):
    x = make_images(3, 20, 28, 3)
    assert np.array_equal(control("bottleneck", bottleneck=side).dissolve(x, 50), x)


def test_the_bottleneck_is_what_a_smaller_working_size_does(make_images):
    x = make_images(3, 40, 28, 3)
    expected = control("identity", size=16).dissolve(x, 50)
    assert np.array_equal(control("bottleneck", bottleneck=16).dissolve(x, 50), expected)
    assert np.array_equal(control("bottleneck", bottleneck=32, size=16).dissolve(x, 50), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_dissolved_alike_in_any_batch(kind, make_images):
    x = make_images(5, 20, 28, 3)
    d = control(kind, bottleneck=9)
    whole = d.dissolve(x, 60, rounded=False)
    assert np.array_equal(d.dissolve(x, 60, rounded=False), whole)
    np.testing.assert_allclose(d.dissolve(x[::-1].copy(), 60, batch=2, rounded=False)[::-1], whole, atol=1e-3)


def test_identity_changes_nothing_but_what_resizing_does(make_images):
    x = make_images(3, 40, 28, 3)
    assert np.array_equal(control("identity").dissolve(x, 50), x)
    small = control("identity", size=16).dissolve(x, 50)
    assert 0 < np.abs(small.astype(int) - x).mean() < 30


@given(
    st.sampled_from(KINDS),
    st.sampled_from([32, 64, 128]),
    st.integers(28, 224),
    st.integers(28, 224),
    st.sampled_from([1, 3]),
)
def test_any_shape_at_any_working_size(kind, size, h, w, c):
    x = np.random.default_rng(h).integers(0, 256, (1, h, w, c), np.uint8)
    y = control(kind, size=size).dissolve(x, (30, 60))
    assert y.shape == (2, 1, h, w, c)
    assert y.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_dissolves_alike(kind, make_images, tmp_path):
    x, d = make_images(3), control(kind, kernel=5)
    d.save(tmp_path / "d")
    again = load_dissolver(tmp_path / "d", device="cpu")
    assert again.settings == d.settings
    assert again.sha256() == d.sha256()
    assert np.array_equal(again.dissolve(x, 60), d.dissolve(x, 60))


def test_hashes_tell_kinds_windows_and_sizes_apart():
    made = [control(k).sha256() for k in KINDS]
    made += [control("gaussian", kernel=5).sha256(), control("gaussian", size=32).sha256()]
    made += [control("gaussian", sigma=7.0).sha256(), control("noise", noise=7.0).sha256()]
    made += [control("shrink", threshold=7.0).sha256(), control("bottleneck", bottleneck=7).sha256()]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("kind", ["gaussian", "median", "noise", "identity"])
def test_hashes_are_those_of_before_there_were_strengths(kind):
    before = hashlib.sha256(f"{kind} 7 64".encode()).hexdigest()
    assert control(kind).sha256() == before
    # what another kind uses changes nothing
    other = {"threshold": 3.0, "bottleneck": 9} | ({} if kind == "noise" else {"noise": 3.0})
    assert control(kind, **other).sha256() == before


def test_make_dissolver_follows_the_kind():
    assert isinstance(make_dissolver(DissolverSettings(), device="cpu"), Dissolver)
    assert isinstance(make_dissolver(DissolverSettings(kind="noise"), device="cpu"), Control)
    with pytest.raises(DataError, match="`make_dissolver` makes one of kind median"):
        Dissolver(DissolverSettings(kind="median"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bank_holds_what_live_dissolving_makes(kind, make_images, tmp_path):
    x, d, ts = make_images(6), control(kind), (30, 60, 99)
    bank = DissolvedBank.build(x, d, ts, tmp_path / "bank.npy")
    index, flip, level = np.array([4, 1, 1, 5]), np.array([True, False, True, False]), np.array([0, 2, 1, 1])
    live = LiveDissolving(x, d, ts).take(index, flip, level)
    assert np.abs(bank.take(index, flip, level).astype(int) - live).max() <= 1


TINY = AmplifySettings(size=16, width=4, steps=3, batch=8)


@pytest.mark.parametrize("kind", KINDS)
def test_dia_fits_saves_and_scores_with_each(kind, make_images, tmp_path):
    s = DIASettings(DissolverSettings(kind=kind, size=16), TINY, ts=(30, 99), samples=2)
    x = make_images(24)
    detector = DIA(s, seed=1, device="cpu").fit(x)
    loaded = Detector.load(detector.save(tmp_path / "m"), device="cpu")
    assert np.array_equal(loaded.score(x), detector.score(x))
    assert np.array_equal(loaded.dissolver_.dissolve(x, 50), detector.dissolver_.dissolve(x, 50))
    live = DIA(replace(s, live=True), seed=1, device="cpu").fit(x)
    assert np.isfinite(live.score(x)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_the_same_rows_live_and_from_the_bank(kind, make_images, tmp_path):
    # of the rows, not of what training makes of them: a grey value carries far in three steps
    x, d, ts = make_images(6), control(kind), (30, 60, 99)
    rows = []
    for copies in (DissolvedBank.build(x, d, ts, tmp_path / "bank.npy"), LiveDissolving(x, d, ts)):
        seed_step(1, 0)
        rows.append(ContrastiveTraining(x, copies, TINY, 1).views(np.array([4, 1, 5])))
    torch.testing.assert_close(*rows, rtol=0, atol=1.01 / 255)


def test_without_dissolver_dia_is_csi(make_images, tmp_path):
    x = make_images(24)
    dia = DIA(DIASettings(DissolverSettings(kind="none"), TINY, samples=2), seed=3, device="cpu").fit(x)
    csi = CSI(CSISettings(TINY, samples=2), seed=3, device="cpu").fit(x)
    assert np.array_equal(dia.score(x), csi.score(x))
    loaded = Detector.load(dia.save(tmp_path / "m"), device="cpu")
    assert not (tmp_path / "m" / "dissolver").exists()
    assert np.array_equal(loaded.score(x), dia.score(x))
