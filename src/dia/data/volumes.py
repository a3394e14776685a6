"""From files to slices: frames of DICOM files, slices of NIfTI volumes, pages of TIFF files; and which of
them make one volume.

Knows headers, names and order; decodes no pixel. The slices of a file are named `FILE#NUMBER`, from 0.

- Several single-frame DICOM files of one series in one folder are a volume, sorted by position along the
  normal of their plane, else by instance number, else by name; it has the folder's name, and `#2`, `#3` where
  the folder holds several.
- A multi-frame DICOM file, a NIfTI file, and a TIFF file of several pages of one size are volumes each, with
  the file's name.
- All other images are no volumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..core.errors import DataError, printable
from .formats import dicom, nifti, tiff
from .formats.limits import Kind, MissingLibrary
from .formats.windowing import View
from .layouts import Entry
from .options import ReadOptions

SEVERAL: tuple[Kind, ...] = ("dicom", "nifti", "tiff")  # kinds of files that may hold several images


class _Volume:
    """Slices that belong together, in order, and the headers by which a series is sorted."""

    def __init__(self, name: str | None, entries: Iterable[Entry] = ()):
        self.name, self.entries = name, list(entries)
        self.headers: list[dicom.Header] = []


def expand(entries: Sequence[Entry], options: ReadOptions, root: Path) -> list[Entry]:
    """Expands file entries to slice entries; the slices of a volume stand where its first file stood.

    DICOM files without an image are left out of folders, with a warning.

    Args:
        entries: one for each file, with its kind.
        options: `axis` of NIfTI volumes and `slices` of all volumes; with `skip_bad`, a file whose header
            cannot be read stays, as an entry that says why. `window` decides which warnings are due.
        root: the folder that names are relative to; a series that lies right in it has the folder's name.

    Returns:
        One entry for each image, numbered and with its volume where a file or series holds several.

    Raises:
        DataError: a header that cannot be read, a library that is missing, nothing left, or two images of
            one name.
    """
    view = options.view
    volumes: list[_Volume] = []
    series: dict[tuple[Path, str], _Volume] = {}
    without: list[Entry] = []
    for entry in entries:
        try:
            if entry.kind == "dicom":
                _add_dicom(entry, volumes, series)
            elif entry.kind == "nifti":
                volumes.append(_sliced(entry, range(nifti.slices(entry.file, view))))
            elif entry.kind == "tiff" and len(pages := _pages(entry.file)) > 1:
                volumes.append(_sliced(entry, pages))
            else:
                volumes.append(_Volume(None, [entry]))
        except dicom.NoImage as error:
            if len(entries) == 1:
                raise DataError(f"{entry.file}: {error}") from None
            without.append(entry)
        except MissingLibrary as error:
            raise DataError(f"{entry.file}: {error}") from None
        except DataError as error:
            if not options.skip_bad:
                raise DataError(
                    f"{entry.file}: {error}; repair it, or leave such files out with --skip-bad"
                ) from None
            volumes.append(_Volume(None, [entry._replace(problem=str(error))]))
    _warn(root, without, [h for v in volumes for h in v.headers], view)
    _name_series(series.values(), root)
    found = [entry for volume in volumes for entry in _ordered(volume, view)]
    if entries and not found:
        raise DataError(
            f"{root}: no image left; there are files without one, or --slices leaves none of them"
        )
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{root}: {twice} names both a file and a slice of another; rename the file")
    return found


def _add_dicom(entry: Entry, volumes: list[_Volume], series: dict[tuple[Path, str], _Volume]) -> None:
    header = dicom.header(entry.file)
    if header.frames > 1:
        volume = _sliced(entry, range(header.frames))
    elif header.series:
        key = entry.file.parent, header.series
        if key not in series:
            volumes.append(series.setdefault(key, _Volume(None)))
        volume = series[key]
        volume.entries.append(entry)
        volume.headers.append(header)
        return
    else:
        volume = _Volume(None, [entry])
    volume.headers.append(header)
    volumes.append(volume)


def _sliced(entry: Entry, indices: Sequence[int]) -> _Volume:
    numbered = (entry._replace(name=f"{entry.name}#{i}", number=i, volume=entry.name) for i in indices)
    return _Volume(entry.name, numbered)


def _pages(file: Path) -> list[int]:
    try:
        return tiff.pages(file)
    except DataError:
        raise
    except Exception:  # whatever is wrong with it, decoding says so better
        return [0]


def _name_series(series: Iterable[_Volume], root: Path) -> None:
    """By their folders; a series of one file is no volume."""
    taken: dict[str, int] = {}
    for volume in series:
        if len(volume.entries) > 1:
            folder = PurePosixPath(volume.entries[0].name).parent.as_posix()
            name = root.resolve().name or "/" if folder == "." else folder
            taken[name] = taken.get(name, 0) + 1
            volume.name = name if taken[name] == 1 else f"{name}#{taken[name]}"


def _ordered(volume: _Volume, view: View) -> list[Entry]:
    if volume.name is None:
        return volume.entries
    entries = volume.entries
    if len(volume.headers) == len(entries):
        entries = [entries[i]._replace(volume=volume.name) for i in dicom.in_order(volume.headers)]
    return entries[slice(*view.slices)]


def _warn(root: Path, without: list[Entry], headers: Sequence[dicom.Header], view: View) -> None:
    """One line for each thing that the user should know of the files."""

    def say(line: str) -> None:
        warnings.warn(printable(line), stacklevel=5)

    if without:
        say(f"{root}: {_files(without)} without an image (reports, plans) left out")
    if burned := [h for h in headers if h.burned_in]:
        say(f"{root}: {_files(burned)} with identifying text burned into the pixels: it will be seen")
    if view.window == "voi" and (bare := [h for h in headers if not h.windowed]):
        say(
            f"{root}: {_files(bare)} of more than 8 bits without a window of their own; "
            "the whole range of their bits is shown, with little contrast: see --window"
        )


def _files(found: Sequence[object]) -> str:
    return f"{len(found)} DICOM file{'s' * (len(found) > 1)}"
