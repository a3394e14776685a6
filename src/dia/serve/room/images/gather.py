"""From what was dropped to cases: files read, slices grouped to volumes, all named as the client names them.

Knows drops and readers; knows no session, model or page. No message names a place on this machine.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ....core.errors import DataError, first_line
from ....data.decode import Files
from ....data.formats import dicom
from ....data.formats.geometry import grid_of_places, spacing_of
from ....data.formats.mark import is_marked
from ....data.formats.spreadsheet import NO_PICTURES
from ....data.formats.windowing import Stored, toned
from ....data.imageset import ImageSet
from ....data.layouts import Entry, ImageFile
from ....data.options import ReadOptions
from ....data.readers import listing
from ..drops import Drop
from .native import Native, whole_of

_AHEAD = 32  # slices that are decoded before they are asked for
_THREADS = min(4, os.cpu_count() or 1)


class Gathered(NamedTuple):
    """A case as it was read.

    Args:
        name: the client's.
        slices: S of them.
        numbers: of each in its volume, as `data.layouts.Entry.slice`.
        images: `(S, H, W, C)` uint8 at the model's size.
        spacing: mm between rows, columns and slices; None where the files do not say.
        patient: equal for the cases of a patient, for comparing only; None where that is not known.
    """

    name: str
    slices: list[Native]
    numbers: tuple[int, ...]
    images: np.ndarray
    spacing: tuple[float, float, float | None] | None
    patient: str | None


class Gatherer:
    """Reads a drop, and deletes its files as it goes.

    Args:
        drop: what was dropped.
        options: as the model's images are read, with its size.
        take: takes a slice of so many bytes into memory; returns why not, or nothing.
        give: gives such slices back.
        problem: is told the client's name and one line of each file that is left out.
        read: is told how many more files are done.
        stopped: whether nobody wants more.
    """

    def __init__(
        self,
        drop: Drop,
        options: ReadOptions,
        *,
        take: Callable[[int], str],
        give: Callable[[Sequence[int]], None],
        problem: Callable[[str, str], None],
        read: Callable[[int], None],
        stopped: Callable[[], bool],
    ):
        self.drop, self.options, self.take, self.give = drop, options, take, give
        self.problem, self.read, self.stopped = problem, read, stopped
        self._files = Files(options.view)
        self._refused: set[str | None] = set()  # volumes

    def cases(self) -> Iterator[Gathered]:
        """Yields the cases; each file is read once, several at a time."""
        folders: dict[str, list[str]] = {}
        for number in self.drop.names:
            folders.setdefault(number.partition("/")[0], []).append(number)
        with ThreadPoolExecutor(_THREADS, "dia-decode") as pool:
            for folder, numbers in folders.items():
                if self.stopped():
                    return
                entries = self._entries(self.drop.folder / folder, numbers)
                self.read(len(numbers) - len({e.file for e in entries}))
                yield from self._decoded(entries, pool)
                self._files = Files(self.options.view)
                shutil.rmtree(self.drop.folder / folder, ignore_errors=True)

    def _entries(self, folder: Path, numbers: Sequence[str]) -> Sequence[Entry]:
        """Lists the images of a numbered folder; tells of files that are none."""
        try:
            found = listing(folder, self.options).entries
        except DataError as error:  # of one file, as a rule: it must not keep the others from being read
            if len(numbers) == 1:
                self._tell(numbers[0], error)
                return []
            return [entry for number in numbers for entry in self._alone(number)]
        there = {e.file for e in found}
        for number in numbers:
            if self.drop.folder / number not in there:
                self._tell(number, None)
        return found

    def _alone(self, number: str) -> Sequence[Entry]:
        file = self.drop.folder / number
        try:
            # DICOM bytes may end in .csv
            if ImageFile.of(file) is None or file.suffix.lower() in NO_PICTURES:
                raise DataError("not an image file; drop images, or zips of images")
            return listing(file, self.options).entries
        except DataError as error:
            self._tell(number, error)
            return []

    def _tell(self, number: str, error: DataError | None) -> None:
        """Tells why a file is no image."""
        file, name = self.drop.folder / number, self.drop.names[number]
        image = ImageFile.of(file)
        if image is None:
            line = "no image by its name or its first bytes"
        elif is_marked(file):
            line = "a picture that dia drew, no scan"
        elif error is not None:
            line = self._clean(str(error), name)
        else:
            line = "left out: without an image, or a localizer on which a scan was planned"
        if image is None and PurePosixPath(name).name.upper() == "DICOMDIR":
            return
        self.problem(name, line)

    def _decoded(self, entries: Sequence[Entry], pool: ThreadPoolExecutor) -> Iterator[Gathered]:
        ahead: deque[Future[tuple[Native, np.ndarray] | str]] = deque()
        coming, done = iter(entries), set[Path]()
        try:
            for _, members in groupby(enumerate(entries), lambda pair: pair[1].volume or pair[0]):
                group = [entry for _, entry in members]
                kept: list[tuple[Native, np.ndarray]] = []
                numbers: list[int] = []
                bad: dict[str, list[Entry]] = {}
                why = ""
                for entry in group:
                    while len(ahead) < _AHEAD and (one := next(coming, None)) is not None:
                        ahead.append(pool.submit(self._load, one))
                    found = ahead.popleft().result()
                    if entry.file not in done:
                        done.add(entry.file)
                        self.read(1)
                    if self.stopped():
                        return self.give(_sizes(kept))
                    if why:
                        continue
                    if isinstance(found, str):
                        bad.setdefault(self._clean(found), []).append(entry)
                    elif why := self.take(_size(*found)):
                        self._refused.add(entry.volume)
                    else:
                        kept.append(found)
                        numbers.append(entry.slice or 0)
                name = self._name(group[0].volume or group[0].name, group[0], len(group))
                for line, of in bad.items():  # of a volume one line tells of all
                    one_alone = len(of) == 1
                    told = self._name(of[0].name, of[0], 1) if one_alone else name
                    self.problem(told, line if one_alone else f"{line} ({len(of)} of {len(group)} slices)")
                if why:
                    self.give(_sizes(kept))
                    self.problem(name, why)
                elif kept:
                    spacing = self._spacing(group, kept[0][0], pool)
                    whole = whole_of([native for native, _ in kept], self.options.view)
                    images = np.stack([image for _, image in kept])
                    slices = [native.free(whole) for native, _ in kept]
                    yield Gathered(name, slices, tuple(numbers), images, spacing, group[0].patient)
        finally:
            for future in ahead:
                future.cancel()

    def _spacing(
        self, group: Sequence[Entry], one: Native, pool: ThreadPoolExecutor
    ) -> tuple[float, float, float | None] | None:
        """Returns mm between rows, columns and slices, as far as the headers say."""
        first = group[0]
        height, width = one.values.shape[:2]
        found = spacing_of(first.file, first.kind, first.number, self.options.view, (height, width))
        if found is None:
            return None
        z = found.z
        if z is None and len(group) > 1 and first.kind == "dicom" and first.number is None:
            heads = list(pool.map(_header, [entry.file for entry in group]))
            grid = grid_of_places([head.places[0] for head in heads if head is not None])
            z = grid[0].spacing.z if grid and grid[0].spacing else None
        return found.y, found.x, z

    def _load(self, entry: Entry) -> tuple[Native, np.ndarray] | str:
        """Reads one slice, or says why it cannot be read. Runs in the threads."""
        if entry.problem is not None:
            return entry.problem
        if entry.volume is not None and entry.volume in self._refused:
            return "no room"
        try:
            found = self._files.stored(entry)
            grey = toned(found, self.options.view) if isinstance(found, Stored) else found
            grey = grey if grey.ndim == 3 else grey[..., None]
            return Native.of(found), self.options.conform(ImageSet(grey[None])).images[0]
        except MemoryError:
            return "there is not the memory to decode it"
        except DataError as error:
            return str(error)
        except Exception as error:  # decoders raise nearly anything on malformed bytes
            return f"no image, or damaged ({first_line(error)})"

    def _name(self, own: str, entry: Entry, slices: int) -> str:
        """Returns the client's name of a file, a slice of it ("#3") or a series, which is its folder's."""
        base, mark, rest = own.partition("#")
        folder = entry.file.parent.name
        file = self.drop.names[f"{folder}/{entry.file.name}"]
        if base == entry.file.name:
            return f"{file}{mark}{rest}"
        series = self.drop.client_folder(folder) or (f"{file} …" if slices > 1 else file)
        return f"{series}{mark}{rest}"

    def _clean(self, line: str, name: str = "") -> str:
        """Returns an error in one line with the client's names in place of those on this machine."""
        line = " ".join(line.split())
        for number, own in self.drop.names.items():
            file = str(self.drop.folder / number)
            if file in line:
                line = line.replace(file, own)
        line = line.replace(str(self.drop.folder), "…").removeprefix(f"{name}: ")
        parts = [part for part in line.split("; ") if " --" not in part]  # no page has flags
        if "--window" in line and len(parts) == 1:
            return f"{parts[0]}: the model knows no black and white for it; train it on such files"
        return "; ".join(parts) or line


def _header(file: Path) -> dicom.Header | None:
    try:
        return dicom.header(file)
    except DataError:
        return None


def _size(native: Native, image: np.ndarray) -> int:
    return native.nbytes + image.nbytes


def _sizes(kept: Sequence[tuple[Native, np.ndarray]]) -> list[int]:
    return [_size(*one) for one in kept]
