"""What the parts of the reading room share. Knows no request and no page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..current import Current
from ..limits import Limits
from ..sessions import Sessions
from .store import Marks


@dataclass(frozen=True)
class Room:
    """The shared parts.

    Args:
        current: the model in use.
        sessions: of the readers.
        limits: of a request, and of all together.
        marks: where marks are kept.
        runs: the folder in which models that are trained in the browser are written.
        data_root: the folder whose data may be named for a training; None for none.
        at_end: what parts add here is called when the service stops, before sessions end.
        writing: model folders that an update is about to replace; nothing else may change them meanwhile.
    """

    current: Current
    sessions: Sessions
    limits: Limits
    marks: Marks
    runs: Path
    data_root: Path | None = None
    at_end: list[Callable[[], None]] = field(default_factory=list)
    writing: set[Path] = field(default_factory=set)
