"""Volumes of numbers: which stored axes are slices, rows and columns, and the values of their slices.

What NIfTI, MetaImage, NRRD and `.npy` have in common once their voxels are read; and volumes whose slices are
files or pages of their own. Knows arrays, affines and views; opens no file. No header of these says which
values are black and white: `windowing` has the rule.

A file may hold several volumes of one shape: time points, contrasts, components. An image's number then says
both: `CHANNEL` × the number of the volume + the number of the slice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError
from .limits import MissingLibrary, check_size, optional
from .windowing import ANATOMICAL, Stored, View, ends_of, sampled

CHANNEL = 2**20  # a volume has fewer slices
VOXELS = 2**29  # of one file, above which a header is not believed
_MEASURED = 2**22  # values of a stack that its percentiles are taken of, or up to four times as many
_LEVELS = 2**-40  # the least slope, as a share of what is added: below it grey levels fall together

Turn = tuple[tuple[slice, ...], tuple[int, int, int]]


class Volume:
    """The slices of one volume, all in memory as they are stored.

    Args:
        stored: `(slices, H, W)` numbers, or `(slices, H, W, 3)` uint8 colours, which take no window.
        slope: what stored values are multiplied by.
        inter: what is then added.

    Raises:
        DataError: a slope that leaves no grey levels.
    """

    def __init__(self, stored: np.ndarray, slope: float = 1.0, inter: float = 0.0):
        if abs(slope) < abs(inter) * _LEVELS:
            raise DataError(
                f"its slope of {slope:.3g} beside {inter:.3g} leaves no grey levels; save it with its values "
                "multiplied out"
            )
        self.volume, self.slope, self.inter = stored, slope, inter
        self._found: tuple[float, float] | None = None

    def stored(self, index: int) -> Stored | np.ndarray:
        """Returns the values of slice `index` (from 0), `(H, W)`; of colours `(H, W, 3)` uint8."""
        if self.volume.ndim == 4:
            return self.volume[index]
        plain = replace(Stored.of(self.volume[index]), whole=self._ends)
        if self.slope == 1 and self.inter == 0:
            return plain
        ends = None
        if plain.ends is not None:
            low, high = sorted(self._real(np.array(plain.ends)).tolist())
            ends = low, high
        return replace(plain, ends=ends, real=self._real)

    def mask(self, index: int) -> np.ndarray:
        """Returns slice `index` of a mask, `(H, W)` bool, True where the real value is not 0.

        Raises:
            DataError: there is no slice `index`.
        """
        if index >= len(self.volume):
            raise DataError(f"it has {len(self.volume)} slices; make it as long as its volume")
        found = self._real(self.volume[index]) != 0
        return np.asarray(found.any(-1) if found.ndim == 3 else found)

    def _real(self, stored: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # of slopes and voxels without measure
            return stored * self.slope + self.inter

    def _ends(self) -> tuple[float, float]:
        """Returns the percentiles of the whole volume that are black and white, for the window `volume`."""
        if self._found is None:
            low, high = sorted(self._real(np.array(ends_of(self.volume))).tolist())
            self._found = low, high
        return self._found


class Volumes:
    """The volumes of one file.

    Args:
        volumes: all of them, by their numbers from 0.

    Attributes:
        nbytes: of their values.
    """

    def __init__(self, volumes: Sequence[Volume]):
        self.volumes = volumes
        self.nbytes = sum(volume.volume.nbytes for volume in volumes)

    def stored(self, index: int) -> Stored | np.ndarray:
        """Returns the values of the slice of number `index`, `(H, W)`; of colours `(H, W, 3)` uint8."""
        channel, number = divmod(index, CHANNEL)
        return self.volumes[channel].stored(number)

    def mask(self, index: int) -> np.ndarray:
        """Returns the slice of number `index` of a mask, `(H, W)` bool; one volume of it serves all others.

        Raises:
            DataError: there is no such slice.
        """
        channel, number = divmod(index, CHANNEL)
        return self.volumes[channel if channel < len(self.volumes) else 0].mask(number)


class Stack:
    """A volume whose slices are files or pages of their own, and its black and white, measured once.

    It pickles with what was measured.

    Args:
        slices: the file of each, and its number there, None where the file is one image: all of the volume,
            whichever of them are read.
        found: its black and white, or why there are none, where that is known.
    """

    def __init__(
        self,
        slices: Iterable[tuple[Path, int | None]],
        found: tuple[float, float] | DataError | None = None,
    ):
        self.slices, self._found = tuple(slices), found
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Stack, (self.slices, self._found)

    def ends(self, read: Callable[[Path, int | None], Stored | np.ndarray]) -> tuple[float, float]:
        """Returns the percentiles of all slices that are black and white, for the window `volume`.

        Slices are read one by one; of a large stack evenly spaced values are kept. Those that cannot be read
        are passed over, as reading them by themselves says what is wrong.

        Args:
            read: gives the values of a slice, by its file and number.

        Raises:
            DataError: no slice can be read, or none of their values is a number.
        """
        with self._lock:  # other threads wait for the first
            if self._found is None:
                try:
                    parts = [*self._values(read)]
                    if not parts:
                        raise DataError("no slice of its volume can be read")
                    self._found = ends_of(np.concatenate(parts))
                except DataError as error:
                    self._found = error
            if isinstance(self._found, DataError):
                raise DataError(str(self._found))
            return self._found

    def _values(self, read: Callable[[Path, int | None], Stored | np.ndarray]) -> Iterator[np.ndarray]:
        most = max(_MEASURED // len(self.slices), 1)
        for file, number in self.slices:
            try:
                found = read(file, number)
                if isinstance(found, Stored):
                    yield replace(found, values=sampled(found.values, most)).numbers().ravel()
            except MemoryError:
                raise
            except Exception:  # Pillow's decoders raise nearly anything
                continue


def chosen(channels: int, view: View) -> range:
    """Returns the numbers of the volumes of a file that are read: one that was asked for, or all.

    Args:
        channels: how many there are.
        view: its `channel` matters.

    Raises:
        DataError: there is no such volume.
    """
    if view.channel is None:
        return range(channels)
    if view.channel >= channels:
        several = f"{channels} volumes" if channels > 1 else "one volume"
        raise DataError(f"--channel {view.channel}: it has {several}, which are counted from 0")
    return range(view.channel, view.channel + 1)


def check_voxels(sides: Sequence[int], nbytes: int, available: int, ratio: float) -> None:
    """Refuses a header that promises more voxels than there may be, or than its file can hold.

    Args:
        sides: of the array, of all volumes together.
        nbytes: of all voxels, unpacked.
        available: bytes of the file.
        ratio: as for `limits.check_size`.

    Raises:
        DataError: as said.
    """
    voxels = math.prod(sides)
    if voxels > VOXELS:
        raise DataError(f"its header promises {voxels} voxels, above the limit of {VOXELS}")
    *others, height, width = sorted(sides)
    check_size(height, width, math.prod(others), nbytes, available, ratio, whole=True)
    if max(sides) >= CHANNEL:
        raise DataError(f"its header promises {max(sides)} slices, above the limit of {CHANNEL - 1}")


def turned(affine: Any, axis: str) -> Turn:
    """Finds how a stored array of axes x, y, z is turned, so that its first axis are slices.

    Args:
        affine: `(4, 4)` from indices to mm towards right, front and top; None where the file does not say.
        axis: one of `windowing.AXES`. Without an affine "axial" are the slices as they lie in the file.

    Returns:
        The slices that mirror the stored axes, then which of them are slices, rows and columns.

    Raises:
        DataError: an anatomical axis, and nothing that tells where it lies.
        MissingLibrary: nibabel is not installed, which knows affines.
    """
    straight, back = slice(None), slice(None, None, -1)
    if axis not in ANATOMICAL:
        first = int(axis)
        rows, columns = (i for i in range(3) if i != first)
        return (straight,) * 3, (first, rows, columns)
    if affine is None and axis == "axial":
        return (straight,) * 3, (2, 1, 0)
    if affine is not None and optional("nibabel") is None:
        raise MissingLibrary("orientations are read by nibabel; pip install 'dia-anomaly[medical]'")
    try:
        from nibabel.orientations import io_orientation

        found = io_orientation(affine)  # for each stored axis: the canonical one, and its sense
    except Exception:
        found = np.full((3, 2), np.nan)
    if not np.isfinite(found).all():
        raise DataError("it does not tell its orientation; give --axis 0, 1 or 2")
    stored = {int(canonical): i for i, (canonical, _) in enumerate(found)}
    across = ANATOMICAL[axis]
    columns, rows = (i for i in range(3) if i != across)  # rows run down: to the back or the feet
    senses = [1, 1, 1]
    for canonical, i in stored.items():
        senses[i] = int(found[i, 1]) * (1 if canonical == across else -1)
    flips = tuple(straight if sense > 0 else back for sense in senses)
    return flips, (stored[across], stored[rows], stored[columns])
