"""Geometry: how far apart pixels and slices are, in mm, and where the voxels of a volume lie in the body.

Knows headers; reads no pixel. What a file does not tell reliably is None, never a guess:

- DICOM: PixelSpacing (of the frame, the shared groups or the file); else ImagerPixelSpacing, divided by
  EstimatedRadiographicMagnificationFactor where that is given (without it the size is that at the detector,
  which is greater than in the body, and `at` says so; also where PixelSpacing is no more than a copy of
  ImagerPixelSpacing); else the region of an ultrasound picture, if there is one alone, and it is in cm.
  Slices are as far apart as their positions are; SliceThickness is no distance.
- NIfTI, MetaImage, NRRD: the header's own; in mm where it names no unit but says how it lies in the body.
- TIFF: what ImageJ, OME or a slide scanner wrote with a unit, or a resolution in pixels per cm. Dots per inch
  are what programs write by default. PNG, JPEG and the like: None, for the same reason.
- Pixels whose rows and columns are not at right angles have no spacing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ...core.errors import DataError
from . import dicom, itk, nifti
from .limits import optional, refusing
from .series import Place
from .volume import CHANNEL, Turn, turned
from .windowing import View

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes (left, back, top) to right, front, top
_OFF = 0.05  # of the distance of slices, by which one may lie elsewhere
_SKEW = 1e-3  # cosine of the angle between rows and columns, above which there is no spacing
_NARROW, _WIDE = 1e-5, 1e3  # mm: no pixel is smaller or larger
_CM = 3  # as PhysicalUnits and as ResolutionUnit
_TIFF_UNITS = {
    **dict.fromkeys(("mm", "millimeter"), 1.0), **dict.fromkeys(("cm", "centimeter"), 10.0),
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"), 1e-3),
    "nm": 1e-6,
}  # fmt: skip


class Spacing(NamedTuple):
    """How far apart pixels are.

    Args:
        y: mm between rows.
        x: mm between columns.
        z: mm between slices of a volume in this file; None where not known, or where it is none.
        at: `detector` where the size is that of a projection on the detector, greater than in the body.
    """

    y: float
    x: float
    z: float | None = None
    at: Literal["body", "detector"] = "body"

    @property
    def plane(self) -> tuple[float, float]:
        """Of rows and columns."""
        return self.y, self.x


class Grid(NamedTuple):
    """Where the voxels of a volume lie.

    Args:
        shape: of the array x, y, z as it is stored.
        affine: `(4, 4)` from its indices to right, front and top; None where not known.
        unit: mm of the affine's unit; None where not known.
        steps: mm along x, y and z; None where not known.
        turn: how slices, rows and columns are cut from it; see `volume.turned`.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray | None
    unit: float | None
    steps: tuple[float, ...] | None
    turn: Turn

    def slices(self, stored: np.ndarray) -> np.ndarray:
        """Returns a view of an array of `shape`, whose first axis are slices, then rows, columns."""
        flips, order = self.turn
        return stored[flips].transpose(order)

    @property
    def spacing(self) -> Spacing | None:
        """Of its slices."""
        if self.steps is None:
            return None
        z, y, x = self.turn[1]
        steps = (*self.steps, 0.0)[:3]
        if self.affine is None:
            return _spacing(steps[y], steps[x], steps[z] or None)
        axes = self.affine[:3, :3] * (self.unit or 1)
        lengths = np.linalg.norm(axes, axis=0)
        across = np.cross(axes[:, y], axes[:, x])
        if abs(axes[:, y] @ axes[:, x]) > _SKEW * lengths[y] * lengths[x] or not across.any():
            return None
        # of slanted slices the distance is that along their normal
        return _spacing(lengths[y], lengths[x], abs(axes[:, z] @ across) / np.linalg.norm(across))


def _spacing(y: Any, x: Any, z: Any = None, at: Literal["body", "detector"] = "body") -> Spacing | None:
    """Returns a spacing where its numbers can be."""
    if not all(_NARROW <= abs(v) <= _WIDE for v in (y, x)):  # NaN is not within
        return None
    far = z if z is not None and _NARROW <= abs(z) <= _WIDE else None
    return Spacing(abs(float(y)), abs(float(x)), None if far is None else abs(float(far)), at)


def spacing_of(
    path: Path, kind: str, number: int | None, view: View, shape: tuple[int, int] | None = None
) -> Spacing | None:
    """Tells how far apart the pixels of an image are.

    Args:
        path: its file.
        kind: of that, as `layouts.Entry.kind`.
        number: of the image in its file, as `layouts.Entry.number`.
        view: its `axis` matters.
        shape: (height, width) as it was read; a file whose page has another (a reduced level) tells nothing.

    Returns:
        The spacing; None where the file does not tell it, or cannot be read.
    """
    try:
        if kind in ("nifti", "itk"):
            found = grid_of_file(path, kind, view)
            return found and found.spacing
        if kind == "dicom":
            return _of_dicom(path, number or 0)
        if kind == "tiff":
            return _of_tiff(path, number or 0, shape)
    except (DataError, OSError):
        pass
    return None


def grid_of_file(path: Path, kind: str, view: View) -> Grid | None:
    """Tells where the volumes of a NIfTI, MetaImage or NRRD file lie; None of a plane.

    Args:
        path: the file.
        kind: `nifti` or `itk`.
        view: its `axis` matters.

    Raises:
        DataError: no such file, or one that is damaged.
    """
    stat = path.stat()
    return _grid_of_file(path, kind, view.axis, (stat.st_size, stat.st_mtime_ns))


@lru_cache(8)  # one for each slice would read the header as often
def _grid_of_file(path: Path, kind: str, axis: str, stamp: tuple[int, int]) -> Grid | None:
    if kind == "nifti":
        shape, affine, unit = nifti.placed(path)
        steps = None if unit is None else tuple((np.linalg.norm(affine[:3, :3], axis=0) * unit).tolist())
        return Grid(shape, affine, unit, steps, turned(affine, axis))
    shape, lies, known = itk.placed(path)
    if known is not None and len(known) == 2:
        return Grid(shape, None, 1.0, (*known, 0.0), turned(None, "axial"))
    return Grid(shape, lies, 1.0, known, turned(lies, axis))


def grid_of_places(places: Sequence[Place]) -> tuple[Grid, list[int]] | None:
    """Tells where the images of a DICOM series lie, as a volume of equal steps; slices may be missing.

    Args:
        places: of the images, in the order of the series.

    Returns:
        The grid, whose stored axes are columns, rows and slices, and the number of the slice that each image
        is; None where they are fewer than two, do not say where they lie, or lie on no such grid.
    """
    first = places[0] if places else Place()
    if len(places) < 2 or first.plane is None or first.spacing is None:
        return None
    if not _spacing(first.spacing[0], first.spacing[1]):
        return None
    if any(p.point is None or p.plane is None or p.shape[:2] != first.shape[:2] for p in places):
        return None
    points = np.array([p.point for p in places], float)
    planes = np.array([p.plane for p in places], float)
    across = np.cross(planes[0, :3], planes[0, 3:])
    along = (points - points[0]) @ across
    usual = float(np.median(np.diff(along)))
    if not abs(usual) > _NARROW or np.abs(planes - planes[0]).max() > _SKEW:
        return None
    ks = np.round(along / usual).astype(int)
    if ks.min() < 0 or len({*ks.tolist()}) < len(ks) or ks.max() >= CHANNEL:
        return None
    step = (points[-1] - points[0]) / ks[-1]
    off = points - points[0] - ks[:, None] * step
    if np.abs(off).max() > _OFF * np.linalg.norm(step):
        return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = planes[0, :3] * first.spacing[1], planes[0, 3:] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, points[0]
    affine = _LPS @ affine
    steps = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    rows, columns, _ = first.shape
    straight = (slice(None),) * 3
    return Grid((columns, rows, int(ks.max()) + 1), affine, 1.0, steps, (straight, (2, 1, 0))), ks.tolist()


def _of_dicom(path: Path, number: int) -> Spacing | None:
    head = dicom.header(path)
    place = head.places[number if len(head.places) > 1 else 0]
    names = ("ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor", "PixelSpacingCalibrationType")
    ds = dicom.attributes(path, [*names, "SequenceOfUltrasoundRegions"])
    with refusing("a malformed DICOM header"):
        imager = _pair(ds.get("ImagerPixelSpacing"))
        factor = ds.get("EstimatedRadiographicMagnificationFactor")
        own = place.spacing and _spacing(place.spacing[0], place.spacing[1])
        if own and (imager is None or ds.get("PixelSpacingCalibrationType") or own.plane != imager):
            grid = grid_of_places(head.places) if len(head.places) > 1 else None
            return own._replace(z=grid[0].spacing.z) if grid and grid[0].spacing else own
        if imager is not None:
            larger = float(factor or 0)
            if larger >= 1:
                return _spacing(imager[0] / larger, imager[1] / larger)
            return _spacing(*imager, at="detector")
        regions = ds.get("SequenceOfUltrasoundRegions") or []
        if len(regions) == 1 and regions[0].get("RegionSpatialFormat") == 1:
            (region,) = regions
            if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == _CM:
                return _spacing(10 * float(region.PhysicalDeltaY), 10 * float(region.PhysicalDeltaX))
    return None


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        return None
    found = float(value[0]), float(value[1])
    return found if _spacing(*found) else None


def _of_tiff(path: Path, number: int, shape: tuple[int, int] | None) -> Spacing | None:
    if not (tifffile := optional("tifffile")):
        return None
    with refusing("a malformed TIFF file"), tifffile.TiffFile(path) as tiff:
        page = tiff.pages[number]
        turned_ = int(page.tags.valueof("Orientation", 1)) >= 5
        size = (page.imagelength, page.imagewidth)[:: -1 if turned_ else 1]
        if shape is not None and size != tuple(shape):
            return None
        found = _in_words(str(tiff.pages[0].description or "")[:100_000])
        if found is None:
            found = _by_tags(page, None)
        elif isinstance(found, float):  # ImageJ: a unit, and pixels for each of it in the tags
            found = _by_tags(page, found)
        y, x = (found or (0, 0))[:: -1 if turned_ else 1]
        return _spacing(y, x)


def _by_tags(page: Any, unit: float | None) -> tuple[float, float] | None:
    """Returns mm of a pixel by the tags of resolution, in pixels for each unit."""
    if unit is None and int(page.tags.valueof("ResolutionUnit", 0)) != _CM:
        return None
    found = []
    for name in ("YResolution", "XResolution"):
        over, under = page.tags.valueof(name, (0, 0))
        if not over or not under:
            return None
        found.append((10.0 if unit is None else unit) * under / over)
    return found[0], found[1]


def _in_words(text: str) -> tuple[float, float] | float | None:
    """Returns mm of a pixel (y, x) from a description, or the mm of ImageJ's unit; None without either."""
    sizes = []
    for axis in "YX":  # OME-XML
        size = re.search(rf'\bPhysicalSize{axis}="([\d.eE+-]+)"', text)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', text)
        mm = 1e-3 if unit is None else _TIFF_UNITS.get(unit[1])  # the standard's default is µm
        if size and mm:
            sizes.append(float(size[1]) * mm)
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    if mpp := re.search(r"\bMPP\s*=\s*([\d.]+)", text):  # Aperio: µm of a pixel
        return float(mpp[1]) * 1e-3, float(mpp[1]) * 1e-3
    if text.startswith("ImageJ=") and (unit := re.search(r"^unit=(.+)$", text, re.MULTILINE)):
        return _TIFF_UNITS.get(unit[1].strip(), math.nan)
    return None
