"""The sentences about the benchmark's results that follow from comparisons, and the words in its cells.

Knows `BenchmarkResults`, how its rows stand and the paper's table; no ledger, scores, plots or forms of
output. Other sentences stand in the templates.
"""

from __future__ import annotations

from ...benchmark.published import DIRECTIONS, OTHER, UNKNOWN, known_direction
from ...benchmark.results import BenchmarkResults, Entry, Row, paper_name, source_of
from ...detectors.registry import DEFAULT
from ..text import duration, signed
from .standing import Standing

DIRECTION_MARKS = {OTHER: "⇄", UNKNOWN: "?"}


def paper_value(cell: Entry, compact: bool) -> str:
    """The paper's value, a mark where its direction is in question, and ours minus it.

    Args:
        cell: results of one method on one data set.
        compact: leaves the difference out.

    Returns:
        The text; empty where the paper has no value.
    """
    if cell.paper is None:
        return ""
    parts = [f"paper {cell.paper[0]:.3f}", DIRECTION_MARKS.get(cell.direction, "")]
    if not compact and cell.difference is not None:
        parts.append(f"({signed(cell.difference)})")
    return " ".join(filter(None, parts))


def sizes(row: Row) -> str:
    """The sizes that images were brought to; those of less than most data sets with the sets' names."""
    by_text: dict[str, list[str]] = {}
    for d, size in row.sizes.items():
        by_text.setdefault(size, []).append(d)
    most = [size for size, sets in by_text.items() if 2 * len(sets) > len(row.sizes)]  # one, or none
    others = [f"{size} ({', '.join(sets)})" for size, sets in by_text.items() if size not in most]
    return "; ".join(most + others)


def sentences(stands: Standing) -> tuple[str, list[str]]:
    """How many results of methods do not beat the best untrained row, and a line on each data set.

    The count is of each data set in its usual direction; the lines are of all.
    """
    results, lines = stands.results, []
    for d, best in results.best_trivial.items():
        trained = [r for r in results.rows if r.contends and d in r.cells]
        trained.sort(key=lambda r: -r.cells[d].mean)
        above, below = ([_named(r, d) for r in trained if results.beats(r, d) == b] for b in (True, False))
        if below:
            but = f"; {', '.join(above)} {_do(above)}" if above else ""
            row = f"not beat the best untrained row, {_named(best, d)}"
            lines.append(f"{d}: {', '.join(below)} {_do(below)} {row}{but}.")
    won, _, total = stands.count(stands.methods)
    if not total:
        return "No data set has both a trained and an untrained row.", []
    of = "result of a method does" if total == 1 else "results of methods do"
    return f"{total - won} of {total} {of} not beat the best untrained row of the data set.", lines


def spent(results: BenchmarkResults) -> str:
    """What all runs took, and what sharing features of frozen networks saved."""
    runs = [run for r in results.rows for c in r.cells.values() for run in c.runs]
    timed = [run for run in runs if run.get("run_seconds")]
    counted = [run for run in timed if run.get("cpu_seconds") is not None]
    wall, processor, shared = (
        sum(run.get(what, 0.0) for run in of)
        for what, of in (("run_seconds", timed), ("cpu_seconds", counted), ("shared_seconds", runs))
    )
    if not wall:
        return ""
    all_of = "" if len(timed) == len(runs) else f"{len(timed)} of "
    whose = " that tell their time" if all_of else ""
    of = "" if len(counted) == len(timed) else f" in {len(counted)} of them"
    known = f", {duration(processor)} of processor time{of}" if processor else ""
    saved = (
        f" Features of frozen networks that an earlier run computed saved {duration(shared)} more; the "
        "seconds of a fit count them as its own."
        if shared
        else ""
    )
    return f"The {all_of}{len(runs)} runs of this page{whose} took {duration(wall)}{known}.{saved}"


def counts(stands: Standing) -> str:
    """How many results are above the best untrained row, those of the default alone, and who is next."""
    above, clear, total = stands.count(stands.methods)
    untrained = "the best untrained row of their data set"
    said = [f"{above} of {total} results of methods are above {untrained}{_clear(clear)}."]
    if (default := stands.default) is not None:
        above, clear, total = stands.count([default])
        named = f" ({', '.join(default.clear)})" if default.clear else ""
        said.append(f"`{DEFAULT}` alone: {above} of {total}{_clear(clear)}{named}.")
        if (own := default.confirmed) and len(own) < total:
            above, clear, total = stands.count([default], own)
            said.append(f"On the {total} of these on which its recipe was confirmed: {above}{_clear(clear)}.")
            others = {source_of(d) for d in default.cells if d not in own}
            if known := [d for d in own if source_of(d) in others]:
                of = f"{len(known)} of the {total} are of the same sources as the others"
                said.append(f"{of}: {', '.join(known)}.")
    shown = [*stands.whole[:3], *filter(None, [stands.untrained])]
    if len(stands.sets) > 1 and shown:
        listed = ", ".join(f"{stands.short(s.row)} {s.mean:.3f}" for s in shown)
        said.append(f"Mean AUROC over {len(stands.sets)} data sets: {listed}.")
    return " ".join(said)


def _clear(number: int | None) -> str:
    return "" if number is None else f", {number} of them by more than the paired 95 % interval"


def _do(names: list[str]) -> str:
    return "do" if len(names) > 1 else "does"


def _named(row: Row, dataset: str) -> str:
    return f"{row.name} ({row.cells[dataset].mean:.3f})"


def below_chance(results: BenchmarkResults) -> list[str]:
    """A line on each data set where rows rank anomalous images as more normal."""
    out = []
    for d in results.datasets:
        below = [r for r in results.rows if d in r.cells and r.cells[d].mean < 0.5]
        clear = [_named(r, d) for r in below if r.cells[d].ci[1] < 0.5]
        others = [_named(r, d) for r in below if r.cells[d].ci[1] >= 0.5]
        parts = [f"with the whole interval {', '.join(clear)}"] * bool(clear)
        parts += [f"by the mean alone {', '.join(others)}"] * bool(others)
        if parts:
            out.append(f"{d}, below .5: {'; '.join(parts)}.")
    return out


def direction_notes(results: BenchmarkResults) -> list[str]:
    """The meaning of the marks at the paper's values; empty without marks."""
    cells = [(r.method, d) for r in results.rows for d, cell in r.cells.items() if cell.direction]
    seen = {known_direction(method, paper_name(d)) for method, d in cells}
    notes = [
        f"{DIRECTION_MARKS[OTHER]}: the paper's values of {' and '.join(d.methods)} on {d.dataset} most "
        f"likely belong to {d.likely}, where they have no mark: {d.reason}."
        for d in DIRECTIONS
        if d in seen and d.likely
    ]
    unsure = [f"{d.dataset} or {d.other}: {d.reason}" for d in DIRECTIONS if d in seen and not d.likely]
    if unsure:
        mark = DIRECTION_MARKS[UNKNOWN]
        notes.append(f"{mark}: the direction of the paper's value is not known. {'; '.join(unsure)}.")
    return notes
