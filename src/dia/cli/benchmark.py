"""The commands about grids of runs: `dia benchmark`, `ablate`, `explore`, `confirm` and `report benchmark`.

Types and help only: what the commands do is in `grids.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse import Namespace

from ..benchmark.ledger import LEDGER
from .options import Cluster, DataRoot, Device, err
from .options import out as console

SCORES = "results/scores"


@dataclass(frozen=True, kw_only=True)
class Grid(Cluster, Device, DataRoot):
    """Where the runs read and write, and how many run at a time.

    Args:
        ledger: file of a JSON line for each run
        scores: raw scores, for paired intervals and curves
        work: keeps finished stages; safe to delete
        workers: runs at a time, each in a process of its own with its share of the cores; default: one, in
            this process; with ray one for each GPU, or else CPU core
        memory_gb: memory of all workers together; default: with several, four fifths of the machine's
    """

    ledger: str = LEDGER
    scores: str = SCORES
    work: str = ".work"
    workers: int | None = None
    memory_gb: float | None = None


@dataclass(frozen=True, kw_only=True)
class AblationGrid(Grid):
    """Where the runs read and write, and how many run at a time."""

    ledger: str = "results/ablations.jsonl"


@dataclass(frozen=True, kw_only=True)
class ExplorationGrid(Grid):
    """Where the runs read and write, and how many run at a time."""

    ledger: str = "results/explore.jsonl"
    scores: str = ".work/explored"


def default_methods() -> list[str]:
    """The methods of a benchmark that names none: no pretrained weights, no extra package."""
    from ..detectors.registry import METHODS

    return [m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra]


def benchmark(
    *,
    datasets: Sequence[str] = ("phantom",),
    methods: list[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    preset: str = "cpu",
    weights: Sequence[str] = (),
    settings: dict[str, dict[str, Any]] = {},  # noqa: B006 - never changed
    max_size: int | None = None,
    readme: str | None = None,
    dry_run: bool = False,
    grid: Grid,
) -> None:
    r"""Run data sets × methods × seeds into the ledger.

    A run that is there already is not made again, so a grid that was stopped goes on with the same command;
    one failure does not stop the rest. `dia report benchmark` draws the table.

    Args:
        datasets: names of `dia data list`, as [a,b]
        methods: names of `dia methods`, or anomalib:NAME for any model of anomalib (default: all but those
            that are published with pretrained weights, or need an extra package)
        seeds: a run for each
        preset: settings of all runs: cpu, gpu or paper
        weights: first weights of methods that have pretrained ones, with a row of runs for each: none,
            imagenet, a file, dia:RUN, or dia: the encoder of dia fitted on the same normals; default: the
            preset's
        settings: changes of a method's settings, as '{patchcore: {size: 96}}'
        max_size: read images at this side at most; default: the preset's
        readme: write the table between this file's RESULTS marks
        dry_run: show which runs are missing, and their cost
        grid: where and how the runs are made.

    Examples:
        dia benchmark --datasets [pneumoniamnist,breastmnist] --methods [dia,msc,trivial:hog] \
            --weights [none,dia] --data_root data --workers 2
        dia benchmark --config grid.yaml --dry_run
        dia benchmark --methods [patchcore] --settings '{patchcore: {size: 96}}'
    """
    from .grids import benchmark as run

    asked = Namespace(
        datasets=datasets, methods=default_methods() if methods is None else methods, seeds=seeds,
        preset=preset, weights=weights, settings=settings, max_size=max_size, readme=readme, dry_run=dry_run,
        **vars(grid),
    )  # fmt: skip
    run(asked, console, err)


def report_benchmark(
    *,
    ledger: str = LEDGER,
    scores: str = SCORES,
    preset: str = "cpu",
    datasets: list[str] | None = None,
    methods: list[str] | None = None,
    settings: dict[str, dict[str, Any]] = {},  # noqa: B006 - never changed
    out: str = "results/benchmark",
    what: Literal["benchmark"] = "benchmark",
    root: DataRoot,
) -> None:
    """Draw the table of a benchmark from the ledger: HTML, Markdown, CSV, LaTeX, figures.

    With intervals, ranks and tests over data sets, paired differences, curves, weights, costs and failures.
    Only lines count that `dia benchmark` would make today: those of other settings stay in the ledger as
    history.

    Args:
        ledger: what `dia benchmark` wrote
        scores: the raw scores it kept
        preset: settings of the runs: cpu, gpu or paper
        datasets: the columns (default: all in the ledger)
        methods: the rows (default: all in the ledger)
        settings: as they were given to `dia benchmark`
        out: folder of the report
        what: the word `benchmark`, which older configurations hold
        root: where data sets lie, to count duplicates.

    Examples:
        dia report benchmark
        dia report benchmark --datasets [breastmnist,pneumoniamnist] --out two-sets
        dia report benchmark --config report.yaml
    """
    from .grids import report

    asked = Namespace(
        ledger=ledger, scores=scores, preset=preset, datasets=datasets, methods=methods, settings=settings,
        out=out, data_root=root.data_root,
    )  # fmt: skip
    report(asked, console)


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
    runs: AblationGrid,
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
        dia ablate dissolver-masking --data_root data --dry_run
        dia ablate dissolver-masking --datasets [breastmnist] --seeds [0,1,2] --data_root data
        dia ablate dissolver-masking --draw --reference [none,excluded]
    """
    from .grids import ablate as run

    asked = Namespace(
        grid=grid, list=list, datasets=datasets, seeds=seeds, preset=preset, reference=reference, out=out,
        draw=draw, dry_run=dry_run, **vars(runs),
    )  # fmt: skip
    run(asked, console)


def explore(
    recipes: list[str],
    *,
    datasets: list[str] | None = None,
    seeds: Sequence[int] = (0,),
    grid: ExplorationGrid,
) -> None:
    """Judge recipes on development data: no test set is read.

    Where a data set has a labelled val split, on that; and on lesions pasted into training normals that were
    left out. A recipe is a YAML file: date, reasoning, method, and of preset, settings, datasets, seeds,
    max_size what differs from the usual. What is in the ledger already is not run again.

    Args:
        recipes: YAML files
        datasets: data sets, as [a,b] (default: the recipe's own)
        seeds: seeds of the runs, as [0,1,2]
        grid: where and how the runs are made.

    Examples:
        dia explore recipes/one.yaml recipes/other.yaml --data_root data
        dia explore recipes/one.yaml --datasets [breastmnist] --seeds [0,1,2] --data_root data
    """
    from .grids import explore as run

    run(Namespace(recipes=recipes, datasets=datasets, seeds=seeds, **vars(grid)), console)


def confirm(recipe: str, *, grid: Grid) -> None:
    """Let a frozen recipe meet its test sets: once, with all its seeds.

    The file must be committed. A recipe that met a test set cannot be changed under its name, and settings
    that were run on it before confirm nothing; both are refused. The lines say how many recipes met that test
    set before. The same command goes on after an interruption.

    Args:
        recipe: a YAML file, committed
        grid: where and how the runs are made.

    Examples:
        dia confirm recipes/one.yaml --data_root data
        dia confirm recipes/one.yaml --data_root data --ledger results/runs.jsonl --workers 2
    """
    from .grids import confirm as run

    run(Namespace(recipe=recipe, **vars(grid)), console)
