"""Tables beside the benchmark's own: references outside the paper, the worth of choosing the epoch, ties.

Knows results, published values and the ledger of `benchmarks/epoch_choice.py`; no pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...benchmark.choice import Worth, choices, choices_before
from ...benchmark.published import references
from ...benchmark.results import BenchmarkResults, paper_name
from ...detectors.registry import DEFAULT
from ...evaluate.ranking import against
from .. import text
from ..table import Table, table
from .standing import Standing

CHOICES = Path("results/epoch-choice.jsonl")


@dataclass(frozen=True, eq=False)
class Extras:
    """Tables of the page that come from elsewhere; those that are None are left out.

    Args:
        references: values of references outside the paper.
        epoch_choice: what choosing the epoch on the test set is worth.
        equal: the Bayesian signed-rank test of each method against the default.
    """

    references: Table | None = None
    epoch_choice: Table | None = None
    equal: Table | None = None


def extras_of(results: BenchmarkResults, stands: Standing, ledger: Path = CHOICES) -> Extras:
    """Makes the tables that these results have a place for.

    Args:
        results: results of the benchmark.
        stands: how its rows stand.
        ledger: of `benchmarks/epoch_choice.py`; may be missing.
    """
    found = choices(ledger) if ledger.is_file() else {}
    return Extras(_references(results), _choices(found), _equal(results, stands))


def _references(results: BenchmarkResults) -> Table | None:
    images = {paper_name(d).partition("_")[0].partition("-")[0] for d in results.datasets}
    rows = [
        [
            r.dataset, r.method, f"{r.value:.3f}", r.metric, r.split or "–",
            "–" if r.normals is None else str(r.normals), r.chosen_on_test or "not known",
            f"{r.source} {r.year or ''}".strip(), r.read_in,
        ]
        for r in references()
        if r.dataset.partition("_")[0].partition("-")[0] in images
    ]  # fmt: skip
    head = (
        *("data set", "method", "value", "metric", "split", "normals", "chosen by test labels"),
        *("source", "read in"),
    )
    return table(head, rows, 2) if rows else None


def _choices(found: dict[str, Worth]) -> Table | None:
    earlier = [(f"{m}, earlier trainings", w) for m, w in choices_before().items() if m not in found]
    rows = [
        [
            name,
            text.signed(w.mean),
            text.signed(w.greatest),
            str(w.looks),
            str(w.trainings),
            ", ".join(w.datasets),
        ]
        for name, w in [*found.items(), *earlier]
    ]
    return table(("method", "mean gain", "greatest", "looks", "trainings", "data sets"), rows, 1)


def _equal(results: BenchmarkResults, stands: Standing) -> Table | None:
    default, contending = stands.default, {s.row.name for s in stands.methods}
    if default is None or len(stands.sets) < 2:
        return None
    chosen = {name: of for name, of in results.aurocs.items() if name in contending}
    rows = [
        [a.method, str(len(a.datasets)), text.signed(a.difference), *(f"{p:.2f}" for p in a.probabilities)]
        for a in against(chosen, default.row.name)
    ]
    head = ("method", "data sets", f"mean difference from {DEFAULT}", "P(better)", "P(equal)", "P(worse)")
    return table(head, rows, 1) if rows else None
