"""Where runs of a grid are made: in this process, in others on this machine, or in Ray's actors.

Knows how to start and stop them; what a run is stands in `runner.py`. Ray is imported only
here and by `core/cluster.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..core.cluster import last_line, start_ray
from ..core.errors import DataError
from .runner import Job, Paths, Result, Worker, perform


class LocalWorker:
    """This process: a submitted job is done at once."""

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Done when it returns."""
        future: Future[Result] = Future()
        future.set_result(perform(job, paths))
        return future

    def memory_mb(self) -> float:
        """Not watched: it could not be stopped alone."""
        return 0.0

    def kill(self) -> None:
        """Nothing to stop."""


class Process:
    """A process of its own, which ends with this one.

    Args:
        threads: of torch in it.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.pool: ProcessPoolExecutor | None = None
        self.pid: int | None = None

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts the process first, where there is none."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self.threads, os.getpid()))
            self.pid = self.pool.submit(os.getpid).result()
        try:
            return self.pool.submit(perform, job, paths)
        except RuntimeError:  # it died between two jobs
            self.kill()
            return self.submit(job, paths)

    def memory_mb(self) -> float:
        """Resident memory, where the system tells (Linux)."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
        return 0.0

    def kill(self) -> None:
        """Kills it; its future, if any, breaks."""
        if self.pool is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid or 0, signal.SIGKILL)
            self.pool.shutdown(cancel_futures=True)
        self.pool = self.pid = None


class Actor:
    """A Ray actor.

    Args:
        ray: the module.
        options: what it needs of the cluster.
        threads: of torch in it.
    """

    def __init__(self, ray: Any, options: dict[str, Any], threads: int):
        self.ray, self.options, self.threads = ray, options, threads
        self.actor: Any = None

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts the actor first, where there is none."""
        if self.actor is None:
            self.actor = self.ray.remote(**self.options)(_Performer).remote(os.getcwd(), self.threads)
        made: Future[Result] = self.actor.perform.remote(job, paths).future()
        made.add_done_callback(self._forget)
        return made

    def memory_mb(self) -> float:
        """Not known: Ray watches its machines itself."""
        return 0.0

    def kill(self) -> None:
        """Kills the actor."""
        if self.actor is not None:
            self.ray.kill(self.actor)
        self.actor = None

    def _forget(self, future: Future[Result]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self.actor = None  # it died


@contextlib.contextmanager
def workers_of(
    executor: str,
    number: int | None,
    *,
    device: str = "auto",
    apart: bool = False,
    address: str | None = None,
) -> Iterator[Sequence[Worker]]:
    """The workers of a grid.

    Args:
        executor: `local` or `ray`.
        number: of workers; by default one here, and on Ray one for each GPU, or else for each CPU core.
        device: of the fits.
        apart: a single local worker is a process of its own too, which can be stopped and may die.
        address: of a Ray cluster; Ray is started on this machine where None.

    Raises:
        DataError: Ray is not installed, or failed; or no such number.
    """
    if number is not None and number < 1:
        raise DataError(f"--workers must be at least 1, not {number}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if executor == "local":
        many = number or 1
        yield [Process(max(cores // many, 1)) for _ in range(many)] if many > 1 or apart else [LocalWorker()]
        return
    ray, ours = start_ray(address)
    try:
        has = ray.cluster_resources()
        gpus = 0 if device == "cpu" else has.get("GPU", 0)
        many = number or int(gpus or has.get("CPU", 1))
        threads = max(int(has.get("CPU", 1)) // many, 1)
        options = {"num_cpus": threads, "num_gpus": gpus / many}
        yield [Actor(ray, options, threads) for _ in range(many)]
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray gave up ({last_line(error)}); the same command goes on") from error
    finally:
        if ours:
            ray.shutdown()


def memory_of_machine_gb() -> float:
    """Physical memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


class _Performer:
    """In an actor."""

    def __init__(self, folder: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):
            os.chdir(folder)  # relative paths mean what they mean to the caller

    def perform(self, job: Job, paths: Paths) -> Result:
        return perform(job, paths)


def _begin(threads: int, parent: int) -> None:
    """In a new process: Ctrl-C is the parent's to handle, and without the parent nobody wants the result."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
