"""The raw scores of the benchmark's runs, and paired differences between rows. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from pathlib import Path

import numpy as np

from ...benchmark.published import BASE
from ...benchmark.results import BenchmarkResults
from ...benchmark.runs import read_scores, scores_path
from ...data.datasets import units_for
from ...evaluate.compare import Compared, compared
from .. import text
from ..table import Table, table


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


def load_scores(results: BenchmarkResults, folder: Path, data_root: str | None = None) -> dict[str, Scores]:
    """Loads the raw scores of the results' runs.

    Args:
        results: results of the benchmark.
        folder: folder of raw scores; some may be missing.
        data_root: where the data sets lie, whose names may tell the patients that scores do not.

    Returns:
        The scores by data set; data sets without any are left out.

    Raises:
        DataError: a damaged file.
    """
    found = {}
    for d in results.datasets:
        read, absent = [], dict[str, None]()
        units = dict[tuple[str, int], np.ndarray | None]()
        for r in results.rows:
            for run in r.cells[d].runs if d in r.cells else ():
                path = scores_path(folder, run)
                if path.is_file():
                    kept = read_scores(path)
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
        labels = read[images.index(common)][2]
        of_rows = [units[name, seed] for name, by_seed in rows.items() for seed in by_seed]
        known = next((u for u in of_rows if u is not None), None)
        chosen = units_for(d, data_root, labels) if known is None else known
        found[d] = Scores(labels, rows, tuple(absent), tuple(others), chosen)
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
    return table(head, rows)


def paired_table(pairs: Sequence[Compared]) -> Table:
    """Differences with their intervals, corrected p-values and numbers of seeds."""
    shown = [
        "< 0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}" if isfinite(c.p_holm) else "–" for c in pairs
    ]
    rows = [
        [c.first, text.difference(c.difference), p, str(len(c.seeds))]
        for c, p in zip(pairs, shown, strict=True)
    ]
    return table(("method", "difference [95 %]", "p (Holm)", "seeds"), rows)
