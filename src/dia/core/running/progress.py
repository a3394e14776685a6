"""What is under way, on stderr: one display for bars and waits, shown in a terminal alone, and a log for all.

`with Bar("Scoring", 300, "image") as bar: bar.update(20)` shows how far a part is and how long it will take;
without a total it shows for how long it has been under way. Bars may lie in one another. Each part is also a
line of the logger `dia`, which `-v` and `--log-file` show; and `watched` gives each move to a program that
shows it elsewhere. Knows nothing of what is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from . import stopping

T = TypeVar("T")

console = Console(stderr=True, emoji=False)
log = logging.getLogger("dia")
log.addHandler(logging.NullHandler())


class _Times(ProgressColumn):
    """The time so far, and the time left where it can be told."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining if task.total else None
        text = _clock(task.elapsed or 0)
        return Text(text if left is None else f"{text}, {_clock(left)} left", style="progress.elapsed")


def _many(unit: str) -> str:
    return unit + ("es" if unit.endswith(("s", "ch")) else "s")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Display:
    """The bars that are shown now; nothing is drawn where there are none."""

    def __init__(self) -> None:
        title, far = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[far]}")
        self.progress = Progress(title, BarColumn(), far, _Times(), console=console, transient=True)
        self.beginning: Bar | None = None

    def add(self, bar: Bar) -> TaskID:
        if not self.progress.tasks:
            self.progress.start()
        return self.progress.add_task(bar.title, total=bar.total, far="")

    def remove(self, task: TaskID) -> None:
        self.progress.remove_task(task)
        if not self.progress.tasks:
            self.progress.stop()


_display = _Display()
_watchers: list[Callable[[Bar, int], None]] = []


@contextmanager
def watched(see: Callable[[Bar, int], None]) -> Iterator[None]:
    """Gives each move of each bar to a function while it lasts, in the thread that does the work.

    Args:
        see: takes the bar and the units done.
    """
    _watchers.append(see)
    try:
        yield
    finally:
        _watchers.remove(see)


def visible() -> bool:
    """Returns whether bars are shown: on a terminal, unless the user wants quiet."""
    return console.is_terminal and not console.quiet


class Bar:
    """A part of the work, shown while it lasts.

    Args:
        title: what is done, as "Reading images".
        total: the number of units; None where it is not known.
        unit: the name of one unit, as "image".
        shown: whether it may be shown; it still needs a terminal.
        after: seconds after which it is shown, at an update, if the part still lasts.
    """

    def __init__(
        self, title: str, total: int | None = None, unit: str = "", *, shown: bool = True, after: float = 0.0
    ):
        self.title, self.total, self.unit, self.shown, self.after = title, total, unit, shown, after
        self.task: TaskID | None = None
        self.open = False

    def __enter__(self) -> Bar:
        self.start = time.monotonic()
        if not self.after:
            self._show()
        return self

    def _show(self) -> None:
        if self.open or not self.shown:
            return
        begun()
        self.open = True
        log.info("%s%s", self.title, f": {self.total} {_many(self.unit)}" if self.total and self.unit else "")
        if visible():
            self.task = _display.add(self)
        self._tell(0)

    def _tell(self, done: int) -> None:
        for see in _watchers:
            see(self, done)

    def update(self, done: int, total: int | None = None) -> None:
        """Shows how much is done.

        Args:
            done: the units done.
            total: their number, where it was not known before.

        Raises:
            Stopped: the process was asked to stop.
        """
        stopping.check()
        self.total = total or self.total
        if self.after and time.monotonic() - self.start > self.after:
            self._show()
        if self.task is not None:
            far = f"{done}/{self.total} {_many(self.unit)}" if self.total else f"{done} {_many(self.unit)}"
            _display.progress.update(self.task, completed=done, total=self.total, far=far)
        if self.open:
            self._tell(done)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yields items, and counts those that are done with."""
        for done, item in enumerate(items):
            yield item
            self.update(done + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.task is not None:
            _display.remove(self.task)
            self.task = None
        if self.open and kind is None:
            log.info("%s: done in %.1f s", self.title, time.monotonic() - self.start)


def begin(title: str) -> None:
    """Shows that a program has begun, until it says anything or another part of its work begins."""
    bar = Bar(title).__enter__()
    _display.beginning = bar


def begun() -> None:
    """Ends what `begin` shows."""
    if (bar := _display.beginning) is not None:
        _display.beginning = None
        bar.__exit__(None, None, None)
