"""Recipes: development data hold no test image, and a test set is met once, by what was committed."""

import functools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dia.benchmark.grid import LESIONS, VAL, load_recipe
from dia.benchmark.ledger import Ledger
from dia.benchmark.protocol import development, development_kinds, pasted
from dia.cli.main import main
from dia.core.environment import changed_since_commit
from dia.core.errors import DataError
from dia.data import phantoms
from dia.data.datasets import load
from dia.data.lesions import KINDS

RECIPE = {
    "date": "2026-01-02",
    "reasoning": "none",
    "method": "trivial:blur",
    "datasets": ["phantom"],
    "seeds": [0, 1],
    "max_size": 16,
}


def write(folder, name="one", **changes):
    path = folder / f"{name}.yaml"
    lines = {**RECIPE, **changes}
    date = f"date: {lines.pop('date')}\n"
    path.write_text(date + "".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()))
    return path


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """Phantoms are drawn anew whenever they are asked for; here the same few, once."""
    whole = phantoms.load
    few = functools.cache(lambda split, **how: whole(split, n=60, **how))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "load", few)
        yield


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    return tmp_path


def commit(path):
    git(path.parent, "add", path.name)
    git(path.parent, "commit", "-qm", "frozen")
    return path


def confirm(path, *more):
    folder = path.parent
    places = ("--ledger", folder / "runs.jsonl", "--scores", folder / "scores", "--work", folder / "work")
    main([str(w) for w in ("confirm", path, *places, "--device", "cpu", *more)])


def refused(capsys, path, *words):
    with pytest.raises(SystemExit) as end:
        confirm(path)
    assert end.value.code == 2
    line = " ".join(capsys.readouterr().err.split())
    for word in words:
        assert word in line


def lines(folder, name="runs.jsonl"):
    return Ledger(folder / name).rows()


# --- recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reasoning": " "}, "reasoning"),
        ({"date": "soon"}, "date"),
        ({"preset": "best"}, "no preset 'best'"),
        ({"method": "hog"}, "hog"),
        ({"settings": {"sigma": 1}}, "sigma"),
        ({"seeds": []}, "seeds"),
        ({"per_set": {}}, "no recipe grid .*per_set"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        load_recipe(write(tmp_path, **changes))


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(DataError, match="not a YAML"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_line_is_of_a_recipe_by_settings_revision_and_size_and_not_by_words(tmp_path):
    def of(name, line, **changes):
        recipe = load_recipe(write(tmp_path, name, **changes))
        return recipe.is_of(recipe.cells[0])(line)

    line = {"method": "trivial:blur", "revision": 3, "preset": "cpu", "settings": {}, "recipe": {"side": 16}}
    assert of("a", line)
    assert of("b", line, reasoning="other", seeds=[5])
    assert of("b", line, preset="gpu")  # whose settings are the same
    assert not of("c", line, max_size=32)
    assert not of("d", line, settings={"sigmas": [1.0]})
    assert of("d", line | {"settings": {"sigmas": [1.0]}}, settings={"sigmas": [1.0]})
    for earlier in ({"revision": 1}, {"settings": None}, {"settings": {"gone": 1}}):
        assert not of("a", line | earlier)


# --- development data -------------------------------------------------------------------------------------


def test_development_data_hold_no_test_image_and_no_training_image_that_is_fitted_on():
    test = {x.tobytes() for x in load("phantom", "test", max_size=16).images}
    assert development_kinds("phantom", None, 16) == [VAL, LESIONS]
    for kind in (VAL, LESIONS):
        fitted, judged = development("phantom", kind, None, 16)
        there = [{x.tobytes() for x in s.images} for s in (fitted, judged)]
        assert not (there[0] | there[1]) & test
        assert not there[0] & there[1]
        assert fitted.labels is None or not fitted.labels.any()
        assert 0 < judged.labels.mean() < 1


def test_lesions_are_in_images_that_are_there_without_them():
    _, judged = development("phantom", LESIONS, None, 16)
    normal, pasted = judged.normals().images, judged.anomalies().images
    assert len(pasted) % len(normal) == 0
    changed = (pasted.reshape(-1, *normal.shape) != normal).any((2, 3, 4))
    assert changed.mean() > 0.95


def test_lesions_of_an_image_are_the_same_among_any_others():
    x = phantoms.load("train", size=24).images
    some, one = pasted(x, np.array([3, 10, 20]), 0), pasted(x, np.array([10]), 0)
    assert some.shape == (len(KINDS), 3, 24, 24, 1)
    assert np.array_equal(some[:, 1], one[:, 0])


def test_exploring_reads_no_test_split(tmp_path, monkeypatch):
    from dia.benchmark import protocol
    from dia.benchmark import runner as grid

    asked = []

    def watched(name, split=None, *args, **kwargs):
        asked.append(split)
        return load(name, split, *args, **kwargs)

    monkeypatch.setattr(grid, "load", watched)
    monkeypatch.setattr(protocol, "load", watched)
    places = ("--ledger", tmp_path / "e.jsonl", "--scores", tmp_path / "s", "--work", tmp_path / "w")
    main([str(w) for w in ("explore", write(tmp_path), *places, "--device", "cpu")])
    assert set(asked) == {"val"}
    made = {r["dataset"]: r for r in lines(tmp_path, "e.jsonl")}
    assert set(made) == {"phantom/val", "phantom/lesions"}
    assert {r["protocol"] for r in made.values()} == {"explore"}
    assert made["phantom/val"]["recipe"]["name"] == "one"


# --- once -------------------------------------------------------------------------------------------------


def test_a_file_outside_git_or_changed_is_not_committed(repository):
    path = write(repository)
    assert changed_since_commit(path)
    commit(path)
    assert not changed_since_commit(path)
    path.write_text(path.read_text() + "\n")
    assert changed_since_commit(path)


def test_a_recipe_meets_a_test_set_once_and_as_committed(repository, capsys):
    path = write(repository)
    refused(capsys, path, "commit it first")
    assert not (repository / "runs.jsonl").exists()
    confirm(commit(path))
    first = lines(repository)
    assert [(r["dataset"], r["seed"], r["protocol"]) for r in first] == [
        ("phantom", 0, "confirm"),
        ("phantom", 1, "confirm"),
    ]
    confirm(path)  # goes on where it was: nothing is left
    assert lines(repository) == first
    refused(capsys, commit(write(repository, settings={"sigmas": [1.0]})), "needs a new name")
    refused(capsys, commit(write(repository, "copy")), "the same as one")
    confirm(commit(write(repository, "other", settings={"sigmas": [2.0]})))
    last = lines(repository)[-1]
    assert last["recipe"]["before"] == ["one"]


def test_settings_that_met_the_test_set_before_confirm_nothing(repository, capsys):
    path = commit(write(repository, settings={}))
    places = ("--ledger", repository / "runs.jsonl", "--scores", repository / "s", "--work", repository / "w")
    words = ("benchmark", "--datasets", "[phantom]", "--methods", "[trivial:blur]", "--seeds", "[0]")
    main([str(w) for w in (*words, *places, "--max_size", 16, "--device", "cpu")])
    refused(capsys, path, "confirm nothing")
    assert len(lines(repository)) == 1
    refused(capsys, commit(write(repository, "gpu", preset="gpu")), "confirm nothing")


def test_what_is_confirmed_stands_beside_the_best_untrained_row(repository, capsys):
    places = ("--ledger", repository / "runs.jsonl", "--scores", repository / "scores")
    words = ("benchmark", "--datasets", "[phantom]", "--methods", "[trivial:hog]", "--seeds", "[0,1]")
    main([str(w) for w in (*words, *places, "--work", repository / "w", "--max_size", 16, "--device", "cpu")])
    capsys.readouterr()
    confirm(commit(write(repository)))
    said = " ".join(capsys.readouterr().out.split())
    rows = lines(repository)
    hog = np.mean([r["auroc"] for r in rows if r["method"] == "trivial:hog"])
    own = np.mean([r["auroc"] for r in rows if r["method"] == "trivial:blur"])
    assert "trivial:hog" in said
    assert f"{hog:.3f}" in said
    assert f"{own:.3f} ±" in said
    assert f"{own - hog:+.3f} [" in said


def test_the_committed_recipes_are_recipes():
    found = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
    assert found
    for path in found:
        load_recipe(path)
