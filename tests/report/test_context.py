"""The context of a result: the best untrained row, copies, balance, direction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import smooth_images
from test_benchmark_page import line as of_benchmark

from dia.benchmark.results import benchmark_results
from dia.cli.main import main
from dia.data.imageset import ImageSet
from dia.report.benchmark.sentences import below_chance
from dia.report.context import (
    best_in_ledger,
    best_of,
    direction_of,
    facts_of_set,
    sentences,
)

METRICS = {"auroc": 0.7, "auroc_ci": [0.6, 0.8]}


def line(method, seed, auroc, data="d", **more):
    return {"method": method, "seed": seed, "auroc": auroc, "data_sha256": data, **more}


def test_the_best_row_of_the_ledger_is_of_the_same_images_and_seeds_are_averaged():
    rows = [
        line("trivial:hog", 0, 0.1),  # made again below: the later counts
        line("trivial:hog", 0, 0.8), line("trivial:hog", 1, 0.6), line("trivial:lbp", 0, 0.69),
        line("trivial:pca", 0, 0.99, "other"), line("trivial:std", 0, 0.9, ablation={}), line("dia", 0, 1.0),
    ]  # fmt: skip
    best = best_in_ledger(rows, "d")
    assert (best["method"], best["auroc"]) == ("trivial:hog", pytest.approx(0.7))
    assert best_in_ledger(rows, "unknown") is None
    assert best_of([line("dia", 0, 1.0)], "here") is None


def test_facts_of_a_set_by_hand():
    train = smooth_images(30, 24, seed=1)
    test = np.stack([*smooth_images(6, 24, seed=2), train[0], train[1], train[1]])
    images = ImageSet(test, [0] * 5 + [1, 0, 1, 1])
    found = facts_of_set(images, ImageSet(train), "x")
    assert found == {
        "normal": 6, "anomalous": 3, "direction": "x", "near_duplicates": 1, "copies_of_training": 3,
        "copies_anomalous": 2,
    }  # fmt: skip
    said = " ".join(sentences(found, METRICS, None, "dia"))
    assert "3 of 9 test images are near-duplicates of a training image, 2 of them labelled anomalous" in said
    assert "33%" in said
    assert "Best untrained row: not known" in said
    unknown = facts_of_set(images, None, "x")
    assert unknown["copies_of_training"] is None
    assert "not known; give --normals" in " ".join(sentences(unknown, METRICS, None, "dia"))


@pytest.mark.parametrize(("own", "stands"), [(0.7, "below"), (0.9, "above")])
def test_the_row_is_named_by_name_and_value(own, stands):
    facts = {**facts_of_set(ImageSet(smooth_images(4), [0, 0, 1, 1]), None, "x")}
    best = {"method": "trivial:hog", "auroc": 0.8, "source": "here"}
    said = sentences(facts, METRICS | {"auroc": own}, best, "dia")
    assert f"trivial:hog, AUROC 0.800 (here); dia, {own:.3f}, lies {stands} it" in said[0]
    assert "itself" in sentences(facts, METRICS, best, "trivial:hog")[0]


def test_scores_that_rank_the_other_way_are_said_and_not_turned():
    facts = facts_of_set(ImageSet(smooth_images(4), [0, 0, 1, 1]), None, "x")

    def first(auroc, interval):
        return sentences(facts, {"auroc": auroc, "auroc_ci": interval}, None, "dia")[0]

    assert first(0.7, [0.6, 0.8]).startswith("Best untrained row")
    assert "not reversed" in first(0.3, [0.2, 0.4])
    assert "may be chance" in first(0.45, [0.3, 0.6])


def test_the_direction_is_told():
    assert direction_of("breastmnist").startswith("normal is label 1;")
    assert direction_of("breastmnist-0").startswith("normal is label 0;")
    assert direction_of("sarscov2ct").startswith("normal is label 0, non-COVID;")
    assert direction_of("sarscov2ct-covid").startswith("normal is label 1, COVID;")
    assert direction_of("kvasir").startswith("normal is normal-cecum")
    assert direction_of("somewhere", "healthy").startswith("normal is healthy;")
    assert "label 0" in direction_of("somewhere")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A set whose anomalies are smooth, so that a one-sided eye for detail ranks them the other way."""
    root = tmp_path_factory.mktemp("labelled")
    train, test = smooth_images(40, 24, seed=1), smooth_images(24, 24, seed=2)
    test[12:] = 255 - test[12:]
    np.savez(
        root / "set.npz", train_images=train[..., 0], train_labels=np.zeros(40, int),
        test_images=np.concatenate([test, train[:2]])[..., 0], test_labels=np.repeat([0, 1, 0], (12, 12, 2)),
    )  # fmt: skip
    main(
        [
            "fit",
            str(root / "set.npz"),
            "--method",
            "trivial:std",
            "--out",
            str(root / "run"),
            "--device",
            "cpu",
        ]
    )
    return root


def evaluated(capsys, *argv):
    main(["evaluate", *map(str, argv), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


def test_evaluate_says_what_stands_beside(labelled, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no ledger here
    data, run = labelled / "set.npz", labelled / "run"
    fitted = evaluated(capsys, run, data)["beside"]
    assert fitted["best_untrained"]["source"] == "fitted on the same normals"
    assert fitted["copies_of_training"] == 0  # the two are left out
    assert (fitted["normal"], fitted["anomalous"]) == (12, 12)
    kept = evaluated(capsys, run, data, "--keep-seen")["beside"]
    assert (kept["normal"], kept["copies_of_training"]) == (14, 2)
    assert kept["verdict"]["findings"][0]["about"] == "flags"
    given = evaluated(capsys, run, data, "--normals", data)["beside"]
    assert given["best_untrained"] == fitted["best_untrained"]
    assert "beside" not in evaluated(capsys, run, data, "--compare", "false")
    # the ledger has it: nothing is fitted
    row = fitted["best_untrained"]["method"]
    main(["fit", str(data), "--method", row, "--out", str(tmp_path / "row"), "--device", "cpu"])
    capsys.readouterr()
    own = evaluated(capsys, tmp_path / "row", data, "--ledger", tmp_path / "runs.jsonl", "--compare", "false")
    known = evaluated(capsys, run, data, "--ledger", tmp_path / "runs.jsonl")["beside"]["best_untrained"]
    assert (known["method"], known["auroc"]) == (row, own["auroc"])
    assert "runs.jsonl" in known["source"]
    main(["evaluate", str(run), str(data), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "which trains nothing, reaches" in out
    assert "Direction: normal is what the data call so" in out


def test_where_nothing_is_known_it_says_how_to_know(labelled, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "weights.safetensors", "calibration.json", "drift.json"):
        (moved / name).write_bytes((labelled / "run" / name).read_bytes())
    config = json.loads((moved / "config.json").read_text())
    config["facts"]["dataset"] = "/nowhere/set.npz"
    (moved / "config.json").write_text(json.dumps(config))
    found = evaluated(capsys, moved, labelled / "set.npz")["beside"]
    assert found["best_untrained"] is None
    assert any("give --normals" in s for s in found["sentences"])
    with pytest.raises(SystemExit):
        main(["evaluate", str(moved), str(labelled / "set.npz"), "--normals", "/nowhere"])
    assert "--normals: /nowhere: no such file" in capsys.readouterr().err


def test_the_report_shows_it_beside_the_numbers(labelled, tmp_path):
    main(["report", str(labelled / "run"), str(labelled / "set.npz"), "--out", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "which trains nothing, reaches" in page.split(">Verdict</h2>")[1].split("</section>")[0]
    beside = page.split("<h2>Context of these numbers</h2>")[1].split("</section>")[0]
    assert "near-duplicates of a training image" in beside
    assert "Direction: normal is" in beside


@pytest.fixture
def known(tmp_path):
    """A small file in the place of breastmnist: label 1 is normal; three test normals are copies."""
    train, test = smooth_images(40, 28, seed=1), smooth_images(40, 28, seed=2)
    test[:3] = train[:3]
    np.savez(
        tmp_path / "breastmnist.npz", train_images=train[..., 0], train_labels=np.ones(40, int),
        test_images=test[..., 0], test_labels=np.repeat([1, 0], 20),
    )  # fmt: skip
    return tmp_path


def test_the_benchmark_says_what_stands_beside(known, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = ["--datasets", "[breastmnist]", "--seeds", "[0,1]", "--data_root", str(known)]
    main(["benchmark", *grid, "--methods", "[trivial:pixels,trivial:pca]"])
    main(["report", "benchmark", "--data_root", str(known)])
    for page in ("benchmark.md", "benchmark.html"):
        text = (tmp_path / "results/benchmark" / page).read_text()
        beside = text[text.index("Context of these results") : text.index("Ranks over data sets")]
        assert "20 + 20 (50%)" in beside
        assert "normal is label 1" in beside
        assert "3 (0 anomalous)" in beside
        assert "with and without copies of training images" in beside
        assert "trivial:pixels (0." in beside
    capsys.readouterr()
    main(["report", "benchmark", "--data_root", str(tmp_path / "nowhere")])
    assert "duplicates and copies are not counted" in capsys.readouterr().err
    text = (tmp_path / "results/benchmark/benchmark.md").read_text()
    assert "not known: give --data\\_root" in text or "not known: give --data_root" in text
    (known / "breastmnist.npz").unlink()
    np.savez(
        known / "breastmnist.npz", train_images=smooth_images(30, 28)[..., 0], train_labels=np.ones(30, int),
        test_images=smooth_images(4, 28)[..., 0], test_labels=[0, 0, 1, 1],
    )  # fmt: skip
    main(["report", "benchmark", "--data_root", str(known)])
    assert "of other images" in " ".join(capsys.readouterr().err.split())


def test_rows_below_chance_are_named_with_what_is_clear():
    ends = {"dia": (0.3, [0.2, 0.4]), "csi": (0.45, [0.35, 0.55]), "dia+": (0.8, [0.7, 0.9])}
    lines = [of_benchmark(m, "d", auroc, auroc_ci=ci) for m, (auroc, ci) in ends.items()]
    assert below_chance(benchmark_results(lines)) == [
        "d, below .5: with the whole interval dia (0.300); by the mean alone csi (0.450)."
    ]
