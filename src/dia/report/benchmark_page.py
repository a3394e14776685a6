"""The benchmark's page and files: tables, ranks over data sets, ROC curves, paired differences, failures.

Draws a `BenchmarkTable` and the raw scores beside it; runs, fits and selects nothing. The page asks nothing
of the network; its words and style are in `benchmark.html.j2`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ..benchmark.published import BASE
from ..benchmark.runs import scores_path
from ..evaluate.compare import Compared, Difference, compared
from . import bias, text
from .figures import critical_difference_diagram, mean_curve, roc_overlay
from .style import INK, LIMITS, environment, svg
from .table import BenchmarkTable

OURS = ("dia+", "dia", BASE)  # always in colour
BEST = 3  # more rows in colour
AVERAGING = (
    "Raw scores' ROC curves, averaged over seeds vertically: the mean sensitivity at each false positive "
    "rate. In colour dia+, dia, csi and the best three others; dashed the best untrained row; the rest thin."
)
PAIRED = (
    "Differences of AUROC on the same images, over the seeds both have: DeLong's paired variance of the "
    "images plus the variance over seeds (one seed: images alone, and nothing is known of others). Brackets: "
    "95 %, each by itself; p: Holm's, corrected for the rows of its table. The best untrained row was chosen "
    "on these images, which favours it."
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Raw scores on one data set.

    Args:
        labels: `(N,)`.
        rows: by name, by seed, `(N,)`.
        absent: names whose scores are not there, or only for some of their seeds.
        others: names whose scores are of other images than the most rows'.
    """

    labels: np.ndarray
    rows: Mapping[str, Mapping[int, np.ndarray]]
    absent: tuple[str, ...]
    others: tuple[str, ...]


def load_scores(table: BenchmarkTable, folder: Path) -> dict[str, Scores]:
    """The raw scores that are in `folder`, by data set; those of no row are left out."""
    found = {}
    for d in table.datasets:
        read: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        absent = []
        for r in table.rows:
            for run in r.cells[d].runs if d in r.cells else ():
                path = scores_path(folder, run)
                if path.is_file():
                    with np.load(path) as kept:
                        read.setdefault(r.name, {})[run["seed"]] = (kept["labels"], kept["scores"])
                elif r.name not in absent:
                    absent.append(r.name)
        sets = [labels.tobytes() for by_seed in read.values() for labels, _ in by_seed.values()]
        if not sets:
            continue
        common = max(dict.fromkeys(sets), key=sets.count)
        rows: dict[str, dict[int, np.ndarray]] = {}
        others = []
        for name, by_seed in read.items():
            same = {s: scores for s, (labels, scores) in by_seed.items() if labels.tobytes() == common}
            rows |= {name: same} if same else {}
            others += [name] if len(same) < len(by_seed) else []
        labels = next(v for b in read.values() for v, _ in b.values() if v.tobytes() == common)
        found[d] = Scores(labels, rows, tuple(absent), tuple(others))
    return found


def comparisons(table: BenchmarkTable, scores: Mapping[str, Scores]) -> dict[str, list[list[Compared]]]:
    """By data set, each method against the best untrained row, and against CSI; empty lists are left out."""
    found = {}
    for d, of_set in scores.items():
        names = [r.name for r in table.rows if not r.trivial]
        references = [table.best_trivial[d].name] if d in table.best_trivial else []
        made = [
            compared(of_set.labels, of_set.rows, [(name, reference) for name in names if name != reference])
            for reference in (*references, BASE)
        ]
        if kept := [rows for rows in made if rows]:
            found[d] = kept
    return found


def pairs_csv(scores: Mapping[str, Scores]) -> str:
    """Every two rows on each data set; p_holm is corrected for all pairs of its data set."""
    stream = io.StringIO()
    out = csv.writer(stream, lineterminator="\n")
    out.writerow(["dataset", "first", "second", "difference", "low", "high", "p", "p_holm", "seeds"])
    for d, of_set in scores.items():
        for pair in compared(of_set.labels, of_set.rows, combinations(of_set.rows, 2)):
            seeds = " ".join(map(str, pair.seeds))
            out.writerow([d, pair.first, pair.second, *pair.difference, pair.p_holm, seeds])
    return stream.getvalue()


def rocs(table: BenchmarkTable, scores: Mapping[str, Scores], ink: str) -> dict[str, Figure]:
    """By data set, the curves of the methods and of the best untrained row."""
    figures = {}
    for d, of_set in scores.items():
        trivial = table.best_trivial[d].name if d in table.best_trivial else ""
        drawn = {
            r.name: r for r in table.rows if r.name in of_set.rows and (not r.trivial or r.name == trivial)
        }
        aurocs = {name: r.cells[d].mean for name, r in drawn.items()}
        ours = [n for n in OURS if n in drawn]
        others = sorted((n for n in drawn if n not in (*OURS, trivial)), key=lambda n: -aurocs[n])
        curves = {n: mean_curve(of_set.labels, list(of_set.rows[n].values())) for n in drawn}
        if curves:
            figures[d] = roc_overlay(curves, aurocs, [*ours, *others[:BEST]], trivial, ink)
    return figures


def ranking_words(table: BenchmarkTable) -> list[str]:
    """What the tests over data sets say, and how little they can say."""
    ranking = table.ranking
    if ranking is None:
        return [table.why_no_ranking]
    n, k = len(ranking.datasets), len(ranking.names)
    f = ranking.friedman
    words = [
        f"Friedman's test over {n} data sets and {k} rows: χ² = {f.statistic:.2f} with {k - 1} degrees of "
        f"freedom, p = {f.p:.2g}. Rows whose mean ranks differ by more than {ranking.nemenyi.critical:.2f} "
        "differ by Nemenyi's test at 5 %; a bar joins rows of which no two do. "
        f"{n} data sets give these tests little power: joined rows are not shown to be alike.",
    ]
    if ranking.trivial:
        words.append(
            f"One untrained row takes part, {ranking.trivial}, the best of them by mean AUROC; that it was "
            "chosen on these results favours it."
        )
    if again := [d for d in table.datasets if d not in ranking.datasets]:
        words.append(f"Of a set in both directions the usual one takes part, so not {', '.join(again)}.")
    if ranking.left_out:
        lack = "; ".join(f"{name} (lacks {', '.join(ds)})" for name, ds in ranking.left_out.items())
        words.append(f"Left out, for lack of a data set: {lack}.")
    return words


def difference_words(d: Difference) -> str:
    """The difference with its interval."""
    return f"{text.signed(d.value)} [{text.signed(d.low)}, {text.signed(d.high)}]"


def p_words(p: float) -> str:
    """A p-value for people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def score_notes(table: BenchmarkTable, scores: Mapping[str, Scores]) -> list[str]:
    """Whose raw scores are absent, so that neither curve nor paired difference can be had."""
    out = []
    for d in table.datasets:
        if d not in scores:
            out.append(f"{d}: no raw scores.")
            continue
        if scores[d].absent:
            out.append(f"{d}: no raw scores, or not of all seeds, of {', '.join(scores[d].absent)}.")
        if scores[d].others:
            out.append(f"{d}: left out for other test images: {', '.join(scores[d].others)}.")
    return out


class Beside(NamedTuple):
    """What is known of the images of a data set: `bias.facts_of_set`, labels, and which copy training's."""

    facts: Mapping[str, Any]
    labels: np.ndarray
    copied: np.ndarray


BesideRows = tuple[list[list[str]], dict[str, list[list[str]]]]


def beside_rows(
    table: BenchmarkTable, scores: Mapping[str, Scores], sets: Mapping[str, Beside]
) -> BesideRows:
    """What stands beside the results; and of data sets with copies of training images, what these change."""
    labels = {d: of.labels for d, of in scores.items()}
    copies = {
        d: bias.copies_rows(table, scores[d].rows, scores[d].labels, of.copied)
        for d, of in sets.items()
        if of.copied.mean() >= bias.ENOUGH and d in scores and np.array_equal(of.labels, scores[d].labels)
    }
    return bias.set_rows(table, labels, {d: of.facts for d, of in sets.items()}), copies


def write_benchmark(
    out: Path,
    table: BenchmarkTable,
    scores_folder: Path,
    title: str,
    sets: Mapping[str, Beside] | None = None,
) -> list[Path]:
    """Writes the page, the Markdown with its pictures, the CSV and the LaTeX table into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scores = load_scores(table, scores_folder)
    paired = comparisons(table, scores)
    beside = beside_rows(table, scores, sets or {})
    written = []
    pictures: dict[str, str] = {}
    if table.ranking is not None:
        figure = critical_difference_diagram(table.ranking)
        for suffix in ("svg", "png"):
            written.append(_save(figure, out / f"critical-difference.{suffix}"))
        pictures["ranks"] = "critical-difference.png"
    for d, figure in rocs(table, scores, "#000000").items():
        written.append(_save(figure, out / f"roc-{re.sub(r'[^A-Za-z0-9_.-]+', '_', d)}.png"))
        pictures[d] = written[-1].name
    for name, words in {
        "benchmark.md": markdown_page(table, scores, paired, pictures, title, beside),
        "benchmark.html": html_page(table, scores, paired, title, beside),
        "benchmark.csv": text.csv_table(table),
        "benchmark.tex": text.latex_table(table, title),
        "pairs.csv": pairs_csv(scores),
    }.items():
        written.append(out / name)
        written[-1].write_text(words, encoding="utf-8", errors="replace")
    return written


def _save(figure: Figure, path: Path) -> Path:
    clean = {"Date": None} if path.suffix == ".svg" else {"Software": None}  # alike each time
    with mpl.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, dpi=150, facecolor="white", metadata=clean)
    return path


def markdown_page(
    table: BenchmarkTable,
    scores: Mapping[str, Scores],
    paired: Mapping[str, Sequence[Sequence[Compared]]],
    pictures: Mapping[str, str],
    title: str,
    beside: BesideRows,
) -> str:
    """The whole report as Markdown."""
    of_sets, copies = beside
    count, lines = text.sentences(table)
    paper_head, paper = text.paper_rows()
    parts = [
        f"# {text.escaped(title)}",
        text.HOW_TO_READ,
        text.markdown_table(table),
        _bullets(text.direction_notes(table)),
        f"**{count}**",
        _bullets(lines),
        "## Beside these results",
        text.escaped(bias.BESIDE),
        _markdown(bias.SET_HEAD, of_sets),
        _bullets(bias.below_chance(table)),
        *(
            f"AUROC on {text.escaped(d)} with and without copies of training images; the interval is of the "
            f"images, resampled.\n\n{_markdown(bias.COPIES_HEAD, rows)}"
            for d, rows in copies.items()
        ),
        "## Ranks over data sets",
        *map(text.escaped, ranking_words(table)),
        f"![Critical-difference diagram]({pictures['ranks']})" if "ranks" in pictures else "",
        f"## Gain over {BASE}",
        text.gain_sentence(),
        _markdown(("method", "gain", "over", "the paper's, six sets"), text.gain_rows(table)),
        "## Weights and cost",
        text.corrections(),
        _markdown(text.COST_HEAD, text.cost_rows(table)),
        "## Paired differences",
        PAIRED,
    ]
    for d, pairs in paired.items():
        parts.append(f"### {text.escaped(d)}")
        parts += [
            _markdown((f"minus {p[0].second}", "difference [95 %]", "p (Holm)", "seeds"), _paired(p))
            for p in pairs
        ]
    parts += ["## ROC curves", AVERAGING, _bullets(score_notes(table, scores))]
    parts += [f"![ROC curves on {text.escaped(d)}]({p})" for d, p in pictures.items() if d != "ranks"]
    failed = text.failure_rows(table)
    if failed:
        parts += ["## Failed", _markdown(("method", "data set", "seed", "reason"), failed)]
    parts += ["## Data sets", _bullets([f"{d}: {facts}." for d, facts in text.notes(table)])]
    parts += ["## The paper's table, as printed", _markdown(paper_head, paper), LIMITS]
    return "\n\n".join(p for p in parts if p) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {text.escaped(line)}" for line in lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    shown = [head, ["---"] * len(head), *rows]
    return "\n".join(text.markdown_row(c if c == "---" else text.escaped(c) for c in r) for r in shown)


def _paired(pairs: Sequence[Compared]) -> list[list[str]]:
    return [[c.first, difference_words(c.difference), p_words(c.p_holm), str(len(c.seeds))] for c in pairs]


def html_page(
    table: BenchmarkTable,
    scores: Mapping[str, Scores],
    paired: Mapping[str, Sequence[Sequence[Compared]]],
    title: str,
    beside: BesideRows,
) -> str:
    """The whole report as one self-contained page."""
    of_sets, copies = beside
    count, lines = text.sentences(table)
    ranks: Markup | None = None
    if table.ranking is not None:
        figure = critical_difference_diagram(table.ranking, INK)
        ranks = svg(figure, "Critical-difference diagram: mean ranks, best on the left")
    curves = {d: svg(f, f"ROC curves on {d}") for d, f in rocs(table, scores, INK).items()}
    paper_head, paper = text.paper_rows()
    return (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            title=title,
            table=table,
            trained=[r for r in table.rows if not r.trivial],
            t=text,
            count=count,
            lines=lines,
            beside=bias,
            of_sets=of_sets,
            copies=copies,
            ranking_words=ranking_words(table),
            ranks=ranks,
            curves=curves,
            averaging=AVERAGING,
            score_notes=score_notes(table, scores),
            paired={d: [(p[0].second, _paired(p)) for p in pairs] for d, pairs in paired.items()},
            paired_words=PAIRED,
            base=BASE,
            paper_head=paper_head,
            paper=paper,
            limits=LIMITS,
        )
    )
