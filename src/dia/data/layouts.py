"""Layouts: which image files a folder holds, with their kinds, labels, masks, splits and patients.

Knows names and places. The kind of each file is decided here, once; an image is opened only to see whether it
is one.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..core.errors import DataError, printable
from .formats.mark import marked
from .formats.volume import Stack
from .imageset import ANOMALOUS, NORMAL
from .options import ReadOptions

Kind = Literal["plain", "png", "tiff", "dicom", "nifti", "itk", "npy"]  # plain: what Pillow alone reads
_KINDS: dict[str, Kind] = {
    ".png": "png",
    **dict.fromkeys(
        (".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".avif"), "plain"
    ),
    **dict.fromkeys((".tif", ".tiff", ".svs"), "tiff"),
    **dict.fromkeys((".dcm", ".dicom", ".dcm.gz", ".dicom.gz"), "dicom"),
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
    **dict.fromkeys((".mha", ".mhd", ".nrrd", ".nhdr"), "itk"),
    ".npy": "npy",
}
SUFFIXES = frozenset(_KINDS)
VOLUMES: tuple[Kind, ...] = (
    "dicom",
    "nifti",
    "itk",
    "npy",
)  # kinds of files that are opened once for all slices
# What lies beside images and is none: no word is lost on it.
_BESIDE = frozenset((
    *(".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".rst", ".xml", ".html", ".htm", ".pdf", ".yaml"),
    *(".yml", ".toml", ".ini", ".cfg", ".log", ".db", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".rtf"),
    *(".py", ".m", ".r", ".sh", ".ipynb", ".bval", ".bvec", ".md5", ".sha256", ".sha1", ".lnk", ".url"),
))  # fmt: skip
_NO_IMAGE = frozenset((
    *("license", "licence", "copying", "readme", "notice", "authors", "changelog", "changes", "version"),
    *("citation", "manifest", "checksums", "md5sums", "sha256sums", "makefile"),
))  # fmt: skip
_VOXELS = (".raw", ".zraw", ".raw.gz")  # files that a header beside them names
OURS = (".heatmap.npy", ".findings.nii.gz", ".findings.dcm")  # which `dia score` wrote
_NAMED = 5  # kinds of files that a warning names
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}
# What the name of a folder tells of its images. A name means this as a whole, numbers aside ("train 2") ...
_MEANINGS: dict[str, str] = {
    **dict.fromkeys(
        ("normal", "normals", "control", "controls", "nofinding", "clear", *NORMAL_WORDS), "normal"
    ),
    **dict.fromkeys(("sick", *ANOMALOUS_WORDS), "anomalous"),
    **dict.fromkeys((*_SPLIT_FOLDERS, "training", "testing", "holdout", "evaluation", "eval"), "split"),
    **dict.fromkeys(("label", "labels", "labelled", "labeled", "unlabelled", "unlabeled"), "label"),
}
# ... and as one of its words ("viral pneumonia", "lesion masks").
_TELLING: dict[str, str] = {
    **dict.fromkeys(("normal", "normals", "healthy"), "normal"),
    **dict.fromkeys(
        ("abnormal", "abnormals", "abnormality", "anomaly", "anomalies", "anomalous", "outlier", "outliers",
         "defect", "defects", "benign", "malignant", "diseased", "pathology", "pathological", "lesion",
         "lesions", "tumor", "tumors", "tumour", "tumours", "cancer", "carcinoma", "melanoma", "nodule",
         "nodules", "polyp", "polyps", "covid", "pneumonia", "tuberculosis", "fracture", "fractures",
         "hemorrhage", "haemorrhage", "stroke"),
        "anomalous",
    ),
    **dict.fromkeys(("mask", "masks", "annotation", "annotations", "segmentation", "segmentations"), "mask"),
}  # fmt: skip
_NO = frozenset(("non", "not", "no", "without"))  # turn the word after them


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class ImageFile(NamedTuple):
    """A file that is an image by its suffix, or by its first bytes where the suffix says nothing.

    Args:
        path: the file.
        kind: the reader that opens it; what the file then holds is checked by that reader.
        stem: its name without the suffix; `.nii.gz` is one suffix.
    """

    path: Path
    kind: Kind
    stem: str

    @classmethod
    def of(cls, path: Path) -> ImageFile | None:
        """Classifies a file; None where nothing says that it is an image."""
        end = _suffix(path)
        if path.name.lower().endswith(OURS):
            return None
        kind = _KINDS.get(end.lower()) or ("dicom" if _has_preamble(path) else None)
        return kind and cls(path, kind, path.name[: len(path.name) - len(end)])


def _suffix(path: Path) -> str:
    """Returns the end of a file's name that says its kind; `.nii.gz` and the like are one."""
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else ""
    return inner + path.suffix if len(inner) > 1 else path.suffix


def _has_preamble(path: Path) -> bool:
    """Returns whether `DICM` stands at byte 128."""
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class Entry(NamedTuple):
    """One image: where its pixels are, and what its place says about it.

    Args:
        file: the file that holds it.
        kind: the reader that opens that file; decided once, when the file is listed.
        name: relative path; with `#NUMBER` where the file holds several images.
        label: 0 = normal, 1 = anomalous; None where unknown.
        mask: the file of its mask; None where it has none.
        mask_kind: the reader that opens that file.
        split: "train", "val" or "test"; None where it belongs to every split.
        number: of the frame, slice or page, from 0; None where the file is one image.
        volume: the volume that it is a slice of; None where it is none.
        slice: its number in that volume, from 0, whichever of its slices are read: as in the file; of DICOM
            images by where they lie. None where it is no slice.
        stack: all slices of that volume, where they are files or pages of their own; None otherwise.
        problem: why the file cannot be read, where that is known already.
        patient: a text that is the same for all images of its patient; None where that is not known.
        extra: further columns of a manifest, with what stands there.
    """

    file: Path
    kind: Kind
    name: str
    label: int | None = None
    mask: Path | None = None
    mask_kind: Kind = "plain"
    split: str | None = None
    number: int | None = None
    volume: str | None = None
    problem: str | None = None
    patient: str | None = None
    extra: tuple[tuple[str, str], ...] = ()
    slice: int | None = None
    stack: Stack | None = None


class Unread(NamedTuple):
    """Files of one kind that is not read.

    Args:
        suffix: of their names, in small letters; empty for names without one, or with a number as its end.
        files: how many there are.
        example: the first of them, relative to the folder.
    """

    suffix: str
    files: int
    example: str


def image_files(path: str | os.PathLike[str], unread: dict[str, list[str]] | None = None) -> list[ImageFile]:
    """Lists the image files below a folder, in natural order of their relative path.

    Hidden files and folders are left out, and pipes, devices and DICOMDIRs. Linked folders are followed once,
    but for a link to a folder in which this one lies: it would bring in all that lies there.

    Args:
        path: the folder.
        unread: gets the relative paths of files of other kinds, by suffix, but for those that usually lie
            beside images, such as texts and tables.

    Returns:
        The image files.
    """
    found: list[ImageFile] = []
    seen = {str(folder) for folder in Path(os.path.realpath(path)).parents}
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        for file in (Path(folder, name) for name in files):
            # a link to nothing stays: reading says what is wrong with it
            passed_over = file.name.startswith(".") or file.name.upper().startswith("DICOMDIR")
            if passed_over:
                continue
            if image := ImageFile.of(file):
                if file.is_file() or not file.exists():
                    found.append(image)
            elif unread is not None and (suffix := _kind_unread(file, files)) is not None:
                unread.setdefault(suffix, []).append(file.relative_to(path).as_posix())
    return sorted(found, key=lambda f: _natural(f.path.relative_to(path).as_posix()))


def _kind_unread(file: Path, beside: Sequence[str]) -> str | None:
    """Returns the suffix of a file that may be an image of a kind that is not read; None for other files."""
    suffix, stem = _suffix(file).lower(), file.stem.lower()
    if suffix in _BESIDE or stem in _NO_IMAGE or stem == "thumbs" or file.name.lower().endswith(OURS):
        return None
    if suffix in _VOXELS and any(name.lower().endswith((".mhd", ".nhdr")) for name in beside):
        return None
    if not file.is_file():
        return None
    return "" if suffix[1:].isdigit() else suffix  # names that are UIDs end in numbers


def unread_kinds(unread: Mapping[str, Sequence[str]]) -> list[Unread]:
    """Counts the files of each kind that is not read, the most frequent first.

    Args:
        unread: as `image_files` fills it.
    """
    kinds = [Unread(suffix, len(files), min(files, key=_natural)) for suffix, files in unread.items()]
    return sorted(kinds, key=lambda kind: (-kind.files, kind.suffix))


def _warn_of_unread(root: Path, kinds: Sequence[Unread]) -> None:
    number = sum(kind.files for kind in kinds)
    files = "a file of a kind that is not read was" if number == 1 else (
        f"{number} files of kinds that are not read were"
    )  # fmt: skip
    said = f"{root}: {files} left out: {_said_of(kinds)}"
    warnings.warn(printable(said), stacklevel=5)  # names the caller of `read`


def _said_of(kinds: Sequence[Unread]) -> str:
    """Names kinds of files that are not read, as "30 .xyz (such as a.xyz)"."""
    named = [f"{n} {suffix or 'without a suffix'} (such as {first})" for suffix, n, first in kinds[:_NAMED]]
    others = sum(kind.files for kind in kinds[_NAMED:])
    return ", ".join(named) + (f" and {others} others" if others else "")


def _natural(text: str) -> tuple[list[str | int], str]:
    """Returns a sort key by which `img2` comes before `img10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))], text


def words(text: str | None) -> list[str]:
    """Splits a comma-separated list; an empty list where `text` is None."""
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def listed(items: Iterable[object]) -> str:
    """Joins the items, sorted, with commas."""
    return ", ".join(sorted(map(str, items)))


def folder_entries(root: Path, options: ReadOptions) -> tuple[list[Entry], list[Unread]]:
    """Lists the image files of a folder, in the layouts that `readers.read` describes.

    Files of kinds that are not read are counted, and named in a warning.

    Args:
        root: the folder.
        options: `normal`, `anomalous`, `split_folders` and `masks` matter.

    Returns:
        The entries in natural order of their names, all splits together; and the kinds of files that are not
        read, the most frequent first.

    Raises:
        DataError: no images, a layout that is ambiguous, or classes and masks that are not there.
    """
    normal, anomalous = words(options.normal), words(options.anomalous)
    splits, masks_in = splits_of(options), options.masks or "ground_truth"
    others: dict[str, list[str]] = {}
    images = image_files(root, others)
    unread = unread_kinds(others)
    ours = own_pictures(root, [file.path for file in images])
    found = {f: f.path.relative_to(root).parts for f in images if f.path not in ours}
    files = {file: parts for file, parts in found.items() if parts[0] != masks_in}
    masks = {(*p[1:-1], f.stem.removesuffix("_mask")): f for f, p in found.items() if f not in files}
    if not files:
        there = f" but {len(ours)} that dia drew" if ours else f" ({listed(SUFFIXES)})"
        more = f"; what is there is not read: {_said_of(unread)}" if unread else ""
        raise DataError(f"{root}: no images in this folder{there}{more}")
    if unread:
        _warn_of_unread(root, unread)
    if options.masks and not masks:
        raise DataError(f"{root}: no masks in {masks_in}/, which should hold them")
    has_splits = any(parts[0].lower() in splits for parts in files.values())
    named = list(options.split_folders.values()) if options.split_folders else ["train", "test"]
    if options.split_folders and not has_splits:
        raise DataError(f"{root}: none of its folders is called {' or '.join(named)}")
    below = {parts[:2] for parts in files.values() if len(parts) > 2}
    nested = sorted(p[0] for p in below if {(p[0], "train"), (p[0], "test")} <= below)
    if nested and not has_splits:
        raise DataError(f"{root}: train/ and test/ lie one level down; read {root / nested[0]} instead")
    folders = {file: parts[int(has_splits) : -1] for file, parts in files.items()}  # below train/ or test/
    classes = {folder[0] for folder in folders.values() if folder}
    if has_splits and not normal and "good" in classes:
        normal = ["good"]
    if absent := {*normal, *anomalous} - classes:
        raise DataError(f"{root}: no class folder {listed(absent)}; there are: {listed(classes) or 'none'}")
    if not normal:
        _warn_of_classes(root, sorted({folder[0] for folder in folders.values() if len(folder) == 1}))
    entries = []
    for file, folder in folders.items():
        split, label = splits.get(files[file][0].lower()) if has_splits else None, None
        if has_splits and split is None:
            inside = " and ".join(f"{name}/" for name in named)
            raise DataError(f"{file.path}: outside {inside}; move it into one of them")
        if normal:
            if not folder and split != "train":
                raise DataError(f"{file.path}: not in a class folder ({listed(classes)})")
            if folder and anomalous and folder[0] not in (*normal, *anomalous):
                continue
            label = NORMAL if not folder or folder[0] in normal else ANOMALOUS
        mask = masks.get((*folder, file.stem))
        entry = Entry(file.path, file.kind, "/".join(files[file]), label, split=split)
        entries.append(entry._replace(mask=mask.path, mask_kind=mask.kind) if mask else entry)
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected {masks_in}/<class>/NAME_mask.png")
    return entries, unread


def own_pictures(source: Path, files: Sequence[Path]) -> set[Path]:
    """Finds the pictures that this package drew, which are no scans, and says in a warning what is left out.

    Args:
        source: the folder or manifest, for the warning.
        files: the files that it names.

    Returns:
        Those of them to leave out.
    """
    found = [file for file, own in zip(files, marked(files), strict=True) if own]
    if found:
        several = len(found) > 1
        first = f"{len(found)} pictures" if several else "a picture"
        verb, example = ("are", f"such as {found[0]}") if several else ("is", str(found[0]))
        said = f"{source}: {first} that dia drew, no scan{'s' * several}, {verb} left out ({example})"
        warnings.warn(printable(said), stacklevel=6)
    return set(found)


def splits_of(options: ReadOptions) -> dict[str, str]:
    """Returns the split of each folder name (or word of a manifest), in small letters."""
    if options.split_folders is None:
        return _SPLIT_FOLDERS
    return {folder.lower(): split for split, folder in options.split_folders.items()}


def meaning(folder: str) -> str:
    """Returns what a folder's name tells: "normal", "anomalous", "split", "label", "mask"; or "" for nothing.

    Example:
        >>> [meaning(name) for name in ("Normal", "COVID-19", "non-COVID", "val", "GE scanner")]
        ['normal', 'anomalous', 'normal', 'split', '']
    """
    parts = re.findall(r"[a-z]+|\d+", folder.lower())
    named = [p for p in parts if not p.isdigit()] or parts
    if whole := _MEANINGS.get("".join(named)):
        return whole
    if "".join(named) == "groundtruth":
        return "mask"
    told = [(_TELLING[p], i > 0 and named[i - 1] in _NO) for i, p in enumerate(named) if p in _TELLING]
    kinds = {{"normal": "anomalous", "anomalous": "normal"}.get(k, k) if turned else k for k, turned in told}
    return next((k for k in ("mask", "anomalous", "normal") if k in kinds), "")


def refuse_mixed(
    root: str, entries: Sequence[Entry], normal: str | None = None, command: str = "dia fit"
) -> None:
    """Refuses a folder whose sub-folders, by their names, hold more than normal images.

    Args:
        root: the folder, as it was typed.
        entries: the images of it that would be fitted on.
        normal: the option `--normal`: such class folders were named, and are not looked at.
        command: what was typed before the folder; a call in Python where it ends with a parenthesis.

    Raises:
        DataError: names that mean a class, a split, labels or masks; with the line to type in its place.
    """
    every = "all=True" if command.endswith("(") else "--all"
    stems = {entry.name: Path(entry.name).with_suffix("").as_posix() for entry in entries}
    of = {name: re.sub(r"_mask(_\d+)?$", "", stem) for name, stem in stems.items()}
    if beside := [name for name, stem in of.items() if stem != stems[name] and stem in {*stems.values()}]:
        raise DataError(
            f"{root}: {len(beside)} files are masks of images beside them, as {beside[0]}; move them "
            f"elsewhere, or add {every} to take all {len(entries)} images as normal"
        )
    chosen = set(words(normal))
    told: dict[tuple[str, ...], int] = {}  # images by folder
    for entry in entries:
        folder = tuple(Path(entry.name).parent.parts)
        told[folder] = told.get(folder, 0) + 1
    below = {name for folder in told for name in folder}
    digits = {name for name in below if name.isdigit()}
    patients = set() if digits == {"0", "1"} else digits  # folders that are numbered, and no classes
    kinds: dict[tuple[str, ...], frozenset[str]] = {}
    for folder in told:
        start = 1 if entries[0].split is not None and folder else 0
        looked = [
            n for i, n in enumerate(folder[start:]) if n not in patients and not (i == 0 and n in chosen)
        ]
        kinds[folder] = frozenset(filter(None, map(meaning, looked)))
    if len(set(kinds.values())) == 1 and not next(iter(kinds.values())) & {"anomalous", "mask"}:
        return
    named = [f"{'/'.join(f)} ({told[f]})" for f in told if kinds[f]]
    shown = ", ".join(named[:6]) + (f" and {len(named) - 6} more" if len(named) > 6 else "")
    good = {f for f in told if "normal" in kinds[f] and not kinds[f] & {"anomalous", "mask"}}
    pure = [f for f in good if kinds[f] == {"normal"}] or list(good)
    line = f"{_line(command, f'{root}/NAME')}, with the folder of normal images"
    if pure:
        best = _up_to_normal(max(pure, key=lambda f: sum(told[g] for g in pure if g[: len(f)] == f)))
        line = _line(command, str(Path(root, *best)))
        if entries[0].split is not None and len(best) == 2:
            line = _line(command, str(root), best[1])
    raise DataError(
        f"{root}: its sub-folders are named as classes, splits, labels or masks: {shown}; only normal images "
        f"may be fitted on. Type: {line}; or add {every} to take all {len(entries)} images as normal"
    )


def _line(command: str, folder: str, normal: str = "") -> str:
    """Returns a command, or a call in Python, on a folder."""
    if command.endswith("("):
        return f"{command}{folder!r}{f', normal={normal!r}' if normal else ''})"
    return f"{command} {shlex.quote(folder)}{f' --normal {shlex.quote(normal)}' if normal else ''}"


def _up_to_normal(folder: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the part of a path that ends with the folder named as normal, so that all below it is taken."""
    last = max(i for i, name in enumerate(folder) if meaning(name) == "normal")
    return folder[: last + 1]


def _warn_of_classes(root: Path, classes: list[str]) -> None:
    if len(classes) > 1:
        named = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        said = (
            f"{root}: the subfolders {named} are all read as normal; if they are classes, give --normal NAME"
        )
        warnings.warn(printable(said), stacklevel=5)  # names the caller of `read`


FOLDER = "folder"  # the value of `group_by` for the innermost folder


def patients_of(source: object, names: Sequence[str], group_by: str) -> tuple[list[str], str]:
    r"""Tells the patients of images from their names.

    Args:
        source: the folder or file that they are from, for messages.
        names: N relative paths.
        group_by: "folder": the innermost folder has the patient's name; or a regular expression that is found
            in each name. The patient's name is its first group that takes part, or all that it matches.

    Returns:
        The N patients, and a line that says how many there are, with an example.

    Raises:
        DataError: a name that the expression is not found in, or that has no folder.

    Example:
        >>> patients_of("scans", ["person12_1.png", "person12_2.png", "person7.png"], r"person(\d+)")
        (['12', '12', '7'], "scans: 3 images of 2 patients (for example '12'), by --group-by")
    """
    expression = re.compile(r"([^/]+)/[^/]*\Z" if group_by == FOLDER else group_by)
    found: list[str] = []
    for name in names:
        match = expression.search(name)
        patient = match and (next(filter(None, match.groups()), "") if expression.groups else match[0])
        if not patient:
            what = "has no folder" if group_by == FOLDER else f"does not hold {group_by!r}"
            none = "" if found else "no image is told by it: the first, "
            raise DataError(f"{source}: --group-by {group_by}: {none}{name}, {what}; give one that fits all")
        found.append(patient)
    n = len(set(found))
    many = f"{len(found)} image{'s' * (len(found) != 1)} of {n} patient{'s' * (n != 1)}"
    return found, f"{source}: {many} (for example {found[0]!r}), by --group-by" if found else ""


def labels_of(entries: Sequence[Entry]) -> np.ndarray | None:
    """Returns the `(N,)` int8 labels of N entries; None where they are not known."""
    known = bool(entries) and entries[0].label is not None  # all entries have one or none has
    return np.array([e.label for e in entries], np.int8) if known else None
