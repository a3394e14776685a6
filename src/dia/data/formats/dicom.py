"""DICOM: the frames and their order by a file's header, and frames as 8-bit pixels.

Knows the standard's rules for pixels; decoding is pydicom's and pylibjpeg's. Only the attributes named here
are read, none of which tells who the patient is, and no text of an error or a warning of those libraries
goes further: they quote what they stumble over.

From stored values to grey: modality LUT or rescale; then the window stated, or the file's first VOI LUT or
window, or else the whole range that its stored bits allow, never that of the image itself; then inverted
for MONOCHROME1 (or the presentation LUT shape INVERSE). Colour of any kind becomes RGB and takes no window.
Overlays, padding values and further windows are ignored.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import DataError
from . import limits
from .limits import check_size, refusing
from .windowing import View, Window, to_bytes

_SHAPE = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
]
_ORDER = ["SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"]
_TONE = [
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
]
_PALETTE = [
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_ROWS = 256
_MALFORMED = "a malformed DICOM header"
_UNDECODED = "its pixels cannot be decoded", "pydicom", "pylibjpeg"
_DEFLATED, _PIECE = b"1.2.840.10008.1.2.1.99", 2**20
_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
_PIXELS = [
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


class NoImage(DataError):
    """A DICOM file without pixels: a report, a plan, a directory."""


class Header(NamedTuple):
    """The facts about a file that its header holds.

    Args:
        frames: number of frames.
        series: identifies the series; for comparing only, never to be kept or shown.
        position: along the normal of the image's plane, mm; None where the file does not say.
        normal: of that plane, rounded; None where the file does not say.
        number: of the image in its series; None where the file does not say.
        windowed: it has a window of its own, or colour, or needs none with its 8 bits.
        burned_in: it says that its pixels hold writing that identifies the patient.
    """

    frames: int
    series: str
    position: float | None
    normal: tuple[float, ...] | None
    number: int | None
    windowed: bool
    burned_in: bool


def header(path: Path) -> Header:
    """Reads the header alone.

    Raises:
        NoImage: the file has no pixels.
        DataError: no DICOM file, damaged, or promising more pixels than it can hold.
    """
    ds = _read(path, [*_SHAPE, *_ORDER, *_TONE, "BurnedInAnnotation"], pixels=False)
    with refusing(_MALFORMED):
        position, normal = _position(ds)
        number, bits = ds.get("InstanceNumber"), ds.get("BitsStored", 8)
        windowed = bool(ds.get("VOILUTSequence")) or _own_window(ds) is not None
        frames = _check(path, ds)
        return Header(
            frames,
            str(ds.get("SeriesInstanceUID") or ""),
            position,
            normal,
            None if number is None else int(number),
            windowed or frames > 1 or bits <= 8 or int(ds.get("SamplesPerPixel") or 1) > 1,
            str(ds.get("BurnedInAnnotation") or "").upper() == "YES",
        )


class Dicom:
    """The frames of one file, each decoded when it is asked for.

    Raises:
        DataError: as `header`.
    """

    def __init__(self, path: Path, view: View):
        self.ds = _read(path, [*_SHAPE, *_TONE, *_PALETTE, *_GROUPS, *_PIXELS], pixels=True)
        with refusing(_MALFORMED):
            _check(path, self.ds)
            if self.ds.file_meta.TransferSyntaxUID.is_encapsulated:
                limits.check_streams(self.ds.PixelData, int(self.ds.Rows) * int(self.ds.Columns))
        self.window = view.window
        self.nbytes = max(len(self.ds.get(name) or b"") for name in _PIXELS[:3])

    def image(self, index: int) -> np.ndarray:
        """Returns frame `index` (from 0), `(H, W, 1 or 3)` uint8."""
        with refusing(*_UNDECODED):
            return self._image(index)

    def mask(self, index: int) -> np.ndarray:
        """Returns frame `index` of a mask, `(H, W)` bool, True where the stored value is not 0."""
        with refusing(*_UNDECODED):
            stored = self._stored(index)
        return np.asarray(stored.reshape(*stored.shape[:2], -1).any(axis=-1))

    def _stored(self, index: int) -> np.ndarray:
        from pydicom.pixels import pixel_array

        decoder = _decoder(self.ds.file_meta.TransferSyntaxUID)
        plugin = "pylibjpeg" if "pylibjpeg" in decoder.available_plugins else ""  # the same pixels everywhere
        return pixel_array(self.ds, index=index, decoding_plugin=plugin)

    def _image(self, index: int) -> np.ndarray:
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

        ds, x = self._of_frame(index), self._stored(index)
        if self.ds.PhotometricInterpretation == "PALETTE COLOR":
            bits = int(self.ds.RedPaletteColorLookupTableDescriptor[2])
            return _by_rows(lambda x: to_bytes(apply_color_lut(x, self.ds) / (2**bits - 1)), x)
        if x.ndim == 3:
            return _by_rows(lambda x: to_bytes(x / (2**self.ds.BitsStored - 1)), x)
        own, full = _own_window(ds), _range(ds, x)
        shape = str(ds.get("PresentationLUTShape") or "")
        inverted = ds.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"

        def tone(x: np.ndarray) -> np.ndarray:
            x = apply_modality_lut(x, ds)
            if isinstance(self.window, Window):
                y = self.window.apply(x)
            elif self.window == "voi" and ds.get("VOILUTSequence"):
                y = apply_voi(x, ds) / (2 ** int(ds.VOILUTSequence[0].LUTDescriptor[2]) - 1)
            elif self.window == "voi" and own is not None:
                y = own.apply(x)
            elif full is not None:
                y = full.apply(x)
            else:
                raise DataError("float pixels without a window of their own; give --window CENTER,WIDTH")
            return to_bytes(1 - y if inverted else y)[..., None]

        return _by_rows(tone, x)

    def _of_frame(self, index: int) -> Any:
        """Returns the tone attributes of one frame: its own, else the shared ones, else the file's."""
        if not any(self.ds.get(name) for name in _GROUPS):
            return self.ds
        from pydicom.dataset import Dataset

        tone = Dataset()
        tone.file_meta = self.ds.file_meta
        for name in (*_TONE, *_SHAPE):
            if name in self.ds:
                tone.add(self.ds[name])
        shared, own = (self.ds.get(name) or [] for name in _GROUPS)
        for group in (*shared[:1], *own[index : index + 1]):
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (group.get(name) or [])[:1]:
                    tone.update({e.tag: e for e in item if e.keyword in _TONE})
        return tone


def _read(path: Path, keywords: list[str], *, pixels: bool) -> Any:
    """Reads the attributes named, of a file that has pixels."""
    pydicom = limits.required("pydicom")
    with refusing("no DICOM file, or damaged"):
        bare = not _has_preamble(path)
        ds = pydicom.dcmread(
            path, stop_before_pixels=not pixels, specific_tags=["SOPClassUID", *keywords], force=bare
        )
        if "TransferSyntaxUID" not in ds.file_meta:  # a bare data set, as from before part 10
            syntaxes = {(True, True): "ImplicitVRLittleEndian", (False, True): "ExplicitVRLittleEndian"}
            name = syntaxes.get(ds.original_encoding, "ExplicitVRBigEndian")
            ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
        image = bool(ds.get("Rows")) and bool(ds.get("Columns"))
    if not image and bare and "SOPClassUID" not in ds:
        raise DataError("no DICOM file, or damaged")
    if not image:
        raise NoImage("a DICOM file without an image")
    return ds


def _has_preamble(path: Path) -> bool:
    """Returns whether the file begins as part 10 says; refuses a deflated one that unfolds to too much.

    Pydicom would inflate it whole before it looks at it.
    """
    available = path.stat().st_size
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return False
        deflated = False
        while (head := file.read(8))[:2] == b"\x02\x00":  # the group that is never deflated
            long = head[4:6] in (b"OB", b"OW", b"UN", b"SQ", b"UT")
            value = file.read(int.from_bytes(file.read(4) if long else head[6:8], "little"))
            deflated |= head[:4] == b"\x02\x00\x10\x00" and value.rstrip(b"\0 ") == _DEFLATED
        if deflated:
            file.seek(-len(head), 1)
            inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while piece := inflate.unconsumed_tail or file.read(_PIECE):
                total += len(inflate.decompress(piece, _PIECE))
                check_size(1, 1, 1, total, available, math.inf)
    return True


def _decoder(syntax: Any) -> Any:
    from pydicom.pixels import get_decoder

    named = syntax.name != str(syntax)  # the standard knows it
    name = f"the transfer syntax {syntax.name}" if named else "a private transfer syntax"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(f"{name} is not read; convert it to another one") from None
    if not decoder.is_available:
        raise limits.MissingLibrary(f"{name} is read by pylibjpeg; pip install 'dia-anomaly[medical]'")
    return decoder


def _by_rows(tone: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Applies `tone` to some rows at a time: a whole image of floats would take many times its file."""
    return np.concatenate([tone(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)])


def _check(path: Path, ds: Any) -> int:
    """Refuses a header that the file cannot hold or that cannot be decoded; returns the number of frames."""
    frames = int(ds.get("NumberOfFrames") or 1)
    _decoder(ds.file_meta.TransferSyntaxUID)
    rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel") or 1)
    syntax, available = ds.file_meta.TransferSyntaxUID, path.stat().st_size
    nbytes = frames * rows * columns * samples * int(ds.BitsAllocated) // 8
    if str(ds.get("PhotometricInterpretation")) == "YBR_FULL_422":
        nbytes = nbytes * 2 // 3
    if samples > limits.MOST_SAMPLES:
        raise DataError(f"its header promises {samples} samples for each pixel; grey has one, colour three")
    if syntax.is_encapsulated:  # each frame is an item of its own
        check_size(rows, columns, frames, frames * 8, available)
        nbytes = max(nbytes, 2 * frames * rows * columns * samples)  # decoders are slow, and count in 16 bits
    ratio = math.inf if syntax.is_encapsulated else limits.INFLATED if syntax.is_deflated else 1
    check_size(rows, columns, frames, nbytes, available, ratio)
    return frames


def _position(ds: Any) -> tuple[float | None, tuple[float, ...] | None]:
    place, plane = ds.get("ImagePositionPatient"), ds.get("ImageOrientationPatient")
    if not place or not plane or len(place) != 3 or len(plane) != 6:
        return None, None
    along = np.array(plane, float)
    normal = np.cross(along[:3], along[3:])
    return float(normal @ np.array(place, float)), tuple((np.round(normal, 2) + 0.0).tolist())


def _own_window(ds: Any) -> Window | None:
    """Returns the first window of the file; None where it has none, or one of no width."""
    center, width = _first(ds.get("WindowCenter")), _first(ds.get("WindowWidth"))
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or not width >= (1 if function == "LINEAR" else 1e-12):
        return None
    return Window(center, width, function)


def _first(value: Any) -> float | None:
    """Returns a number, or the first of several."""
    if hasattr(value, "__iter__"):
        value = None if isinstance(value, str) else next(iter(value), None)
    return None if value is None else float(value)


def _range(ds: Any, stored: np.ndarray) -> Window | None:
    """Returns the range of the stored bits, after the modality LUT or rescale; None for floats."""
    if stored.dtype.kind == "f":
        return None
    if ds.get("ModalityLUTSequence"):
        return Window.between(0, 2 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(ds.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)
    if ds.get("RescaleSlope") is not None and ds.get("RescaleIntercept") is not None:
        ends = [float(ds.RescaleSlope) * end + float(ds.RescaleIntercept) for end in (low, high)]
        low, high = min(ends), max(ends)
    return Window.between(low, high)
