"""The benchmark's table in words: Markdown, CSV, LaTeX, and the sentences that go with it.

Knows a `BenchmarkTable` and nothing else: no ledger, scores or plots.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from ..benchmark.published import BASE, DIRECTIONS, OTHER, UNKNOWN, known_direction, paper_gains, paper_table
from .table import BenchmarkTable, Cell, Row, about, headline_gain, paper_name

CSV_FIELDS = (
    *("dataset", "method", "kind", "weights", "starts_from", "family", "preset", "seeds", "auroc"),
    *("auroc_std", "ci_low", "ci_high", "ap", "mark", "paper", "paper_std", "paper_direction"),
    *("difference", "mean_rank"),
    *("fit_seconds", "images_per_second", "peak_memory_mb", "image_shape", "seen_at", "devices", "failed"),
)
HOW_TO_READ = (
    "AUROC: mean ± standard deviation over seeds; in brackets the mean of the runs' 95 % bootstrap "
    "intervals, which count the images of the test set and not the seeds. The best of each column is bold, "
    "the second best underlined. Untrained rows stand on top: a method that does not beat them has not shown "
    "that it sees more than they do. The paper's values come in part from other splits, and its released "
    "training keeps the epoch that is best on the test set, which ours never looks at: a difference is no "
    "error by itself. A method that is published with ImageNet weights and had none here is not what was "
    "published, and its row says little of it."
)


def sentences(table: BenchmarkTable) -> tuple[str, list[str]]:
    """How many results do not beat the best untrained row of their data set, and a line on each data set."""
    lost = total = 0
    lines = []
    for d, best in table.best_trivial.items():
        bar = best.cells[d].mean
        trained = [r for r in table.rows if not r.trivial and d in r.cells]
        trained.sort(key=lambda r: -r.cells[d].mean)
        above = [_told(r, d) for r in trained if r.cells[d].mean > bar]
        below = [_told(r, d) for r in trained if r.cells[d].mean <= bar]
        lost, total = lost + len(below), total + len(trained)
        if below:
            but = f"; {', '.join(above)} {_do(above)}." if above else "."
            best_is = f"not beat the best untrained row, {_told(best, d)}"
            lines.append(f"{d}: {', '.join(below)} {_do(below)} {best_is}{but}")
    if not total:
        return "No method stands beside an untrained row here.", []
    of = "result of a method does" if total == 1 else "results of methods do"
    return f"{lost} of {total} {of} not beat the best untrained row of the data set.", lines


def _do(names: Sequence[str]) -> str:
    return "do" if len(names) > 1 else "does"


def _told(row: Row, dataset: str) -> str:
    return f"{row.name} ({row.cells[dataset].mean:.3f})"


def gain_sentence() -> str:
    """What the paper says of its gain, and what its own numbers make of it."""
    oct_alone, headline = headline_gain()
    table = paper_gains()["dia"]
    return (
        f"Mean relative gain over {BASE}, (method − {BASE}) / {BASE}, over the data sets that both have, "
        f"each in its usual direction. The paper's table gives {100 * table:.2f} % for dia over its six data "
        f"sets; its headline follows with {oct_alone:.3f} on oct2017, as in its ablations: "
        f"{100 * headline:.2f} %."
    )


def corrections() -> str:
    """Which rows of the paper's table are printed as without extra data and start from ImageNet."""
    wrong = [p for p in paper_table().values() if p.corrected]
    unmarked = [p.title for p in wrong if not p.mark]
    marked = [f"{p.mark}{p.title}" for p in wrong if p.mark]
    return (
        f"{len(wrong)} of the paper's rows are printed × under “extra training data” though their "
        f"publications start from ImageNet weights: {', '.join(unmarked)}, which bear no other mark, and "
        f"{', '.join(marked)}, whose mark is not explained in what we have of the paper."
    )


# --- Markdown ---------------------------------------------------------------------------------------------


def markdown_row(cells: Iterable[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """`text` as Markdown that shows it and nothing else."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|*`\\])", r"\\\1", text)


def markdown_table(table: BenchmarkTable, compact: bool = False) -> str:
    """Rows of methods, columns of data sets; `compact` leaves out intervals, differences and mean ranks.

    A compact row says how many seeds its data sets have once, and of those that have fewer, beside the value.
    """
    about, rest = (["weights", "seeds"], []) if compact else (["weights"], ["mean rank"])
    head = ["method", *about, *map(escaped, table.datasets), *rest]
    out = [
        markdown_row(head),
        markdown_row(["---", *["---"] * len(about), *["---:"] * len(head[1 + len(about) :])]),
    ]
    for family, rows in table.blocks:
        out.append(markdown_row([f"*{escaped(family)}*", *[""] * (len(head) - 1)]))
        for r in rows:
            most = max((len(c.runs) for c in r.cells.values()), default=0) if compact else table.seeds
            cells = [_markdown_cell(r, d, most, compact) for d in table.datasets]
            weights = "" if r.trivial else escaped(r.kind if compact else r.weights)
            seeds = [str(most)] if compact else []
            out.append(
                markdown_row([escaped(r.method), weights, *seeds, *cells, *([_rank(r)] if rest else [])])
            )
    return "\n".join(out)


def _rank(row: Row) -> str:
    return "–" if row.rank is None else f"{row.rank:.2f}"


def _markdown_cell(row: Row, dataset: str, most: int, compact: bool) -> str:
    cell = row.cells.get(dataset)
    if cell is None:
        return "failed" if dataset in row.failures else "–"
    wrap = {"best": ("**", "**"), "second": ("<ins>", "</ins>"), "": ("", "")}[cell.mark]
    parts = [wrap[0] + value(cell) + wrap[1], *filter(None, [fewer(cell, most)])]
    if not compact:
        parts.append(interval(cell))
    if cell.paper is not None:
        parts.append(beside(cell, difference=not compact))
    return "<br>".join(parts)


def value(cell: Cell) -> str:
    """'mean ± std', or the mean alone with one seed."""
    return f"{cell.mean:.3f}" if cell.std is None else f"{cell.mean:.3f} ± {cell.std:.3f}"


def signed(number: float, digits: int = 3) -> str:
    """With its sign, a true minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def fewer(cell: Cell, most: int) -> str:
    """The number of seeds where it is not that of the others."""
    return "" if len(cell.runs) == most else f"{len(cell.runs)} of {most} seeds"


def interval(cell: Cell) -> str:
    """The 95 % interval."""
    return f"[{cell.ci[0]:.3f}, {cell.ci[1]:.3f}]"


DIRECTION_MARKS = {OTHER: "⇄", UNKNOWN: "?"}


def beside(cell: Cell, difference: bool = True) -> str:
    """The paper's value, a mark where its direction is in question, and ours minus it."""
    if cell.paper is None:
        return ""
    parts = [f"paper {cell.paper[0]:.3f}", DIRECTION_MARKS.get(cell.direction, "")]
    if difference and cell.difference is not None:
        parts.append(f"({signed(cell.difference)})")
    return " ".join(filter(None, parts))


def direction_notes(table: BenchmarkTable) -> list[str]:
    """What the marks beside the paper's values mean, and why they are there; none without marks."""
    cells = [(r.method, d) for r in table.rows for d, cell in r.cells.items() if cell.direction]
    seen = {known_direction(method, paper_name(d)) for method, d in cells}
    notes = [
        f"{DIRECTION_MARKS[OTHER]}: the paper's values of {' and '.join(d.methods)} on {d.dataset} most "
        f"likely belong to {d.likely}, beside which they bear no mark: {d.reason}."
        for d in DIRECTIONS
        if d in seen and d.likely
    ]
    unsure = [f"{d.dataset} or {d.other}: {d.reason}" for d in DIRECTIONS if d in seen and not d.likely]
    if unsure:
        mark = DIRECTION_MARKS[UNKNOWN]
        notes.append(f"{mark}: the direction of the paper's value is not known. {'; '.join(unsure)}.")
    return notes


def cost_rows(table: BenchmarkTable) -> list[list[str]]:
    """Of each row that trains: name, weights, what its publication starts from, as printed, size, cost."""
    return [
        [
            *(r.name, r.weights, r.starts_from, r.printed, sizes(r)),
            *(amount(r.average(w)) for w in ("fit_seconds", "images_per_second", "peak_memory_mb")),
        ]
        for r in table.rows
        if not r.trivial
    ]


COST_HEAD = (
    *("method", "weights here", "published with", "“extra training data” as printed", "images seen at"),
    *("fit, s", "images/s", "peak MiB"),
)


def sizes(row: Row) -> str:
    """What images it worked at, and on which data sets where not on all alike."""
    by_text: dict[str, list[str]] = {}
    for d, size in row.sizes.items():
        by_text.setdefault(size, []).append(d)
    if len(by_text) == 1 and set(row.sizes) == set(row.cells):
        return next(iter(by_text))
    return "; ".join(f"{size} ({', '.join(ds)})" for size, ds in by_text.items())


def amount(number: float | None) -> str:
    """A measured quantity for people."""
    return "–" if number is None else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def gain_rows(table: BenchmarkTable) -> list[list[str]]:
    """Of each row with a gain over CSI: name, gain, over which data sets, the paper's."""
    theirs = paper_gains()
    return [
        [
            r.name,
            f"{signed(100 * r.gain, 2)}\N{NO-BREAK SPACE}%",
            "all" if set(r.gain_over) == set(table.once) else ", ".join(r.gain_over),
            f"{signed(100 * theirs[r.method], 2)}\N{NO-BREAK SPACE}%" if r.method in theirs else "–",
        ]
        for r in table.rows
        if r.gain is not None and r.name != BASE
    ]


def failure_rows(table: BenchmarkTable) -> list[list[str]]:
    """Of each run that came to nothing: name, data set, seed, reason."""
    return [
        [r.name, d, str(seed), reason]
        for r in table.rows
        for d, by_seed in r.failures.items()
        for seed, reason in sorted(by_seed.items())
    ]


def paper_rows() -> tuple[list[str], list[list[str]]]:
    """The paper's own table: head, and rows with its mark, our correction and what is true."""
    papers = paper_table()
    datasets = list(papers[BASE].aurocs)
    rows = []
    for p in papers.values():
        said = ("✓" if p.extra_data else "×") + (" (wrong)" if p.corrected else "")
        rows.append([f"{p.mark}{p.title}", p.venue, said, p.weights])
        rows[-1] += [f"{m:.3f} ± {s:.2f}" for m, s in (p.aurocs[d] for d in datasets)]
    return ["method", "venue", "“extra training data”", "starts from", *datasets], rows


def notes(table: BenchmarkTable) -> list[tuple[str, str]]:
    """What is known of each data set."""
    return [(d, about(d)) for d in table.datasets]


# --- CSV --------------------------------------------------------------------------------------------------


def csv_table(table: BenchmarkTable) -> str:
    """One line for each cell, in full precision; also for those that failed, without numbers."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n", restval="")
    writer.writeheader()
    for r in table.rows:
        row: dict[str, object] = {
            "method": r.method,
            "kind": r.kind,
            "weights": r.weights,
            "starts_from": r.starts_from,
        }
        row |= {"family": r.family, "mean_rank": r.rank}
        for d in table.datasets:
            failed = "; ".join(f"seed {s}: {why}" for s, why in sorted(r.failures.get(d, {}).items()))
            c = r.cells.get(d)
            if c is None:
                if failed:
                    writer.writerow({**row, "dataset": d, "failed": failed})
                continue
            writer.writerow(
                {
                    **row,
                    "dataset": d,
                    "preset": c.runs[0]["preset"],
                    "seeds": " ".join(str(run["seed"]) for run in c.runs),
                    "auroc": c.mean,
                    "auroc_std": c.std,
                    "ci_low": c.ci[0],
                    "ci_high": c.ci[1],
                    "ap": c.ap,
                    "mark": c.mark,
                    "paper": c.paper and c.paper[0],
                    "paper_std": c.paper and c.paper[1],
                    "paper_direction": c.direction,
                    "difference": c.difference,
                    "fit_seconds": c.fit_seconds,
                    "images_per_second": c.images_per_second,
                    "peak_memory_mb": c.peak_memory_mb,
                    "image_shape": "x".join(map(str, c.runs[0].get("image_shape", ""))),
                    "seen_at": r.sizes.get(d, ""),
                    "devices": "; ".join(dict.fromkeys(str(run["device"]) for run in c.runs)),
                    "failed": failed,
                }
            )
    return out.getvalue()


# --- LaTeX ------------------------------------------------------------------------------------------------

_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "✓": r"$\checkmark$", "<": "$<$", ">": "$>$"},
    **{"⇄": r"$\rightleftarrows$", "“": "``", "”": "''", "†": r"\dag{}", "‡": r"\ddag{}"},
}


def tex(text: str) -> str:
    """`text` as LaTeX that prints it and runs nothing."""
    return "".join(_TEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def latex_table(table: BenchmarkTable, title: str) -> str:
    """A `table*` environment for booktabs and graphicx; the paper's values in a smaller line below ours."""
    columns = len(table.datasets) + 3
    out = [
        "% \\usepackage{booktabs,graphicx,amssymb}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{tex(' '.join([f'{title}.', HOW_TO_READ, *direction_notes(table)]))}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{ll{'r' * (columns - 2)}}}",
        r"\toprule",
        _tex_row(["method", "weights", *map(tex, table.datasets), "mean rank"]),
    ]
    for family, rows in table.blocks:
        out += [r"\midrule", rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{tex(family)}}}}} \\"]
        for r in rows:
            ours = [_tex_cell(r, d, table.seeds) for d in table.datasets]
            out.append(_tex_row([tex(r.method), "" if r.trivial else tex(r.weights), *ours, tex(_rank(r))]))
            if any(c.paper for c in r.cells.values()):
                theirs = [beside(r.cells[d]) if d in r.cells else "" for d in table.datasets]
                out.append(
                    _tex_row(["", "", *(rf"{{\scriptsize {tex(t)}}}" if t else "" for t in theirs), ""])
                )
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_cell(row: Row, dataset: str, most: int) -> str:
    cell = row.cells.get(dataset)
    if cell is None:
        return "failed" if dataset in row.failures else "--"
    wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}[cell.mark]
    spread = "" if cell.std is None else rf" {{\scriptsize $\pm$ {cell.std:.3f}}}"
    return (wrap % f"{cell.mean:.3f}") + spread + rf" {{\scriptsize {interval(cell)} {fewer(cell, most)}}}"
