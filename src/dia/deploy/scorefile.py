"""The file of scores while it grows: rows are appended batch by batch, so that a killed run can be resumed.

Until the run ends, the rows are in `.NAME.part` in the same folder. `.NAME.part.json` has one JSON object a
line: what the rows were made from, then the scale of the heatmaps and what the caller noted after each batch.
Knows rows, names and heatmaps; knows nothing of images, models or executors.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from ..core.errors import DataError
from ..evaluate.volume_scores import volume_scores

FIELDS = ("path", "score", "p_value", "flagged")
Row = tuple[str, float, float, bool]
_VOLUME_FIELDS = ("volume", "slices", "max", "top_k_mean", "max_slice", "p_value")


class ScoreFile:
    """Rows of scores on their way to `target`, a .csv or .jsonl. A context manager; `finish` completes it.

    Args:
        target: the file; an older one is replaced at the end.
        about: facts that an interrupted run must share with this one to be resumed, as JSON.
        names: the names of all images, in order.
        batch: the number of images scored at a time. A run is resumed at a whole batch, so that the file has
            the same bytes.
        resume: continue an interrupted run of the same target, if there is one.
        gaps: rows may be missing, for unreadable files.

    Attributes:
        start: the number of images done before.
        rows: the number of rows, including earlier ones.
        flagged: the number of flagged rows, including earlier ones.
        volumes: the file for scores of volumes.
        scale: the heatmap values at which colours begin and end; None if not known yet.
        noted: the facts noted at `start`; None at the beginning, or if none were noted.

    Raises:
        DataError: the interrupted run differs in `about`, or its rows do not fit the names.
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
        self.target, self.about, self._csv = target, about, target.suffix == ".csv"
        self.part = target.with_name(f".{target.name}.part")
        self.sidecar = target.with_name(f".{target.name}.part.json")
        self.volumes = target.with_name(f"{target.stem}.volumes{target.suffix}")
        self.start = self.rows = self.flagged = 0
        self.scale: tuple[float, float] | None = None
        self.noted: dict[str, Any] | None = None
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
            target.parent.mkdir(parents=True, exist_ok=True)
            self.part.unlink(missing_ok=True)  # first, so that no sidecar describes rows of another run
            self.sidecar.unlink(missing_ok=True)
            self._log(about)
        self._file = self._open(self.part, FIELDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep_scale(self, scale: tuple[float, float]) -> None:
        """Keeps the scale of the heatmaps, for a resumed run too."""
        self.scale = scale
        self._log({"scale": scale})

    def note(self, done: int, facts: dict[str, Any]) -> None:
        """Keeps facts for a resumed run; call it before the batch's rows are appended.

        Args:
            done: the number of images done with this batch.
            facts: what a run that resumes there will find in `noted`, as JSON.
        """
        self._log({"done": done, "facts": facts})

    def append(self, rows: Sequence[Row]) -> None:
        """Writes rows of path, score, p-value and flag."""
        self._write(self._file, FIELDS, rows)
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

    def finish(self) -> None:
        """Gives the complete file its name."""
        self._file.close()
        self.part.replace(self.target)
        self.sidecar.unlink(missing_ok=True)

    def _open(self, path: Path, fields: Sequence[str]) -> TextIO:
        file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        if self._csv and not file.tell():
            csv.writer(file).writerow(fields)
        return file

    def _write(self, file: TextIO, fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._csv:
            flags_as_numbers = ([int(v) if isinstance(v, bool) else v for v in row] for row in rows)
            csv.writer(file).writerows(flags_as_numbers)
        else:
            file.writelines(json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in rows)

    def _log(self, facts: dict[str, Any]) -> None:
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
            if (old := logged[0].get(key)) != value:
                differs = f"{self.part} was begun with another {key} ({old}, now {value})"
                raise DataError(f"{differs}; give the same, or begin anew without --resume")

    def _take_up(self, names: Sequence[str], batch: int, gaps: bool) -> None:
        """Counts the rows of whole batches and cuts off what follows them."""
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
            done, rows, flagged, end = position + 1, rows + 1, flagged + (flag in (True, "1")), after
        if done % batch == 0 or done == len(names):
            kept = (done, rows, flagged, end)
        self.start, self.rows, self.flagged, end = kept
        os.truncate(self.part, end)

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
                if len(row) != len(FIELDS):  # torn inside a name of several lines
                    return
                float(row[1])
                yield row, end


def write_heatmaps(maps: np.ndarray, names: Sequence[str], folder: Path, rows: ScoreFile) -> None:
    """Writes one picture per image; the first batch's range of values is the scale of the whole run.

    Args:
        maps: `(N, H, W)` heatmaps.
        names: the images' names.
        folder: the folder for the pictures, which lie there as the images lie in their folders.
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
    """Returns the path of an image's heatmap, which is never outside the folder.

    Args:
        folder: the folder of all heatmaps.
        name: the image's name with its folders; `..` and the root of an absolute path are left out.

    Returns:
        A path below `folder` that ends in .png.

    Example:
        >>> heatmap_path(Path("maps"), "../patient/1.dcm").as_posix()
        'maps/patient/1.dcm.png'
    """
    inside = Path(*(p for p in Path(name).parts if p not in ("..", Path(name).anchor)))
    return folder / inside.with_name(inside.name + ".png" * (inside.suffix.lower() != ".png"))
