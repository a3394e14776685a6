"""The arguments of grids of runs, and of what lists methods and data sets for them. Parses only."""

from __future__ import annotations

import os
from typing import Any, Literal

from jsonargparse import ActionConfigFile

from .help import ArgumentParser, examples
from .shared_arguments import grid_arguments, json_argument, reading_arguments, view_arguments


def benchmark_parser() -> ArgumentParser:
    """Of `dia benchmark`."""
    from ..detectors.presets import PRESETS
    from ..detectors.registry import METHODS

    grid = ArgumentParser(
        description="""Run data sets × methods × seeds into the ledger.

            A run that is there already is not made again, so a grid that was stopped goes on with the
            same command; one failure does not stop the rest. `dia report benchmark` draws the table.""",
        epilog=examples(
            "dia benchmark --datasets [pneumoniamnist,breastmnist] --methods [dia,msc,trivial:hog] \\\n"
            "    --weights [none,dia] --data_root data --workers 2",
            "dia benchmark --config grid.yaml --dry_run",
            "dia benchmark --methods [patchcore] --settings '{patchcore: {size: 96}}'",
        ),
    )
    grid.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    grid.add_argument(
        "--datasets", type=list[str], default=["phantom"], help="names of `dia data list`, as [a,b]"
    )
    grid.add_argument(
        "--methods", type=list[str],
        default=[m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra],
        help="names of `dia methods`, or anomalib:NAME for any model of anomalib (default: all but those "
        "that are published with pretrained weights, or need an extra package)",
    )  # fmt: skip
    grid.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="a run for each")
    grid.add_argument("--preset", type=str, default="cpu", help=f"of all runs: {', '.join(PRESETS)}")
    grid.add_argument(
        "--weights", type=list[str], default=[],
        help="of methods that start from a pretrained network, a row of runs for each: none, imagenet, a "
        "file, dia:RUN, or dia: the encoder of dia fitted on the same normals; default: the preset's",
    )  # fmt: skip
    grid.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={},
        help="changes of a method's settings, as '{patchcore: {size: 96}}'",
    )  # fmt: skip
    grid.add_argument(
        "--max_size", type=int | None, help="read images at this side at most; default: the preset's"
    )
    grid_arguments(grid, ledger="results/runs.jsonl")
    grid.add_argument("--readme", type=str | None, help="write the table between this file's RESULTS marks")
    grid.add_argument("--dry_run", action="store_true", help="show which runs are missing, and their cost")
    return grid


def benchmark_report_parser() -> ArgumentParser:
    """Of `dia report benchmark`."""
    from ..detectors.presets import PRESETS

    report = ArgumentParser(
        description="""The table of a benchmark, drawn from the ledger: HTML, Markdown, CSV, LaTeX, figures.

            With intervals, ranks and tests over data sets, paired differences, curves, weights, costs and
            failures. Only lines count that `dia benchmark` would make today: those of other settings stay
            in the ledger as history.""",
        epilog=examples(
            "dia report benchmark",
            "dia report benchmark --datasets [breastmnist,pneumoniamnist] --out two-sets",
            "dia report benchmark --config grid.yaml  # the same file as of `dia benchmark`",
        ),
    )
    report.add_argument("what", type=Literal["benchmark"], help="the word `benchmark`")
    report.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    report.add_argument("--ledger", type=str, default="results/runs.jsonl", help="what `dia benchmark` wrote")
    report.add_argument("--scores", type=str, default="results/scores", help="the raw scores it kept")
    report.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="where data sets lie, to count duplicates (default: $DIA_DATA)")  # fmt: skip
    report.add_argument("--preset", type=str, default="cpu", help=f"of the runs: {', '.join(PRESETS)}")
    report.add_argument("--datasets", type=list[str] | None, help="the columns (default: all in the ledger)")
    report.add_argument("--methods", type=list[str] | None, help="the rows (default: all in the ledger)")
    report.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={}, help="as they were given to `dia benchmark`"
    )
    report.add_argument("--out", type=str, default="results/benchmark", help="folder")
    return report


def ablate_parser() -> ArgumentParser:
    """Of `dia ablate`."""
    ablate = ArgumentParser(
        description="""Run a grid of settings × data sets × seeds, and draw what each choice is worth.

            Into a ledger of its own, from which a page with tables, a plot and paired intervals is drawn.
            What is there already is not run again. A grid of your own is a few lines of YAML.""",
        epilog=examples(
            "dia ablate --list",
            "dia ablate dissolver-masking --data_root data --dry_run",
            "dia ablate dissolver-masking --datasets [breastmnist] --seeds [0,1,2] --data_root data",
            "dia ablate dissolver-masking --draw --reference [none,excluded]",
        ),
    )
    ablate.add_argument("grid", type=str | None, nargs="?", help="a shipped grid's name, or a YAML file")
    ablate.add_argument("--list", action="store_true", help="what grids are shipped")
    ablate.add_argument("--datasets", type=list[str] | None, help="as [a,b] (default: the grid's own)")
    ablate.add_argument("--seeds", type=list[int] | None, help="as [0,1,2] (default: the grid's own)")
    ablate.add_argument("--preset", type=str | None, help="cpu, gpu or paper (default: the grid's own)")
    ablate.add_argument(
        "--reference", type=list[str] | None, help="levels of the cell to compare with, as [none,excluded]"
    )
    ablate.add_argument(
        "--out", type=str, default="results/ablations", help="folder of the page and the plot"
    )
    grid_arguments(ablate, ledger="results/ablations.jsonl")
    ablate.add_argument("--draw", action="store_true", help="run nothing; draw what the ledger holds")
    ablate.add_argument("--dry_run", action="store_true", help="list the cells and what each changes")
    return ablate


def explore_parser() -> ArgumentParser:
    """Of `dia explore`."""
    explore = ArgumentParser(
        description="""Judge recipes on development data: no test set is read.

            Where a data set has a labelled val split, on that; and on lesions pasted into training normals
            that were left out. A recipe is a YAML file: date, reasoning, method, and of preset, settings,
            datasets, seeds, max_size what differs from the usual. What is in the ledger already is not run
            again.""",
        epilog=examples(
            "dia explore recipes/one.yaml recipes/other.yaml --data_root data",
            "dia explore recipes/one.yaml --datasets [breastmnist] --seeds [0,1,2] --data_root data",
        ),
    )
    explore.add_argument("recipes", type=str, nargs="+", help="YAML files")
    explore.add_argument("--datasets", type=list[str] | None, help="as [a,b] (default: the recipe's own)")
    explore.add_argument("--seeds", type=list[int], default=[0], help="as [0,1,2]")
    grid_arguments(explore, ledger="results/explore.jsonl", scores=".work/explored")
    return explore


def confirm_parser() -> ArgumentParser:
    """Of `dia confirm`."""
    confirm = ArgumentParser(
        description="""Let a frozen recipe meet its test sets: once, with all its seeds.

            The file must be committed. A recipe that met a test set cannot be changed under its name, and
            settings that were run on it before confirm nothing; both are refused. The lines say how many
            recipes met that test set before. The same command goes on after an interruption.""",
        epilog=examples(
            "dia confirm recipes/one.yaml --data_root data",
            "dia confirm recipes/one.yaml --data_root data --ledger results/runs.jsonl --workers 2",
        ),
    )
    confirm.add_argument("recipe", type=str, help="a YAML file, committed")
    grid_arguments(confirm, ledger="results/runs.jsonl")
    return confirm


def methods_parser() -> ArgumentParser:
    """Of `dia methods`."""
    from ..detectors.presets import PRESETS

    methods = ArgumentParser(
        description="""List the methods: family, paper, published weights, sizes, heatmaps, settings.

            Those of anomalib need `pip install 'dia-anomaly[peers]'`, those with a timm backbone
            `dia-anomaly[backbones]`; `trivial:` rows train nothing.""",
        epilog=examples("dia methods", "dia methods --preset paper --json"),
    )
    methods.add_argument("--preset", type=str, default="cpu", help=f"of the settings: {', '.join(PRESETS)}")
    json_argument(methods)
    return methods


def data_parser() -> ArgumentParser:
    """Of `dia data`."""
    data = ArgumentParser(
        description="""List the known data sets, or check what is in one of them or in a path.

            Nothing is downloaded: the list says where to get a set, and under which licence. The check
            counts images and classes by split and finds duplicates and near-duplicates, also across splits,
            where they are leaks; with --run, --scores or --row it says what copies of training images among
            the test images change in an AUROC.""",
        epilog=examples(
            "dia data list",
            "dia data check breastmnist --data_root data",
            "dia data check scans --normal healthy --json",
            "dia data check breastmnist --data_root data --row trivial:pixels",
            "dia data check scans --normal healthy --run runs/mine",
        ),
    )
    data.add_argument(
        "action", type=Literal["list", "check"], help="list: what is known; check: counts, duplicates, leaks"
    )
    data.add_argument("name", type=str | None, nargs="?", help="for check: a known set's name, or a path")
    data.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                      help="folder in which the known sets lie (default: $DIA_DATA)")  # fmt: skip
    reading_arguments(data)
    data.add_argument(
        "--size", type=int | None, help="read images as squares of this side, where sizes differ"
    )
    data.add_argument(
        "--run", type=str | None, help="a folder written by `dia fit`: what copies change in its AUROC"
    )
    data.add_argument(
        "--scores", type=str | None, help="the same of scores of the test split, by `dia score`"
    )
    data.add_argument("--row", type=str | None, help="the same of an untrained row, e.g. trivial:pixels")
    view_arguments(data, "each file's own (voi)")
    json_argument(data)
    return data
