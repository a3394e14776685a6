"""How large compressed pixels say they are, inside files whose own header may say something else.

Decoders believe the stream: a few bytes of JPEG, JPEG-LS or JPEG 2000 in a DICOM or TIFF file of a small
image could ask for gigabytes. Knows markers; decodes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .imageset import DataError

MOST_SAMPLES = 4  # of a pixel
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the markers from C0 to CF: tables
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length


def check_streams(data: bytes, pixels: int) -> None:
    """Refuses compressed pixels of which one stream has more than `pixels`, or than four samples each."""
    for height, width, samples in (*_jpeg_2000(data), *_jpeg(data)):
        if height * width > pixels or samples > MOST_SAMPLES:
            raise DataError(f"its compressed pixels are {height}x{width}, more than its header says")


def _jpeg_2000(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each codestream, which no packet can look like (ISO 15444-1, A.5.1)."""
    for found in re.finditer(rb"\xff\x4f\xff\x51.{38}", data, re.DOTALL):
        right, bottom, left, top = (int.from_bytes(found[0][i : i + 4]) for i in (8, 12, 16, 20))
        yield max(bottom - top, 0), max(right - left, 0), int.from_bytes(found[0][40:42])


def _jpeg(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of the frame headers of each image (ISO 10918-1, B.2.2; 14495-1, C.2.2)."""
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
