"""Uploads to files of this machine: zips unpacked, everything counted, no name of the client's as a path.

Knows zips, bytes and names; decodes no image and knows nothing of HTTP.
"""

from __future__ import annotations

import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from .limits import Deadline, Limits, Refused

_ZIP, _GZIP = (b"PK\x03\x04", b"PK\x05\x06"), b"\x1f\x8b"
_PIECE = 1 << 20
_TAIL = 22 + 65535 + 20  # in which a zip's end record, its comment and a zip64 locator lie
_PER_ENTRY = 1000  # bytes of a zip's directory for each file that may be in it
_DEFLATED_DICOM = b"1.2.840.10008.1.2.1.99"  # pydicom inflates such a file whole before anything is known


class Upload(NamedTuple):
    """A file as it came: what the client calls it, and its bytes, from the start."""

    name: str
    file: IO[bytes]


class Unpacked(NamedTuple):
    """Files, and what is wrong with others.

    Args:
        files: numbered, in the order they came.
        names: as the client calls them; with folders where they come from a zip.
        errors: (name, one line).
    """

    files: list[Path]
    names: list[str]
    errors: list[tuple[str, str]]


def unpack(uploads: Sequence[Upload], folder: Path, limits: Limits, deadline: Deadline) -> Unpacked:
    """Writes uploads, and what is in those that are zips, into an empty folder.

    A zip is told by its first bytes. Of what it holds, hidden files, folders and zips are left out.

    Raises:
        Refused: too many files or bytes, or no time left.
    """
    out = Unpacked([], [], [])
    room = limits.max_unpacked
    for upload in uploads:
        deadline.check()
        head = upload.file.read(4)
        upload.file.seek(0)
        if head not in _ZIP:
            room = _keep(upload.file, plain_name(upload.name), out, folder, limits, room, deadline)
            continue
        try:
            _check_directory(upload.file, limits)
            with zipfile.ZipFile(upload.file) as packed:
                for info in _members(packed, out, limits):
                    room = _unpack_member(packed, info, out, folder, limits, room, deadline)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError):
            out.errors.append((plain_name(upload.name), "a damaged zip"))
    return out


def plain_name(name: str, folders: bool = False) -> str:
    """A client's file name without control characters, of at most 200 characters; never used as a path."""
    shown = "/".join(_parts(name)[0 if folders else -1 :])
    return "".join(c for c in shown if c.isprintable())[-200:].strip() or "unnamed"


def _members(packed: zipfile.ZipFile, out: Unpacked, limits: Limits) -> Iterator[zipfile.ZipInfo]:
    members = [
        info for info in packed.infolist()
        if not info.is_dir() and not any(p.startswith((".", "__MACOSX")) for p in _parts(info.filename))
    ]  # fmt: skip
    if len(out.files) + len(members) > limits.max_files:
        raise _too_many(limits)
    yield from members


def _parts(name: str) -> list[str]:
    return [p for p in re.split(r"[\\/]", name) if p not in ("", ".", "..")]


def _unpack_member(
    packed: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    out: Unpacked,
    folder: Path,
    limits: Limits,
    room: int,
    deadline: Deadline,
) -> int:
    name = plain_name(info.filename, folders=True)
    if info.flag_bits & 1:
        out.errors.append((name, "encrypted in its zip"))
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out.errors.append((name, "packed in another way than deflate"))
    else:
        try:
            with packed.open(info) as file:
                first = file.read(4)
            if first in _ZIP:
                out.errors.append((name, "a zip within a zip, which is not opened"))
                return room
            with packed.open(info) as file:
                room -= _copy(file, folder / "member", room, limits, deadline)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            out.errors.append((name, "damaged in its zip"))
            return room
        with (folder / "member").open("rb") as copied:
            room = _keep(copied, name, out, folder, limits, room, deadline)
        (folder / "member").unlink()
    return room


def _keep(
    file: IO[bytes], name: str, out: Unpacked, folder: Path, limits: Limits, room: int, deadline: Deadline
) -> int:
    """Copies one file under a number, with the suffix that says what it is; returns the room left."""
    if len(out.files) >= limits.max_files:
        raise _too_many(limits)
    suffix = re.search(r"(\.nii)?\.[a-z0-9]{1,8}$", name.lower())
    target = folder / f"{len(out.files):05d}{suffix[0] if suffix else ''}"
    with target.open("wb") as new:
        shutil.copyfileobj(file, new, _PIECE)
    with target.open("rb") as kept:
        if kept.read(2) == _GZIP:
            kept.seek(0)
            room -= _inflated(kept, room, limits, deadline)
        elif _holds(kept, _DEFLATED_DICOM):
            target.unlink()
            out.errors.append((name, "a deflated DICOM file, which the service does not read"))
            return room
    out.files.append(target)
    out.names.append(name)
    return room


def _copy(file: IO[bytes], target: Path, room: int, limits: Limits, deadline: Deadline) -> int:
    """Bytes copied, whatever the zip's directory says of them."""
    copied = 0
    with target.open("wb") as new:
        while piece := file.read(min(_PIECE, room - copied + 1)):
            copied += len(piece)
            if copied > room:
                raise _too_large(limits)
            deadline.check()
            new.write(piece)
    return copied


def _inflated(file: IO[bytes], room: int, limits: Limits, deadline: Deadline) -> int:
    """Bytes that a gzip file holds; of a damaged one, those before the damage."""
    count, rest = 0, b""
    while piece := rest or file.read(_PIECE):
        inflate = zlib.decompressobj(wbits=31)
        while piece and not inflate.eof:
            try:
                count += len(inflate.decompress(piece, _PIECE))
            except zlib.error:
                return count
            if count > room:
                raise _too_large(limits)
            deadline.check()
            piece = inflate.unconsumed_tail or (b"" if inflate.eof else file.read(_PIECE))
        rest = inflate.unused_data.lstrip(b"\0")
    return count


def _holds(file: IO[bytes], text: bytes) -> bool:
    """Whether a DICOM file has `text` in it."""
    file.seek(128)
    if file.read(4) != b"DICM":
        return False
    before = b""
    while piece := file.read(_PIECE):
        if text in before + piece:
            return True
        before = piece[-len(text) :]
    return False


def _check_directory(file: IO[bytes], limits: Limits) -> None:
    """Refuses a zip whose directory alone would fill the memory; it is read whole when the zip is opened."""
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL, 0))
    tail = file.read()
    file.seek(0)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile
    (directory,) = struct.unpack_from("<L", tail, end + 12)
    if b"PK\x06\x07" in tail[max(end - 20, 0) : end] or directory > _PER_ENTRY * limits.max_files + _PIECE:
        raise _too_many(limits)


def _too_many(limits: Limits) -> Refused:
    return Refused(413, f"more than {limits.max_files} files; send fewer at a time")


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413, f"the packed files hold more than {limits.max_unpacked_mb:g} MB; send fewer at a time"
    )
