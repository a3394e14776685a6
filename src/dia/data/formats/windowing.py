"""Views of images of more than 8 bits: windows of grey values, planes and ranges of slices.

Knows numbers and the words a user types; knows nothing of files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

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


def to_bytes(y: np.ndarray) -> np.ndarray:
    """Maps 0–1 to uint8 0–255, rounded half up; NaN becomes black."""
    return np.floor(np.nan_to_num(y, nan=0.0) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class View:
    """The view of medical images that a user asks for; see `of`.

    Args:
        window: a window stated, `voi` (each file's own) or `full` (all that its bits allow).
        axis: `axial`, `coronal`, `sagittal`, or `0`, `1`, `2` as stored; of NIfTI volumes.
        slices: first and last (not included) of each volume, as in Python's slices.
    """

    window: Window | str = "voi"
    axis: str = "axial"
    slices: tuple[int | None, int | None] = (None, None)

    @classmethod
    def of(cls, window: str | None = None, axis: str | None = None, slices: str | None = None) -> Self:
        """Parses the options that a user typed.

        Args:
            window: a preset, "CENTER,WIDTH", "voi" or "full"; "voi" where None.
            axis: one of `AXES`; "axial" where None.
            slices: "FIRST:LAST", either of them empty or counted from the end; all where None.

        Returns:
            The view, its window as numbers where it has them.

        Raises:
            DataError: one of them is not known; the message names the flag.
        """
        if axis is not None and axis not in AXES:
            raise DataError(f"--axis must be {', '.join(AXES[:-1])} or {AXES[-1]}, not {axis!r}")
        return cls(_window(window or "voi"), axis or "axial", _slices(slices or ":"))

    @property
    def stated(self) -> Window | None:
        """The window, where the user gave its values; else None."""
        return self.window if isinstance(self.window, Window) else None


DEFAULT_VIEW = View()


def _window(text: str) -> Window | str:
    if text in ("voi", "full"):
        return text
    if text in PRESETS:
        return Window(*PRESETS[text])
    try:
        center, width = map(float, text.split(","))
    except ValueError:
        names = ", ".join(PRESETS)
        choice = f"{names}, voi, full, or CENTER,WIDTH as 40,400"
        raise DataError(f"--window {text} is not known; give {choice}") from None
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise DataError(f"--window {text}: the width must be above 0, and both be finite")
    return Window(center, width)


def _slices(text: str) -> tuple[int | None, int | None]:
    try:
        start, stop = (int(part) if part.strip() else None for part in text.split(":"))
    except ValueError:
        raise DataError(f"--slices {text}: expected FIRST:LAST as 10:-10, 5: or :40") from None
    return start, stop
