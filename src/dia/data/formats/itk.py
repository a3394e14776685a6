"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr), the formats of ITK: the values of their volumes.

Knows both headers, of which only the fields named here are looked at, and none is shown. ITK itself is not
asked: of voxels that do not unpack it returns what happened to lie in memory, and a header may make it read
any file. Here a header of a few bytes allocates nothing, and the voxels lie in the file itself or in one
beside it.

Stored axes are x, y, z, x running fastest; orientations and views are those of `nifti`. MetaImage says where
its axes lie in the body; NRRD may. Without that, "axial" are the planes of x and y as they are stored. A file
of two axes is one image. An axis of components (three of uint8 are colours) or of time counts volumes.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.errors import DataError
from .limits import INFLATED, refusing
from .volume import Volume, Volumes, check_voxels, turned
from .windowing import View

_HEAD = 2**20  # bytes of a header
_TEXT = ("utf-8", "surrogateescape")
_META_TYPES = {
    **{"UCHAR": "u1", "CHAR": "i1", "USHORT": "u2", "SHORT": "i2", "UINT": "u4", "INT": "i4"},
    **{"ULONG": "u4", "LONG": "i4", "ULONG_LONG": "u8", "LONG_LONG": "i8", "FLOAT": "f4", "DOUBLE": "f8"},
}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"
    ),
    **{"float": "f4", "double": "f8"},
}
_ENCODINGS = {"raw": "", **dict.fromkeys(("gzip", "gz"), "zlib"), **dict.fromkeys(("bzip2", "bz2"), "bz2")}
# from the axes of a space to right, front, top
_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
_SPATIAL = ("domain", "space")  # kinds of axes
_UNITS = {"mm": 1.0, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "m": 1e3}  # mm of one


class _Header(NamedTuple):
    """What a header says.

    Args:
        sides: of the stored array, the fastest first.
        spatial: numbers of its axes that are x, y and perhaps z.
        dtype: of a voxel.
        packed: "", "zlib" (or gzip) or "bz2".
        file: where the voxels lie.
        start: from which byte on; from the end where negative.
        directions: for each spatial axis its direction towards right, front, top; None where not said.
        steps: mm from one pixel to the next along each spatial axis; None where not known.
        origin: where the first voxel lies, mm towards right, front and top.
    """

    sides: tuple[int, ...]
    spatial: tuple[int, ...]
    dtype: np.dtype
    packed: str
    file: Path
    start: int
    directions: tuple[tuple[float, ...], ...] | None
    steps: tuple[float, ...] | None = None
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def others(self) -> int:
        """The number of volumes, or of colours."""
        return math.prod(side for i, side in enumerate(self.sides) if i not in self.spatial)

    @property
    def colour(self) -> bool:
        """Three components of bytes, which run faster than the axes in space, are colours."""
        return self.dtype == np.uint8 and self.others == 3 == self.sides[0] and 0 not in self.spatial


def count(path: Path, view: View) -> tuple[int, int]:
    """Counts the volumes of a file and their slices along the axis asked for; reads the header alone.

    Args:
        path: a MetaImage or NRRD file.
        view: its `axis` matters.

    Returns:
        The number of volumes and that of the slices of each, at least 1.

    Raises:
        DataError: none of both, damaged, a kind of array that is not read, too large to be true, or voxels in
            a file elsewhere.
    """
    header = _read(path)
    if len(header.spatial) == 2:
        return 1 if header.colour else header.others, 1
    order = turned(_affine(header), view.axis)[1]
    return 1 if header.colour else header.others, header.sides[header.spatial[order[0]]]


def placed(path: Path) -> tuple[tuple[int, int, int], np.ndarray | None, tuple[float, ...] | None]:
    """Tells where the voxels of a file lie; reads the header alone.

    The unit is mm where the header names none but says how its axes lie in the body, as ITK and Slicer take
    it.

    Args:
        path: a MetaImage or NRRD file.

    Returns:
        The sides x, y, z (z = 1 of a plane); the `(4, 4)` affine to mm towards right, front and top, None
        where it is not known; and mm along each axis in space, None where not known.

    Raises:
        DataError: as `count`.
    """
    header = _read(path)
    sides = (*(header.sides[i] for i in header.spatial), 1)[:3]
    affine = _affine(header)
    if affine is not None and header.steps is not None:
        directions = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
        affine[:3, :3] = directions * header.steps
        affine[:3, 3] = header.origin
    return (sides[0], sides[1], sides[2]), None if header.steps is None else affine, header.steps


def files(path: Path) -> tuple[Path, ...]:
    """Returns the files that are read for a volume: its own, and the one beside it where that has the voxels.

    Args:
        path: a MetaImage or NRRD file.

    Raises:
        DataError: as `count`.
    """
    return tuple(dict.fromkeys((path, _read(path).file)))


class Itk(Volumes):
    """The slices of the volumes of one file.

    Args:
        path: a MetaImage or NRRD file.
        view: `axis` says how it is cut.

    Raises:
        DataError: as `count`, or voxels that are fewer or more than the header says.
    """

    def __init__(self, path: Path, view: View):
        header = _read(path)
        with refusing("its voxels cannot be read"):
            flat = np.frombuffer(_voxels(header), header.dtype)
        stored = flat.reshape(header.sides, order="F")
        rest = tuple(i for i in range(len(header.sides)) if i not in header.spatial)
        space = tuple(header.sides[i] for i in header.spatial)
        stored = stored.transpose(*header.spatial, *rest)
        plane = len(space) == 2
        flips, order = turned(None, "axial") if plane else turned(_affine(header), view.axis)
        stored = stored.reshape(*(*space, 1)[:3], header.others, order="F")[flips].transpose(*order, 3)
        parts = [stored] if header.colour else [stored[..., i] for i in range(header.others)]
        super().__init__([Volume(part) for part in parts])


def _affine(header: _Header) -> np.ndarray | None:
    if header.directions is None:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(header.directions)
    return affine


def _read(path: Path) -> _Header:
    """Reads and checks a header."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    with refusing("no MetaImage or NRRD header, or damaged"):
        header = (_nrrd if head.startswith(b"NRRD000") else _meta)(head, path)
    voxels = math.prod(header.sides)
    available = header.file.stat().st_size - max(header.start, 0)
    ratio = {"": 1.0, "zlib": INFLATED, "bz2": math.inf}[header.packed]
    sides = (*header.sides, 1)[: max(len(header.sides), 3)]
    check_voxels(sides, voxels * header.dtype.itemsize, available, ratio)
    return header


def _voxels(header: _Header) -> bytes:
    """Returns the bytes of all voxels, no more and no fewer than the header says."""
    wanted = math.prod(header.sides) * header.dtype.itemsize
    with header.file.open("rb") as file:
        if header.start < 0:
            file.seek(-wanted, 2)
        else:
            file.seek(header.start)
        if not header.packed:
            found = file.read(wanted + 1)
        else:
            zipped = header.packed == "zlib"
            unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if zipped else bz2.BZ2Decompressor()
            found = unpack.decompress(file.read(), wanted + 1)
    if len(found) != wanted:
        more = "fewer" if len(found) < wanted else "more"
        raise DataError(f"its header promises {wanted} bytes of voxels, and there are {more}")
    return found


def _fields(text: str, pattern: str, name: Callable[[str], str]) -> dict[str, str]:
    """Returns the fields of a header's lines, each of which may stand once."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not (found := re.match(pattern, line)):
            continue
        if (key := name(found[1])) in fields:
            raise DataError("a field of its header stands there twice")
        fields[key] = found[2].strip()
    return fields


def _beside(path: Path, name: str) -> Path:
    """Returns the file beside a header that holds its voxels."""
    if not name or name in (".", "..") or re.search(r"[/\\\0%]|^LIST\b", name):
        raise DataError("its voxels must lie in one file beside it, named without a folder")
    if not (file := path.with_name(name)).is_file():
        raise DataError("the file with its voxels, named in its header, is not beside it")
    return file


def _numbers(text: str, many: int | None = None) -> list[float]:
    found = [float(word) for word in text.split()]
    if many not in (None, len(found)) or not all(map(math.isfinite, found)):
        raise DataError("a field of its header does not fit its number of axes")
    return found


def _sides(text: str, many: int) -> tuple[int, ...]:
    sides = text.split()
    if len(sides) != many or not all(re.fullmatch(r"\d{1,12}", side) for side in sides):
        raise DataError("its header does not say as many sides as it has axes")
    return tuple(map(int, sides))


def _true(fields: Mapping[str, str], *names: str) -> bool:
    return any(fields.get(name, "")[:1] in ("T", "t", "1") for name in names)


def _needed(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise DataError(f"its header lacks {name}")
    return fields[name]


def _meta(head: bytes, path: Path) -> _Header:
    """Parses a header of MetaImage: `Key = value` lines, the last of which says where the voxels are."""
    last = re.search(rb"(?:^|\n)ElementDataFile[ \t]*=[^\n]*(?:\n|$)", head)
    if last is None:
        raise DataError("no MetaImage or NRRD header, or damaged")
    fields = _fields(head[: last.end()].decode(*_TEXT), r"\s*(\w+)\s*=(.*)", str)
    many = int(_needed(fields, "NDims"))
    if fields.get("ObjectType", "Image") != "Image" or not 2 <= many <= 4:
        raise DataError("a MetaImage file that is no image of two to four axes")
    if not _true(fields, "BinaryData"):
        raise DataError("its voxels are written as text; save it in binary form")
    kind = _needed(fields, "ElementType").removeprefix("MET_")
    if kind.removesuffix("_ARRAY") not in _META_TYPES:
        raise DataError("voxels of a type that is not read; save it as integers or floats")
    order = ">" if _true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + _META_TYPES[kind.removesuffix("_ARRAY")])
    (components,) = _sides(fields.get("ElementNumberOfChannels", "1"), 1)
    sides = _sides(_needed(fields, "DimSize"), many)
    spatial = tuple(range(min(many, 3)))
    if components > 1:
        sides, spatial = (components, *sides), tuple(i + 1 for i in spatial)
    turn = next((fields[n] for n in ("TransformMatrix", "Rotation", "Orientation") if n in fields), None)
    matrix = np.eye(many) if turn is None else np.reshape(_numbers(turn, many * many), (many, many))
    directions = None
    if many > 2:  # rows are the directions of axes, towards left, back and top
        directions = tuple(map(tuple, (matrix[:3, :3] * (-1, -1, 1)).tolist()))
    size = fields.get("ElementSpacing", fields.get("ElementSize"))
    unit = _UNITS.get(fields.get("DistanceUnits", "mm").lower())
    steps = _steps(None if size is None or unit is None else np.array(_numbers(size, many)[:3]) * unit)
    place = next((fields[n] for n in ("Offset", "Position", "Origin") if n in fields), None)
    origin = np.zeros(3) if place is None or many < 3 else np.array(_numbers(place, many)[:3]) * (unit or 1)
    placed = steps, tuple((origin * (-1, -1, 1)).tolist())
    name = fields["ElementDataFile"]
    start = int(fields.get("HeaderSize", "0"))
    if name.upper() == "LOCAL":
        file, start = path, last.end()
    else:
        file = _beside(path, name)
    if start < -1:
        raise DataError("its header has a HeaderSize below -1")
    packed = "zlib" if _true(fields, "CompressedData") else ""
    if packed and start < 0:
        raise DataError("its header has a HeaderSize of -1, which packed voxels cannot have")
    return _Header(sides, spatial, dtype, packed, file, start, directions, *placed)


def _nrrd(head: bytes, path: Path) -> _Header:
    """Parses a header of NRRD: `field: value` lines up to an empty one."""
    end = re.search(rb"\r?\n\r?\n", head)
    text = (head if end is None else head[: end.start()]).decode(*_TEXT)
    # `key:=value` holds anything, and says nothing of the array
    fields = _fields(text, r"([^#:][^:]*):(?!=)(.*)", lambda name: re.sub(r"\s", "", name).lower())
    many = int(_needed(fields, "dimension"))
    if not 2 <= many <= 5:
        raise DataError("an NRRD file that is no array of two to five axes")
    sides = _sides(_needed(fields, "sizes"), many)
    if (kind := _needed(fields, "type").lower()) not in _NRRD_TYPES:
        raise DataError("voxels of a type that is not read; save it as integers or floats")
    dtype = np.dtype(_NRRD_TYPES[kind])
    if dtype.itemsize > 1:
        if (endian := _needed(fields, "endian").lower()) not in ("little", "big"):
            raise DataError("its header has an endian that is neither little nor big")
        dtype = dtype.newbyteorder("<" if endian == "little" else ">")
    if (encoding := _needed(fields, "encoding").lower()) not in _ENCODINGS:
        raise DataError("its voxels are written as text; save it in the encoding raw or gzip")
    packed = _ENCODINGS[encoding]
    vectors = _vectors(fields.get("spacedirections", ""), many)
    kinds = fields.get("kinds", "").lower().split()
    if vectors:
        spatial = tuple(i for i, vector in enumerate(vectors) if vector)
    elif len(kinds) == many:
        spatial = tuple(i for i, kind in enumerate(kinds) if kind in _SPATIAL)
    else:
        spatial = tuple(range(many))
    spatial = spatial[: 3 if len(spatial) == 4 else None]  # the fourth is time
    if len(spatial) not in (2, 3) or spatial[-1] - spatial[0] != len(spatial) - 1:
        raise DataError("its header does not tell two or three axes in space that lie together; see `kinds`")
    signs = _SPACES.get(fields.get("space", "").lower())
    directions = None
    if signs and vectors and all(len(vectors[i]) == 3 for i in spatial) and len(spatial) == 3:
        directions = tuple(tuple(x * s for x, s in zip(vectors[i], signs, strict=True)) for i in spatial)
    told, place = fields.get("spaceunits", fields.get("units", "")), fields.get("spaceorigin", "")
    names = re.findall(r'"([^"]*)"', told) or ["mm"] * len(spatial) * (directions is not None)
    units = {_UNITS.get(name.strip().lower()) for name in names if name}
    unit = units.pop() if len(units) == 1 else None
    lengths = [math.hypot(*vectors[i]) for i in spatial] if vectors else None
    if lengths is None and "spacings" in fields and len(words := fields["spacings"].split()) == many:
        lengths = [float(words[i]) for i in spatial]
    steps = _steps(None if lengths is None or unit is None else np.array(lengths) * unit)
    origin = (0.0, 0.0, 0.0)
    if signs and directions and place:
        (found,) = _vectors(place, 1)
        origin = tuple((np.array(found) * signs * (unit or 1)).tolist())
    placed = steps, origin
    if _skipped(fields, "lineskip"):
        raise DataError("its header skips lines of the file with its voxels; save it anew")
    start = _skipped(fields, "byteskip")
    if packed and start:
        raise DataError("its header skips bytes of packed voxels; save it anew")
    if name := fields.get("datafile"):
        return _Header(sides, spatial, dtype, packed, _beside(path, name), start, directions, *placed)
    if end is None:
        raise DataError("its header does not end, or names no file with its voxels")
    start = start if start < 0 else end.end() + start
    return _Header(sides, spatial, dtype, packed, path, start, directions, *placed)


def _steps(given: np.ndarray | None) -> tuple[float, ...] | None:
    """Returns distances of pixels, where they are known and can be."""
    if given is None or not np.isfinite(given).all() or not (np.abs(given) > 0).all():
        return None
    return tuple(np.abs(given).tolist())


def _skipped(fields: Mapping[str, str], name: str) -> int:
    number = int(fields.get(name, "0"))
    if number < -(name == "byteskip"):
        raise DataError("its header skips fewer than no bytes")
    return number


def _vectors(text: str, many: int) -> list[tuple[float, ...]]:
    """Returns the vector of each axis, empty for one that is not in space; nothing where there is no text."""
    words = re.findall(r"\([^()]*\)|none", text.lower())
    if not text:
        return []
    if len(words) != many:
        raise DataError("a field of its header does not fit its number of axes")
    return [() if word == "none" else tuple(_numbers(word[1:-1].replace(",", " "))) for word in words]
