"""Who is best, by how much and how often: by hand; controls count as no method; a grid's own runs alone."""

import numpy as np
import pytest
from test_benchmark_page import grid, line

from dia.benchmark.grid import benchmark_grid
from dia.benchmark.results import benchmark_results
from dia.evaluate.compare import Compared, Difference
from dia.report.benchmark.dots import LETTER, LINE, NARROW, auroc_scale, labels, log_scale, plot
from dia.report.benchmark.extras import Extras
from dia.report.benchmark.lines import RunsOf
from dia.report.benchmark.page import write_benchmark_report
from dia.report.benchmark.sentences import counts, sentences, spent
from dia.report.benchmark.standing import standing
from dia.report.benchmark.tables import architecture, cost_table, standing_table, trained
from dia.report.style import environment
from dia.report.table import table
from dia.report.text import duration

LITE = "lite0 (EfficientNet-Lite, ImageNet, sha256 00)"


def lite(method, dataset, auroc, **more):
    return line(method, dataset, auroc, weights=LITE, weights_kind="lite0", **more)


def words(stands):
    return str(environment().get_template("words.j2").module.counts(stands, "dia+"))


def test_the_order_the_lead_and_the_counts_by_hand():
    results = benchmark_results(
        grid(
            trivial__hog=[0.70, 0.60, 0.90], trivial__lbp=[0.50, 0.80, 0.50], dia=[0.80, 0.70, 0.85],
            csi=[0.75, 0.90, 0.60], cfa=[0.99, 0.99],
        )
    )  # fmt: skip
    found = standing(results, {})
    # mean ranks 5/3, 6/3, 7/3; the last lacks a data set
    assert [s.row.name for s in found.rows] == ["dia", "csi", "trivial:hog", "cfa"]
    assert found.untrained.row.name == "trivial:hog"
    assert [s.row.name for s in found.whole] == ["dia", "csi"]
    assert found.reference == pytest.approx((0.70 + 0.80 + 0.90) / 3)
    assert found.lead.mean == pytest.approx((0.05 - 0.20 + 0.25) / 3)
    assert (found.lead.higher, found.lead.sets) == (2, 3)
    # above the best untrained row: dia on the first, csi on the first two, cfa on both it has
    assert found.count(found.methods) == (5, None, 8)  # no raw scores: not known
    assert found.count([s for s in found.methods if s.row.name == "csi"]) == (2, None, 3)
    assert "not known, for lack of raw scores" in words(found)
    assert "interval" not in counts(found)
    assert sentences(found)[0].startswith("3 of 8 results")


def test_the_interval_of_a_mean_adds_in_squares():
    """Half-widths 0.05 below and 0.04 above on each of 4 sets: halved on their mean."""
    (s,) = standing(benchmark_results(grid(dia=[0.6, 0.7, 0.8, 0.9])), {}).methods
    assert s.ci == pytest.approx((0.75 - 0.025, 0.75 + 0.02))


def test_clear_of_chance_is_a_paired_interval_above_zero_of_a_row_that_is_above():
    results = benchmark_results(grid(trivial__hog=[0.6, 0.6], dia=[0.9, 0.61], csi=[0.59, 0.7]))
    intervals = {"dia": (0.1, -0.1), "csi": (0.1, 0.01)}  # lower ends on either data set
    made = {
        d: {"trivial:hog": [Compared(m, "trivial:hog", Difference(0.2, low[i], 0.5, 0.1), 0.1, (0,))
                            for m, low in intervals.items()],
            "csi": [Compared("dia", "csi", Difference(0.2, 0.1, 0.5, 0.1), 0.1, (0,))]}
        for i, d in enumerate(results.datasets)
    }  # fmt: skip
    found = standing(results, made)
    assert {s.row.name: s.clear for s in found.methods} == {
        "dia": ("pneumoniamnist",), "csi": ("breastmnist",),
    }  # fmt: skip
    assert found.count(found.methods) == (3, 2, 4)
    assert found.count(found.methods, ["breastmnist"]) == (2, 1, 2)
    assert found.count([]) == (0, 0, 0)
    assert "2 of them by more than the paired 95 % interval" in words(found)
    assert counts(found).startswith("3 of 4 results")


def test_another_direction_and_a_control_count_for_nothing():
    lines = grid(trivial__hog=[0.6, 0.6], dia=[0.7, 0.5], csi=[0.65, 0.65])
    before = standing(benchmark_results(lines), {})
    more = [*lines, *grid(control__centre=[0.99, 0.99]), line("dia", "breastmnist-0", 0.9)]
    more += [line("trivial:hog", "breastmnist-0", 0.1)]
    results = benchmark_results(more)
    after = standing(results, {})
    assert after.count(after.methods) == before.count(before.methods) == (3, None, 4)
    assert [s.row.name for s in after.rows] == [s.row.name for s in before.rows]
    assert [s.row.name for s in after.controls] == ["control:centre"]
    (control,) = (r for r in results.rows if r.control)
    assert (control.contends, control.trivial, control.rank, control.gain) == (False, False, None, None)
    assert results.best_trivial["breastmnist"].name == "trivial:hog"
    assert results.ranking.names == ("trivial:hog", "csi", "dia")
    assert [f for f, _ in results.blocks][:2] == ["untrained", "control"]
    assert "control:centre" in [r[0] for r in cost_table(results).rows]


@pytest.mark.parametrize(
    ("other", "related"), [("breastmnist", ""), ("chestxray-128", " 1 of the 1 are of the same sources")]
)
def test_what_is_said_of_the_default_names_its_clear_sets_and_those_of_its_recipe(other, related):
    """Chest X-ray and PneumoniaMNIST have images of one source, so that confirming on one tells less."""
    sets = ("pneumoniamnist", other)
    lines = [*(line("trivial:hog", d, 0.6) for d in sets), *(lite("dia+", d, 0.7) for d in sets)]
    lines[-2]["protocol"] = "confirm"
    made = {
        d: {
            "trivial:hog": [
                Compared("dia+ [lite0]", "trivial:hog", Difference(0.1, low, 0.3, 0.1), 0.1, (0,))
            ]
        }
        for d, low in zip(sets, (0.05, -0.05), strict=True)
    }
    found = standing(benchmark_results(lines), made)
    assert found.default.confirmed == ("pneumoniamnist",)
    said = counts(found)
    assert "`dia+` alone: 2 of 2, 1 of them by more than the paired 95 % interval (pneumoniamnist)." in said
    assert "On the 1 of these on which its recipe was confirmed: 1, 1 of them" in said
    assert (" of the same sources as the others: pneumoniamnist." in said) == bool(related)
    assert related in said
    assert "Mean AUROC over 2 data sets: dia+ 0.700, trivial:hog 0.600." in said


def test_untrained_rows_alone_and_no_complete_method_make_no_best():
    alone = standing(benchmark_results(grid(trivial__hog=[0.6, 0.6])), {})
    assert [r[0].text for r in standing_table(alone).rows] == ["trivial:hog"]
    part = standing(benchmark_results(grid(trivial__hog=[0.6, 0.6], csi=[0.99])), {})
    assert {r[0].mark for r in standing_table(part).rows} == {""}


def test_sets_of_one_source_count_as_one_in_the_tests_over_data_sets():
    """By hand: breast ultrasound has two sets; their means are dia .75, csi .65, hog .60."""
    lines = [
        line(m, d, a)
        for m, aurocs in {
            "trivial:hog": (0.5, 0.7, 0.9),
            "dia": (0.9, 0.6, 0.8),
            "csi": (0.6, 0.7, 0.7),
        }.items()
        for d, a in zip(("breastmnist-128", "busi-128", "headct-128"), aurocs, strict=True)
    ]
    results = benchmark_results(lines)
    assert results.ranking.sources == ("breast ultrasound of Al-Dhabyani", "headct-128")
    assert results.aurocs["dia"] == pytest.approx(
        {"breast ultrasound of Al-Dhabyani": 0.75, "headct-128": 0.8}
    )
    assert {r.name: r.rank for r in results.rows} == {"dia": 1.5, "csi": 2.5, "trivial:hog": 2.0}
    said = str(environment().get_template("words.j2").module.ranking(results))
    assert "Friedman's test over 2 sources of 3 data sets" in " ".join(said.split())
    without = benchmark_results([r for r in lines if r["dataset"] != "headct-128"])
    assert "needs two of different sources" in without.why_no_ranking


def test_a_row_is_named_by_its_method_where_it_is_its_only_row():
    lines = [
        line("dia+", "breastmnist", 0.7),
        lite("dia+", "breastmnist", 0.8),
        lite("cfa", "breastmnist", 0.6),
    ]
    found = standing(benchmark_results(lines), {})
    assert {found.short(s.row) for s in found.rows} == {"dia+", "dia+ [lite0]", "cfa"}


def test_whether_the_architecture_is_the_published_one_follows_from_class_and_settings():
    lines = [lite(m, "breastmnist", 0.6) for m in ("patchcore", "kdad", "dia+")]
    lines += [
        line(m, "breastmnist", 0.6) for m in ("dia", "csi", "ganomaly", "trivial:hog", "control:centre")
    ]
    lines += [line("cfa", "breastmnist", 0.6), line("fastflow", "breastmnist", 0.6)]
    said = {r.method: architecture(r) for r in benchmark_results(lines).rows}
    assert said == {
        "patchcore": "no, EfficientNet-Lite0 in its place", "kdad": "no, EfficientNet-Lite0 in its place",
        "dia+": "yes", **dict.fromkeys(("dia", "csi", "ganomaly"), "yes in kind, small"),
        "trivial:hog": "–", "control:centre": "–",
        "cfa": "no, resnet18 in the place of wide_resnet50_2", "fastflow": "yes",
    }  # fmt: skip


def test_steps_are_those_of_the_settings():
    lines = [line("cfa", "breastmnist", 0.6, settings={"steps": 200, "batch": 4})]
    lines += [line("kdad", "breastmnist", 0.6), line("trivial:hog", "breastmnist", 0.6)]
    said = {r.method: trained(r) for r in benchmark_results(lines).rows}
    assert said == {"cfa": "200 steps of 4", "kdad": "2 epochs", "trivial:hog": "–"}


def test_what_all_runs_took_and_what_sharing_saved():
    lines = [line("cfa", "breastmnist", 0.6, s, run_seconds=5400.0, cpu_seconds=50.0) for s in (0, 1)]
    assert spent(benchmark_results(lines)) == "The 2 runs of this page took 3.0 h, 100 s of processor time."
    lines[0]["shared_seconds"] = 600.0
    assert "saved 10 min more" in spent(benchmark_results(lines))
    assert spent(benchmark_results(grid(dia=[0.5]))) == ""
    some = [*lines, line("cfa", "breastmnist", 0.6, 2)]  # from before times were kept
    assert spent(benchmark_results(some)).startswith("The 2 of 3 runs of this page that tell their time took")
    del lines[1]["cpu_seconds"]
    assert "took 3.0 h, 50 s of processor time in 1 of them." in spent(benchmark_results(lines))
    assert duration(119.6) == "120 s"


def test_a_scale_holds_its_values_and_no_more_than_a_tick_beyond():
    rng = np.random.default_rng(0)
    for values in (rng.uniform(0.2, 1, 5), [0.5], [1.0], [0.0, 1.0]):
        s = auroc_scale(values)
        assert s.low <= min(values) < max(s.low + 0.1 + 1e-9, min(values) + 1e-9)
        assert all(0 <= s.at(v) <= 100 for v in values)
        assert (s.at(s.low), s.at(s.high)) == (0, 100)
    for values in (10 ** rng.uniform(-2, 4, 6), [7.0], [1.0, 1.0]):
        s = log_scale(values)
        assert s.low <= min(values) <= max(values) <= s.high
        assert [s.at(t) for t in s.ticks] == sorted({s.at(t) for t in s.ticks})
    assert log_scale([1, 100]).at(10) == 50


COSTS = {  # images/s and mean AUROC of one page, where two names faced each other and met in a wide window
    "dia+": (59, 0.860), "msc": (53, 0.800), "patchcore": (37, 0.777), "rd4ad": (33, 0.756),
    "trivial:hog": (610, 0.770), "transformaly": (60, 0.704), "kdad": (50, 0.663), "fastflow": (47, 0.707),
    "csi": (69, 0.669), "cfa": (15, 0.677), "dia": (92, 0.663), "uflow": (43, 0.659), "cflow": (23, 0.536),
    "efficientad": (5.3, 0.584), "ganomaly": (147, 0.549), "uniad": (50, 0.548),
}  # fmt: skip


@pytest.mark.parametrize("width", [NARROW[0], 330, 420, 560, 1200])
@pytest.mark.parametrize("drawn", [False, True])
def test_names_of_points_cover_neither_each_other_nor_points(width, drawn):
    rng = np.random.default_rng(1)
    points = [(float(x), float(y)) for x, y in rng.uniform(10, 90, (16, 2))]
    names = [f"method{i}" for i in range(16)]
    placed = labels(points, names)
    if drawn:
        shown = plot([(name, *at, "method") for name, at in COSTS.items()], "images/s").points
        points, names, placed = [p[1:3] for p in shown], [p.name for p in shown], [p.label for p in shown]
    at = [(x / 100 * width, y / 100 * NARROW[1]) for x, y in points]
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    for (x, y), name, label in zip(at, names, placed, strict=True):
        left = x + label.dx - (0 if label.right else LETTER * len(name))
        top = y + label.dy - LINE / 2
        boxes.append((left, top, left + LETTER * len(name), top + LINE))

    def apart(a, b):
        return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

    count = len(points)
    assert all(apart(boxes[i], boxes[j]) for i in range(count, 2 * count) for j in range(i) if j != i - count)


def test_of_a_ledger_a_grid_shows_its_own_runs_and_says_what_is_missing():
    asked, _ = benchmark_grid(
        ["breastmnist", "pneumoniamnist"], ["dia+", "trivial:hog"], [0, 1], "cpu", weights=["lite0"]
    )
    of = RunsOf(asked)
    mine = [lite("dia+", "pneumoniamnist", 0.7), line("trivial:hog", "breastmnist", 0.6)]
    others = [
        line("dia+", "breastmnist", 0.9),
        line("trivial:hog", "breastmnist", 0.6, 7),
        line("cfa", "busi", 0.5),
    ]
    assert of.lines([*others, *mine]) == [mine[1], mine[0]]
    assert of.missing([*others, *mine]) == ["2 of the grid's 8 runs are in the ledger. Seeds without any: 1."]
    full = [lite("dia+", d, 0.5, seed=s) for d in of.sets for s in (0, 1)]
    full += [line("trivial:hog", d, 0.5, s) for d in of.sets for s in (0, 1)]
    assert of.missing(full) == []
    failed = {("breastmnist", "dia+", w, 0): "why" for w in ("lite0", "none")}
    assert list(of.failures(failed)) == [("breastmnist", "dia+", "lite0", 0)]


def test_tables_from_elsewhere_stand_in_both_pages_where_they_are_given(tmp_path):
    lines = grid(trivial__hog=[0.9, 0.8], dia=[0.8, 0.7], csi=[0.7, 0.75])
    names = ("references", "epochs", "equal", "long")
    extras = Extras(*(table([name], [[f"{name} value"]]) for name in names))
    write_benchmark_report(tmp_path / "with", lines, tmp_path, extras=extras, notes=["A note."])
    write_benchmark_report(tmp_path / "without", lines, tmp_path)
    for name in ("benchmark.md", "benchmark.html"):
        given, none = ((tmp_path / folder / name).read_text() for folder in ("with", "without"))
        for words in ("references value", "epochs value", "equal value", "long value", "A note."):
            assert words in given
            assert words not in none
