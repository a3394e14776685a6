"""Images of several requests scored together: networks take a batch in little more time than one image.

Knows a function that scores; knows nothing of requests. One thread scores. It takes images of those who wait
in turn, so that a large request does not delay a small one, and waits a few milliseconds for more while a
batch is not full. An image's score does not depend on its neighbours, but for the last bits of sums that
are taken in another order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .limits import STOPPING, Deadline, Limits, Refused

if TYPE_CHECKING:
    from ..deploy.predictor import Verdict  # which imports torch

Score = Callable[[np.ndarray, bool], "Verdict"]  # images (N, H, W, C) uint8, with heatmaps or without


class _Job:
    """Images of one request on their way; only the scoring thread sets `future`."""

    def __init__(self, images: np.ndarray, heatmaps: bool, deadline: Deadline):
        self.images, self.heatmaps, self.deadline = images, heatmaps, deadline
        self.taken, self.given_up = 0, False
        self.parts: list[Verdict] = []
        self.future: Future[None] = Future()

    @property
    def left(self) -> int:
        return len(self.images) - self.taken


class Batcher:
    """Scores for any number of threads, in batches that requests share.

    Args:
        score: gives the scores of a batch.
        limits: `batch`, `batch_wait_ms` and `max_waiting` are used here.
    """

    def __init__(self, score: Score, limits: Limits):
        self._score, self._limits = score, limits
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._open, self._finishing = True, False
        self._thread = self._started()

    @property
    def waiting(self) -> int:
        """The images not yet taken."""
        with self._changed:
            return sum(job.left for job in self._jobs)

    @property
    def alive(self) -> bool:
        """Returns whether images are, or would be, scored."""
        return self._open and (self._thread.is_alive() or self._finishing)

    def score(self, images: np.ndarray, heatmaps: bool, deadline: Deadline) -> Verdict:
        """Returns the scores of images, for which it waits.

        Args:
            images: `(N, H, W, C)` uint8.
            heatmaps: whether heatmaps are wanted, too.
            deadline: the end of the request's time.

        Raises:
            Refused: too many images are waiting, or the time is over.
        """
        if not len(images):
            return self._score(images, heatmaps)
        job = _Job(images, heatmaps, deadline)
        with self._changed:
            waiting = sum(j.left for j in self._jobs)
            if waiting and waiting + len(images) > self._limits.max_waiting:
                raise Refused(503, "too many images are waiting for the model; try again later")
            if not self._open:
                raise Refused(503, STOPPING)
            self._jobs.append(job)
            if self._finishing and not self._working:
                self._thread = self._started()  # it came late
            self._changed.notify_all()
        try:
            job.future.result(deadline.left())
        except TimeoutError:
            job.given_up = True
            raise deadline.late() from None
        scores, p_values, maps = zip(*((p.scores, p.p_values, p.heatmaps) for p in job.parts), strict=True)
        joined = None if maps[0] is None else np.concatenate(maps)
        whole: dict[str, Any] = {
            "scores": np.concatenate(scores),
            "p_values": np.concatenate(p_values),
            "heatmaps": joined,
        }
        return replace(job.parts[0], **whole)

    def close(self) -> None:
        """Ends the thread; requests that wait are refused."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join()

    def finish(self) -> None:
        """Lets the thread end when nobody waits; for who comes later all the same there will be another.

        So a model that is exchanged needs no thread, and those who hold on to it lose nothing.
        """
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def _started(self) -> threading.Thread:
        self._working = True
        thread = threading.Thread(target=self._work, name="dia-batches", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while batch := self._next():
            try:
                images = np.concatenate([job.images[part] for job, part in batch])
                self._hand_out(batch, self._score(images, batch[0][0].heatmaps))
            except Exception as error:
                for job in {job for job, _ in batch if not job.future.done()}:
                    job.future.set_exception(error)

    def _next(self) -> list[tuple[_Job, slice]]:
        """The next batch, as parts of jobs; empty when the thread is to end."""
        with self._changed:
            while self._open:
                self._changed.wait_for(lambda: self._jobs or self._finishing or not self._open)
                if self._finishing and not self._jobs:
                    self._working = False
                    return []
                self._changed.wait_for(self._full, self._limits.batch_wait_ms / 1000)
                if self._open and (batch := self._take()):
                    return batch
            for job in self._jobs:
                if not job.future.done():
                    job.future.set_exception(Refused(503, STOPPING))
            self._jobs.clear()
            return []

    def _full(self) -> bool:
        return not self._open or sum(job.left for job in self._jobs) >= self._limits.batch

    def _take(self) -> list[tuple[_Job, slice]]:
        for job in [j for j in self._jobs if j.given_up or j.future.done() or not j.deadline.left()]:
            self._jobs.remove(job)  # nobody waits for it
        room, batch = self._limits.batch, []
        for job in [j for j in self._jobs if j.heatmaps == self._jobs[0].heatmaps]:
            count = min(job.left, room)
            batch.append((job, slice(job.taken, job.taken + count)))
            job.taken += count
            room -= count
            self._jobs.remove(job)
            if job.left:
                self._jobs.append(job)  # behind those that came later
            if not room:
                break
        return batch

    def _hand_out(self, batch: list[tuple[_Job, slice]], verdict: Verdict) -> None:
        start = 0
        for job, part in batch:
            here = slice(start, start := start + part.stop - part.start)
            maps = None if verdict.heatmaps is None else verdict.heatmaps[here]
            own: dict[str, Any] = {
                "scores": verdict.scores[here],
                "p_values": verdict.p_values[here],
                "heatmaps": maps,
            }
            job.parts.append(replace(verdict, **own))
            if part.stop == len(job.images):
                job.future.set_result(None)
