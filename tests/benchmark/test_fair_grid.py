"""What makes a comparison affordable and fair: features computed once, lengths in steps, sizes by set."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dia.benchmark.grid import benchmark_grid
from dia.benchmark.runs import current_lines, scores_path
from dia.cli.main import main
from dia.detectors.registry import METHODS
from grids import benchmark, lines_of, two_sets

TABLE = Path(__file__).parents[2] / "grids" / "table.yaml"
CHANGES = {"kdad": {"size": 32, "batch": 4, "steps": 2}, "patchcore": {"size": 32, "backbone": "resnet18"}}
SMALL = {"dia+": {"size": 32, "map_size": 32}, "control:detail": {"size": 32}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


def scores_of(out):
    """The raw scores of a grid's lines."""
    found = {}
    for r in lines_of(out):
        found[r["dataset"], r["method"], r["seed"]] = np.load(scores_path(out / "s", r))["scores"]
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for run, scores in found.items():
        np.testing.assert_allclose(scores, wanted[run], rtol=1e-3, atol=1e-3, err_msg=str(run))


def test_shared_features_change_no_result_and_their_cost_is_counted(root, tmp_path):
    asked = {"methods": ["dia+", "control:detail"], "settings": SMALL, "weights": ["lite0"]}
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    main(benchmark(root, shared, **asked))
    main(benchmark(root, alone, **asked, features_gb=0))
    assert len(lines_of(shared)) == 8
    assert_same(scores_of(shared), scores_of(alone))
    assert list((shared / "w" / "features").iterdir())
    assert not (alone / "w" / "features").exists()
    saved = {(r["method"], r["seed"]): r.get("shared_seconds", 0) for r in lines_of(shared)}
    assert saved["dia+", 1] > 0  # seed 0 computed what seed 1 asks for
    assert saved["control:detail", 0] > 0  # and what another method does
    assert all("shared_seconds" not in r for r in lines_of(alone))


def test_sizes_by_data_set_reach_the_runs_and_select_their_lines(root, tmp_path, capsys):
    asked = {"methods": ["kdad", "trivial:std"], "settings": {"kdad": CHANGES["kdad"]}, "seeds": [0]}
    sizes = {"pneumoniamnist": 64}
    main(benchmark(root, tmp_path, **asked, sizes=sizes, weights=["none"]))
    lines = lines_of(tmp_path)
    assert {(r["dataset"], r["size"]) for r in lines if r["method"] == "kdad"} == {
        ("breastmnist", 32), ("pneumoniamnist", 64),
    }  # fmt: skip
    of_grid = current_lines(lines, "cpu", changes=asked["settings"], sizes=sizes)
    assert len(of_grid) == 4
    without = current_lines(lines, "cpu", changes=asked["settings"])
    assert [r["dataset"] for r in without if r["method"] == "kdad"] == ["breastmnist"]
    main(benchmark(root, tmp_path, **asked, sizes=sizes, weights=["none"]))
    assert len(lines_of(tmp_path)) == 4
    argv = ["report", "benchmark", "--data_root", str(root)]
    of_grid = ["--grid", str(tmp_path / "grid.yaml")]  # whose ledger and scores are its own
    main([*argv, *of_grid, "--out", str(tmp_path / "page")])
    page = (tmp_path / "page" / "benchmark.csv").read_text()
    assert page.count("kdad") == 2
    assert "64 px" in page
    main([*argv, *of_grid, "--weights", "[lite0]", "--out", str(tmp_path / "lite")])
    other = (tmp_path / "lite" / "benchmark.csv").read_text()
    assert "kdad" not in other  # no run of it had these weights
    assert "trivial:std" in other  # which takes none
    with pytest.raises(SystemExit):
        main([*argv, "--weights", "[lite0]", "--out", str(tmp_path / "no")])
    assert "give --grid FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, *of_grid, "--preset", "gpu", "--out", str(tmp_path / "no")])
    assert "no line of preset gpu" in capsys.readouterr().err  # an option goes before the grid's file
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SystemExit):
        main([*argv, "--grid", str(tmp_path / "empty.yaml")])
    assert "empty.yaml: no grid" in capsys.readouterr().err


def test_a_declared_set_counts_its_patients_in_intervals_and_is_found_again(root, tmp_path, capsys):
    with np.load(root / "breastmnist.npz") as kept:
        arrays = dict(kept)
    arrays["test_names"] = np.array([f"p{i // 3}_{i}" for i in range(len(arrays["test_images"]))])
    np.savez(tmp_path / "images.npz", **arrays)
    declared = tmp_path / "mine.yaml"
    declared.write_text('path: images.npz\nnormal: 1\ninterval_by: "(p[0-9]+)_"')
    main(benchmark(root, tmp_path, datasets=[str(declared)], methods=["trivial:std"], seeds=[0]))
    (made,) = lines_of(tmp_path)
    assert made["dataset"] == "mine"
    assert made["source"] == {"path": str(declared), "normal": None}
    units = np.load(scores_path(tmp_path / "s", made))["units"]
    assert units.tolist() == [i // 3 for i in range(len(units))]
    capsys.readouterr()
    main(["report", "benchmark", "--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "page")])
    assert "not counted" not in capsys.readouterr().err
    declared.write_text('path: images.npz\nnormal: 1\ninterval_by: "(q[0-9]+)_"')
    with pytest.raises(SystemExit):
        main(benchmark(root, tmp_path, datasets=[str(declared)], methods=["trivial:hog"], seeds=[0]))
    assert "interval_by" in capsys.readouterr().err


def test_the_fair_table_holds_every_method_with_the_same_features():
    of_file = yaml.safe_load(TABLE.read_text())
    grid, remarks = benchmark_grid(
        of_file["datasets"], of_file["methods"], of_file["seeds"], of_file["preset"],
        weights=of_file["weights"], settings=of_file["settings"], sizes=of_file["sizes"],
    )  # fmt: skip
    assert remarks == []
    assert set(of_file["methods"]) == set(METHODS)
    takes = {c.method for c in grid.cells if c.changes.get("weights") == "lite0"}
    assert takes == {m for m in METHODS if hasattr(METHODS[m].Settings(), "weights")}
    trained = {c.method: c.changes["steps"] for c in grid.cells if "steps" in c.changes}
    assert set(trained.values()) == {100, 200}
    sides = {(j.dataset, j.changes["size"]) for j in grid.jobs() if j.method == "kdad"}
    assert ("pneumoniamnist", 112) in sides
    assert {size for name, size in sides if name != "pneumoniamnist"} == {128}


def test_a_grid_killed_three_times_ends_with_every_line_once(root, tmp_path):
    """SIGKILL in the middle of a run: at the first, the third and the fifth line."""
    asked = {"methods": ["control:detail", "trivial:std", "trivial:hog"], "seeds": [0, 1], "settings": SMALL}
    argv = benchmark(root, tmp_path, **asked, weights=["lite0"])
    command = [sys.executable, "-m", "dia", *argv]
    ledger, killed = tmp_path / "l.jsonl", 0
    for wanted in (1, 3, 5, None):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for said in process.stderr:
            if wanted and "AUROC" in said and len(ledger.read_text().splitlines()) >= wanted:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
        process.communicate(timeout=120)
    assert (killed, process.returncode) == (3, 0)
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(scores_of(tmp_path)) == len(lines) == 12
    straight = tmp_path / "straight"
    main(benchmark(root, straight, **asked, weights=["lite0"]))
    assert_same(scores_of(tmp_path), scores_of(straight))
