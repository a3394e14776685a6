"""Tables beside the benchmark's own: references outside the paper, the worth of choosing the epoch and of
longer trainings, ties.

Knows results, published values and the ledger of `benchmarks/epoch_choice.py`; no pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ...benchmark.choice import Longer, Worth, choices, choices_before, longer
from ...benchmark.published import BASE, paper_table, references
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
        longer: what trainings longer than the table's are worth.
    """

    references: Table | None = None
    epoch_choice: Table | None = None
    equal: Table | None = None
    longer: Table | None = None


def extras_of(results: BenchmarkResults, stands: Standing, ledger: Path = CHOICES) -> Extras:
    """Makes the tables that these results have a place for.

    Args:
        results: results of the benchmark.
        stands: how its rows stand.
        ledger: of `benchmarks/epoch_choice.py`; may be missing.
    """
    there = ledger.is_file()
    found = choices(ledger) if there else {}
    runs = [run for r in results.rows for c in r.cells.values() for run in c.runs]
    more = longer(ledger, runs) if there else {}
    return Extras(_references(results), _choices(found), _equal(results, stands), _longer(more, results))


def _references(results: BenchmarkResults) -> Table | None:
    images = {paper_name(d).partition("_")[0].partition("-")[0] for d in results.datasets}
    paper = paper_table()[BASE].aurocs.keys()
    if images & paper:  # beside the paper's table, all of its sets
        images |= paper
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


def _longer(found: dict[str, Longer], results: BenchmarkResults) -> Table | None:
    rows = []
    for method, of in found.items():
        before, after = (fmean(pair[k] for pair in of.pairs.values()) for k in (0, 1))
        differences = [long - short for short, long in of.pairs.values()]
        best = {d: results.best_trivial[d].cells[d].mean for d, _ in of.pairs if d in results.best_trivial}
        above = [sum(pair[k] > best[d] for (d, _), pair in of.pairs.items() if d in best) for k in (0, 1)]
        sets = ", ".join(dict.fromkeys(d for d, _ in of.pairs))
        rows.append(
            [
                method, f"{of.steps} → {of.steps * of.times}", f"{before:.3f}", f"{after:.3f}",
                text.signed(after - before),
                f"{text.signed(min(differences))} to {text.signed(max(differences))}",
                f"{above[0]} → {above[1]} of {len(of.pairs)}" if best else "–", sets,
            ]
        )  # fmt: skip
    head = (
        *("method", "steps", "mean AUROC, the table's steps", "mean AUROC, longer", "mean difference"),
        *("least to greatest", "above the best untrained row", "data sets"),
    )
    return table(head, rows, 1) if rows else None


def _equal(results: BenchmarkResults, stands: Standing) -> Table | None:
    default, contending = stands.default, {s.row.name for s in stands.methods}
    if default is None or len(stands.sets) < 2:
        return None
    chosen = {name: of for name, of in results.aurocs.items() if name in contending}
    rows = [
        [a.method, str(len(a.datasets)), text.signed(a.difference), *(f"{p:.2f}" for p in a.probabilities)]
        for a in against(chosen, default.row.name)
    ]
    head = ("method", "sources", f"mean difference from {DEFAULT}", "P(better)", "P(equal)", "P(worse)")
    return table(head, rows, 1) if rows else None
