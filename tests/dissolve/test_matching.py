"""Matched controls remove as much as what they are matched to, of the same images."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import smooth_images
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.detectors.base import Detector
from dia.detectors.dia import DIA, DIASettings
from dia.detectors.diaplus import DIAPlus, DIAPlusSettings
from dia.dissolve import Control, DissolverSettings, make_dissolver, matched, removed
from dia.dissolve.matching import _nearest
from dia.dissolve.settings import STRENGTHS

CONTINUOUS = {"gaussian": (0.3, 4.0), "noise": (0.5, 60.0), "shrink": (0.5, 400.0)}  # strengths


def control(kind, **more):
    return Control(DissolverSettings(**{"kind": kind} | more), device="cpu")


def test_what_is_removed_by_hand():
    # 180 100 / 140 60 shrunk by 50 is 135 105 / 135 105: 45, 5, 5 and 45 grey levels are gone
    x = np.array([[[[180], [100]], [[140], [60]]]], np.uint8)
    d = control("shrink", threshold=50.0)
    assert removed(d, x, 30) == pytest.approx(((45**2 + 5**2) / 2) ** 0.5, abs=1e-3)
    # of a second image, which is constant, nothing is: half of the squares
    both = np.concatenate([x, np.full_like(x, 9)])
    assert removed(d, both, (30, 60)) == pytest.approx(((45**2 + 5**2) / 4) ** 0.5, abs=1e-3)
    assert removed(control("identity"), x, 30) == pytest.approx(0, abs=1e-4)


def test_over_several_t_it_is_the_root_of_the_mean_of_squares(tiny_dissolver, make_images):
    x = make_images(5)
    each = [removed(tiny_dissolver, x, t) for t in (30, 200)]
    assert each[0] < each[1]
    assert removed(tiny_dissolver, x, (30, 200)) == pytest.approx(np.sqrt(np.mean(np.square(each))))


@given(
    st.sampled_from(sorted(CONTINUOUS)), st.sampled_from(sorted(CONTINUOUS)), st.floats(0, 1),
    st.integers(0, 50), st.sampled_from([1, 3]), st.sampled_from([16, 64]),
)  # fmt: skip
@hypothesis_settings(max_examples=20)
def test_continuous_strengths_remove_as_much_within_one_per_cent(kind, other, share, seed, channels, size):
    x = smooth_images(4, 20, 24, channels, seed=seed)
    low, high = CONTINUOUS[other]
    like = control(other, **{STRENGTHS[other]: low * (high / low) ** share, "size": size})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = matched(DissolverSettings(kind=kind, size=size), like, x, (30, 99))
    # the property is checked on what the result says, not on what it claims
    like_it = Control(found.settings, device="cpu")
    assert found.reached == pytest.approx(removed(like_it, x, (30, 99)))
    assert found.wanted == pytest.approx(removed(like, x, (30, 99)))
    if not said:
        assert found.reached == pytest.approx(found.wanted, rel=0.01)
    elif found.reached < found.wanted:  # not even the strongest is enough: flat images are
        strongest = replace(found.settings, **{STRENGTHS[kind]: {"gaussian": 24.0}.get(kind, 6120.0)})
        assert removed(Control(strongest, device="cpu"), x, (30, 99)) < found.wanted * 1.01
    else:  # or resizing alone removes more
        assert removed(control("identity", size=size), x, 30) > found.wanted * 0.99


@pytest.mark.parametrize("kind", ["median", "bottleneck"])
@pytest.mark.parametrize("sigma", [0.4, 1.8])
def test_whole_pixels_come_as_near_as_any_do(kind, sigma, make_images):
    x = make_images(3, 20, 24, seed=3)
    found = matched(DissolverSettings(kind=kind), control("gaussian", sigma=sigma), x, 30)
    sides = range(3, 20, 2) if kind == "median" else range(1, 24)
    every = {s: removed(control(kind, **{STRENGTHS[kind]: s}), x, 30) for s in sides}
    nearest = min(every, key=lambda s: abs(every[s] - found.wanted))
    assert getattr(found.settings, STRENGTHS[kind]) == nearest
    assert found.reached == pytest.approx(every[nearest])


def test_the_same_kind_finds_its_own_strength(make_images):
    x = make_images(6, 28)
    for kind, value in (
        ("gaussian", 1.1),
        ("noise", 9.0),
        ("shrink", 25.0),
        ("median", 5),
        ("bottleneck", 9),
    ):
        name = STRENGTHS[kind]
        found = matched(DissolverSettings(kind=kind), control(kind, **{name: value}), x, (30, 60))
        assert getattr(found.settings, name) == pytest.approx(value, rel=0.02), kind


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=40), st.floats(0.01, 300), st.booleans())
def test_bisection_ends_at_the_nearest_of_any_growing_amounts(steps, wanted, whole):
    amounts = np.cumsum([0, *steps])
    most = len(steps)

    def amount(v):
        assert 0 < v <= most
        assert not whole or v == int(v)
        return float(np.interp(v, np.arange(most + 1), amounts))

    v, reached = _nearest(amount, wanted, whole, most)
    assert reached == amount(v)
    if whole:
        assert abs(reached - wanted) == min(abs(a - wanted) for a in amounts[1:])
    else:
        assert abs(reached - min(wanted, amounts[-1])) <= 0.002 * wanted


def test_what_cannot_be_reached_is_said_and_returned(make_images):
    x = make_images(4)
    with pytest.warns(UserWarning, match=r"^gaussian removes [\d.]+ grey levels, not the 1\d\d to be"):
        found = matched(DissolverSettings(kind="gaussian"), control("noise", noise=1e5), x, 30)
    assert found.reached < 0.5 * found.wanted


def test_what_cannot_be_matched_is_refused(make_images):
    x, like = make_images(4), control("gaussian")
    with pytest.raises(
        DataError, match="kind identity has no strength to match; there are: gaussian, median"
    ):
        matched(DissolverSettings(kind="identity"), like, x, 30)
    with pytest.raises(DataError, match="at least one image"):
        matched(DissolverSettings(kind="shrink"), like, x[:0], 30)
    with pytest.raises(DataError, match="t must lie in 0–999"):
        matched(DissolverSettings(kind="shrink"), like, x, 1000)
    with pytest.raises(DataError, match=r"shrink has no strength yet; `matching\.matched` finds it"):
        make_dissolver(DissolverSettings(kind="shrink", matched=True), device="cpu")


# --- in the detectors -----------------------------------------------------------------------------------

TINY = AmplifySettings(size=16, width=4, steps=2, batch=4)
DDPM = DissolverSettings(size=16, widths=(8, 8), steps=3, batch=8)


@pytest.mark.parametrize("kind", ["shrink", "median"])
def test_dia_matches_its_control_to_the_diffusion_model_it_would_have(kind, make_images, tmp_path):
    x, ts = make_images(40, seed=2), (30, 300)
    diffusion = DIA(DIASettings(DDPM, TINY, ts=ts, samples=1), seed=1, device="cpu")
    diffusion.fit(x, workdir=tmp_path / "w")
    s = DIASettings(replace(DDPM, kind=kind, matched=True), TINY, ts=ts, samples=1)
    detector = DIA(s, seed=1, device="cpu").fit(x, workdir=tmp_path / "w")
    assert len(list((tmp_path / "w").glob("dissolver-*"))) == 1  # trained once
    assert detector.settings_hash() != diffusion.settings_hash()
    facts, own = detector.facts_["matched"], detector.dissolver_.settings
    assert (own.kind, own.matched) == (kind, False)
    assert facts[STRENGTHS[kind]] == getattr(own, STRENGTHS[kind])
    if kind in CONTINUOUS:
        assert facts["reached"] == pytest.approx(facts["wanted"], rel=0.01)
    loaded = Detector.load(detector.save(tmp_path / "m"), device="cpu")
    assert loaded.facts_["matched"] == facts
    assert loaded.dissolver_.sha256() == detector.dissolver_.sha256()
    assert np.array_equal(loaded.score(x), detector.score(x))
    again = DIA(s, seed=1, device="cpu").fit(x, workdir=tmp_path / "w")
    assert np.array_equal(again.score(x), detector.score(x))
    again.settings = diffusion.settings  # fitted anew, it has nothing of before
    assert "matched" not in again.fit(x, workdir=tmp_path / "w").facts_


def test_dia_plus_matches_where_it_dissolves(make_images, tmp_path):
    x = make_images(24)
    d = replace(DDPM, kind="shrink", matched=True)
    s = DIAPlusSettings(dissolver=d, ts=(400,), views=("shape", "gain"), size=32, map_size=32)
    detector = DIAPlus(s, seed=1, device="cpu").fit(x, workdir=tmp_path)
    alone = DIA(DIASettings(d, TINY, ts=(30,), samples=1), seed=1, device="cpu").fit(x, workdir=tmp_path)
    assert detector.facts_["matched"]["wanted"] > 1.5 * alone.facts_["matched"]["wanted"]
    assert np.isfinite(detector.score(x)).all()
