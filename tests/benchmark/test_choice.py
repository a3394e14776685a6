"""Rules that choose a method for a set left out: what they know, what they reach, and what is left out."""

import json
import sys

import numpy as np
import pytest

from benchmarks import choice
from benchmarks.choice import Table, alignment, detail, facts_of, judged, measure, section, table_of, worth_it
from dia.benchmark.ledger import Ledger
from dia.benchmark.runs import planned
from dia.core.errors import DataError
from dia.core.yamlfile import read_yaml
from dia.data.imageset import ImageSet


def drawn(seed=0, n=40):
    """One anatomy of 16 × 16 pixels, with a little noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, 16)) + 0.1 * rng.normal(size=(n, 16, 16))


def test_one_anatomy_framed_alike_is_aligned_and_framed_at_random_it_is_not():
    x, rng = drawn(), np.random.default_rng(1)
    moved = np.stack([np.roll(a, 4 * rng.integers(0, 4, 2), (0, 1)) for a in x])  # whole places
    noise = rng.normal(size=x.shape)
    assert alignment(x) < -1
    assert alignment(noise) > 0  # the best of fifteen places is nearer than the one
    assert alignment(moved) > alignment(noise)
    assert alignment(x[::-1]) == pytest.approx(alignment(x))
    assert alignment(7 * x + 3) == pytest.approx(alignment(x))
    assert np.isfinite(alignment(np.zeros((3, 16, 16))))


def test_alignment_by_hand():
    """Two images of sixteen flat places, grey 0, 10, …, 150, and 1 brighter: at the same place 1 apart."""
    a = np.kron(np.arange(16.0).reshape(4, 4) * 10, np.ones((4, 4)))
    # seen from the darker, the next lower place of the other is 9 away, from its first, 11; and the reverse
    nearest = [9.0] * 15 + [11.0], [9.0] * 15 + [11.0]
    assert alignment(np.stack([a, a + 1])) == pytest.approx(np.log(1 / np.mean(nearest)))


def test_detail_is_what_small_means_lose():
    fine = np.indices((8, 8)).sum(0) % 2 * 100.0
    assert detail(fine[None]) == pytest.approx(0)  # all of it
    assert detail(np.kron(fine, np.ones((2, 2)))[None]) == pytest.approx(-6)  # nothing
    assert detail((np.kron(fine, np.ones((2, 2))) + np.tile(fine, (2, 2)))[None]) == pytest.approx(
        np.log10(0.5)
    )


def test_facts_of_grey_scans_in_colour_files_are_grey():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (30, 20, 24, 1), np.uint8), 3, axis=3)
    grey[:3] = rng.integers(0, 256, (3, 20, 24, 3))  # coloured marks on some
    found = facts_of(ImageSet(grey))
    assert found["colour"] == 0
    assert found["log number"] == pytest.approx(np.log10(30))
    assert facts_of(ImageSet(rng.integers(0, 256, (30, 20, 24, 3), np.uint8)))["colour"] == 1
    single = facts_of(ImageSet(grey[3:, ..., :1]))
    assert (single["alignment"], single["detail"]) == pytest.approx(
        tuple(facts_of(ImageSet(grey[3:]))[k] for k in ("alignment", "detail"))
    )


def table(aurocs, facts, groups=None):
    aurocs, facts = np.array(aurocs, float), np.array(facts, float).reshape(len(aurocs), -1)
    names = tuple("abcdefgh"[: len(aurocs)])
    return Table(names, tuple("mn"), aurocs, facts, tuple(groups or names))


# the first method is better where the only fact is below 0
TELLING = table(
    [[0.9, 0.6], [0.8, 0.7], [0.9, 0.5], [0.6, 0.7], [0.6, 0.8], [0.4, 0.9]], [-3, -2, -1, 1, 2, 3]
)


def test_a_fact_that_tells_is_used_and_the_numbers_are_by_hand():
    default = np.full(6, 0.7)
    found = judged(TELLING, default)
    right = dict(zip("abcdef", "mmmnnn", strict=True))
    for name in ("the best of the most similar set", "one threshold of one fact"):
        assert found[name]["chosen"] == right
        assert found[name]["auroc"] == pytest.approx(5.0 / 6)
        assert found[name]["regret"] == pytest.approx(0)
        assert found[name]["difference"] == pytest.approx(5.0 / 6 - 0.7)
        assert found[name]["spread"] == pytest.approx(np.std([0.2, 0.1, 0.2, 0, 0.1, 0.2], ddof=1))
    assert worth_it(found) == ["the best of the most similar set", "one threshold of one fact"]
    always = found["always `dia+`"]
    assert (always["auroc"], always["regret"]) == pytest.approx((0.7, 5.0 / 6 - 0.7))
    mean = found["the best by mean on the other sets"]["chosen"]  # m has 4.2 in all, n 4.2
    assert mean == {"a": "n", "b": "n", "c": "n", "d": "m", "e": "m", "f": "m"}


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_does_not_depend_on_labels_of_its_set_or_of_related_ones(seed):
    rng = np.random.default_rng(seed)
    groups = ["x", "x", "y", "z", "z", "w", "v"]
    t = table(rng.random((7, 2)), rng.random((7, 3)), groups)
    for g in {*groups}:
        own = np.array(groups) == g
        changed = table(np.where(own[:, None], rng.random((7, 2)), t.aurocs), t.facts, groups)
        before, after = (judged(x, np.zeros(7)) for x in (t, changed))
        for name in choice.RULES:
            for d in np.array(t.datasets)[own]:
                assert before[name]["chosen"][d] == after[name]["chosen"][d]


def test_a_set_with_few_methods_and_methods_without_a_set_are_left_out():
    facts = {d: {"f": i} for i, d in enumerate("abcdef")}
    aurocs = {m: dict.fromkeys("abcde", 0.5) for m in ("dia+", "x", "y", "z")}
    aurocs["dia+"]["f"] = 0.9
    del aurocs["z"]["b"]
    made, out = table_of(aurocs, facts)
    assert (made.datasets, made.methods) == (tuple("abcde"), ("dia+", "x", "y"))
    assert out == {"data sets": ["f"], "candidates": ["z"]}
    assert table_of({m: aurocs[m] for m in ("dia+", "x")}, {d: facts[d] for d in "abc"})[0] is None
    assert table_of({}, facts)[0] is None


def test_a_whole_run_from_the_ledger_to_the_page(tmp_path, monkeypatch, capsys):
    """Sets missing, seeds and weights that the grid does not name, another direction, controls."""
    sets = ["pneumoniamnist", "chestxray-128", "breastmnist-128", "breastmnist-0-128", "headct-128",
            "brainmri-128", "sarscov2ct-128", "busi-128"]  # fmt: skip
    methods = ["dia+", "patchcore", "ganomaly", "trivial:hog", "trivial:std", "control:centre"]
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"datasets: {sets}\nmethods: [{', '.join(methods)}]\nweights: [lite0]\nseeds: [0, 1]\n"
        "preset: cpu\nsettings: {patchcore: {size: 96}}\nsizes: {headct-128: 64}\n"
    )
    ledger, aurocs = Ledger(tmp_path / "l.jsonl"), {}

    def add(d, m, seed, auroc, **changes):
        own = read_yaml(grid)["settings"].get(m, {}) | changes
        if m == "patchcore":
            own |= {"weights": "lite0"} | ({"size": 64} if d == "headct-128" else {})
        asked = planned(d, m, "cpu", seed, "0" * 64, own)
        ledger.append(asked | {
            "auroc": auroc, "auroc_ci": [auroc, auroc], "ap": 0.5, "fit_seconds": 1.0, "versions": {},
            "score_images_per_second": 1.0, "peak_memory_mb": 1.0, "device": "cpu", "settings_hash": "h",
            "weights": "none", "commit": None,
        })  # fmt: skip

    for i, d in enumerate(sets):
        for j, m in enumerate(methods):
            aurocs[m, d] = 0.5 + (7 * i + 3 * j) % 11 / 30
            add(d, m, 0, aurocs[m, d] - 0.01)
            add(d, m, 1, aurocs[m, d] + 0.01)
        add(d, "dia+", 2, 0.1)
        add(d, "dia+", 0, 0.2, weights="none")

    def load(name, root, reading):
        if name == "sarscov2ct-128":
            raise DataError(f"{name}: not found in {root}")
        return ImageSet(np.random.default_rng(len(name)).integers(0, 256, (9, 16, 16, 1), np.uint8))

    monkeypatch.setattr(choice, "load_training", load)
    page = tmp_path / "p.md"
    page.write_text("<!-- CHOICE:begin -->\n<!-- CHOICE:end -->")
    argv = ["choice", "--ledger", str(ledger.path), "--data-root", "nowhere", "--grid", str(grid)]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "c.json"), "--page", str(page)])
    choice.main()
    assert "left out: sarscov2ct-128: not found in nowhere" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    used = [d for d in sets if d not in ("breastmnist-0-128", "sarscov2ct-128")]
    kinds = found["kinds"]
    assert set(kinds["methods"]["candidates"]) == {"dia+", "patchcore", "ganomaly"}
    assert set(kinds["untrained rows"]["candidates"]) == {"trivial:hog", "trivial:std"}
    groups = kinds["methods"]["data sets"]
    assert set(groups) == set(used)
    assert (
        groups["pneumoniamnist"] == groups["chestxray-128"] != groups["breastmnist-128"] == groups["busi-128"]
    )
    assert groups["headct-128"] != groups["brainmri-128"]
    for kind, of in kinds.items():
        default = [aurocs["dia+", d] for d in used]
        assert of["rules"]["always `dia+`"]["auroc"] == pytest.approx(np.mean(default)), kind
        for name, rule in of["rules"].items():
            if name in choice.RULES:
                own = [aurocs[rule["chosen"][d], d] for d in used]
                assert rule["auroc"] == pytest.approx(np.mean(own))
                assert rule["difference"] == pytest.approx(np.mean(own) - np.mean(default))
    text = page.read_text()
    assert "3 methods, 6 data sets in 4 groups" in text
    assert "2 untrained rows, 6 data sets in 4 groups" in text
    assert f"| always `dia+` | {np.mean([aurocs['dia+', d] for d in used]):.3f} |" in text


def test_what_a_few_sets_cannot_tell_is_said():
    aurocs = {m: dict.fromkeys("abc", 0.5) for m in ("dia+", "x", "trivial:hog", "trivial:std")}
    found = measure(aurocs, {d: {"f": 0.0} for d in "abc"})
    assert "rules" not in found["methods"]
    aurocs = {m: dict.fromkeys("abcd", 0.5) for m in ("dia+", "x")} | {"y": {"a": 0.5}}
    found_most = measure(aurocs, {d: {"f": 0.0} for d in "abcd"})
    assert "Incomplete candidates, left out: y." in section({"kinds": found_most})
    assert section({"kinds": found}).count("not measured") == 2
    assert measure({}, {})["methods"]["left out"] == {"data sets": [], "candidates": []}
