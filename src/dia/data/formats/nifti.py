"""NIfTI: how many volumes and slices along an axis a file holds, and these as they are stored.

Knows the files, which nibabel reads. No text of the header is looked at, none is shown.

Anatomical axes are those nearest to them among the stored ones, by the file's affine: nothing is resampled.
Slices lie as a radiologist sees them: axial with the front at the top, coronal and sagittal with the head,
the patient's right at the image's left, in sagittal slices the front at the left. Numbers of slices grow
towards right, front and head. `--axis 0`, `1`, `2` cut the array as it is stored.

All axes beyond the third count volumes. A slope of 0 or NaN says by the standard that the stored values are
the values.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError
from .limits import INFLATED, refusing, required
from .volume import Volume, Volumes, check_voxels, turned
from .windowing import View

_UNITS = {"mm": 1.0, "meter": 1e3, "micron": 1e-3}  # mm of one
_MOST_BEFORE = 2**24  # bytes of a file before its voxels, all of which nibabel reads at once
_HEADERS = ("Nifti1Header", "Nifti2Header")
_LONGEST, _FLAG = 540, 4  # bytes of the longer header, and of what follows a header


def count(path: Path, view: View) -> tuple[int, int]:
    """Counts the volumes of a file and their slices along the axis asked for; reads the header alone.

    Args:
        path: a NIfTI file.
        view: its `axis` matters.

    Returns:
        The number of volumes and that of the slices of each, at least 1.

    Raises:
        DataError: no NIfTI file, damaged, not volumes of numbers, or too large to be true.
    """
    image, (*shape, channels) = _open(path)
    return channels, shape[turned(image.affine, view.axis)[1][0]]


def placed(path: Path) -> tuple[tuple[int, int, int], np.ndarray, float | None]:
    """Tells where the voxels of a file lie; reads the header alone.

    Args:
        path: a NIfTI file.

    Returns:
        The sides x, y, z; the file's `(4, 4)` affine towards right, front and top; and how many mm its unit
        has. Where the file names no unit but says how it lies in the body (a qform or sform code above 0),
        that is 1, as nibabel and ITK take it; else None.

    Raises:
        DataError: as `count`.
    """
    image, shape = _open(path)
    header = image.header
    with refusing("no NIfTI file, or damaged"):
        coded = any(int(header[name]) > 0 for name in ("qform_code", "sform_code"))
        unit = _UNITS.get(header.get_xyzt_units()[0], 1.0 if coded else None)
    return shape[:3], np.array(image.affine), unit


class Nifti(Volumes):
    """The slices of the volumes of one file.

    Args:
        path: a NIfTI file.
        view: `axis` says how it is cut.

    Raises:
        DataError: as `count`, or voxels that cannot be read.
    """

    def __init__(self, path: Path, view: View):
        image, shape = _open(path)
        flips, order = turned(image.affine, view.axis)
        with refusing("its voxels cannot be read"):
            raw = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape, order="F")
            slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        super().__init__([
            Volume(raw[..., channel][flips].transpose(order), slope, inter)
            for channel in range(shape[3])
        ])  # fmt: skip


def _open(path: Path) -> tuple[Any, tuple[int, int, int, int]]:
    """Opens a file, whose voxels are not yet read, and returns it with its shape and number of volumes."""
    nibabel = required("nibabel")
    with refusing("no NIfTI file, or damaged"):
        _check_before(nibabel, path)
        image = nibabel.load(path, mmap=False)  # a mapped file that shrinks would end the process
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
        scaled = hasattr(image, "affine") and hasattr(image.dataobj, "get_unscaled")
    if not scaled:
        raise DataError("a CIFTI file; only volumes are read")
    if dtype.kind not in "iuf":
        raise DataError(f"voxels of type {dtype}; save it as integers or floats")
    height, width, depth = (*shape, 1, 1, 1)[:3]
    channels = math.prod(shape[3:])
    ratio = INFLATED if path.suffix.lower() == ".gz" else 1
    sides = (height, width, depth, channels)
    check_voxels(sides, math.prod(sides) * dtype.itemsize, path.stat().st_size, ratio)
    return image, sides


def _check_before(nibabel: Any, path: Path) -> None:
    """Refuses a file whose header extensions are larger than any are, or than the room that it has for them.

    nibabel reads as much as each of them claims, and all that follows where a size is negative.
    """
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        begun = file.read(_LONGEST)
        for name in _HEADERS:
            if not (kind := getattr(nibabel, name)).may_contain_header(begun):
                continue
            header, length = kind(begun[: kind.template_dtype.itemsize], check=False), kind.sizeof_hdr
            before = float(header["vox_offset"])
            if not before <= _MOST_BEFORE:
                raise DataError(
                    f"its header places the voxels at byte {before:.0f}, above the limit of "
                    f"{_MOST_BEFORE >> 20} MiB for header and extensions"
                )
            file.seek(length)
            if file.read(_FLAG)[:1] in (b"", b"\0"):  # no extensions
                continue
            room = int(before) - length - _FLAG
            if room < 0:
                raise DataError("its header leaves no room for its extensions")
            order, extensions, at = header.endianness, file.read(room), 0
            while room - at >= 16:
                size = int(np.frombuffer(extensions[at : at + 4].ljust(4, b"\0"), f"{order}i4")[0])
                if not 8 <= size <= room - at:
                    raise DataError(f"a header extension of {size} bytes, where {room - at} are left")
                at += size
