"""From files to slices: frames of DICOM files, slices of NIfTI volumes, pages of TIFF files; and which of
them make one volume, and stand in one split.

Knows headers, names and order; decodes no pixel. The slices of a file are named `FILE#NUMBER`, from 0.

- Several single-frame DICOM files of one series in one folder are a volume, sorted by position along the
  normal of their plane, else by instance number, else by name; it has the folder's name, and `#2`, `#3` where
  the folder holds several.
- A multi-frame DICOM file, a NIfTI file, and a TIFF file of several pages of one size are volumes each, with
  the file's name.
- All other images are no volumes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..core.errors import DataError, printable
from .formats import dicom, nifti, tiff
from .formats.limits import MissingLibrary
from .imageset import NORMAL
from .layouts import Entry, Kind, MissingSplit, listed
from .options import ReadOptions

SEVERAL: tuple[Kind, ...] = ("dicom", "nifti", "tiff")  # kinds of files that may hold several images


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
    view, empty = options.view, 0
    headers: dict[Path, dicom.Header] = {}
    groups: dict[str | tuple[Path, str], list[Entry]] = {}  # by file, or by folder and series
    for entry in entries:
        group: str | tuple[Path, str] = entry.name
        numbers: Sequence[int] = ()
        try:
            if entry.kind == "dicom":
                header = headers[entry.file] = dicom.header(entry.file)
                numbers = range(header.frames)
                if header.frames == 1 and header.series:
                    group = entry.file.parent, header.series
            elif entry.kind == "nifti":
                numbers = range(nifti.slices(entry.file, view))
            elif entry.kind == "tiff":
                numbers = tiff.pages(entry.file)
        except dicom.NoImage as error:
            if len(entries) == 1:
                raise DataError(f"{entry.file}: {error}") from None
            empty += 1
            continue
        except MissingLibrary as error:
            raise DataError(f"{entry.file}: {error}") from None
        except DataError as error:
            if not options.skip_bad:
                remedy = "repair it, or leave such files out with --skip-bad"
                raise DataError(f"{entry.file}: {error}; {remedy}") from None
            entry = entry._replace(problem=str(error))
        slices = [entry]
        if len(numbers) > 1 or (numbers and entry.kind == "nifti"):
            name = entry.name
            slices = [entry._replace(name=f"{name}#{i}", number=i, volume=name) for i in numbers]
        groups.setdefault(group, []).extend(slices)
    _warn(root, empty, list(headers.values()), options)
    found: list[Entry] = []
    taken: Counter[str] = Counter()
    for group, slices in groups.items():
        if isinstance(group, tuple) and len(slices) > 1:  # a series; one file of it alone is no volume
            folder = PurePosixPath(slices[0].name).parent.as_posix()
            name = root.resolve().name or "/" if folder == "." else folder
            taken[name] += 1
            volume = name if taken[name] == 1 else f"{name}#{taken[name]}"
            slices = [e._replace(volume=volume) for e in _in_order(slices, headers)]
        found += slices if slices[0].volume is None else slices[slice(*view.slices)]
    if entries and not found:
        raise DataError(
            f"{root}: no image left; there are files without one, or --slices leaves none of them"
        )
    name, times = Counter(entry.name for entry in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"{root}: {name} names both a file and a slice of another; rename the file")
    return found


def _in_order(series: list[Entry], headers: Mapping[Path, dicom.Header]) -> list[Entry]:
    """Sorts a series: by position where all files tell it for one plane, else by number, else as listed."""
    own = [headers[entry.file] for entry in series]
    placed = own[0].normal is not None and len({h.normal for h in own}) == 1
    numbered = all(h.number is not None for h in own)

    def key(entry: Entry) -> tuple[float, int]:
        h = headers[entry.file]
        return (h.position or 0.0) if placed else 0.0, (h.number or 0) if numbered else 0

    return sorted(series, key=key)


def _warn(root: Path, empty: int, headers: Sequence[dicom.Header], options: ReadOptions) -> None:
    """Warns in one line of each thing that the user should know of the files."""
    burned = sum(h.burned_in for h in headers)
    bare = sum(not h.windowed for h in headers) if options.view.window == "voi" else 0
    for n, text in (
        (empty, "without an image (reports, plans) left out"),
        (burned, "with identifying text burned into the pixels: it will be seen"),
        (bare, "of more than 8 bits without a window of their own; the whole range of their bits is shown, "
         "with little contrast: see --window"),
    ):  # fmt: skip
        if n:
            line = f"{root}: {n} DICOM file{'s' * (n > 1)} {text}"
            warnings.warn(printable(line), stacklevel=5)  # names the caller of `read`


def with_fixed_split(entries: list[Entry], train_normals: int | float | None) -> list[Entry]:
    """Makes the split of class folders, which have none; the slices of a volume stay together.

    Args:
        entries: labelled, without a split.
        train_normals: share (float) or number (int) of the normals that are `train`; 0.8 where None.

    Returns:
        The same entries, each in `train` or `test`.
    """
    train_normals = 0.8 if train_normals is None else train_normals
    order = list(dict.fromkeys(e.volume or e.name for e in entries if e.label == NORMAL))
    order.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())
    number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
    train = set(order[:number])
    return [
        e._replace(split="train" if e.label == NORMAL and (e.volume or e.name) in train else "test")
        for e in entries
    ]


def of_split(path: Path, entries: list[Entry], split: str | None) -> list[Entry]:
    """Keeps the entries of one split; all where `split` is None or "all", or where there are no splits.

    Args:
        path: the source, which messages name.
        entries: of all splits.
        split: "train", "val", "test", "all" or None.

    Returns:
        Those entries, in their order.

    Raises:
        MissingSplit: there are splits, but not this one.
    """
    available = {e.split for e in entries}
    if split in (None, "all") or None in available:
        return entries
    if split not in available:
        raise MissingSplit(f"{path}: no split {split!r}; there are: {listed(available)}")
    return [e for e in entries if e.split == split]
