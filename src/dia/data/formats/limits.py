"""Limits on the size that a file claims and unpacks to, and the optional libraries that read files.

Knows sizes, compressed streams and packages; reads no pixels and knows nothing of layouts.
"""

from __future__ import annotations

import gzip
import importlib
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.errors import DataError

# The formats that Pillow may try: it goes by the content, and for some of its formats starts other programs.
OPENED = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF", "AVIF")

_NAMES = {"pydicom": "DICOM", "nibabel": "NIfTI"}
_PIECE = 2**20  # bytes that are inflated at a time
INFLATED = 1032  # the most bytes that deflate makes of one
# bytes that packed pixels may unfold to: of one image, of a volume; or so many times their file, if more
IMAGE_BYTES, VOLUME_BYTES, TIMES = 2**27, 2**30, 32


class MissingLibrary(DataError):
    """A package is not installed; the file may be sound."""


@contextmanager
def refusing(fault: str, *libraries: str) -> Iterator[None]:
    """Turns the errors of the libraries into a `DataError` that quotes nothing of the file.

    Args:
        fault: what is wrong with the file when anything fails within.
        libraries: names of those whose warnings and log records are switched off.

    Raises:
        DataError: with the system's words for its own errors, otherwise `fault` and the name of the error.
    """
    for name in libraries:
        _silence(name)
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # nearly anything, on malformed bytes
        said = error.strerror if isinstance(error, OSError) else None
        raise DataError(said or f"{fault} ({type(error).__name__})") from None


def optional(name: str) -> Any:
    """Imports pydicom, nibabel, tifffile or imagecodecs; None where it is not installed.

    Its warnings and log records are switched off, for the whole process: nothing less holds in threads. Such
    libraries warn of malformed elements by quoting them, and a quotation may identify a patient.
    """
    try:
        found = importlib.import_module(name)
    except ImportError:
        return None
    _silence(name)
    return found


def required(name: str) -> Any:
    """Imports such a library.

    Raises:
        MissingLibrary: it is not installed.
    """
    if (found := optional(name)) is None:
        raise MissingLibrary(f"{_NAMES[name]} is read by {name}; pip install 'dia-anomaly[medical]'")
    return found


def _silence(name: str) -> None:
    for logger in (name, f"{name}.global"):  # the name of nibabel's
        logging.getLogger(logger).disabled = True
    # each time anew: the list of filters is swapped by whoever catches warnings
    warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def check_size(
    height: int, width: int, images: int, nbytes: int, available: int, ratio: float = 1, whole: bool = False
) -> None:
    """Refuses a header that promises more than an image may have, or than its file can hold or should.

    Args:
        height: of one image, in pixels.
        width: of one image, in pixels.
        images: number of frames or slices.
        nbytes: bytes of all pixels, unpacked.
        available: bytes of the file.
        ratio: bytes that may come of one packed byte: 1 where nothing is packed, infinite if it can be any.
        whole: the images are all read at once.

    Raises:
        DataError: no pixels, or more than the limits allow.
    """
    limit = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS  # Pillow's own; None for none
    if min(height, width, images) < 1:
        raise DataError(f"its header promises {images} images of {height}x{width} pixels")
    if limit is not None and height * width > limit:
        raise DataError(f"its header promises {height}x{width} pixels, above the limit of {limit}")
    if nbytes > available * ratio:
        raise DataError(f"its header promises {nbytes} bytes of pixels, more than its {available} can hold")
    read, most = (nbytes, VOLUME_BYTES) if whole else (nbytes // images, IMAGE_BYTES)
    if read > max(most, TIMES * available):
        raise DataError(
            f"its {available} bytes unfold to {read}, above the limit of {most >> 20} MiB or {TIMES} times "
            "the file; save it unpacked, or in a smaller type"
        )


def check_opened(image: Image.Image, path: Path, depth: int | None = None) -> None:
    """Refuses an image whose header, as Pillow read it, promises more than packed pixels may be.

    Args:
        image: opened, its pixels not yet decoded.
        path: of its file.
        depth: bytes of a sample; by the image's mode where None.

    Raises:
        DataError: as `check_size`.
    """
    deep = 4 if image.mode in ("I", "F") else 2 if image.mode.startswith("I;16") else 1
    nbytes = image.height * image.width * len(image.getbands()) * (depth or deep)
    check_size(image.height, image.width, 1, nbytes, path.stat().st_size, math.inf)


def unfolded(path: Path) -> bytes:
    """Returns what a gzip file holds, within the limits of one image.

    Raises:
        DataError: no gzip file, damaged, or it unfolds to too much.
    """
    available, pieces, total = path.stat().st_size, list[bytes](), 0
    with refusing("a damaged gzip file"), gzip.open(path) as file:
        while piece := file.read(_PIECE):
            total += len(piece)
            check_size(1, 1, 1, total, available, math.inf)
            pieces.append(piece)
    return b"".join(pieces)


MOST_SAMPLES = 4  # of a pixel
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the markers from C0 to CF: tables
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length


def check_streams(data: bytes, pixels: int) -> None:
    """Refuses compressed pixels that promise more than the header of their file does.

    Args:
        data: JPEG or JPEG 2000 streams, with whatever stands between them.
        pixels: height × width of one image, by the file's own header.

    Raises:
        DataError: one stream has more pixels, or more than four samples for each.
    """
    for height, width, samples in (*_jpeg_2000(data), *_jpeg(data)):
        if height * width > pixels or samples > MOST_SAMPLES:
            raise DataError(f"its compressed pixels are {height}x{width}, more than its header says")


def _jpeg_2000(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the size of each codestream, whose marker occurs in no packet (ISO 15444-1, A.5.1)."""
    for found in re.finditer(rb"\xff\x4f\xff\x51.{38}", data, re.DOTALL):
        right, bottom, left, top = (int.from_bytes(found[0][i : i + 4]) for i in (8, 12, 16, 20))
        yield max(bottom - top, 0), max(right - left, 0), int.from_bytes(found[0][40:42])


def _jpeg(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the sizes in each image's frame headers (ISO 10918-1, B.2.2; 14495-1, C.2.2)."""
    for start in re.finditer(rb"\xff\xd8\xff", data):
        at = start.start() + 2
        while (at := data.find(b"\xff", at)) >= 0 and at + 10 <= len(data):
            marker = data[at + 1]
            if marker in (0xDA, 0xD9):  # pixels follow, or nothing
                break
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
                height, width = (int.from_bytes(data[i : i + 2]) for i in (at + 5, at + 7))
                yield height, width, data[at + 9]
            passed = 1 if marker in (0x00, 0xFF) else 2
            at += passed if passed == 1 or marker in _ALONE else 2 + int.from_bytes(data[at + 2 : at + 4])
