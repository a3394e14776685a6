"""The commands about recipes: `dia explore` on development data, `dia confirm` on test sets, once.

Turn recipes into grids, have them run, and show means over seeds. The rules are those of
`benchmark/protocol.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from ..benchmark.grid import EXPLORE, load_recipe, paired
from ..benchmark.ledger import Ledger
from ..benchmark.protocol import check_frozen, confirmations, kinds_of, met_before, met_unconfirmed
from ..benchmark.runner import asked
from ..core.errors import DataError
from ..report import render
from ..report.bias import best_in_ledger
from ..report.table import difference, over_seeds, table
from .grids import paths_of, run_jobs, say_failed


def explore(a: Namespace, out: Console) -> None:
    """`dia explore`."""
    grids, jobs = [], []
    for path in a.recipes:
        grid = replace(load_recipe(path), protocol=EXPLORE, seeds=tuple(a.seeds))
        grids.append(replace(grid, datasets=tuple(a.datasets or grid.datasets)))
        jobs += grids[-1].jobs({d: kinds_of(d, a.data_root, grid.side) for d in grids[-1].datasets})
    failed = run_jobs(a, jobs)
    columns = list(dict.fromkeys(job.label for job in jobs))
    explored = [r for r in Ledger(a.ledger).rows() if r.get("protocol") == EXPLORE and r["seed"] in a.seeds]
    rows = []
    for grid in grids:
        own = list(filter(grid.is_of(grid.cells[0]), explored))
        rows.append(
            [grid.name, *(over_seeds([r["auroc"] for r in own if r["dataset"] == c]) for c in columns)]
        )
    out.print(render.console(table(("recipe", *columns), rows)))
    say_failed(failed)


def confirm(a: Namespace, out: Console) -> None:
    """`dia confirm`."""
    recipe, ledger = load_recipe(a.recipe), Ledger(a.ledger)
    rows = ledger.rows()
    check_frozen(Path(a.recipe), recipe, rows)
    jobs = recipe.jobs(before={name: met_before(recipe, name, rows) for name in recipe.datasets})
    if met_unconfirmed(recipe, [asked(job, paths_of(a)) for job in jobs], rows):
        raise DataError(
            f"{a.recipe}: its settings met test sets before, as lines of {a.ledger} that confirm nothing; a "
            "confirmation needs settings that have not"
        )
    failed = run_jobs(a, jobs)
    rows = ledger.rows()
    confirmed = list(filter(recipe.is_of(recipe.cells[0]), confirmations(rows)))
    shown = []
    for name in recipe.datasets:
        if own := [r for r in confirmed if r["dataset"] == name]:
            aurocs, before = [r["auroc"] for r in own], own[0]["recipe"]["before"]
            of_row = beside(own, rows, Path(a.scores))
            shown.append([name, over_seeds(aurocs), str(len(own)), *of_row, str(len(before))])
    head = ("data set", "AUROC", "seeds", "best untrained row", "above it by [95 %]", "recipes before")
    out.print(render.console(table(head, shown)))
    say_failed(failed)


def beside(
    own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], scores: Path
) -> tuple[str, str]:
    """The best untrained row on the same images, and how far above it a recipe is, in pairs of seeds.

    Args:
        own: lines of the recipe on one data set.
        rows: of the ledger.
        scores: folder of the raw scores.
    """
    sha, rows = own[0]["data_sha256"], [r for r in rows if "recipe" not in r]
    best = best_in_ledger(rows, sha)
    if best is None:
        return "not in the ledger", "–"
    of_row = {r["seed"]: r for r in rows if (r["method"], r["data_sha256"]) == (best["method"], sha)}
    above = paired({r["seed"]: r for r in own}, of_row, scores)
    return f"{best['method']} {best['auroc']:.3f}", "–" if above is None else difference(above)
