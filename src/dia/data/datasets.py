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
from .formats.limits import SUFFIXES, suffix_of
from .imageset import ImageSet
from .layouts import Entry, of_split, with_fixed_split
from .npz import joined
from .options import ReadOptions

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


_MEDMNIST = "https://medmnist.com (Zenodo record 10519652)"
_MEDMNIST_V2 = "Yang et al., MedMNIST v2, Scientific Data 10:41, 2023"
_HASHED = "80 % of the normals, by sha256 of class/file, train; the rest and all anomalies test"
_OWN = "made here, not the authors' (theirs is unpublished): "
_PROXY = "proxy, not the paper's protocol"

_PNEUMONIA = DataSet(
    name="pneumoniamnist",
    title="PneumoniaMNIST: paediatric chest X-ray",
    normal="0",
    split="official: 4708 train (1214 normal), 524 val (135), 624 test (234)",
    licence="CC BY 4.0",
    obtain=_MEDMNIST,
    citation=f"Kermany et al., Cell 172(5), 2018; {_MEDMNIST_V2}",
    path="pneumoniamnist.npz",
    note="28x28 grey; train and val share 8 images",
)
_BREAST = DataSet(
    name="breastmnist",
    title="BreastMNIST: breast ultrasound, malignant against normal or benign",
    normal="1",
    split="official: 546 train (399 normal), 78 val (57), 156 test (114)",
    licence="CC BY 4.0",
    obtain=_MEDMNIST,
    citation=f"Al-Dhabyani et al., Data in Brief 28, 2020; {_MEDMNIST_V2}",
    path="breastmnist.npz",
    note="28x28 grey; a test set this small gives AUROC to about 0.08; one train image recurs in test",
)
_BREAST_0 = DataSet(
    name="breastmnist-0",
    title="BreastMNIST the other way round: malignant taken as normal, as the paper's published command",
    normal="0",
    split="official: 546 train (147 of label 0), 78 val (21), 156 test (42)",
    licence=_BREAST.licence,
    obtain=_BREAST.obtain,
    citation=_BREAST.citation,
    path=_BREAST.path,
    note="28x28 grey; label 0 is malignant: only to reproduce that command",
)
_SARS = DataSet(
    channels=1,
    name="sarscov2ct",
    title="SARS-CoV-2 CT: slices with and without COVID-19",
    normal="non-COVID",
    split=f"{_OWN}{_HASHED}",
    licence="CC BY-NC-SA 4.0 (to be verified at the source)",
    obtain="https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset (folders COVID, non-COVID)",
    citation="Soares et al., medRxiv 2020.04.24.20078584, 2020",
    path="sarscov2ct.npz",
    normal_label="0",
    anomalous="COVID",
    note="the .npz: 983 train, 1048 test, 64x64 RGB; patients are on both sides, which lifts AUROC",
)
_SARS_128 = DataSet(
    channels=1,
    name="sarscov2ct-128",
    title="SARS-CoV-2 CT at 128 pixels",
    normal=_SARS.normal,
    split=_SARS.split,
    licence=_SARS.licence,
    obtain=_SARS.obtain,
    citation=_SARS.citation,
    path="sarscov2ct_128.npz",
    normal_label=_SARS.normal_label,
    anomalous=_SARS.anomalous,
    note="the same images as sarscov2ct, 128x128 grey; patients are on both sides, which lifts AUROC",
)
_SARS_COVID = replace(
    _SARS,
    name="sarscov2ct-covid",
    title="SARS-CoV-2 CT the other way round: COVID taken as normal",
    normal="COVID",
    normal_label="1",
    anomalous="non-COVID",
    pool="test",  # all its COVID; the non-COVID of train stay out, so that both directions test on one set
    note="the .npz: its test images alone, 700 train, 348 test (176 normal), 64x64 RGB; patients are on both "
    "sides, which lifts AUROC; only to ask which direction a published number has",
)
_SARS_COVID_128 = replace(
    _SARS_COVID,
    name="sarscov2ct-covid-128",
    title="SARS-CoV-2 CT the other way round, at 128 pixels",
    path=_SARS_128.path,
    note="the same images and split as sarscov2ct-covid, 128x128 grey; patients are on both sides",
)
_KVASIR = DataSet(
    name="kvasir",
    title="Kvasir: endoscopy, polyps against three normal landmarks",
    normal="normal-cecum,normal-pylorus,normal-z-line",
    split=f"{_OWN}{_HASHED}",
    licence="research and educational use",
    obtain="https://datasets.simula.no/kvasir/ (one folder per class)",
    citation="Pogorelov et al., KVASIR, ACM Multimedia Systems, 2017",
    normal_label="0",
    anomalous="polyps",
    note="the files differ in size: give --size; classes other than these four are left out",
)
_OCT = DataSet(
    name="oct2017",
    title="OCT2017: retinal OCT; CNV, DME and drusen against normal",
    normal="NORMAL",
    normal_label="0",
    split="official folders train/ and test/: 26315 train normals, 250 test images per class",
    licence="CC BY 4.0",
    obtain="https://data.mendeley.com/datasets/rscbjbr9sj (OCT2017: train/ and test/)",
    citation="Kermany et al., Cell 172(5), 2018",
    note="the files differ in size: give --size",
)
_APTOS = DataSet(
    name="aptos2019",
    title="APTOS 2019: fundus photographs, diabetic retinopathy grades 1-4 against grade 0",
    normal="0",
    split="in the manner of a public one: 1000 normals, by sha256 of class/file, train; all others test",
    licence="rules of the competition",
    obtain="https://www.kaggle.com/c/aptos2019-blindness-detection (sort train_images into folders 0 to 4)",
    citation="APTOS 2019 Blindness Detection, Asia Pacific Tele-Ophthalmology Society, 2019",
    anomalous="1,2,3,4",
    train_normals=1000,
    note="the files differ in size: give --size",
)
_POLYP_PATCHES = DataSet(
    name="kvasirseg_patches",
    title="Windows of Kvasir-SEG frames, with and without polyp",
    normal="0",
    split="by source frame: 592 train, 520 test (236 anomalous, with masks)",
    licence="research and educational use",
    obtain="https://datasets.simula.no/kvasir-seg/ (the frames from which the windows were cut)",
    citation="Jha et al., Kvasir-SEG, MultiMedia Modeling, 2020",
    path="kvasirseg_patches.npz",
    proxy=True,
    note=f"{_PROXY}; 64x64 RGB",
)
_POLYP_PATCHES_128 = DataSet(
    name="kvasirseg_patches-128",
    title="Windows of Kvasir-SEG frames at 128 pixels",
    normal=_POLYP_PATCHES.normal,
    split=_POLYP_PATCHES.split,
    licence=_POLYP_PATCHES.licence,
    obtain=_POLYP_PATCHES.obtain,
    citation=_POLYP_PATCHES.citation,
    path="kvasirseg_patches_128.npz",
    proxy=True,
    note=f"{_PROXY}; the same windows as kvasirseg_patches, 128x128 RGB",
)
_OCT_MINI = DataSet(
    name="oct2017_mini-128",
    title="60 images of OCT2017",
    normal="0",
    split="10 normal train; 5 normal and 45 anomalous test",
    licence=_OCT.licence,
    obtain=_OCT.obtain,
    citation=_OCT.citation,
    path="oct2017_mini_128.npz",
    proxy=True,
    note=f"{_PROXY}; a smoke test, far too small for an AUROC; 128x128 grey",
)
_PHANTOM = DataSet(
    name="phantom",
    title="Generated anatomy with lesions and masks",
    normal="0",
    split="generated: 1000 train (all normal), 400 val (200 normal), 400 test (200 normal)",
    licence="that of this package",
    obtain="generated on the fly; needs no files",
    citation="this package",
    proxy=True,
    note="generated, 64x64 grey",
)

CATALOG: dict[str, DataSet] = {
    d.name: d
    for d in (
        *(_PNEUMONIA, _BREAST, _BREAST_0, _SARS, _SARS_COVID, _KVASIR, _OCT, _APTOS),
        *(_SARS_128, _SARS_COVID_128, _POLYP_PATCHES, _POLYP_PATCHES_128, _OCT_MINI, _PHANTOM),
    )
}


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
    keys = [f.name for f in fields(DataSet) if f.name != "name"]
    if not isinstance(values, dict) or not values.get("path"):
        raise DataError(f"{file}: a data set needs a path: the folder, .npz or .csv of its images")
    if unknown := [str(key) for key in values if key not in keys]:
        raise DataError(f"{file}: no key {unknown[0]!r}; there are: {', '.join(keys)}")
    if file.stem in CATALOG:
        raise DataError(f"{file}: {file.stem} is a known data set already; rename the file")
    for key in ("normal", "anomalous", "normal_label"):
        if key in values:
            given = values[key] if isinstance(values[key], list) else [values[key]]
            values[key] = ",".join(_class(file, key, value) for value in given)
    try:
        known: DataSet = from_dict(DataSet, {**values, "name": file.stem})
        known.options(Path(known.path), ReadOptions())
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return replace(known, path=str(Path(file.absolute().parent, known.path)))


def _class(file: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):  # `no` and `off` are YAML's for false
        raise DataError(f"{file}: {key}: {value!r} is not the name of a class; put it in quotes")
    return str(value)


def known_set(name: str, data_root: str | os.PathLike[str] | None = None) -> DataSet:
    """The declaration of a data set.

    Args:
        name: of `CATALOG`, of a file `NAME.yaml` in the data root, or the path of such a file.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.

    Returns:
        What is known of the set.

    Raises:
        DataError: there is no such set; the message lists the known names and the nearest.
    """
    if name in CATALOG:
        return CATALOG[name]
    if suffix_of(name) in DECLARATION:
        return declared(name)
    own = own_sets(data_root)
    if name in own:
        return declared(own[name])
    names = [*CATALOG, *own]
    near = difflib.get_close_matches(name.lower(), names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"{name}: no such path or data set{hint} (known: {', '.join(names)})")


def own_sets(data_root: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """The user's own declarations in the data root (by default `$DIA_DATA`), by name."""
    root = os.environ.get("DIA_DATA") if data_root is None else data_root
    files = sorted(Path(root).glob("*.y*ml")) if root else []
    return {f.stem: f for f in files if f.suffix in DECLARATION and f.stem not in CATALOG}


def known_sets(data_root: str | os.PathLike[str] | None = None) -> dict[str, DataSet]:
    """All declarations by name: the catalogue's, and those in the data root that can be read."""
    known = dict(CATALOG)
    for name, file in own_sets(data_root).items():
        with suppress(DataError):  # a YAML file of another purpose
            known[name] = declared(file)
    return known


def name_of(spec: str) -> str:
    """A data set's name as ledgers and tables have it: that of a YAML file's set, else `spec` itself."""
    return Path(spec).stem if suffix_of(spec) in DECLARATION else spec


def find(known: DataSet, data_root: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder of a data set.

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
    root = os.environ.get("DIA_DATA") if data_root is None else data_root
    # the folder of the other direction holds the same images
    name, file = known.name, known.path
    places = dict.fromkeys(p for p in (file, name, f"{name}.npz", Path(file).stem) if p)
    if not root:
        raise DataError(f"{name}: no data root; give --data-root or set DIA_DATA to the folder that holds it")
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
    if suffix_of(spec) not in DECLARATION:
        if os.path.exists(spec):
            return readers.listing(spec, options, split)
        if os.path.basename(spec) != spec or suffix_of(spec) in (".npz", ".csv", *SUFFIXES):
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
        The result of `quality.check`; each split with slices of volumes has `volumes` and `slices` too, how
        many there are.

    Raises:
        DataError: as `open_data`.
    """
    sets = open_splits(spec, data_root, options, **changes)
    result = quality.check(sets)
    for split, images in sets.items():
        if volumes := {v for v in images.volumes if v is not None}:
            slices = sum(v is not None for v in images.volumes)
            result["splits"][split] |= {"volumes": len(volumes), "slices": slices}
    return result


def _listing(
    known: DataSet, split: str | None, data_root: str | os.PathLike[str] | None, options: ReadOptions
) -> readers.Listing:
    if known is _PHANTOM:
        return _phantom(split, options)
    path = find(known, data_root)
    options = known.options(path, options)
    if known.pool and not path.is_dir():
        return _divided_anew(path, readers.listing(path, options, known.pool), split)
    return readers.listing(path, options, split)


def _divided_anew(path: Path, pool: readers.Listing, split: str | None) -> readers.Listing:
    """A split that an `.npz` does not have, made of the images of one that it has as of a folder's."""
    if pool.whole is None or pool.labels is None:
        raise DataError(f"{path}: it has no labels, by which its images would be divided")
    entries = [Entry(path, "plain", n, int(y)) for n, y in zip(pool.names, pool.labels, strict=True)]
    kept = {e.name for e in of_split(path, with_fixed_split(entries, pool.options.train_normals), split)}
    return replace(pool, whole=pool.whole.subset(np.array([n in kept for n in pool.names])))


def _phantom(split: str | None, options: ReadOptions) -> readers.Listing:
    """The generated set; of the options, size and channels matter."""
    from . import phantoms

    if split not in (*phantoms.SPLITS, "all", None):
        raise readers.MissingSplit(f"phantom: no split {split!r}; there are: {', '.join(phantoms.SPLITS)}")
    wanted = [split] if split in phantoms.SPLITS else list(phantoms.SPLITS)
    # drawn at that size, not resized to it
    drawn: dict[str, Any] = {"size": options.size} if isinstance(options.size, int) else {}
    images = joined("phantom", [phantoms.load(str(s), **drawn) for s in wanted])
    return readers.Listing(options, whole=images)
