"""The pages drawn from the ledger: the benchmark's with its files, the README's tables, and an ablation's.

Draws results and their raw scores; runs and fits nothing. The words of the pages are in `templates`; the HTML
page asks nothing of the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..benchmark.grid import Grid, Measured
from ..benchmark.ledger import update_section
from ..benchmark.published import BASE, paper_gains, paper_table
from ..benchmark.results import BenchmarkResults, FailureKey, about, benchmark_results, headline_gain
from ..benchmark.runs import current_lines, scores_path
from ..core.errors import DataError
from ..detectors.registry import DEFAULT, TRIVIAL
from ..evaluate.compare import Compared, compared
from . import context, render, table, text
from .constants import LIMITS
from .figures import critical_difference_diagram, mean_curve, roc_overlay
from .style import environment, save, svg
from .table import Table

OURS = ("dia+", "dia", BASE)  # rows always in colour
BEST = 3  # number of further rows in colour
_RANKS = "critical-difference"
_Figures = dict[str, Callable[[], Figure]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Raw scores on one data set.

    Args:
        labels: `(N,)`.
        rows: `(N,)` scores by name and seed.
        absent: names whose scores are missing, at least for some of their seeds.
        others: names whose scores are of other images than most rows'.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
    """

    labels: np.ndarray
    rows: Mapping[str, Mapping[int, np.ndarray]]
    absent: tuple[str, ...]
    others: tuple[str, ...]
    units: np.ndarray | None = None


class Context(NamedTuple):
    """The images of a data set: `context.facts_of_set`, `(N,)` labels, `(N,)` bool copies of training."""

    facts: Mapping[str, Any]
    labels: np.ndarray
    copied: np.ndarray


def load_scores(results: BenchmarkResults, folder: Path) -> dict[str, Scores]:
    """Loads the raw scores of the results' runs.

    Args:
        results: results of the benchmark.
        folder: folder of raw scores; some may be missing.

    Returns:
        The scores by data set; data sets without any are left out.
    """
    found = {}
    for d in results.datasets:
        read, absent = [], dict[str, None]()
        units = dict[tuple[str, int], np.ndarray | None]()
        for r in results.rows:
            for run in r.cells[d].runs if d in r.cells else ():
                path = scores_path(folder, run)
                if path.is_file():
                    with np.load(path) as kept:
                        units[r.name, run["seed"]] = kept.get("units")
                        read.append((r.name, run["seed"], kept["labels"], kept["scores"]))
                else:
                    absent[r.name] = None
        if not read:
            continue
        images = [labels.tobytes() for *_, labels, _ in read]
        common = max(dict.fromkeys(images), key=images.count)
        rows: dict[str, dict[int, np.ndarray]] = {}
        others = dict[str, None]()
        for (name, seed, _, scores), own in zip(read, images, strict=True):
            if own == common:
                rows.setdefault(name, {})[seed] = scores
            else:
                others[name] = None
        name, seed, labels, _ = read[images.index(common)]
        found[d] = Scores(labels, rows, tuple(absent), tuple(others), units[name, seed])
    return found


def comparisons(
    results: BenchmarkResults, scores: Mapping[str, Scores]
) -> dict[str, dict[str, list[Compared]]]:
    """Paired differences of each method from the best untrained row, and from CSI.

    Args:
        results: results of the benchmark.
        scores: raw scores by data set.

    Returns:
        Lists by data set and reference; empty ones are left out.
    """
    found: dict[str, dict[str, list[Compared]]] = {}
    names = [r.name for r in results.rows if not r.trivial]
    for d, of_set in scores.items():
        best = results.best_trivial.get(d)
        for reference in (*([best.name] if best else []), BASE):
            pairs = [(name, reference) for name in names if name != reference]
            if made := compared(of_set.labels, of_set.rows, pairs, of_set.units):
                found.setdefault(d, {})[reference] = made
    return found


def pairs_table(scores: Mapping[str, Scores]) -> Table:
    """Every two rows on each data set; p_holm is corrected for all pairs of its data set."""
    rows = []
    for d, of_set in scores.items():
        for pair in compared(of_set.labels, of_set.rows, combinations(of_set.rows, 2), of_set.units):
            numbers = map(str, (*pair.difference, pair.p_holm))
            rows.append([d, pair.first, pair.second, *numbers, " ".join(map(str, pair.seeds))])
    head = ("dataset", "first", "second", "difference", "low", "high", "p", "p_holm", "seeds")
    return table.table(head, rows)


def _paired(pairs: Sequence[Compared]) -> Table:
    shown = ["< 0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}" for c in pairs]
    rows = [
        [c.first, text.difference(c.difference), p, str(len(c.seeds))]
        for c, p in zip(pairs, shown, strict=True)
    ]
    return table.table(("method", "difference [95 %]", "p (Holm)", "seeds"), rows)


def _roc_curves(results: BenchmarkResults, scores: Mapping[str, Scores]) -> _Figures:
    """By data set, what draws the curves of the methods and of the best untrained row."""
    figures: _Figures = {}
    for d, of_set in scores.items():
        trivial = results.best_trivial[d].name if d in results.best_trivial else ""
        aurocs = {
            r.name: r.cells[d].mean
            for r in results.rows
            if r.name in of_set.rows and (not r.trivial or r.name == trivial)
        }
        others = sorted((n for n in aurocs if n not in (*OURS, trivial)), key=lambda n: -aurocs[n])
        shown = [*(n for n in OURS if n in aurocs), *others[:BEST]]
        curves = {n: mean_curve(of_set.labels, list(of_set.rows[n].values())) for n in aurocs}
        if curves:
            figures[d] = partial(roc_overlay, curves, aurocs, shown, trivial)
    return figures


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
        lines: lines of the ledger, already selected: one per method, kind of weights, data set and seed.
        scores_folder: folder of raw scores (`benchmark.runs.scores_path`); some may be missing.
        failures: reasons of failed runs by (data set, method, weights, seed).
        title: title of the page.
        sets: what is known of the images themselves, by data set.

    Returns:
        The files written.

    Raises:
        ValueError: there are no lines, or several settings, presets or data behind one cell.
    """
    results = benchmark_results(lines, failures)
    scores = load_scores(results, scores_folder)
    roc_curves, sets = _roc_curves(results, scores), sets or {}
    figures: _Figures = {}
    if results.ranking is not None:
        figures[_RANKS] = partial(critical_difference_diagram, results.ranking)
    slugs = {d: f"roc-{re.sub(r'[^A-Za-z0-9_.-]+', '_', d)}" for d in roc_curves}
    figures |= {slugs[d]: draw for d, draw in roc_curves.items()}
    labels = {d: of.labels for d, of in scores.items()}
    content = {
        "title": title,
        "results": results,
        "table": table,
        "text": text,
        "of_sets": context.set_table(results, labels, {d: of.facts for d, of in sets.items()}),
        "copies": {
            d: context.copies_table(results, scores[d].rows, of.labels, of.copied, scores[d].units)
            for d, of in sets.items()
            if of.copied.mean() >= context.ENOUGH and d in scores and np.array_equal(of.labels, labels[d])
        },
        "paired": {
            d: {reference: _paired(pairs) for reference, pairs in of.items()}
            for d, of in comparisons(results, scores).items()
        },
        "scores": scores,
        "base": BASE,
        "paper_gain": paper_gains()["dia"],
        "headline": headline_gain(),
        "wrong": [p for p in paper_table().values() if p.corrected],
        "about": about,
        "limits": LIMITS,
    }
    written = [save(draw, out / f"{name}.png") for name, draw in figures.items()]
    ranks = None
    if _RANKS in figures:
        written.append(save(figures[_RANKS], out / f"{_RANKS}.svg"))
        ranks = svg(figures[_RANKS], "Critical-difference diagram: mean ranks, best on the left")
    drawn = {d: svg(draw, f"ROC curves on {d}") for d, draw in roc_curves.items()}
    words = vars(environment().get_template("words.j2").module)
    caption = " ".join([f"{title}.", str(words["how_to_read"]), *text.direction_notes(results)])
    page = environment().get_template("benchmark.html.j2")
    for name, made in {
        "benchmark.md": render.markdown_page("benchmark.md.j2", **content, slugs=slugs),
        "benchmark.html": page.render(**content, html=render.html, ranks=ranks, curves=drawn),
        "benchmark.csv": render.csv(table.long_table(results)),
        "benchmark.tex": render.latex(table.results_table(results), caption),
        "pairs.csv": render.csv(pairs_table(scores)),
    }.items():
        written.append(out / name)
        written[-1].write_text(made, encoding="utf-8", errors="replace")
    return written


def marked_tables(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the ledger's `cpu` rows and the paper's values into a text, and says who beats whom.

    Only lines of the preset as it is now are drawn: those of earlier settings stay in the ledger as history.

    Args:
        path: a text file with a pair of the marks SETS, RESULTS or HEATMAPS, or with several.
        rows: lines of the ledger.

    Raises:
        DataError: it has none of them.
    """
    today = current_lines(rows, "cpu")
    # generated images are no result, but their heatmaps are
    real = [r for r in today if not r["dataset"].startswith("phantom")]
    compared = {r["dataset"] for r in real if r["method"] != DEFAULT and r["method"] not in TRIVIAL}
    shown = [r for r in real if r["dataset"] in compared] or real
    mapped = [r for r in today if "pixel_auroc" in r]
    made = {
        "SETS": render.markdown(table.default_table(benchmark_results(real))) if real else "",
        "RESULTS": "No run yet.",
        "HEATMAPS": "No run with masks yet.",
    }
    if shown:
        page = render.markdown_page("readme.md.j2", results=benchmark_results(shown), table=table, text=text)
        made["RESULTS"] = page
    if mapped:
        made["HEATMAPS"] = render.markdown(table.heatmap_table(benchmark_results(mapped)))
    there = [name for name in made if f"<!-- {name}:begin -->" in path.read_text(encoding="utf-8")]
    if not there:
        raise DataError(
            f"{path} holds none of the marks <!-- NAME:begin --> with NAME one of {', '.join(made)}"
        )
    for name in there:
        update_section(path, name, made[name])


def ablation_page(grid: Grid, made: Mapping[str, Sequence[Measured]], picture: str = "") -> str:
    """The Markdown page of a grid: its question, a table for each data set, the plot.

    Args:
        grid: a grid of `dia ablate`.
        made: what was measured, by data set, one of each of the grid's cells.
        picture: name of the plot's file; none where empty.

    Returns:
        The page.
    """
    rest = {d: v for d, v in grid.published.items() if d not in made}
    return render.markdown_page(
        "ablation.md.j2",
        grid=grid,
        reference=next(c.label for c in grid.cells if c.names == grid.reference),
        picture=picture,
        tables={d: table.ablation_table(grid, of_set) for d, of_set in made.items()},
        published=table.published_table(grid, rest) if rest else None,
    )
