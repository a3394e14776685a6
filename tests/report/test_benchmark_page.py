"""The benchmark's table and page: what is marked, beside what, said of whom, and nothing that runs."""

import csv
import io
import re
from base64 import b64encode
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest
from pages import EVIL, Page

from dia.benchmark.published import DIRECTIONS, paper_gains, paper_table
from dia.benchmark.results import _in_order, _once, about, benchmark_results, paper_name
from dia.benchmark.runs import scores_path
from dia.core.errors import DataError
from dia.data.datasets import CATALOG
from dia.detectors.registry import METHODS, detector_class
from dia.evaluate.compare import holm, paired_difference
from dia.report.benchmark import figures
from dia.report.benchmark.page import write_benchmark_report
from dia.report.benchmark.readme import marked_tables
from dia.report.benchmark.scores import comparisons, load_scores, pairs_table
from dia.report.benchmark.sentences import direction_notes, sentences, sizes
from dia.report.benchmark.standing import standing
from dia.report.benchmark.tables import CSV_FIELDS, failure_table, gain_table, long_table, results_table
from dia.report.render import csv as csv_of
from dia.report.render import markdown
from dia.report.style import environment

SCRATCH = "none (trained from scratch on the normals)"


def line(method, dataset, auroc, seed=0, weights=SCRATCH, **changes):
    return {
        "dataset": dataset,
        "method": method,
        "weights": weights,
        "seed": seed,
        "preset": "cpu",
        "auroc": auroc,
        "auroc_ci": [auroc - 0.05, auroc + 0.04],
        "ap": auroc,
        "fit_seconds": 10.0,
        "cpu_seconds": 12.0,
        "score_images_per_second": 100.0,
        "peak_memory_mb": 500.0,
        "device": "cpu",
        "image_shape": [28, 28, 1],
        "settings_hash": f"{method}-{weights}",
        "revision": detector_class(method).revision if method in METHODS else 1,
        "settings": {},
        "weights_kind": next((k for k in ("none", "imagenet", "dia") if weights.startswith(k)), "file"),
        "holdout": 0.2,
        "data_sha256": dataset * 8,
        **changes,
    }


def grid(**by_method):
    """Lines from lists of AUROCs on pneumoniamnist, breastmnist, …; None is no run."""
    names = ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches")
    return [
        line(m.replace("__", ":"), d, a)
        for m, aurocs in by_method.items()
        for d, a in zip(names, aurocs, strict=False)
        if a is not None
    ]


def as_markdown(results, compact=False):
    return markdown(results_table(results, compact))


def as_csv(results):
    return csv_of(long_table(results))


def ranking_words(results):
    return " ".join(str(environment().get_template("words.j2").module.ranking(results)).split())


def row_of(table, name):
    return next(r for r in table.rows if r.name == name)


def test_best_and_second_are_marked_as_shown_with_ties():
    table = benchmark_results(
        grid(trivial__hog=[0.9], dia=[0.9004], csi=[0.8996], ganomaly=[0.85], cfa=[0.8])
    )
    marks = {r.method: r.cells["pneumoniamnist"].mark for r in table.rows}
    assert marks == {"trivial:hog": "best", "dia": "best", "csi": "best", "ganomaly": "second", "cfa": ""}
    text = as_markdown(table)
    assert text.count("**0.900**") == 3
    assert text.count("<ins>0.850</ins>") == 1


def test_untrained_rows_stand_on_top_then_the_papers_families_in_its_order():
    methods = ["dia+", "dia", "patchcore", "trivial:hog", "nobody's", "uniad", "trivial:lbp", "csi"]
    table = benchmark_results([line(m, "breastmnist", 0.6) for m in methods])
    shown = [r.method for r in table.rows]
    assert shown == ["trivial:hog", "trivial:lbp", "uniad", "patchcore", "csi", "dia", "dia+", "nobody's"]
    assert [f for f, _ in table.blocks][:2] == ["untrained", "reconstruction"]


def test_seeds_are_counted_and_their_spread_shown():
    lines = [line("dia", "pneumoniamnist", a, s) for s, a in enumerate((0.6, 0.7, 0.8))]
    lines += [line("csi", "pneumoniamnist", 0.5, 0)]
    table = benchmark_results(lines)
    cell = row_of(table, "dia").cells["pneumoniamnist"]
    assert (cell.mean, cell.std) == pytest.approx((0.7, 0.1))
    assert cell.ci == pytest.approx((0.65, 0.74))
    text = as_markdown(table)
    assert "**0.700 ± 0.100**<br>[0.650, 0.740]<br>paper 0.903 (−0.203)" in text
    assert "<ins>0.500</ins><br>1 of 3 seeds<br>" in text


def test_a_compact_row_counts_its_seeds_once_and_says_where_there_are_fewer():
    lines = [
        line("dia", d, 0.6, seed) for d, n in (("pneumoniamnist", 3), ("sarscov2ct", 2)) for seed in range(n)
    ]
    text = as_markdown(benchmark_results([*lines, line("csi", "pneumoniamnist", 0.5)]), compact=True)
    assert "| method | weights | seeds | pneumoniamnist | sarscov2ct |" in text
    assert "| csi | none | 1 | <ins>0.500</ins><br>paper 0.834 | – |" in text
    (row,) = (r for r in text.splitlines() if r.startswith("| dia "))
    assert row.startswith(
        "| dia | none | 3 | **0.600 ± 0.000**<br>paper 0.903 | **0.600 ± 0.000**<br>2 of 3 seeds<br>"
    )


def test_a_method_has_a_row_for_each_kind_of_weights():
    lines = [line("msc", "breastmnist", 0.5, s, f"none (random, seed {s})") for s in (0, 1)]
    lines += [line("msc", "breastmnist", 0.6, s, f"dia:runs/{s} (sha256 {s}f)") for s in (0, 1)]
    lines += [line("msc", "breastmnist", 0.7, 0, "imagenet (resnet152.tv_in1k via timm)")]
    lines += [line("msc", "breastmnist", 0.8, 0, "/home/me/w.pth (sha256 0a)")]
    rows = {r.name: r.weights for r in benchmark_results(lines).rows}
    assert rows == {
        "msc": "none (random)",
        "msc [dia]": "dia (our own encoder)",
        "msc [imagenet]": "imagenet (resnet152.tv_in1k via timm)",
        "msc [file]": "file w.pth (sha256 0a)",
    }


def test_two_files_of_weights_are_two_rows_and_never_averaged():
    def of_file(sha, auroc, seed):
        weights = f"runs/{sha}.safetensors (sha256 {sha})"
        settings = {"weights": f"sha256:{sha * 8}"}
        return line("patchcore", "breastmnist", auroc, seed, weights, weights_kind="file", settings=settings)

    lines = [of_file("0a1b2c3d", 0.9, 0), of_file("ffeeddcc", 0.6, 1), of_file("ffeeddcc", 0.7, 0)]
    rows = benchmark_results(lines).rows
    means = {r.name: r.cells["breastmnist"].mean for r in rows}
    assert means == {"patchcore [file 0a1b2c3d]": 0.9, "patchcore [file ffeeddcc]": pytest.approx(0.65)}
    (alone,) = benchmark_results(lines[1:]).rows
    assert alone.name == "patchcore [file]"


def test_sizes_are_told_by_data_set_where_they_differ():
    def told(**facts):
        lines = [line("cfa", d, 0.6, **f) for d, f in facts.items()]
        return sizes(row_of(benchmark_results(lines), "cfa"))

    assert told(breastmnist={"size": 256}, phantom={"size": 256}) == "256 px"
    raised = {"size": 256, "adapted": {"size": [64, 256]}}
    assert told(breastmnist=raised, phantom={"size": 64}) == (
        "256 px, size 64 → 256 (breastmnist); 64 px (phantom)"
    )
    others = {d: {"size": 64} for d in ("phantom", "sarscov2ct")}
    assert told(breastmnist=raised, **others) == "64 px; 256 px, size 64 → 256 (breastmnist)"
    assert told(breastmnist={"size": None}) == told(breastmnist={}) == "as they are"


def test_unlike_runs_are_not_averaged():
    with pytest.raises(ValueError, match="several settings"):
        benchmark_results([line("dia", "breastmnist", a, settings={"samples": a}) for a in (0.5, 0.6)])
    with pytest.raises(ValueError, match="at least one line"):
        benchmark_results([])


def test_the_papers_value_stands_beside_the_same_data_only():
    names = ["pneumoniamnist", "sarscov2ct-128", "kvasirseg_patches", "mine-64"]
    cells = row_of(benchmark_results([line("dia", d, 0.8) for d in names]), "dia").cells
    papers = paper_table()["dia"].aurocs
    assert cells["pneumoniamnist"].difference == pytest.approx(0.8 - papers["pneumoniamnist"][0])
    assert cells["pneumoniamnist"].direction == ""
    assert cells["sarscov2ct-128"].paper == papers["sarscov2ct"]
    assert [cells[d].paper for d in ("kvasirseg_patches", "mine-64")] == [None] * 2
    assert paper_name("kvasirseg_patches-128") == "kvasirseg_patches"
    assert "no value of the paper" in about("kvasirseg_patches")
    assert "no value of the paper" in about("mine-64")
    assert "no value of the paper" not in about("breastmnist")


BOTH = ("breastmnist", "breastmnist-0", "sarscov2ct", "sarscov2ct-covid")


def test_the_papers_value_stands_in_both_directions_with_what_is_known_of_them():
    """By hand: the official code, of dia and csi, takes label 0 as normal; of all else nothing is known."""
    lines = [line(m, d, 0.7) for m in ("csi", "dia", "msc") for d in (*BOTH, "sarscov2ct-covid-128")]
    table = benchmark_results(lines)
    told = {
        r.method: [(*c.paper, c.direction, c.difference) for d in BOTH for c in [r.cells[d]]]
        for r in table.rows
    }
    near = pytest.approx
    assert told == {
        "csi": [
            (0.546, 0.03, "other", None), (0.546, 0.03, "likely", near(0.154)),
            (0.785, 0.02, "unknown", near(-0.085)), (0.785, 0.02, "unknown", near(-0.085)),
        ],
        "dia": [
            (0.75, 0.03, "other", None), (0.75, 0.03, "likely", near(-0.05)),
            (0.851, 0.03, "unknown", near(-0.151)), (0.851, 0.03, "unknown", near(-0.151)),
        ],
        "msc": [
            (0.648, 0.01, "unknown", near(0.052)), (0.648, 0.01, "unknown", near(0.052)),
            (0.767, 0.03, "unknown", near(-0.067)), (0.767, 0.03, "unknown", near(-0.067)),
        ],
    }  # fmt: skip
    small = row_of(table, "dia").cells["sarscov2ct-covid-128"]
    assert (small.paper, small.direction) == ((0.851, 0.03), "unknown")
    compact = next(t for t in as_markdown(table, compact=True).splitlines() if t.startswith("| dia "))
    assert re.findall(r"paper [^|<]*(?= \|)", compact) == [
        *("paper 0.750 ⇄", "paper 0.750", "paper 0.851 ?", "paper 0.851 ?", "paper 0.851 ?")
    ]
    full = next(t for t in as_markdown(table).splitlines() if t.startswith("| dia "))
    for shown in ("paper 0.750 ⇄ |", "paper 0.750 (−0.050) |", "paper 0.851 ? (−0.151) |"):
        assert shown in full
    of = {(r["method"], r["dataset"]): r for r in csv.DictReader(io.StringIO(as_csv(table)))}
    assert (of["dia", "breastmnist"]["paper_direction"], of["dia", "breastmnist"]["difference"]) == (
        "other",
        "",
    )
    assert of["dia", "breastmnist-0"]["paper_direction"] == "likely"


def test_marks_of_directions_are_explained_where_they_occur():
    def told(*pairs):
        return direction_notes(benchmark_results([line(m, d, 0.7) for m, d in pairs]))

    assert told(("dia", "pneumoniamnist"), ("dia+", "breastmnist"), ("trivial:hog", "sarscov2ct")) == []
    (likely,) = told(("dia", "breastmnist"))
    assert likely.startswith(
        "⇄: the paper's values of csi and dia on breastmnist most likely belong to breastm"
    )
    assert told(("csi", "breastmnist-0")) == [likely]
    (unknown,) = told(("dia", "sarscov2ct"))
    assert unknown.startswith(
        "?: the direction of the paper's value is not known. sarscov2ct or sarscov2ct-covid"
    )
    assert told(("dia", "sarscov2ct-covid-128")) == [unknown]
    first, second = told(*((m, d) for m in ("csi", "msc") for d in BOTH))
    assert first == likely
    assert "breastmnist or breastmnist-0" in second
    assert "sarscov2ct or sarscov2ct-covid" in second


def test_what_is_said_of_directions_is_of_sets_that_are_known():
    for d in DIRECTIONS:
        assert d.dataset in paper_table()["dia"].aurocs
        assert {d.dataset, d.other} <= set(CATALOG)
        assert CATALOG[d.dataset].path == CATALOG[d.other].path
        assert CATALOG[d.dataset].normal != CATALOG[d.other].normal
        assert d.likely in ("", d.dataset, d.other)
        assert set(d.methods) <= set(paper_table())


def test_the_other_direction_stands_beside_its_set_and_is_no_data_set_more():
    lines = grid(
        trivial__hog=[0.9, 0.6, 0.6], trivial__lbp=[0.5] * 3, dia=[0.8] * 3, csi=[0.7] * 3, cfa=[0.6] * 3
    )
    alone = benchmark_results(lines)
    others = [
        line(m, d, a) for m, a in (("trivial:lbp", 0.99), ("dia", 0.1), ("csi", 0.9)) for d in BOTH[1::2]
    ]
    table = benchmark_results([*lines, *others])
    assert table.datasets == ("pneumoniamnist", *BOTH)
    assert table.once == alone.once == ("pneumoniamnist", "breastmnist", "sarscov2ct")
    assert table.ranking.names == alone.ranking.names == ("trivial:hog", "cfa", "csi", "dia")
    assert table.ranking.left_out == {}
    assert {r.name: (r.rank, r.gain) for r in table.rows} == {r.name: (r.rank, r.gain) for r in alone.rows}
    assert {r[2] for r in gain_table(table).rows} == {"all"}
    assert "so not breastmnist-0, sarscov2ct-covid." in ranking_words(table)
    assert "Friedman's test over 3 data sets" in ranking_words(table)
    row = next(t for t in as_markdown(table, compact=True).splitlines() if t.startswith("| cfa "))
    assert [c == "–" for c in row.strip("| ").split(" | ")[3:]] == [False, False, True, False, True]
    only = benchmark_results(others)
    assert only.once == only.datasets == ("breastmnist-0", "sarscov2ct-covid")
    assert {r.name: r.gain_over for r in only.rows}["dia"] == only.datasets


def test_the_papers_table_is_whole_and_its_marks_corrected():
    papers = paper_table()
    assert len(papers) == 14
    assert all(len(p.aurocs) == 6 for p in papers.values())
    assert {m for p in papers.values() for m, _ in [p.aurocs["oct2017"]]} >= {0.944, 0.803, 0.996}
    corrected = {m for m, p in papers.items() if p.corrected}
    assert corrected == {"uniad", "cflow", "uflow", "fastflow", "kdad", "cfa", "patchcore", "msc"}
    assert {m for m in corrected if not papers[m].mark} == corrected - {"uniad", "cflow"}
    table = benchmark_results([line(m, "breastmnist", 0.6) for m in ("kdad", "rd4ad", "ganomaly", "dia+")])
    printed = {r.method: r.printed for r in table.rows}
    assert printed == {"kdad": "×, but starts from ImageNet", "rd4ad": "✓", "ganomaly": "×", "dia+": "–"}


@pytest.mark.parametrize(("auroc", "beats"), [(0.8, False), (0.79, False), (0.81, True)])
def test_who_does_not_beat_the_untrained_is_named_exactly_then(auroc, beats):
    table = benchmark_results(grid(trivial__hog=[0.8, 0.6], trivial__lbp=[0.7, 0.5], dia=[auroc, 0.9]))
    count, lines = sentences(standing(table, {}))
    assert count.startswith("0 of 2 results" if beats else "1 of 2 results")
    assert lines == (
        []
        if beats
        else [f"pneumoniamnist: dia ({auroc:.3f}) does not beat the best untrained row, trivial:hog (0.800)."]
    )


def test_sentences_say_who_does_and_need_an_untrained_row():
    results = benchmark_results(grid(trivial__hog=[0.8], dia=[0.7], csi=[0.6], cfa=[0.9]))
    _, lines = sentences(standing(results, {}))
    assert lines == [
        "pneumoniamnist: dia (0.700), csi (0.600) do not beat the best untrained row, trivial:hog (0.800); "
        "cfa (0.900) does."
    ]
    assert sentences(standing(benchmark_results(grid(dia=[0.7])), {}))[1] == []


def test_ranks_leave_out_and_name_what_lacks_a_data_set():
    table = benchmark_results(
        grid(
            trivial__hog=[0.9, 0.9, 0.9],
            trivial__lbp=[0.5, 0.5, 0.95],
            dia=[0.8, 0.8, 0.8],
            csi=[0.7] * 3,
            cfa=[0.6, None, 0.6],
        )
    )
    ranking = table.ranking
    assert ranking.names == ("trivial:hog", "csi", "dia")
    assert ranking.left_out == {"cfa": ("breastmnist",)}
    assert {r.name: r.rank for r in table.rows if r.rank} == {"trivial:hog": 1, "dia": 2, "csi": 3}
    words = ranking_words(table)
    assert "cfa (lacks breastmnist)" in words
    assert "3 data sets give these tests little power" in words


def test_one_data_set_alone_has_no_ranks_and_says_so(tmp_path):
    lines = grid(trivial__hog=[0.9], dia=[0.8], csi=[0.7])
    assert benchmark_results(lines).ranking is None
    written = write_benchmark_report(tmp_path, lines, tmp_path / "none")
    assert "critical-difference.svg" not in {p.name for p in written}
    assert "No test over data sets" in (tmp_path / "benchmark.md").read_text()


def test_gain_over_csi_counts_the_data_sets_both_have():
    table = benchmark_results(grid(csi=[0.5, 0.8], dia=[0.6, None], cfa=[0.4, 0.88]))
    rows = {r[0]: r[1:3] for r in gain_table(table).rows}
    assert rows == {
        "dia": ["+20.00\N{NO-BREAK SPACE}%", "pneumoniamnist"],
        "cfa": ["−5.00\N{NO-BREAK SPACE}%", "all"],
    }
    assert 100 * paper_gains()["dia"] == pytest.approx(18.93, abs=5e-3)
    assert gain_table(benchmark_results(grid(dia=[0.6]))).rows == []


def test_a_gain_over_an_auroc_of_0_is_none():
    table = benchmark_results(grid(csi=[0.0, 0.5], dia=[0.5, 0.6]))
    assert row_of(table, "dia").gain == pytest.approx(0.2)
    assert row_of(table, "dia").gain_over == ("breastmnist",)


def test_csv_comes_back_in_full():
    lines = [line("dia", "pneumoniamnist", a, s) for s, a in enumerate((1 / 3, 2 / 3))]
    lines += [line('a,"b"\nc', "kvasirseg_patches", 0.6, size=64, adapted={"n_images": [9, 5]})]
    table = benchmark_results(lines, {("breastmnist", "cfa", "imagenet", 1): "no weights"})
    rows = list(csv.DictReader(io.StringIO(as_csv(table).removeprefix("\ufeff"))))
    assert tuple(rows[0]) == CSV_FIELDS
    of = {(r["method"], r["dataset"]): r for r in rows}
    assert len(of) == 3
    dia = of["dia", "pneumoniamnist"]
    cell = row_of(table, "dia").cells["pneumoniamnist"]
    assert (float(dia["auroc"]), float(dia["auroc_std"])) == (cell.mean, cell.std)
    assert (float(dia["paper"]), float(dia["difference"])) == (0.903, cell.difference)
    assert (dia["seeds"], dia["image_shape"], dia["mark"]) == ("0 1", "28x28x1", "best")
    other = of['a,"b"\nc', "kvasirseg_patches"]
    assert (other["seen_at"], other["paper"], other["auroc_std"]) == ("64 px, n images 9 → 5", "", "")
    assert of["cfa", "breastmnist"]["failed"] == "seed 1: no weights"
    assert of["cfa", "breastmnist"]["auroc"] == ""


def kept(folder, lines, n=60, other=()):
    """Scores with about the AUROC of each line; those of methods in `other` on other images."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for r in lines:
        labels = (np.arange(n) % (3 if r["method"] in other else 2) == 0).astype(np.int8)
        scores = rng.normal(size=n) + 2 * labels * r["auroc"]
        np.savez(scores_path(folder, r), scores=scores, labels=labels)


def test_paired_differences_are_of_common_seeds_and_corrected(tmp_path):
    lines = [line(m, "breastmnist", 0.7, s) for m in ("dia", "csi", "trivial:hog") for s in (0, 1, 2)]
    lines += [line("cfa", "breastmnist", 0.6, 1), line("kdad", "breastmnist", 0.6, 0)]
    lines += [line("uniad", "breastmnist", 0.6, 0)]
    kept(tmp_path, [r for r in lines if r["method"] != "kdad"], other=("uniad",))
    table = benchmark_results(lines)
    scores = load_scores(table, tmp_path)
    assert (scores["breastmnist"].absent, scores["breastmnist"].others) == (("kdad",), ("uniad",))
    trivial, csi = comparisons(table, scores)["breastmnist"].values()
    assert ({c.second for c in trivial}, {c.second for c in csi}) == ({"trivial:hog"}, {"csi"})
    assert [(c.first, c.seeds) for c in csi] == [("cfa", (1,)), ("dia", (0, 1, 2))]
    read = [[np.load(scores_path(tmp_path, r)) for r in lines if r["method"] == m] for m in ("dia", "csi")]
    wanted = paired_difference(read[0][0]["labels"], *([k["scores"] for k in side] for side in read))
    assert csi[1].difference == pytest.approx(wanted)
    np.testing.assert_allclose([c.p_holm for c in csi], holm([c.difference.p for c in csi]))
    every = list(csv.DictReader(io.StringIO(csv_of(pairs_table(scores)))))
    assert [(r["first"], r["second"]) for r in every] == list(combinations(scores["breastmnist"].rows, 2))
    (one,) = (r for r in every if {r["first"], r["second"]} == {"dia", "csi"})
    assert abs(float(one["difference"])) == pytest.approx(abs(wanted.value))
    assert float(one["p_holm"]) >= float(one["p"]) == pytest.approx(wanted.p)
    assert one["seeds"] == "0 1 2"


@pytest.mark.parametrize(
    "held", [b"PK\x03\x04 cut off", {"scores": np.zeros(4)}, {"scores": np.zeros(4), "labels": np.zeros(3)}]
)
def test_damaged_scores_are_named_with_the_remedy(tmp_path, held):
    (of,) = lines = grid(dia=[0.7])
    path = scores_path(tmp_path, of)
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        np.savez(path, **held)
    with pytest.raises(DataError, match=rf"{re.escape(path.name)}: no raw scores \(.*delete it"):
        load_scores(benchmark_results(lines), tmp_path)


def test_one_anomalous_image_tells_a_difference_and_no_interval(tmp_path):
    lines = grid(trivial__hog=[0.6], dia=[0.9])
    kept(tmp_path, lines, n=2)  # one of either class
    written = write_benchmark_report(tmp_path / "new" / "folder", lines, tmp_path)
    page = next(p for p in written if p.name == "benchmark.md").read_text()
    assert not re.search(r"\bnan\b", page)


def test_data_sets_whose_names_no_file_can_hold_have_curves_of_their_own(tmp_path):
    lines = [
        line(m, d, a) for d in ("肺", "脑", "a b", "a_b") for m, a in (("trivial:hog", 0.6), ("dia", 0.9))
    ]
    kept(tmp_path, lines)
    written = write_benchmark_report(tmp_path / "page", lines, tmp_path)
    names = [p.name for p in written if p.name.startswith("roc-")]
    assert len(names) == len({n.lower() for n in names}) == 4


def test_the_default_and_contending_methods_are_drawn_in_colour_whatever_their_weights(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "roc_overlay", lambda _, __, names, ___: shown.append(names))
    lines = grid(trivial__hog=[0.6], control__detail=[0.95], cfa=[0.7], msc=[0.8], kdad=[0.65], uniad=[0.5])
    lines += [line("dia+", "pneumoniamnist", 0.55, weights="lite0", weights_kind="lite0")]
    kept(tmp_path, lines)
    results = benchmark_results(lines)
    for draw in figures.roc_curves(results, load_scores(results, tmp_path)).values():
        draw()
    assert shown == [["dia+ [lite0]", "msc", "cfa", "kdad"]]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A benchmark with everything in it, one name of which is hostile; and what was written."""
    folder = tmp_path_factory.mktemp("benchmark")
    names = ("pneumoniamnist", "breastmnist", EVIL)
    methods = ("trivial:hog", "trivial:lbp", "dia+", "dia", "csi", "msc", "cfa", "uniad", "$x_1$<b>")
    lines = [
        line(m, d, 0.5 + 0.04 * ((3 * i + j + s) % 9), s)
        for i, m in enumerate(methods)
        for j, d in enumerate(names)
        for s in (0, 1)
        if (m, d) != ("cfa", EVIL)
    ]
    safe = [r for r in lines if "/" not in r["dataset"]]  # a file name cannot hold the hostile one
    kept(folder / "scores", safe)
    failures = {(EVIL, "cfa", "none", s): f"no <i>memory</i> for seed {s}" for s in (0, 1)}
    written = write_benchmark_report(folder / "out", lines, folder / "scores", failures, title=f"All {EVIL}")
    return folder / "out", written, benchmark_results(lines, failures)


def test_every_file_is_written(report):
    out, written, _ = report
    names = {p.name for p in written}
    assert names >= {
        *("benchmark.md", "benchmark.html", "benchmark.csv", "benchmark.tex"),
        *("critical-difference.svg", "critical-difference.png", "roc-breastmnist.png"),
    }
    assert all(p.is_file() and p.parent == out for p in written)
    text = (out / "benchmark.md").read_text()
    assert {m for m in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)} == {n for n in names if n.endswith("png")}


def test_the_page_is_self_contained_and_escapes_hostile_names(report):
    html = (report[0] / "benchmark.html").read_text()
    page = Page(html)
    assert all(link.startswith("#") for link in page.links)
    assert all(url.startswith("#") for url in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert (page.count("script"), page.count("b"), page.count("i")) == (1, 0, 0)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in html
    assert "default-src 'none'" in html
    assert EVIL in page.text
    assert "$x_1$<b>" in page.text
    assert page.count("svg", role="img") == 5  # ranks, two ROC plots, two of costs
    assert page.count("table") == page.count("caption") > 5
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    heads = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert heads[0] == "h1"
    assert heads.count("h1") == 1
    markdown = (report[0] / "benchmark.md").read_text()
    assert "<script" not in markdown
    assert "<i>" not in markdown


def test_directions_are_explained_in_every_form(report):
    out, _, table = report
    notes = direction_notes(table)
    assert [n[0] for n in notes] == ["⇄", "?"]
    page, markdown = Page((out / "benchmark.html").read_text()).text, (out / "benchmark.md").read_text()
    for note in notes:
        assert note in page
        assert f"- {note}" in markdown
    assert (out / "benchmark.tex").read_text().count(r"$\rightleftarrows$") == 1 + 2  # of csi, of dia


def test_failures_are_listed_with_their_reasons(report):
    out, _, table = report
    assert failure_table(table).rows == [
        ["cfa", EVIL, str(s), f"no <i>memory</i> for seed {s}"] for s in (0, 1)
    ]
    page = Page((out / "benchmark.html").read_text())
    assert "no <i>memory</i> for seed 1" in page.text
    assert "| failed |" in (out / "benchmark.md").read_text()
    assert "failed" in (out / "benchmark.tex").read_text()
    only = benchmark_results([], {("breastmnist", "cfa", "imagenet", 0): "why"})
    assert [r.name for r in only.rows] == ["cfa [imagenet]"]


def test_the_page_is_the_same_each_time(report, tmp_path):
    lines = grid(trivial__hog=[0.9, 0.8], dia=[0.8, 0.7], csi=[0.7, 0.75])
    kept(tmp_path / "scores", lines)
    first, second = (
        {p.name: p.read_bytes() for p in write_benchmark_report(tmp_path / n, lines, tmp_path / "scores")}
        for n in "ab"
    )
    assert first == second


def test_the_readme_shows_the_preset_as_it_is_now(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "\n".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in ("SETS", "RESULTS", "HEATMAPS"))
    )
    marked_tables(readme, [])
    assert "No run yet." in readme.read_text()
    lines = [line("trivial:hog", "breastmnist", a, settings=s) for a, s in ((0.7, {}), (0.9, None))]
    lines += [line("trivial:hog", "breastmnist", 0.95, revision=99)]
    marked_tables(readme, lines)
    assert "| trivial:hog |  | 1 | **0.700** |" in readme.read_text()
    assert not {"0.900", "0.950"} & set(readme.read_text().split("**"))
    marked_tables(readme, [line("dia", d, 0.7) for d in BOTH[:2]])
    assert "\n- ⇄: the paper's values" in readme.read_text()


def test_the_table_of_methods_is_of_the_asked_sets_in_both_directions_and_without_controls(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- RESULTS:begin --><!-- RESULTS:end -->")
    sets = ("breastmnist", "breastmnist-0", "breastmnist-128")
    lines = [line(method, d, 0.7) for method in ("trivial:hog", "csi", "control:detail") for d in sets]
    marked_tables(page, lines, ["breastmnist"])
    assert "| breastmnist | breastmnist-0 |\n" in page.read_text()
    assert "control" not in page.read_text()
    marked_tables(page, lines)
    assert "| breastmnist-128 |" in page.read_text()


def test_a_text_holds_the_tables_it_has_marks_for(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- HEATMAPS:begin --><!-- HEATMAPS:end -->")
    marked_tables(page, [line("trivial:hog", "breastmnist", 0.7)])
    assert page.read_text() == "<!-- HEATMAPS:begin -->\nNo run with masks yet.\n<!-- HEATMAPS:end -->"
    page.write_text("nothing")
    with pytest.raises(DataError, match=r"page\.md holds none of the marks"):
        marked_tables(page, [])
    page.write_text("<!-- SETS:begin -->")
    with pytest.raises(DataError, match="SETS:end --> exactly once"):
        marked_tables(page, [])


def test_the_other_direction_counts_once_at_every_size():
    sets = ("sarscov2ct-covid-128", "breastmnist", "sarscov2ct-128", "breastmnist-0", "sarscov2ct-covid")
    assert _once(sets) == ("breastmnist", "sarscov2ct-128", "sarscov2ct-covid")
    apart = ("breastmnist", "breastmnist-0", "sarscov2ct-128", "sarscov2ct-covid-128", "sarscov2ct-covid")
    assert _in_order(sets) == apart
