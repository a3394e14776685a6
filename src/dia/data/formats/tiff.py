"""TIFF and PNG beyond Pillow: the pages of a TIFF; deep colour, floats and compressions it does not read.

Knows pages and samples. The libraries (tifffile, imagecodecs) are optional: without them pages are counted
and read by Pillow alone, which keeps the high byte of deep colour.

An image of more pixels than one may have, as of a whole slide, is never held: in its place the largest of its
reduced levels (a pyramid's) is read that is small enough.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...core.errors import DataError
from .limits import OPENED, check_opened, check_size, check_streams, optional
from .windowing import Stored

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
_ASPECT = 0.02  # by which a reduced level may be wider or narrower
_UNASSOCIATED = 2  # alpha that the colours are not yet multiplied by


class Pages(NamedTuple):
    """The images of a file.

    Args:
        numbers: from 0, of the pages of the first one's size and type; thumbnails are no pages.
        large: these are too large to be read whole: a reduced level of each is read.
    """

    numbers: list[int]
    large: bool


def pages(path: Path) -> Pages:
    """Lists the pages that are images; reads no pixel.

    Raises:
        DataError: pages that lie in each other or go round in a circle.
    """
    try:
        kinds = _page_kinds(path)
        large = math.prod(n for n in kinds[0][0] if n > 4) > _most()  # sides, not samples
    except DataError:
        raise
    except Exception:  # damage, which decoding explains better
        return Pages([0], False)
    return Pages([i for i, kind in enumerate(kinds) if kind == kinds[0]], large)


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


def _most() -> float:
    """Returns how many pixels an image may have."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf


def _level(tiff: Any, ifd: Any) -> Any:
    """Returns a page, or the largest of its reduced levels that is small enough.

    Labels and overviews that slide scanners add have another shape, or are not tiled.
    """
    if ifd.imagelength * ifd.imagewidth <= _most():
        return ifd
    found = [
        page
        for page in (*(ifd.pages or ()), *tiff.pages)
        if page.is_tiled
        and (page.dtype, page.samplesperpixel) == (ifd.dtype, ifd.samplesperpixel)
        and page.imagelength * page.imagewidth <= _most() / 2
        and abs(page.imagewidth * ifd.imagelength / (page.imagelength * ifd.imagewidth) - 1) < _ASPECT
    ]
    if not found:
        raise DataError(
            f"its header promises {ifd.imagelength}x{ifd.imagewidth} pixels, above the limit of {_most()}, "
            "and no reduced level; cut it into tiles, or save it with a pyramid"
        )
    return max(found, key=lambda page: page.imagewidth)


def read(path: Path, page: int, *, shallow: bool = False) -> Stored | None:
    """Reads a page of more than 8 bits of a TIFF file, which Pillow does not read rightly.

    Args:
        path: a TIFF file.
        page: number of the page, from 0.
        shallow: read a page of 8 bits too, because Pillow could not.

    Returns:
        Its values, `(H, W, 1 or 3)`; None where Pillow is to read the page, or without the library.

    Raises:
        DataError: pixels for which there is no rule, or more of them than the file can hold.
    """
    if not (tifffile := optional("tifffile")):
        return None
    with tifffile.TiffFile(path) as tiff:
        whole: Any = tiff.pages[page]
        if whole.dtype is None:
            return None
        ifd = _level(tiff, whole)
        if ifd.dtype.itemsize == 1 and not shallow and ifd is whole:
            return None
        photometric = ifd.photometric.name
        if photometric == "YCBCR" and ifd.compression.name == "JPEG":
            photometric = "RGB"  # to which it is decoded
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
    return Stored.of(_oriented(x[..., :colours], turned.value if turned else 1))


def is_deep(path: Path) -> bool:
    """Returns whether a file is a PNG of 16 bits, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False
    return head[:4] == b"\x89PNG" and head[24:25] == b"\x10"


def read_png(path: Path) -> Stored | None:
    """Reads a PNG file of 16-bit colour; Pillow would keep its high byte alone.

    Returns:
        Its values, `(H, W, 1 or 3)`; None where Pillow is to read the file, or without the library.

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
    return Stored.of(_oriented(x, turned))


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
        pixels = max(height * width for height, width in sizes)
        if sum(page.databytecounts) > available:  # they lie in each other
            return check_streams(path.read_bytes(), pixels)
        with path.open("rb") as file:  # of a large file, what is decoded alone
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                check_streams(file.read(count), pixels)
    return None


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
