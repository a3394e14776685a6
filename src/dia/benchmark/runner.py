"""Runs a grid into the ledger: several at once within a memory budget, with the time left, whatever fails.

A run is what `runs.run` makes, and it writes its own line; so a grid killed at any moment goes on where
it was. Knows what is to be run; `workers.py` knows where.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from rich.console import Console

from ..core.errors import DataError
from ..core.training import TrainingError
from ..data.datasets import load, load_training, name_of
from ..data.imageset import ImageSet
from ..detectors import DIA
from ..detectors.registry import detector_class, wanted_settings
from .grid import TEST, Job
from .ledger import Ledger, append_line, failures_path, identity
from .protocol import development
from .runs import described, run

_UNKNOWN_MB = 2048.0  # of a method that no line is known of
_LOOK = 1.0  # seconds between looks at the workers' memory
_DIED = "its process died, most often for want of memory: try fewer --workers, or a --memory_gb"


@dataclass(frozen=True)
class Paths:
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
class Result:
    """The line of a job and whether it was made now, or the reason why there is none."""

    line: Mapping[str, Any] | None
    fresh: bool = False
    reason: str = ""


class Worker(Protocol):
    """What carries out one job at a time."""

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts it."""

    def memory_mb(self) -> float:
        """What it holds now; 0 where that is not known."""

    def kill(self) -> None:
        """Stops it at once; the next `submit` starts it anew."""


# --- one run, in a worker --------------------------------------------------------------------------------

_sets: dict[tuple[Any, ...], ImageSet] = {}  # of one data set at a time
_development: dict[tuple[Any, ...], tuple[ImageSet, ImageSet]] = {}  # likewise


def perform(job: Job, paths: Paths) -> Result:
    """Makes the line of a job, or finds it in the ledger."""
    began = time.time()
    try:
        line = run(
            job.label, *images(job, paths), job.method, preset=job.preset, changes=job.changes,
            encoder=job.encoder, seed=job.seed, device=paths.device,
            workdir=Path(paths.work, name_of(job.dataset)),
            ledger=Ledger(paths.ledger), scores=Path(paths.scores), progress=paths.progress,
            about={"began": began, **job.about},
        )  # fmt: skip
    except (DataError, TrainingError) as error:
        return Result(None, reason=str(error))
    except Exception as error:  # one method's defect must not stop the others
        report = Path(paths.work, "failures", f"{str(job).replace('/', '_')}.txt")
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Result(None, reason=f"{reason} (more in {report})")
    return Result(line, fresh=line.get("began") == began)


def images(job: Job, paths: Paths) -> tuple[ImageSet, ImageSet]:
    """Training normals and test images."""
    if job.judged != TEST:
        key = (job.label, paths.data_root, job.side)
        if key not in _development:
            _development.clear()
            _development[key] = development(job.dataset, job.judged, paths.data_root, job.side)
        return _development[key]
    seed = job.seed if job.contamination else 0
    of_training = (job.dataset, paths.data_root, job.side, job.contamination, seed)
    of_test = (job.dataset, paths.data_root, job.side)
    if of_test not in _sets:
        _sets.clear()
        _sets[of_test] = load(job.dataset, "test", paths.data_root, max_size=job.side)
    if of_training not in _sets:
        _sets[of_training] = load_training(
            job.dataset, paths.data_root, contamination=job.contamination, seed=job.seed,
            max_size=job.side,
        )  # fmt: skip
    return _sets[of_training], _sets[of_test]


# --- all runs --------------------------------------------------------------------------------------------


def run_grid(
    jobs: Iterable[Job],
    paths: Paths,
    workers: Sequence[Worker],
    *,
    memory_gb: float | None = None,
    say: Callable[[str, bool], None] | None = None,
) -> list[str]:
    """Carries out every job that is not in the ledger.

    Args:
        jobs: in the order wanted.
        paths: where data are and results go.
        workers: which share the jobs.
        memory_gb: of all workers together. A run starts where what it held before (2 GiB, where no line
            tells) has room beside the others. If they grow beyond the budget all the same, the run begun last
            is stopped, and made when it can be alone; what needs more even then has failed.
        say: told each result, and whether it is a failure; by default a line on stderr.

    Returns:
        One line for each failure; each is also written to a file beside the ledger.
    """
    say = say or _on_stderr()
    waiting, free = list(jobs), list(workers)
    running: dict[Future[Result], tuple[Worker, Job]] = {}
    stopped: set[Future[Result]] = set()
    total, failed = len(waiting), list[str]()
    budget = float("inf") if memory_gb is None else memory_gb * 1024
    costs = Costs(Ledger(paths.ledger).rows(), budget)
    try:
        while waiting or running:
            while free and (job := costs.next(waiting, [t for _, t in running.values()])):
                waiting.remove(job)
                worker = free.pop()
                running[worker.submit(job, paths)] = worker, job
            done, _ = wait(running, None if memory_gb is None else _LOOK, FIRST_COMPLETED)
            for future in done:
                worker, job = running.pop(future)
                free.append(worker)
                result = _result(future)
                if future in stopped and result.line is None:
                    if costs.needs_all(job):
                        result = Result(
                            None, reason=f"needs more than the {memory_gb:.3g} GiB of --memory_gb"
                        )
                    else:
                        costs.put_off(job)
                        waiting.append(job)
                        continue
                if result.line is None:
                    failed.append(f"{job}: {result.reason}")
                    _keep_failure(paths, job, result.reason)
                    say(failed[-1], True)
                    continue
                if result.fresh:
                    costs.learn(result.line)
                left = costs.minutes([*waiting, *(t for _, t in running.values())], len(workers))
                say(_news(total - len(waiting) - len(running), total, left, job, result), False)
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
        self.alone: list[Job] = []

    def next(self, waiting: Sequence[Job], running: Sequence[Job]) -> Job | None:
        """The first of the waiting that has room beside the running; any has, where nothing runs."""
        room = self.budget - sum(self.memory_mb(t) for t in running)
        return next((t for t in waiting if not running or self.memory_mb(t) <= room), None)

    def put_off(self, job: Job) -> None:
        """It is to run alone."""
        self.alone.append(job)

    def needs_all(self, job: Job) -> bool:
        """Whether it was put off."""
        return job in self.alone

    def memory_mb(self, job: Job) -> float:
        """The most that runs of this method held, on this data set if there were any."""
        if self.needs_all(job):
            return self.budget
        return max((r["peak_memory_mb"] for r in self._of(job)), default=_UNKNOWN_MB)

    def seconds(self, job: Job) -> float | None:
        """The mean time of such runs; None where there is no telling."""
        known = [r.get("run_seconds", r["fit_seconds"]) for r in self._of(job)]
        return mean(known) if known else None

    def learn(self, line: Mapping[str, Any]) -> None:
        """Takes a new line into account."""
        self.lines.append(line)

    def minutes(self, jobs: Sequence[Job], workers: int) -> float | None:
        """Time for these jobs, those of unknown cost at the mean of the others; None where all are."""
        known = [s for t in jobs if (s := self.seconds(t)) is not None]
        if jobs and not known:
            return None
        return len(jobs) * mean(known or [0.0]) / workers / 60

    def _of(self, job: Job) -> list[Mapping[str, Any]]:
        of_method = [r for r in self.lines if (r["method"], r["preset"]) == (job.method, job.preset)]
        return [r for r in of_method if r["dataset"] == job.label] or of_method


def missing(jobs: Sequence[Job], paths: Paths) -> list[Job]:
    """Those jobs whose line is not in the ledger."""
    there = {identity(r) for r in Ledger(paths.ledger).rows()}
    return [job for job in jobs if identity(asked(job, paths)) not in there]


def asked(job: Job, paths: Paths) -> dict[str, Any]:
    """What the line of a job will say of its run, by `runs.described`."""
    normals, test = images(job, paths)
    wanted = wanted_settings(job.method, job.preset, job.changes)
    own = DIA(wanted_settings(DIA.method, job.preset, job.encoder), seed=job.seed)
    detector = detector_class(job.method)(wanted, seed=job.seed)
    return described(job.label, detector, job.preset, f"{normals.sha256()[:32]}{test.sha256()[:32]}", own)


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        return Result(None, reason=_DIED)
    except Exception as error:  # of Ray, there are many
        return Result(None, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _keep_failure(paths: Paths, job: Job, reason: str) -> None:
    facts = {
        "dataset": name_of(job.dataset), "method": job.method, "seed": job.seed, "preset": job.preset,
    }  # fmt: skip
    wanted = wanted_settings(job.method, job.preset, job.changes)
    facts |= {"weights": getattr(wanted, "weights", "none"), "reason": reason, "time": round(time.time())}
    append_line(failures_path(Path(paths.ledger)), json.dumps(facts).encode() + b"\n")


def _news(number: int, total: int, left: float | None, job: Job, result: Result) -> str:
    line = result.line or {}
    low, high = line["auroc_ci"]
    text = f"{job}: AUROC {line['auroc']:.3f} [{low:.3f}, {high:.3f}]"
    if not result.fresh:
        return f"{number} of {total}, in the ledger: {text}"
    about = "time left unknown" if left is None else f"about {left:.0f} min left"
    cost = f"fit {line['fit_seconds']:.0f} s, {line['peak_memory_mb']:.0f} MiB"
    return f"{number} of {total}, {about}: {text}, {cost}"


def _on_stderr() -> Callable[[str, bool], None]:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text, failed: console.print(text, style="red" if failed else None, markup=False)
