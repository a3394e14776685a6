"""The one type of table that is shown anywhere, and the tables of the benchmark and of ablations.

A `Table` says what stands in it and what is marked; `render.py` gives it the form of Markdown, CSV, LaTeX,
HTML or a terminal. Knows results; no scores, plots or pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, mean, stdev
from typing import Any, Literal, NamedTuple

from ..benchmark.grid import Grid, Measured
from ..benchmark.published import BASE, paper_gains, paper_table
from ..benchmark.results import BenchmarkResults, Row
from ..evaluate.compare import Difference
from . import text


class Marked(NamedTuple):
    """A value that is marked, or has smaller lines below it.

    Args:
        text: what stands there.
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
        blocks: rows of C values each, under a heading that is empty where there is none.
        words: so many columns from the left hold words; the others hold numbers, which are aligned right. All
            hold words where None.
    """

    head: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[Line, ...]], ...]
    words: int | None = None

    @property
    def rows(self) -> list[Line]:
        """The rows of all blocks."""
        return [row for _, rows in self.blocks for row in rows]


def table(head: Iterable[str], rows: Iterable[Line], words: int | None = None) -> Table:
    """A table of one block; see `Table`."""
    return Table(tuple(head), (("", tuple(rows)),), words)


# --- the benchmark ----------------------------------------------------------------------------------------


def results_table(results: BenchmarkResults, compact: bool = False) -> Table:
    """Rows of methods by family, columns of data sets.

    Args:
        results: of the benchmark.
        compact: leaves out intervals, differences and mean ranks, and has a column of how many seeds a row's
            data sets have; cells that have fewer say so.
    """
    about = ("weights", "seeds") if compact else ("weights",)
    rest = () if compact else ("mean rank",)

    def line(r: Row) -> Line:
        most = max((len(c.runs) for c in r.cells.values()), default=0) if compact else results.seeds
        weights = "" if r.trivial else r.kind if compact else r.weights
        rank = [] if compact else ["–" if r.rank is None else f"{r.rank:.2f}"]
        cells = [_result(r, d, most, compact) for d in results.datasets]
        return [r.method, weights, *([str(most)] if compact else []), *cells, *rank]

    blocks = tuple((family, tuple(line(r) for r in rows)) for family, rows in results.blocks)
    return Table(("method", *about, *results.datasets, *rest), blocks, 1 + len(about))


def _result(row: Row, dataset: str, most: int, compact: bool) -> Value:
    cell = row.cells.get(dataset)
    if cell is None:
        return "failed" if dataset in row.failures else "–"
    small = [text.fewer(cell, most), "" if compact else text.interval(cell)]
    small.append(text.beside(cell, difference=not compact))
    return Marked(text.value(cell), cell.mark, tuple(filter(None, small)))


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
        of_row = {
            "method": r.method, "kind": r.kind, "weights": r.weights, "starts_from": r.starts_from,
            "family": r.family, "mean_rank": r.rank,
        }  # fmt: skip
        for d in results.datasets:
            failed = "; ".join(f"seed {s}: {why}" for s, why in sorted(r.failures.get(d, {}).items()))
            of_cell = _long(r, d) if d in r.cells else {}
            if of_cell or failed:
                found: dict[str, Any] = {**of_row, **of_cell, "dataset": d, "failed": failed}
                rows.append(["" if (v := found.get(f)) is None else str(v) for f in CSV_FIELDS])
    return table(CSV_FIELDS, rows)


def _long(row: Row, dataset: str) -> dict[str, Any]:
    c = row.cells[dataset]
    paper, paper_std = c.paper or (None, None)
    return {
        "preset": c.runs[0]["preset"],
        "seeds": " ".join(str(run["seed"]) for run in c.runs),
        "auroc": c.mean,
        "auroc_std": c.std,
        "ci_low": c.ci[0],
        "ci_high": c.ci[1],
        "ap": c.ap,
        "mark": c.mark,
        "paper": paper,
        "paper_std": paper_std,
        "paper_direction": c.direction,
        "difference": c.difference,
        "fit_seconds": c.cost("fit_seconds"),
        "images_per_second": c.cost("score_images_per_second"),
        "peak_memory_mb": c.cost("peak_memory_mb"),
        "image_shape": "x".join(map(str, c.runs[0].get("image_shape", ""))),
        "seen_at": row.sizes.get(dataset, ""),
        "devices": "; ".join(dict.fromkeys(str(run["device"]) for run in c.runs)),
    }


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


COSTS = ("fit_seconds", "score_images_per_second", "peak_memory_mb")


def cost_table(results: BenchmarkResults) -> Table:
    """Of each row that trains: weights, what its publication starts from, as printed, size, cost."""
    head = (
        *("method", "weights here", "published with", "“extra training data” as printed", "images seen at"),
        *("fit, s", "images/s", "peak MiB"),
    )
    return table(
        head,
        [
            [
                *(r.name, r.weights, r.starts_from, r.printed, text.sizes(r)),
                *(text.amount(r.average(w)) for w in COSTS),
            ]
            for r in results.rows
            if not r.trivial
        ],
    )


def gain_table(results: BenchmarkResults) -> Table:
    """Of each row with a gain over CSI: the gain, over which data sets, the paper's."""
    theirs = paper_gains()
    rows = [
        [
            r.name,
            f"{text.signed(100 * r.gain, 2)}\N{NO-BREAK SPACE}%",
            "all" if set(r.gain_over) == set(results.once) else ", ".join(r.gain_over),
            f"{text.signed(100 * theirs[r.method], 2)}\N{NO-BREAK SPACE}%" if r.method in theirs else "–",
        ]
        for r in results.rows
        if r.gain is not None and r.name != BASE
    ]
    return table(("method", "gain", "over", "the paper's, six sets"), rows)


def failure_table(results: BenchmarkResults) -> Table:
    """The runs that came to nothing, with their reasons."""
    rows = [
        [r.name, d, str(seed), reason]
        for r in results.rows
        for d, by_seed in r.failures.items()
        for seed, reason in sorted(by_seed.items())
    ]
    return table(("method", "data set", "seed", "reason"), rows)


def printed_table() -> Table:
    """The paper's own table: rows with its mark, our correction and what is true."""
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
    """The cells of a grid on one data set: AUROC, the published value if any has one, difference.

    Args:
        grid: of `dia ablate`.
        made: of each of its cells.
    """
    published = any(m.published is not None for m in made)
    head = [*grid.factors, "AUROC", *(["published", "ours − published"] if published else [])]
    return table(
        [*head, "difference [95 %]"], [_measured(m, grid, published) for m in made], len(grid.factors)
    )


def _measured(m: Measured, grid: Grid, published: bool) -> Line:
    values = list(m.aurocs.values())
    middle = mean(values) if values else None
    few = f" ({len(values)} of {len(grid.seeds)} seeds)" if 0 < len(values) < len(grid.seeds) else ""
    line: list[Value] = [*m.cell.names, over_seeds(values) + few]
    if published:
        apart = None if middle is None or m.published is None else middle - m.published
        line += [_number(m.published), "–" if apart is None else f"{apart:+.3f}"]
    if m.cell.names == grid.reference:
        return [*line, "reference"]
    d = m.difference
    if d is None:
        return [*line, "–"]
    return [*line, Marked(difference(d), "clear" if d.low > 0 or d.high < 0 else "")]


def published_table(grid: Grid, values: Mapping[str, Mapping[str, float]]) -> Table:
    """Published values of data sets that are not measured here.

    Args:
        grid: of `dia ablate`.
        values: by data set, AUROC by cell ("level/level").
    """
    cells = [c for c in grid.cells if any("/".join(c.names) in v for v in values.values())]
    rows = [[*c.names, *(_number(v.get("/".join(c.names))) for v in values.values())] for c in cells]
    return table([*grid.factors, *values], rows, len(grid.factors))


def over_seeds(aurocs: Sequence[float]) -> str:
    """'mean ± standard deviation' of AUROCs; the value alone with one seed, a dash with none."""
    spread = f" ± {stdev(aurocs):.3f}" if len(aurocs) > 1 else ""
    return f"{mean(aurocs):.3f}{spread}" if aurocs else "–"


def difference(d: Difference) -> str:
    """The difference with its interval."""
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
