"""Uploads in pieces: what a reader dropped on the page, on its way to being read or trained on.

Knows bytes, numbered files and the limits of both; decodes no image, knows no model. Files lie in a folder
of mode 0700 under numbers: no name of a client's is a path, or is written to disk or to the log. The folder
goes when its drop is taken and read, cancelled, or abandoned; what a killed process left goes when the next
begins.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..limits import Deadline, Limits, Refused
from ..sessions import Session
from ..uploads import Unpacking, plain_name

IDLE = 120.0  # seconds without a request after which a drop is deleted
_MOST = 8  # drops of a session at a time
_MOST_FILES = 50_000  # of a drop
_LOOK = 10.0  # seconds between looks for those that were abandoned
_PREFIX = "dia-dropped-"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


class Budget:
    """An amount that many share, for any number of threads."""

    def __init__(self) -> None:
        self._used = 0
        self._lock = threading.Lock()

    def take(self, amount: int, most: float) -> bool:
        """Takes an amount, where no more than `most` is then in use.

        Args:
            amount: of what is counted, from 0.
            most: of it in all.

        Returns:
            Whether it was taken.
        """
        with self._lock:
            if self._used + amount > most:
                return False
            self._used += amount
            return True

    def give(self, amount: int) -> None:
        """Gives an amount back."""
        with self._lock:
            self._used -= amount

    @property
    def used(self) -> int:
        """What is in use."""
        return self._used


class Share:
    """One session's part of a budget.

    Args:
        whole: that all share.
        most: of this part.
        most_of_all: of the whole.
    """

    def __init__(self, whole: Budget, most: float, most_of_all: float):
        self.whole, self.most, self.most_of_all = whole, most, most_of_all
        self.own = Budget()

    def take(self, amount: int) -> bool:
        """Takes an amount, if the part and the whole have room for it."""
        if not self.own.take(amount, self.most):
            return False
        if not self.whole.take(amount, self.most_of_all):
            self.own.give(amount)
            return False
        return True

    def give(self, amount: int) -> None:
        """Gives an amount back."""
        self.own.give(amount)
        self.whole.give(amount)


_ON_DISK = Budget()  # bytes of all drops of this process


@dataclass
class Drop:
    """The files of one drop.

    Args:
        id: random.
        folder: of mode 0700; below it one numbered folder for each folder of the client's, with numbered
            files.
        share: of the bytes on the disk.
        names: relative path of each file ("00000/00012.dcm") to the client's name, with its folders.
        problems: (client's name, one line) of each file that was left out.
        bytes: of all files.
        seen: when a request last named it.
        cancelled: nobody wants it any more.
    """

    id: str
    folder: Path
    share: Share
    names: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0
    seen: float = 0.0
    cancelled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _folders: dict[str, int] = field(default_factory=dict, repr=False)

    def client_folder(self, number: str) -> str:
        """Returns the client's name of a numbered folder; empty for loose files."""
        return next((name for name, n in self._folders.items() if f"{n:05d}" == number), "")

    def keep(self, file: Path, name: str) -> None:
        """Moves a file into its numbered folder.

        Args:
            file: with a number for a name, and the suffix that says what it is.
            name: the client's, with folders.

        Raises:
            Refused: there is no room for it (413).
        """
        if len(self.names) >= _MOST_FILES:
            raise Refused(413, f"more than {_MOST_FILES} files; drop fewer at a time")
        size = file.stat().st_size
        if not self.share.take(size):
            raise Refused(
                413, "no room for more files: read or cancel what was dropped, or send fewer at a time"
            )
        self.bytes += size
        above, _, _ = name.rpartition("/")
        folder = f"{self._folders.setdefault(above, len(self._folders)):05d}"
        number = f"{folder}/{len(self.names):05d}{file.name[5:]}"
        (self.folder / folder).mkdir(mode=0o700, exist_ok=True)
        file.rename(self.folder / number)
        self.names[number] = name

    def close(self) -> None:
        """Deletes the folder with all in it; more than once is no harm."""
        self.cancelled = True
        shutil.rmtree(self.folder, ignore_errors=True)
        self.share.give(self.bytes)
        self.bytes = 0


class Drops:
    """The drops of one session.

    Args:
        limits: of files and bytes, of a session and of all.
        clock: seconds, never going back.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits, self._clock = limits, clock
        self._share = Share(_ON_DISK, limits.max_dropped_mb * 1e6, limits.max_all_dropped_mb * 1e6)
        self._all: dict[str, Drop] = {}
        self._lock = threading.Lock()
        _watched(self)

    @classmethod
    def of(cls, session: Session, limits: Limits | None = None) -> Drops:
        """Returns a session's drops.

        Args:
            session: whose.
            limits: taken when it is first asked for.
        """
        return session.hold(cls, lambda: cls(limits or Limits()))

    def new(self) -> str:
        """Begins a drop.

        Returns:
            Its id.

        Raises:
            Refused: too many are there (429), or the disk takes no more (503).
        """
        self.sweep()
        try:
            folder = Path(tempfile.mkdtemp(prefix="drop-", dir=_root()))
        except OSError as error:
            raise Refused(503, "the service cannot keep files now; try again later") from error
        drop = Drop(secrets.token_urlsafe(12), folder, self._share, seen=self._clock())
        with self._lock:
            if len(self._all) < _MOST:
                self._all[drop.id] = drop
                return drop.id
        drop.close()
        raise Refused(429, f"{_MOST} drops are on their way; wait for one of them, or cancel it")

    def add(self, id: str, uploads: Iterable[tuple[str, IO[bytes]]], deadline: Deadline) -> Drop:
        """Adds files; zips are unpacked.

        Args:
            id: of the drop.
            uploads: the client's name, with folders, and the bytes of each.
            deadline: of the request.

        Raises:
            Refused: no such drop (404), or a limit (413); what was added before stays.
        """
        drop = self._find(id)
        with drop.lock:  # one request at a time
            try:
                with tempfile.TemporaryDirectory(prefix="arriving-", dir=drop.folder) as arriving:
                    self._add(drop, Path(arriving), uploads, deadline)
            except OSError as error:
                if not drop.cancelled:
                    raise Refused(503, "the service cannot keep files now; try again later") from error
            if drop.cancelled:
                drop.close()
                raise _gone()
            drop.seen = self._clock()
            return drop

    def _add(
        self, drop: Drop, arriving: Path, uploads: Iterable[tuple[str, IO[bytes]]], deadline: Deadline
    ) -> None:
        unpacking = Unpacking(arriving, self.limits, deadline)
        for name, upload in uploads:
            if drop.cancelled:
                return
            name, head = plain_name(name, folders=True), upload.read(4)
            upload.seek(0)
            if _is_hidden(name):
                continue
            above, _, _ = name.rpartition("/")
            start, problems = len(unpacking.files), len(unpacking.errors)
            unpacking.add(name, upload)
            packed = above if head in _ZIP else ""
            for file, own in zip(unpacking.files[start:], unpacking.names[start:], strict=True):
                drop.keep(file, "/".join(filter(None, (packed, own))) if head in _ZIP else name)
            drop.problems += unpacking.errors[problems:]
            drop.seen = self._clock()

    def take(self, id: str) -> Drop:
        """Takes a drop out: who takes it closes it.

        Raises:
            Refused: no such drop (404).
        """
        with self._find(id).lock, self._lock:  # a request that adds to it ends first
            if (drop := self._all.pop(id, None)) is None or drop.cancelled:
                raise _gone()
            return drop

    def cancel(self, id: str) -> None:
        """Deletes a drop, at once or when the request that adds to it sees it."""
        with self._lock:
            drop = self._all.pop(id, None)
        if drop is not None:
            _end(drop)

    def sweep(self) -> None:
        """Deletes what was abandoned."""
        late = self._clock() - IDLE
        for id in [id for id, drop in list(self._all.items()) if drop.seen < late and not drop.lock.locked()]:
            self.cancel(id)

    def close(self) -> None:
        """Deletes all, when the session ends."""
        for id in list(self._all):
            self.cancel(id)

    def _find(self, id: str) -> Drop:
        self.sweep()
        with self._lock:
            if (drop := self._all.get(id)) is None:
                raise _gone()
            drop.seen = self._clock()
            return drop


def _end(drop: Drop) -> None:
    drop.cancelled = True
    if drop.lock.acquire(blocking=False):  # else the request that has it deletes it
        try:
            drop.close()
        finally:
            drop.lock.release()


def _gone() -> Refused:
    return Refused(404, "there is no such drop: it was read, cancelled, or left alone for too long")


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


# --- the folder of this process ---------------------------------------------------------------------------

_HELD: list[tuple[Path, IO[bytes]]] = []
_ALIVE: weakref.WeakSet[Drops] = weakref.WeakSet()
_MAKING = threading.Lock()
_WATCHING = threading.Event()


def _root() -> Path:
    """Returns the folder of all drops of this process; deletes those of processes that are no more."""
    with _MAKING:
        if not _HELD or not _HELD[0][0].is_dir():
            _delete_left()
            root = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = (root / "new").open("wb")
            _lock(lock)
            (root / "new").rename(root / "lock")  # others look for it only once it is locked
            _HELD[:] = [(root, lock)]
            atexit.register(shutil.rmtree, root, ignore_errors=True)
        return _HELD[0][0]


def _delete_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / "lock").open("rb") as lock:  # another user's cannot be opened
            if _lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: IO[bytes]) -> bool:
    """Locks an open file; False where a living process has it, or locks are not known."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _watched(drops: Drops) -> None:
    """Has a thread look for what was abandoned, though its session never asks again."""
    with _MAKING:
        _ALIVE.add(drops)
        if not _WATCHING.is_set():
            _WATCHING.set()
            threading.Thread(target=_watch, name="dia-drops", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(_LOOK)
        with _MAKING:
            there = list(_ALIVE)
            if not there:
                return _WATCHING.clear()
        for drops in there:
            drops.sweep()
        del there
