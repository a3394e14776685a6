"""The benchmark's results against numbers worked by hand."""

import pytest

from dia.benchmark.results import benchmark_results, source_of
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
    assert results.aurocs["dia+"] == pytest.approx({source_of("breastmnist"): 0.85, "headct-128": 0.8})
    assert results.aurocs["dia"] == {"headct-128": 0.8}
    csi, dia = sorted(against(results.aurocs, "dia+"), key=lambda a: a.method)
    assert (csi.datasets, dia.datasets) == ((source_of("breastmnist"), "headct-128"), ("headct-128",))
    assert csi.difference == pytest.approx(-0.175)


def test_the_cost_of_a_run_counts_features_that_another_run_computed():
    rows = [
        line(
            method="dia", dataset="a", seed=0, cpu_seconds=10.0, shared_seconds=50.0, shared_cpu_seconds=5.0
        ),
        line(method="dia", dataset="a", seed=1, cpu_seconds=12.0),
        line(method="dia", dataset="a", seed=2, cpu_seconds=None),
        line(
            method="dia", dataset="a", seed=3, cpu_seconds=1.0, shared_seconds=50.0
        ),  # of before they were kept
    ]
    (row,) = benchmark_results(rows).rows
    assert row.cells["a"].cost("processor") == 13.5  # the median of 15 and 12
    assert row.average("processor") == 13.5
    (more,) = benchmark_results([*rows, line(method="dia", dataset="b")]).rows
    assert more.average("processor") is None  # a mean over other sets would compare with no other row's


def test_seconds_of_a_whole_run_count_shared_features_as_those_of_its_fit_do():
    rows = [line(method="dia", dataset="a", fit_seconds=60.0, run_seconds=20.0, shared_seconds=50.0)]
    (row,) = benchmark_results(rows).rows
    assert row.cells["a"].cost("run") == 70.0
    assert row.cells["a"].cost("fit_seconds") == 60.0
