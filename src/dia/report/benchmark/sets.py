"""What is known of the images of the benchmark's data sets: classes, direction, near-duplicates, copies.

Reads image sets; fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...benchmark.results import BenchmarkResults
from ...benchmark.runs import images_sha256
from ...core.errors import DataError
from ...data import datasets
from ...data.imageset import ANOMALOUS, NORMAL
from ...evaluate.quality import has_near_duplicate
from ..context import direction_of, effect_of_copies, facts_of_set
from ..table import Table, table
from ..text import signed

ENOUGH = 0.01  # of the test images: fewer copies change nothing that can be seen


class Context(NamedTuple):
    """The images of a data set: `context.facts_of_set`, `(N,)` labels, `(N,)` bool copies of training."""

    facts: Mapping[str, Any]
    labels: np.ndarray
    copied: np.ndarray


def set_contexts(
    lines: Sequence[Mapping[str, Any]], data_root: str | None, side: int | None
) -> tuple[dict[str, Context], list[str]]:
    """Describes the images of the data sets of a benchmark.

    Args:
        lines: of the ledger.
        data_root: folder of known data sets.
        side: the longer side in pixels at which the images were read.

    Returns:
        The contexts by data set; and a remark for each set that is absent or has other images than the runs.
    """
    found, remarks = dict[str, Context](), list[str]()
    by_set = {(line["dataset"], line["data_sha256"]): line.get("source") for line in lines}
    for (name, sha256), source in by_set.items():
        place, normal = (source["path"], source["normal"]) if source else (name, None)
        try:
            test = datasets.load(place, "test", data_root, max_size=side, normal=normal)
            normals = datasets.load_training(place, data_root, max_size=side, normal=normal)
        except DataError as error:
            remarks.append(f"{name}: duplicates and copies are not counted ({error})")
            continue
        if sha256 != images_sha256(normals.sha256(), test.sha256()) or test.labels is None:
            remarks.append(f"{name}: duplicates and copies are not counted, as the runs are of other images")
            continue
        facts = facts_of_set(test, normals, direction_of(name, normal))
        found[name] = Context(facts, test.labels, has_near_duplicate(test, normals))
    return found, remarks


def set_table(
    results: BenchmarkResults, labels: Mapping[str, np.ndarray], facts: Mapping[str, Mapping[str, Any]]
) -> Table:
    """The context of each data set of the benchmark.

    Args:
        results: results of the benchmark.
        labels: `(N,)` labels of the test images by data set, where raw scores were kept.
        facts: facts by data set, of `facts_of_set`, where its images are at hand.

    Returns:
        The table.
    """
    rows = []
    for d in results.datasets:
        of, best, y = facts.get(d), results.best_trivial.get(d), labels.get(d)
        balance, near, copies = "not known: no raw scores", *["not known: give --data_root"] * 2
        if y is not None:
            balance = f"{(y == NORMAL).sum()} + {(y == ANOMALOUS).sum()} ({np.mean(y == ANOMALOUS):.0%})"
            runs = (run for r in results.rows if d in r.cells for run in r.cells[d].runs)
            if patients := next((n for run in runs if (n := run.get("n_patients"))), None):
                balance += f" of {patients} patients"
        if of is not None:
            anomalous = f" ({of['copies_anomalous']} anomalous)" if of["copies_of_training"] else ""
            near, copies = str(of["near_duplicates"]), f"{of['copies_of_training']}{anomalous}"
        untrained = "–" if best is None else f"{best.name} ({best.cells[d].mean:.3f})"
        direction = direction_of(d) if of is None else of["direction"]
        rows.append([d, balance, direction, untrained, near, copies])
    head = ("data set", "test images: normal + anomalous", "direction", "best untrained row")
    return table((*head, "near-duplicates in the test", "copies of training images"), rows)


def copies_table(
    results: BenchmarkResults,
    scores: Mapping[str, Mapping[int, np.ndarray]],
    labels: np.ndarray,
    copied: np.ndarray,
    units: np.ndarray | None = None,
) -> Table:
    """AUROC of each row on one data set, with and without copies of training images.

    Args:
        results: results of the benchmark.
        scores: `(N,)` raw scores by row and seed.
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        copied: `(N,)` bool, True where training has a near-duplicate.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.

    Returns:
        The table.
    """
    rows = []
    for name in (r.name for r in results.rows if r.name in scores):
        found = effect_of_copies(labels, np.stack(list(scores[name].values())), copied, units)
        shown = ["–", "–"]
        if found["auroc_without"] is not None:
            low, high = map(signed, found["difference_ci"])
            shown = [f"{found['auroc_without']:.3f}", f"{signed(found['difference'])} [{low}, {high}]"]
        rows.append([name, f"{found['auroc']:.3f}", *shown, str(len(scores[name]))])
    return table(("method", "AUROC", "without copies", "difference [95 %]", "seeds"), rows)
