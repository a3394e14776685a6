"""Stand-ins for the diffusion model, against scipy and the formula, and in its place everywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from dia.amplify.learning import AmplifySettings
from dia.data.imageset import DataError
from dia.detectors.base import Detector
from dia.detectors.csi import CSI, CSISettings
from dia.detectors.dia import DIA, DIASettings
from dia.dissolve import Dissolver, DissolverSettings, StandIn, load_dissolver, make_dissolver
from dia.dissolve.bank import DissolvedBank, LiveDissolving
from dia.dissolve.schedule import cosine_alphas_cumprod
from dia.dissolve.stand_ins import gaussian_width

KINDS = ("gaussian", "median", "noise", "identity")


def stand_in(kind, **more):
    return StandIn(DissolverSettings(**{"size": 64, "kind": kind} | more), device="cpu")


def test_the_gaussian_is_scipys_within_its_window(make_images):
    x = make_images(3, 20, 24, 3)
    sigma = gaussian_width(7)
    assert sigma == pytest.approx(1.4)
    expected = ndimage.gaussian_filter(
        x.astype(float), (0, sigma, sigma, 0), mode="mirror", radius=(0, 3, 3, 0)
    )
    assert np.abs(stand_in("gaussian").dissolve(x, 50) - expected).max() <= 0.51


@pytest.mark.parametrize("kernel", [3, 7])
def test_the_median_is_scipys(make_images, kernel):
    x = make_images(2, 17, 20, 1)
    x[0, 8, 9] = 255  # a speck, which a median removes
    expected = ndimage.median_filter(x, (1, kernel, kernel, 1), mode="mirror")
    assert np.array_equal(stand_in("median", kernel=kernel).dissolve(x, 50), expected)


@pytest.mark.parametrize("t", [30, 100, 200])
def test_noise_has_the_strength_of_the_formula(t):
    a = float(cosine_alphas_cumprod()[t])
    x = torch.zeros(8, 1, 48, 48)
    y = stand_in("noise")(x, t)
    assert float(y.std()) == pytest.approx((1 / a - 1) ** 0.5, rel=0.03)
    assert float(y.mean()) == pytest.approx(0, abs=0.01)
    per_image = stand_in("noise")(torch.rand(4, 1, 16, 16), torch.tensor([10, 30, 100, 300]))
    assert per_image.shape == (4, 1, 16, 16)


def test_noise_is_each_images_own_and_always_the_same(make_images):
    x = make_images(5)
    d = stand_in("noise")
    whole = d.dissolve(x, 100)
    assert np.array_equal(d.dissolve(x, 100), whole)
    assert np.array_equal(d.dissolve(x[::-1], 100)[::-1], whole)
    assert np.array_equal(d.dissolve(x, 100, batch=2), whole)
    added = whole.astype(int) - x
    inside = (whole > 0) & (whole < 255)
    both = inside[0] & inside[1]
    assert abs(np.corrcoef(added[0][both], added[1][both])[0, 1]) < 0.25  # no pattern to learn by heart
    assert not np.array_equal(d.dissolve(x, 99), whole)


def test_identity_changes_nothing_but_what_resizing_does(make_images):
    x = make_images(3, 40, 28, 3)
    assert np.array_equal(stand_in("identity").dissolve(x, 50), x)
    small = stand_in("identity", size=16).dissolve(x, 50)
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
    y = stand_in(kind, size=size).dissolve(x, (30, 60))
    assert y.shape == (2, 1, h, w, c)
    assert y.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_dissolves_alike(kind, make_images, tmp_path):
    x, d = make_images(3), stand_in(kind, kernel=5)
    d.save(tmp_path / "d")
    again = load_dissolver(tmp_path / "d", device="cpu")
    assert again.settings == d.settings
    assert again.sha256() == d.sha256()
    assert np.array_equal(again.dissolve(x, 60), d.dissolve(x, 60))


def test_hashes_tell_kinds_windows_and_sizes_apart():
    made = [stand_in(k).sha256() for k in KINDS]
    made += [stand_in("gaussian", kernel=5).sha256(), stand_in("gaussian", size=32).sha256()]
    assert len(set(made)) == len(made)


def test_make_dissolver_follows_the_kind():
    assert isinstance(make_dissolver(DissolverSettings(), device="cpu"), Dissolver)
    assert isinstance(make_dissolver(DissolverSettings(kind="noise"), device="cpu"), StandIn)
    with pytest.raises(DataError, match="`make_dissolver` makes one of kind median"):
        Dissolver(DissolverSettings(kind="median"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bank_holds_what_live_dissolving_makes(kind, make_images, tmp_path):
    x, d, ts = make_images(6), stand_in(kind), (30, 60, 99)
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
    np.testing.assert_allclose(live.score(x), detector.score(x), rtol=1e-2, atol=1e-2)


def test_without_dissolver_dia_is_csi(make_images, tmp_path):
    x = make_images(24)
    dia = DIA(DIASettings(DissolverSettings(kind="none"), TINY, samples=2), seed=3, device="cpu").fit(x)
    csi = CSI(CSISettings(TINY, samples=2), seed=3, device="cpu").fit(x)
    assert np.array_equal(dia.score(x), csi.score(x))
    loaded = Detector.load(dia.save(tmp_path / "m"), device="cpu")
    assert not (tmp_path / "m" / "dissolver").exists()
    assert np.array_equal(loaded.score(x), dia.score(x))
