"""Simple properties of image files and pixels, by which classes from different sources can be told apart.

Knows files and arrays; knows no model and no label. Only headers of files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.formats.limits import OPENED
from ..data.imageset import ImageSet

_FORMATS = 4  # different ones at most: more are names, not formats


def properties_of(images: ImageSet, files: Mapping[str, Path] | None = None) -> dict[str, np.ndarray]:
    """Measures what is known of each image without looking at what it shows.

    Args:
        images: N images at one size.
        files: the file of each image by its name; none where they come from an array. Of files with several
            images nothing is measured but the pixels.

    Returns:
        `(N,)` float64 by name; NaN where not known.
    """
    x = images.images.reshape(len(images), -1)
    found = {
        "the darkest grey level": x.min(1).astype(float),
        "the brightest grey level": x.max(1).astype(float),
        "the number of grey levels": np.array([len(np.unique(row)) for row in x], float),
        "the share of black pixels": np.array([(row == 0).mean() for row in x]),
    }
    own = [(files or {}).get(name) for name in images.names]
    if not any(own) or len(set(own)) < len(own):
        return found
    headers = np.array([_header(path) for path in own if path is not None], float).reshape(-1, 4)
    if len(headers) < len(own):
        return found
    for i, name in enumerate(("the file's size", "the image's width", "the image's height", "its channels")):
        found[name] = headers[:, i]
    suffixes = [path.suffix.lower() for path in own if path is not None]
    if 1 < len(kinds := sorted(set(suffixes))) <= _FORMATS:
        found |= {f"the ending {k}": np.array([s == k for s in suffixes], float) for k in kinds}
    return found


def _header(path: Path) -> tuple[float, float, float, float]:
    """Returns bytes, width, height and channels of a file, NaN where its header does not say."""
    nan = float("nan")
    with suppress(Exception):  # a header that Pillow does not read, as of DICOM, says nothing here
        size = float(path.stat().st_size)
        with suppress(Exception), Image.open(path, formats=OPENED) as image:
            return size, float(image.width), float(image.height), float(len(image.getbands()))
        return size, nan, nan, nan
    return nan, nan, nan, nan
