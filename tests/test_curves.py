"""The learning curves: snapshots, what a run writes, what is there already, and the page's arithmetic."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import curves
import curves_page
from curves_page import Configuration, Run, Selection

from dia.data.imageset import ImageSet
from dia.detectors import CSI
from dia.detectors.base import module_tensors
from dia.presets import settings
from dia.settings import replaced

TINY = {"amplify.width": 4, "amplify.batch": 4, "amplify.size": 16, "amplify.steps": 8, "samples": 1}


@pytest.fixture(scope="module")
def sets(make_images):
    """Normals, and labelled images of which the anomalous ones are inverted."""
    normals, other = ImageSet(make_images(40)), make_images(20, seed=1)
    other[10:] = 255 - other[10:] // 2
    return normals, ImageSet(other, np.repeat([0, 1], 10))


@pytest.fixture(scope="module")
def watched(sets, tmp_path_factory):
    """A watched CSI after 8 steps, and its lines."""
    detector = curves.WatchedCSI(replaced(settings(CSI.Settings), TINY), seed=3, device="cpu")
    detector.at = curves.snapshot_steps(8, 3)
    lines = curves.curve(detector, sets[0], {"test": sets[1]}, tmp_path_factory.mktemp("curve"))
    return detector, lines


def test_snapshots_double_up_to_the_last_step():
    assert curves.snapshot_steps(720, 7) == [11, 22, 45, 90, 180, 360, 720]
    assert curves.snapshot_steps(3, 7) == [1, 2, 3]


def test_the_last_snapshot_is_the_detector_that_fit_makes_and_scores_as_it(sets, watched, tmp_path):
    detector, lines = watched
    plain = CSI(detector.s, seed=3, device="cpu").fit(sets[0], workdir=tmp_path)
    detector._take(8)
    detector._fit_bank(detector.images_)
    for name, value in module_tensors(plain.encoder_, "").items():
        assert np.array_equal(value, module_tensors(detector.encoder_, "")[name]), name
    scores = curves.scorer(detector, detector.images_)(sets[1].images)
    assert np.array_equal(scores["csi"], plain.score(sets[1]))
    by_hand = curves.roc_auc_score(sets[1].labels, plain.score(sets[1]))
    assert next(r for r in lines if (r["step"], r["score"]) == (8, "csi"))["auroc_test"] == by_hand


def test_snapshots_differ_and_each_is_judged_by_each_score(watched):
    detector, lines = watched
    assert [(r["step"], r["score"]) for r in lines] == [(s, k) for s in (2, 4, 8) for k in curves.SCORES]
    assert {r["epoch"] for r in lines} == {0.25, 0.5, 1.0}  # 32 of 40 train, in batches of 4
    seconds = [r["train_seconds"] for r in lines]
    assert seconds == sorted(seconds)
    first, last = (curves.load_file(detector.snapshots_.path(s)) for s in (2, 8))
    assert any(not np.array_equal(first[k], last[k]) for k in first)


def test_the_terms_make_the_published_score(sets, watched):
    detector, _ = watched
    z, s = detector._projections(sets[1].images)
    cosine = (detector.bank_ @ z.transpose(1, 2)).amax(1) / z.norm(dim=-1)
    terms = cosine * z.norm(dim=-1) * detector.lambda_[:, None], s * detector.mu_[:, None]
    largest = max(float(term.abs().max()) for term in terms)  # they may cancel
    scores = curves.scorer(detector, detector.images_)(sets[1].images)
    assert scores["csi"] == pytest.approx(-sum(terms).mean(0).numpy(), rel=0, abs=1e-5 * largest)
    assert scores["cosine"] == pytest.approx(-cosine.mean(0).numpy(), rel=1e-5)


def test_a_run_in_the_ledger_is_not_made_again(sets, tmp_path, monkeypatch):
    made = []
    lines = [
        {"step": step, "score": score, "auroc_test": 0.5, "epoch": 1.0, "train_seconds": 1.0}
        for step in (2, 4, 8)
        for score in curves.SCORES
    ]

    def curve(detector, *_):
        made.append(detector.seed)
        detector.n_train_ = 32
        return lines

    monkeypatch.setattr(curves, "curve", curve)
    monkeypatch.setattr(curves, "load_training", lambda *a, **k: sets[0])
    monkeypatch.setattr(curves, "load", lambda *a, **k: sets[1])
    ledger = tmp_path / "curves.jsonl"
    how = {"ledger": ledger, "data_root": None, "work": tmp_path, "size": 16, "count": 3, "changes": TINY}
    assert curves.run("breastmnist", "csi", 0, **how)
    assert not curves.run("breastmnist", "csi", 0, **how)
    assert curves.run("breastmnist", "csi", 1, **how)
    assert made == [0, 1]
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(rows) == 2 * len(lines)
    assert {r["protocol"] for r in rows} == {"curve"}
    # a kill within the append: the rest of the run is gone, so it is made again, and read once
    ledger.write_text("".join(json.dumps(r) + "\n" for r in rows[: len(lines) + 5]))
    assert curves.run("breastmnist", "csi", 1, **how)
    (by_set,) = curves_page.runs_of(curves.Ledger(ledger, curves.REQUIRED).rows()).values()
    assert {seed: len(run.test) for seed, run in by_set["breastmnist"].items()} == {0: 21, 1: 21}


def a_line(step, score, test, val=None, seed=0, **more):
    return {
        "dataset": "pneumoniamnist", "method": "dia", "preset": "cpu", "size": 32, "steps": 8, "seed": seed,
        "step": step, "score": score, "auroc_test": test, "auroc_val": val, "epoch": step / 4,
        "train_seconds": step, "settings_hash": "a", "data_sha256": "b",
    } | more  # fmt: skip


def made_up():
    """Every score is .5 but for some: by hand below."""
    rows = []
    for seed in (0, 1):
        for step in (4, 8):
            for score in curves.SCORES:
                rows.append(a_line(step, score, 0.5, 0.5, seed))
    of = {(r["seed"], r["step"], r["score"]): r for r in rows}
    of[0, 4, "csi"] |= {"auroc_test": 0.8}
    of[0, 8, "csi"] |= {"auroc_test": 0.7}
    of[0, 8, "mahalanobis"] |= {"auroc_test": 0.75}
    of[0, 4, "norm"] |= {"auroc_test": 0.9}
    of[0, 8, "shift"] |= {"auroc_test": 0.6, "auroc_val": 0.95}
    of[1, 8, "csi"] |= {"auroc_test": 0.9, "auroc_val": 0.7}
    return rows


def test_what_choosing_on_the_test_set_adds_by_hand():
    (by_set,) = curves_page.runs_of(made_up()).values()
    runs = by_set["pneumoniamnist"]
    assert curves_page.selection(runs[0]) == Selection(0.7, 0.75, 0.8, 0.9, 0.6)
    assert curves_page.selection(runs[1]) == Selection(0.9, 0.5, 0.9, 0.9, 0.9)
    epoch, both, over = curves_page._gains([curves_page.selection(r) for r in runs.values()])
    assert epoch == pytest.approx([0.1, 0])
    assert both == pytest.approx([0.2, 0])
    assert over == pytest.approx([0.15, 0.4])


def test_choosing_on_the_test_set_never_loses():
    draw = np.random.default_rng(0)
    for _ in range(50):
        points = {(step, score): draw.random() for step in (1, 2, 4) for score in curves.SCORES}
        gains = curves_page._gains([curves_page.selection(Run(points, {}, 4.0, 1.0))])
        assert min(g[0] for g in gains) >= 0
        assert gains[1][0] >= gains[0][0]  # more to choose from


def test_lines_of_other_data_take_the_place_of_earlier_ones():
    again = [a_line(8, s, 0.6, data_sha256="c") for s in curves.SCORES]
    runs = curves_page.runs_of(made_up() + again)
    by_seed = runs[Configuration("dia", "cpu", 32, 8)]["pneumoniamnist"]
    assert set(by_seed[0].test.values()) == {0.6}
    assert len(by_seed[1].test) == 14


def test_page_and_figure_are_of_the_ledger_alone(tmp_path, monkeypatch):
    ledger, page = tmp_path / "curves.jsonl", tmp_path / "findings.md"
    ledger.write_text("".join(json.dumps(r | {"protocol": "curve"}) + "\n" for r in made_up()))
    page.write_text("before\n<!-- CURVES:begin -->\n<!-- CURVES:end -->\nafter\n")
    monkeypatch.setattr(curves_page, "PAGE", page)
    monkeypatch.setattr(curves_page, "FIGURE", tmp_path / "curves.png")
    curves_page.draw(ledger)
    text = page.read_text()
    assert "| 2 | 0.800 ± 0.141 | 0.625 ± 0.177 |" in text
    assert "| 0.850 ± 0.071 (+0.050) | 0.900 ± 0.000 (+0.100, +0.275) | 0.750 ± 0.212 |" in text
    assert "below the paper's value in 1 of 1 rows" in text  # .800 against .903
    assert "chosen on the test set it would still be in 1." in text  # .900
    assert "took 1.00 (1.00 to 1.00) seconds a step" in text
    assert "In 1 of 2 runs the published score was greatest before the last step." in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    curves_page.draw(ledger)
    assert page.read_text() == text
    longer = [a_line(step, k, 0.85, steps=32, seed=1) for step in (16, 32) for k in curves.SCORES]
    with ledger.open("a") as file:
        file.writelines(json.dumps(r | {"protocol": "curve"}) + "\n" for r in longer)
    curves_page.draw(ledger)
    # seed 0 has one length only
    assert "pneumoniamnist, dia, 32 px, seed 1: 0.900 (8), 0.850 (32). From" in page.read_text()
    assert "it changed by -0.050 (-0.050 to -0.050)." in page.read_text()


def test_a_set_at_128_px_stands_beside_the_rows_of_the_same_images():
    assert curves_page._images("sarscov2ct-128") == "sarscov2ct" == curves_page._images("sarscov2ct")
    runs = curves_page.runs_of([a_line(8, s, 0.5, dataset="sarscov2ct-128") for s in curves.SCORES])
    (configuration,) = runs
    assert curves_page._paper(configuration, "sarscov2ct-128") == (0.851, 0.03)
    others = curves_page.beside(curves_page.RUNS, runs)
    assert others["sarscov2ct-128"].best == others["sarscov2ct"].best
    assert others["sarscov2ct-128"].best is not None
    assert others["sarscov2ct-128"].shorter == {}
