"""Where runs of a grid are made: in this process, in others on this machine, or by Ray.

Knows how to start and stop them; `runner.py` knows what a run is. Ray is imported only here and by
`core/cluster.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from ..core.cluster import last_line, start_ray
from ..core.errors import DataError
from .runner import Job, Paths, Result, Worker, perform


class Process(Worker):
    """A process of its own, which ends with this one.

    Args:
        threads: of torch in it.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.pool: ProcessPoolExecutor | None = None
        self.pid = 0

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts a job, and before it the process if there is none.

        Args:
            job: the run.
            paths: where data are and results go.

        Returns:
            The future result.
        """
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self.threads,))
            self.pid = self.pool.submit(os.getpid).result()
        try:
            return self.pool.submit(perform, job, paths)
        except RuntimeError:  # it died between two jobs
            self.kill()
            return self.submit(job, paths)

    def memory_mb(self) -> float:
        """Returns its resident memory in MiB; 0 if the system does not tell (Linux does)."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
        return 0.0

    def kill(self) -> None:
        """Kills it; its future, if any, breaks."""
        if self.pool is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.pool.shutdown(cancel_futures=True)
        self.pool = None


class RayWorker(Worker):
    """A place in a Ray cluster, whose memory Ray watches itself.

    Args:
        ray: the module.
        options: the resources of a task.
        threads: of torch in it.
    """

    def __init__(self, ray: Any, options: dict[str, Any], threads: int):
        self.ray, self.threads = ray, threads
        self.task: Any = None
        self.remote = ray.remote(**options, max_retries=0)(_perform_there)

    def submit(self, job: Job, paths: Paths) -> Future[Result]:
        """Starts a job as a task.

        Args:
            job: the run.
            paths: where data are and results go, on every machine.

        Returns:
            The future result.
        """
        self.task = self.remote.remote(job, paths, os.getcwd(), self.threads)
        made: Future[Result] = self.task.future()
        return made

    def kill(self) -> None:
        """Cancels its task."""
        if self.task is not None:
            self.ray.cancel(self.task, force=True)


@contextlib.contextmanager
def workers_of(
    executor: str,
    number: int | None,
    *,
    device: str = "auto",
    apart: bool = False,
    address: str | None = None,
) -> Iterator[Sequence[Worker]]:
    """Starts the workers of a grid, and Ray if it is needed.

    Args:
        executor: `local` or `ray`.
        number: workers; by default one locally, and on Ray one for each GPU, or else for each CPU core.
        device: of the fits.
        apart: makes a single local worker a process of its own too, which can be stopped and may die.
        address: of a Ray cluster; Ray is started on this machine if None.

    Yields:
        The workers.

    Raises:
        DataError: Ray is not installed, or failed; or no such number.
    """
    if number is not None and number < 1:
        raise DataError(f"--workers must be at least 1, not {number}")
    if executor == "local":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        many = number or 1
        yield [Process(max(cores // many, 1)) for _ in range(many)] if many > 1 or apart else [Worker()]
        return
    ray, ours = start_ray(address)
    try:
        has = ray.cluster_resources()
        gpus = 0 if device == "cpu" else has.get("GPU", 0)
        many = number or int(gpus or has.get("CPU", 1))
        threads = max(int(has.get("CPU", 1)) // many, 1)
        yield [RayWorker(ray, {"num_cpus": threads, "num_gpus": gpus / many}, threads) for _ in range(many)]
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray gave up ({last_line(error)}); the same command goes on") from error
    finally:
        if ours:
            ray.shutdown()


def memory_of_machine_gb() -> float:
    """Returns the physical memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _perform_there(job: Job, paths: Paths, folder: str, threads: int) -> Result:
    """Performs a job in a process of Ray; relative paths mean what they mean to the caller."""
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return perform(job, paths)


def _begin(threads: int) -> None:
    """Prepares a new process: Ctrl-C is the parent's to handle, and the process ends with its parent."""
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
