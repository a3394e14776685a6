"""Data sets as declarations, those of `datasets.yaml` and a user's own, and reading them by name.

Knows names, normal classes, licences and where to get the files; leaves pixels and layouts to `readers`.
Nothing is downloaded: the error of an absent set says where to get it and where to put it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.settings import from_dict
from ..core.yamlfile import read_yaml
from . import readers
from .formats.spreadsheet import SHEETS
from .imageset import ImageSet, codes_of
from .layouts import SUFFIXES, Entry, patients_of
from .levels import survey
from .npz import joined
from .options import ReadOptions
from .volumes import of_split, with_fixed_split

DECLARATION = (".yaml", ".yml")  # suffixes of a user's own declaration
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class DataSet:
    """The facts about one data set that are known before any of its files is read.

    All fields but `name` may stand in a user's YAML file, where `path` alone must.

    Args:
        name: as the user types it.
        path: its folder, `.npz` or manifest; a known set's lies under the data root; empty if it is
            generated.
        normal: comma-separated class folders, or label values, that are normal.
        title: one line for people.
        split: where the division into train and test comes from.
        licence: terms of the images.
        obtain: where to get them.
        citation: whom to cite.
        normal_label: the label value that is normal where the set is an `.npz`; as `normal` if empty.
        anomalous: comma-separated class folders that are anomalous; all that are not normal if empty.
        train_normals: share or number of normals that train where the folder has no split of its own. Where a
            user's own set leaves it out, only `dia fit` divides the folder, by the usual share.
        split_folders: the names of its folders for "train", "val" and "test", where they differ.
        masks: the folder of its masks, where not "ground_truth".
        group_by: how the names of its images tell the patient: "folder", or a regular expression.
        interval_by: a regular expression for what images of one name have in common (a patient, a frame), as
            for `group_by`, but for intervals and tests alone: no split, fit or score knows of it.
        size: (H, W), or n for n × n, to which its images are resized, where they differ in size. A known
            set's is for its folder, not for its .npz, and a smaller `max_size` goes before it.
        pool: the split of the .npz ("test", or "all") that is divided anew by the rule of such a folder,
            where its own train holds no normals; empty where the file's splits stand.
        channels: 1 where colour files hold grey images; as they are where None.
        origin: what sets of the same source have in common; where methods are compared over data sets, they
            count as one. The set itself where empty.
        proxy: a substitute whose numbers must not be compared with the paper's.
        note: sizes and cautions.
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
    train_normals: int | float | None = None
    split_folders: Mapping[str, str] | None = None
    masks: str | None = None
    group_by: str | None = None
    interval_by: str | None = None
    size: int | tuple[int, int] | None = None
    pool: str = ""
    channels: int | None = None
    origin: str = ""
    proxy: bool = False
    note: str = ""

    def options(self, path: Path, options: ReadOptions) -> ReadOptions:
        """Fills up options with the declared ones; options that were given take precedence.

        Args:
            path: where the set lies; a folder's classes may have other names than an `.npz`'s labels.
            options: as they were given.

        Returns:
            The options to read the set with.
        """
        in_folder, size = path.is_dir(), self.size
        if isinstance(size, int) and not os.path.isabs(self.path):  # a known set, no user's own
            size = min(size, options.max_size or size) if in_folder else None
        named = ("train_normals", "split_folders", "masks", "group_by", "channels")
        divide = options.divide or self.name in CATALOG or self.train_normals is not None
        return replace(options, divide=divide).or_else(
            normal=(self.normal if in_folder else self.normal_label or self.normal) or None,
            anomalous=(in_folder and self.anomalous) or None, size=size,
            **{name: getattr(self, name) for name in named},
        )  # fmt: skip


def _declaration(name: str, values: Any, where: str) -> DataSet:
    """Checks one YAML mapping and makes its data set; `where` names the file in messages."""
    keys = [f.name for f in fields(DataSet) if f.name != "name"]
    if unknown := [str(key) for key in values if key not in keys]:
        raise DataError(f"{where}: no key {unknown[0]!r}; there are: {', '.join(keys)}")
    values = {**values, "name": name}
    for key in {"normal", "anomalous", "normal_label"} & set(values):
        classes = values[key] if isinstance(values[key], list) else [values[key]]
        for c in classes:
            if isinstance(c, bool) or not isinstance(c, str | int):  # YAML reads `no` and `off` as false
                raise DataError(f"{where}: {key}: {c!r} is not the name of a class; put it in quotes")
        values[key] = ",".join(map(str, classes))
    try:
        known: DataSet = from_dict(DataSet, values)
        known.options(Path(known.path), ReadOptions(size=known.size))
        re.compile(known.interval_by or "")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except re.error as error:
        raise DataError(
            f"{where}: interval_by: {known.interval_by}: no regular expression ({error})"
        ) from error
    return known


_FILE = Path(__file__).with_name("datasets.yaml")
CATALOG = {name: _declaration(name, values, _FILE.name) for name, values in read_yaml(_FILE).items()}


def declared(file: PathLike) -> DataSet:
    """Reads a user's own declaration; the file's name without suffix is the set's name.

    Args:
        file: the YAML file. Its keys are the fields of `DataSet` but for `name`; a list stands for
            comma-separated words, and a relative `path` starts in the file's folder.

    Returns:
        The declaration; its `path` is absolute.

    Raises:
        DataError: no such file, no mapping, a key or value that is not known, or the name of a known set.
    """
    file = Path(file)
    values = read_yaml(file)
    if not isinstance(values, dict) or not values.get("path"):
        raise DataError(f"{file}: a data set needs a path: the folder, .npz or manifest of its images")
    if file.stem in CATALOG:
        raise DataError(f"{file}: {file.stem} is a known data set already; rename the file")
    known = _declaration(file.stem, values, str(file))
    return replace(known, path=str(Path(file.absolute().parent, known.path)))


def known_set(name: str, data_root: PathLike | None = None) -> DataSet:
    """Finds the declaration of a data set.

    Args:
        name: a name in `CATALOG`, that of a file `NAME.yaml` in the data root, the path of such a file, or
            that of a folder, .npz or manifest of a user's own.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.

    Returns:
        What is known of the set.

    Raises:
        DataError: there is no such set; the message lists the known names and the nearest. Or a path of the
            user's own has the name of a known set.
    """
    if name in CATALOG:
        return CATALOG[name]
    if Path(name).suffix.lower() in DECLARATION:
        return declared(name)
    if name in (own := _own_files(data_root)):
        return declared(own[name])
    names = [*CATALOG, *own]
    if os.path.exists(name):
        if name_of(name) in names:
            raise DataError(f"{name}: {name_of(name)} is a known data set already; rename yours")
        return DataSet(name_of(name), path=os.path.abspath(name))
    near = difflib.get_close_matches(name.lower(), names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"{name}: no such path or data set{hint} (known: {', '.join(names)})")


def _own_files(data_root: PathLike | None) -> dict[str, Path]:
    """The user's own declarations in the data root, by name."""
    root = data_root or os.environ.get("DIA_DATA")
    files = sorted(Path(root).glob("*.y*ml")) if root else []
    return {f.stem: f for f in files if f.suffix in DECLARATION and f.stem not in CATALOG}


def known_sets(data_root: PathLike | None = None) -> dict[str, DataSet]:
    """Returns all declarations by name: the catalogue's, and those in the data root that can be read."""
    known = dict(CATALOG)
    for name, file in _own_files(data_root).items():
        with suppress(DataError):  # a YAML file of another purpose
            known[name] = declared(file)
    return known


def interval_units(
    dataset: str, names: Sequence[str], data_root: PathLike | None = None
) -> np.ndarray | None:
    """Tells which images count as one where intervals and tests are made, by `DataSet.interval_by`.

    Args:
        dataset: as for `known_set`.
        names: of N images.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`; known sets do not need it.

    Returns:
        `(N,)` whole numbers, equal for images of one unit; None where the set is not known, or does not say.

    Raises:
        DataError: a name in which the expression is not found.

    Example:
        >>> interval_units("kvasirseg_patches", ["a.jpg:35:311:212", "b.jpg:0:0:64", "a.jpg:0:0:64"]).tolist()
        [0, 1, 0]
        >>> interval_units("breastmnist", ["0", "1"]) is None
        True
    """
    try:
        known = known_set(dataset, data_root)
    except DataError:
        return None
    if not known.interval_by:
        return None
    try:
        units, _ = patients_of(dataset, names, known.interval_by)
    except DataError as error:
        raise DataError(f"{error}".replace("--group-by", "interval_by")) from error
    return codes_of(units, len(names))


def units_for(
    dataset: str, data_root: PathLike | None = None, labels: np.ndarray | None = None
) -> np.ndarray | None:
    """Tells which test images of a data set count as one where intervals are made, for scores kept without.

    Args:
        dataset: the name of a data set.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        labels: `(N,)`, kept with the scores.

    Returns:
        `(N,)` as of `interval_units`; None also where the set is not there, or its labels are others.
    """
    known = known_sets(data_root).get(dataset)
    if known is None or not known.interval_by:
        return None
    try:
        found = open_listing(dataset, "test", data_root)
    except DataError:  # it is not there
        return None
    if labels is not None and (found.labels is None or not np.array_equal(labels, found.labels)):
        return None
    return interval_units(dataset, found.names, data_root)


def is_path(spec: str, data_root: PathLike | None = None) -> bool:
    """Returns whether `known_set` takes a text as the path of images, as it is no set's name.

    Args:
        spec: as for `known_set`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
    """
    named = spec in CATALOG or Path(spec).suffix.lower() in DECLARATION or spec in _own_files(data_root)
    return not named and os.path.exists(spec)


def name_of(spec: str) -> str:
    """Returns the name of ledgers and tables: of a path its last part, without .yaml, .npz or the like.

    Example:
        >>> [name_of(spec) for spec in ("breastmnist", "sets/mine.yaml", "../scans/labelled/", "a.b/x.npz")]
        ['breastmnist', 'mine', 'labelled', 'x']
    """
    name = Path(os.path.abspath(spec)).name if os.path.basename(spec) != spec or spec in (".", "..") else spec
    return Path(name).stem if Path(name).suffix.lower() in (*DECLARATION, ".npz", *SHEETS) else name


def find(known: DataSet, data_root: PathLike | None = None) -> Path:
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
        if os.path.exists(known.path):
            return Path(known.path)
        raise DataError(f"{known.name}: no such file or folder: {known.path}")
    root, name = data_root or os.environ.get("DIA_DATA"), known.name
    if not root:
        raise DataError(f"{name}: no data root; give --data-root or set DIA_DATA to the folder that holds it")
    places = dict.fromkeys((known.path, name, f"{name}.npz", Path(known.path).stem))
    if found := next((path for place in places if (path := Path(root, place)).exists()), None):
        return found
    where = " or ".join(places)
    raise DataError(f"{name}: not found in {root}; get it from {known.obtain} and put it there as {where}")


def load(
    name: str,
    split: str | None = None,
    data_root: PathLike | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> ImageSet:
    """Reads one split of a data set that has a declaration.

    Args:
        name: as for `known_set`.
        split: "train", "val", "test", each with its labels; None or "all" for everything.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it; these take precedence over the declared ones.
        changes: options by name, in place of those in `options`.

    Returns:
        The images, with masks where the set has them.

    Raises:
        MissingSplit: the set has no such split.
        DataError: an unknown name, no such file, or a file that cannot be used.
    """
    return _listing(known_set(name, data_root), split, data_root, ReadOptions.of(options, **changes)).read()


def load_training(
    name: str,
    data_root: PathLike | None = None,
    options: ReadOptions | None = None,
    *,
    contamination: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> ImageSet:
    """Reads the training normals of a data set, with a share of unmarked anomalies on request.

    The anomalies come from the training split, or from `val` where that has none; never from `test`.

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
    spec: PathLike,
    split: str | None = None,
    data_root: PathLike | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> ImageSet:
    """Reads a path if it exists, otherwise the data set of that name.

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
    spec: PathLike,
    split: str | None = None,
    data_root: PathLike | None = None,
    options: ReadOptions | None = None,
    **changes: Any,
) -> readers.Listing:
    """Lists what `open_data` reads, before any pixel is read (an `.npz` is read whole, phantoms are drawn).

    Args:
        spec: as for `open_data`.
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
    if suffix not in DECLARATION:
        if os.path.exists(spec):
            return _listing(Path(spec), split, data_root, options)
        if os.path.basename(spec) != spec or suffix in (".npz", ".gz", *SHEETS, *SUFFIXES):
            raise DataError(f"{spec}: no such file or folder")
    return _listing(known_set(spec, data_root), split, data_root, options)


def open_splits(
    spec: PathLike, data_root: PathLike | None = None, options: ReadOptions | None = None
) -> dict[str, ImageSet]:
    """Reads all splits, for `evaluate.quality.check`.

    Args:
        spec: as for `open_data`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.

    Returns:
        The images by split, in the order "train", "val", "test"; `all` alone where there are no splits.

    Raises:
        DataError: as `open_data`.
    """
    sets: dict[str, ImageSet] = {}
    for split in readers.SPLITS:
        with suppress(readers.MissingSplit):
            sets[split] = open_data(spec, split, data_root, options)
    if len(sets) > 1 and len({tuple(images.names) for images in sets.values()}) == 1:
        return {"all": sets["train"]}  # without splits all images belong to each: no leak
    return sets


def grey_levels(
    spec: PathLike, data_root: PathLike | None = None, options: ReadOptions | None = None
) -> dict[str, Any]:
    """Tells what values the files of the (training) normals store, and which of them are black and white.

    Args:
        spec: as for `open_data`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        options: how to read it.

    Returns:
        The facts of `levels.Survey`, ready for JSON, of at most 64 images; of an `.npz` `black_and_white`
        alone.
    """
    try:
        found = open_listing(spec, "train", data_root, options)
    except readers.MissingSplit:
        found = open_listing(spec, None, data_root, options)
    if found.whole is not None:
        return {"black_and_white": found.options.levels}
    return survey(found.normals or found.entries, found.options.view).facts()


def _listing(
    source: DataSet | Path, split: str | None, data_root: PathLike | None, options: ReadOptions
) -> readers.Listing:
    """Lists one split of a declared set, or of a path."""
    if isinstance(source, Path):
        return readers.listing(source, options, split)
    if not source.path:
        return _phantoms(split, options.or_else(size=source.size))
    path = find(source, data_root)
    options, pool = source.options(path, options), "" if path.is_dir() else source.pool
    found = readers.listing(path, options, pool or split)
    if not pool or found.whole is None:
        return found
    if found.labels is None:
        raise DataError(f"{path}: it has no labels, by which its images would be divided")
    # the rule for class folders, because the .npz has no such split
    patients = found.whole.patients or (None,) * len(found)
    facts = zip(found.names, found.labels, patients, strict=True)
    entries = [Entry(path, "plain", n, int(y), patient=p) for n, y, p in facts]
    kept = {e.name for e in of_split(path, with_fixed_split(entries, options.train_normals), split)}
    return replace(found, whole=found.whole.subset(np.array([n in kept for n in found.names])))


def _phantoms(split: str | None, options: ReadOptions) -> readers.Listing:
    """Draws the generated set; of the options, size and channels matter."""
    from . import phantoms

    if split not in (*phantoms.SPLITS, "all", None):
        raise readers.MissingSplit(f"phantom: no split {split!r}; there are: {', '.join(phantoms.SPLITS)}")
    drawn: dict[str, Any] = {"size": options.size} if isinstance(options.size, int) else {}  # not resized
    images = [phantoms.load(s, **drawn) for s in phantoms.SPLITS if split in (s, "all", None)]
    return readers.Listing(options, whole=joined("phantom", images))
