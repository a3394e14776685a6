"""What others report on the same data sets, and what choosing the epoch on the test set is worth."""

import csv
import json
import re
from pathlib import Path

import pytest

from dia.benchmark.choice import choices, choices_before, longer
from dia.benchmark.published import REFERENCES, paper_table, references
from dia.benchmark.results import benchmark_results
from dia.core.errors import DataError
from dia.data.datasets import CATALOG
from dia.detectors.registry import METHODS
from dia.report.benchmark.extras import _longer

FINDINGS = Path(__file__).parents[2] / "docs/findings.md"
LEDGER = Path(__file__).parents[2] / "results/epoch-choice.jsonl"


@pytest.mark.parametrize("row", references(), ids=lambda r: f"{r.dataset}-{r.method}-{r.value}")
def test_every_reference_is_of_a_known_set_and_has_a_source(row):
    assert row.dataset in CATALOG
    assert 0 < row.value <= 1
    assert row.metric == "image AUROC"
    assert row.source
    assert row.read_in
    assert row.normals is None or row.normals >= 0
    assert row.year is None or 2017 < row.year < 2100


def test_references_are_those_of_the_file_once_each_of_a_publication():
    with REFERENCES.open(newline="") as file:
        lines = list(csv.reader(file))
    assert {len(line) for line in lines} == {10}
    assert len(references()) == len(lines) - 1 == len(set(references()))
    assert not [r for r in references() if "notes" in r.source]  # a publication, whoever wrote it down
    best = max(r.value for r in references() if r.dataset == "oct2017")
    assert best > max(row.aurocs["oct2017"][0] for row in paper_table().values())


def line(method, dataset, steps, auroc, seed=0, of=200):
    facts = {
        "dataset": dataset, "method": method, "preset": "cpu", "seed": seed, "auroc": auroc,
        "auroc_ci": [0.1, 0.9], "ap": 0.5, "fit_seconds": 1.0, "score_images_per_second": 1.0,
        "peak_memory_mb": 1.0, "device": "cpu", "weights": "none", "data_sha256": "0" * 64,
        "settings_hash": "0" * 16, "commit": None, "versions": {}, "revision": 1, "settings": {},
        "weights_kind": "none", "holdout": 0.2,
    }  # fmt: skip
    return json.dumps(facts | {"choice": {"steps": steps, "of": of}})


def test_the_worth_is_the_best_look_less_the_last(tmp_path):
    """Worked by hand: a gains .2 on one set and nothing on the other; b's training is not whole."""
    file = tmp_path / "l.jsonl"
    aurocs = {("a", "one"): (0.7, 0.9, 0.8, 0.7), ("a", "two"): (0.5, 0.5, 0.5, 0.6), ("b", "one"): (1, 1, 1)}
    made = [
        line(method, dataset, 50 * k, auroc)
        for (method, dataset), four in aurocs.items()
        for k, auroc in enumerate(four, 1)
    ]
    file.write_text("\n".join(reversed(made)) + "\n")  # whatever the order
    (worth,) = choices(file).values()
    assert (worth.mean, worth.greatest) == pytest.approx((0.1, 0.2))
    assert (worth.looks, worth.trainings, set(worth.datasets)) == (4, 2, {"one", "two"})
    file.write_text("\n".join([*made, *(line("b", "one", 25 * k, 0.4, 1, 100) for k in (1, 2, 3, 4))]) + "\n")
    assert choices(file)["b"].greatest == 0


def test_a_longer_training_is_paired_with_the_run_that_differs_in_its_steps_alone(tmp_path):
    def run(method, seed, steps, auroc, **settings):
        facts = json.loads(line(method, "one", steps, auroc, seed, of=steps))
        return facts | {"settings": settings | {"steps": steps}}

    table = [run("a", 0, 200, 0.6), run("a", 1, 200, 0.7), run("b", 0, 100, 0.5, size=64)]
    table.append(run("c", 0, 200, 1))
    table.append(run("d", 0, 200, 0.5) | {"settings": None})  # a line of before settings were kept
    longer_ones = [
        run("a", 0, 1000, 0.65), run("a", 1, 1000, 0.6), run("a", 0, 400, 0.9),  # the longest counts
        run("b", 0, 500, 0.9, size=32),  # another size: not the same run
        run("c", 0, 200, 1) | {"choice": {"steps": 200, "of": 200}},  # the table's own length
        run("c", 0, 500, 1) | {"choice": {"steps": 500, "of": 1000}},  # a look, and not the end
        run("d", 0, 1000, 0.9),
    ]  # fmt: skip
    file = tmp_path / "l.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in longer_ones))
    found = longer(file, table)
    assert set(found) == {"a"}
    assert (found["a"].steps, found["a"].times) == (200, 5)
    assert found["a"].pairs == {("one", 0): (0.6, 0.65), ("one", 1): (0.7, 0.6)}
    assert choices(file) == {}  # one look at a training tells nothing of choosing
    shown = _longer(found, benchmark_results(table[:3]))
    assert [str(cell) for cell in shown.rows[0]] == [
        *("a", "200 → 1000", "0.650", "0.625", "−0.025", "−0.100 to +0.050", "–", "one"),
    ]


def test_a_ledger_of_other_runs_is_refused_and_none_is_empty(tmp_path):
    assert choices(tmp_path / "absent.jsonl") == {}
    plain = json.loads(line("a", "one", 50, 0.5))
    del plain["choice"]
    (tmp_path / "l.jsonl").write_text(json.dumps(plain) + "\n")
    with pytest.raises(DataError, match=r"l\.jsonl:1: no field choice"):
        choices(tmp_path / "l.jsonl")


def test_the_kept_ledger_is_of_small_sets_and_never_gains_less_than_nothing():
    found = choices(LEDGER)
    assert found
    assert set(found) <= set(METHODS)
    for worth in found.values():
        assert 0 <= worth.mean <= worth.greatest <= 1
        assert set(worth.datasets) <= {"headct-128", "brainmri-128", "breastmnist-128"}


def test_what_was_known_of_csi_and_dia_is_what_the_page_says():
    found = choices_before().values()
    n = sum(w.trainings for w in found)
    mean, most = sum(w.mean * w.trainings for w in found) / n, max(w.greatest for w in found)
    said = re.search(
        r"test set adds ([\d.]+) on average \(0 to ([\d.]+), (\d+) runs of", FINDINGS.read_text()
    )
    assert said.groups() == (f"{mean:.2f}"[1:], f"{most:.2f}"[1:], str(n))
