"""The images that a session holds: read and scored in the background, kept in memory alone.

Knows drops, models and marks; knows no request and no page. A case is a file, or a volume (a file of several
slices, or a DICOM series). Where another model is served, all are scored anew, from the pixels that are kept;
until that is done, all keep what the model before said of them.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.errors import first_line, printable
from ...detectors.drift import RATE, SHARE
from ...evaluate.drift_monitor import DriftMonitor
from ..current import Served
from ..limits import Deadline, Refused
from ..sessions import Session
from .base import Room
from .drops import Drop
from .images.case import Case, Judged, Marked, hash_of, judgements, reading_of
from .images.gather import Gatherer
from .images.memory import Memory
from .images.native import conformed, levels_of
from .images.work import WAIT, Job, Progress, Swapped, turn
from .mark import Mark
from .store import Marks

_LOG = logging.getLogger("dia.serve")
_SECONDS = 600.0  # for one batch, behind those of others
_HEATED = 8  # heatmaps that are made at a time, so that who asks for another waits little
_MOST_PROBLEMS = 1000  # lines that are kept
_KEPT = 48  # pictures of a session that are kept once made


class Cases:
    """The cases of one session, each set of pixels once.

    Args:
        room: the shared parts.
    """

    def __init__(self, room: Room):
        self.room = room
        self._memory = Memory(room.limits)
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._queue: deque[Drop] = deque()
        self._job: Job | None = None
        self._worker: threading.Thread | None = None
        self._settled, self._closed = True, False
        self._given_up: Served | None = None  # a model that could not score
        self._progress = Progress()
        self._version, self._lock = 0, threading.RLock()
        self._pictures: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    @classmethod
    def of(cls, session: Session, room: Room) -> Cases:
        """Returns a session's cases, and has them scored anew where another model is served by now.

        Args:
            session: whose.
            room: the parts that are shared.
        """
        found = session.hold(cls, lambda: cls(room))
        found.follow()
        return found

    # --- what a page asks for -----------------------------------------------------------------------

    def add(self, drop: Drop) -> None:
        """Begins to read and score what was dropped, in the background; its files are deleted once read."""
        with self._lock:
            if self._closed:
                return drop.close()
            self._progress.files += len(drop.names)
            self._tell(self._progress, *drop.problems)
            self._queue.append(drop)
            self._start()

    def follow(self) -> None:
        """Begins to score anew where another model is served than the one that scored."""
        with self._lock:
            if self._settled and self._outdated():
                self._start()

    def all(self) -> list[Case]:
        """Returns the cases that are scored, in the order they came."""
        with self._lock:
            return [case for case in self._cases.values() if case.scored]

    def get(self, id: str) -> Case:
        """Returns a case that is scored.

        Raises:
            Refused: this session has none of that id (404).
        """
        with self._lock:
            case = self._cases.get(id)
        if case is None or not case.scored:
            raise Refused(404, "this session holds no such image; drop it again")
        return case

    @property
    def version(self) -> int:
        """Grows with each change to what `all` and `progress` return."""
        return self._version

    def progress(self) -> tuple[Progress, bool]:
        """Returns how far reading and scoring are, and whether both are done."""
        with self._lock:
            now = replace(self._progress, problems=list(self._progress.problems))
            return now, self._settled

    def cancel(self, id: str) -> None:
        """Ends the reading of a drop; what is scored stays."""
        with self._lock:
            for drop in [d for d in self._queue if d.id == id]:
                self._queue.remove(drop)
                drop.close()
            if self._job is not None and self._job.drop is not None and self._job.drop.id == id:
                self._job.stop.set()

    def clear(self) -> None:
        """Forgets all images, and ends what is being read."""
        with self._lock:
            for drop in self._queue:
                drop.close()
            self._queue.clear()
            if self._job is not None:
                self._job.stop.set()
            for case in self._cases.values():
                self._memory.forget(case)
            self._cases.clear()
            self._pictures.clear()
            self._progress = Progress()
            self._version += 1

    def close(self) -> None:
        """Forgets all, when the session ends."""
        with self._lock:
            self._closed = True
            self.clear()

    def marked(self, marks: Marks) -> list[Marked]:
        """Returns the images of this session that any reader called anomalous or normal.

        Raises:
            DataError: the marks cannot be read.
        """
        made = []
        for case, mark in self.with_marks(marks):
            judged = case.now
            if (label := mark.label) is not None and mark.image in judged.hashes:
                image = judged.images[judged.hashes.index(mark.image)]
                unit = case.patient or judged.sha256
                made.append(Marked(mark.image, image, label, mark.flagged, mark.key.reader, unit))
        return made

    def with_marks(self, marks: Marks) -> list[tuple[Case, Mark]]:
        """Returns the cases that are marked, each with each reader's mark, oldest first.

        Args:
            marks: of all readers.

        Raises:
            DataError: the marks cannot be read.
        """
        cases = {(case.now.lineage, case.now.sha256): case for case in self.all()}
        found = []
        for lineage in {lineage for lineage, _ in cases}:
            wanted = [sha for own, sha in cases if own == lineage]
            of = [(cases[lineage, m.key.sha256], m) for m in marks.of_lineage(lineage, wanted)]
            found += [(case, case.named(mark)) for case, mark in of]
        return found

    def drift(self) -> dict[str, Any] | None:
        """Returns whether the images differ as a whole from the training normals; None without images."""
        if not (cases := self.all()):
            return None
        served = cases[-1].now.served
        cases = [case for case in cases if case.now.served is served]
        names = [case.id for case in cases]
        volumes = [case.id if len(case.slices) > 1 else None for case in cases]
        monitor = DriftMonitor(served.inferencer.detector, names, volumes, rate=RATE, share=SHARE)
        scores = np.array([case.now.scores[len(case.slices) // 2] for case in cases])
        monitor.add(names, scores, np.concatenate([case.now.acquisition for case in cases]))
        return monitor.verdict()

    def picture(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Returns a picture that was made before, or makes it; the last ones are kept.

        Args:
            key: what it shows.
            make: makes it.
        """
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        made = make()
        with self._lock:
            self._pictures[key] = made
            while len(self._pictures) > _KEPT:
                self._pictures.popitem(last=False)
        return made

    # --- in the background --------------------------------------------------------------------------

    def _start(self) -> None:
        self._version += 1
        self._settled = False
        if self._worker is None and not self._closed:
            self._worker = threading.Thread(target=self._work, name="dia-cases", daemon=True)
            self._worker.start()

    def _outdated(self) -> bool:
        if not self._cases or not self.room.current.there:
            return False
        served = self.room.current.get()
        stale = any(case.judged is None or case.judged.served is not served for case in self._cases.values())
        return stale and served is not self._given_up

    def _work(self) -> None:
        while job := self._next():
            try:
                if job.cold is not None:
                    self._heat(job, job.cold)
                elif job.drop is None:
                    self._score_anew(job)
                else:
                    with turn(job.stop):
                        self._read(job, job.drop)
            except Swapped:
                pass  # the next job is of the other model
            except Exception as error:  # the list must live on
                line = error.line if isinstance(error, Refused) else printable(first_line(error)[:200])
                _LOG.warning("images of the page were not read or scored: %s", line)
                with self._lock:
                    self._tell(job.progress, ("", error.line if isinstance(error, Refused) else "not scored"))
                    self._given_up = self.room.current.get() if job.drop is None else self._given_up
            finally:
                if job.drop is not None:
                    job.drop.close()

    def _next(self) -> Job | None:
        """Takes the next job; where there is none, says that all is done."""
        with self._lock:
            drop = self._queue.popleft() if self._queue else None
            if drop or self._outdated():
                self._settled = False
                self._job = Job(drop, self._progress)
                return self._job
            if not self._settled:
                self._settled, now = True, self._progress
                now.files = now.read  # others were cancelled
                now.images = now.scored = sum(len(case.slices) for case in self._cases.values())
                self._version += 1
            cold = (
                c for c in self._cases.values() if c.judged and c.judged.cold and c.unheated is not c.judged
            )
            case = None if self._closed else next(cold, None)
            self._job = None if case is None else Job(None, self._progress, case)
            if self._job is None:
                self._worker = None
            return self._job

    def _heat(self, job: Job, case: Case) -> None:
        """Makes a case's heatmaps while nothing else is to be done: they are there when it is opened."""
        judged = case.now

        def stopped() -> bool:
            return bool(self._queue) or job.stop.is_set() or self.room.current.served is not judged.served

        try:
            judged.heat(range(len(case.slices)), _HEATED, stopped)
        except Exception as error:
            case.unheated = judged  # they are tried again when they are asked for
            _LOG.warning("heatmaps of the page were not made: %s", type(error).__name__)

    def _read(self, job: Job, drop: Drop) -> None:
        served = self.room.current.get()
        height, width, _ = served.inferencer.shape
        heat = 2 * height * width if served.inferencer.has_heatmaps else 0
        options = reading_of(served.inferencer)
        now: Served | None = served  # until another one is

        def done(files: int) -> None:
            with self._lock:
                job.progress.read += files
                self._version += 1

        def problem(name: str, line: str) -> None:
            with self._lock:
                self._tell(job.progress, (name, line))

        gatherer = Gatherer(
            drop, options, take=lambda size: self._memory.take(size + heat),
            give=lambda sizes: self._memory.give([size + heat for size in sizes]),
            problem=problem, read=done, stopped=job.stop.is_set,
        )  # fmt: skip
        with self._lock:
            names = {hash_of(case.images): case.name for case in self._cases.values()}
        fresh: list[Case] = []
        for found in gatherer.cases():
            levels = levels_of(found.slices[len(found.slices) // 2], options.view)
            size = sum(one.nbytes for one in found.slices) + found.images.nbytes + heat * len(found.images)
            case = Case(
                secrets.token_urlsafe(9), found.name, found.slices, found.numbers, found.spacing, levels,
                found.images, size, patient=found.patient,
            )  # fmt: skip
            if (same := names.get(sha := hash_of(found.images))) is not None:
                self._memory.forget(case)
                if same != case.name:
                    problem(case.name, f"has the pixels of {same}; listed once")
                continue
            names[sha] = case.name
            with self._lock:
                job.progress.images += len(case.slices)
            fresh.append(case)
            if sum(len(one.slices) for one in fresh) >= self.room.limits.batch:
                now, fresh = self._list(job, fresh, now), []
        self._list(job, fresh, now)

    def _list(self, job: Job, cases: Sequence[Case], served: Served | None) -> Served | None:
        """Scores cases and lists them. Where another model is served by now, they wait for it.

        Returns:
            The model; None where it is no longer served.
        """
        judged: list[Judged] | None = None
        try:
            if served is not None and cases:
                judged = self._judge(job, [case.images for case in cases], served)
        except Swapped:
            served = None
        except BaseException:
            for case in cases:
                self._memory.forget(case)
            raise
        with self._lock:
            for i, case in enumerate(cases):
                if job.stop.is_set():
                    self._memory.forget(case)
                else:
                    case.judged = None if judged is None else judged[i]
                    self._cases[case.id] = case
            self._version += 1
        return served

    def _judge(self, job: Job, images: Sequence[np.ndarray], served: Served) -> list[Judged] | None:
        """Scores stacks of images, a batch at a time, so that progress is seen; None where it was stopped."""
        every, batch, parts = np.concatenate(images), self.room.limits.batch, []
        start = 0
        while start < len(every):
            if job.stop.is_set():
                return None
            try:
                parts.append(served.batcher.score(every[start : start + batch], False, Deadline(_SECONDS)))
            except Refused as refused:
                if self.room.current.get() is not served:
                    raise Swapped from None
                if refused.status != 503 or not served.batcher.alive:
                    raise
                job.stop.wait(WAIT)  # others wait for the model
                continue
            start += batch
            with self._lock:
                job.progress.scored += len(parts[-1].scores)
                self._version += 1
        return judgements(served, images, parts)

    def _score_anew(self, job: Job) -> None:
        """Scores all cases with the model in use; those of the one before stand until all are done."""
        served = self.room.current.get()
        options = reading_of(served.inferencer)
        with self._lock:
            cases = list(self._cases.values())
            job.progress.scored, job.progress.images = 0, sum(len(case.slices) for case in cases)
        made: list[tuple[Case, Judged]] = []
        for case in cases:
            read_so = case.judged and reading_of(case.judged.served.inferencer) == options
            images = case.images if read_so else conformed(case.slices, options)
            if (judged := self._judge(job, [images], served)) is None:
                return
            made.append((case, judged[0]))
        with self._lock:
            for case, own in made:
                case.take(own, levels_of(case.slices[len(case.slices) // 2], options.view))
            self._pictures.clear()
            self._version += 1

    def _tell(self, progress: Progress, *problems: tuple[str, str]) -> None:
        progress.problems += problems
        del progress.problems[_MOST_PROBLEMS:]
        self._version += 1
