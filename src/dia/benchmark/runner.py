"""Carries out a grid: several runs at once within a memory budget, and the others if one fails.

`runs.run` makes a run and writes its line, so a grid that was killed at any moment goes on where it was.
Knows what is to be run; `workers.py` knows where.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.training import TrainingError
from ..data.datasets import CATALOG, DECLARATION, interval_units, is_path, load, load_training, name_of
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..detectors.registry import wanted_settings
from ..features.shared import SharedMaps, sharing
from .grid import TEST, Job
from .ledger import Ledger, append_line, failures_path, identity
from .protocol import development
from .runs import images_sha256, planned, run, scores_path

_UNKNOWN_MB = 2048.0  # of a method without any line
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
        normal: comma-separated classes that are normal in data sets that are named by their paths.
        features_gb: of disk under `work` for maps of frozen networks, which all methods share; 0: none.
    """

    ledger: str
    scores: str
    work: str
    data_root: str | None = None
    device: str = "auto"
    progress: bool = False
    normal: str | None = None
    features_gb: float = 16.0

    def shared_maps(self) -> SharedMaps | None:
        """Returns the maps that the runs share; None if they are to share none."""
        return (
            SharedMaps(Path(self.work, "features"), int(self.features_gb * 2**30))
            if self.features_gb
            else None
        )

    def normal_in(self, dataset: str) -> str | None:
        """Returns `normal` where the data set is named by its path; known sets say what is normal."""
        return self.normal if is_path(dataset, self.data_root) else None


@dataclass(frozen=True)
class Result:
    """The line of a job, with True if it was made now; or the reason why there is none."""

    line: Mapping[str, Any] | None
    fresh: bool = False
    reason: str = ""


class Worker:
    """Carries out one job at a time, in this process."""

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts a job; here it is done at once.

        Args:
            job: the run.
            paths: where data are and results go.

        Returns:
            The future result.
        """
        future: Future[Result] = Future()
        future.set_result(perform(job, paths))
        return future

    def memory_mb(self) -> float:
        """Returns the memory that it holds now in MiB; 0 if that is not known."""
        return 0.0

    def kill(self) -> None:
        """Stops it at once; the next `submit` starts it anew."""


# --- one run, in a worker --------------------------------------------------------------------------------


def perform(job: Job, paths: Paths) -> Result:
    """Makes the line of a job, or finds it in the ledger.

    Args:
        job: the run.
        paths: where data are and results go.

    Returns:
        The line, or the reason of a failure.
    """
    began = time.time()
    try:
        with sharing(paths.shared_maps()):
            normals, test = _images(job, paths)
            line = run(
            job.label, normals, test, job.method, preset=job.preset, changes=job.changes,
            encoder=job.encoder, seed=job.seed, device=paths.device, progress=paths.progress,
            workdir=Path(paths.work, name_of(job.dataset)), ledger=Ledger(paths.ledger),
            scores=Path(paths.scores), units=_units(job, test, paths),
            about={"began": began, **_source(job, paths), **job.about},
        )  # fmt: skip
    except (DataError, TrainingError) as error:
        return Result(None, reason=str(error))
    except Exception as error:  # one method's defect must not stop the others
        report = Path(paths.work, "failures", f"{str(job).replace('/', '_')}.txt")
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(traceback.format_exc())
        return Result(None, reason=f"{_in_one_line(error)} (more in {report})")
    return Result(line, fresh=line.get("began") == began)


def _images(job: Job, paths: Paths) -> tuple[ImageSet, ImageSet]:
    """Reads training normals and test images."""
    seed = job.seed if job.contamination else 0
    normal = paths.normal_in(job.dataset)
    return _read(job.dataset, job.judged, paths.data_root, job.side, job.contamination, seed, normal)


@lru_cache(maxsize=1)  # successive jobs are mostly of one data set
def _read(
    dataset: str,
    judged: str,
    data_root: str | None,
    side: int | None,
    contamination: float,
    seed: int,
    normal: str | None,
) -> tuple[ImageSet, ImageSet]:
    if judged != TEST:
        return development(dataset, judged, data_root, side, normal)
    reading = ReadOptions(max_size=side, normal=normal)
    normals = load_training(dataset, data_root, reading, contamination=contamination, seed=seed)
    return normals, load(dataset, TEST, data_root, reading)


def _source(job: Job, paths: Paths) -> dict[str, Any]:
    """Returns the field of a line that says where a data set of the user's own is; none for known sets."""
    if not is_path(job.dataset, paths.data_root) and not job.dataset.lower().endswith(DECLARATION):
        return {}
    return {"source": {"path": os.path.abspath(job.dataset), "normal": paths.normal_in(job.dataset)}}


def _units(job: Job, test: ImageSet, paths: Paths) -> np.ndarray | None:
    """Returns which test images count as one in intervals by `interval_by`."""
    try:
        return interval_units(job.dataset, test.names, paths.data_root)
    except DataError:
        if job.dataset in CATALOG:  # images made for development have names of their own
            return None
        raise


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
        jobs: the runs, in the order wanted.
        paths: where data are and results go.
        workers: share the jobs.
        memory_gb: budget of all workers together, in GiB. A run starts if the memory it held before (2 GiB
            if no line tells) fits into the rest. If they grow beyond the budget all the same, the run begun
            last is stopped and made again alone; a run that needs more even then has failed.
        say: called with each result, and True if it is a failure; logs it by default.

    Returns:
        One line for each failure; each is also written to a file next to the ledger.
    """
    say = say or _log
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
                    if job not in costs.alone:
                        costs.alone.append(job)
                        waiting.append(job)
                        continue
                    result = Result(None, reason=f"needs more than the {memory_gb:.3g} GiB of --memory_gb")
                if result.line is None:
                    failed.append(f"{job}: {result.reason}")
                    _keep_failure(paths, job, result.reason)
                    say(failed[-1], True)
                    continue
                if result.fresh:
                    costs.lines.append(result.line)
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
    """Estimates of time and memory, from the ledger's lines.

    Args:
        lines: of the ledger; new ones may be added.
        budget: MiB of all runs at a time.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]], budget: float = float("inf")):
        self.lines, self.budget = list(lines), budget
        self.alone: list[Job] = []  # jobs that may only run alone

    def next(self, waiting: Sequence[Job], running: Sequence[Job]) -> Job | None:
        """Returns the first waiting job that the budget has room for; any job, if none is running.

        Args:
            waiting: jobs in the order wanted.
            running: jobs that are running.

        Returns:
            The job; None if there is none.
        """
        room = self.budget - sum(self.memory_mb(t) for t in running)
        return next((t for t in waiting if not running or self.memory_mb(t) <= room), None)

    def memory_mb(self, job: Job) -> float:
        """Returns the most MiB that runs of this method held, on this data set if there were any."""
        if job in self.alone:
            return self.budget
        return max((r["peak_memory_mb"] for r in self._of(job)), default=_UNKNOWN_MB)

    def minutes(self, jobs: Sequence[Job], workers: int) -> float | None:
        """Estimates the time for jobs; jobs of unknown cost count as the mean of the others.

        Args:
            jobs: to be done.
            workers: that share them.

        Returns:
            Minutes; None if no cost is known.
        """
        of_each = [[r.get("run_seconds", r["fit_seconds"]) for r in self._of(job)] for job in jobs]
        known = [mean(seconds) for seconds in of_each if seconds]
        if jobs and not known:
            return None
        return len(jobs) * mean(known or [0.0]) / workers / 60

    def _of(self, job: Job) -> list[Mapping[str, Any]]:
        of_method = [r for r in self.lines if (r["method"], r["preset"]) == (job.method, job.preset)]
        return [r for r in of_method if r["dataset"] == job.label] or of_method


def missing(jobs: Sequence[Job], paths: Paths) -> list[Job]:
    """Returns the jobs that a grid would carry out: those without a line in the ledger or without raw scores.

    Args:
        jobs: the runs.
        paths: where data are and results go.

    Returns:
        The missing jobs, in order.
    """
    rows = Ledger(paths.ledger).rows()
    there = {identity(r) for r in rows if scores_path(Path(paths.scores), r).exists()}
    return [job for job in jobs if identity(asked(job, paths)) not in there]


def asked(job: Job, paths: Paths) -> dict[str, Any]:
    """Returns the fields of a job's line that describe its run, see `runs.planned`.

    Args:
        job: the run.
        paths: where data are.

    Returns:
        The fields by name.
    """
    normals, test = _images(job, paths)
    data = images_sha256(normals.sha256(), test.sha256())
    return planned(job.label, job.method, job.preset, job.seed, data, job.changes, job.encoder)


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        return Result(None, reason=_DIED)
    except Exception as error:  # Ray has many kinds
        return Result(None, reason=_in_one_line(error))


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _keep_failure(paths: Paths, job: Job, reason: str) -> None:
    wanted = wanted_settings(job.method, job.preset, job.changes)
    facts = {
        "dataset": name_of(job.dataset), "method": job.method, "seed": job.seed, "preset": job.preset,
        "weights": getattr(wanted, "weights", "none"), "reason": reason, "time": round(time.time()),
    }  # fmt: skip
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


def _log(text: str, failed: bool) -> None:
    logging.getLogger(__name__).log(logging.WARNING if failed else logging.INFO, "%s", text)
