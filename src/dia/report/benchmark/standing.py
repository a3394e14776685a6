"""How the rows stand over the data sets: who is best, by how much, and how often a method beats no training.

Knows results and paired differences; no pages. Methods are compared over the data sets without their other
directions, which are no new images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import hypot
from statistics import fmean

from ...benchmark.results import BenchmarkResults, Entry, Row
from ...detectors.registry import DEFAULT
from ...evaluate.compare import Compared


@dataclass(frozen=True, eq=False)
class Stand:
    """A row over the data sets.

    Args:
        row: the row.
        cells: its results by data set.
        against: the data sets that have an untrained row, too.
        above: those of them on which it beats the best untrained row.
        clear: those of them on which the paired 95 % interval, each by itself, is above 0; None where raw
            scores lack for one of them.
    """

    row: Row
    cells: Mapping[str, Entry]
    against: tuple[str, ...]
    above: tuple[str, ...]
    clear: tuple[str, ...] | None

    @property
    def confirmed(self) -> tuple[str, ...]:
        """The data sets on which its recipe was confirmed (docs/protocol.md)."""
        return tuple(
            d for d, c in self.cells.items() if any(run.get("protocol") == "confirm" for run in c.runs)
        )

    @property
    def mean(self) -> float:
        """AUROC, the mean over its data sets."""
        return fmean(c.mean for c in self.cells.values())

    @property
    def ci(self) -> tuple[float, float]:
        """95 % of the mean as the images vary, the data sets as they are, each independent of the others.

        The half-widths of the cells' intervals add in squares, below and above apart.
        """
        low = hypot(*(c.mean - c.ci[0] for c in self.cells.values())) / len(self.cells)
        high = hypot(*(c.ci[1] - c.mean for c in self.cells.values())) / len(self.cells)
        return self.mean - low, self.mean + high


class Apart:
    """One row minus another over the data sets that both have.

    Args:
        first: the better row.
        second: the other.
    """

    def __init__(self, first: Stand, second: Stand):
        both = [d for d in first.cells if d in second.cells]
        differences = [first.cells[d].mean - second.cells[d].mean for d in both]
        self.mean, self.sets = fmean(differences), len(both)
        self.higher = sum(d > 0 for d in differences)


@dataclass(frozen=True, eq=False)
class Standing:
    """All rows over the data sets.

    Args:
        results: results of the benchmark.
        rows: the methods and the best untrained row, best first: by mean rank where there is one, else by
            mean AUROC; those that lack a data set come after the others.
        controls: the controls, best first.
    """

    results: BenchmarkResults
    rows: tuple[Stand, ...]
    controls: tuple[Stand, ...]

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The data sets compared over."""
        return self.results.once

    @cached_property
    def methods(self) -> list[Stand]:
        """The rows that count as methods."""
        return [s for s in self.rows if s.row.contends]

    @cached_property
    def whole(self) -> list[Stand]:
        """The methods that have all data sets."""
        return [s for s in self.methods if len(s.cells) == len(self.sets)]

    def short(self, row: Row) -> str:
        """Returns the name of a row, without its weights where no other row is of its method."""
        alone = sum(r.method == row.method for r in self.results.rows) == 1
        return row.method if alone else row.name

    @property
    def untrained(self) -> Stand | None:
        """The one untrained row that is best over all data sets."""
        return next((s for s in self.rows if s.row.trivial), None)

    @property
    def default(self) -> Stand | None:
        """The best row of the package's default method."""
        return next((s for s in self.methods if s.row.method == DEFAULT), None)

    @property
    def lead(self) -> Apart | None:
        """The best method against the next; None with fewer than two that have all data sets."""
        return Apart(*self.whole[:2]) if len(self.whole) > 1 else None

    @property
    def told_apart(self) -> bool | None:
        """Whether Nemenyi's test tells the best method from the next; None where they take no part."""
        ranking, ranks = self.results.ranking, [s.row.rank for s in self.whole[:2]]
        if ranking is None or len(ranks) < 2 or ranks[0] is None or ranks[1] is None:
            return None
        return ranks[1] - ranks[0] > ranking.nemenyi.critical

    @cached_property
    def reference(self) -> float | None:
        """The mean over data sets of each one's best untrained row; None where a data set has none."""
        best = self.results.best_trivial
        if not self.sets or not all(d in best for d in self.sets):
            return None
        return fmean(best[d].cells[d].mean for d in self.sets)

    def count(self, rows: Sequence[Stand], sets: Sequence[str] | None = None) -> tuple[int, int | None, int]:
        """Counts results of rows against the best untrained row of each data set.

        Args:
            rows: whose results count.
            sets: on which data sets; on all if None.

        Returns:
            Those above it; those of them whose paired interval is above 0, None without raw scores; and all.
        """

        def number(names: Sequence[str]) -> int:
            return len([d for d in names if sets is None or d in sets])

        known = [number(s.clear) for s in rows if s.clear is not None]
        clear = sum(known) if len(known) == len(rows) else None
        return sum(number(s.above) for s in rows), clear, sum(number(s.against) for s in rows)


def standing(
    results: BenchmarkResults, differences: Mapping[str, Mapping[str, Sequence[Compared]]]
) -> Standing:
    """Orders the rows over the data sets.

    Args:
        results: results of the benchmark.
        differences: of `scores.comparisons`: by data set and reference.

    Returns:
        The standing.
    """
    best = results.best_trivial
    lows = {
        (d, c.first): c.difference.low
        for d, by_reference in differences.items()
        for c in (by_reference.get(best[d].name, ()) if d in best else ())
    }
    found = []
    for row in results.rows:
        cells = {d: row.cells[d] for d in results.once if d in row.cells}
        against = tuple(d for d in cells if d in best)
        above = tuple(d for d in against if results.beats(row, d))
        known = all((d, row.name) in lows for d in above)
        clear = tuple(d for d in above if lows[d, row.name] > 0) if known else None
        if cells:
            found.append(Stand(row, cells, against, above, clear))

    def place(s: Stand) -> tuple[bool, float, float]:
        lacks = len(s.cells) < len(results.once)
        return lacks, float("inf") if s.row.rank is None else s.row.rank, -s.mean

    found.sort(key=place)
    untrained = next((s for s in found if s.row.trivial), None)
    rows = tuple(s for s in found if s.row.contends or s is untrained)
    return Standing(results, rows, tuple(s for s in found if s.row.control))
