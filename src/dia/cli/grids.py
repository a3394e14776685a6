"""The commands `dia ablate`, `explore` and `confirm`: grids of runs that come from YAML files.

Their parsers need neither torch nor a detector: everything else is imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..benchmark.ledger import Ledger
from ..core.errors import DataError
from .benchmark import Runs, refuse_failures, show
from .options import result


@dataclass(frozen=True, kw_only=True)
class AblationRuns(Runs):
    """Where the runs read and write, and how many run at a time."""

    ledger: str = "results/ablations.jsonl"


@dataclass(frozen=True, kw_only=True)
class ExplorationRuns(Runs):
    """Where the runs read and write, and how many run at a time."""

    ledger: str = "results/explore.jsonl"
    scores: str = ".work/explored"


def ablate(
    grid: str | None = None,
    *,
    list: bool = False,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    preset: str | None = None,
    reference: Sequence[str] | None = None,
    out: str = "results/ablations",
    draw: bool = False,
    dry_run: bool = False,
    runs: AblationRuns,
) -> None:
    """Run a grid of settings × data sets × seeds, and draw what each choice is worth.

    Into a ledger of its own, from which a page with tables, a plot and paired intervals is drawn. What is
    there already is not run again. A grid of your own is a few lines of YAML.

    Args:
        grid: a shipped grid's name, or a YAML file
        list: show what grids are shipped
        datasets: data sets, as [a,b] (default: the grid's own)
        seeds: seeds of the runs, as [0,1,2] (default: the grid's own)
        preset: cpu, gpu or paper (default: the grid's own)
        reference: levels of the cell to compare with, as [none,excluded]
        out: folder of the page and the plot
        draw: run nothing; draw what the ledger holds
        dry_run: list the cells and what each changes
        runs: where and how the runs are made.

    Examples:
        dia ablate --list
        dia ablate dissolver-masking --data-root data --dry-run
        dia ablate dissolver-masking --datasets [breastmnist] --seeds [0,1,2] --data-root data
        dia ablate dissolver-masking --draw --reference [none,excluded]
    """
    from ..benchmark.grid import load_grid, measured, shipped
    from ..report.ablation import ablation_page, ablation_plot

    if list or grid is None:
        grids = [load_grid(name) for name in shipped()]
        rows = [[g.name, g.title, str(len(g.cells)), ", ".join(g.datasets)] for g in grids]
        show(("grid", "title", "cells", "data sets"), rows)
        if not list:
            raise DataError("dia ablate: name a grid of these, or a YAML file")
        return
    own = load_grid(grid)
    wanted = replace(
        own, preset=preset or own.preset, datasets=tuple(datasets or own.datasets),
        seeds=tuple(seeds or own.seeds), reference=tuple(reference or own.reference or ()),
    )  # fmt: skip
    if dry_run:
        for cell in wanted.cells:
            result(f"{cell.label}: {cell.all_changes}")
        count = len(wanted.cells) * len(wanted.datasets) * len(wanted.seeds)
        words = ", ".join(map(str, wanted.seeds))
        result(f"{count} runs on {', '.join(wanted.datasets)} with seeds {words}")
        return
    failed = [] if draw else runs.carry_out(wanted.jobs())
    made = measured(wanted, Ledger(runs.ledger).rows(), Path(runs.scores))
    page = Path(out, f"{wanted.name}.md")
    picture = ablation_plot(page.with_suffix(".png"), wanted, made)
    page.write_text(ablation_page(wanted, made, picture.name), encoding="utf-8")
    result(str(page))
    refuse_failures(failed)


def explore(
    recipes: list[str],
    *,
    datasets: list[str] | None = None,
    seeds: Sequence[int] = (0,),
    runs: ExplorationRuns,
) -> None:
    """Judge recipes on development data: no test set is read.

    Where a data set has a labelled val split, on that; and on lesions pasted into training normals that were
    left out. A recipe is a YAML file: date, reasoning, method, and of preset, settings, datasets, seeds,
    max_size what differs from the usual. What is in the ledger already is not run again.

    Args:
        recipes: YAML files
        datasets: data sets, as [a,b] (default: the recipe's own)
        seeds: seeds of the runs, as [0,1,2]
        runs: where and how the runs are made.

    Examples:
        dia explore recipes/one.yaml recipes/other.yaml --data-root data
        dia explore recipes/one.yaml --datasets [breastmnist] --seeds [0,1,2] --data-root data
    """
    from ..benchmark.grid import load_recipe
    from ..benchmark.protocol import development_kinds
    from ..report.text import over_seeds

    grids, jobs = [], []
    for path in recipes:
        recipe = load_recipe(path)
        sets = tuple(datasets or recipe.datasets)
        grids.append(replace(recipe, protocol="explore", seeds=tuple(seeds), datasets=sets))
        kinds = partial(development_kinds, data_root=runs.data_root, side=recipe.side)
        jobs += grids[-1].jobs({d: kinds(d, normal=runs.paths().normal_in(d)) for d in sets})
    failed = runs.carry_out(jobs)
    columns = dict.fromkeys(job.label for job in jobs)
    lines = [r for r in Ledger(runs.ledger).rows() if r.get("protocol") == "explore" and r["seed"] in seeds]
    rows = []
    for grid in grids:
        own = [*filter(grid.is_of(grid.cells[0]), lines)]
        found = (over_seeds([r["auroc"] for r in own if r["dataset"] == column]) for column in columns)
        rows.append([grid.name, *found])
    show(("recipe", *columns), rows)
    refuse_failures(failed)


def confirm(recipe: str, *, runs: Runs) -> None:
    """Let a frozen recipe meet its test sets: once, with all its seeds.

    The file must be committed. A recipe that met a test set cannot be changed under its name, and settings
    that were run on it before confirm nothing; both are refused. The lines say how many recipes met that test
    set before. The same command goes on after an interruption.

    Args:
        recipe: a YAML file, committed
        runs: where and how the runs are made.

    Examples:
        dia confirm recipes/one.yaml --data-root data
        dia confirm recipes/one.yaml --data-root data --ledger results/runs.jsonl --workers 2
    """
    from ..benchmark.grid import load_recipe
    from ..benchmark.protocol import check_frozen, confirmations, met_before, met_unconfirmed
    from ..benchmark.runner import asked
    from ..report.text import over_seeds

    frozen, ledger = load_recipe(recipe), Ledger(runs.ledger)
    rows = ledger.rows()
    check_frozen(Path(recipe), frozen, rows)
    jobs = frozen.jobs(before={name: met_before(frozen, name, rows) for name in frozen.datasets})
    if met_unconfirmed(frozen, [asked(job, runs.paths()) for job in jobs], rows):
        raise DataError(
            f"{recipe}: its settings met test sets before, as lines of {runs.ledger} that confirm nothing; a "
            "confirmation needs settings that have not"
        )
    failed = runs.carry_out(jobs)
    rows = ledger.rows()
    confirmed = [*filter(frozen.is_of(frozen.cells[0]), confirmations(rows))]
    shown = []
    for name in frozen.datasets:
        if own := [r for r in confirmed if r["dataset"] == name]:
            compared = _against_untrained(own, rows, Path(runs.scores))
            before = str(len(own[0]["recipe"]["before"]))
            shown.append([name, over_seeds([r["auroc"] for r in own]), str(len(own)), *compared, before])
    show(("data set", "AUROC", "seeds", "best untrained row", "above it by [95 %]", "recipes before"), shown)
    refuse_failures(failed)


def _against_untrained(
    own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], scores: Path
) -> tuple[str, str]:
    """Returns the best untrained row on the same images, and how far above it a recipe's lines are."""
    from ..benchmark.grid import paired
    from ..report.context import best_in_ledger
    from ..report.text import difference

    sha, rows = own[0]["data_sha256"], [r for r in rows if "recipe" not in r]
    best = best_in_ledger(rows, sha)
    if best is None:
        return "not in the ledger", "–"
    of_row = {r["seed"]: r for r in rows if (r["method"], r["data_sha256"]) == (best["method"], sha)}
    above = paired({r["seed"]: r for r in own}, of_row, scores)
    return f"{best['method']} {best['auroc']:.3f}", "–" if above is None else difference(above)
