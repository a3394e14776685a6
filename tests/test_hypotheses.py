"""The registered experiments: their arithmetic, their verdicts, and that they read development data alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import hypotheses
import hypotheses_page as pages
import hypotheses_training as training
from hypotheses_experiments import EXPERIMENTS, VAL_SETS, Experiment, quick_nearest, standard_log
from hypotheses_parts import Development, amplify, blur, distances, matched_blurs, strength

from dia.data import catalog
from dia.dissolve.bank import DissolvedBank
from dia.evaluate import protocol
from dia.evaluate.ledger import Ledger

# --- arithmetic ---------------------------------------------------------------------------------------------


def test_a_matched_blur_takes_as_much_as_what_it_is_matched_to():
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), np.uint8)
    removals = [blur(images, 1.3), images * np.float32(0.7), blur(images, 0.5)]
    sigmas = matched_blurs(images, removals)
    assert sigmas[0] == pytest.approx(1.3, rel=1e-3)
    assert sigmas[2] == pytest.approx(0.5, rel=1e-3)
    for sigma, removed in zip(sigmas, removals, strict=True):
        if sigma < 13.9:  # not the widest there is
            assert strength(images, blur(images, sigma)) == pytest.approx(strength(images, removed), rel=1e-3)
    assert matched_blurs(images, [images - np.float32(500)]) == [pytest.approx(14, rel=1e-3)]


def test_a_difference_and_its_error_by_hand():
    labels = np.array([0, 0, 1, 1])
    a, b = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0, 1.0, 3.0])
    # a: all four pairs right; b: three of four. The anomalous fare (1, 1), (.5, 1), normals (1, 1), (1, .5)
    mean, error = hypotheses.difference(labels, a, b)
    assert mean == pytest.approx(0.25)
    assert error == pytest.approx((0.125 / 2 + 0.125 / 2) ** 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_difference_is_that_of_the_aurocs_and_turns_with_its_sides(seed):
    draw = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, draw.integers(0, 2, 20)]
    a, b = draw.integers(0, 6, (2, 24)).astype(float)  # with ties
    mean, error = hypotheses.difference(labels, a, b)
    assert mean == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b))
    assert hypotheses.difference(labels, b, a) == pytest.approx((-mean, error))
    assert hypotheses.difference(labels, np.exp(a), b) == pytest.approx((mean, error))
    assert hypotheses.difference(labels, a, a) == (0, 0)


def test_the_nearest_patch_by_products_is_the_nearest():
    x, bank = np.random.default_rng(1).standard_normal((2, 50, 7)).astype(np.float32)
    brute = np.linalg.norm(x[:, None] - bank, axis=-1).min(1)
    assert quick_nearest(x, bank) == pytest.approx(brute, abs=1e-4)


def test_distances_do_not_mix_shifts():
    fitted, judged = np.random.default_rng(2).standard_normal((2, 2, 40, 5)).astype(np.float32)
    for how in ("mahalanobis", "neighbour"):
        both = distances(fitted, judged, how)
        assert both[1] == pytest.approx(distances(fitted[1:], judged[1:], how)[0])
    assert distances(fitted, fitted, "neighbour") == pytest.approx(0)


def test_log_distances_are_standardised_by_held_out_normals():
    z = standard_log(np.exp([1.0, 3.0]), np.exp([2.0, 5.0]))  # mean 2, std 1
    assert z == pytest.approx([0, 3], abs=1e-6)


# --- pretexts -----------------------------------------------------------------------------------------------


def test_levels_are_the_classes_of_their_views():
    images = np.full((8, 16, 16, 1), 200, np.uint8)
    array = np.stack([np.full((2, 8, 16, 16, 1), 10 * (i + 1), np.uint8) for i in range(3)])
    bank = DissolvedBank(array, (10, 20, 30), np.arange(8))
    torch.manual_seed(0)
    s = amplify()
    x, level = training.level_rows(images, bank, s)(np.arange(8).repeat(8), lambda x: x)
    grey = np.array([200, 10, 20, 30])[level.numpy()]
    assert len(x) == 3 * 4 * 64
    assert set(level.tolist()) == {0, 1, 2, 3}
    assert (x.amax((1, 2, 3)) * 255).numpy() == pytest.approx(grey)
    assert torch.equal(x.amax((1, 2, 3)), x.amin((1, 2, 3)))


def test_a_lesion_of_every_kind_changes_its_image_alone_and_stays_in_range():
    torch.manual_seed(0)
    x, other = torch.rand(2, 60, 1, 32, 32)
    kind = torch.arange(60) % len(training.LESIONS)
    y = training.with_lesions(x, other, kind)
    assert y.min() >= 0
    assert y.max() <= 1
    changed = (y - x).abs().amax((1, 2, 3))
    assert changed[kind == 0].max() == 0
    for k in range(1, len(training.LESIONS)):
        assert (changed[kind == k] > 0.01).float().mean() > 0.7  # a faint one may lie in nothing
    share = ((y - x).abs() > 1e-6).float().mean((1, 2, 3))[kind > 0]
    assert share.max() < 0.75  # local
    assert torch.equal(training.with_lesions(x, other, torch.zeros(60, dtype=torch.int64)), x)


def test_training_is_the_seed_s_alone():
    s = amplify()
    s = type(s)(**{**vars(s), "steps": 2, "batch": 4, "width": 8, "precision": "32"})
    images = np.random.default_rng(3).integers(0, 256, (20, 16, 16, 1), np.uint8)
    rows = training.lesion_rows(images, s)
    made = []
    for seed in (0, 0, 1):
        torch.rand(3)  # what was drawn before does not matter
        encoder, _ = training.trained_to_tell(20, (16, 16, 1), len(training.LESIONS), rows, s, seed)
        made.append(next(encoder.parameters()).detach().clone())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert training.rate(0, s) == pytest.approx(0.1)
    assert training.rate(1, s) == pytest.approx(1)
    assert training.rate(2, s) == pytest.approx(0)


# --- verdicts -----------------------------------------------------------------------------------------------


def registered(**changes) -> Experiment:
    """One of two variants, b against a."""
    given_ = {
        "name": "e",
        "hypothesis": "h.",
        "kills": "k",
        "claim": (("b", "a"),),
        "run": None,
        "seeds": (0, 1),
    }
    return Experiment(**given_ | changes)


def line(dataset: str, seed: int, mean: float, error: float = 0.001, by: str = "val", **changes) -> dict:
    """A line of variant b."""
    return {
        "experiment": "e", "revision": 1, "variant": "b", "dataset": dataset, "by": by, "seed": seed,
        "auroc": 0.5 + mean, "against": {"a": [mean, error]}, "said": {}, "seconds": 1.0,
        "protocol": "explore", "data_sha256": "0",
    } | changes  # fmt: skip


def lines(*means: float, **changes) -> list[dict]:
    """Of both sets with two seeds each."""
    units = [(name, seed) for name in VAL_SETS for seed in (0, 1)]
    return [line(*unit, mean, **changes) for unit, mean in zip(units, means, strict=True)]


def test_a_mean_and_its_error_by_hand():
    p = pages.paired(lines(0.1, 0.3, 0.0, 0.0, error=0.03), "b", "a")
    assert p.mean == pytest.approx(0.1)
    first = (0.03**2 + 0.02 / 2) ** 0.5  # the images, and seeds .1 and .3
    assert p.by_set[VAL_SETS[0]] == pytest.approx((0.2, first))
    assert p.error == pytest.approx((first**2 + 0.03**2) ** 0.5 / 2)


@pytest.mark.parametrize(
    ("means", "error", "expected"),
    [
        ((0.03, 0.03, 0.03, 0.03), 0.001, "survived"),
        ((0.03, 0.03, 0.03, 0.03), 0.05, "undecided"),  # the interval reaches 0
        ((0.02, 0.02, 0.02, 0.02), 0.001, "killed"),  # not above .02
        ((-0.1, -0.1, -0.1, -0.1), 0.2, "killed"),
        ((0.3, 0.3, -0.27, -0.27), 0.001, "killed"),  # sets count alike
    ],
)
def test_a_verdict_follows_from_the_lines(means, error, expected):
    assert pages.verdict(registered(), lines(*means, error=error)) == expected


def test_what_is_missing_or_of_lesions_or_of_another_revision_decides_nothing():
    e, all_ = registered(), lines(0.03, 0.03, 0.03, 0.03)
    assert pages.verdict(e, all_[:-1]) == "undecided"
    assert pages.verdict(e, []) == "undecided"
    assert pages.verdict(e, lines(0.03, 0.03, 0.03, 0.03, by="lesions")) == "undecided"
    assert pages.verdict(e, all_ + lines(-1, -1, -1, -1, revision=2)) == "survived"
    assert pages.verdict(e, lines(-1, -1, -1, -1) + all_) == "survived"  # the later of two


def test_a_hypothesis_survives_with_all_its_pairs_only():
    e = registered(claim=(("b", "a"), ("b", "c")))
    both = lines(0.05, 0.05, 0.05, 0.05)
    for r in both:
        r["against"]["c"] = [0.03, 0.001]
    assert pages.verdict(e, both) == "survived"
    for r in both:
        r["against"]["c"] = [0.01, 0.001]
    assert pages.verdict(e, both) == "killed"


def test_the_page_says_what_the_lines_say():
    made = lines(0.1, 0.3, 0.0, 0.0, error=0.03)
    text = pages.page([registered()], made)
    assert "| **b** | a | 0.700 ± 0.141 | 0.500 ± 0.000 | +0.100 [" in text
    assert "h. **Undecided.** *Killed by:* k." in text  # the seeds are apart: the interval reaches 0
    assert pages.figure([registered()], made).axes
    later = [r | {"revision": 2, "against": {"a": [0.05, 0.001]}} for r in made]
    text = pages.page([registered(revision=2, why="Repaired.")], made + later)
    assert "**Survived.**" in text
    assert "Repaired. Revision 1 by val: b against a +0.100 [" in text


# --- what is registered, and how it runs --------------------------------------------------------------------


def test_every_experiment_says_what_would_kill_it():
    assert len({e.name for e in EXPERIMENTS}) == len(EXPERIMENTS)
    for e in EXPERIMENTS:
        assert f"not above {e.least:g}" in e.kills
        assert e.hypothesis.endswith(".")
        assert {name for name, by, _ in e.units() if by == "val"} == set(VAL_SETS)


@pytest.fixture
def no_test_split(tmp_path, monkeypatch) -> list:
    """PneumoniaMNIST and BreastMNIST made small, without test images; the splits that were asked for."""
    draw = np.random.default_rng(4)
    for name in VAL_SETS:
        made = {}
        for split, n in (("train", 60), ("val", 30)):
            made[f"{split}_images"] = draw.integers(0, 256, (n, 28, 28), np.uint8)
            made[f"{split}_labels"] = np.arange(n)[:, None] % 2
        np.savez(tmp_path / f"{name}.npz", **made)
    asked: list = []
    for module in (catalog, protocol):

        def recorded(name, split, *a, load=module.load, **k):
            asked.append(split)
            assert split != "test"
            return load(name, split, *a, **k)

        monkeypatch.setattr(module, "load", recorded)
    return asked


def test_test_splits_are_not_read_and_found_lines_not_made_again(tmp_path, no_test_split):
    calls = []

    def run(d: Development, seed: int):
        calls.append((d.name, d.by, seed))
        noise = np.random.default_rng(seed).standard_normal(len(d.judged))
        yield "a", noise, {}
        yield "b", noise + d.judged.labels, {}

    e = registered(run=run, by=("val",))
    ledger = tmp_path / "lines.jsonl"

    def explore() -> list[dict]:
        hypotheses.explore([e], str(tmp_path), tmp_path / "work", ledger)
        return Ledger(ledger, hypotheses.REQUIRED).rows()

    rows = explore()
    assert sorted(calls) == sorted((n, "val", s) for n in VAL_SETS for s in (0, 1))
    assert set(no_test_split) == {"train", "val"}
    assert len(rows) == 8
    assert all(r["protocol"] == "explore" for r in rows)
    assert rows[1]["against"]["a"][0] == pytest.approx(rows[1]["auroc"] - rows[0]["auroc"])
    before = ledger.read_bytes()
    calls.clear()
    explore()
    assert not calls
    assert ledger.read_bytes() == before
    ledger.write_bytes(b"\n".join(before.splitlines()[:-1]) + b"\n")  # the last variant of the last unit
    explore()
    assert len(calls) == 1
    assert [json.loads(x)["variant"] for x in ledger.read_bytes().splitlines()] == ["a", "b"] * 4
    hypotheses.explore([e], str(tmp_path), tmp_path / "work", tmp_path / "other.jsonl", until=0.0)
    assert not (tmp_path / "other.jsonl").exists()
