"""What is said of the benchmark's results, in sentences and short texts, for every form of its page.

Knows `BenchmarkResults` and the paper's table, and nothing else: no ledger, scores, plots or forms of output.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..benchmark.published import BASE, DIRECTIONS, OTHER, UNKNOWN, known_direction, paper_gains, paper_table
from ..benchmark.results import BenchmarkResults, Entry, Row, about, headline_gain, paper_name

HOW_TO_READ = (
    "AUROC: mean ± standard deviation over seeds; in brackets the mean of the runs' 95 % bootstrap "
    "intervals, which count the images of the test set and not the seeds. The best of each column is bold, "
    "the second best underlined. Untrained rows stand on top: a method that does not beat them has not shown "
    "that it sees more than they do. The paper's values come in part from other splits, and its released "
    "training keeps the epoch that is best on the test set, which ours never looks at: a difference is no "
    "error by itself. A method that is published with ImageNet weights and had none here is not what was "
    "published, and its row says little of it."
)


def sentences(table: BenchmarkResults) -> tuple[str, list[str]]:
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


def value(cell: Entry) -> str:
    """'mean ± std', or the mean alone with one seed."""
    return f"{cell.mean:.3f}" if cell.std is None else f"{cell.mean:.3f} ± {cell.std:.3f}"


def signed(number: float, digits: int = 3) -> str:
    """With its sign, a true minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def fewer(cell: Entry, most: int) -> str:
    """The number of seeds where it is not that of the others."""
    return "" if len(cell.runs) == most else f"{len(cell.runs)} of {most} seeds"


def interval(cell: Entry) -> str:
    """The 95 % interval."""
    return f"[{cell.ci[0]:.3f}, {cell.ci[1]:.3f}]"


DIRECTION_MARKS = {OTHER: "⇄", UNKNOWN: "?"}


def beside(cell: Entry, difference: bool = True) -> str:
    """The paper's value, a mark where its direction is in question, and ours minus it."""
    if cell.paper is None:
        return ""
    parts = [f"paper {cell.paper[0]:.3f}", DIRECTION_MARKS.get(cell.direction, "")]
    if difference and cell.difference is not None:
        parts.append(f"({signed(cell.difference)})")
    return " ".join(filter(None, parts))


def direction_notes(table: BenchmarkResults) -> list[str]:
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


def notes(table: BenchmarkResults) -> list[tuple[str, str]]:
    """What is known of each data set."""
    return [(d, about(d)) for d in table.datasets]
