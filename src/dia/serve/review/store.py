"""The reviewer's marks: agree or disagree with a flag, and a note, in one SQLite file; and as CSV.

Knows names, hashes and numbers; knows no pixels, models or pages. An image is known by the hash of its
pixels and that of the model, so a mark is found again whatever the file is called.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from ...core.errors import DataError
from ...data.formats.spreadsheet import csv_text, marked

AGREE, DISAGREE = "agree", "disagree"
VERDICTS = (AGREE, DISAGREE, "")
_FORMAT = 1


@dataclass(frozen=True)
class Mark:
    """One image as it stood when it was marked; a row of the file and of the CSV.

    Args:
        name: of the file.
        sha256: of the pixels, at the model's size.
        score: raw, higher = more anomalous.
        p_value: conformal, in (0, 1].
        flagged: whether it was flagged at `rate`.
        rate: the false-alarm rate, in (0, 1).
        verdict: `agree` or `disagree` with `flagged`; empty where there is only a note, or nothing.
        note: the reviewer's words.
        reviewer: the name given at the login; empty where there is none.
        time: of the last change, ISO 8601 in UTC; empty where nothing was marked.
        model: its hash.
    """

    name: str
    sha256: str
    score: float
    p_value: float
    flagged: bool
    rate: float
    verdict: str = ""
    note: str = ""
    reviewer: str = ""
    time: str = ""
    model: str = ""


COLUMNS = tuple(f.name for f in fields(Mark))


class Reviews:
    """Marks in an SQLite file that several processes may use at once, and that survives a kill.

    Args:
        path: the file; made with its folder, readable by its owner only, where it is absent.

    Raises:
        DataError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # names may identify people
            with self._open() as db:
                db.execute("BEGIN IMMEDIATE")  # others may make the file too
                (found,) = db.execute("PRAGMA user_version").fetchone()
                (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if found != (_FORMAT if tables else 0):
                    raise DataError(f"{self.path}: not a file of marks that this version knows; name another")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS marks (name TEXT, sha256 TEXT, score REAL, p_value REAL, "
                    "flagged INTEGER, rate REAL, verdict TEXT, note TEXT, reviewer TEXT, time TEXT, "
                    "model TEXT, PRIMARY KEY (model, sha256))"
                )
                db.execute(f"PRAGMA user_version = {_FORMAT}")
            with self._open() as db, suppress(sqlite3.OperationalError):
                db.execute("PRAGMA journal_mode = WAL")  # does not wait while others write: the next one will
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self.path}: no file of marks can be kept there ({error})") from error

    def save(self, mark: Mark) -> Mark:
        """Puts a mark in the place of that image's last one, or removes it where it says nothing.

        The time is set here. When this returns, the mark is on the disk.

        Raises:
            DataError: it could not be written.
            ValueError: an unknown verdict.
        """
        if mark.verdict not in VERDICTS:
            raise ValueError(f"a verdict is {AGREE}, {DISAGREE} or empty, not {mark.verdict!r}")
        empty = not (mark.verdict or mark.note)
        time = "" if empty else datetime.now(UTC).isoformat(timespec="seconds")
        values = (*astuple(mark)[:-2], time, mark.model)
        try:
            with self._open() as db:
                if empty:
                    db.execute("DELETE FROM marks WHERE model = ? AND sha256 = ?", (mark.model, mark.sha256))
                else:
                    places = ", ".join("?" * len(COLUMNS))
                    db.execute(
                        f"INSERT OR REPLACE INTO marks ({', '.join(COLUMNS)}) VALUES ({places})", values
                    )
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: the mark was not saved ({error})") from error
        return Mark(*values)

    def find(self, model: str, sha256: str) -> Mark | None:
        """Returns the mark of an image, if it has one.

        Args:
            model: its hash.
            sha256: of the image.
        """
        return next(iter(self._select("model = ? AND sha256 = ?", model, sha256)), None)

    def of_model(self, model: str) -> list[Mark]:
        """Returns all marks made with this model, oldest first."""
        return self._select("model = ? ORDER BY time, name", model)

    def _select(self, where: str, *values: str) -> list[Mark]:
        with self._open() as db:
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM marks WHERE {where}", values).fetchall()
        marks = (dict(zip(COLUMNS, row, strict=True)) for row in rows)
        return [Mark(**m | {"flagged": bool(m["flagged"])}) for m in marks]

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection whose changes are one transaction, on the disk when it ends."""
        db = sqlite3.connect(self.path, timeout=10)  # others write for milliseconds
        try:
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db
        finally:
            db.close()


def as_csv(marks: Iterable[Mark]) -> str:
    """Returns marks as CSV with a header line, which spreadsheets open right and run nothing of."""
    rows = ([str(v).lower() if isinstance(v, bool) else v for v in astuple(mark)] for mark in marks)
    return marked(csv_text([COLUMNS, *rows], quoted=True))
