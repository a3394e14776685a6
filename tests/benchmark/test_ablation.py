"""Ablations: shipped grids are sound, cells are what is declared, a real small grid runs, resumes, draws."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

from dia.benchmark.grid import ABLATION, load_grid, measured, shipped
from dia.benchmark.ledger import Ledger
from dia.cli.main import main
from dia.core.errors import DataError
from dia.core.settings import differences
from dia.data.datasets import CATALOG, load_training
from dia.detectors.dia import DIASettings
from dia.detectors.presets import settings
from dia.report.ablation import ablation_page, ablation_plot

TINY = {
    "amplify.size": 16, "amplify.width": 4, "amplify.steps": 2, "amplify.batch": 4,
    "dissolver.size": 16, "dissolver.widths": [8, 8], "dissolver.steps": 2, "samples": 1,
}  # fmt: skip


# --- the shipped grids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_grid_is_sound(name):
    grid = load_grid(name)
    assert grid.name == name
    assert grid.title
    assert grid.question
    assert set(grid.datasets) | set(grid.published) <= set(CATALOG)
    cells = {"/".join(c.names) for c in grid.cells}
    for values in grid.published.values():
        assert set(values) <= cells
        assert all(0.4 < v < 1 for v in values.values())
    assert bool(grid.published) == bool(grid.source)
    made = Counter(grid.settings(c) for c in grid.cells)
    if name != "contamination":
        assert max(made.values()) == 1  # no cell is run twice under two names


def test_the_paper_and_its_reviewers_have_their_grids():
    assert {"transform-shift", "resolution", "t-range", "dissolver-masking", "contamination"} <= set(
        shipped()
    )
    poster = load_grid("transform-shift").published
    assert poster["kvasir"]["diffusion/rotation"] == 0.860
    assert poster["sarscov2ct"]["median/cutperm"] == 0.826
    assert load_grid("resolution").published["aptos2019"]["64"] == 0.937
    assert {c.contamination for c in load_grid("contamination").cells} == {0, 0.01, 0.02, 0.05, 0.1}


LEDGER = Path(__file__).parents[2] / "results/ablations.jsonl"


@pytest.mark.parametrize("name", sorted({line[ABLATION]["grid"] for line in Ledger(LEDGER).rows()}))
def test_the_grid_of_kept_lines_still_finds_them(name):
    """A changed default must not leave a published page empty."""
    lines = [line for line in Ledger(LEDGER).rows() if line[ABLATION]["grid"] == name]
    grid = load_grid(name)
    grid = replace(grid, datasets=tuple(dict.fromkeys(line["dataset"] for line in lines)))
    made = [m for of_set in measured(grid, lines, Path("none")).values() for m in of_set]
    assert sum(bool(m.aurocs) for m in made) >= len(grid.cells)


def test_every_switch_has_a_row_and_each_row_changes_what_it_names():
    grid = load_grid("switches")
    preset = settings(DIASettings, "cpu")
    changed = set()
    for cell in grid.cells:
        differ = differences(grid.settings(cell), preset)
        assert (not differ) == (cell.names == grid.reference), cell
        changed |= set(differ)
    assert changed >= {
        "amplify.t_per", "amplify.t_sampler", "amplify.t_beta", "dissolver.input_range", "samples",
        "dissolver.ema_weights", "amplify.shift", "amplify.exclude_own", "amplify.dissolved_in_shift",
        "amplify.simsiam_weight", "score_parts",
    }  # fmt: skip


# --- grids of one's own --------------------------------------------------------------------------------


def written(folder, **values):
    base = {
        "factors": {
            "third view": {k: TINY | {"dissolver.kind": k} for k in ("gaussian", "none")},
            "own copy": {"in": {"amplify.exclude_own": False}, "out": {"amplify.exclude_own": True}},
        },
        "reference": ["gaussian", "out"],
        "leave_out": [{"third view": "none", "own copy": "in"}],
        "datasets": ["breastmnist"],
        "seeds": [0, 1],
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(base | values, sort_keys=False))
    return path


def test_cells_are_the_product_without_what_is_left_out(tmp_path):
    grid = load_grid(str(written(tmp_path)))
    assert [c.names for c in grid.cells] == [("gaussian", "in"), ("gaussian", "out"), ("none", "out")]
    s = grid.settings(grid.cells[-1])
    assert (s.dissolver.kind, s.amplify.exclude_own, s.amplify.width) == ("none", True, 4)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"reference": ["gaussian", "no"]}, "reference .* is not one of the cells"),
        ({"reference": ["none", "in"]}, "reference .* is not one of the cells"),
        ({"factors": {}}, "needs factors"),
        ({"factors": {"a": {}}}, "needs factors"),
        ({"factors": {"a": {"b": {"no.such": 1}}}, "reference": ["b"]}, "mine, b: no setting no.such"),
        (
            {"factors": {"a": {"b": {"samples": 0}}}, "reference": ["b"]},
            "mine, b: samples must be at least 1",
        ),
        ({"method": "magic"}, "method magic is not known"),
        ({"preset": "tpu"}, "preset 'tpu'"),
        ({"colour": "red"}, r"no ablation grid \(.*colour"),
        ({"seeds": 3}, r"no ablation grid \(.*iterable"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_any_run(tmp_path, values, match):
    with pytest.raises(DataError, match=match):
        load_grid(str(written(tmp_path, **values)))


def test_what_is_no_grid_names_those_there_are(tmp_path):
    with pytest.raises(DataError, match="neither a YAML file nor one of contamination, dissolver-masking"):
        load_grid("no-such")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(DataError, match="neither a YAML file"):
        load_grid(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(DataError, match="no ablation grid"):
        load_grid(str(tmp_path / "list.yaml"))
    (tmp_path / "short.yaml").write_text("title: x")
    with pytest.raises(DataError, match="missing"):
        load_grid(str(tmp_path / "short.yaml"))


# --- a real one ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_images):
    """A small file under a known name: 40 normals and 12 others to train, 30 to test."""
    folder = tmp_path_factory.mktemp("root")
    splits = {}
    for seed, (split, n, anomalous) in enumerate((("train", 52, 12), ("val", 6, 2), ("test", 30, 12))):
        images = make_images(n, 16, 16, 1, seed=seed)[..., 0].copy()
        labels = np.ones(n, np.uint8)  # of this set, 1 is normal
        labels[:anomalous] = 0
        images[:anomalous, 4:9, 4:9] = 255 - images[:anomalous, 4:9, 4:9]
        splits |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(folder / "breastmnist.npz", **splits)
    return folder


def ablate(grid, root, out, *more):
    main([
        "ablate", str(grid), "--data-root", str(root), "--ledger", str(out / "l.jsonl"),
        "--scores", str(out / "s"), "--work", str(out / "w"), "--out", str(out), "--device", "cpu", *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("ablated")
    grid = written(
        out, published={"breastmnist": {"none/out": 0.6}, "kvasir": {"gaussian/in": 0.7}}, source="Nobody."
    )
    ablate(grid, root, out)
    return grid, out


def test_every_cell_and_seed_has_its_line_with_scores_that_give_its_auroc(finished):
    grid, out = load_grid(str(finished[0])), finished[1]
    lines = Ledger(out / "l.jsonl").rows()
    assert Counter((tuple(r["ablation"]["cell"]), r["seed"]) for r in lines) == Counter(
        {(c.names, s): 1 for c in grid.cells for s in (0, 1)}
    )
    from dia.benchmark.runs import scores_path

    for r in lines:
        kept = np.load(scores_path(out / "s", r))
        assert roc_auc_score(kept["labels"], kept["scores"]) == pytest.approx(r["auroc"], abs=1e-12)
    assert not list((out / "s").glob(".*"))


def test_what_is_there_is_not_run_again_and_what_is_missing_is(finished, root, capsys):
    grid, out = finished
    ledger = out / "l.jsonl"
    before = ledger.read_text()
    ablate(grid, root, out)
    assert ledger.read_text() == before
    assert capsys.readouterr().err.count("in the ledger") == 6
    lines = before.splitlines(keepends=True)
    ledger.write_text("".join(lines[:4]))  # as if killed after the fourth run
    ablate(grid, root, out)
    again = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(r["seed"], r["settings_hash"], r["auroc"]) for r in again] == [
        (r["seed"], r["settings_hash"], r["auroc"]) for r in map(json.loads, lines)
    ]


def test_the_page_says_what_the_ledger_holds(finished):
    grid, out = load_grid(str(finished[0])), finished[1]
    made = measured(grid, Ledger(out / "l.jsonl").rows(), out / "s")
    page = (out / "mine.md").read_text()
    assert page == ablation_page(grid, made, "mine.png")
    by_cell = {m.cell.names: m for m in made["breastmnist"]}
    assert by_cell["gaussian", "out"].difference is None
    none = by_cell["none", "out"]
    assert none.published == 0.6
    middle = np.mean(list(none.aurocs.values()))
    reference = np.mean(list(by_cell["gaussian", "out"].aurocs.values()))
    assert none.difference.value == pytest.approx(middle - reference)
    (row,) = (line for line in page.splitlines() if line.startswith("| none | out |"))
    assert f"{middle:.3f} ±" in row
    assert f"| 0.600 | {middle - 0.6:+.3f} |" in row.replace("−", "-")
    assert f"{none.difference.low:+.3f}, {none.difference.high:+.3f}]" in row.replace("−", "-")
    assert "| gaussian | out |" in page
    assert "reference |" in page
    assert "## Published, not measured here" in page
    assert "| gaussian | in | 0.700 |" in page
    picture = Image.open(out / "mine.png")
    assert picture.width > 800
    assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_grid_without_any_run_is_drawn_with_dashes(finished, tmp_path):
    grid = load_grid(str(finished[0]))
    made = measured(grid, [], tmp_path)
    assert "| none | out | – | 0.600 | – | – |" in ablation_page(grid, made)
    assert ablation_plot(tmp_path / "a" / "x.png", grid, made).exists()


def test_a_cell_that_lacks_a_seed_says_so_and_is_paired_by_the_others(finished):
    grid, out = load_grid(str(finished[0])), finished[1]
    lines = Ledger(out / "l.jsonl").rows()
    lines.remove(next(r for r in lines if r["ablation"]["cell"] == ["none", "out"] and r["seed"] == 1))
    made = measured(grid, lines, out / "s")
    none, base = (
        next(r for r in made["breastmnist"] if r.cell.names == c) for c in (("none", "out"), grid.reference)
    )
    assert none.difference.value == pytest.approx(none.aurocs[0] - base.aurocs[0])
    page = ablation_page(grid, made)
    assert f"| none | out | {none.aurocs[0]:.3f} (1 of 2 seeds) |" in page
    assert page.count("seeds) |") == 1


def test_another_reference_turns_the_difference_round(finished, root, tmp_path):
    grid, out = finished
    ablate(grid, root, out, "--draw", "--out", str(tmp_path), "--reference", "[none,out]")
    page = (tmp_path / "mine.md").read_text()
    own = load_grid(str(grid))
    made = measured(own, Ledger(out / "l.jsonl").rows(), out / "s")["breastmnist"]
    d = next(r for r in made if r.cell.names == ("none", "out")).difference
    (row,) = (line for line in page.splitlines() if line.startswith("| gaussian | out |"))
    assert f"{-d.value:+.3f} [{-d.high:+.3f}, {-d.low:+.3f}]" in row.replace("−", "-")


def test_drawing_runs_nothing(finished, root, tmp_path):
    grid, out = finished
    ablate(grid, root, out, "--draw", "--out", str(tmp_path), "--work", str(tmp_path / "w"))
    assert (tmp_path / "mine.md").read_text() == (out / "mine.md").read_text()
    assert not (tmp_path / "w").exists()


def test_one_failure_does_not_stop_the_others(root, tmp_path, capsys):
    levels = {
        "0": TINY | {"contamination": 0},
        "much": TINY | {"contamination": 0.5},
        "some": TINY | {"contamination": 0.1},
    }
    levels = {k: v | {"dissolver.kind": "none"} for k, v in levels.items()}
    grid = written(tmp_path, factors={"contamination": levels}, reference=["0"], leave_out=[], seeds=[0])
    with pytest.raises(SystemExit) as stopped:
        ablate(grid, root, tmp_path)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert (
        "breastmnist seed 0 much: breastmnist: a contamination of 0.5 of 40 normals takes 40 anomalous"
        in said
    )
    assert "1 run failed" in said
    cells = [r["ablation"]["cell"] for r in Ledger(tmp_path / "l.jsonl").rows()]
    assert cells == [["0"], ["some"]]
    n = {
        r["ablation"]["cell"][0]: r["n_train"] + r["n_calibration"]
        for r in Ledger(tmp_path / "l.jsonl").rows()
    }
    assert n["some"] > n["0"]


def test_contamination_comes_from_train_or_else_from_val(root, make_images, tmp_path):
    clean = load_training("breastmnist", root)
    mixed = load_training("breastmnist", root, contamination=0.2, seed=1)
    assert (len(clean), len(mixed)) == (40, 50)
    assert not mixed.labels.any()
    arrays = dict(np.load(root / "breastmnist.npz"))
    keep = arrays["train_labels"] == 1
    np.savez(
        tmp_path / "breastmnist.npz",
        **arrays
        | {"train_images": arrays["train_images"][keep], "train_labels": arrays["train_labels"][keep]},
    )
    from_val = load_training("breastmnist", tmp_path, contamination=0.04, seed=1)
    assert len(from_val) == 42
    val = arrays["val_images"][arrays["val_labels"] == 0]
    assert {x.tobytes() for x in from_val.images[40:]} == {x.tobytes() for x in val}


def test_the_list_and_the_dry_run_train_nothing(root, tmp_path, capsys):
    main(["ablate", "--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in shipped())
    ablate(written(tmp_path), root, tmp_path, "--dry-run")
    shown = capsys.readouterr().out
    assert "gaussian · in" in shown
    assert "6 runs on breastmnist with seeds 0, 1" in shown
    assert not (tmp_path / "l.jsonl").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["ablate"])
    assert stopped.value.code == 2
