"""Small files that unfold to the most that is accepted, and what reading each costs, in a process of its own.

    python benchmarks/fuzz_bombs.py NAME

prints seconds of CPU and the greatest memory as JSON; `fuzz.py` draws the table.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from math import isqrt
from pathlib import Path

import numpy as np

from dia.core.environment import peak_memory_mb, reset_peak_memory
from dia.data import readers
from dia.data.formats.limits import IMAGE_BYTES, VOLUME_BYTES

from ..common import apart
from . import fuzz_files as files

_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # of a PNG's colour types


def png(depth: int, colour: int) -> bytes:
    """Zeros, as many as an image may unfold to; made row by row."""
    pixel = _SAMPLES[colour] * depth // 8
    side = isqrt(IMAGE_BYTES // pixel)
    packer, row = zlib.compressobj(9), bytes(side * pixel + 1)
    parts = [packer.compress(row) for _ in range(side)] + [packer.flush()]
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b"".join(parts)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(files.chunk(*c) for c in chunks)


def dicom(syntax: str) -> bytes:
    """A frame of zeros in a stream of this kind."""
    side = isqrt(IMAGE_BYTES // 2)
    x = np.zeros((side, side), np.uint8)
    if syntax == "jpeg":
        stream = files.pillow(x, "JPEG")
    elif syntax == "jpeg 2000":
        stream = files.pillow(x, "JPEG2000", no_jp2=True)
    else:
        import imagecodecs

        stream = imagecodecs.jpegls_encode(x)
    return files.dicom([stream], syntax, Rows=side, Columns=side)


def tiff() -> bytes:
    """A deflated page of 16 bits."""
    side = isqrt(IMAGE_BYTES // 2)
    packed = zlib.compress(bytes(2 * side * side), 9)
    tags = files.tags(np.zeros((1, 1), np.uint16)) | {"width": [side], "length": [side], "rows": [side]}
    return files.tiff(packed, tags | {"compression": [8], "counts": [len(packed)]})


def volume(kind: str) -> bytes:
    """A packed volume of zeros."""
    side = 812 if kind == "uint8" else round((VOLUME_BYTES // np.dtype(kind).itemsize) ** (1 / 3))
    return files.nifti(np.zeros((side, side, side), kind), packed=True)


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG, grey": (".png", lambda: png(8, 0)),
    "PNG, grey and alpha": (".png", lambda: png(8, 4)),
    "PNG, RGBA": (".png", lambda: png(8, 6)),
    "PNG, 16-bit RGBA": (".png", lambda: png(16, 6)),
    "TIFF, 16-bit, deflated": (".tif", tiff),
    "DICOM, JPEG": (".dcm", lambda: dicom("jpeg")),
    "DICOM, JPEG-LS": (".dcm", lambda: dicom("jpeg-ls")),
    "DICOM, JPEG 2000": (".dcm", lambda: dicom("jpeg 2000")),
    "NIfTI, uint8, packed": (".nii.gz", lambda: volume("uint8")),
    "NIfTI, float64, packed": (".nii.gz", lambda: volume("float64")),
}


def measured() -> list[dict[str, object]]:
    """A row for each."""
    return [apart("benchmarks.robustness.fuzz_bombs", name) for name in BOMBS]


def main() -> None:
    """One of them."""
    warnings.simplefilter("ignore")
    name = sys.argv[1]
    suffix, make = BOMBS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        path.write_bytes(make())
        reset_peak_memory()
        before, start = peak_memory_mb(), time.process_time()
        read = readers.read(path, size=32, workers=1)
        took, peak = time.process_time() - start, peak_memory_mb() - before
        row = {"file": name, "kb": path.stat().st_size >> 10, "images": len(read), "cpu_s": round(took, 1)}
    print(json.dumps(row | {"peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
