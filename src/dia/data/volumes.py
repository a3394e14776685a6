"""From files to slices: frames of DICOM files, slices of volumes, pages of TIFF files; and which of them
make one volume, and stand in one split.

Knows headers, names and order; decodes no pixel. The slices of a file are named `FILE#NUMBER`, from 0. A
slice keeps its number in the volume (`Entry.slice`) whichever others are left out: by `--slices`, as they
cannot be read, or as they are missing from a series.

- Several single-frame DICOM files of one series in one folder are a volume, divided and sorted as
  `formats.series` says; it has the folder's name, and `#2`, `#3` where the folder holds several.
- A multi-frame DICOM file likewise, with the file's name, and `#part2`, `#part3` where it is divided.
- A NIfTI, MetaImage, NRRD or `.npy` file is a volume with the file's name. Where it holds several, each is
  one, `FILE#channel0` and so on, with slices `FILE#channel0#NUMBER`; `channel` reads one alone.
- A TIFF file of several pages of one size is a volume with the file's name.
- Localizers, on which a scan was planned, are left out where there is anything else.
- All other images are no volumes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..core.errors import DataError, printable
from .formats import dicom, geometry, itk, nifti, npy, tiff
from .formats.limits import MissingLibrary
from .formats.series import Place, Stacks, stacks
from .formats.volume import CHANNEL, Stack, chosen
from .imageset import NORMAL
from .layouts import Entry, Kind, MissingSplit, listed
from .options import ReadOptions

SEVERAL: tuple[Kind, ...] = ("dicom", "nifti", "itk", "npy", "tiff")  # files that may hold several images
_COUNTS = {"nifti": nifti.count, "itk": itk.count, "npy": npy.count}
_SHOWN = 5  # lines about folders


def expand(entries: Sequence[Entry], options: ReadOptions, root: Path, *, tell: bool = True) -> list[Entry]:
    """Expands file entries to slice entries; the slices of a volume stand where its first file stood.

    DICOM files without an image are left out of folders, and localizers, with a warning. Another says how
    series were divided, and what is odd about them.

    Args:
        entries: one for each file, with its kind.
        options: `axis`, `channel` and `slices` of volumes; with `skip_bad`, a file whose header cannot be
            read stays, as an entry that says why. `window` decides which warnings are due.
        root: the folder that names are relative to; a series that lies right in it has the folder's name.
        tell: whether to warn.

    Returns:
        One entry for each image, numbered and with its volume where a file or series holds several.

    Raises:
        DataError: a header that cannot be read, a library that is missing, nothing left, or two images of
            one name.
    """
    view, empty, several, large = options.view, 0, list[Entry](), list[Entry]()
    headers: list[dicom.Header] = []
    places: dict[tuple[str, int | None], Place] = {}
    groups: dict[str | tuple[Path, str], list[Entry]] = {}  # by file and channel, or by folder and series
    for entry in entries:
        group: str | tuple[Path, str] = entry.name
        slices = [entry]
        try:
            if entry.kind == "dicom":
                header = dicom.header(entry.file)
                headers.append(header)
                entry = entry._replace(patient=entry.patient or header.patient or None)
                slices = [entry]
                if header.frames == 1 and header.series:
                    group = entry.file.parent, header.series
                if header.frames > 1:
                    slices = _numbered(entry, range(header.frames))
                for i, e in enumerate(slices):
                    places[e.name, e.number] = header.places[i if len(header.places) > 1 else 0]
            elif entry.kind in _COUNTS:
                channels, depth = _COUNTS[entry.kind](entry.file, view)
                wanted = chosen(channels, view)
                several += [entry] * (channels > 1 and view.channel is None)
                if channels > 1 or depth > 1 or entry.kind == "nifti":
                    for channel in wanted:
                        name = f"{entry.name}#channel{channel}" if channels > 1 else entry.name
                        numbers = range(channel * CHANNEL, channel * CHANNEL + depth)
                        groups[name] = _numbered(entry._replace(name=name), numbers)
                    continue
            elif entry.kind == "tiff":
                pages = tiff.pages(entry.file)
                large += [entry] * pages.large
                if len(pages.numbers) > 1:
                    slices = _stacked(_numbered(entry, pages.numbers))
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
            slices = [entry._replace(problem=str(error))]
        groups.setdefault(group, []).extend(slices)
    scouts = {key for key, place in places.items() if place.scout}
    if all((e.name, e.number) in scouts for group in groups.values() for e in group):
        scouts = set()
    found: list[Entry] = []
    taken: Counter[str] = Counter()
    odd: dict[Path, list[str]] = {}  # by folder or file
    for group, slices in groups.items():
        slices = [e for e in slices if (e.name, e.number) not in scouts]
        own = [places[e.name, e.number] for e in slices if (e.name, e.number) in places]
        if len(own) < 2:
            found += slices if not slices or slices[0].volume is None else slices[slice(*view.slices)]
            continue
        stacked = stacks(own)
        if isinstance(group, str):
            name, mark, where = group, "#part", slices[0].file
        else:
            name, mark, where = _folder_of(slices[0], root), "#", group[0]
        odd.setdefault(where, []).extend(_oddities(stacked))
        for part in stacked.parts:
            if len(part) == 1:  # one image alone is no volume
                found.append(slices[part[0]]._replace(volume=None, slice=None))
                continue
            taken[name] += 1
            volume = name if taken[name] == 1 else f"{name}{mark}{taken[name]}"
            grid = geometry.grid_of_places([own[i] for i in part])
            at = [*range(len(part))] if grid is None else grid[1]
            sorted_ = [slices[i]._replace(volume=volume, slice=k) for i, k in zip(part, at, strict=True)]
            found += _stacked(sorted_)[slice(*view.slices)]
    if tell:
        _warn(root, empty, len(scouts), several, large, headers, odd, options)
    if entries and not found:
        raise DataError(
            f"{root}: no image left; there are files without one, or --slices leaves none of them"
        )
    name, times = Counter(entry.name for entry in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"{root}: {name} names both a file and a slice of another; rename the file")
    return found


def files_of(entry: Entry) -> tuple[Path, ...]:
    """Returns the files that an image is read from, its own first; that alone where its header is damaged."""
    try:
        return itk.files(entry.file) if entry.kind == "itk" else (entry.file,)
    except (DataError, OSError):  # reading it says what is wrong
        return (entry.file,)


def _numbered(entry: Entry, numbers: Sequence[int]) -> list[Entry]:
    """Returns the slices of a file, or of one of its volumes, which has the entry's name."""
    return [
        entry._replace(name=f"{entry.name}#{i % CHANNEL}", number=i, volume=entry.name, slice=i % CHANNEL)
        for i in numbers
    ]


def _stacked(slices: Sequence[Entry]) -> list[Entry]:
    """Returns all slices of a volume, which are files or pages of their own, each with the stack of all."""
    stack = Stack((entry.file, entry.number) for entry in slices)
    return [entry._replace(stack=stack) for entry in slices]


def in_series(entries: Sequence[Entry]) -> list[Entry]:
    """Gives DICOM files that were listed one by one the stack of their series, as far as its files are there.

    Args:
        entries: of any files, with names of their own.

    Returns:
        The same entries in their order; names, volumes and numbers stay as they are.
    """
    alone = [e for e in entries if e.kind == "dicom" and e.number is None and e.problem is None]
    try:
        found = expand(alone, ReadOptions(skip_bad=True), Path(), tell=False) if alone else []
    except DataError:  # none of them holds an image, or the library is missing
        return list(entries)
    of = {e.file: e.stack for e in found if e.number is None}
    return [e if e.stack else e._replace(stack=of.get(e.file)) for e in entries]


def _folder_of(entry: Entry, root: Path) -> str:
    """Returns the name of a series: that of the folder it lies in."""
    folder = PurePosixPath(entry.name).parent.as_posix()
    return (root.resolve().name or "/") if folder == "." else folder


def _oddities(stacked: Stacks) -> list[str]:
    """Says how a series was divided, and what is odd about its positions; nothing of most series."""
    parts, by, missing, repeated = stacked
    said = []
    if len(parts) > 1:
        sizes = ", ".join(str(len(part)) for part in parts[:6]) + ", …" * (len(parts) > 6)
        said.append(f"a series is read as {len(parts)} of {sizes} images, by {' and '.join(by)}")
    if missing:
        said.append(f"{missing} slice{'s' * (missing > 1)} seem{'s' * (missing == 1)} to be missing")
    if repeated:
        said.append(f"{repeated} image{'s lie' if repeated > 1 else ' lies'} where another one does")
    return said


def _warn(
    root: Path,
    empty: int,
    scouts: int,
    several: Sequence[Entry],
    large: Sequence[Entry],
    headers: Sequence[dicom.Header],
    odd: Mapping[Path, Sequence[str]],
    options: ReadOptions,
) -> None:
    """Warns in one line of each thing that the user should know of the files, and of each odd folder."""
    burned = sum(h.burned_in for h in headers)
    whole = options.view.window == "voi" and options.levels in ("full", "earlier")
    bare = sum(not h.windowed for h in headers) if whole else 0
    assumed = sum(h.assumed for h in headers)
    lines = [
        f"{root}: {n} DICOM {'files' if n > 1 else 'file'} {text}"
        for n, text in (
            (empty, "without an image (reports, plans) left out"),
            (burned, "with identifying text burned into the pixels: it will be seen"),
            (bare, "of more than 8 bits without a window of their own; the whole range of their bits is "
             "shown, with little contrast: see --window"),
            (assumed, "without PixelRepresentation: read as unsigned"),
        ) if n
    ]  # fmt: skip
    if scouts:
        lines.append(f"{root}: {scouts} localizer{'s' * (scouts > 1)} (images to plan a scan on) left out")
    if several:
        n, first = len(several), several[0].name
        files = f"{n} files hold several volumes (as {first})" if n > 1 else f"{first} holds several volumes"
        lines.append(f"{root}: {files}; each is read as a volume; --channel N reads one alone, from 0 on")
    if large:
        n, first = len(large), large[0].name
        files = f"{n} images are (as {first})" if n > 1 else f"{first} is"
        lines.append(f"{root}: {files} too large to be read whole: a reduced level is read in its place")
    said = [f"{folder}: {'; '.join(what)}" for folder, what in odd.items() if what]
    if len(said) > _SHOWN:
        said[_SHOWN:] = [f"{root}: {len(said) - _SHOWN} more folders have such series"]
    for line in (*lines, *said):
        warnings.warn(printable(line), stacklevel=5)  # names the caller of `read`


def with_fixed_split(entries: list[Entry], train_normals: int | float | None) -> list[Entry]:
    """Makes the split of class folders, which have none; patients and volumes stay whole.

    Args:
        entries: labelled, without a split.
        train_normals: share (float) or number (int) of the normals that are `train`; 0.8 where None.

    Returns:
        The same entries, each in `train` or `test`.
    """
    train_normals = 0.8 if train_normals is None else train_normals
    first: dict[str, str] = {}  # a patient is known by the name of an image, as its own may change
    for e in entries:
        if e.patient is not None and e.label == NORMAL:
            first.setdefault(e.patient, e.volume or e.name)

    def unit(e: Entry) -> str:
        return e.volume or e.name if e.patient is None else first[e.patient]

    order = list(dict.fromkeys(unit(e) for e in entries if e.label == NORMAL))
    order.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())
    number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
    train = set(order[:number])
    return [e._replace(split="train" if e.label == NORMAL and unit(e) in train else "test") for e in entries]


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
