"""Grey levels: which values are black and white in images of more than 8 bits, learned from normal ones.

Knows the values that files store; `formats.windowing` has the rule by which they become grey. Does not know
models: what is learned here becomes the option `levels`, which a model keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import DataError, printable
from .decode import Files
from .formats.tiff import is_deep
from .formats.windowing import LOOKED, Stored, View, Window, levels_of, sampled
from .imageset import subsample
from .layouts import VOLUMES, Entry
from .options import ReadOptions
from .volumes import SEVERAL, expand, in_series

_NARROW = 1 / 16  # of black to white, that most values of most images should span
_APART = 3.0  # times: white of one file over that of another, beyond which their scales differ


@dataclass(frozen=True)
class Survey:
    """The values of some images.

    Args:
        looked: images that were read.
        deep: those of them with more than 8 bits, and without a window of their own.
        types: how many of these have each type of numbers.
        low, high: the least and the greatest finite value of these; None where there are none.
        levels: black and white, the percentiles of their values, as the option; None where there are none.
        nowhere: those of them with pixels that are no numbers.
        shallow: images of 8 bits, which are taken as they are.
        narrow: the share of black to white that most values of a usual image span.
        apart: the greatest white of one of them over the least, each by its own percentile; 1 if alike.
        single: those of them that are no slice of a volume, as far as their own files tell.
    """

    looked: int
    deep: int
    types: dict[str, int]
    low: float | None = None
    high: float | None = None
    levels: str | None = None
    nowhere: int = 0
    apart: float = 1.0
    shallow: int = 0
    narrow: float = 1.0
    single: Sequence[Entry] = ()

    def facts(self) -> dict[str, Any]:
        """Returns what a user should know, ready for JSON."""
        made: dict[str, Any] = {"images_looked_at": self.looked, "of_more_than_8_bits": self.deep}
        if self.deep:
            made |= {"types": self.types, "values": [self.low, self.high], "black_and_white": self.levels}
            made |= {"with_pixels_that_are_no_numbers": self.nowhere}
        return made


def survey(entries: Sequence[Entry], view: View) -> Survey:
    """Looks at the values of at most 64 images, evenly spaced among the entries.

    Args:
        entries: one for each file; those that cannot be read are passed over, as reading them will tell.
        view: its `percentiles` are taken; files with a window of their own are left out where its window is
            `voi`.

    Returns:
        What was found.
    """
    files, looked = Files(view), 0
    types: dict[str, int] = {}
    samples: list[np.ndarray] = []
    single: list[Entry] = []
    nowhere = shallow = 0
    for entry in _some(entries, view):
        try:
            found = files.stored(entry)
            looked += 1
            if not isinstance(found, Stored) or found.shallow:
                shallow += entry.kind not in VOLUMES or isinstance(found, Stored)
                continue
            if found.own and view.window == "voi":
                continue
            values = replace(found, values=sampled(found.values)).numbers().astype(np.float64).ravel()
        except Exception:  # Pillow's decoders raise nearly anything; reading the file says what is wrong
            continue
        finite = values[np.isfinite(values)]
        nowhere += len(finite) < len(values)
        if len(finite):
            samples.append(finite)
            single += [entry] * (found.whole is None)
            name = found.values.dtype.name
            types[name] = types.get(name, 0) + 1
    if not samples:
        return Survey(looked, 0, {}, shallow=shallow)
    low, high = min(float(s.min()) for s in samples), max(float(s.max()) for s in samples)
    levels = levels_of(samples, view.percentiles)
    window = View.of(levels=levels).levels
    span = window.width if isinstance(window, Window) else np.inf
    wide = [w for s in samples if (w := float(np.percentile(s, view.percentiles.high) - s.min())) > 0]
    narrow = float(np.median([np.ptp(np.percentile(s, (5, 95))) for s in samples])) / span
    return Survey(
        looked, len(samples), types, low, high, levels, nowhere, max(wide) / min(wide) if wide else 1.0,
        shallow, narrow if levels != "full" else 1.0, single,
    )  # fmt: skip


def learned(options: ReadOptions, entries: Sequence[Entry], source: object) -> ReadOptions:
    """Learns the option `levels` from normal images, where it is needed and not known.

    Args:
        options: as images will be read.
        entries: the (training) normals.
        source: what messages name.

    Returns:
        The options; `levels` stays None where no image that was looked at has more than 8 bits.
    """
    if not entries:
        return options
    if not options.view.learns:
        given = options.window and not options.levels and not any(e.kind in VOLUMES for e in entries)
        seen = survey(entries, options.view) if given else None
        if seen and seen.shallow and not seen.deep and not any(is_deep(e.file) for e in entries):
            _warn(f"{source}: --window {options.window} does nothing for images of 8 bits")
        return options
    found = survey(entries, options.view)
    if not found.deep and (hidden := [e for e in entries if e.kind == "png" and is_deep(e.file)]):
        found = survey(hidden, options.view)
    if found.deep and found.shallow:
        _warn(
            f"{source}: {found.shallow} of {found.looked} images have 8 bits and are taken as they are, the "
            "others become grey by black and white that are learned; give all one depth"
        )
    if found.narrow < _NARROW:
        _warn(
            f"{source}: most values of most images lie within {found.narrow:.2%} of black to white "
            f"({found.levels}); if some values mean no data, or a few images are far brighter, give --window "
            "LOW:HIGH"
        )
    if found.nowhere:
        _warn(
            f"{source}: {found.nowhere} of {found.deep} images have pixels that are no numbers; drawn black"
        )
    if found.apart > _APART:
        remedy = "give --window volume"
        if (first := _no_slice(found.single, entries)) is not None:
            remedy = (
                f"save each with 8 bits of its own scale: --window volume needs volumes, {first} is in none"
            )
        _warn(
            f"{source}: white lies {found.apart:.0f} times as far from black in one image as in another; if "
            f"their scales differ, as those of MR do, {remedy}"
        )
    return options if found.levels is None else replace(options, levels=found.levels)


def _no_slice(single: Sequence[Entry], entries: Sequence[Entry]) -> str | None:
    """Returns the name of the first image that is in no volume, even with the DICOM files beside it."""
    folders = {e.file.parent for e in single}
    stacked = {e.file for e in in_series([e for e in entries if e.file.parent in folders]) if e.stack}
    return next((e.name for e in single if e.file not in stacked), None)


def _some(entries: Sequence[Entry], view: View) -> list[Entry]:
    """Returns evenly spaced entries; of a file of several images the one in the middle."""
    made: list[Entry] = []
    for entry in (entries[i] for i in subsample(np.arange(len(entries)), LOOKED)):
        if entry.kind in SEVERAL and entry.number is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    images = expand(
                        [entry], ReadOptions(axis=view.axis, channel=view.channel), entry.file.parent
                    )
            except DataError:
                continue
            entry = images[len(images) // 2]
        made.append(entry)
    return made


def _warn(line: str) -> None:
    warnings.warn(printable(line), stacklevel=2)
