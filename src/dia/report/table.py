"""The one type of table that is shown anywhere, and the tables of the benchmark and of ablations.

A `Table` holds text and marks; `render.py` gives it the form of Markdown, CSV, LaTeX, HTML or a terminal.
Knows results; no scores, plots or pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, mean, stdev
from typing import Any, Literal, NamedTuple

from ..benchmark.grid import Grid, Measured
from ..benchmark.published import BASE, paper_gains, paper_table
from ..benchmark.results import BenchmarkResults, Row
from ..detectors.registry import DEFAULT
from . import text
from .text import difference


class Marked(NamedTuple):
    """A value that is marked, or has smaller lines below it.

    Args:
        text: the value as shown.
        mark: `best` and `clear` are bold, `second` is underlined.
        notes: the smaller lines.
    """

    text: str
    mark: Literal["best", "second", "clear", ""] = ""
    notes: tuple[str, ...] = ()


Value = Marked | str
Line = Sequence[Value]


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Args:
        head: names of the C columns.
        blocks: rows of C values each, under a heading, which may be empty.
        words: number of columns from the left that hold words; numbers in the others are aligned right.
    """

    head: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[Line, ...]], ...]
    words: int

    @property
    def rows(self) -> list[Line]:
        """The rows of all blocks."""
        return [row for _, rows in self.blocks for row in rows]


def table(head: Iterable[str], rows: Iterable[Line], words: int | None = None) -> Table:
    """A table of one block without heading.

    Args:
        head: names of the C columns.
        rows: rows of C values each.
        words: number of columns from the left that hold words, None for all.

    Returns:
        The table.

    Example:
        >>> from dia.report import render
        >>> print(render.markdown(table(["method", "AUROC"], [["dia", Marked("0.9", "best")]], words=1)))
        | method | AUROC |
        | --- | ---: |
        | dia | **0.9** |
    """
    names = tuple(head)
    return Table(names, (("", tuple(rows)),), len(names) if words is None else words)


# --- the benchmark ----------------------------------------------------------------------------------------


def results_table(results: BenchmarkResults, compact: bool = False) -> Table:
    """Rows of methods by family, columns of data sets.

    Args:
        results: results of the benchmark.
        compact: leaves out intervals, differences and mean ranks, and has a column of how many seeds a row's
            data sets have; cells with fewer say so.

    Returns:
        The table.
    """

    def line(r: Row) -> Line:
        most = max((len(c.runs) for c in r.cells.values()), default=0) if compact else results.seeds
        cells = [_result(r, d, most, compact) for d in results.datasets]
        if compact:
            return [r.method, "" if r.trivial else r.kind, str(most), *cells]
        return [r.method, "" if r.trivial else r.weights, *cells, "–" if r.rank is None else f"{r.rank:.2f}"]

    blocks = tuple((family, tuple(map(line, rows))) for family, rows in results.blocks)
    first = ("method", "weights", "seeds") if compact else ("method", "weights")
    rank = () if compact else ("mean rank",)
    return Table((*first, *results.datasets, *rank), blocks, len(first))


def _result(row: Row, dataset: str, most: int, compact: bool) -> Value:
    cell = row.cells.get(dataset)
    if cell is None:
        return "failed" if dataset in row.failures else "–"
    notes = (
        f"{len(cell.runs)} of {most} seeds" if len(cell.runs) < most else "",
        "" if compact else f"[{cell.ci[0]:.3f}, {cell.ci[1]:.3f}]",
        text.paper_value(cell, compact),
    )
    return Marked(text.mean_and_spread(cell.mean, cell.std), cell.mark, tuple(filter(None, notes)))


CSV_FIELDS = (
    *("dataset", "method", "kind", "weights", "starts_from", "family", "preset", "seeds", "auroc"),
    *("auroc_std", "ci_low", "ci_high", "ap", "mark", "paper", "paper_std", "paper_direction"),
    *("difference", "mean_rank"),
    *("fit_seconds", "images_per_second", "peak_memory_mb", "image_shape", "seen_at", "devices", "failed"),
)


def long_table(results: BenchmarkResults) -> Table:
    """One row for each cell of the results, in full precision; without numbers for those that failed."""
    rows = []
    for r in results.rows:
        for d in results.datasets:
            failed = "; ".join(f"seed {s}: {why}" for s, why in sorted(r.failures.get(d, {}).items()))
            found: dict[str, Any] = {**vars(r), "dataset": d, "mean_rank": r.rank, "failed": failed}
            if c := r.cells.get(d):
                paper, run = c.paper or (None, None), c.runs[0]
                found |= {
                    "mark": c.mark,
                    "preset": run["preset"],
                    "auroc": c.mean,
                    "auroc_std": c.std,
                    "ap": c.ap,
                }
                found |= {"images_per_second": c.cost("score_images_per_second")}
                found |= {what: c.cost(what) for what in ("fit_seconds", "peak_memory_mb")}
                found |= {"ci_low": c.ci[0], "ci_high": c.ci[1], "paper": paper[0], "paper_std": paper[1]}
                found |= {"paper_direction": c.direction, "difference": c.difference}
                found["seeds"] = " ".join(str(run["seed"]) for run in c.runs)
                found["image_shape"] = "x".join(map(str, run.get("image_shape", "")))
                found["seen_at"] = r.sizes.get(d, "")
                found["devices"] = "; ".join(dict.fromkeys(str(run["device"]) for run in c.runs))
            if c or failed:
                rows.append(["" if found.get(f) is None else str(found[f]) for f in CSV_FIELDS])
    return table(CSV_FIELDS, rows)


def heatmap_table(results: BenchmarkResults) -> Table:
    """Pixel metrics, means over seeds, of rows whose lines all have them."""
    rows = []
    for d in results.datasets:
        for r in results.rows:
            if d in r.cells:
                runs = r.cells[d].runs
                means = [fmean(run[k] for run in runs) for k in ("auroc", "pixel_auroc", "pro")]
                rows.append([d, r.name, str(len(runs)), *(f"{m:.3f}" for m in means)])
    return table(("data set", "method", "seeds", "image AUROC", "pixel AUROC", "PRO"), rows)


def default_table(results: BenchmarkResults) -> Table:
    """Rows of data sets: the best untrained row, the default with each of its weights, the paper's DIA."""
    own = [r for r in results.rows if r.method == DEFAULT]
    rows = []
    for d in results.datasets:
        if not any(d in r.cells for r in own):
            continue
        best = results.best_trivial.get(d)
        untrained = "–" if best is None else f"{best.name} {best.cells[d].mean:.3f}"
        cells = [r.cells.get(d) for r in own]
        made = [Marked(text.mean_and_spread(c.mean, c.std), c.mark) if c else "–" for c in cells]
        paper = next((r.cells[d] for r in results.rows if r.method == "dia" and d in r.cells), None)
        rows.append([d, untrained, *made, text.paper_value(paper, True) if paper else ""])
    heads = [f"{r.method}, {r.kind}" for r in own]
    return table(("data set", "best untrained row", *heads, "DIA as published"), rows)


def cost_table(results: BenchmarkResults) -> Table:
    """Weights, what the publication starts from, size and cost of each row that trains."""
    head = (
        *("method", "weights here", "published with", "“extra training data” as printed", "images seen at"),
        *("fit, s", "images/s", "peak MiB"),
    )
    costs = ("fit_seconds", "score_images_per_second", "peak_memory_mb")
    rows = [
        [
            r.name,
            r.weights,
            r.starts_from,
            r.printed,
            text.sizes(r),
            *(text.amount(r.average(c)) for c in costs),
        ]
        for r in results.rows
        if not r.trivial
    ]
    return table(head, rows)


def gain_table(results: BenchmarkResults) -> Table:
    """Gain over CSI of each row that has one, the data sets it is over, and the paper's gain."""
    theirs = {m: f"{text.signed(100 * gain, 2)}\N{NO-BREAK SPACE}%" for m, gain in paper_gains().items()}
    rows = [
        [
            r.name,
            f"{text.signed(100 * r.gain, 2)}\N{NO-BREAK SPACE}%",
            "all" if set(r.gain_over) == set(results.once) else ", ".join(r.gain_over),
            theirs.get(r.method, "–"),
        ]
        for r in results.rows
        if r.gain is not None and r.name != BASE
    ]
    return table(("method", "gain", "over", "the paper's, six sets"), rows)


def failure_table(results: BenchmarkResults) -> Table:
    """The runs that failed, with their reasons."""
    rows = [
        [r.name, d, str(seed), reason]
        for r in results.rows
        for d, by_seed in r.failures.items()
        for seed, reason in sorted(by_seed.items())
    ]
    return table(("method", "data set", "seed", "reason"), rows)


def printed_table() -> Table:
    """The paper's own table: its rows with their marks, our correction and the true starting weights."""
    papers = paper_table()
    datasets = list(papers[BASE].aurocs)
    rows = []
    for p in papers.values():
        said = ("✓" if p.extra_data else "×") + (" (wrong)" if p.corrected else "")
        values = [f"{m:.3f} ± {s:.2f}" for m, s in (p.aurocs[d] for d in datasets)]
        rows.append([f"{p.mark}{p.title}", p.venue, said, p.weights, *values])
    return table(("method", "venue", "“extra training data”", "starts from", *datasets), rows)


# --- ablations and recipes --------------------------------------------------------------------------------


def ablation_table(grid: Grid, made: Sequence[Measured]) -> Table:
    """The cells of a grid on one data set: AUROC; published values and measures of heatmaps, if any.

    Args:
        grid: a grid of `dia ablate`.
        made: what was measured, one of each cell.

    Returns:
        The table.
    """
    published, mapped = any(m.published is not None for m in made), any(m.maps for m in made)
    head = [*grid.factors, "AUROC", *(["published", "ours − published"] if published else [])]
    head += ["pixel AUROC", "PRO"] if mapped else []
    rows = []
    for m in made:
        values, seeds, d = list(m.aurocs.values()), len(grid.seeds), m.difference
        few = f" ({len(values)} of {seeds} seeds)" if 0 < len(values) < seeds else ""
        row: list[Value] = [*m.cell.names, over_seeds(values) + few]
        if published:
            both = values and m.published is not None
            row += [_number(m.published), text.signed(mean(values) - (m.published or 0)) if both else "–"]
        if mapped:
            row += map(_number, m.maps or (None, None))
        last = "–" if d is None else Marked(difference(d), "clear" if d.low > 0 or d.high < 0 else "")
        rows.append([*row, "reference" if m.cell.names == grid.reference else last])
    return table([*head, "difference [95 %]"], rows, len(grid.factors))


def published_table(grid: Grid, values: Mapping[str, Mapping[str, float]]) -> Table:
    """Published values of data sets that are not measured here.

    Args:
        grid: a grid of `dia ablate`.
        values: AUROC by data set and by cell ("level/level").

    Returns:
        The table.
    """
    cells = [c for c in grid.cells if any("/".join(c.names) in v for v in values.values())]
    rows = [[*c.names, *(_number(v.get("/".join(c.names))) for v in values.values())] for c in cells]
    return table([*grid.factors, *values], rows, len(grid.factors))


def over_seeds(aurocs: Sequence[float]) -> str:
    """'mean ± standard deviation' of AUROCs; the value alone with one seed, a dash with none."""
    if not aurocs:
        return "–"
    return text.mean_and_spread(mean(aurocs), stdev(aurocs) if len(aurocs) > 1 else None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
