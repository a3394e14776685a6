"""Data sets as declarations, ours and a user's own, and reading them by name.

Knows names, normal classes, licences and where to get the files; leaves pixels and layouts to `readers`.
Nothing is downloaded: a set that is absent says where to get it and where to put it.

A user's own data set is the same declaration as a YAML file: see `declared`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.settings import from_dict
from ..core.yamlfile import read_yaml
from . import quality, readers
from .imageset import ImageSet
from .layouts import SUFFIXES, Entry
from .npz import joined
from .options import ReadOptions
from .volumes import of_split, with_fixed_split

DECLARATION = (".yaml", ".yml")  # suffixes of a user's own declaration


@dataclass(frozen=True)
class DataSet:
    """What is known about one data set before any file of it is read.

    All fields but `name` may stand in a user's YAML file, where `path` alone must.

    Args:
        name: what the user types.
        path: its folder, `.npz` or `.csv`. Of a known set it lies under the data root, where `NAME/`,
            `NAME.npz` and the file's name as a folder are accepted as well.
        normal: comma-separated class folders, or label values, that are normal.
        title: one line for people.
        split: where the division into train and test comes from.
        licence: terms of the images.
        obtain: where to get them.
        citation: whom to cite.
        normal_label: the label value that is normal where the set is an `.npz`; as `normal` if empty.
        anomalous: comma-separated class folders that are anomalous; all that are not normal if empty.
        train_normals: share or number of normals that train where the folder has no split of its own.
        split_folders: what its folders "train", "val" and "test" are called, where not so.
        masks: the folder of its masks, where not "ground_truth".
        size: (H, W), or n for n × n, that its images are read at, where they differ in size.
        pool: the split of the .npz ("test", or "all") that is divided anew by the rule of such a folder,
            where its own train holds no normals; empty where the file's splits stand.
        channels: 1 where colour files hold grey images; as they are where None.
        proxy: a stand-in whose numbers must not be compared with the paper's.
        note: sizes, and what to beware of.
    """

    name: str
    path: str = ""
    normal: str = ""
    title: str = ""
    split: str = ""
    licence: str = ""
    obtain: str = ""
    citation: str = ""
    normal_label: str = ""
    anomalous: str = ""
    train_normals: int | float = 0.8
    split_folders: Mapping[str, str] | None = None
    masks: str | None = None
    size: int | tuple[int, int] | None = None
    pool: str = ""
    channels: int | None = None
    proxy: bool = False
    note: str = ""

    def options(self, path: Path, options: ReadOptions) -> ReadOptions:
        """`options`, filled up with what is declared: what was given goes before it.

        Args:
            path: where the set lies; a folder's classes may have other names than an `.npz`'s labels.
            options: as they were given.

        Returns:
            The options to read the set with.
        """
        in_folder = path.is_dir()
        return options.or_else(
            normal=(self.normal if in_folder else self.normal_label or self.normal) or None,
            anomalous=(in_folder and self.anomalous) or None,
            train_normals=self.train_normals,
            split_folders=self.split_folders,
            masks=self.masks,
            size=self.size,
            channels=self.channels,
        )


def _declaration(name: str, values: Any, where: str) -> DataSet:
    """The data set of one YAML mapping; `where` names the file in messages."""
    keys = [f.name for f in fields(DataSet) if f.name != "name"]
    if unknown := [str(key) for key in values if key not in keys]:
        raise DataError(f"{where}: no key {unknown[0]!r}; there are: {', '.join(keys)}")
    values = dict(values)
    for key in {"normal", "anomalous", "normal_label"} & set(values):
        classes = values[key] if isinstance(values[key], list) else [values[key]]
        for c in classes:
            if isinstance(c, bool) or not isinstance(c, str | int):  # YAML reads `no` and `off` as false
                raise DataError(f"{where}: {key}: {c!r} is not the name of a class; put it in quotes")
        values[key] = ",".join(map(str, classes))
    try:
        known: DataSet = from_dict(DataSet, {**values, "name": name})
        known.options(Path(known.path), ReadOptions())
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return known


_FILE = Path(__file__).with_name("datasets.yaml")
CATALOG = {name: _declaration(name, values, _FILE.name) for name, values in read_yaml(_FILE).items()}


def declared(file: str | os.PathLike[str]) -> DataSet:
    """A user's own data set, as a YAML file declares it; the file's name without suffix is the set's name.

    Args:
        file: the YAML file. Its keys are the fields of `DataSet` but for `name`; a list stands for
            comma-separated words, and a relative `path` starts in the file's folder.

    Returns:
        The declaration, whose `path` is absolute.

    Raises:
        DataError: no such file, no mapping, a key or value that is not known, or the name of a known set.
    """
    file = Path(file)
    values = read_yaml(file)
    if not isinstance(values, dict) or not values.get("path"):
        raise DataError(f"{file}: a data set needs a path: the folder, .npz or .csv of its images")
    if file.stem in CATALOG:
        raise DataError(f"{file}: {file.stem} is a known data set already; rename the file")
    known = _declaration(file.stem, values, str(file))
    return replace(known, path=str(Path(file.absolute().parent, known.path)))


def known_set(name: str, data_root: str | os.PathLike[str] | None = None) -> DataSet:
    """Finds the declaration of a data set.

    Args:
        name: a name in `CATALOG`, that of a file `NAME.yaml` in the data root, or the path of such a file.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.

    Returns:
        What is known of the set.

    Raises:
        DataError: there is no such set; the message lists the known names and the nearest.
    """
    if name in CATALOG:
        return CATALOG[name]
    if Path(name).suffix.lower() in DECLARATION:
        return declared(name)
    own = _own_files(data_root)
    if name in own:
        return declared(own[name])
    names = [*CATALOG, *own]
    near = difflib.get_close_matches(name.lower(), names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"{name}: no such path or data set{hint} (known: {', '.join(names)})")


def _own_files(data_root: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The user's own declarations in the data root, by name."""
    root = _root(data_root)
    files = sorted(Path(root).glob("*.y*ml")) if root else []
    return {f.stem: f for f in files if f.suffix in DECLARATION and f.stem not in CATALOG}


def _root(data_root: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    return os.environ.get("DIA_DATA") if data_root is None else data_root


def known_sets(data_root: str | os.PathLike[str] | None = None) -> dict[str, DataSet]:
    """Returns all declarations by name: the catalogue's, and those in the data root that can be read."""
    known = dict(CATALOG)
    for name, file in _own_files(data_root).items():
        with suppress(DataError):  # a YAML file of another purpose
            known[name] = declared(file)
    return known


def name_of(spec: str) -> str:
    """Returns the name that ledgers and tables show: the stem of a YAML file, otherwise `spec` itself."""
    return Path(spec).stem if Path(spec).suffix.lower() in DECLARATION else spec


def find(known: DataSet, data_root: str | os.PathLike[str] | None = None) -> Path:
    """Finds the file or folder of a data set.

    Args:
        known: its declaration.
        data_root: the folder that holds the known data sets, by default `$DIA_DATA`.

    Returns:
        Its path, which exists.

    Raises:
        DataError: no such file; the message says where to get it and where to put it.
    """
    if os.path.isabs(known.path):  # a user's own
        if not os.path.exists(known.path):
            raise DataError(f"{known.name}: no such file or folder: {known.path}")
        return Path(known.path)
    root, name = _root(data_root), known.name
    if not root:
        raise DataError(f"{name}: no data root; give --data-root or set DIA_DATA to the folder that holds it")
    # the stem: both directions of a set may lie in one folder
    places = dict.fromkeys((known.path, name, f"{name}.npz", Path(known.path).stem))
    for place in places:
        if os.path.exists(path := Path(root, place)):
            return path
    where = " or ".join(places)
    raise DataError(f"{name}: not found in {root}; get it from {known.obtain} and put it there as {where}")


def load(
    name: str,
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> ImageSet:
    """Reads one split of a data set that has a declaration.

    Args:
        name: as for `known_set`.
        split: "train", "val", "test"; None or "all" for everything. Labels come with every split, so
            training takes `.normals()`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it; what is given here goes before what is declared.
        changes: options by name, in place of those in `options`.

    Returns:
        The images with labels, and masks where the set has them.

    Raises:
        MissingSplit: the set has no such split.
        DataError: an unknown name, no such file, or a file that cannot be used.
    """
    return _listing(known_set(name, data_root), split, data_root, ReadOptions.of(options, **changes)).read()


def load_training(
    name: str,
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    *,
    contamination: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> ImageSet:
    """Reads the training normals of a data set, with a share of unmarked anomalies on request.

    Those come from the training split, or from `val` where the training split has none; never from `test`.

    Args:
        name: as for `known_set`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.
        contamination: share of anomalies among the images, in [0, 1).
        seed: decides which anomalies.
        changes: options by name, in place of those in `options`.

    Returns:
        The normals, followed by the anomalies, which are labelled normal.

    Raises:
        DataError: as `load`, and where neither split has enough anomalies.
    """
    options = ReadOptions.of(options, **changes)
    train = load(name, "train", data_root, options)
    if not contamination:
        return train.normals()
    anomalies = train.anomalies()
    if not len(anomalies):
        with suppress(readers.MissingSplit):
            anomalies = load(name, "val", data_root, options).anomalies()
    try:
        return train.normals().contaminated(anomalies, contamination, seed)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def open_data(
    spec: str | os.PathLike[str],
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> ImageSet:
    """Reads what a user means by a data argument: a path if it exists, else the name of a data set.

    Args:
        spec: a path as for `readers.read`, a YAML file as for `declared`, or a name as for `known_set`.
        split: "train", "val", "test"; None or "all" for everything.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.
        changes: options by name, in place of those in `options`.

    Returns:
        The images.

    Raises:
        MissingSplit: there is no such split.
        DataError: neither a path nor a name, or images that cannot be used.
    """
    return open_listing(spec, split, data_root, options, **changes).read()


def open_listing(
    spec: str | os.PathLike[str],
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> readers.Listing:
    """As `open_data`, before any pixel is read (but the phantoms are drawn, and an `.npz` is read whole).

    Args:
        spec: what to read, as for `open_data`.
        split: "train", "val", "test"; None or "all" for everything.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.
        changes: options by name, in place of those in `options`.

    Returns:
        The listing, whose `read` and `stream` decode the images.

    Raises:
        MissingSplit: there is no such split.
        DataError: neither a path nor a name, or a layout that cannot be used.
    """
    spec, options = os.fspath(spec), ReadOptions.of(options, **changes)
    suffix = Path(spec).suffix.lower()
    if suffix not in DECLARATION and os.path.exists(spec):
        return _listing(Path(spec), split, data_root, options)
    if suffix not in DECLARATION and (
        os.path.basename(spec) != spec or suffix in (".npz", ".csv", ".gz", *SUFFIXES)
    ):
        raise DataError(f"{spec}: no such file or folder")
    return _listing(known_set(spec, data_root), split, data_root, options)


def open_splits(
    spec: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> dict[str, ImageSet]:
    """All splits of what `open_data` understands, by name; `all` alone where it has none.

    Args:
        spec: what to read, as for `open_data`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.
        changes: options by name, in place of those in `options`.

    Returns:
        The images by split, in the order "train", "val", "test".

    Raises:
        DataError: as `open_data`.
    """
    sets: dict[str, ImageSet] = {}
    for split in readers.SPLITS:
        with suppress(readers.MissingSplit):
            sets[split] = open_data(spec, split, data_root, options, **changes)
    if len(sets) > 1 and len({tuple(images.names) for images in sets.values()}) == 1:
        return {"all": sets["train"]}  # without splits all images belong to each: no leak
    return sets


def check(
    spec: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Counts and findings over all splits of what `open_data` understands.

    Args:
        spec: what to read, as for `open_data`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.
        changes: options by name, in place of those in `options`.

    Returns:
        The result of `quality.check`.

    Raises:
        DataError: as `open_data`.
    """
    return quality.check(open_splits(spec, data_root, options, **changes))


def _listing(
    source: DataSet | Path, split: str | None, data_root: str | os.PathLike[str] | None, options: ReadOptions
) -> readers.Listing:
    """Lists one split of a declared set, or of a path."""
    if isinstance(source, Path):
        return readers.listing(source, options, split)
    if not source.path:
        return _phantoms(split, options)
    path = find(source, data_root)
    options, pool = source.options(path, options), "" if path.is_dir() else source.pool
    found = readers.listing(path, options, pool or split)
    if not pool or found.whole is None:
        return found
    if found.labels is None:
        raise DataError(f"{path}: it has no labels, by which its images would be divided")
    # the rule of a folder, for a split that the .npz does not have
    entries = [Entry(path, "plain", n, int(y)) for n, y in zip(found.names, found.labels, strict=True)]
    kept = {e.name for e in of_split(path, with_fixed_split(entries, options.train_normals), split)}
    return replace(found, whole=found.whole.subset(np.array([n in kept for n in found.names])))


def _phantoms(split: str | None, options: ReadOptions) -> readers.Listing:
    """Draws the generated set; of the options, size and channels matter."""
    from . import phantoms

    if split not in (*phantoms.SPLITS, "all", None):
        raise readers.MissingSplit(f"phantom: no split {split!r}; there are: {', '.join(phantoms.SPLITS)}")
    wanted = [split] if split in phantoms.SPLITS else list(phantoms.SPLITS)
    # drawn at that size, not resized to it
    drawn: dict[str, Any] = {"size": options.size} if isinstance(options.size, int) else {}
    images = joined("phantom", [phantoms.load(str(s), **drawn) for s in wanted])
    return readers.Listing(options, whole=images)
