"""Which lines and failures of the ledger a grid asks for, and which of its runs are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...benchmark.grid import Grid
from ...benchmark.results import FailureKey
from ...benchmark.runs import weights_kind
from ...data.datasets import name_of

Lines = Sequence[Mapping[str, Any]]


class RunsOf:
    """The runs of a grid.

    Args:
        grid: of `dia benchmark`.
    """

    def __init__(self, grid: Grid):
        self.sets = [name_of(d) for d in grid.datasets]
        self.rows = [
            (c.method, weights_kind(getattr(grid.settings(c), "weights", "none"))) for c in grid.cells
        ]
        self.seeds = grid.seeds
        self._wanted = {(d, *row, seed) for d in self.sets for row in self.rows for seed in self.seeds}

    def lines(self, lines: Lines) -> list[Mapping[str, Any]]:
        """Returns those of the grid's runs, data sets in its order."""
        found = [r for r in lines if _key(r) in self._wanted]
        return sorted(found, key=lambda r: self.sets.index(r["dataset"]))

    def failures(self, failures: Mapping[FailureKey, str]) -> dict[FailureKey, str]:
        """Returns those of the grid's runs."""
        return {k: v for k, v in failures.items() if (*k[:2], weights_kind(k[2]), k[3]) in self._wanted}

    def missing(self, lines: Lines) -> list[str]:
        """Returns a sentence on the runs without a line; nothing where there are none."""
        there = {_key(r) for r in lines} & self._wanted
        if len(there) == len(self._wanted):
            return []
        said = f"{len(there)} of the grid's {len(self._wanted)} runs are in the ledger."
        empty = {
            "Data sets": [d for d in self.sets if not any(key[0] == d for key in there)],
            "Methods": [m for m, kind in self.rows if not any(key[1:3] == (m, kind) for key in there)],
            "Seeds": [str(seed) for seed in self.seeds if not any(key[3] == seed for key in there)],
        }
        for what, names in empty.items():
            said += f" {what} without any: {', '.join(names)}." if names else ""
        return [said]


def _key(line: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return line["dataset"], line["method"], line["weights_kind"], line["seed"]
