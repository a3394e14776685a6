"""`.npy`: one array as numpy saves it: an image, a volume, or several images of one size.

Knows numpy's headers. Nothing is unpickled. By its shape an array is

- `(H, W)`: one grey image;
- `(H, W, 3)` of uint8: one image in colour;
- any other `(N, H, W)`: the N slices of a volume; `--axis 0`, `1`, `2` cut it along another axis;
- `(N, H, W, 1)`, or `(N, H, W, 3)` of uint8: N images, which count as slices of one volume.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np

from ...core.errors import DataError
from .limits import refusing
from .volume import Volume, Volumes, check_voxels, turned
from .windowing import View

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def count(path: Path, view: View) -> tuple[int, int]:
    """Counts the volumes of a file, which are one, and its images; reads the header alone.

    Args:
        path: a `.npy` file.
        view: its `axis` matters.

    Returns:
        1 and the number of images.

    Raises:
        DataError: no such file, damaged, or an array of another shape or type.
    """
    with path.open("rb") as file:
        shape, _, dtype = _header(file, path)
    axis, sides = _axes(shape, dtype, view)
    return 1, sides[axis[0]]


class Npy(Volumes):
    """The images of one file.

    Args:
        path: a `.npy` file.
        view: `axis` says how it is cut.

    Raises:
        DataError: as `count`, or a file that ends early.
    """

    def __init__(self, path: Path, view: View):
        with path.open("rb") as file:
            shape, fortran, dtype = _header(file, path)
            axes, sides = _axes(shape, dtype, view)
            with refusing("its values cannot be read"):
                flat = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
                stored = flat.reshape(shape, order="F" if fortran else "C").reshape(sides)
        if stored.shape[3] == 1:
            stored = stored[..., 0]
        super().__init__([Volume(stored.transpose(*axes, *range(3, stored.ndim)))])


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, order and type of the array, which follows."""
    with refusing("no .npy file, or damaged"):
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = _HEADERS[version](file)
        shape = tuple(map(int, shape))
    if dtype.hasobject:
        raise DataError("pickled objects, which may run code when they are read; save it as numbers")
    if dtype.kind not in "biuf":
        raise DataError(f"an array of type {dtype.kind}{dtype.itemsize}; save it as integers or floats")
    if not 2 <= len(shape) <= 4:
        raise DataError(f"an array of {len(shape)} axes; images are (H, W), (N, H, W) or (N, H, W, 3)")
    nbytes, available = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    check_voxels((*shape, 1)[: max(len(shape), 3)], nbytes, available, 1)
    return shape, fortran, dtype


def _axes(
    shape: tuple[int, ...], dtype: np.dtype, view: View
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Returns which axes are slices, rows and columns, and the shape with all four: N, H, W and colours."""
    colour = dtype == np.uint8 and shape[-1] == 3 and len(shape) > 2
    if len(shape) == 4:
        if shape[-1] != 1 and not colour:
            raise DataError(f"a {dtype} array of shape {shape}; (N, H, W, 3) is read of uint8 alone")
        return (0, 1, 2), shape
    if colour:
        return (0, 1, 2), (1, *shape)
    if len(shape) == 2:
        return (0, 1, 2), (1, *shape, 1)
    axes = (0, 1, 2) if view.axis == "axial" else turned(None, view.axis)[1]
    return axes, (*shape, 1)
