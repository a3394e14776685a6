"""Slices at their own size and depth, for a viewer: the values that files store, made real.

Knows readers' values and black and white; knows no drop, session, model or page. Nothing here holds on to a
file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....core.errors import DataError
from ....data.formats.windowing import Stored, View, Window, ends_of, sampled, to_bytes, toned
from ....data.imageset import ImageSet
from ....data.options import ReadOptions

PROPER = ("uint8", "uint16", "float32")  # types that are sent; int16 is kept, and sent as float32
_TYPES: dict[str, tuple[int, int]] = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Native:
    """One slice.

    Args:
        values: `(h, w)` or `(h, w, 3)`, real values in the smallest type that holds them; turned round where
            low ones are white.
        stored: the same for `toned`, its functions free of the file; None where the values are 8 bits as
            they are.
    """

    values: np.ndarray
    stored: Stored | None = None

    @classmethod
    def of(cls, found: Stored | np.ndarray) -> Native:
        """Takes what `data.decode.Files.stored` read."""
        if not isinstance(found, Stored):
            return cls(np.ascontiguousarray(found[..., 0] if found.shape[-1:] == (1,) else found))
        real = found.numbers()
        real = real[..., 0] if real.ndim == 3 and real.shape[-1] == 1 else real
        own = None if found.own is None else _free(found.own, real)
        back = None if found.real is None else _same
        if found.inverted:  # turned round, as a viewer draws the greatest value white
            ends = sum(found.ends or (0.0, 0.0))
            real, back = ends - real.astype(np.float64), lambda values: ends - values.astype(np.float64)
        values = _packed(real)
        return cls(values, replace(found, values=values, real=back, own=own))

    def toned(self, view: View) -> np.ndarray:
        """Returns it as `(h, w, 1 or 3)` uint8, as the model's images become it.

        Args:
            view: what the model says of black and white.

        Raises:
            DataError: nothing says which values are black and white.
        """
        grey = self.values if self.stored is None else toned(self.stored, view)
        return grey if grey.ndim == 3 else grey[..., None]

    def free(self, whole: Callable[[], tuple[float, float]] | None) -> Native:
        """Returns it with black and white of its volume by another function, which holds no file."""
        if self.stored is None or self.stored.whole is None:
            return self
        return replace(self, stored=replace(self.stored, whole=whole))

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return int(self.values.nbytes)


def _same(values: np.ndarray) -> np.ndarray:
    return values  # made real before


def _packed(real: np.ndarray) -> np.ndarray:
    """Brings values to the smallest type that holds them all exactly; others to float32."""
    if real.dtype == np.uint8 or not real.size:
        return np.ascontiguousarray(real, real.dtype if real.size else np.uint8)
    if real.dtype.kind == "b":
        return real.astype(np.uint8)
    low, high = float(np.min(real)), float(np.max(real))  # NaN fits nowhere
    whole = real.dtype.kind in "iu" or (
        np.isfinite([low, high]).all() and bool((real == np.rint(real)).all())
    )
    for name in ("uint16", "int16"):
        least, most = _TYPES[name]
        if whole and least <= low and high <= most:
            return real.astype(name)
    with np.errstate(over="ignore"):
        return real.astype(np.float32)


def _free(own: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a file's window without the file: as it is, or as a table of the values that there are."""
    if isinstance(getattr(own, "__self__", None), Window):
        return own
    at = np.unique(values)
    table = np.asarray(own(at), np.float64)
    return lambda wanted: table[np.searchsorted(at, wanted).clip(0, len(at) - 1)]


def whole_of(slices: Sequence[Native], view: View) -> Callable[[], tuple[float, float]]:
    """Returns a function that gives black and white of a volume, by its percentiles, measured once.

    Args:
        slices: of the volume, their files still there.
        view: of the model that they were read for: where it asks for the volume's own percentiles, those that
            were measured for it, of all its slices.
    """
    stored = [one.stored for one in slices if one.stored is not None and one.stored.whole is not None]
    found = [one.whole() for one in stored[:1] if one.whole and view.window == "volume"]
    free = [replace(one, whole=None) for one in stored]  # the function outlives the files

    def ends() -> tuple[float, float]:
        if not found:
            found.append(ends_of(np.concatenate([one.numbers().ravel() for one in free])))
        return found[0]

    return ends


def type_of(slices: Sequence[Native]) -> str:
    """Returns the type, of `PROPER`, in which the slices of a case are sent.

    Args:
        slices: at least one.
    """
    names = {one.values.dtype.name for one in slices}
    if names == {"uint8"}:
        return "uint8"
    return "uint16" if names <= {"uint8", "uint16"} else "float32"


def sent(one: Native, dtype: str, channels: int) -> bytes:
    """Returns a slice row by row, little-endian, as a viewer takes it.

    Args:
        one: the slice.
        dtype: of `PROPER`.
        channels: 1 or 3.
    """
    x = one.values
    if channels == 3 and x.ndim == 2:
        x = np.repeat(x[..., None], 3, axis=-1)
    return np.ascontiguousarray(x, np.dtype(dtype).newbyteorder("<")).tobytes()


def range_of(slices: Sequence[Native]) -> tuple[float, float]:
    """Returns the least and the greatest finite value; 0 and 1 where there is none.

    Args:
        slices: of a case.
    """
    ends: list[float] = []
    for one in slices:
        x = one.values
        finite = x[np.isfinite(x)] if x.dtype.kind == "f" else x
        ends += [float(finite.min()), float(finite.max())] if finite.size else []
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def levels_of(one: Native, view: View) -> tuple[float, float]:
    """Returns the real values that a viewer first shows black and white: as the model sees them.

    The file's own window, or the model's; of values without either the percentiles that hold most.

    Args:
        one: the slice in the middle of the case.
        view: what the model says of black and white.
    """
    stored = one.stored
    if stored is None:
        return 0.0, 255.0
    window: Any = view.levels
    if isinstance(view.window, Window):
        window = view.window
    elif view.window == "volume" and stored.whole is not None:
        window = Window.between(*stored.whole())
    elif view.window == "voi" and stored.own is not None:
        window = getattr(stored.own, "__self__", None)  # None of a table
    elif stored.shallow:
        return 0.0, 255.0
    if isinstance(window, Window):
        low, high = window.center - window.width / 2, window.center + window.width / 2
        if stored.inverted:
            ends = sum(stored.ends or (0.0, 0.0))
            low, high = ends - high, ends - low
    else:
        try:
            low, high = ends_of(sampled(one.values))
        except DataError:  # none is a number
            return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def shown(one: Native, levels: tuple[float, float], *, whole: bool = False) -> np.ndarray:
    """Returns a slice as `(h, w)` or `(h, w, 3)` uint8 between two levels.

    Args:
        one: the slice.
        levels: real values that are black and white.
        whole: every pixel; else, of a large slice, as many as a small picture needs.
    """
    if one.values.dtype == np.uint8 and levels == (0.0, 255.0):
        return one.values
    step = 1 if whole else max(1, max(one.values.shape[:2]) // 512)
    return to_bytes(Window.between(*levels).apply(one.values[::step, ::step]))


def conformed(slices: Sequence[Native], options: ReadOptions) -> np.ndarray:
    """Brings slices that were read for one model to the size and the grey of another.

    Args:
        slices: S of one case.
        options: as the images of that model are read, with its size and channels.

    Returns:
        `(S, H, W, C)` uint8.
    """
    made = []
    for one in slices:
        try:
            grey = one.toned(options.view)
        except DataError:  # nothing says what is black: by its own values, as a viewer shows it
            grey = shown(one, levels_of(one, options.view), whole=True)
        grey = grey if grey.ndim == 3 else grey[..., None]
        made.append(options.conform(ImageSet(grey[None])).images[0])
    return np.stack(made)
