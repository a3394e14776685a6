"""DICOM: the frames and their order by a file's header, and frames as 8-bit pixels.

Knows the standard's rules for pixels; decoding is pydicom's and pylibjpeg's. Only the attributes named here
are read. One of them tells who the patient is: it is hashed at once, with a number that each process draws
anew. No text of an error or a warning of those libraries goes further: they quote what they stumble over. A
file may be packed by gzip as a whole.

Without PixelRepresentation stored values are taken as unsigned, which `Header.assumed` tells; another
attribute that is missing and needed is named in the refusal.

From stored values to grey: modality LUT or rescale; then black and white by the rule of `windowing`, where
the file's own window is its first VOI LUT or window; then inverted for MONOCHROME1 (or the presentation LUT
shape INVERSE). Padding takes the darkest value of the other pixels. Colour of any kind becomes RGB and takes
no window. Overlays and further windows are ignored.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ...core.errors import DataError
from . import limits
from .limits import check_size, refusing, unfolded
from .series import MARKS, Place
from .windowing import Stored, Window, to_bytes, without_padding

_SHAPE = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
]
_ORDER = [
    *("SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", *MARKS),
]
# what a frame says of its place: the sequence, the attribute in it, and that of a file of one frame
_OF_FRAMES = [
    ("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    ("FrameContentSequence", "StackID", "StackID"),
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    *((f"{kind}ImageFrameTypeSequence", "FrameType", "ImageType") for kind in ("CT", "MR", "PET", "XAXRF")),
]
_TONE = [
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
]
_PALETTE = [
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_ROWS = 256
_FAR = 1e7  # mm, which no place is away
_MALFORMED = "a malformed DICOM header"
_UNDECODED = "its pixels cannot be decoded", "pydicom", "pylibjpeg"
_DEFLATED, _PIECE = b"1.2.840.10008.1.2.1.99", 2**20
_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
_PIXELS = [
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


_SALT = os.urandom(32)  # of this process: its hashes say nothing to another


class NoImage(DataError):
    """A DICOM file without pixels: a report, a plan, a directory."""


class Header(NamedTuple):
    """The facts about a file that its header holds.

    Args:
        frames: number of frames.
        series: identifies the series; for comparing only, never to be kept or shown.
        places: of each frame, or one for all.
        windowed: it has a window of its own, or colour, or needs none with its 8 bits.
        burned_in: it says that its pixels hold writing that identifies the patient.
        assumed: it does not say whether stored values have a sign; they are taken as without.
        patient: a salted hash of the patient's ID, empty where the file has none; as `series`.
    """

    frames: int
    series: str
    places: Sequence[Place]
    windowed: bool
    burned_in: bool
    assumed: bool
    patient: str = ""


def header(path: Path) -> Header:
    """Reads the header alone.

    Raises:
        NoImage: the file has no pixels.
        DataError: no DICOM file, damaged, or promising more pixels than it can hold.
    """
    ds, available = _read(
        path, [*_SHAPE, *_ORDER, *_TONE, *_GROUPS, "BurnedInAnnotation", "PatientID"], pixels=False
    )
    with refusing(_MALFORMED):
        bits = ds.get("BitsStored") or 8
        windowed = bool(ds.get("VOILUTSequence")) or _own_window(ds) is not None
        frames = _check(ds, available)
        return Header(
            frames,
            str(ds.get("SeriesInstanceUID") or ""),
            _places(ds, frames),
            windowed or frames > 1 or bits <= 8 or int(ds.get("SamplesPerPixel") or 1) > 1,
            str(ds.get("BurnedInAnnotation") or "").upper() == "YES",
            ds.get("PixelRepresentation") is None and ds.get("BitsStored") is not None,
            _hashed(str(ds.get("PatientID") or "").strip()),
        )


def attributes(path: Path, keywords: Sequence[str]) -> Any:
    """Reads some attributes of a file with pixels, without these; what they hold is never to be shown.

    Args:
        path: the file.
        keywords: of the attributes.

    Returns:
        A pydicom data set.

    Raises:
        DataError: as `header`.
    """
    return _read(path, [*_SHAPE, *keywords], pixels=False)[0]


class Dicom:
    """The frames of one file, each decoded when it is asked for.

    Raises:
        DataError: as `header`.
    """

    def __init__(self, path: Path):
        self.ds, available = _read(path, [*_SHAPE, *_TONE, *_PALETTE, *_GROUPS, *_PIXELS], pixels=True)
        with refusing(_MALFORMED):
            _check(self.ds, available)
            _check_pixels(self.ds)
            if self.ds.file_meta.TransferSyntaxUID.is_encapsulated:
                limits.check_streams(self.ds.PixelData, int(self.ds.Rows) * int(self.ds.Columns))
        self.nbytes = max(len(self.ds.get(name) or b"") for name in _PIXELS[:3])

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

    def stored(self, index: int) -> Stored | np.ndarray:
        """Returns frame `index` (from 0): the values of grey `(H, W)`, or colour, `(H, W, 3)` uint8."""
        with refusing(*_UNDECODED):
            return self._values(index)

    def _values(self, index: int) -> Stored | np.ndarray:
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

        ds, x = self._of_frame(index), self._stored(index)
        if self.ds.PhotometricInterpretation == "PALETTE COLOR":
            bits = int(self.ds.RedPaletteColorLookupTableDescriptor[2])
            return _by_rows(lambda x: to_bytes(apply_color_lut(x, self.ds) / (2**bits - 1)), x)
        if x.ndim == 3:
            return _by_rows(lambda x: to_bytes(x / (2**self.ds.BitsStored - 1)), x)
        shape = str(ds.get("PresentationLUTShape") or "")
        inverted = ds.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"
        padding, limit = _first(ds.get("PixelPaddingValue")), _first(ds.get("PixelPaddingRangeLimit"))
        if padding is not None:
            low, high = sorted((padding, padding if limit is None else limit))
            x = without_padding(x, low, high, inverted=inverted)
        window, own = _own_window(ds), None
        if ds.get("VOILUTSequence"):
            top = 2 ** int(ds.VOILUTSequence[0].LUTDescriptor[2]) - 1
            own = _guarded(lambda values: apply_voi(values, ds) / top)
        elif window is not None:
            own = window.apply
        scaled = bool(ds.get("ModalityLUTSequence")) or "RescaleSlope" in ds
        real = _guarded(lambda stored: apply_modality_lut(stored, ds)) if scaled else None
        return Stored(x, _ends(ds, x), real, own, inverted=inverted)

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


def _guarded(tone: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function, which is called when the file is long read, with errors that quote nothing."""

    def guarded(values: np.ndarray) -> np.ndarray:
        with refusing(*_UNDECODED):
            return tone(values)

    return guarded


def _read(path: Path, keywords: list[str], *, pixels: bool) -> tuple[Any, int]:
    """Reads the attributes named, of a file that has pixels; returns them and the bytes of the file."""
    pydicom = limits.required("pydicom")
    packed = unfolded(path) if path.suffix.lower() == ".gz" else None
    available = path.stat().st_size if packed is None else len(packed)
    with refusing("no DICOM file, or damaged"):
        with path.open("rb") if packed is None else io.BytesIO(packed) as file:
            bare = not _has_preamble(file, available)
        ds = pydicom.dcmread(
            path if packed is None else io.BytesIO(packed),
            stop_before_pixels=not pixels, specific_tags=["SOPClassUID", *keywords], force=bare,
        )  # fmt: skip
        if "TransferSyntaxUID" not in ds.file_meta:  # a bare data set, as from before part 10
            syntaxes = {(True, True): "ImplicitVRLittleEndian", (False, True): "ExplicitVRLittleEndian"}
            name = syntaxes.get(ds.original_encoding, "ExplicitVRBigEndian")
            ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
        sides = [name for name in ("Rows", "Columns") if not ds.get(name)]
    if sides and bare and "SOPClassUID" not in ds:
        raise DataError("no DICOM file, or damaged")
    if len(sides) == 1:
        raise DataError(f"its header lacks {sides[0]}")
    if sides:
        raise NoImage("a DICOM file without an image")
    return ds, available


def _has_preamble(file: IO[bytes], available: int) -> bool:
    """Returns whether the file begins as part 10 says; refuses a deflated one that unfolds to too much.

    Pydicom would inflate it whole before it looks at it.
    """
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


def _check(ds: Any, available: int) -> int:
    """Refuses a header that the file cannot hold or that cannot be decoded; returns the number of frames."""
    _need(ds, "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
    frames = int(ds.get("NumberOfFrames") or 1)
    _decoder(ds.file_meta.TransferSyntaxUID)
    rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)
    syntax = ds.file_meta.TransferSyntaxUID
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


def _check_pixels(ds: Any) -> None:
    """Refuses a file without pixels, or without what these need; stored values without a sign are assumed."""
    if not any(ds.get(name) for name in _PIXELS[:3]):
        raise DataError("its header lacks PixelData, though it has Rows and Columns")
    if "PixelData" in ds:
        _need(ds, "BitsStored")
        if ds.get("PixelRepresentation") is None:
            ds.PixelRepresentation = 0
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            _need(ds, *(name for name in _PALETTE if name.endswith("Descriptor") and "Segm" not in name))
        elif int(ds.SamplesPerPixel) > 1:
            _need(ds, "PlanarConfiguration")


def _need(ds: Any, *keywords: str) -> None:
    for keyword in keywords:
        if ds.get(keyword) in (None, ""):
            raise DataError(f"its header lacks {keyword}")


def _places(ds: Any, frames: int) -> list[Place]:
    """Returns the places of the frames; one for all, where no frame has its own."""
    shared, own = (ds.get(name) or [] for name in _GROUPS)
    if not own and frames > 1:  # what the file says of its place is said of all: a film, or unknown
        return [_place(ds, {}, None)._replace(plane=None, point=None)]
    if not own and not shared:
        return [_place(ds, {}, None)]
    made = []
    for i in range(frames):
        said: dict[str, Any] = {}
        for group in (*shared[:1], *own[i : i + 1]):
            for sequence, keyword, name in _OF_FRAMES:
                for item in (group.get(sequence) or [])[:1]:
                    if (value := item.get(keyword)) is not None:
                        said[name] = value
        made.append(_place(ds, said, None if frames == 1 else i))
    return made


def _place(ds: Any, said: dict[str, Any], frame: int | None) -> Place:
    """Returns the place of an image by the file's attributes and those that its frame has."""

    def of(name: str) -> Any:
        try:
            return said[name] if name in said else ds.get(name)
        except Exception:  # a value that is none: it tells nothing
            return None

    def numbers(name: str, many: int) -> tuple[float, ...] | None:
        value = said.get(name, ds.get(name))
        fits = hasattr(value, "__len__") and not isinstance(value, str) and len(value) == many
        found = tuple(map(float, value)) if fits else ()
        return found if found and all(abs(x) < _FAR for x in found) else None  # NaN is not less

    kind, number = str(of("ImageType") or ""), ds.get("InstanceNumber")
    return Place(
        (int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)),
        numbers("ImageOrientationPatient", 6),
        numbers("PixelSpacing", 2),
        numbers("ImagePositionPatient", 3),
        frame if frame is not None else None if number is None else int(number),
        "LOCALIZER" in kind.upper(),
        tuple(_mark(of(name)) for name in MARKS),
    )


def _mark(value: Any) -> str | float | None:
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _hashed(patient: str) -> str:
    return (
        hashlib.blake2b(patient.encode(errors="replace"), key=_SALT, digest_size=16).hexdigest()
        if patient
        else ""
    )


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


def _ends(ds: Any, stored: np.ndarray) -> tuple[float, float] | None:
    """Returns what the stored bits allow, after the modality LUT or rescale; None for floats."""
    if stored.dtype.kind == "f":
        return None
    if ds.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(ds.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)
    if ds.get("RescaleSlope") is not None and ds.get("RescaleIntercept") is not None:
        ends = [float(ds.RescaleSlope) * end + float(ds.RescaleIntercept) for end in (low, high)]
        low, high = min(ends), max(ends)
    return float(low), float(high)
