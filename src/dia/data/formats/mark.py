"""The mark that the package's own pictures carry, by which they are not read again as scans.

A heatmap that lies among scans would be fitted on or scored like one. The mark is a text near the beginning
of the file: in a PNG's text chunk, in the EXIF tag Software of JPEG and TIFF. A copy keeps it; a picture that
another program saved anew may not. Knows bytes and Pillow; knows neither pictures nor layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

MARK = "drawn by dia-anomaly, not a scan"
MARKED = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # the kinds of pictures that can carry it
_SOFTWARE = 0x0131  # the tag, in EXIF as in TIFF
_HEAD = 4096  # bytes that are searched
_PART = 256  # files that a thread opens


def save_marked(picture: Image.Image, path: Path) -> None:
    """Saves a picture with the mark.

    Args:
        picture: what to save.
        path: a file of one of the kinds in `MARKED`, which Pillow tells by the name.
    """
    exif, text = Image.Exif(), PngInfo()
    exif[_SOFTWARE] = MARK
    text.add_text("Software", MARK)
    own = {"pnginfo": text} if path.suffix.lower() == ".png" else {"exif": exif}
    picture.save(path, **own)


def is_marked(path: Path) -> bool:
    """Returns whether a file is one of the package's own pictures; False where it cannot be read."""
    if path.suffix.lower() not in MARKED:
        return False
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_HEAD)
    except OSError:
        return False


def marked(paths: Sequence[Path]) -> list[bool]:
    """Returns for each file whether it is one of the package's own pictures."""
    parts = [paths[i : i + _PART] for i in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(16) as pool:  # a network disk answers many at once as soon as one
        return [own for part in pool.map(lambda part: [*map(is_marked, part)], parts) for own in part]
