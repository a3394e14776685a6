"""NIfTI: the number of slices of a volume along an axis, and the volume as 8-bit slices.

Knows orientations and grey values; reading is nibabel's. No text of the header is looked at, none is shown.

Anatomical axes are those nearest to them among the stored ones, by the file's affine: nothing is resampled.
Slices lie as a radiologist sees them: axial with the front at the top, coronal and sagittal with the head,
the patient's right at the image's left, in sagittal slices the front at the left. Numbers of slices grow
towards right, front and head. `--axis 0`, `1`, `2` cut the array as it is stored.

No header says which values are black and white. A window stated does; without one it is the 0.5th and the
99.5th percentile of the finite values of the whole volume, the same for all its slices.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError
from .limits import INFLATED, check_size, refusing, required
from .windowing import ANATOMICAL, View, Window, to_bytes

VOXELS = 2**29  # of one volume, above which a header is not believed
_PERCENTILES = (0.5, 99.5)


def slices(path: Path, view: View) -> int:
    """Counts the slices of the volume along the axis asked for; reads the header alone.

    Args:
        path: a NIfTI file.
        view: its `axis` matters.

    Returns:
        The number of slices, at least 1.

    Raises:
        DataError: no NIfTI file, damaged, not one volume of numbers, or too large to be true.
    """
    image, shape = _open(path)
    return shape[_axes(image, shape, view.axis)[1][0]]


class Nifti:
    """The slices of one volume, all in memory: as uint8, or as bool for a mask."""

    def __init__(self, path: Path, view: View, *, mask: bool = False):
        image, shape = _open(path)
        flips, order = _axes(image, shape, view.axis)
        with refusing("its voxels cannot be read"):
            raw = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape)
        volume = np.transpose(raw[flips], order)
        slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        self.volume = np.empty(volume.shape, bool if mask else np.uint8)
        window = None if mask else self._window(raw, slope, inter, view)
        with np.errstate(over="ignore", invalid="ignore"):  # of slopes and voxels without measure
            for i, x in enumerate(volume):
                self.volume[i] = x != 0 if window is None else to_bytes(window.apply(x * slope + inter))
        self.nbytes = self.volume.nbytes

    def image(self, index: int) -> np.ndarray:
        """Returns slice `index` (from 0), `(H, W, 1)` uint8."""
        return self.volume[index, ..., None]

    def mask(self, index: int) -> np.ndarray:
        """Returns slice `index` of a mask, `(H, W)` bool, True where the stored value is not 0.

        Raises:
            DataError: there is no slice `index`.
        """
        if index >= len(self.volume):
            raise DataError(f"it has {len(self.volume)} slices; make it as long as its volume")
        return self.volume[index]

    @staticmethod
    def _window(raw: np.ndarray, slope: float, inter: float, view: View) -> Window:
        if view.stated is not None:
            return view.stated
        if view.window == "full":
            if raw.dtype.kind == "f":
                raise DataError("float voxels have no full range; give --window CENTER,WIDTH, or none")
            ends = [float(np.iinfo(raw.dtype).min), float(np.iinfo(raw.dtype).max)]
        else:
            floats = raw.dtype.kind == "f"
            finite = raw[np.isfinite(raw)] if floats else raw
            if not finite.size:
                raise DataError("no voxel of it is finite")
            extremes = [float(finite.min()), float(finite.max())]
            ends = np.percentile(finite, _PERCENTILES, overwrite_input=floats).tolist()  # of a copy
            if ends[0] == ends[1]:  # nearly all voxels are alike
                ends = extremes
        low, high = sorted(end * slope + inter for end in ends)
        return Window.between(low, high)


def _open(path: Path) -> tuple[Any, tuple[int, int, int]]:
    """Opens a file, whose voxels are not yet read, and returns it with its shape."""
    nibabel = required("nibabel")
    with refusing("no NIfTI file, or damaged"):
        image = nibabel.load(path, mmap=False)  # a mapped file that shrinks would end the process
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
        scaled = hasattr(image, "affine") and hasattr(image.dataobj, "get_unscaled")
    if not scaled:
        raise DataError("a CIFTI file; only volumes are read")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        many = math.prod(shape[3:])
        raise DataError(f"{many} volumes in one file; save each as a file (nibabel.four_to_three)")
    if dtype.kind not in "iuf":
        raise DataError(f"voxels of type {dtype}; save it as integers or floats")
    height, width, depth = (*shape, 1, 1, 1)[:3]
    voxels = height * width * depth
    if voxels > VOXELS:
        raise DataError(f"its header promises {voxels} voxels, above the limit of {VOXELS}")
    sides = sorted((height, width, depth))
    ratio = INFLATED if path.suffix.lower() == ".gz" else 1
    nbytes, available = voxels * dtype.itemsize, path.stat().st_size
    check_size(sides[1], sides[2], sides[0], nbytes, available, ratio, whole=True)
    return image, (height, width, depth)


def _axes(
    image: Any, shape: tuple[int, int, int], axis: str
) -> tuple[tuple[slice, ...], tuple[int, int, int]]:
    """Returns how to turn the stored array, and which of its axes are slices, rows and columns."""
    straight, back = slice(None), slice(None, None, -1)
    if axis not in ANATOMICAL:
        first = int(axis)
        rows, columns = (i for i in range(3) if i != first)
        return (straight,) * 3, (first, rows, columns)
    from nibabel.orientations import io_orientation

    try:
        found = io_orientation(image.affine)  # for each stored axis: the canonical one, and its sense
    except Exception:
        found = np.full((3, 2), np.nan)
    if not np.isfinite(found).all():
        raise DataError("its affine does not tell the orientation; give --axis 0, 1 or 2")
    stored = {int(canonical): i for i, (canonical, _) in enumerate(found)}
    across = ANATOMICAL[axis]
    columns, rows = (i for i in range(3) if i != across)  # rows run down: to the back or the feet
    senses = [1, 1, 1]
    for canonical, i in stored.items():
        senses[i] = int(found[i, 1]) * (1 if canonical == across else -1)
    flips = tuple(straight if sense > 0 else back for sense in senses)
    return flips, (stored[across], stored[rows], stored[columns])
