"""TIFF and PNG beyond Pillow: the pages of a TIFF; deep colour, floats and compressions it does not read.

Knows pages and samples. The libraries (tifffile, imagecodecs) are optional: without them pages are counted
and read by Pillow alone, which keeps the high byte of deep colour.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import DataError
from .limits import OPENED, check_opened, check_size, check_streams, optional
from .windowing import Window, to_bytes

_ORIENTATION = 274  # the tag, in EXIF as in TIFF
_REDUCED = 254  # the tag whose lowest bit marks a page as another's thumbnail
# depth and colour type of a PNG: RGB, grey and alpha, RGBA
_DEEP_COLOUR = (b"\x10\2", b"\x10\4", b"\x10\6")
# compressions of bytes, whose result tifffile bounds, and of images, which say their own size
_BYTES = ("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA", "ZSTD", "ZSTD_DEPRECATED")
_STREAMS = (
    *("JPEG", "OJPEG", "JPEG2000", "APERIO_JP2000_YCBC", "APERIO_JP2000_RGB", "JPEG_2000_LOSSY"),
    "JPEG_LOSSY",
)
_UNASSOCIATED = 2  # alpha that the colours are not yet multiplied by


def pages(path: Path) -> list[int]:
    """Numbers, from 0, of the pages of the first one's size and type; thumbnails are no pages.

    Raises:
        DataError: pages that lie in each other or go round in a circle.
    """
    try:
        kinds = _page_kinds(path)
    except DataError:
        raise
    except Exception:  # damage, which decoding explains better
        return [0]
    return [i for i, kind in enumerate(kinds) if kind == kinds[0]]


def _page_kinds(path: Path) -> list[Any]:
    """Returns what tells an image's pages from thumbnails: their sizes, types and marks."""
    kinds: list[Any] = []
    if tifffile := optional("tifffile"):
        places, room = set(), path.stat().st_size
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                room -= 12 * len(page.tags)
                if page.offset in places or room < 0:
                    raise DataError("its pages go round in a circle, or lie in each other")
                places.add(page.offset)
                kinds.append((page.shape, page.dtype, page.is_reduced))
    else:
        with Image.open(path, formats=OPENED) as image:
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                reduced = image.tag_v2.get(_REDUCED, 0) & 1 if hasattr(image, "tag_v2") else 0
                kinds.append((image.size, image.mode, bool(reduced)))
    return kinds


def read(path: Path, page: int, window: Window | None, *, shallow: bool = False) -> np.ndarray | None:
    """Reads a page of more than 8 bits of a TIFF file, which Pillow does not read rightly.

    Args:
        path: a TIFF file.
        page: number of the page, from 0.
        window: for floats, which are refused without one.
        shallow: read a page of 8 bits too, because Pillow could not.

    Returns:
        `(H, W, 1 or 3)` uint8; None where Pillow is to read the page, or without the library.

    Raises:
        DataError: pixels for which there is no rule, or more of them than the file can hold.
    """
    if not (tifffile := optional("tifffile")):
        return None
    with tifffile.TiffFile(path) as tiff:
        ifd: Any = tiff.pages[page]
        if ifd.dtype is None or (ifd.dtype.itemsize == 1 and not shallow):
            return None
        photometric = ifd.photometric.name
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB") or not set(ifd.axes) <= set("YXS"):
            raise DataError(f"{ifd.dtype} pixels of type {photometric}; convert it to grey or RGB")
        if ifd.dtype.kind not in "buif":
            raise DataError(f"pixels of type {ifd.dtype}; convert it to 8 or 16 bits")
        _check(ifd, path)
        x = ifd.asarray()
        alpha = [int(kind) == _UNASSOCIATED for kind in ifd.extrasamples]
        turned = ifd.tags.get(_ORIENTATION)
    if ifd.axes.startswith("S"):
        x = np.moveaxis(x, 0, -1)
    x = np.atleast_3d(x)
    if photometric == "MINISWHITE" and x.dtype.kind in "bu":
        x = ~x
    colours = x.shape[-1] - len(alpha)
    if alpha and alpha[0]:
        x = np.concatenate([_over_black(x[..., :colours], x[..., colours : colours + 1])], -1)
    return _oriented(to_8_bits(x[..., :colours], window), turned.value if turned else 1)


def read_png(path: Path) -> np.ndarray | None:
    """Reads a PNG file of 16-bit colour; Pillow would keep its high byte alone.

    Returns:
        `(H, W, 1 or 3)` uint8; None where Pillow is to read the file, or without the library.

    Raises:
        DataError: more pixels than the file can hold.
    """
    with path.open("rb") as file:
        if file.read(26)[24:] not in _DEEP_COLOUR or not (imagecodecs := optional("imagecodecs")):
            return None
    with Image.open(path, formats=OPENED) as image:  # refuses a header too large to be true
        check_opened(image, path, depth=2)
        turned = image.getexif().get(_ORIENTATION, 1)
    x = imagecodecs.png_decode(path.read_bytes())
    colours = 1 if x.shape[-1] == 2 else 3
    if x.shape[-1] > colours:
        x = _over_black(x[..., :colours], x[..., colours:])
    return _oriented(from_16_bit(x), turned)


def to_8_bits(x: np.ndarray, window: Window | None) -> np.ndarray:
    """Converts grey or colour of any depth to uint8: integers by a fixed rule, floats by a stated window.

    Args:
        x: pixels, of any shape: bool, integers 0–65535 or floats.
        window: for floats.

    Returns:
        uint8 of the same shape, 0–255.

    Raises:
        DataError: integers outside 0–65535, floats without a window.
    """
    if x.dtype == np.uint8:
        return x
    if x.dtype == bool:
        return x * np.uint8(255)
    if x.dtype.kind == "f":
        if window is None:
            raise DataError("float pixels; convert it to 8 or 16 bits, or give --window CENTER,WIDTH")
        return to_bytes(window.apply(x))
    if x.min() < 0 or x.max() > 65535:
        raise DataError(f"integer pixels of {x.min()} to {x.max()}; convert it to 8 or 16 bits")
    return from_16_bit(x)


def from_16_bit(x: np.ndarray) -> np.ndarray:
    """Maps 0–65535 to 0–255: x / 257, rounded; 257 is odd, so there are no ties."""
    return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _check(page: Any, path: Path) -> None:
    """Refuses a page or tile whose tags promise more than an image may have."""
    compression = page.compression.name
    streams = compression in _STREAMS
    if not streams and compression not in _BYTES:
        raise DataError(f"compressed as {compression}; convert it to another compression")
    available, sizes = path.stat().st_size, [(page.imagelength, page.imagewidth)]
    sizes += [(page.tilelength, page.tilewidth)] * page.is_tiled
    for height, width in sizes:
        nbytes = height * width * page.samplesperpixel * page.dtype.itemsize
        check_size(height, width, 1, nbytes, available, math.inf)
    if streams:
        check_streams(path.read_bytes(), max(height * width for height, width in sizes))


def _over_black(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Multiplies colours by their opacity, in the depth they have."""
    if x.dtype.kind == "f":
        return x * alpha
    top = np.iinfo(x.dtype).max
    return ((x.astype(np.uint64) * alpha + top // 2) // top).astype(x.dtype)


def _oriented(x: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors as the tag says, as `ImageOps.exif_transpose` does."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    return np.ascontiguousarray(x)
