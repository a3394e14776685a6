"""The file of scores while it grows: rows appended batch by batch, so that a killed run can go on.

Until all are there, the rows are in `.NAME.part` beside the file, and `.NAME.part.json` says what they were
made from. Heatmaps beside the file share a scale, which is kept with the rows. Knows rows, names and
heatmaps; knows nothing of images, models or executors.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..core.errors import DataError
from ..evaluate.volume_scores import volume_scores

FIELDS = ("path", "score", "p_value", "flagged")
Row = tuple[str, float, float, bool]
VOLUME_FIELDS = ("volume", "slices", "max", "top_k_mean", "max_slice", "p_value")


class ScoreFile:
    """Rows of scores on their way to `target`, a .csv or .jsonl. A context manager; `finish` completes it.

    Args:
        target: the file; what is there is replaced at the end.
        about: what an interrupted run must share with this one for `resume`, as JSON.
        names: of all images, in order.
        batch: images scored at a time; a run is resumed at a whole batch, so that its bytes are the same.
        resume: go on with an interrupted run of the same target, if there is one.
        gaps: names may be left out (unreadable files).

    Attributes:
        start: images done before.
        rows, flagged: numbers of rows, from before included.
        volumes: the file for scores of volumes.
        scale: of the colours of heatmaps, kept for a resumed run; None if not yet known.
        noted: what was noted up to `start`; None at the beginning, or where that is not known.

    Raises:
        DataError: an interrupted run that differs in `about`, or whose rows do not fit the names.
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
    ):
        self.target, self.about = target, about
        self.part = target.with_name(f".{target.name}.part")
        self.sidecar = target.with_name(f".{target.name}.part.json")
        self.volumes = target.with_name(f"{target.stem}.volumes{target.suffix}")
        self.start = self.rows = self.flagged = 0
        self.scale: tuple[float, float] | None = None
        self.notes = target.with_name(f".{target.name}.part.notes.jsonl")
        self.noted: dict[str, Any] | None = None
        if resume and self.part.exists():
            self._compare()
            self._take_up(names, batch, gaps)
            self._take_up_notes()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.part.unlink(missing_ok=True)  # before the sidecar stops to describe it
            self.notes.unlink(missing_ok=True)
            self._describe()
        self._file = self.part.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        if self._csv and not self._file.tell():
            csv.writer(self._file).writerow(FIELDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep_scale(self, scale: tuple[float, float]) -> None:
        """Remembers the scale, for a resumed run too."""
        self.scale = scale
        self._describe()

    def note(self, done: int, facts: dict[str, Any]) -> None:
        """Remembers `facts` about the first `done` images, before the last rows of them are appended."""
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"done": done, "facts": facts}) + "\n")

    def append(self, rows: Sequence[Row]) -> None:
        """Writes rows out."""
        if self._csv:
            csv.writer(self._file).writerows((*row, int(flagged)) for *row, flagged in rows)
        else:
            self._file.writelines(json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows)
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
        """Writes the scores of volumes from the rows that are there, and returns how many there are.

        Without volumes there is no file. The p-value is Bonferroni's: that of the highest slice times the
        number of slices, at most 1. It holds however the slices of a volume depend on each other.

        Args:
            names, volumes: of all images, in order; a volume's slices stand together.
            k: as `volume_scores` has it.
            p_values: of scores.
        """
        self.volumes.unlink(missing_ok=True)  # that of an earlier run with the same target
        if not any(volumes):
            return 0
        of_names = iter(zip(names, volumes, strict=True))  # rows lack the unreadable ones of these
        slices = (
            (next(volume for other, volume in of_names if other == row[0]), row[0], float(row[1]))
            for row, _ in self._complete_rows()
        )
        found = ((*v, v.p_value(float(p_values(np.array([v.max]))[0]))) for v in volume_scores(slices, k))
        new, count = self.volumes.with_name(f".{self.volumes.name}.new"), 0
        with new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            if self._csv:
                csv.writer(file).writerow(VOLUME_FIELDS)
            for count, row in enumerate(found, 1):  # noqa: B007
                if self._csv:
                    csv.writer(file).writerow(row)
                else:
                    file.write(json.dumps(dict(zip(VOLUME_FIELDS, row, strict=True))) + "\n")
        new.replace(self.volumes)
        return count

    def finish(self) -> None:
        """All rows are there: the file gets its name."""
        self._file.close()
        self.part.replace(self.target)
        self.sidecar.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    @property
    def _csv(self) -> bool:
        return self.target.suffix == ".csv"

    def _describe(self) -> None:
        new = self.sidecar.with_name(f"{self.sidecar.name}.new")
        new.write_text(json.dumps({**self.about, "scale": self.scale}, indent=2))
        new.replace(self.sidecar)

    def _compare(self) -> None:
        try:
            before = json.loads(self.sidecar.read_text())
            self.scale = before["scale"] and tuple(before["scale"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.sidecar} does not say what the rows were made from; begin anew without --resume"
            ) from error
        for key, value in self.about.items():
            if (old := before.get(key)) != value:
                differs = f"{self.part} was begun with another {key} ({old}, now {value})"
                raise DataError(f"{differs}; give the same, or begin anew without --resume")

    def _take_up(self, names: Sequence[str], batch: int, gaps: bool) -> None:
        """Counts the rows of whole batches and cuts off what follows them."""
        order = iter(enumerate(names))
        done = rows = flagged = end = 0
        kept = (0, 0, 0, 0)  # the same, at the end of a batch
        for (name, _, _, flagged_), after in self._complete_rows():
            flag = flagged_ in (True, "1")
            position = next((i for i, other in order if other == name), None)
            if position is None or (position > done and not gaps):
                raise DataError(
                    f"{self.part}: the rows up to {name} are not those of the first images; "
                    "begin anew without --resume, or give --skip-bad if the interrupted run had it"
                )
            if (begin := position // batch * batch) >= done:
                kept = (begin, rows, flagged, end)
            done, rows, flagged, end = position + 1, rows + 1, flagged + flag, after
        if done % batch == 0 or done == len(names):
            kept = (done, rows, flagged, end)
        self.start, self.rows, self.flagged, end = kept
        os.truncate(self.part, end)

    def _take_up_notes(self) -> None:
        """Finds what was noted at `start`, and cuts off what was noted after it."""
        kept = []
        with suppress(OSError, ValueError, TypeError, KeyError):  # a line no one can read is torn
            for line in self.notes.read_text(encoding="utf-8").splitlines():
                if (note := json.loads(line))["done"] <= self.start:
                    kept.append(line)
                    self.noted = note["facts"] if note["done"] == self.start else None
        if kept:
            self.notes.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        else:
            self.notes.unlink(missing_ok=True)

    def _complete_rows(self) -> Iterator[tuple[Sequence[Any], int]]:
        """Each row, as it is read, and its end (in bytes), up to a torn one."""
        end = 0

        def lines(file: Iterable[bytes]) -> Iterator[str]:
            nonlocal end
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    yield line.decode(errors="surrogateescape")

        with (
            self.part.open("rb") as file,
            suppress(ValueError, TypeError, csv.Error),
        ):  # a row no one can read is torn
            if self._csv:
                rows: Iterator[Any] = csv.reader(lines(file))
                next(rows, None)  # the header
            else:
                rows = (tuple(json.loads(line).values()) for line in lines(file))
            for row in rows:
                if len(row) != len(FIELDS):  # torn inside a name of several lines
                    return
                float(row[1])
                yield row, end


def write_heatmaps(maps: np.ndarray, names: Sequence[str], folder: Path, rows: ScoreFile) -> None:
    """Writes one picture per image; the first batch's range of values is the scale of the whole run.

    Args:
        maps: `(N, H, W)` heatmaps.
        names: of the images.
        folder: where the pictures go, in the folders of the images.
        rows: the file of scores, which keeps the scale for a resumed run.
    """
    from PIL import Image

    from ..report.pictures import colour, scale_of

    if rows.scale is None:
        rows.keep_scale(scale_of(maps))
    for name, picture in zip(names, colour(maps, rows.scale), strict=True):
        target = heatmap_path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)


def heatmap_path(folder: Path, name: str) -> Path:
    """Where the heatmap of an image goes, which is never outside the folder.

    Args:
        folder: of all heatmaps.
        name: of the image, with its folders; `..` and the root of an absolute path are left out.

    Returns:
        A path below `folder` that ends in .png.
    """
    inside = Path(*(p for p in Path(name).parts if p not in ("..", Path(name).anchor)))
    return folder / inside.with_name(inside.name + ".png" * (inside.suffix.lower() != ".png"))
