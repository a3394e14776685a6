"""The pages drawn from the ledger: the benchmark's with its files, the README's tables, and an ablation's.

Draws results and the raw scores beside them; runs and fits nothing. The HTML page asks nothing of the
network; its words and style are in `benchmark.html.j2`.
"""

from __future__ import annotations

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

from ..benchmark.grid import Grid, Measured
from ..benchmark.ledger import update_section
from ..benchmark.published import BASE
from ..benchmark.results import BenchmarkResults, FailureKey, benchmark_results
from ..benchmark.runs import current_lines, scores_path
from ..evaluate.compare import Compared, Difference, compared
from . import bias, render, text
from .figures import critical_difference_diagram, mean_curve, roc_overlay
from .style import INK, LIMITS, environment, svg
from .table import (
    Table,
    ablation_table,
    cost_table,
    failure_table,
    gain_table,
    heatmap_table,
    long_table,
    printed_table,
    published_table,
    results_table,
    table,
)

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


def load_scores(results: BenchmarkResults, folder: Path) -> dict[str, Scores]:
    """The raw scores that are in `folder`, by data set; those of no row are left out."""
    found = {}
    for d in results.datasets:
        read: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        absent = []
        for r in results.rows:
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


def comparisons(results: BenchmarkResults, scores: Mapping[str, Scores]) -> dict[str, list[list[Compared]]]:
    """By data set, each method against the best untrained row, and against CSI; empty lists are left out."""
    found = {}
    for d, of_set in scores.items():
        names = [r.name for r in results.rows if not r.trivial]
        references = [results.best_trivial[d].name] if d in results.best_trivial else []
        made = [
            compared(of_set.labels, of_set.rows, [(name, reference) for name in names if name != reference])
            for reference in (*references, BASE)
        ]
        if kept := [rows for rows in made if rows]:
            found[d] = kept
    return found


def pairs_table(scores: Mapping[str, Scores]) -> Table:
    """Every two rows on each data set; p_holm is corrected for all pairs of its data set."""
    rows = []
    for d, of_set in scores.items():
        for pair in compared(of_set.labels, of_set.rows, combinations(of_set.rows, 2)):
            numbers = map(str, (*pair.difference, pair.p_holm))
            rows.append([d, pair.first, pair.second, *numbers, " ".join(map(str, pair.seeds))])
    head = ("dataset", "first", "second", "difference", "low", "high", "p", "p_holm", "seeds")
    return table(head, rows)


def rocs(results: BenchmarkResults, scores: Mapping[str, Scores], ink: str) -> dict[str, Figure]:
    """By data set, the curves of the methods and of the best untrained row."""
    figures = {}
    for d, of_set in scores.items():
        trivial = results.best_trivial[d].name if d in results.best_trivial else ""
        drawn = {
            r.name: r for r in results.rows if r.name in of_set.rows and (not r.trivial or r.name == trivial)
        }
        aurocs = {name: r.cells[d].mean for name, r in drawn.items()}
        ours = [n for n in OURS if n in drawn]
        others = sorted((n for n in drawn if n not in (*OURS, trivial)), key=lambda n: -aurocs[n])
        curves = {n: mean_curve(of_set.labels, list(of_set.rows[n].values())) for n in drawn}
        if curves:
            figures[d] = roc_overlay(curves, aurocs, [*ours, *others[:BEST]], trivial, ink)
    return figures


def ranking_words(results: BenchmarkResults) -> list[str]:
    """What the tests over data sets say, and how little they can say."""
    ranking = results.ranking
    if ranking is None:
        return [results.why_no_ranking]
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
    if again := [d for d in results.datasets if d not in ranking.datasets]:
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


def score_notes(results: BenchmarkResults, scores: Mapping[str, Scores]) -> list[str]:
    """Whose raw scores are absent, so that neither curve nor paired difference can be had."""
    out = []
    for d in results.datasets:
        if d not in scores:
            out.append(f"{d}: no raw scores.")
            continue
        if scores[d].absent:
            out.append(f"{d}: no raw scores, or not of all seeds, of {', '.join(scores[d].absent)}.")
        if scores[d].others:
            out.append(f"{d}: left out for other test images: {', '.join(scores[d].others)}.")
    return out


class Context(NamedTuple):
    """What is known of the images of a data set: `bias.facts_of_set`, labels, and which copy training's."""

    facts: Mapping[str, Any]
    labels: np.ndarray
    copied: np.ndarray


ContextTables = tuple[Table, dict[str, Table]]


def context_tables(
    results: BenchmarkResults, scores: Mapping[str, Scores], sets: Mapping[str, Context]
) -> ContextTables:
    """What stands beside the results; and of data sets with copies of training images, what these change.

    Args:
        results: of the benchmark.
        scores: the raw scores, by data set.
        sets: what is known of the images, by data set.
    """
    labels = {d: of.labels for d, of in scores.items()}
    copies = {
        d: bias.copies_table(results, scores[d].rows, scores[d].labels, of.copied)
        for d, of in sets.items()
        if of.copied.mean() >= bias.ENOUGH and d in scores and np.array_equal(of.labels, scores[d].labels)
    }
    return bias.set_table(results, labels, {d: of.facts for d, of in sets.items()}), copies


def write_benchmark_report(
    out: Path,
    lines: Sequence[Mapping[str, Any]],
    scores_folder: Path,
    failures: Mapping[FailureKey, str] | None = None,
    title: str = "Benchmark",
    sets: Mapping[str, Context] | None = None,
) -> list[Path]:
    """Writes `benchmark.md`, `.html`, `.csv` and `.tex`, `pairs.csv` and their pictures into `out`.

    Args:
        out: a folder, made if it is absent.
        lines: of the ledger, already selected: for each method, kind of weights and data set one per seed.
        scores_folder: of raw scores (`benchmark.runs.scores_path`); some may be missing.
        failures: reasons of runs that came to nothing, by (data set, method, weights, seed).
        title: of the page.
        sets: what is known of the images themselves, by data set.

    Returns:
        The files written.

    Raises:
        ValueError: no lines, or several settings, presets or data behind one cell.
    """
    results = benchmark_results(lines, failures)
    out.mkdir(parents=True, exist_ok=True)
    scores = load_scores(results, scores_folder)
    paired = comparisons(results, scores)
    beside = context_tables(results, scores, sets or {})
    written = []
    pictures: dict[str, str] = {}
    if results.ranking is not None:
        figure = critical_difference_diagram(results.ranking)
        for suffix in ("svg", "png"):
            written.append(_save(figure, out / f"critical-difference.{suffix}"))
        pictures["ranks"] = "critical-difference.png"
    for d, figure in rocs(results, scores, "#000000").items():
        written.append(_save(figure, out / f"roc-{re.sub(r'[^A-Za-z0-9_.-]+', '_', d)}.png"))
        pictures[d] = written[-1].name
    caption = " ".join([f"{title}.", text.HOW_TO_READ, *text.direction_notes(results)])
    for name, words in {
        "benchmark.md": markdown_page(results, scores, paired, pictures, title, beside),
        "benchmark.html": html_page(results, scores, paired, title, beside),
        "benchmark.csv": render.csv(long_table(results)),
        "benchmark.tex": render.latex(results_table(results), caption),
        "pairs.csv": render.csv(pairs_table(scores)),
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
    results: BenchmarkResults,
    scores: Mapping[str, Scores],
    paired: Mapping[str, Sequence[Sequence[Compared]]],
    pictures: Mapping[str, str],
    title: str,
    beside: ContextTables,
) -> str:
    """The whole report as Markdown.

    Args:
        results: of the benchmark.
        scores: the raw scores, by data set.
        paired: of `comparisons`.
        pictures: names of files: `ranks`, and the ROC curves by data set.
        title: of the page.
        beside: of `context_tables`.
    """
    of_sets, copies = beside
    count, lines = text.sentences(results)
    parts = [
        f"# {render.escaped(title)}",
        text.HOW_TO_READ,
        render.markdown(results_table(results)),
        _bullets(text.direction_notes(results)),
        f"**{count}**",
        _bullets(lines),
        "## Beside these results",
        render.escaped(bias.CONTEXT),
        render.markdown(of_sets),
        _bullets(bias.below_chance(results)),
        *(
            f"AUROC on {render.escaped(d)} with and without copies of training images; the interval is of "
            f"the images, resampled.\n\n{render.markdown(of)}"
            for d, of in copies.items()
        ),
        "## Ranks over data sets",
        *map(render.escaped, ranking_words(results)),
        f"![Critical-difference diagram]({pictures['ranks']})" if "ranks" in pictures else "",
        f"## Gain over {BASE}",
        text.gain_sentence(),
        render.markdown(gain_table(results)),
        "## Weights and cost",
        text.corrections(),
        render.markdown(cost_table(results)),
        "## Paired differences",
        PAIRED,
    ]
    for d, pairs in paired.items():
        parts.append(f"### {render.escaped(d)}")
        parts += [render.markdown(_paired(p, f"minus {p[0].second}")) for p in pairs]
    parts += ["## ROC curves", AVERAGING, _bullets(score_notes(results, scores))]
    parts += [f"![ROC curves on {render.escaped(d)}]({p})" for d, p in pictures.items() if d != "ranks"]
    if (failed := failure_table(results)).rows:
        parts += ["## Failed", render.markdown(failed)]
    parts += ["## Data sets", _bullets([f"{d}: {facts}." for d, facts in text.notes(results)])]
    parts += ["## The paper's table, as printed", render.markdown(printed_table()), LIMITS]
    return "\n\n".join(p for p in parts if p) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {render.escaped(line)}" for line in lines)


def _paired(pairs: Sequence[Compared], first: str) -> Table:
    rows = [[c.first, difference_words(c.difference), p_words(c.p_holm), str(len(c.seeds))] for c in pairs]
    return table((first, "difference [95 %]", "p (Holm)", "seeds"), rows)


def html_page(
    results: BenchmarkResults,
    scores: Mapping[str, Scores],
    paired: Mapping[str, Sequence[Sequence[Compared]]],
    title: str,
    beside: ContextTables,
) -> str:
    """The whole report as one self-contained page; for the arguments see `markdown_page`."""
    of_sets, copies = beside
    count, lines = text.sentences(results)
    ranks: Markup | None = None
    if results.ranking is not None:
        figure = critical_difference_diagram(results.ranking, INK)
        ranks = svg(figure, "Critical-difference diagram: mean ranks, best on the left")
    curves = {d: svg(f, f"ROC curves on {d}") for d, f in rocs(results, scores, INK).items()}
    return (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            title=title,
            results=results,
            trained=[r for r in results.rows if not r.trivial],
            t=text,
            html=render.html,
            main=results_table(results),
            count=count,
            lines=lines,
            beside=bias.CONTEXT,
            below_chance=bias.below_chance(results),
            of_sets=of_sets,
            copies=copies,
            ranking_words=ranking_words(results),
            ranks=ranks,
            gains=gain_table(results),
            costs=cost_table(results),
            failed=failure_table(results),
            curves=curves,
            averaging=AVERAGING,
            score_notes=score_notes(results, scores),
            paired={d: [(p[0].second, _paired(p, "method")) for p in pairs] for d, pairs in paired.items()},
            paired_words=PAIRED,
            base=BASE,
            printed=printed_table(),
            limits=LIMITS,
        )
    )


def readme_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the ledger's `cpu` rows into the README, beside the paper's, and says who beats whom.

    Only lines of the preset as it is now are drawn: those of earlier settings stay in the ledger as history.

    Args:
        path: of the README, with its marks RESULTS and HEATMAPS.
        rows: of the ledger.
    """
    today = current_lines(rows, "cpu")
    shown = [r for r in today if r["dataset"] != "phantom"]  # generated: no result, but its heatmaps are
    words = ["No run yet."]
    if shown:
        made = benchmark_results(shown)
        count, lines = text.sentences(made)
        main = render.markdown(results_table(made, compact=True))
        words = [main, "", _bullets(text.direction_notes(made)), "", count, "", _bullets(lines)]
    update_section(path, "RESULTS", "\n".join(words))
    mapped = [r for r in today if "pixel_auroc" in r]
    found = render.markdown(heatmap_table(benchmark_results(mapped))) if mapped else "No run with masks yet."
    update_section(path, "HEATMAPS", found)


def ablation_page(grid: Grid, made: Mapping[str, Sequence[Measured]], picture: str = "") -> str:
    """The Markdown page of a grid: what was asked, a table for each data set, the plot.

    Args:
        grid: of `dia ablate`.
        made: by data set, of each of the grid's cells.
        picture: name of the plot's file; none where empty.
    """
    reference = next(c.label for c in grid.cells if c.names == grid.reference)
    parts = [
        f"# {grid.title}",
        grid.question,
        f"`{grid.cells[0].method}`, preset `{grid.preset}`, seeds {', '.join(map(str, grid.seeds))}. AUROC: "
        f"mean ± standard deviation over seeds. The difference from *{reference}* is paired by "
        "seed and image; its 95 % interval counts both (see `evaluate/compare.py`).",
        f"Published: {grid.source} Other splits and training; compare with care." if grid.published else "",
        f"![{grid.title}]({picture})" if picture else "",
    ]
    for dataset, of_set in made.items():
        parts += [f"## {dataset}", render.markdown(ablation_table(grid, of_set))]
    if rest := {d: v for d, v in grid.published.items() if d not in made}:
        parts += ["## Published, not measured here", render.markdown(published_table(grid, rest))]
    return "\n\n".join(filter(None, parts)) + "\n"
