"""Runs a grid into the ledger: several at once within a memory budget, with the time left, whatever fails.

A run is what `benchmark.run` makes, and it writes its own line; so a grid killed at any moment goes on where
it was. Knows what is to be run; `workers.py` knows where.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from rich.console import Console

from ..core.errors import DataError
from ..core.settings import SettingsError
from ..core.training import TrainingError
from ..data.datasets import load, load_training
from ..data.imageset import ImageSet
from ..detectors import DIA
from ..detectors.registry import detector_class, wanted_settings
from .ledger import Ledger, append_line, failures_path, identity
from .protocol import development
from .runs import OWN_WEIGHTS, described, run

_UNKNOWN_MB = 2048.0  # of a method that no line is known of
TEST = "test"
_LOOK = 1.0  # seconds between looks at the workers' memory
_DIED = "its process died, most often for want of memory: try fewer --workers, or a --memory_gb"


@dataclass(frozen=True)
class Task:
    """One run.

    Args:
        dataset: a known set's name.
        method: its name.
        seed: of everything.
        preset: of the settings.
        changes: of those, by dotted name.
        side: images are read at this longer side at most.
        contamination: share of anomalies, unmarked, among the training normals.
        about: further fields of the line.
        encoder: changes of `dia`'s settings, where weights are `dia`.
        judged: `test`, or a kind of development data of `evaluate.protocol`.
    """

    dataset: str
    method: str
    seed: int
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    side: int | None = None
    contamination: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    judged: str = TEST

    @property
    def label(self) -> str:
        """The data set as the ledger's line names it."""
        return self.dataset if self.judged == TEST else f"{self.dataset}/{self.judged}"

    def __str__(self) -> str:
        weights = f" (weights: {self.changes['weights']})" if "weights" in self.changes else ""
        cell = self.about.get("ablation", {}).get("cell")
        return f"{self.label} seed {self.seed} {' · '.join(cell) if cell else self.method + weights}"


@dataclass(frozen=True)
class Place:
    """Where data are and results go; every worker sees the same paths.

    Args:
        ledger: the file of lines.
        scores: folder of raw scores.
        work: folder of finished stages; safe to delete.
        data_root: of known data sets.
        device: of the fits.
        progress: show each fit's own bar.
    """

    ledger: str
    scores: str
    work: str
    data_root: str | None = None
    device: str = "auto"
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """The line of a task and whether it was made now, or the reason why there is none."""

    line: Mapping[str, Any] | None
    fresh: bool = False
    reason: str = ""


class Worker(Protocol):
    """What carries out one task at a time."""

    def submit(self, task: Task, place: Place) -> Future[Outcome]:
        """Starts it."""

    def memory_mb(self) -> float:
        """What it holds now; 0 where that is not known."""

    def kill(self) -> None:
        """Stops it at once; the next `submit` starts it anew."""


# --- one run, in a worker --------------------------------------------------------------------------------

_sets: dict[tuple[Any, ...], ImageSet] = {}  # of one data set at a time
_development: dict[tuple[Any, ...], tuple[ImageSet, ImageSet]] = {}  # likewise


def perform(task: Task, place: Place) -> Outcome:
    """Makes the line of a task, or finds it in the ledger."""
    began = time.time()
    try:
        line = run(
            task.label, *images(task, place), task.method, preset=task.preset, changes=task.changes,
            encoder=task.encoder, seed=task.seed, device=place.device, workdir=Path(place.work, task.dataset),
            ledger=Ledger(place.ledger), scores=Path(place.scores), progress=place.progress,
            about={"began": began, **task.about},
        )  # fmt: skip
    except (DataError, TrainingError) as error:
        return Outcome(None, reason=str(error))
    except Exception as error:  # one method's defect must not stop the others
        report = Path(place.work, "failures", f"{str(task).replace('/', '_')}.txt")
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Outcome(None, reason=f"{reason} (more in {report})")
    return Outcome(line, fresh=line.get("began") == began)


def images(task: Task, place: Place) -> tuple[ImageSet, ImageSet]:
    """Training normals and test images."""
    if task.judged != TEST:
        key = (task.label, place.data_root, task.side)
        if key not in _development:
            _development.clear()
            _development[key] = development(task.dataset, task.judged, place.data_root, task.side)
        return _development[key]
    seed = task.seed if task.contamination else 0
    of_training = (task.dataset, place.data_root, task.side, task.contamination, seed)
    of_test = (task.dataset, place.data_root, task.side)
    if of_test not in _sets:
        _sets.clear()
        _sets[of_test] = load(task.dataset, "test", place.data_root, max_size=task.side)
    if of_training not in _sets:
        _sets[of_training] = load_training(
            task.dataset, place.data_root, contamination=task.contamination, seed=task.seed,
            max_size=task.side,
        )  # fmt: skip
    return _sets[of_training], _sets[of_test]


# --- all runs --------------------------------------------------------------------------------------------


def run_grid(
    tasks: Iterable[Task],
    place: Place,
    workers: Sequence[Worker],
    *,
    memory_gb: float | None = None,
    say: Callable[[str, bool], None] | None = None,
) -> list[str]:
    """Carries out every task that is not in the ledger.

    Args:
        tasks: in the order wanted.
        place: where data are and results go.
        workers: which share the tasks.
        memory_gb: of all workers together. A run starts where what it held before (2 GiB, where no line
            tells) has room beside the others. If they grow beyond the budget all the same, the run begun last
            is stopped, and made when it can be alone; what needs more even then has failed.
        say: told each outcome, and whether it is a failure; by default a line on stderr.

    Returns:
        One line for each failure; each is also written to a file beside the ledger.
    """
    say = say or _on_stderr()
    waiting, free = list(tasks), list(workers)
    running: dict[Future[Outcome], tuple[Worker, Task]] = {}
    stopped: set[Future[Outcome]] = set()
    total, failed = len(waiting), list[str]()
    budget = float("inf") if memory_gb is None else memory_gb * 1024
    costs = Costs(Ledger(place.ledger).rows(), budget)
    try:
        while waiting or running:
            while free and (task := costs.next(waiting, [t for _, t in running.values()])):
                waiting.remove(task)
                worker = free.pop()
                running[worker.submit(task, place)] = worker, task
            done, _ = wait(running, None if memory_gb is None else _LOOK, FIRST_COMPLETED)
            for future in done:
                worker, task = running.pop(future)
                free.append(worker)
                outcome = _outcome(future)
                if future in stopped and outcome.line is None:
                    if costs.needs_all(task):
                        outcome = Outcome(
                            None, reason=f"needs more than the {memory_gb:.3g} GiB of --memory_gb"
                        )
                    else:
                        costs.put_off(task)
                        waiting.append(task)
                        continue
                if outcome.line is None:
                    failed.append(f"{task}: {outcome.reason}")
                    _keep_failure(place, task, outcome.reason)
                    say(failed[-1], True)
                    continue
                if outcome.fresh:
                    costs.learn(outcome.line)
                left = costs.minutes([*waiting, *(t for _, t in running.values())], len(workers))
                say(_news(total - len(waiting) - len(running), total, left, task, outcome), False)
            if running.keys() - stopped and sum(w.memory_mb() for w, _ in running.values()) > budget:
                last = list(running)[-1]
                stopped.add(last)
                running[last][0].kill()
    finally:
        for worker in workers:
            worker.kill()
    return failed


class Costs:
    """What runs need, as far as the ledger's lines tell.

    Args:
        lines: of the ledger.
        budget: MiB of all runs at a time.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]], budget: float = float("inf")):
        self.lines, self.budget = list(lines), budget
        self.alone: list[Task] = []

    def next(self, waiting: Sequence[Task], running: Sequence[Task]) -> Task | None:
        """The first of the waiting that has room beside the running; any has, where nothing runs."""
        room = self.budget - sum(self.memory_mb(t) for t in running)
        return next((t for t in waiting if not running or self.memory_mb(t) <= room), None)

    def put_off(self, task: Task) -> None:
        """It is to run alone."""
        self.alone.append(task)

    def needs_all(self, task: Task) -> bool:
        """Whether it was put off."""
        return task in self.alone

    def memory_mb(self, task: Task) -> float:
        """The most that runs of this method held, on this data set if there were any."""
        if self.needs_all(task):
            return self.budget
        return max((r["peak_memory_mb"] for r in self._of(task)), default=_UNKNOWN_MB)

    def seconds(self, task: Task) -> float | None:
        """The mean time of such runs; None where there is no telling."""
        known = [r.get("run_seconds", r["fit_seconds"]) for r in self._of(task)]
        return mean(known) if known else None

    def learn(self, line: Mapping[str, Any]) -> None:
        """Takes a new line into account."""
        self.lines.append(line)

    def minutes(self, tasks: Sequence[Task], workers: int) -> float | None:
        """Time for these tasks, those of unknown cost at the mean of the others; None where all are."""
        known = [s for t in tasks if (s := self.seconds(t)) is not None]
        if tasks and not known:
            return None
        return len(tasks) * mean(known or [0.0]) / workers / 60

    def _of(self, task: Task) -> list[Mapping[str, Any]]:
        of_method = [r for r in self.lines if (r["method"], r["preset"]) == (task.method, task.preset)]
        return [r for r in of_method if r["dataset"] == task.label] or of_method


def found(tasks: Sequence[Task], place: Place) -> list[Mapping[str, Any] | None]:
    """The ledger's line of each task; None where there is none."""
    lines = {identity(r): r for r in Ledger(place.ledger).rows()}
    return [lines.get(identity(asked(t, place))) for t in tasks]


def missing(tasks: Sequence[Task], place: Place) -> list[Task]:
    """Those tasks whose line is not in the ledger."""
    return [t for t, line in zip(tasks, found(tasks, place), strict=True) if line is None]


def asked(task: Task, place: Place) -> dict[str, Any]:
    """What the line of a task will say of its run, by `runs.described`."""
    normals, test = images(task, place)
    wanted = wanted_settings(task.method, task.preset, task.changes)
    own = DIA(wanted_settings(DIA.method, task.preset, task.encoder), seed=task.seed)
    detector = detector_class(task.method)(wanted, seed=task.seed)
    return described(task.label, detector, task.preset, f"{normals.sha256()[:32]}{test.sha256()[:32]}", own)


def benchmark_tasks(
    datasets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    preset: str,
    side: int,
    *,
    weights: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Task], list[str]]:
    """Data sets × methods × weights × seeds.

    Args:
        datasets: known names.
        methods: likewise.
        seeds: likewise.
        preset: of the settings.
        side: images are read at this longer side at most.
        weights: of the methods that start from a network's; the preset's where empty. `dia` is the encoder of
            `dia` fitted on the same normals.
        settings: changes by dotted name, by method.

    Returns:
        The tasks; and a remark for each method that cannot take some of the weights, which is then left out.

    Raises:
        DataError: no such method.
        SettingsError: a setting that is not there, or cannot be so.
    """
    given, remarks = settings or {}, list[str]()
    ways: list[tuple[str, dict[str, Any]]] = []
    for method in methods:
        own = dict(given.get(method, {}))
        takes = "weights" not in own and hasattr(wanted_settings(method, preset, own), "weights")
        for changed in [{"weights": w} for w in weights if takes] or [{}]:
            way, source = own | changed, changed.get("weights")
            try:  # of `dia`, whether the method takes the encoder of a run at all
                wanted_settings(
                    method, preset, way | ({"weights": "dia:RUN"} if source == OWN_WEIGHTS else {})
                )
            except SettingsError as error:
                remarks.append(f"{method} is left out with weights {source}: {error}")
            else:
                ways.append((method, way))
    encoder = given.get(DIA.method, {})
    every = product(datasets, ways, seeds)
    tasks = [Task(d, m, seed, preset, way, side, encoder=encoder) for d, (m, way), seed in every]
    return tasks, remarks


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(None, reason=_DIED)
    except Exception as error:  # of Ray, there are many
        return Outcome(None, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _keep_failure(place: Place, task: Task, reason: str) -> None:
    facts = {"dataset": task.dataset, "method": task.method, "seed": task.seed, "preset": task.preset}
    wanted = wanted_settings(task.method, task.preset, task.changes)
    facts |= {"weights": getattr(wanted, "weights", "none"), "reason": reason, "time": round(time.time())}
    append_line(failures_path(Path(place.ledger)), json.dumps(facts).encode() + b"\n")


def _news(number: int, total: int, left: float | None, task: Task, outcome: Outcome) -> str:
    line = outcome.line or {}
    low, high = line["auroc_ci"]
    text = f"{task}: AUROC {line['auroc']:.3f} [{low:.3f}, {high:.3f}]"
    if not outcome.fresh:
        return f"{number} of {total}, in the ledger: {text}"
    about = "time left unknown" if left is None else f"about {left:.0f} min left"
    cost = f"fit {line['fit_seconds']:.0f} s, {line['peak_memory_mb']:.0f} MiB"
    return f"{number} of {total}, {about}: {text}, {cost}"


def _on_stderr() -> Callable[[str, bool], None]:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text, failed: console.print(text, style="red" if failed else None, markup=False)
