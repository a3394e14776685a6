"""The benchmark's results against numbers worked by hand."""

import pytest

from dia.benchmark.results import OverUntrained, benchmark_results, cells_above_untrained
from dia.evaluate.compare import Compared, Difference
from dia.evaluate.ranking import against


def line(**changes):
    return {
        "dataset": "breast", "method": "dia", "preset": "cpu", "seed": 0, "auroc": 0.8,
        "auroc_ci": [0.7, 0.9], "ap": 0.5, "fit_seconds": 10.0, "score_images_per_second": None,
        "weights": "none", "weights_kind": "none", "data_sha256": "d", "settings": {}, **changes,
    }  # fmt: skip


def test_an_entry_by_hand():
    rows = [
        line(auroc=0.8),
        line(seed=1, auroc=0.9, auroc_ci=[0.8, 1.0], ap=0.7, fit_seconds=20),
        line(auroc=0.7, auroc_ci=[0.6, 0.8]),  # the first run again: it counts
    ]
    (row,) = benchmark_results(rows).rows
    entry = row.cells["breast"]
    assert len(entry.runs) == 2
    assert (entry.mean, entry.ap) == pytest.approx((0.8, 0.6))
    assert entry.std == pytest.approx(0.02**0.5)  # (.1² + .1²) / 1
    assert entry.ci == pytest.approx((0.7, 0.9))
    assert entry.cost("fit_seconds") == 15
    assert entry.cost("score_images_per_second") is None
    assert benchmark_results(rows[:1]).rows[0].cells["breast"].std is None


@pytest.mark.parametrize(
    "change", [{"preset": "paper"}, {"data_sha256": "e"}, {"settings": {"a": 1}, "seed": 0}]
)
def test_unlike_runs_are_not_averaged(change):
    with pytest.raises(ValueError, match="mixes"):
        benchmark_results([line(), line(**{"seed": 1, **change})])


def test_the_other_direction_is_no_data_set_more_when_methods_are_compared():
    def of(method, *aurocs):
        sets = ("breastmnist", "breastmnist-0", "headct-128")
        return [line(method=method, dataset=d, auroc=a) for d, a in zip(sets, aurocs, strict=True)]

    rows = [*of("dia+", 0.9, 0.1, 0.8), *of("csi", 0.7, 0.9, 0.6), line(dataset="headct-128", seed=3)]
    results = benchmark_results([*rows, line(method="dia+", dataset="breastmnist", auroc=0.8, seed=1)])
    assert results.aurocs["dia+"] == pytest.approx({"breastmnist": 0.85, "headct-128": 0.8})
    assert results.aurocs["dia"] == {"headct-128": 0.8}
    csi, dia = sorted(against(results.aurocs, "dia+"), key=lambda a: a.method)
    assert (csi.datasets, dia.datasets) == (("breastmnist", "headct-128"), ("headct-128",))
    assert csi.difference == pytest.approx(-0.175)


def test_results_above_the_best_untrained_row_by_hand():
    def of(method, *aurocs):
        return [line(method=method, dataset=d, auroc=a) for d, a in zip("abc", aurocs, strict=False)]

    rows = [
        *of("trivial:hog", 0.6, 0.9), *of("trivial:std", 0.7, 0.5), *of("control:length", 0.9, 0.95),
        *of("dia", 0.8, 0.9), *of("csi", 0.65, 0.95, 0.99),
        line(method="csi", dataset="a", auroc=0.85, seed=1),
    ]  # fmt: skip
    results = benchmark_results(rows)  # csi has a mean of .75 on a; c has no untrained row

    def pair(name, low, high):
        return Compared(name, "trivial:std", Difference((low + high) / 2, low, high, 0.5), 0.5, (0,))

    found = cells_above_untrained(results, {"a": {"trivial:std": [pair("dia", 0.01, 0.2)], "csi": []}})
    assert found[:2] == (3, 4)  # dia on b is equal
    assert found[3:] == (1, 1)
    by_name = {(c.method, c.dataset): c for c in found.cells}
    assert by_name["csi", "a"] == OverUntrained("csi", "a", "trivial:std", pytest.approx(0.05), None)
    assert by_name["dia", "b"][2:] == ("trivial:hog", 0, None)
    assert by_name["dia", "a"].clear
    unclear = {"a": {"trivial:std": [pair("dia", -0.01, 0.2), pair("csi", -0.3, -0.1)]}}
    assert cells_above_untrained(results, unclear)[3:] == (0, 2)
    assert cells_above_untrained(benchmark_results(of("dia", 0.9)))[:2] == (0, 0)
