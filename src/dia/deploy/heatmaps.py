"""The files of heatmaps that `dia score` writes, one set for each image, at the size of the image's own file,
and the paths of these and of masks.

The pixels of an image are read again at that size, as the model saw it smaller. Knows listings, maps and
pictures; knows neither rows nor how maps are made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..data.formats.mark import save_marked
from ..data.imageset import ImageSet
from ..data.readers import Listing

Form = Literal["overlay", "beside", "npy", "tiff"]
MaskForm = Literal["png", "nifti", "seg"]
SUFFIXES: dict[Form, str] = {
    "overlay": ".heatmap.png",
    "beside": ".beside.png",
    "npy": ".heatmap.npy",
    "tiff": ".heatmap.tiff",
}
MASKS: dict[MaskForm, str] = {
    "png": ".findings.png",
    "nifti": ".findings.nii.gz",
    "seg": ".findings.dcm",
}
_ENDS = (*SUFFIXES.values(), *MASKS.values())
_MARK = "%"  # of a folder whose name cannot stand for itself, and of a name that was shortened
_MOST = 255 - max(map(len, _ENDS))  # bytes of a name that leave room for a suffix
_SHORTENED = re.compile(rf".*{_MARK}[0-9a-f]{{32}}", re.DOTALL)


class HeatmapFiles:
    """Writes the files of the heatmaps of a listing's images, in order.

    Args:
        folder: the folder of all of them.
        forms: what is written for each image: `overlay`, the image with the heatmap in colours, a contour and
            the scale of colours; `beside`, the same with the plain image at its left; `npy` and `tiff`, the
            heatmap itself as `(H, W)` float32.
        listing: the images of the run.
        start: the number of images done before.
    """

    def __init__(self, folder: Path, forms: Sequence[Form], listing: Listing, start: int):
        self.folder, self.forms = folder, tuple(dict.fromkeys(forms))
        own_size = replace(listing.options, size=None, max_size=None, channels=None, progress=False)
        # one thread, without reading ahead: images at their own size may be large
        self._originals: Iterator[ImageSet] = replace(listing, options=own_size).stream(1, start, workers=1)

    def write(
        self, names: Sequence[str], maps: np.ndarray, scale: tuple[float, float], level: float | None
    ) -> None:
        """Writes the files of some images, which follow those of the last call in the listing.

        Args:
            names: the names of N images; others between them in the listing are passed over.
            maps: `(N, h, w)` heatmaps at the model's size.
            scale: the values at the ends of the colours.
            level: the value around which contours are drawn; None for none.
        """
        from ..report.pictures import (
            overlay,
            with_scale,
        )  # here, as the help of `dia score` needs no matplotlib

        for name, small in zip(names, maps, strict=True):
            image = next(found for found in self._originals if name in found.names).images[0]
            size = image.shape[1], image.shape[0]
            heat = np.asarray(
                Image.fromarray(small.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
            )
            for form in self.forms:
                path = heatmap_path(self.folder, name, form)
                path.parent.mkdir(parents=True, exist_ok=True)
                if form == "npy":
                    np.save(path, heat)
                elif form == "tiff":
                    save_marked(Image.fromarray(heat), path)
                else:
                    shown = [overlay(image, heat, scale, level)]
                    if form == "beside":
                        shown.insert(0, image)
                    save_marked(with_scale(shown, scale, level), path)


def heatmap_path(folder: Path, name: str, form: Form = "overlay") -> Path:
    """Returns the path of an image's heatmap: of two images never the same, and never outside the folder.

    Names are kept, with their suffix. But a folder ``..``, ``.`` or the root, or one whose name begins with
    %, begins with %, and one whose name ends as files of heatmaps do ends with %. A name that would be longer
    than file systems allow keeps its beginning, then has % and 32 digits of its SHA-256.

    Args:
        folder: the folder of all heatmaps.
        name: the image's name with its folders.
        form: of the heatmap, which decides the suffix.

    Returns:
        A path below `folder`.

    Example:
        >>> heatmap_path(Path("maps"), "patient/1.dcm").as_posix()
        'maps/patient/1.dcm.heatmap.png'
        >>> heatmap_path(Path("maps"), "../patient/1.png").as_posix()
        'maps/%../patient/1.png.heatmap.png'
    """
    return path_of(folder, name, SUFFIXES[form])


def mask_path(folder: Path, name: str, form: MaskForm) -> Path:
    """Returns the path of a mask, by the rules of `heatmap_path`.

    Args:
        folder: the folder of all masks.
        name: that of the image, or of the volume, with its folders.
        form: of the mask, which decides the suffix.
    """
    return path_of(folder, name, MASKS[form])


def path_of(folder: Path, name: str, suffix: str) -> Path:
    """Returns the path of a file about an image, by the rules of `heatmap_path`.

    Args:
        folder: the folder of all such files.
        name: the image's name with its folders.
        suffix: one of `SUFFIXES` or `MASKS`.
    """
    *folders, last = name.split("/")
    return folder.joinpath(*map(_kept, folders), _short(last) + suffix)


def _kept(part: str) -> str:
    """Keeps a folder's name, or changes it where it would lead elsewhere or be the name of a file."""
    if part in ("", ".", "..") or part.startswith(_MARK):
        part = _MARK + part
    return _short(part + _MARK * part.rstrip(_MARK).endswith(_ENDS))


def _short(part: str) -> str:
    """Shortens a name that is too long, or looks as if it were shortened: no two names become one."""
    whole = part.encode("utf-8", "surrogatepass")
    if len(whole) <= _MOST and not _SHORTENED.fullmatch(part):
        return part
    digest = hashlib.sha256(whole).hexdigest()[:32]
    return whole[: _MOST - 1 - len(digest)].decode("utf-8", "ignore") + _MARK + digest
