"""The known data sets as declarations, and reading them by name.

Knows names, normal classes, licences and where to get the files; leaves pixels and layouts to `readers`.
Nothing is downloaded: a set that is absent says where to get it and where to put it.
"""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from . import quality, readers
from .formats.limits import suffix_of
from .imageset import ImageSet
from .layouts import Entry, of_split, with_fixed_split


@dataclass(frozen=True)
class DataSet:
    """What is known about one data set before any file of it is read.

    Args:
        name: what the user types.
        title: one line for people.
        normal: comma-separated class folders that are normal.
        split: where the division into train and test comes from.
        licence: terms of the images.
        obtain: where to get them.
        citation: whom to cite.
        file: its file or folder under the data root; `NAME/`, `NAME.npz` and the file's name as a folder are
            accepted as well.
        normal_label: the label value that is normal where the set is an .npz.
        anomalous: comma-separated class folders that are anomalous; all that are not normal if empty.
        train_normals: share or number of normals that train where the folder has no split of its own.
        pool: the split of the .npz ("test", or "all") that is divided anew by the rule of such a folder,
            where its own train holds no normals; empty where the file's splits stand.
        channels: 1 where colour files hold grey images; as they are where None.
        proxy: a stand-in whose numbers must not be compared with the paper's.
        note: sizes, and what to beware of.
    """

    name: str
    title: str
    normal: str
    split: str
    licence: str
    obtain: str
    citation: str
    file: str = ""
    normal_label: str = "0"
    anomalous: str = ""
    train_normals: float = 0.8
    pool: str = ""
    channels: int | None = None
    proxy: bool = False
    note: str = ""


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
    file="pneumoniamnist.npz",
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
    file="breastmnist.npz",
    normal_label="1",
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
    file=_BREAST.file,
    normal_label="0",
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
    file="sarscov2ct.npz",
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
    file="sarscov2ct_128.npz",
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
    file=_SARS_128.file,
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
    anomalous="polyps",
    note="the files differ in size: give --size; classes other than these four are left out",
)
_OCT = DataSet(
    name="oct2017",
    title="OCT2017: retinal OCT; CNV, DME and drusen against normal",
    normal="NORMAL",
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
    file="kvasirseg_patches.npz",
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
    file="kvasirseg_patches_128.npz",
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
    file="oct2017_mini_128.npz",
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


def find(name: str, data_root: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder of a known data set under `data_root` (by default `$DIA_DATA`).

    Raises:
        DataError: an unknown name, or no such file; the message says where to get it and where to put it.
    """
    known = _known(name)
    root = os.environ.get("DIA_DATA") if data_root is None else data_root
    # the folder of the other direction holds the same images
    places = dict.fromkeys(p for p in (known.file, name, f"{name}.npz", Path(known.file).stem) if p)
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
    **read_kwargs: Any,
) -> ImageSet:
    """One split ("train", "val", "test"; None or "all" for everything) of a known data set.

    Args:
        name: a key of `CATALOG`.
        split: which part; labels come with every split, so training takes `.normals()`.
        data_root: the folder that holds the data sets, by default `$DIA_DATA`.
        read_kwargs: passed on to `readers.read`; they go before what the catalogue says.

    Raises:
        MissingSplit: the set has no such split.
        DataError: an unknown name, no such file, or a file that cannot be used.
    """
    read_kwargs, how = _divided(read_kwargs)
    return _listing(name, split, data_root, **read_kwargs).read(**how)


def load_training(
    name: str,
    data_root: str | os.PathLike[str] | None = None,
    *,
    contamination: float = 0.0,
    seed: int = 0,
    **read_kwargs: Any,
) -> ImageSet:
    """The training normals of a known data set, with a share of unmarked anomalies on request.

    Those come from the training split, or from `val` where the training split has none; never from `test`.

    Raises:
        DataError: as `load`, and where neither split has enough anomalies.
    """
    train = load(name, "train", data_root, **read_kwargs)
    if not contamination:
        return train.normals()
    anomalies = train.anomalies()
    if not len(anomalies):
        with suppress(readers.MissingSplit):
            anomalies = load(name, "val", data_root, **read_kwargs).anomalies()
    try:
        return train.normals().contaminated(anomalies, contamination, seed)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def open_data(
    spec: str | os.PathLike[str],
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    **read_kwargs: Any,
) -> ImageSet:
    """What the user means by a data argument: a path if it exists, else the name of a known data set.

    Raises:
        DataError: neither; the message lists the known names and the nearest.
    """
    read_kwargs, how = _divided(read_kwargs)
    return open_listing(spec, split, data_root, **read_kwargs).read(**how)


def open_listing(
    spec: str | os.PathLike[str],
    split: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    **listing_kwargs: Any,
) -> readers.Listing:
    """As `open_data`, before any pixel is read (but the phantoms are drawn, and an `.npz` is read whole)."""
    spec = os.fspath(spec)
    if os.path.exists(spec):
        return readers.listing(spec, split=split, **listing_kwargs)
    if os.path.basename(spec) != spec or suffix_of(spec) in (".npz", ".csv", *readers.SUFFIXES):
        raise DataError(f"{spec}: no such file or folder")
    return _listing(spec, split, data_root, **listing_kwargs)


def open_splits(
    name: str, data_root: str | os.PathLike[str] | None = None, **read_kwargs: Any
) -> dict[str, ImageSet]:
    """All splits of a known data set or a path; `all` alone where it has none."""
    sets: dict[str, ImageSet] = {}
    for split in readers.SPLITS:
        with suppress(readers.MissingSplit):
            sets[split] = open_data(name, split, data_root, **read_kwargs)
    if len(sets) > 1 and len({tuple(images.names) for images in sets.values()}) == 1:
        return {"all": sets["train"]}  # without splits all images belong to each: no leak
    return sets


def check(name: str, data_root: str | os.PathLike[str] | None = None, **read_kwargs: Any) -> dict[str, Any]:
    """`quality.check` over all splits of a known data set or a path, as `open_data` understands it."""
    sets = open_splits(name, data_root, **read_kwargs)
    result = quality.check(sets)
    for split, images in sets.items():
        if volumes := {v for v in images.volumes if v is not None}:
            slices = sum(v is not None for v in images.volumes)
            result["splits"][split] |= {"volumes": len(volumes), "slices": slices}
    return result


def _known(name: str) -> DataSet:
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower(), CATALOG, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"{name}: no such path or data set{hint} (known: {', '.join(CATALOG)})")


def _divided(read_kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `readers.read`: what to read, and how."""
    how = {k: v for k, v in read_kwargs.items() if k in ("workers", "memmap_above", "progress")}
    return {k: v for k, v in read_kwargs.items() if k not in how}, how


def _listing(
    name: str, split: str | None, data_root: str | os.PathLike[str] | None, **listing_kwargs: Any
) -> readers.Listing:
    known = _known(name)
    if name == _PHANTOM.name:
        return _phantom(split, **listing_kwargs)
    path = find(name, data_root)
    if path.is_dir():
        declared: dict[str, Any] = {"normal": known.normal, "anomalous": known.anomalous or None}
    else:
        declared = {"normal": known.normal_label}
    given = {key: value for key, value in listing_kwargs.items() if value is not None}
    options = {**declared, "train_normals": known.train_normals, "channels": known.channels, **given}
    if known.pool and not path.is_dir():
        return _divided_anew(path, readers.listing(path, split=known.pool, **options), split, options)
    return readers.listing(path, split=split, **options)


def _divided_anew(
    path: Path, pool: readers.Listing, split: str | None, options: dict[str, Any]
) -> readers.Listing:
    """A split that an `.npz` does not have, made of the images of one that it has as of a folder's."""
    if pool.whole is None or pool.labels is None:
        raise DataError(f"{path}: it has no labels, by which its images would be divided")
    entries = [Entry(path, n, int(y)) for n, y in zip(pool.names, pool.labels, strict=True)]
    kept = {e.name for e in of_split(path, with_fixed_split(entries, options["train_normals"]), split)}
    return replace(pool, whole=pool.whole.subset(np.array([n in kept for n in pool.names])))


def _phantom(split: str | None, **listing_kwargs: Any) -> readers.Listing:
    """The generated set, with those options of `readers.listing` that make sense for it."""
    from . import phantoms

    if split not in (*phantoms.SPLITS, "all", None):
        raise readers.MissingSplit(f"phantom: no split {split!r}; there are: {', '.join(phantoms.SPLITS)}")
    wanted = [split] if split in phantoms.SPLITS else list(phantoms.SPLITS)
    size = listing_kwargs.get("size")
    drawn: dict[str, Any] = (
        {"size": size} if isinstance(size, int) else {}
    )  # drawn at that size, not resized to it
    images = readers.joined("phantom", [phantoms.load(str(s), **drawn) for s in wanted])
    limit, channels = listing_kwargs.get("max_size"), listing_kwargs.get("channels")
    return readers.Listing(
        partial(readers.conform, size=size, max_size=limit, channels=channels), whole=images
    )
