"""The commands about recipes: `dia explore` on development data, `dia confirm` on test sets, once.

Turn recipes into tasks, have them run, and show means over seeds. The rules are those of
`evaluate/protocol.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from ..benchmark.ledger import Ledger
from ..benchmark.protocol import (
    CONFIRM,
    EXPLORE,
    Recipe,
    about,
    check_frozen,
    confirmations,
    kinds_of,
    load_recipe,
    met_before,
    met_unconfirmed,
)
from ..benchmark.runner import Task, asked
from ..benchmark.runs import scores_path
from ..core.errors import DataError
from ..evaluate.compare import Difference, paired_difference
from ..report.bias import best_in_ledger
from .grids import place_of, run_tasks, say_failed


def explore(a: Namespace, out: Console) -> None:
    """`dia explore`."""
    recipes = [load_recipe(path) for path in a.recipes]
    tasks = []
    for recipe in recipes:
        for name in a.datasets or recipe.datasets:
            kinds = kinds_of(name, a.data_root, recipe.side)
            for kind, seed in product(kinds, a.seeds):
                tasks.append(task_of(recipe, name, seed, EXPLORE, judged=kind))
    failed = run_tasks(a, tasks)
    rows = [r for r in Ledger(a.ledger).rows() if r.get("protocol") == EXPLORE]
    columns = list(dict.fromkeys(t.label for t in tasks))
    table = Table("recipe", *columns)
    for recipe in recipes:
        own = [r for r in rows if recipe.is_of(r) and r["seed"] in a.seeds]
        table.add_row(recipe.name, *(spread([r for r in own if r["dataset"] == c]) for c in columns))
    out.print(table)
    say_failed(failed)


def confirm(a: Namespace, out: Console) -> None:
    """`dia confirm`."""
    recipe, ledger = load_recipe(a.recipe), Ledger(a.ledger)
    rows = ledger.rows()
    check_frozen(Path(a.recipe), recipe, rows)
    tasks = [
        task_of(recipe, name, seed, CONFIRM, before=met_before(recipe, name, rows))
        for name, seed in product(recipe.datasets, recipe.seeds)
    ]
    if met_unconfirmed(recipe, [asked(t, place_of(a)) for t in tasks], rows):
        raise DataError(
            f"{a.recipe}: its settings met test sets before, as lines of {a.ledger} that confirm nothing; a "
            "confirmation needs settings that have not"
        )
    failed = run_tasks(a, tasks)
    table = Table("data set", "AUROC", "seeds", "best untrained row", "above it by [95 %]", "recipes before")
    rows = ledger.rows()
    for name in recipe.datasets:
        own = [
            r for r in confirmations(rows)
            if r["dataset"] == name and recipe.is_of(r)
        ]  # fmt: skip
        if own:
            before = own[0]["recipe"]["before"]
            table.add_row(
                name, spread(own), str(len(own)), *beside(own, rows, Path(a.scores)), str(len(before))
            )
    out.print(table)
    say_failed(failed)


def beside(
    own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], scores: Path
) -> tuple[str, str]:
    """The best untrained row on the same images, and how far above it a recipe is, in pairs of seeds."""
    sha, rows = own[0]["data_sha256"], [r for r in rows if "recipe" not in r]
    best = best_in_ledger(rows, sha)
    if best is None:
        return "not in the ledger", "–"
    of_row = {r["seed"]: r for r in rows if (r["method"], r["data_sha256"]) == (best["method"], sha)}
    above_by = difference([r for r in own if r["seed"] in of_row], of_row, scores)
    above = "–" if above_by is None else f"{above_by.value:+.3f} [{above_by.low:+.3f}, {above_by.high:+.3f}]"
    return f"{best['method']} {best['auroc']:.3f}", above


def difference(
    own: Sequence[Mapping[str, Any]], of_row: Mapping[int, Mapping[str, Any]], scores: Path
) -> Difference | None:
    """Of mean AUROCs over the seeds that both have; None where raw scores are not there."""
    pairs = [(scores_path(scores, r), scores_path(scores, of_row[r["seed"]])) for r in own]
    if not pairs or not all(p.exists() for pair in pairs for p in pair):
        return None
    kept = [[np.load(p) for p in pair] for pair in pairs]
    first, second = (np.stack([k[i]["scores"] for k in kept]) for i in (0, 1))
    return paired_difference(kept[0][0]["labels"], first, second)


def task_of(
    recipe: Recipe, name: str, seed: int, protocol: str, *, judged: str = "test", before: Sequence[str] = ()
) -> Task:
    """A run of a recipe."""
    more = about(recipe, protocol)
    if protocol == CONFIRM:
        more["recipe"]["before"] = list(before)
    return Task(
        name, recipe.method, seed, recipe.preset, recipe.settings, recipe.side, about=more, judged=judged
    )


def spread(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    values = [r["auroc"] for r in rows]
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{mean(values):.3f} ± {stdev(values):.3f}"
