"""Uploads to files of this machine: zips unpacked, everything counted, no name of the client's as a path.

Knows zips, bytes and names; decodes no image and knows nothing of HTTP.
"""

from __future__ import annotations

import errno
import gzip
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..data.layouts import OURS
from .limits import Deadline, Limits, Refused

_ZIP, _GZIP = (b"PK\x03\x04", b"PK\x05\x06"), b"\x1f\x8b"
_PIECE = 1 << 20
_TAIL = 22 + 65535 + 20  # in which a zip's end record, its comment and a zip64 locator lie
_PER_ENTRY = 1000  # bytes of a zip's directory for each file that may be in it
_DEFLATED_DICOM = b"1.2.840.10008.1.2.1.99"  # pydicom inflates such a file whole before anything is known


class Unpacking:
    """Uploads of one request, and what is in those that are zips, on their way into a folder.

    Args:
        folder: empty.
        limits: of files, and of bytes that come out of zip and gzip files.
        deadline: the end of the request's time.

    Attributes:
        files: numbered, in the order they came.
        names: as the client calls them; with folders where they come from a zip.
        errors: (name, one line) of those that are left out.
    """

    def __init__(self, folder: Path, limits: Limits, deadline: Deadline):
        self.folder, self.limits, self.deadline = folder, limits, deadline
        self.files: list[Path] = []
        self.names: list[str] = []
        self.errors: list[tuple[str, str]] = []
        self._room = limits.max_unpacked  # bytes that may still be unpacked

    def add(self, name: str, upload: IO[bytes]) -> None:
        """Writes an upload, or what it holds if its first bytes are a zip's.

        Hidden files, folders and zips within a zip are left out.

        Args:
            name: what the client calls it.
            upload: its bytes, from the start.

        Raises:
            Refused: too many files or bytes, or no time left.
        """
        self.deadline.check()
        head, name = upload.read(4), plain_name(name)
        upload.seek(0)
        if head not in _ZIP:
            return self._keep(upload, name)
        try:
            self._check_directory(upload)
            with zipfile.ZipFile(upload) as packed:
                members = [info for info in packed.infolist() if _is_wanted(info.filename)]
                if len(self.files) + len(members) > self.limits.max_files:
                    raise self._too_many()
                for info in members:
                    self._add_member(packed, info)
        except Exception as error:
            if not _is_damage(error):
                raise
            self.errors.append((name, "a damaged zip"))

    def _add_member(self, packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        name, member = plain_name(info.filename, folders=True), self.folder / "member"
        if info.flag_bits & 1:
            return self.errors.append((name, "encrypted in its zip"))
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return self.errors.append((name, "packed in another way than deflate"))
        try:
            with packed.open(info) as file, member.open("wb") as new:
                for piece in self._counted(file):
                    new.write(piece)
        except Exception as error:
            if not _is_damage(error):
                raise
            return self.errors.append((name, "damaged in its zip"))
        with member.open("rb") as copied:
            if copied.read(4) in _ZIP:
                self.errors.append((name, "a zip within a zip, which is not opened"))
            else:
                copied.seek(0)
                self._keep(copied, name)
        member.unlink()

    def _keep(self, file: IO[bytes], name: str) -> None:
        """Copies one file under a number, with the suffix that says what it is."""
        if len(self.files) >= self.limits.max_files:
            raise self._too_many()
        if name.lower().endswith(OURS):  # under a number nothing would tell it from a scan
            return self.errors.append((name, "written by dia, no scan"))
        suffix = re.search(r"(\.(nii|dcm|dicom)(?=\.gz$))?\.[a-z0-9]{1,8}$", name.lower())
        target = self.folder / f"{len(self.files):05d}{suffix[0] if suffix else ''}"
        with target.open("w+b") as kept:
            shutil.copyfileobj(file, kept, _PIECE)
            kept.seek(0)
            packed = kept.read(2) == _GZIP
            kept.seek(0)
            deflated = not packed and _holds(kept, _DEFLATED_DICOM)
            if packed:  # of a damaged one, what comes before the damage is counted
                with gzip.GzipFile(fileobj=kept) as inflated, suppress(OSError, EOFError, zlib.error):
                    for _ in self._counted(inflated):
                        pass
        if deflated:
            target.unlink()
            self.errors.append((name, "a deflated DICOM file, which the service does not read"))
        else:
            self.files.append(target)
            self.names.append(name)

    def _counted(self, file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
        """Yields the content of a packed file within the limits, whatever size it claims."""
        while piece := file.read(_PIECE):
            self._room -= len(piece)
            if self._room < 0:
                most = self.limits.max_unpacked_mb
                raise Refused(413, f"the packed files hold more than {most:g} MB; send fewer at a time")
            self.deadline.check()
            yield piece

    def _check_directory(self, file: IO[bytes]) -> None:
        """Refuses a zip whose directory alone would fill the memory: it is read whole when it is opened."""
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
        file.seek(0)
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise zipfile.BadZipFile
        (directory,) = struct.unpack_from("<L", tail, end + 12)
        zip64 = b"PK\x06\x07" in tail[max(end - 20, 0) : end]
        if zip64 or directory > _PER_ENTRY * self.limits.max_files + _PIECE:
            raise self._too_many()

    def _too_many(self) -> Refused:
        return Refused(413, f"more than {self.limits.max_files} files; send fewer at a time")


def plain_name(name: str, folders: bool = False) -> str:
    """Returns a client's file name without control characters; it is never used as a path.

    Args:
        name: as it was sent.
        folders: whether to keep the folders before it.

    Returns:
        1 to 200 printable characters.
    """
    shown = "/".join(_parts(name)[0 if folders else -1 :])
    return "".join(c for c in shown if c.isprintable())[-200:].strip() or "unnamed"


def _is_wanted(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in _parts(name))
    return not hidden and not name.endswith(("/", "\\"))


def _parts(name: str) -> list[str]:
    return [p for p in re.split(r"[\\/]", name) if p not in ("", ".", "..")]


def _is_damage(error: Exception) -> bool:
    """Returns whether a zip's bytes are the cause: `zipfile` raises nearly anything on malformed ones."""
    if isinstance(error, OSError):  # others are the disk's
        return error.errno == errno.EINVAL  # it seeks before the start of the file
    return not isinstance(error, Refused | MemoryError)


def _holds(file: IO[bytes], text: bytes) -> bool:
    before = b""
    while piece := file.read(_PIECE):
        if text in before + piece:
            return True
        before = piece[-len(text) :]
    return False
