"""The commands `dia benchmark` and `dia report benchmark`, and the options of all grids of runs.

Their parsers need neither torch nor a detector: everything else is imported when a command runs.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..benchmark.ledger import FAILED, LEDGER, Ledger, failures_path
from ..core.errors import DataError, TrainingError
from ..core.yamlfile import read_yaml
from ..data.options import ReadOptions
from .help import parser_of, values_of
from .options import Cluster, DataRoot, Device, remark, result
from .options import out as console

if TYPE_CHECKING:
    from ..benchmark.grid import Job
    from ..benchmark.runner import Paths


@dataclass(frozen=True, kw_only=True)
class Runs(Cluster, Device, DataRoot):
    """Where the runs read and write, and how many run at a time.

    Args:
        ledger: file of a JSON line for each run
        scores: raw scores, for paired intervals and curves
        work: keeps finished stages; safe to delete
        workers: runs at a time, each in a process of its own with its share of the cores; default: one, in
            this process; with ray one for each GPU, or else CPU core
        memory_gb: memory of all workers together; default: with several, four fifths of the machine's
        normal: class folders or label values, comma separated, that are normal in your own folders, .npz or
            .csv among the data sets; known sets say what is normal
        features_gb: of disk under `work` for features of frozen networks, computed once for all methods and
            seeds; 0: each run computes its own
    """

    ledger: str = LEDGER
    scores: str = "results/scores"
    work: str = ".work"
    workers: int | None = None
    memory_gb: float | None = None
    normal: str | None = None
    features_gb: float = 16.0

    def paths(self) -> Paths:
        """Returns the places of data and results."""
        from ..benchmark.runner import Paths

        bar = self.executor == "local" and self.workers in (None, 1)
        return Paths(
            self.ledger,
            self.scores,
            self.work,
            self.data_root,
            self.device,
            bar,
            self.normal,
            self.features_gb,
        )

    def check(self, datasets: Collection[str]) -> None:
        """Raises `DataError`: a set is not there, a user's own lacks labels, or `normal` is idle."""
        from ..data.datasets import find, is_path, known_set, open_listing

        for name in datasets:
            if (known := known_set(name, self.data_root)).path:
                find(known, self.data_root)
        own = [name for name in datasets if is_path(name, self.data_root)]
        if self.normal and not own:
            raise DataError("--normal is for folders of your own, and no data set is one; leave it out")
        for name in own:
            labels = open_listing(name, "test", options=ReadOptions(normal=self.normal)).labels
            if labels is None or not 0 < labels.sum() < len(labels):
                raise DataError(
                    f"{name}: the test images need labels of both classes; --normal names the class that is "
                    "normal, or the split folders hold them"
                )

    def carry_out(self, jobs: Sequence[Job]) -> list[str]:
        """Runs jobs, and returns a line for each failure."""
        from ..benchmark.runner import run_grid
        from ..benchmark.workers import memory_of_machine_gb, workers_of

        self.check(dict.fromkeys(job.dataset for job in jobs))
        several = self.executor == "local" and (self.workers or 1) > 1
        memory = 0.8 * memory_of_machine_gb() if several and self.memory_gb is None else self.memory_gb
        with workers_of(
            self.executor, self.workers, device=self.device, apart=self.memory_gb is not None,
            address=self.ray_address,
        ) as workers:  # fmt: skip
            return run_grid(jobs, self.paths(), workers, memory_gb=memory, say=_say)


def _say(text: str, failed: bool) -> None:
    remark(text, "red" if failed else None)


def refuse_failures(failed: Sequence[str]) -> None:
    """Raises `TrainingError` if any run failed."""
    if failed:
        number = f"{len(failed)} run{'s' * (len(failed) > 1)} failed"
        raise TrainingError(f"{number}; the first: {failed[0]}; the same command tries them anew")


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table.

    Args:
        head: the names of the columns.
        rows: the cells of each row.
    """
    from ..report import render
    from ..report.table import table

    console.print(render.console(table(head, rows)))


def _check_there(datasets: Sequence[str], data_root: str | None) -> None:
    """Raises `DataError`: a set is not there; it says where to get it, and how to go on without."""
    from ..data.datasets import find, known_set

    absent: dict[str, DataError] = {}
    for name in datasets:
        if (known := known_set(name, data_root)).path:
            try:
                find(known, data_root)
            except DataError as error:
                absent[name] = error
    rest = [name for name in datasets if name not in absent]
    if absent:
        without = f"; or go on without: --datasets '[{','.join(rest)}]'" if rest else ""
        raise DataError(f"{next(iter(absent.values()))}{without}")


def _check_preset(preset: str) -> None:
    from ..detectors.presets import PRESETS

    if preset not in PRESETS:
        raise DataError(f"--preset {preset} is not known; there are: {', '.join(PRESETS)}")


def benchmark(
    *,
    datasets: Sequence[str] = ("phantom",),
    methods: list[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    preset: str = "cpu",
    weights: Sequence[str] = (),
    settings: dict[str, dict[str, Any]] = {},  # noqa: B006 - never changed
    sizes: dict[str, int] = {},  # noqa: B006 - never changed
    max_size: int | None = None,
    readme: Sequence[str] = (),
    dry_run: bool = False,
    runs: Runs,
) -> None:
    r"""Run data sets × methods × seeds into the ledger.

    A run that is there already is not made again, so a grid that was stopped goes on with the same command;
    one failure does not stop the rest. `dia report benchmark` draws the table.

    Args:
        datasets: names of `dia data list`, or folders, .npz or .csv of your own labelled images, as [a,b]; a
            folder without splits is divided, four fifths of its normals to train on
        methods: names of `dia methods`, or anomalib:NAME for any model of anomalib (default: all but those
            that are published with pretrained weights, or need an extra package)
        seeds: a run for each
        preset: settings of all runs: cpu, gpu or paper
        weights: first weights of methods that have pretrained ones, with a row of runs for each: lite0, none,
            imagenet, a file, dia:RUN, or dia: the encoder of dia fitted on the same normals; default: the
            preset's
        settings: changes of a method's settings, as '{patchcore: {size: 96}}'
        sizes: by data set, another size for the methods whose size `settings` changes
        max_size: read images at this side at most; default: the preset's
        readme: write the tables between the marks SETS, RESULTS and HEATMAPS of these files, as [a,b]
        dry_run: show which runs are missing, and their cost
        runs: where and how the runs are made.

    Examples:
        dia benchmark --datasets [pneumoniamnist,breastmnist] --methods [dia,msc,trivial:hog] \
            --weights [none,dia] --data_root data --workers 2
        dia benchmark --datasets [scans/labelled] --normal healthy --ledger mine.jsonl
        dia --plugin mine.py benchmark --datasets [scans/labelled] --normal healthy --methods [mine,dia+]
        dia benchmark --config grid.yaml --dry_run
        dia benchmark --methods [patchcore] --settings '{patchcore: {size: 96}}'
    """
    from ..benchmark.grid import benchmark_grid
    from ..benchmark.runner import missing
    from ..report.benchmark.readme import TABLES, marked_tables, marks_in

    _check_preset(preset)
    for flag, given in {"datasets": datasets, "methods": methods, "seeds": seeds}.items():
        if given is not None and not given:
            raise DataError(f"--{flag} is empty, and nothing would be run; leave it out for the default")
    for file in readme:
        marks_in(Path(file), TABLES)  # before hours of runs
    grid, left_out = benchmark_grid(
        datasets, methods, seeds, preset, max_size=max_size, weights=weights, settings=settings, sizes=sizes
    )
    for line in left_out:
        remark(line, "yellow")
    jobs = grid.jobs()
    _check_there(datasets, runs.data_root)
    if dry_run:
        return _show_cost(missing(jobs, runs.paths()), len(jobs), runs.ledger)
    failed = runs.carry_out(jobs)
    for file in readme:
        marked_tables(Path(file), Ledger(runs.ledger).rows(), datasets)
    refuse_failures(failed)


def _options_of(file: str) -> dict[str, Any]:
    """Returns the values of all options of `dia benchmark --config FILE`.

    Raises:
        DataError: no such file, or one that `dia benchmark` does not take.
    """
    if not isinstance(read_yaml(Path(file)), dict):
        raise DataError(
            f"{file}: no grid; it needs entries such as `datasets: [a, b]`, as of `dia benchmark`"
        )
    parser = parser_of(benchmark, "dia benchmark")
    parser.exit_on_error = False
    try:
        return values_of(parser, ["--config", file])
    except ArgumentError as error:
        said = re.sub(r'^Parser key "([\w.]+)":', r"\1:", " ".join(str(error).split()))
        raise DataError(f"{file}: {said[:300]}; see dia benchmark --help") from error


def _show_cost(left: Sequence[Job], total: int, ledger: str) -> None:
    """Prints the missing runs, and their time as far as the ledger's lines tell."""
    from ..benchmark.runner import Costs

    costs = Costs(Ledger(ledger).rows())
    rows, whole, unknown = [], 0.0, 0
    for method, dataset in dict.fromkeys((j.method, j.dataset) for j in left):
        own = [j for j in left if (j.method, j.dataset) == (method, dataset)]
        minutes = costs.minutes(own, 1)
        whole, unknown = whole + (minutes or 0), unknown + len(own) * (minutes is None)
        rows.append([method, dataset, str(len(own)), "unknown" if minutes is None else f"{minutes:.1f}"])
    show(("method", "data set", "runs to make", "minutes, by earlier runs"), rows)
    more = f", and {unknown} of unknown cost" if unknown else ""
    result(f"{len(left)} of {total} runs are to be made: about {whole:.0f} minutes with one worker{more}")


def report_benchmark(
    *,
    ledger: str | None = None,
    scores: str | None = None,
    preset: str | None = None,
    datasets: list[str] | None = None,
    methods: list[str] | None = None,
    settings: dict[str, dict[str, Any]] = {},  # noqa: B006 - never changed
    grid: str | None = None,
    weights: list[str] | None = None,
    out: str = "results/benchmark",
    title: str = "Benchmark",
    readme: Sequence[str] = (),
    pictures: bool = False,
    work: str | None = None,
    what: Literal["benchmark"] = "benchmark",
    root: DataRoot,
) -> None:
    """Draw the table of a benchmark from the ledger: HTML, Markdown, CSV, LaTeX, figures.

    With intervals, ranks and tests over data sets, paired differences, curves, weights, costs and failures.
    Only lines count that `dia benchmark` would make today: those of other settings stay in the ledger as
    history.

    Args:
        ledger: what `dia benchmark` wrote (default: the grid's, else results/runs.jsonl)
        scores: the raw scores it kept (default: the grid's, else results/scores)
        preset: settings of the runs: cpu, gpu or paper (default: the grid's, else cpu)
        datasets: the columns (default: all in the ledger)
        methods: the rows (default: all in the ledger)
        settings: as they were given to `dia benchmark`
        grid: the file that was given to `dia benchmark --config`: its runs alone are shown, and the page says
            which are missing; everything that no option here gives is its own
        weights: of the grid's rows, as [none] for the same table without outside data; needs --grid
        out: folder of the report
        title: of the page
        readme: write how methods stand between the marks FAIR of these files, as [a,b]; between COUNT the
            sentences alone
        pictures: fit the default and the best other method with heatmaps anew, and show what they marked in
            four test images of each set whose licence allows it; needs the data sets
        work: `--work` of `dia benchmark`: with its finished stages a fit for `pictures` takes seconds
        what: the word `benchmark`, which older configurations hold
        root: where data sets lie, to count duplicates.

    Examples:
        dia report benchmark
        dia report benchmark --grid grids/table.yaml --out results/table --title 'One fair table'
        dia report benchmark --grid grids/table.yaml --weights [none] --out results/table-none
        dia report benchmark --grid grids/table.yaml --data_root data --pictures --work .work
        dia report benchmark --datasets [breastmnist,pneumoniamnist] --out two-sets
        dia report benchmark --config report.yaml
    """
    from ..benchmark.grid import benchmark_grid
    from ..benchmark.results import benchmark_results
    from ..benchmark.runs import current_lines, open_failures
    from ..data.datasets import name_of
    from ..detectors.presets import MAX_SIZE
    from ..report.benchmark.lines import RunsOf
    from ..report.benchmark.page import write_benchmark_report
    from ..report.benchmark.readme import STANDING, marked_standing, marks_in
    from ..report.benchmark.scores import load_scores
    from ..report.benchmark.sets import set_contexts

    if weights and not grid:
        raise DataError("--weights are those of a grid's rows: give --grid FILE")
    for file in readme:
        marks_in(Path(file), STANDING)
    chosen = {"datasets": datasets and [name_of(d) for d in datasets], "methods": methods}
    of_grid = _options_of(grid) if grid else {}
    ledger = ledger or of_grid.get("ledger", LEDGER)
    scores = scores or of_grid.get("scores", Runs.scores)
    preset = preset or of_grid.get("preset", "cpu")
    datasets, methods = datasets or of_grid.get("datasets"), methods or of_grid.get("methods")
    settings = settings or of_grid.get("settings", {})
    _check_preset(preset)
    side = of_grid.get("max_size") or MAX_SIZE[preset]
    names = datasets and [name_of(d) for d in datasets]
    if not Path(ledger).is_file():
        raise DataError(f"{ledger}: no ledger is there; `dia benchmark` writes one, and --ledger names it")
    rows, failed = Ledger(ledger).rows(), Ledger(failures_path(Path(ledger)), FAILED).rows()
    for flag, asked_for in chosen.items():
        known = dict.fromkeys(str(r[flag.removesuffix("s")]) for r in [*rows, *failed])
        if unknown := [name for name in asked_for or () if name not in known]:
            raise DataError(f"--{flag} {unknown[0]}: no run of it is in {ledger}, but of {', '.join(known)}")
    lines = current_lines(
        rows, preset, datasets=names, methods=methods, changes=settings, sizes=of_grid.get("sizes")
    )
    of, notes = None, list[str]()
    if grid:
        asked, _ = benchmark_grid(
            datasets or (), methods, of_grid["seeds"], preset,
            weights=weights or of_grid["weights"], settings=settings, sizes=of_grid["sizes"],
        )  # fmt: skip
        of = RunsOf(asked)
        lines, notes = of.lines(lines), of.missing(lines)
    if not lines:
        raise DataError(f"{ledger}: no line of preset {preset} with these settings; run `dia benchmark`")
    failures = open_failures(failed, lines, preset, datasets=names, methods=methods)
    failures = of.failures(failures) if of else failures
    sets, remarks = set_contexts(lines, root.data_root, side)
    for line in remarks:
        remark(line)
    shown = None
    if pictures:
        from ..report.benchmark.pictures import draw_pictures

        results = benchmark_results(lines, failures)
        shown = draw_pictures(Path(out), results, root.data_root, side, Path(work) if work else None, remark)
    for path in write_benchmark_report(
        Path(out), lines, Path(scores), failures, title, sets=sets, pictures=shown, notes=notes,
        data_root=root.data_root,
    ):  # fmt: skip
        result(str(path))
    for file in readme:
        results = benchmark_results(lines, failures)
        marked_standing(Path(file), results, load_scores(results, Path(scores), root.data_root))
