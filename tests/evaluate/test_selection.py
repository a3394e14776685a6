"""Choosing without labels: nested splits, the arithmetic of the choice, and what the command says."""

import json

import numpy as np
import pytest
import yaml

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data import lesions
from dia.data.phantoms import load
from dia.evaluate.selection import (
    Candidate,
    CandidateScores,
    Pasted,
    candidates,
    choose,
    fit_command,
    fused,
    measure,
    measure_all,
    pasted,
    splits,
    warning,
)

K = len(lesions.KINDS)


@pytest.fixture(scope="module")
def normals():
    return load("train", n=60, size=24)


def test_splits_are_nested_and_no_image_judges_twice():
    made = splits(103, 5, seed=2)
    for s in made:
        assert sorted(np.concatenate([s.fit, s.inner, s.outer]).tolist()) == list(range(103))
        assert len(s.fit) >= 60
    judged = np.concatenate([s.outer for s in made])
    assert len(set(judged.tolist())) == len(judged) == 103
    assert not np.array_equal(splits(103, 1, seed=3)[0].fit, made[0].fit)
    assert all(np.array_equal(a.fit, b.fit) for a, b in zip(splits(103, 2, seed=2), made, strict=False))


def test_volumes_stay_whole():
    volumes = [f"v{i // 7}" for i in range(140)]
    for s in splits(140, 5, 0, volumes):
        parts = [{volumes[i] for i in part} for part in (s.fit, s.inner, s.outer)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert all(parts)


@pytest.mark.parametrize(("n", "count", "match"), [(30, 3, "too few"), (100, 6, "1 to 5"), (0, 1, "too few")])
def test_what_cannot_be_split(n, count, match):
    with pytest.raises(DataError, match=match):
        splits(n, count, 0)


def run_of(lift_inner, lift_outer, n=20, seconds=1.0):
    """Scores 0 … n−1; a lift of n parts pasted from unpasted wholly, 0 not at all."""
    base = np.arange(n, dtype=float)
    return CandidateScores(
        base, base, np.tile(base + lift_inner, (K, 1)), base, np.tile(base + lift_outer, (K, 1)), seconds
    )


def test_aurocs_are_those_of_pasted_against_unpasted():
    assert run_of(0, 20).aurocs("inner") == pytest.approx(np.full(K, 0.5))
    assert run_of(0, 20).aurocs("outer") == pytest.approx(np.ones(K))


def test_the_estimate_is_of_each_splits_own_choice_on_its_outer_part():
    scored = {
        "steady": [run_of(10, 10), run_of(10, 10)],
        "lucky": [run_of(20, 0), run_of(9, 0)],  # best inner in the first split, worthless outside it
    }
    made = choose(scored, {"steady": "a", "lucky": "b"})
    assert made["choice"] == "lucky"  # by the mean
    assert made["chosen_by_split"] == ["lucky", "steady"]
    outer = [0.5, scored["steady"][1].aurocs("outer").mean()]
    assert made["estimate"] == pytest.approx(np.mean(outer))
    assert made["like_it"] == ["steady"]  # two splits that disagree tell nothing apart
    assert made["best_of"] == {"b": "lucky", "a": "steady"}
    half = 12.706 * np.std(outer, ddof=1) / 2**0.5  # Student's table, one degree of freedom
    assert made["estimate_ci"] == pytest.approx([np.mean(outer) - half, np.mean(outer) + half], abs=1e-3)
    assert [r["name"] for r in made["rows"]] == ["lucky", "steady"]


def test_a_clear_second_is_told_apart():
    made = choose({"a": [run_of(15, 15)] * 3, "b": [run_of(3, 3)] * 3}, {"a": "x", "b": "x"})
    assert made["like_it"] == []
    assert made["rows"][1]["behind"] > 0.1
    one = choose({"a": [run_of(15, 15)], "b": [run_of(3, 3)]}, {"a": "x", "b": "x"})
    assert one["like_it"] == ["b"]  # one split tells nothing apart
    assert one["estimate_ci"] is None


def test_a_fusion_sees_what_either_member_sees():
    rng = np.random.default_rng(0)

    def member(seen):
        base = rng.normal(size=50)
        shown = rng.normal(size=(K, 50)) + 6 * np.array(seen)[:, None]
        return CandidateScores(rng.normal(size=50), base, shown, base, shown, 2.0)

    half = np.arange(K) < K // 2
    a, b = member(half), member(~half)
    both = fused([a, b]).aurocs("inner")
    assert a.aurocs("inner").min() < 0.65
    assert both.min() > 0.9
    assert fused([a, b]).seconds == 4


def test_lesions_of_an_image_are_the_same_in_any_part(normals):
    x = normals.images
    some = pasted(x, np.array([3, 10, 20]), 0)
    other = pasted(x, np.array([10]), 0)
    assert some.shape == (K, 3, 24, 24, 1)
    assert np.array_equal(some[:, 1], other[:, 0])


def test_what_was_measured_is_read_back(normals, tmp_path, monkeypatch):
    (split,) = splits(60, 1, 0)
    candidate = Candidate("trivial:std")
    first = measure(candidate, Pasted(normals, split, 0), workdir=tmp_path)
    monkeypatch.setattr("dia.detectors.base.Detector.fit", lambda *a, **k: pytest.fail("fitted again"))
    again = measure(candidate, Pasted(normals, split, 0), workdir=tmp_path)
    for name in ("calibration", "inner", "outer_pasted"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert first.seconds == again.seconds


def test_one_failure_leaves_the_others(normals, tmp_path, monkeypatch):
    def refuse(*a):
        raise DataError("its weights are not here")

    monkeypatch.setattr("dia.detectors.baselines.Std._fit", refuse)
    two = [Candidate("trivial:std"), Candidate("trivial:gradient")]
    made = measure_all(two, {"cpu": normals}, 1, workdir=tmp_path)
    assert made["failed"] == {"trivial:std": "its weights are not here"}
    assert made["choice"] == "trivial:gradient"
    with pytest.raises(DataError, match="weights are not here"):
        measure_all(two[:1], {"cpu": normals}, 1, workdir=tmp_path)


def test_candidates_are_all_combinations():
    vary = {
        "csi": {"amplify.steps": [60, 180], "samples": [1, 2]},
        "trivial:blur": {"sigmas": [[1.0], [2.0, 4.0]]},
    }
    made = candidates(["csi", "trivial:blur"], ["cpu", "gpu"], vary)
    assert len(made) == 2 * (4 + 2)
    assert len({c.name for c in made}) == 12
    assert made[0].name == "csi [amplify.steps=60, samples=1]"
    assert made[-1].name == "trivial:blur [gpu, sigmas=(2.0 4.0)]"
    assert made[0].settings().amplify.steps == 60
    assert fit_command("x y", made[-1]) == (
        "dia fit 'x y' --method trivial:blur --preset gpu --settings.sigmas '[2.0, 4.0]'"
    )


@pytest.mark.parametrize(
    ("methods", "presets", "vary", "match"),
    [
        (["nothing"], ["cpu"], {}, "method nothing is not known"),
        (["csi"], ["tpu"], {}, "no preset tpu"),
        (["csi"], ["cpu"], {"dia": {"samples": [1]}}, "dia is not among --methods"),
        (["csi"], ["cpu"], {"csi": {"sample": [1]}}, "no setting sample"),
        ([], ["cpu"], {}, "name at least one"),
    ],
)
def test_candidates_that_cannot_be(methods, presets, vary, match):
    with pytest.raises(DataError, match=match):
        candidates(methods, presets, vary)


def test_the_warning_names_the_families():
    one = warning({"best_of": {"untrained": "a"}})
    assert "one family" in one
    several = warning({"best_of": {"untrained": "a", "contrastive": "b"}})
    assert "2 families" in several
    assert "misleads" in several
    assert "contrastive: b" in several


def test_from_the_command_line(normals, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", train_images=normals.images[..., 0], train_labels=normals.labels)
    grid = {"methods": ["trivial:std", "trivial:blur"], "vary": {"trivial:blur": {"sigmas": [[1.0], [3.0]]}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    command = ["select", "set.npz", "--config", "grid.yaml", "--splits", "2", "--fuse", "2"]
    main([*command, "--out", "deep/selection.json"])
    text = " ".join(capsys.readouterr().out.split())
    made = json.loads((tmp_path / "deep/selection.json").read_text())
    assert f"choice: {made['choice']}" in text
    assert "warning: Pasted lesions are not disease" in text
    assert len(made["rows"]) == 3 + 3  # and the pairs
    assert {r["family"] for r in made["rows"]} == {"untrained"}
    assert all(len(r["by_kind"]) == K for r in made["rows"])
    assert made["rows"][0]["inner"] == max(r["inner"] for r in made["rows"])
    for line in made["fit"]:
        assert line.startswith("dia fit set.npz --method trivial:")
    monkeypatch.setattr("dia.detectors.base.Detector.fit", lambda *a, **k: pytest.fail("fitted again"))
    main([*command, "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == made["rows"]
    with pytest.raises(SystemExit):
        main(["select", "set.npz", "--fuse", "1"])
    assert "--fuse must be 0, or 2 and more" in capsys.readouterr().err
