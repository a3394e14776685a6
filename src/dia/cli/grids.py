"""What `dia benchmark`, `ablate`, `report benchmark`, `explore` and `confirm` do with their options.

Turns options into a grid, has it run, and draws what the ledger then holds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from ..benchmark.grid import (
    CONTAMINATION,
    EXPLORE,
    Job,
    benchmark_grid,
    load_grid,
    load_recipe,
    measured,
    paired,
    shipped,
)
from ..benchmark.ledger import FAILED, Ledger, failures_path
from ..benchmark.protocol import check_frozen, confirmations, kinds_of, met_before, met_unconfirmed
from ..benchmark.results import FailureKey
from ..benchmark.runner import Costs, Paths, asked, missing, run_grid
from ..benchmark.runs import current_lines, weights_kind
from ..benchmark.workers import memory_of_machine_gb, workers_of
from ..core.errors import DataError
from ..core.training import TrainingError
from ..data.datasets import load, load_training, name_of
from ..data.quality import has_near_duplicate
from ..detectors.presets import MAX_SIZE, PRESETS
from ..report import render
from ..report.benchmark_page import Context, ablation_page, readme_table, write_benchmark_report
from ..report.context import best_in_ledger, direction_of, facts_of_set
from ..report.figures import ablation_plot
from ..report.table import difference, over_seeds, table


def benchmark(a: Namespace, out: Console, err: Console) -> None:
    """`dia benchmark`."""
    _check_preset(a.preset)
    grid, remarks = benchmark_grid(
        a.datasets, a.methods, a.seeds, a.preset, max_size=a.max_size, weights=a.weights, settings=a.settings
    )
    for remark in remarks:
        err.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)
    jobs = grid.jobs()
    if a.dry_run:
        return _show_cost(missing(jobs, paths_of(a)), len(jobs), Costs(Ledger(a.ledger).rows()), out)
    failed = run_jobs(a, jobs)
    if a.readme:
        readme_table(Path(a.readme), Ledger(a.ledger).rows())
    say_failed(failed)


def report(a: Namespace, out: Console) -> None:
    """`dia report benchmark`."""
    _check_preset(a.preset)
    a.datasets = a.datasets and [name_of(d) for d in a.datasets]
    lines = current_lines(
        Ledger(a.ledger).rows(), a.preset, datasets=a.datasets, methods=a.methods, changes=a.settings
    )
    if not lines:
        raise DataError(f"{a.ledger}: no line of preset {a.preset} with these settings; run `dia benchmark`")
    failures = open_failures(Ledger(failures_path(Path(a.ledger)), FAILED).rows(), lines, a)
    sets = set_contexts(lines, a.data_root, MAX_SIZE[a.preset])
    for path in write_benchmark_report(Path(a.out), lines, Path(a.scores), failures, sets=sets):
        out.print(str(path), soft_wrap=True, highlight=False)


def set_contexts(
    lines: Sequence[Mapping[str, Any]], data_root: str | None, side: int | None
) -> dict[str, Context]:
    """What the images of the lines' data sets are like, of those that are found and are the same images."""
    found, err = {}, Console(stderr=True, highlight=False)
    for name, sha256 in dict.fromkeys((line["dataset"], line["data_sha256"]) for line in lines):
        try:
            test = load(name, "test", data_root, max_size=side)
            normals = load_training(name, data_root, max_size=side)
        except DataError as error:
            err.print(
                f"{name}: duplicates and copies are not counted ({error})", markup=False, soft_wrap=True
            )
            continue
        if sha256 != f"{normals.sha256()[:32]}{test.sha256()[:32]}" or test.labels is None:
            err.print(f"{name}: duplicates and copies are not counted, as the runs are of other images")
            continue
        facts = facts_of_set(test, normals, direction_of(name))
        found[name] = Context(facts, test.labels, has_near_duplicate(test, normals))
    return found


def open_failures(
    failed: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], a: Namespace
) -> dict[FailureKey, str]:
    """The last reason of each failed run that was asked for and has no line since."""

    def key(f: Mapping[str, Any]) -> FailureKey:
        return f["dataset"], f["method"], weights_kind(f["weights"]), f["seed"]

    done = {(r["dataset"], r["method"], r["weights_kind"], r["seed"]) for r in lines}
    return {
        (f["dataset"], f["method"], f["weights"], f["seed"]): f["reason"]
        for f in failed
        if f["preset"] == a.preset and key(f) not in done
        and f["dataset"] in (a.datasets or [f["dataset"]]) and f["method"] in (a.methods or [f["method"]])
    }  # fmt: skip


def ablate(a: Namespace, out: Console) -> None:
    """`dia ablate`."""
    if a.list or a.grid is None:
        grids = [load_grid(name) for name in shipped()]
        rows = [[g.name, g.title, str(len(g.cells)), ", ".join(g.datasets)] for g in grids]
        out.print(render.console(table(("grid", "title", "cells", "data sets"), rows)))
        if not a.list:
            raise DataError("dia ablate: name a grid of these, or a YAML file")
        return
    grid = load_grid(a.grid)
    grid = replace(
        grid,
        datasets=tuple(a.datasets or grid.datasets),
        seeds=tuple(a.seeds or grid.seeds),
        preset=a.preset or grid.preset,
        reference=tuple(a.reference or grid.reference or ()),
    )
    if a.dry_run:
        for cell in grid.cells:
            share = {CONTAMINATION: cell.contamination} if cell.contamination else {}
            out.print(f"{cell.label}: {dict(cell.changes) | share}", markup=False, highlight=False)
        runs = len(grid.cells) * len(grid.datasets) * len(grid.seeds)
        out.print(f"{runs} runs on {', '.join(grid.datasets)} with seeds {', '.join(map(str, grid.seeds))}")
        return
    failed = [] if a.draw else run_jobs(a, grid.jobs())
    made = measured(grid, Ledger(a.ledger).rows(), Path(a.scores))
    page = Path(a.out, f"{grid.name}.md")
    picture = ablation_plot(page.with_suffix(".png"), grid, made)
    page.write_text(ablation_page(grid, made, picture.name), encoding="utf-8")
    out.print(str(page), soft_wrap=True)
    say_failed(failed)


def _check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise DataError(f"--preset {preset} is not known; there are: {', '.join(PRESETS)}")


def paths_of(a: Namespace) -> Paths:
    """Where a command's arguments say that things lie."""
    alone = a.executor == "local" and a.workers in (None, 1)
    return Paths(a.ledger, a.scores, a.work, a.data_root, a.device, sys.stderr.isatty() and alone)


def run_jobs(a: Namespace, jobs: Sequence[Job]) -> list[str]:
    """Runs jobs by the workers that a command's arguments ask for; returns a line for each failure."""
    memory = a.memory_gb
    if memory is None and (a.workers or 1) > 1 and a.executor == "local":
        memory = 0.8 * memory_of_machine_gb()
    with workers_of(
        a.executor, a.workers, device=a.device, apart=a.memory_gb is not None, address=a.ray_address
    ) as workers:
        return run_grid(jobs, paths_of(a), workers, memory_gb=memory)


def say_failed(failed: Sequence[str]) -> None:
    """Raises `TrainingError` where there were any."""
    if failed:
        number = f"{len(failed)} run{'s' * (len(failed) > 1)} failed"
        raise TrainingError(f"{number}; the first: {failed[0]}; the same command tries them anew")


def _show_cost(left: Sequence[Job], total: int, costs: Costs, out: Console) -> None:
    """Prints what is not in the ledger, and what the ledger's lines say of its time."""
    rows, whole, unknown = [], 0.0, 0
    for method, dataset in dict.fromkeys((j.method, j.dataset) for j in left):
        own = [j for j in left if (j.method, j.dataset) == (method, dataset)]
        minutes = costs.minutes(own, 1)
        whole, unknown = whole + (minutes or 0), unknown + len(own) * (minutes is None)
        rows.append([method, dataset, str(len(own)), "unknown" if minutes is None else f"{minutes:.1f}"])
    head = ("method", "data set", "runs to make", "minutes, by earlier runs")
    out.print(render.console(table(head, rows)))
    more = f", and {unknown} of unknown cost" if unknown else ""
    out.print(
        f"{len(left)} of {total} runs are to be made: about {whole:.0f} minutes with one worker{more}",
        highlight=False,
    )


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
