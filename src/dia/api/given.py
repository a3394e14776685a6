"""Images in any form that Python code has them in, as a listing: paths, arrays, tensors, PIL images, loaders.

Arrays become uint8 by the rules by which files do; what could mean two things is refused. Knows forms and
values; knows no model.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import DataError
from ..data.datasets import open_listing
from ..data.decode import values as shown
from ..data.formats.windowing import LOOKED, Stored, View, levels_of, sampled, toned
from ..data.imageset import ANOMALOUS, NORMAL, ImageSet, subsample
from ..data.layouts import Entry, patients_of, words
from ..data.options import ReadOptions
from ..data.readers import Listing
from ..data.volumes import in_series

_KEYS = ("image", "img", "pixel_values")  # of items that are mappings, as MONAI's and Hugging Face's
_CHANNELS = (1, 3)
_log = logging.getLogger(__name__)
_DARK = 2**13  # of 16 bits: an eighth of the range
_CHUNK = 256  # images that are converted at a time
Range = tuple[float, float]


def listing_of(
    images: Any,
    options: ReadOptions,
    split: str,
    *,
    data_root: str | os.PathLike[str] | None = None,
    value_range: Range | None = None,
    usual_range: Range | None = None,
    levels: str | None = None,
    one_class: bool = False,
) -> Listing:
    """Lists images that are given in any form.

    Args:
        images: a path as for `dia.data.readers.read`, the name of a known data set, several paths, an
            `ImageSet`, or what `image_set` takes.
        options: how files are read; the size and channels of all.
        split: of a folder or known set that has splits.
        data_root: the folder of known data sets.
        value_range: as for `image_set`.
        usual_range: as for `image_set`.
        levels: as for `image_set`.
        one_class: as for `image_set`.

    Returns:
        The listing.

    Raises:
        DataError: a path that cannot be read, or images that could mean two things.
    """
    several = isinstance(images, list | tuple) and len(images) > 0
    paths = several and all(isinstance(i, str | os.PathLike) for i in images)
    if value_range is not None and (paths or isinstance(images, str | os.PathLike)):
        raise DataError("range is of arrays; of files window='LOW:HIGH' says what is black and white")
    if isinstance(images, str | os.PathLike):
        return open_listing(images, split, data_root, options)
    if paths:
        return _of_paths([os.fspath(path) for path in images], options, split)
    if options.group_by:
        raise DataError(
            "group_by tells patients from the names of files; here give an ImageSet with patients="
        )
    if not isinstance(images, ImageSet):
        images = image_set(
            images, options, value_range=value_range, usual_range=usual_range, levels=levels,
            one_class=one_class,
        )  # fmt: skip
    return Listing(options, whole=images, title="images")


def _of_paths(paths: Sequence[str], options: ReadOptions, split: str) -> Listing:
    """Lists image files and folders of them; a name is the path as it was given."""
    entries: list[Entry] = []
    for path in paths:
        found = open_listing(path, split, options=replace(options, group_by=None))
        if found.whole is not None:
            raise DataError(f"{path}: a list holds image files and folders; give this one by itself")
        file = Path(path).is_file()
        for entry in found.entries:
            name = path + entry.name.removeprefix(Path(path).name) if file else f"{path}/{entry.name}"
            volume = entry.volume and (path if file else f"{path}/{entry.volume}")
            entries.append(entry._replace(name=name, volume=volume))
    if len({entry.name for entry in entries}) < len(entries):
        raise DataError("a path is listed twice; leave the copy out")
    if options.view.window == "volume":
        entries = in_series(entries)
    if len({entry.label is None for entry in entries}) > 1:
        raise DataError("some of the folders have labels and others none; give them one by one")
    grouped = ""
    if options.group_by:
        patients, grouped = patients_of("images", [e.name for e in entries], options.group_by)
        entries = [e._replace(patient=p) for e, p in zip(entries, patients, strict=True)]
    return Listing(options, entries, title=f"{len(paths)} paths", grouped=grouped)


def image_set(
    images: Any,
    options: ReadOptions | None = None,
    *,
    value_range: Range | None = None,
    usual_range: Range | None = None,
    levels: str | None = None,
    one_class: bool = False,
) -> ImageSet:
    """Makes a set of uint8 images.

    - uint8 is taken as it is; bool is black and white. PIL images are read as files are.
    - What has more than 8 bits becomes grey by `levels`; without them uint16 is 0–65535, float values lie in
      [0, 1], and other integers need `value_range`.
    - An array or tensor is `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, or one image of these; C = 1 or 3.
    - Of an item `(image, label)` of a list, dataset or loader the first is the image; of a mapping "image".
      Images of several sizes need a size in the options.

    Args:
        images: an array, tensor or PIL image, or an iterable of these: a list, a generator, a Dataset, or a
            DataLoader, which gives batches.
        options: `size`, `max_size` and `channels`; `normal` names the labels that are normal.
        value_range: the values of black and white.
        usual_range: the same, but not for uint8 and PIL images.
        levels: "LOW:HIGH", values of black and white beyond which values are clipped; not for uint8.
        one_class: whether to refuse labels of several classes where `normal` names none.

    Returns:
        The images; labelled where `normal` is given.

    Raises:
        DataError: values or shapes that could mean two things, or no images.

    Example:
        >>> image_set(np.linspace(0, 1, 4 * 16 * 16).reshape(4, 16, 16)).images[-1, -1, -1]
        array([255], dtype=uint8)
    """
    options, values = options or ReadOptions(), _Values(value_range, usual_range, levels)
    if _is_array(images):
        found = ImageSet(values.to_bytes(_stacked(_array(images))), levels=levels)
        values.check()
        return found
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Mapping) or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise DataError(f"images are a path, arrays, tensors, PIL images or a loader, not {_kind(images)}")
    many = _gives_batches(images)
    parts: list[np.ndarray] = []
    labels: list[str] = []
    for item in _items(images):
        given, label = _image_and_label(item)
        if isinstance(given, Image.Image) and (given.mode[0] != "F" and value_range is None):
            read = shown(ImageOps.exif_transpose(given))  # as of a file
            made = (values.to_bytes(read.values[..., None]) if isinstance(read, Stored) else read)[None]
        elif isinstance(given, Image.Image):
            made = values.to_bytes(_stacked(np.asarray(ImageOps.exif_transpose(given)), many=False))
        elif _is_array(given):
            made = values.to_bytes(_stacked(_array(given), many=many))
        else:
            raise DataError(f"each image is an array, a tensor or a PIL image, not {_kind(given)}")
        part = options.conform(ImageSet(made)).images
        if parts and part.shape[1:3] != parts[0].shape[1:3]:
            first, other = ("{}×{}".format(*p.shape[1:3]) for p in (parts[0], part))
            raise DataError(f"images of several sizes ({first} and {other}); give size=N, in pixels")
        parts.append(part)
        labels += _texts(label, len(part))
    if not parts:
        raise DataError("there are no images")
    values.check()
    c = max(part.shape[3] for part in parts)
    whole = ImageSet(
        np.concatenate([ImageSet(part).with_channels(c).images for part in parts]), levels=levels
    )
    return _labelled(whole, labels, words(options.normal), one_class)


def levels_of_arrays(images: Any) -> str | None:
    """Learns black and white from integers of more than 8 bits, as `data.levels` does from files.

    Args:
        images: an array or tensor, or a list of these or of PIL images.

    Returns:
        The option `levels`; None where images have 8 bits, are floats or come one by one.
    """
    if _is_array(images):
        x = _array(images)
        some = list(subsample(x, LOOKED)) if x.ndim > 2 else [x]
    elif isinstance(images, list | tuple):
        items = [_image_and_label(images[i])[0] for i in subsample(np.arange(len(images)), LOOKED)]
        some = [np.asarray(x) for x in items if isinstance(x, Image.Image)]
        some += [_array(x) for x in items if _is_array(x)]
    else:
        return None
    deep = [sampled(x) for x in some if x.dtype.kind in "iu" and x.dtype.itemsize > 1]
    return levels_of(deep) if deep else None


class _Values:
    """Converts values of any type to 0–255, by one rule for all images of a call.

    Args:
        stated: the values of black and white.
        usual: the same, for other types than uint8.
        levels: likewise, and values beyond them are clipped.
    """

    def __init__(self, stated: Range | None, usual: Range | None, levels: str | None = None):
        for given in filter(None, (stated, usual)):
            if len(given) != 2 or not np.isfinite(given).all() or not given[0] < given[1]:
                raise DataError(f"range must be (values of black, of white), ascending, not {tuple(given)}")
        self.stated, self.usual = stated, usual
        self.view = View.of(levels=levels) if levels and ":" in levels else None
        self.highest = 0  # of 16 bits

    def to_bytes(self, x: np.ndarray) -> np.ndarray:
        """Returns uint8 of the same shape."""
        limits = self.stated or (None if x.dtype == np.uint8 else self.usual)
        if (x.dtype == np.uint8 and limits is None) or not x.size:
            return x.astype(np.uint8, copy=False)
        if x.dtype.kind not in "buif":
            raise DataError(f"images of type {x.dtype}; numbers are needed")
        if limits is None and x.dtype == bool:
            return x * np.uint8(255)
        if limits is None and self.view is not None:
            return toned(Stored.of(x), self.view)
        if limits is None and x.dtype == np.uint16:
            self.highest = max(self.highest, int(x.max()))
            limits = 0, 65535
        low, high = x.min(), x.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError("images hold NaN or infinite values; replace them, as by np.nan_to_num")
        if limits is None and x.dtype.kind != "f":
            raise DataError(
                f"images of type {x.dtype} ({low} to {high}); give range=(values of black, of white), "
                "or .astype(np.uint8) if they are 0–255"
            )
        black, white = limits or (0, 1)
        slack = (white - black) / 510  # half a grey value, as resizing overshoots
        if low < black - slack or high > white + slack:
            if limits is None:
                more = "give range=(values of black, of white)"
                raise DataError(f"float images of {low:g} to {high:g}, beyond [0, 1]; {more}")
            beyond = f"images of {low:g} to {high:g}, beyond range=({black:g}, {white:g})"
            raise DataError(f"{beyond}; widen it, or np.clip them")
        out = np.empty(x.shape, np.uint8)
        for i in range(0, len(x), _CHUNK):
            shades = (x[i : i + _CHUNK].astype(np.float64) - black) * (255 / (white - black))
            out[i : i + _CHUNK] = np.rint(shades).clip(0, 255)
        return out

    def check(self) -> None:
        """Refuses 16-bit images that hold 8 bits, which would be black, and warns of those that hold 12."""
        if 0 < self.highest <= 255:
            more = ".astype(np.uint8) if they are 0–255, else give range=(values of black, of white)"
            raise DataError(f"16-bit images of at most {self.highest}; {more}")
        if 0 < self.highest < _DARK:
            said = "16-bit images of at most %d are seen in %d grey levels; of 12 bits: give range=(0, 4095)"
            _log.warning(said, self.highest, self.highest // 257 + 1)


def _stacked(x: np.ndarray, many: bool | None = None) -> np.ndarray:
    """Returns `(N, H, W, C)`.

    Args:
        x: of two to four axes.
        many: whether the first axis counts images; False for one image, None where that is not known.
    """
    shape = tuple(map(int, x.shape))
    known = [n in _CHANNELS for n in shape]
    if x.ndim == 4 and many is not False and known[1] != known[3]:
        return x if known[3] else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    if x.ndim == 2 and not many:
        return x[None, ..., None]
    if x.ndim == 3 and many:
        return x[..., None]
    if x.ndim == 3:
        if known[2] and not known[0]:
            return x[None]
        if known[0] and not known[2] and (many is False or shape[0] == 1):
            return np.ascontiguousarray(np.moveaxis(x, 0, -1))[None]
        if many is None and not known[0]:
            return x[..., None]
        if many is None and shape[0] == 3 and not known[2]:
            both = "three grey images or one in colour; give x[..., None] for three, x[None] for one"
            raise DataError(f"images of shape {shape} may be {both}")
    what = "one image is (H, W), (H, W, C) or (C, H, W)"
    if many is not False:
        what = "expected (N, H, W), (N, H, W, C) or (N, C, H, W)"
    raise DataError(f"images of shape {shape}; {what}, where C is 1 (grey) or 3 (RGB)")


def _is_array(x: Any) -> bool:
    """Returns whether it is an array or a tensor of any library."""
    lists = isinstance(x, str | bytes | list | tuple | Image.Image | ImageSet)
    return not lists and hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "__array__")


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):  # torch's
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":  # NumPy has none
            x = x.float()
    return x if isinstance(x, np.ndarray) else np.asarray(x)  # a memory map stays one


def _gives_batches(images: Any) -> bool:
    """Returns whether it is a DataLoader that batches; torch is loaded if it is one."""
    data = sys.modules.get("torch.utils.data")
    loader = data is not None and isinstance(images, data.DataLoader)
    return bool(loader and getattr(images, "batch_sampler", None) is not None)


def _items(images: Any) -> Iterator[Any]:
    """Yields the items; a Dataset that only has an index is asked for each."""
    if hasattr(images, "__iter__"):
        return iter(images)
    return (images[i] for i in range(len(images)))


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if not (keys := [key for key in _KEYS if key in item]):
            raise DataError(f"an item has no {' or '.join(_KEYS)}; there are: {', '.join(map(str, item))}")
        return item[keys[0]], item.get("label")
    if isinstance(item, list | tuple) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _texts(label: Any, n: int) -> list[str]:
    """Returns the labels of n images as text; none where they are no labels, as masks are not."""
    if label is None:
        return []
    values = [label] * n if isinstance(label, str) else np.ravel(_array(label)).tolist()
    if len(values) != n or not all(isinstance(v, str | int | float) for v in values):
        return []
    return [f"{v:g}" if isinstance(v, int | float) else v for v in values]


def _labelled(images: ImageSet, labels: Sequence[str], normal: Sequence[str], one_class: bool) -> ImageSet:
    """Adds labels where `normal` names the normal ones."""
    there = sorted(set(labels))
    if not normal:
        if one_class and len(there) > 1:
            found = ", ".join(there[:5]) + ", …" * (len(there) > 5)
            raise DataError(
                f"the images have labels of several classes ({found}); name the normal one: normal="
            )
        return images
    if len(labels) != len(images):
        raise DataError(f"normal={','.join(normal)}: not every image has a label")
    if absent := [name for name in normal if name not in there]:
        raise DataError(f"no image has the label {absent[0]}; there are: {', '.join(there)}")
    return replace(images, labels=np.array([NORMAL if y in normal else ANOMALOUS for y in labels], np.int8))


def _kind(x: Any) -> str:
    return type(x).__name__


def shuffled(images: Any) -> bool:
    """Returns whether it is a DataLoader that shuffles, so that its order is not the dataset's."""
    data = sys.modules.get("torch.utils.data")
    if data is None or not isinstance(images, data.DataLoader):
        return False
    return isinstance(getattr(images, "sampler", None), data.RandomSampler)
