"""Grey values: from what a file stores to black and white, by one rule; planes and ranges of slices.

The rule for an image of more than 8 bits, of any format:

1. a window that the user states;
2. else the file's own window, where it is a DICOM file that has one;
3. else the levels, two percentiles of training normals, which `levels` learns and a model keeps.

Images of 8 bits are taken as they are, but for DICOM's windows. Values that are not numbers are drawn black.
Knows numbers and the words a user types; knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from ...core.errors import DataError

# centre and width in Hounsfield units, as radiologists use them
PRESETS = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
    "bone": (400.0, 1800.0),
}
_DEEP = 65535.0
_SAMPLED = 2**15  # values of an image that are looked at
LOOKED = 64  # images that are looked at, evenly spaced, to learn black and white
_AT_ONCE = 2**19  # values brought to 8 bits at a time
ANATOMICAL = {"sagittal": 0, "coronal": 1, "axial": 2}  # axes of the canonical orientation: right, front, top
AXES = (*ANATOMICAL, "0", "1", "2")


@dataclass(frozen=True)
class Window:
    """A range of values drawn from black to white.

    Args:
        center, width: of the range, in the units of the (rescaled) values.
        function: DICOM's (PS3.3 C.11.2.1): `LINEAR` (its range ends half a unit early), `LINEAR_EXACT` or
            `SIGMOID`.
    """

    center: float
    width: float
    function: str = "LINEAR_EXACT"

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Maps `x` to float64 from 0, black, to 1, white; NaN stays NaN."""
        x = x.astype(np.float64)
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):  # exp of much is infinite, its inverse 0
                return 1 / (1 + np.exp(-4 * (x - self.center) / self.width))
        half = float(self.function == "LINEAR")
        center, width = self.center - half / 2, self.width - half
        if width <= 0:
            return np.where(np.isnan(x), np.nan, x > center)
        with np.errstate(over="ignore", invalid="ignore"):  # of values without measure, and narrow windows
            return np.clip((x - center) / width + 0.5, 0, 1)

    @classmethod
    def between(cls, low: float, high: float) -> Self:
        """Makes the window from `low`, which is black, to `high`, which is white.

        Args:
            low: in the units of the values.
            high: likewise.

        Returns:
            The window, of function `LINEAR_EXACT`.
        """
        return cls((low + high) / 2, high - low)


@dataclass(frozen=True)
class Percentiles:
    """The percentiles of training normals that are black and white.

    Args:
        low: in [0, 100].
        high: likewise.
    """

    low: float
    high: float


LEARNED = Percentiles(0.1, 99.9)
OF_VOLUME = (0.5, 99.5)  # percentiles of one file, for the window `volume`
Levels = Window | Literal["full", "earlier"] | None


@dataclass(frozen=True)
class Stored:
    """The values of one image as its file stores them, and what the file says of black and white.

    Args:
        values: `(H, W)` or `(H, W, C)` numbers of any type.
        ends: the real values that its type, or the bits it says to use, allow at least and at most; None
            for floats and long integers.
        real: from stored to real values, as by a rescale slope; None where they are the same.
        own: the file's window, from real values to 0–1; None where it has none.
        whole: gives black and white of the whole volume by its own percentiles, in real values; None where it
            is no slice of one.
        inverted: low values are white.
        scattered: its volume lies in several files or pages, which version 0.1 read as images of their own.
    """

    values: np.ndarray
    ends: tuple[float, float] | None
    real: Callable[[np.ndarray], np.ndarray] | None = None
    own: Callable[[np.ndarray], np.ndarray] | None = None
    whole: Callable[[], tuple[float, float]] | None = None
    inverted: bool = False
    scattered: bool = False

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Takes values as they are; longer integers count as of 16 bits, where those can hold them."""
        kind = values.dtype
        if kind.kind == "b":
            return cls(values, (0, 1))
        if kind.kind not in "iu":
            return cls(values, None)
        if kind.itemsize > 2:
            fits = values.size and values.min() >= 0 and values.max() <= _DEEP
            return cls(values, (0, _DEEP) if fits else None)
        return cls(values, (float(np.iinfo(kind).min), float(np.iinfo(kind).max)))

    def numbers(self, rows: slice = slice(None)) -> np.ndarray:
        """Returns the real values of some rows."""
        return self.values[rows] if self.real is None else self.real(self.values[rows])

    @property
    def shallow(self) -> bool:
        """Whether its values are 0–255 by their type, so that there is nothing to choose."""
        return self.ends == (0, 255) and self.real is None


def toned(stored: Stored, view: View) -> np.ndarray:
    """Brings an image to 8 bits.

    Args:
        stored: the image.
        view: what the user, or a model, says of black and white.

    Returns:
        uint8 of the shape of its values, 0 black, 255 white.

    Raises:
        DataError: nothing says which values are black and white.
    """
    tone = _tone(stored, view)
    out = np.empty(stored.values.shape, np.uint8)
    step = max(_AT_ONCE * len(out) // max(out.size, 1), 1)
    for i in range(0, len(out), step):  # a whole image of floats would take many times its file
        y = tone(stored.numbers(slice(i, i + step)))
        out[i : i + step] = to_bytes(1 - y if stored.inverted else y)
    return out


def _tone(stored: Stored, view: View) -> Callable[[np.ndarray], np.ndarray]:
    window, levels = view.window, view.levels
    if isinstance(window, Window):
        return window.apply
    if window == "volume" and stored.whole is not None:
        return Window.between(*stored.whole()).apply
    if window == "voi" and stored.own is not None:
        return stored.own
    if window == "full" or (stored.shallow and levels != "earlier" and not isinstance(window, Percentiles)):
        return _full(stored)
    if window == "volume" and not stored.shallow:
        raise DataError(
            "of more than 8 bits, and no slice of a volume, by whose own values it would be read; give all "
            "files of its series together; or give --window LOW:HIGH, or full"
        )
    if isinstance(levels, Window):
        return levels.apply
    if levels == "earlier" and stored.whole is not None and not stored.scattered:
        return Window.between(*stored.whole()).apply
    if levels is not None:
        return _full(stored)
    raise DataError(
        "of more than 8 bits, unlike the images before it: nothing says which values are black and white; "
        "give --window LOW:HIGH, or full"
    )


def _full(stored: Stored) -> Callable[[np.ndarray], np.ndarray]:
    if stored.ends is None:
        raise DataError("values without a full range, as floats are; give --window LOW:HIGH")
    return Window.between(*stored.ends).apply


def ends_of(values: np.ndarray, percentiles: tuple[float, float] = OF_VOLUME) -> tuple[float, float]:
    """Returns two percentiles of values; the extremes where those are equal.

    Args:
        values: of any shape; those that are not finite are left out.
        percentiles: both in [0, 100].

    Raises:
        DataError: no value is finite.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise DataError("none of its values is a number")
    low, high = np.percentile(finite, percentiles).tolist()
    if low == high:  # nearly all are alike
        low, high = float(finite.min()), float(finite.max())
    return low, high


def sampled(values: np.ndarray, most: int = _SAMPLED) -> np.ndarray:
    """Takes evenly spaced rows and columns of an image.

    Args:
        values: `(H, W)` or `(H, W, C)`.
        most: about how many values to take, at least 1; they may be up to four times as many.

    Returns:
        A view of them; all where there are fewer.
    """
    step = max(math.isqrt(max(values.size // most, 1)), 1)
    return values[::step, ::step]


def levels_of(samples: Iterable[np.ndarray], percentiles: Percentiles = LEARNED) -> str:
    """Learns which values are black and white.

    Args:
        samples: values of images.
        percentiles: of all of them together.

    Returns:
        The option `levels`: "LOW:HIGH", or "full" where all values are alike.

    Raises:
        DataError: no value is finite.
    """
    values = np.concatenate([np.ravel(part) for part in samples])
    black, white = ends_of(values, (percentiles.low, percentiles.high))
    return "full" if black == white else f"{black:.9g}:{white:.9g}"


def without_padding(values: np.ndarray, low: float, high: float, *, inverted: bool = False) -> np.ndarray:
    """Gives pixels that pad an image the darkest value of the others, as air beside a body has it.

    Args:
        values: stored values.
        low: the least value that is padding.
        high: the greatest.
        inverted: low values are white.

    Returns:
        The values; unchanged where all or none are padding.
    """
    padded = (values >= low) & (values <= high)
    if not padded.any() or padded.all():
        return values
    others = values[~padded]
    return np.where(padded, others.max() if inverted else others.min(), values)


def to_bytes(y: np.ndarray) -> np.ndarray:
    """Maps 0–1 to uint8 0–255, rounded half up; NaN becomes black."""
    return np.floor(np.nan_to_num(y, nan=0.0) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class View:
    """The view of medical images that a user asks for; see `of`.

    Args:
        window: a window stated, `voi` (each DICOM file's own, else the levels), `full` (all that a type
            allows), `volume` (percentiles of each volume) or percentiles of training normals.
        axis: `axial`, `coronal`, `sagittal`, or `0`, `1`, `2` as stored; of NIfTI volumes.
        slices: first and last (not included) of each volume, as in Python's slices.
        levels: black and white, as they were learned; `full` where there was nothing to learn, `earlier` for
            the rule of 0.1 (volumes by their own percentiles, others as `full`); None before that.
        channel: number, from 0, of the one volume that is read of a file of several; None for all.
    """

    window: Window | Percentiles | str = "voi"
    axis: str = "axial"
    slices: tuple[int | None, int | None] = (None, None)
    levels: Levels = None
    channel: int | None = None

    @classmethod
    def of(
        cls,
        window: str | None = None,
        axis: str | None = None,
        slices: str | None = None,
        levels: str | None = None,
        channel: int | None = None,
    ) -> Self:
        """Parses the options that a user typed.

        Args:
            window: a preset, "CENTER,WIDTH", "LOW:HIGH", "LOW%:HIGH%", "voi", "full" or "volume"; "voi" where
                None.
            axis: one of `AXES`; "axial" where None.
            slices: "FIRST:LAST", either of them empty or counted from the end; all where None.
            levels: "LOW:HIGH", "full" or "earlier".
            channel: number of a volume, from 0; all where None.

        Returns:
            The view, its window as numbers where it has them.

        Raises:
            DataError: one of them is not known; the message names the flag.
        """
        if axis is not None and axis not in AXES:
            raise DataError(f"--axis must be {', '.join(AXES[:-1])} or {AXES[-1]}, not {axis!r}")
        if channel is not None and not (isinstance(channel, int) and channel >= 0):
            raise DataError(f"--channel must be a number from 0 on, not {channel!r}")
        cut = _slices(slices or ":")
        return cls(_window(window or "voi"), axis or "axial", cut, _levels(levels), channel)

    @property
    def learns(self) -> bool:
        """Whether levels are needed that are not known yet."""
        return self.levels is None and (self.window == "voi" or isinstance(self.window, Percentiles))

    @property
    def percentiles(self) -> Percentiles:
        """The percentiles that levels are learned by."""
        return self.window if isinstance(self.window, Percentiles) else LEARNED


def _window(text: str) -> Window | Percentiles | str:
    if text in ("voi", "full", "volume"):
        return text
    if text in PRESETS:
        return Window(*PRESETS[text])
    try:
        if "%" in text:
            low, high = (float(part.strip().removesuffix("%")) for part in text.split(":"))
        else:
            low, high = map(float, text.split(":" if ":" in text else ","))
    except ValueError:
        names = ", ".join(PRESETS)
        choice = f"{names}, voi, full, volume, LOW:HIGH as -160:240, CENTER,WIDTH as 40,400, or 0.5%:99.5%"
        raise DataError(f"--window {text} is not known; give {choice}") from None
    if "%" in text:
        if not 0 <= low < high <= 100:
            raise DataError(f"--window {text}: percentiles must ascend from 0 to 100")
        return Percentiles(low, high)
    if ":" in text:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(f"--window {text}: black:white must be finite, and white the greater")
        return Window.between(low, high)
    if not (math.isfinite(low) and math.isfinite(high) and high > 0):
        raise DataError(f"--window {text}: the width must be above 0, and both be finite")
    return Window(low, high)


def _levels(text: str | None) -> Levels:
    if text in (None, "full", "earlier"):
        return text  # type: ignore[return-value]  # mypy does not narrow by `in`
    found = _window(text) if ":" in text and "%" not in text else None
    if not isinstance(found, Window):
        raise DataError(f"levels {text!r} are not LOW:HIGH")
    return found


def _slices(text: str) -> tuple[int | None, int | None]:
    try:
        start, stop = (int(part) if part.strip() else None for part in text.split(":"))
    except ValueError:
        raise DataError(f"--slices {text}: expected FIRST:LAST as 10:-10, 5: or :40") from None
    return start, stop
