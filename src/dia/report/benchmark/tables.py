"""The tables of the benchmark. Knows results; no scores, plots or pages."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ...benchmark.published import BASE, paper_gains, paper_table
from ...benchmark.results import BenchmarkResults, Row
from ...benchmark.runs import full_settings
from ...core.errors import DataError
from ...detectors.registry import DEFAULT, detector_class, wanted_settings
from ...features.package import LITE
from .. import text
from ..table import Line, Marked, Table, Value, table
from .sentences import paper_value, sizes
from .standing import Standing

CSV_FIELDS = (
    *("dataset", "method", "kind", "weights", "starts_from", "family", "preset", "seeds", "auroc"),
    *("auroc_std", "ci_low", "ci_high", "ap", "mark", "paper", "paper_std", "paper_direction"),
    *("difference", "mean_rank"),
    *("fit_seconds", "run_seconds", "cpu_seconds", "images_per_second", "peak_memory_mb"),
    *("architecture", "trained", "image_shape", "seen_at", "devices", "failed"),
)


def results_table(results: BenchmarkResults, compact: bool = False) -> Table:
    """Rows of methods by family, columns of data sets.

    Args:
        results: results of the benchmark.
        compact: leaves out intervals, differences, means and mean ranks, and has a column of how many seeds
            a row's data sets have; cells with fewer say so.

    Returns:
        The table.
    """

    def line(r: Row) -> Line:
        most = max((len(c.runs) for c in r.cells.values()), default=0) if compact else results.seeds
        cells = [_result(r, d, most, compact) for d in results.datasets]
        if compact:
            return [r.method, "" if r.trivial else r.label or r.kind, str(most), *cells]
        rank = "–" if r.rank is None else f"{r.rank:.2f}"
        return [r.method, "" if r.trivial else r.label or r.kind, *cells, _mean(r, results), rank]

    blocks = tuple((family, tuple(map(line, rows))) for family, rows in results.blocks)
    first = ("method", "weights", "seeds") if compact else ("method", "weights")
    rank = () if compact else ("mean", "mean rank")
    return Table((*first, *results.datasets, *rank), blocks, len(first))


def _mean(row: Row, results: BenchmarkResults) -> Value:
    """The mean over the data sets in their usual direction, or over those of them that there are."""
    there = [row.cells[d].mean for d in results.once if d in row.cells]
    if not there:
        return "–"
    few = len(there) < len(results.once)
    return Marked(f"{fmean(there):.3f}", notes=(f"{len(there)} of {len(results.once)} sets",) * few)


def _result(row: Row, dataset: str, most: int, compact: bool) -> Value:
    cell = row.cells.get(dataset)
    if cell is None:
        return "failed" if dataset in row.failures else "–"
    notes = (
        f"{len(cell.runs)} of {most} seeds" if len(cell.runs) < most else "",
        "" if compact else f"[{cell.ci[0]:.3f}, {cell.ci[1]:.3f}]",
        paper_value(cell, compact),
    )
    return Marked(text.mean_and_spread(cell.mean, cell.std), cell.mark, tuple(filter(None, notes)))


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
                found |= {"run_seconds": c.cost("run"), "cpu_seconds": c.cost("processor")}
                found |= {what: c.cost(what) for what in _COSTS if what in CSV_FIELDS}
                found |= {"ci_low": c.ci[0], "ci_high": c.ci[1], "paper": paper[0], "paper_std": paper[1]}
                found |= {"paper_direction": c.direction, "difference": c.difference}
                found["seeds"] = " ".join(str(run["seed"]) for run in c.runs)
                found["image_shape"] = "x".join(map(str, run.get("image_shape", "")))
                found["architecture"], found["trained"] = architecture(r), trained(r)
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
        rows.append([d, untrained, *made, paper_value(paper, True) if paper else ""])
    heads = [f"{r.method}, {r.label or r.kind}" for r in own]
    return table(("data set", "best untrained row", *heads, "DIA as published"), rows)


def architecture(row: Row) -> str:
    """Whether a method has the architecture that was published, and what stands in its place."""
    if not row.contends or not row.cells:
        return "–"
    try:
        cls, line = detector_class(row.method), next(iter(row.cells.values())).runs[0]
    except DataError:
        return "–"
    if row.method == DEFAULT:
        return "yes"
    if not cls.pretrained:
        return "yes" if line["preset"] == "paper" else "yes in kind, small"
    if row.kind in LITE:
        return f"no, EfficientNet-Lite{LITE[row.kind]} in its place"
    wanted, here = wanted_settings(row.method, "paper"), full_settings(line)
    published, ours = (getattr(s, "backbone", None) for s in (wanted, here))
    if here is None:
        return "–"
    return "yes" if published == ours else f"no, {ours} in the place of {published}"


def trained(row: Row) -> str:
    """How long a method trained, as its settings say: steps, or passes over the normals."""
    found = dict[str, None]()
    for cell in row.cells.values():
        line = cell.runs[0]
        s, said = full_settings(line), line.get("settings") or {}
        for part in (s, getattr(s, "amplify", None)):
            if steps := getattr(part, "steps", None):
                batch = f" of {said['batch']}" if "batch" in said else ""
                found[f"{steps:,} steps{batch}"] = None
                break
            if epochs := getattr(part, "epochs", None):
                found[f"{epochs} epoch{'s' * (epochs > 1)}"] = None
                break
    return "; ".join(found) or "–"


_COSTS = ("fit_seconds", "run", "processor", "score_images_per_second", "peak_memory_mb")


def cost_table(results: BenchmarkResults) -> Table:
    """Weights, architecture, size, training and cost of each row but the untrained ones."""
    head = (
        *("method", "weights here", "published with", "published architecture", "trained", "images seen at"),
        *("fit, s", "whole run, s", "processor, s", "images/s", "peak MiB"),
        "“extra training data” as printed",
    )
    rows = [
        [
            r.name,
            r.weights,
            r.starts_from,
            architecture(r),
            trained(r),
            sizes(r),
            *(text.amount(r.average(c)) for c in _COSTS),
            r.printed,
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
        values = [
            f"{m:.3f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{s:.2f}" for m, s in (p.aurocs[d] for d in datasets)
        ]
        rows.append([f"{p.mark}{p.title}", p.venue, said, p.weights, *values])
    return table(("method", "venue", "“extra training data”", "starts from", *datasets), rows)


def standing_table(stands: Standing) -> Table:
    """Methods, the best untrained row and the controls over the data sets, best first.

    Args:
        stands: how the rows stand.
    """
    rows: list[Line] = []
    for s in [*stands.rows, *stands.controls]:
        wins = "–" if s.row.trivial else f"{len(s.above)} of {len(s.against)}"
        clear = "–" if s.row.trivial or s.clear is None else str(len(s.clear))
        rank = "–" if s.row.rank is None else f"{s.row.rank:.1f}"
        costs = (s.row.average(c) for c in ("processor", "score_images_per_second"))
        name = Marked(stands.short(s.row), "best" if s in stands.whole[:1] else "")
        rows.append([name, str(len(s.cells)), f"{s.mean:.3f}", rank, wins, clear, *map(text.amount, costs)])
    head = (
        "method",
        "data sets",
        "mean AUROC",
        "mean rank",
        "above untrained",
        "clear",
        "processor s",
        "images/s",
    )
    return table(head, rows, 1)
