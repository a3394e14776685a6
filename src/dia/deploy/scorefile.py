"""The file of scores while it grows: rows are appended batch by batch, so that a killed run can be resumed.

Until the run ends, the rows are in `.NAME.part` in the same folder. `.NAME.part.json` has one JSON object a
line: what the rows were made from, then the scale of the heatmaps and what the caller noted after each batch.
One process at a time owns the file (`core.storage.Owner`): it asks before each write whether it still does,
and appends to a file of its own, so that one that was taken over unawares adds nothing. A CSV opens right in
spreadsheets: names in it that could run there are written with a `'`, which is taken off again here. Knows
rows and names; knows nothing of images, heatmaps, models or executors.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from ..core.errors import DataError
from ..core.storage import Owner
from ..data.formats.spreadsheet import csv_text, marked, plain_cell
from ..evaluate.volume_scores import volume_scores

FIELDS = ("path", "score", "p_value", "flagged")
Row = tuple[str, float, float, bool]
_END = "\r\n"  # of a line of CSV
_YES = (True, "1")  # a flag as .jsonl and .csv have it
_NOTED_LATER = ("--axis", "--slices", "--channel")  # which runs begun by earlier versions do not say
_VOLUME_FIELDS = ("volume", "slices", "max", "top_k_mean", "max_slice", "p_value")


class ScoreFile:
    """Rows of scores on their way to `target`, a .csv or .jsonl. A context manager; `finish` completes it.

    From when it is made until the end of the `with`, this process owns the target.

    Args:
        target: the file; an older one is replaced at the end.
        about: facts that an interrupted run must share with this one to be resumed, as JSON.
        names: the names of all images, in order.
        batch: the number of images scored at a time. A run is resumed at a whole batch, so that the file has
            the same bytes.
        resume: continue an interrupted run of the same target, if there is one.
        gaps: rows may be missing, for unreadable files.
        extra: by the name of an image, further columns and what stands in them; all have the same columns. An
            interrupted run that has none goes on without.

    Attributes:
        fields: the columns.
        start: the number of images done before.
        rows: the number of rows, including earlier ones.
        flagged: the number of flagged rows, including earlier ones.
        volumes: the file for scores of volumes.
        scale: the heatmap values at which colours begin and end; None if not known yet.
        noted: the facts noted at `start`; None at the beginning, or if none were noted.

    Raises:
        DataError: another process writes the target, `target` holds something else than scores, or the
            interrupted run differs in `about` or its rows do not fit the names.
    """

    def __init__(
        self,
        target: Path,
        about: dict[str, Any],
        names: Sequence[str],
        batch: int,
        *,
        resume: bool = False,
        gaps: bool = False,
        extra: Mapping[str, Mapping[str, str]] | None = None,
    ):
        self.extra = extra or {}
        columns = tuple(next(iter(self.extra.values()), ()))
        self.fields: tuple[str, ...] = (*FIELDS, *columns)
        texts = (*names, *columns, *(v for of in self.extra.values() for v in of.values()))
        self._to_come = next((text for text in texts if not text.isascii()), "")  # for which there is a mark
        self.target, self.about, self._csv = target, about, target.suffix == ".csv"
        self.part = target.with_name(f".{target.name}.part")
        self.sidecar = target.with_name(f".{target.name}.part.json")
        self.volumes = target.with_name(f"{target.stem}.volumes{target.suffix}")
        self.start = self.rows = self.flagged = 0
        self.scale: tuple[float, float] | None = None
        self.noted: dict[str, Any] | None = None
        self._refuse_others()
        if resume and target.exists() and not self.part.exists():
            raise DataError(
                f"{target} is finished; no run of it waits to go on. Without --resume it is written anew"
            )
        self._owner = Owner(target)
        try:
            if resume and self.part.exists():
                logged = self._logged()
                self._compare(logged)
                self._take_up(names, batch, gaps)
                for line in logged:
                    if isinstance(scale := line.get("scale"), list):
                        self.scale = scale[0], scale[1]
                    if line.get("done") == self.start:
                        self.noted = line.get("facts")
            else:
                self.part.unlink(missing_ok=True)  # first, so that no sidecar describes rows of another run
                self.sidecar.unlink(missing_ok=True)
                self._log(about)
            self._file = self._open(self.part, self.fields)
        except BaseException:
            self._owner.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._owner.release()

    def check(self) -> None:
        """Raises `DataError` where another process has taken the target over; asked before each write."""
        self._owner.check()

    def keep_scale(self, scale: tuple[float, float]) -> tuple[float, float]:
        """Keeps the scale of the heatmaps, for a resumed run too, and returns it."""
        self.scale = scale
        self._log({"scale": scale})
        return scale

    def note(self, done: int, facts: dict[str, Any]) -> None:
        """Keeps facts for a resumed run; call it before the batch's rows are appended.

        Args:
            done: the number of images done with this batch.
            facts: what a run that resumes there will find in `noted`, as JSON.
        """
        self._log({"done": done, "facts": facts})

    def append(self, rows: Sequence[Row]) -> None:
        """Writes rows of path, score, p-value and flag."""
        self.check()
        self._write(self._file, self.fields, map(self._whole, rows))
        self._file.flush()
        self.rows += len(rows)
        self.flagged += sum(row[3] for row in rows)

    def write_volumes(
        self,
        names: Sequence[str],
        volumes: Sequence[str | None],
        k: int,
        p_values: Callable[[np.ndarray], np.ndarray],
    ) -> int:
        """Writes the scores of volumes, made from the rows; without volumes there is no file.

        The p-value is Bonferroni's: that of the highest slice times the number of slices, at most 1. It holds
        for any dependence between the slices of a volume.

        Args:
            names: the names of all images, in order.
            volumes: the volume of each image, None for images that are no slices; slices stand together.
            k: the number of highest scores whose mean is a volume's second score.
            p_values: maps `(N,)` scores to `(N,)` p-values.

        Returns:
            The number of volumes.
        """
        self.check()
        self.volumes.unlink(missing_ok=True)  # the file of an earlier run with the same target
        if not any(volumes):
            return 0
        of_names = iter(zip(names, volumes, strict=True))  # the unreadable ones have no rows
        slices = (
            (next(volume for other, volume in of_names if other == row[0]), row[0], float(row[1]))
            for row, _ in self._complete_rows()
        )
        found = [(*v, v.p_value(float(p_values(np.array([v.max]))[0]))) for v in volume_scores(slices, k)]
        new = self.volumes.with_name(f".{self.volumes.name}.new")
        new.unlink(missing_ok=True)
        with self._open(new, _VOLUME_FIELDS) as file:
            self._write(file, _VOLUME_FIELDS, found)
        new.replace(self.volumes)
        return len(found)

    def finish(self, *, only_flagged: bool = False) -> None:
        """Gives the complete file its name.

        Args:
            only_flagged: whether it keeps the rows of flagged images alone.
        """
        self._file.close()
        self.check()
        if only_flagged:
            self._file = self._open(self._anew(), self.fields)
            flagged = (row for row, _ in self._complete_rows() if row[3] in _YES)
            rows = (self._whole((name, float(score), float(p), True)) for name, score, p, _ in flagged)
            self._write(self._file, self.fields, rows)
            self._file.close()
            self._new.replace(self.part)
        self.part.replace(self.target)
        self.sidecar.unlink(missing_ok=True)

    def _whole(self, row: Row) -> tuple[Any, ...]:
        """Returns a row with its further columns."""
        own = self.extra.get(row[0], {})
        return *row, *(own.get(name, "") for name in self.fields[len(FIELDS) :])

    @property
    def _new(self) -> Path:
        return self.part.with_name(f"{self.part.name}.new")

    def _anew(self) -> Path:
        self._new.unlink(missing_ok=True)
        return self._new

    def _refuse_others(self) -> None:
        """Refuses a place where a file is that holds no scores: it may be anybody's."""
        for path, fields in ((self.target, FIELDS), (self.volumes, _VOLUME_FIELDS)):
            try:
                found = self._columns(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, csv.Error):
                found = ("something else",)
            # scores may have further columns
            if found and (found[: len(fields)] != fields or (path != self.target and found != fields)):
                raise DataError(f"{path}: it exists and holds no scores; choose another --out")

    def _columns(self, path: Path) -> tuple[str, ...]:
        """Returns the columns of a file, by its first line; none where it is empty."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            if self._csv:
                return tuple(map(plain_cell, next(csv.reader(file), ())))
            head = file.readline(100_000).strip()
            return tuple(json.loads(head)) if head else ()

    def _open(self, path: Path, fields: Sequence[str]) -> TextIO:
        file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        if self._csv and not file.tell():
            file.write(marked(csv_text([fields], ends=_END), [self._to_come]))
        return file

    def _write(self, file: TextIO, fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        if self._csv:
            flags_as_numbers = ([int(v) if isinstance(v, bool) else v for v in row] for row in rows)
            file.write(csv_text(flags_as_numbers, ends=_END))
        else:
            file.writelines(json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in rows)

    def _log(self, facts: dict[str, Any]) -> None:
        self.check()
        with self.sidecar.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(facts)}")  # first, as the last line may be torn

    def _logged(self) -> list[dict[str, Any]]:
        found = []
        with suppress(OSError):
            for line in self.sidecar.read_bytes().splitlines():
                with suppress(ValueError, TypeError):  # a torn line
                    found.append(dict(json.loads(line)))
        return found

    def _compare(self, logged: Sequence[dict[str, Any]]) -> None:
        if not logged:
            what = f"{self.sidecar} does not say what the rows were made from"
            raise DataError(f"{what}; begin anew without --resume")
        for key, value in self.about.items():
            if key in _NOTED_LATER and key not in logged[0]:
                continue
            if (old := logged[0].get(key)) != value:
                differs = f"{self.part} was begun with another {key} ({old}, now {value})"
                raise DataError(f"{differs}; give the same, or begin anew without --resume")

    def _take_up(self, names: Sequence[str], batch: int, gaps: bool) -> None:
        """Counts the rows of whole batches and cuts off what follows them."""
        if (columns := self._columns_begun()) == FIELDS:  # begun without, as by an earlier version
            self.fields = FIELDS
        elif columns not in ((), self.fields):
            raise DataError(f"{self.part} was begun with other columns; begin anew without --resume")
        positions = iter(enumerate(names))
        done = rows = flagged = end = 0
        kept = (0, 0, 0, 0)  # the same four, at the end of a batch
        for (name, _, _, flag), after in self._complete_rows():
            position = next((i for i, other in positions if other == name), None)
            if position is None or (position > done and not gaps):
                raise DataError(
                    f"{self.part}: the rows up to {name} are not those of the first images; "
                    "begin anew without --resume, or give --skip-bad if the interrupted run had it"
                )
            if (begin := position // batch * batch) >= done:
                kept = (begin, rows, flagged, end)
            done, rows, flagged, end = position + 1, rows + 1, flagged + (flag in _YES), after
        if done % batch == 0 or done == len(names):
            kept = (done, rows, flagged, end)
        self.start, self.rows, self.flagged, end = kept
        with self.part.open("rb") as old, self._anew().open("wb") as new:
            shutil.copyfileobj(old, new)  # as its last owner may hold the old one open
            new.truncate(end)
        self._new.replace(self.part)

    def _columns_begun(self) -> tuple[str, ...]:
        """Returns the columns of the interrupted run; none where its first line is torn."""
        if not self._csv:
            try:
                return self._columns(self.part)
            except (ValueError, TypeError):
                return ()
        lines = {f: csv_text([f], ends="").encode(errors="surrogateescape") for f in (self.fields, FIELDS)}
        with self.part.open("rb") as file:
            begun = file.read(5 + max(map(len, lines.values()))).removeprefix("\ufeff".encode())
        if any((line + _END.encode()[:1]).startswith(begun) for line in lines.values()):
            return ()
        ended = (f for f, line in lines.items() if begun.startswith((line + b"\r", line + b"\n")))
        return next(ended, ("others",))

    def _complete_rows(self) -> Iterator[tuple[Sequence[Any], int]]:
        """Yields each row and its end in bytes, up to the first row that is torn."""
        end = 0

        def lines(file: Iterable[bytes]) -> Iterator[str]:
            nonlocal end
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    yield line.decode(errors="surrogateescape")

        with self.part.open("rb") as file, suppress(ValueError, TypeError, csv.Error):
            if self._csv:
                rows: Iterator[Any] = csv.reader(lines(file))
                next(rows, None)  # the header
            else:
                rows = (tuple(json.loads(line).values()) for line in lines(file))
            for row in rows:
                if len(row) != len(self.fields):  # torn inside a name of several lines
                    return
                float(row[1])
                name = plain_cell(row[0]) if self._csv else row[0]
                yield (name, *row[1 : len(FIELDS)]), end
