"""The readers' marks: verdicts, notes and boxes, with their history, in one SQLite file.

Knows marks and SQLite; knows no pixels, models, pages or names of files. An image is known by the hash of its
pixels at the model's size, and the model by its lineage: the hash of the model as first fitted, so that marks
outlive `dia update`.

Nothing is ever changed in the file: each change, and each undo, appends the whole mark as it then is. A mark
is the last row of its key; `before` leads to the state that an undo returns to.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.storage import locked
from .mark import VERDICTS, Box, Key, Mark, Seen, checked_boxes, checked_note

_FORMAT = 3  # 1 was that of 0.1, which held names of files; 2 held no numbers of slices
_FIELDS = (
    *("verdict", "note", "boxes", "slice", "image", "slices", "height", "width", "flagged", "rate", "score"),
    *("p_value", "model", "time", "history", "before", "numbers"),
)
_COLUMNS = ("lineage", "sha256", "reader", *_FIELDS)
_TABLE = (
    "CREATE TABLE changes (id INTEGER PRIMARY KEY AUTOINCREMENT, lineage TEXT, sha256 TEXT, reader TEXT, "
    "verdict TEXT, note TEXT, boxes TEXT, slice INTEGER, image TEXT, slices INTEGER, height INTEGER, "
    "width INTEGER, flagged INTEGER, rate REAL, score REAL, p_value REAL, model TEXT, time TEXT, "
    "history INTEGER, before INTEGER, numbers TEXT NOT NULL DEFAULT '')",
    "CREATE INDEX of_key ON changes (lineage, sha256, reader, id)",
)
_TAKEN_OVER = (  # the marks of 0.1, each by the model and image it was of; their files' names go
    f"INSERT INTO changes ({', '.join(_COLUMNS)}) SELECT model, sha256, reviewer, verdict, note, '[]', 0, "
    "sha256, 1, 0, 0, flagged, rate, score, p_value, model, time, 1, NULL, '' FROM marks ORDER BY time",
    "DROP TABLE marks",
)
_NUMBERED = (  # of 2; slices of its marks count as they were read
    "ALTER TABLE changes ADD COLUMN numbers TEXT NOT NULL DEFAULT ''",
    f"PRAGMA user_version = {_FORMAT}",
)


class Marks:
    """Marks in a file that several processes may use at once, and that survives a kill.

    A file that is deleted while it is used is made anew, empty, by the next who marks.

    Args:
        path: the file; made with its folder, readable by its owner only, where it is absent. One of 0.1 is
            taken over without the names that it holds.

    Raises:
        DataError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self._open() as db:
                self._check(db)
            with suppress(OSError):  # it may have been wider open, and may be another's
                self.path.chmod(0o600)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self.path}: no file of marks can be kept there ({error})") from error

    def change(
        self,
        key: Key,
        seen: Seen,
        *,
        verdict: str | None = None,
        note: str | None = None,
        boxes: Sequence[Box] | None = None,
    ) -> Mark:
        """Changes some fields of a mark, in one transaction; on the disk when this returns.

        `seen` is taken over where a verdict is given, or none was there: a note alone leaves the flag that a
        verdict was about. What changes nothing is no change.

        Args:
            key: of the mark.
            seen: what is on the page now.
            verdict: of `VERDICTS`; None leaves it.
            note: None leaves it.
            boxes: None leaves them.

        Raises:
            DataError: it could not be written.
            ValueError: a value that cannot be; one line for the client.
        """
        given: dict[str, Any] = {}
        if verdict is not None:
            if verdict not in VERDICTS:
                raise ValueError("a verdict is agree, disagree, unsure or empty")
            given["verdict"] = verdict
        if note is not None:
            given["note"] = checked_note(note)
        if boxes is not None:
            given["boxes"] = json.dumps(checked_boxes(boxes, len(seen.images)))
        with self._writing() as db:
            old = _last(db, key)
            now: dict[str, Any] = dict.fromkeys(_FIELDS, "") | {"boxes": "[]", "history": 0, "before": None}
            now |= old or {}
            if (
                old
                and all(now[name] == value for name, value in given.items())
                and not _again(now, seen, given)
            ):
                return _mark(key, now)
            now |= given
            if "verdict" in given or not (old and old["verdict"]):
                now |= _of(seen)
            where = json.loads(now["boxes"])
            at = where[0][0] if where else seen.worst
            now |= {"slice": at, "image": seen.images[at], "slices": len(seen.images), "time": _now()}
            now |= {"numbers": _numbers(seen)}
            now |= {"history": now["history"] + 1, "before": old and old["id"]}
            _append(db, key, now)
        return _mark(key, now)

    def undo(self, key: Key) -> Mark | None:
        """Takes back the last change of a key.

        Returns:
            The mark as it then is, which may be empty; None where there was nothing to undo.

        Raises:
            DataError: it could not be written.
        """
        with self._writing() as db:
            old = _last(db, key)
            if old is None or not old["history"]:
                return None
            if old["before"] is None:
                blank = {"verdict": "", "note": "", "boxes": "[]", "history": 0, "before": None}
                now = old | blank
            else:
                (now,) = _rows(db, "id = ?", old["before"])
            now |= {"time": _now()}
            _append(db, key, now)
        return _mark(key, now)

    def find(self, key: Key) -> Mark | None:
        """Returns a mark, which may be empty where all was undone; None where there never was one."""
        with self._reading() as db:
            found = _last(db, key)
        return None if found is None else _mark(key, found)

    def of_case(self, lineage: str, sha256: str) -> list[Mark]:
        """Returns the marks of all readers of a case that say something, latest first.

        Args:
            lineage: of the model.
            sha256: of the case.
        """
        return self._latest("lineage = ? AND sha256 = ?", lineage, sha256)[::-1]

    def of_lineage(self, lineage: str, sha256: Iterable[str] | None = None) -> list[Mark]:
        """Returns the marks of all readers that say something, oldest first.

        Args:
            lineage: of the model.
            sha256: of the cases wanted; None for all.
        """
        found = self._latest("lineage = ?", lineage)
        wanted = None if sha256 is None else set(sha256)
        return [m for m in found if wanted is None or m.key.sha256 in wanted]

    def version(self) -> int:
        """Returns a number that grows with each change to any mark."""
        with self._reading() as db:
            found = db.execute("SELECT max(id) FROM changes").fetchone()
        return int(found[0] or 0)

    def _latest(self, where: str, *values: str) -> list[Mark]:
        last = f"SELECT max(id) FROM changes WHERE {where} GROUP BY lineage, sha256, reader"
        with self._reading() as db:
            found = _rows(db, f"id IN ({last}) ORDER BY id", *values)
        marks = [_mark(Key(row["lineage"], row["sha256"], row["reader"]), row) for row in found]
        return [mark for mark in marks if not mark.empty]

    # --- the file -----------------------------------------------------------------------------------

    def _make(self) -> None:
        """Makes the file with its table where it is absent: whole, or not at all."""
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{self.path.name}.lock")
        lock.touch(0o600)
        with locked(lock):
            if self.path.exists():
                return
            new = self.path.with_name(f"{self.path.name}.new")
            for left in (new, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))):
                left.unlink(missing_ok=True)  # a log of a deleted file would be read into the new one
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with _connected(new) as db:
                db.execute("PRAGMA journal_mode = WAL")
                for line in (*_TABLE, f"PRAGMA user_version = {_FORMAT}"):
                    db.execute(line)
            new.rename(self.path)

    def _check(self, db: sqlite3.Connection) -> None:
        """Refuses what is no file of marks; takes over one of 0.1."""
        db.execute("BEGIN IMMEDIATE")  # others may do so too
        (found,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if found == 1 and "marks" in tables:
            db.execute("PRAGMA secure_delete = ON")  # of names nothing stays in the file
            for line in (*_TABLE, *_TAKEN_OVER, f"PRAGMA user_version = {_FORMAT}"):
                db.execute(line)
            db.commit()
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        elif found == 2 and "changes" in tables:
            for line in _NUMBERED:
                db.execute(line)
            db.commit()
        elif not found and not tables:  # an empty file
            for line in (*_TABLE, f"PRAGMA user_version = {_FORMAT}"):
                db.execute(line)
            db.commit()
        elif found != _FORMAT or "changes" not in tables:
            raise DataError(f"{self.path}: not a file of marks that this version knows; name another")
        with suppress(sqlite3.OperationalError):
            db.commit()
            db.execute("PRAGMA journal_mode = WAL")  # does not wait while others write: the next one will

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection, None, None]:
        self._make()
        with _connected(self.path) as db:
            yield db

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection whose changes are one transaction, on the disk when it ends."""
        try:
            with self._open() as db, db:
                db.execute("BEGIN IMMEDIATE")  # what is read now is what is changed
                yield db
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self.path}: the mark was not saved ({error})") from error

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            with self._open() as db:
                yield db
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self.path}: the marks cannot be read ({error})") from error


@contextmanager
def _connected(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """Opens a file that is there: SQLite would make one that others may read."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=10, uri=True, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous = FULL")
        yield db
    finally:
        db.close()


def _of(seen: Seen) -> dict[str, Any]:
    """The fields of what was seen."""
    return {
        "flagged": int(seen.flagged), "rate": seen.rate, "score": seen.score, "p_value": seen.p_value,
        "height": seen.shape[0], "width": seen.shape[1], "model": seen.model,
    }  # fmt: skip


def _numbers(seen: Seen) -> str:
    """The numbers of slices in their file; empty where these are 0, 1, …, so that none is left out."""
    plain = [*seen.numbers] == [*range(len(seen.numbers))]
    return "" if plain else json.dumps([*seen.numbers])


def _again(old: dict[str, Any], seen: Seen, given: dict[str, Any]) -> bool:
    """Returns whether the same verdict is given of another flag."""
    return "verdict" in given and bool(given["verdict"]) and bool(old["flagged"]) != seen.flagged


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rows(db: sqlite3.Connection, where: str, *values: Any) -> list[dict[str, Any]]:
    columns = ("id", *_COLUMNS)
    found = db.execute(f"SELECT {', '.join(columns)} FROM changes WHERE {where}", values).fetchall()
    return [dict(zip(columns, row, strict=True)) for row in found]


def _last(db: sqlite3.Connection, key: Key) -> dict[str, Any] | None:
    where = "lineage = ? AND sha256 = ? AND reader = ? ORDER BY id DESC LIMIT 1"
    return next(iter(_rows(db, where, *key)), None)


def _append(db: sqlite3.Connection, key: Key, row: dict[str, Any]) -> None:
    places = ", ".join("?" * len(_COLUMNS))
    values = (*key, *(row[name] for name in _FIELDS))
    db.execute(f"INSERT INTO changes ({', '.join(_COLUMNS)}) VALUES ({places})", values)


def _mark(key: Key, row: dict[str, Any]) -> Mark:
    return Mark(
        key, row["verdict"], row["note"], tuple(Box(*box) for box in json.loads(row["boxes"])), row["slice"],
        row["image"], row["slices"], (row["height"], row["width"]), bool(row["flagged"]), row["rate"],
        row["score"], row["p_value"], row["model"], row["time"], row["history"],
        tuple(json.loads(row["numbers"] or "[]")),
    )  # fmt: skip
