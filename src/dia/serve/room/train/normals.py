"""Where the normals of a training come from: what a reader dropped, or a set below the folder `--data-root`.

A drop lies under numbers. A set is one of those that the page offers; nothing of it may lie outside the data
root, links included, and no other place can be named. Knows folders and how they are read; knows no requests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ....core.errors import DataError
from ....data.layouts import ANOMALOUS, Entry, MissingSplit, meaning

if TYPE_CHECKING:
    from ....data.readers import Listing

PHANTOM = "phantom"
NO_SET = "there is no such set to train on; choose one of the list"
OUTSIDE = "it lies, or a file of it lies, outside the folder that --data-root names"
_NUMBERED = re.compile(r"\d{5}/\d{5}\.[a-z0-9.]+")  # a file of a drop
_NO_NORMALS = ("anomalous", "mask", "label")  # what the name of a folder may mean


@dataclass(frozen=True)
class Source:
    """Normals to train on, and how they are read. Goes to the worker, and to disk, as JSON.

    Args:
        kind: `drop` or `set`.
        name: of the set; empty for a drop.
        normal: folders that hold normals, where those of a set were chosen, comma-separated.
        leave_out: numbered folders and files of a drop that are not taken.
        patients: whether each folder holds the images of one patient.
        size: (H, W) to which images are resized; None where all have one size.
        images: how many normals there are; 0 where not known yet.
    """

    kind: str
    name: str = ""
    normal: str | None = None
    leave_out: tuple[str, ...] = ()
    patients: bool = False
    size: tuple[int, int] | None = None
    images: int = 0

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Source:
        """Restores one from JSON."""
        lists = {"leave_out": tuple(kept["leave_out"]), "size": kept["size"] and tuple(kept["size"])}
        return cls(**{**kept, **lists})

    def listing(self, place: str, data_root: str | None, split: str | None, most: int) -> Listing:
        """Lists the images, without reading pixels.

        Args:
            place: the folder of a drop; of a set what `place_of` returned.
            data_root: the folder of sets.
            split: train, val or test; what has no such split is listed whole for `train`.
            most: pixels of the longer side, to which larger images are shrunk where there is no `size`.

        Raises:
            MissingSplit: there is no such split.
            DataError: it cannot be read, or a file lies outside the data root.
        """
        from ....data.datasets import open_listing
        from ....data.options import ReadOptions

        options = ReadOptions(
            normal=self.normal, group_by="folder" if self.patients else None, skip_bad=True,
            size=self.size, max_size=most or None, progress=True,
        )  # fmt: skip
        root = None if data_root is None else Path(data_root)
        if self.kind == "set" and root and os.path.isabs(place):
            refuse_links(Path(place), root)
        try:
            found = open_listing(place, split, data_root, options)
        except MissingSplit:
            if split != "train":
                raise
            found = open_listing(place, None, data_root, options)
        if self.kind == "set" and root and not all(map(within(root), found.files.values())):
            raise DataError(OUTSIDE)
        if self.leave_out:
            found = replace(found, entries=self._kept(found.entries), normals=self._kept(found.normals))
            if not found.entries:
                raise DataError("all folders are left out: choose one that holds normals")
        return found

    def _kept(self, entries: Sequence[Entry]) -> list[Entry]:
        out = {*self.leave_out}
        return [e for e in entries if e.name not in out and e.name.partition("/")[0] not in out]


def within(root: Path) -> Any:
    """Returns a function that says whether a path lies in a folder, once all links are followed."""
    real = Path(os.path.realpath(root))
    return lambda path: Path(os.path.realpath(path)).is_relative_to(real)


def refuse_links(place: Path, root: Path) -> None:
    """Refuses a place below the data root with a link that leads out of it.

    Args:
        place: a file or folder.
        root: the data root.

    Raises:
        DataError: there is one.
    """
    inside = within(root)
    if not inside(place):
        raise DataError(OUTSIDE)
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not inside(path):
                raise DataError(OUTSIDE)


def sets_in(data_root: Path | None) -> dict[str, tuple[str, str]]:
    """Returns the sets that the page offers: by name, one line for people and what a listing is opened with.

    Args:
        data_root: the folder of sets; None for none, which leaves generated images.
    """
    from ....data import datasets

    found = {PHANTOM: ("generated images, to try the page", PHANTOM)}
    if data_root is None or not data_root.is_dir():
        return found
    inside = within(data_root)
    taken = set[str]()
    for name, known in datasets.known_sets(data_root).items():
        if not known.path:
            continue
        try:
            place = datasets.find(known, data_root)
        except DataError:
            continue
        if inside(place):
            taken.add(os.path.realpath(place))
            found[name] = (known.title or "a declared set", name)
    for path in sorted(data_root.iterdir()):
        offered = path.is_dir() or path.suffix == ".npz"
        if path.name.startswith(".") or not offered or not inside(path) or path.name in found:
            continue
        if os.path.realpath(path) not in taken:
            found[path.name] = ("a folder" if path.is_dir() else "a file of images", str(path))
    return found


def place_of(name: str, data_root: Path | None) -> str:
    """Returns what a listing of a set is opened with.

    Args:
        name: of the set; one of those that are offered.
        data_root: the folder of sets.

    Raises:
        DataError: it is none of those.
    """
    offered = sets_in(data_root)
    if name not in offered:
        raise DataError(NO_SET)
    return offered[name][1]


def folders_of(names: Mapping[str, str]) -> dict[str, str]:
    """Returns the folders of a drop by number, as their owner calls them.

    Args:
        names: of the files, as of `Drop`.
    """
    found: dict[str, str] = {}
    for own, client in names.items():
        parent = str(PurePosixPath(client).parent)
        found.setdefault(own.partition("/")[0], "" if parent == "." else parent)
    return found


def told_apart(names: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the folders and files of a drop that their names tell to be no normals.

    Args:
        names: of the files, as of `Drop`.

    Returns:
        Numbers, for `Source.leave_out`; no folders where that would leave none.
    """
    folders = folders_of(names)
    bad = {own for own, client in folders.items() if _tells(client)}
    stems = {str(PurePosixPath(client).with_suffix("")) for client in names.values()}
    masks = {
        own
        for own, client in names.items()
        if (stem := str(PurePosixPath(client).with_suffix(""))).endswith("_mask") and stem[:-5] in stems
    }
    return tuple(sorted((bad if len(bad) < len(folders) else set()) | masks))


def _tells(folder: str) -> bool:
    """Returns whether a folder's name says that it holds no normals; the innermost name that tells counts."""
    told = [m for part in reversed(PurePosixPath(folder).parts) if (m := meaning(part)) and m != "split"]
    return bool(told) and told[0] in _NO_NORMALS


def is_anomalous(entry: Entry) -> bool:
    """Returns whether an image is labelled anomalous."""
    return entry.label == ANOMALOUS


def own_names(value: Any, names: Mapping[str, str]) -> Any:
    """Puts a reader's own names in the place of a drop's numbers, in all texts of a result.

    Args:
        value: JSON.
        names: of the files, as of `Drop`.
    """
    if not names or not value:
        return value
    if isinstance(value, dict):
        return {k: own_names(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [own_names(v, names) for v in value]
    if not isinstance(value, str):
        return value
    file, mark, number = value.partition("#")
    if file in names:
        return names[file] + mark + number
    return _NUMBERED.sub(lambda m: names.get(m[0], m[0]), value)


def folders_told(source: Source, names: Mapping[str, str], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the folders to choose from, each with `id`, `name`, `images`, `chosen` and what its name means.

    Args:
        source: as it was checked.
        names: of a drop's files; none for a set.
        found: of `checking.look`.
    """
    if source.kind == "set":
        chosen = source.normal.split(",") if source.normal else None
        return [{"id": name, "name": name, "images": n, "chosen": chosen is None or name in chosen,
                 "meaning": told} for name, n, told in found["folders"]]  # fmt: skip
    counted = dict.fromkeys(folders := folders_of(names), 0)
    for own in names:
        counted[own.partition("/")[0]] += 1
    return [{"id": own, "name": folders[own] or "(loose files)", "images": n,
             "chosen": own not in source.leave_out, "meaning": "anomalous" if _tells(folders[own]) else ""}
            for own, n in sorted(counted.items(), key=lambda one: folders[one[0]])]  # fmt: skip
