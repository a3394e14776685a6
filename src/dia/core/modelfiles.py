"""The files of a model folder, which may come from a stranger: JSON and safetensors, checked first.

Nothing else of a folder is opened. A file is read only if it is a plain file that lies in the folder, is no
larger than the limits below, and is unchanged: `checksums.json` holds the SHA-256 of each file that is read.
That finds damage and exchanged files; it does not say who made the folder, because whoever makes a folder
makes its checksums too. So its numbers must be finite and its facts text, and no fact is ever a path that is
opened. A folder is written under another name, which it loses when it is whole. Knows files, sizes, hashes
and facts; knows no method and no network.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import re
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, printable
from .settings import fits
from .storage import Owner, behind, replace_folder

MAX_JSON = 16 * 2**20  # bytes of one JSON file, and of the header of one safetensors file
MAX_WEIGHTS = 8 * 2**30  # bytes of all safetensors files of a folder
MAX_FILES = 1000  # files that checksums may name
MAX_ENTRIES = 10_000  # files and folders in a model folder: more are another kind of folder
SUMS = "checksums.json"
READ = (".json", ".safetensors")  # the suffixes of files that are read
STRESS = "stress.json"  # the result of `dia stress` for the model
_LONGEST = 4096  # characters of a text among the facts
_DEEPEST = 4  # objects and lists within each other among the facts
_AT_ONCE = 2**20  # numbers of weights that are looked at
# the bits of a floating-point number that are all ones where it is NaN or infinite, by safetensors' types;
# others of the types are whole numbers, or have too few bits to tell
_EXPONENTS = {"F64": (np.uint64, 0x7FF << 52), "F32": (np.uint32, 0xFF << 23),
              "BF16": (np.uint16, 0xFF << 7), "F16": (np.uint16, 0x1F << 10)}  # fmt: skip
_WHOLE = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_FACTS: dict[str, Any] = {  # which this package reads again; others of any plain type are kept beside them
    "dataset": str | None, "preset": str | None, "train_sha256": str | None, "weights": str | None,
    "commit": str | None, "device": str | None, "versions": dict | None, "read": dict | None,
    "calibrated": dict | None, "adapted": dict | None, "matched": dict | None,
    "range": tuple[float, float] | None, "patients": int | None, "lineage": str | None, "taught": dict | None,
}  # fmt: skip
_FACTS_WITHIN: dict[str, dict[str, Any]] = {
    "read": dict.fromkeys(
        ("split", "normal", "window", "levels", "axis", "slices", "group_by", "data_root", "sealed"),
        str | None,
    )
    | {"contamination": float, "channel": int | None},
    "calibrated": {"on": str, "images": int, "flagged_before": float},
    "taught": {
        "marks": int,
        "anomalous": int,
        "normal": int,
        "readers": tuple[str, ...],
        "at": str,
        "auc_before": float,
        "auc_after": float,
        "gain_p": float,
        "weight": float,
        "normals_added": int,
        "watch": tuple[dict, ...],
    },
}


class ModelFiles:
    """The files of a folder.

    Args:
        folder: the model folder.

    Attributes:
        sums: SHA-256 by relative name; None in a folder that was saved before checksums existed.

    Raises:
        DataError: weights of more than `MAX_WEIGHTS` bytes, more than `MAX_ENTRIES` files, or malformed
            checksums.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._root = self.folder.resolve()
        self.sums: dict[str, str] | None = None
        self._checked: set[str] = set()
        if (self.folder / SUMS).exists():
            sums = self.json(SUMS).get("sha256")
            if not isinstance(sums, dict) or len(sums) > MAX_FILES:
                raise DataError(f"{self.folder}: {SUMS} is malformed; fetch the folder again")
            self.sums = sums
        self.nbytes = 0
        for i, path in enumerate(self.folder.rglob("*")):
            if i >= MAX_ENTRIES:
                raise DataError(f"{self.folder}: holds more than {MAX_ENTRIES} files; not a model folder")
            if path.suffix == ".safetensors" and path.is_file():
                self.nbytes += path.stat().st_size
        if self.nbytes > MAX_WEIGHTS:
            most = f"{self.nbytes / 2**30:.1f} GiB of weights, above the limit of {MAX_WEIGHTS / 2**30:g} GiB"
            raise DataError(f"{self.folder}: {most}; if you trust it, raise dia.core.modelfiles.MAX_WEIGHTS")

    def path(self, name: str) -> Path:
        """Returns the path of a plain file in the folder that has its checksum.

        Raises:
            FileNotFoundError: there is none.
            DataError: it lies elsewhere, is no plain file, or is not what was saved.
        """
        path = self.folder / name
        real = path.resolve(strict=True)
        if not (real.is_relative_to(self._root) or _in_hub_cache(real, self._root)):
            raise DataError(f"{self.folder}: {name} lies outside the folder; take a copy without links")
        if not real.is_file():
            raise DataError(f"{self.folder}: {name} is no plain file")
        if self.sums is not None and name not in self._checked and self.sums.get(name) != sha256(path):
            raise DataError(
                f"{self.folder}: {name} is not the file that was saved (by {SUMS}); fetch the folder again, "
                f"or delete {SUMS} if you changed it yourself"
            )
        self._checked.add(name)
        return path

    def verify(self) -> None:
        """Checks every file that has a checksum, those of sub-models too."""
        for name in self.sums or ():
            self.path(name)

    def json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object, whose numbers must be finite."""
        path = self.path(name)
        if path.stat().st_size > MAX_JSON:
            raise DataError(f"{self.folder}: {name} is larger than {MAX_JSON >> 20} MiB")
        try:
            found = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.folder}: {name} is no JSON that can be read ({error})") from error
        if not isinstance(found, dict):
            raise DataError(f"{self.folder}: {name} holds no JSON object")
        return found

    def weights(self, name: str) -> Path:
        """Checks a safetensors file, of whose tensors little is held at a time, and returns its path.

        Raises:
            DataError: its header is wrong, or a number in it is NaN or infinite.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(name)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_JSON:
            raise DataError(f"{self.folder}: {name} has a header of more than {MAX_JSON >> 20} MiB")
        try:
            with safe_open(path, "numpy") as file:  # checks every type, shape and offset
                file.keys()
        except SafetensorError as error:
            raise DataError(f"{self.folder}: {name} is no safetensors file, or damaged ({error})") from error
        for tensor, numbers in _tensors(path):
            if numbers is None:
                raise DataError(f"{self.folder}: {name} holds numbers of a type that no fit has ({tensor})")
            if not numbers.all():
                raise DataError(f"{self.folder}: {name}: {tensor} holds NaN or infinity; fit the model again")
        return path


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Writes the checksums of a folder's files.

    Args:
        folder: the model folder.
        names: relative names of the files; None for all. Only JSON and safetensors files count.
    """
    if names is None:
        names = (p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    wanted = sorted(n for n in names if n.endswith(READ) and n != SUMS)
    (folder / SUMS).write_text(json.dumps({"sha256": {n: sha256(folder / n) for n in wanted}}, indent=2))


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write a model into, which takes its place when it is whole, or is taken away.

    Its modes are those that the umask asks for. What processes that were killed left of earlier ones is taken
    away then, with a warning.

    Args:
        folder: the place, where another model may be, or a link to one, which stays; the folder around it is
            made if absent.
    """
    folder = behind(folder)
    begins = f".{folder.name.encode()[:180].decode(errors='ignore')}-"
    new = folder.with_name(begins + secrets.token_hex(4))
    with Owner(new):  # whose lock file tells, beside what is left of it, that its process ended before
        new.mkdir()
        try:
            yield new
            _alike(new)
            replace_folder(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    for lock in folder.parent.glob(f".{glob.escape(begins)}*.lock"):
        if re.fullmatch(r"[0-9a-f]{8}", lock.stem[len(begins) + 1 :]):
            _sweep(folder.with_name(lock.stem[1:]))


def _sweep(left: Path) -> None:
    """Takes away a folder that a killed process left, and the one that it was to replace."""
    with contextlib.suppress(DataError, OSError), Owner(left):  # refused where that process lives
        shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(left.with_name(f"{left.name}.replaced"), ignore_errors=True)
        warnings.warn(printable(f"{left}: taken away; a save that was killed had left it"), stacklevel=5)


def _alike(folder: Path) -> None:
    """Gives all files of a folder the mode of a file that is opened there; safetensors makes 0600."""
    new = folder / f".{secrets.token_hex(4)}"
    new.touch(exist_ok=False)
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def check_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns facts of a model folder or an exported file, which are short texts, numbers, lists and objects.

    No fact may name what is opened, since whoever made the model wrote them: what is done with a place among
    them is to show it.

    Args:
        facts: what JSON held.

    Returns:
        The same, texts of one printable line each.

    Raises:
        DataError: a fact is of another type than this package writes, too long or too deep.
    """
    for within, kinds in (("", _FACTS), *_FACTS_WITHIN.items()):
        found = (facts.get(within) or {}) if within else facts
        for name, kind in kinds.items():
            value = found.get(name) if isinstance(found, dict) else None
            if name in found and not fits(kind, _typed(value, kind)):
                where = f"facts.{within}.{name}" if within else f"facts.{name}"
                raise DataError(f"{where} cannot be {str(value)[:50]!r}")
    made: dict[str, Any] = _plain(facts, _DEEPEST)
    return made


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_hub_cache(real: Path, root: Path) -> bool:
    """Returns whether a file is a blob of the hub's cache, whose folders hold links to blobs."""
    snapshots = next((p for p in (root, *root.parents) if p.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields which numbers of a safetensors file are finite, tensor by tensor and part by part.

    Args:
        path: the file, its header checked.

    Yields:
        The name of a tensor, and bools; None where its type is one that no fit has.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, about in header.items():
            if name == "__metadata__" or about["dtype"] in _WHOLE:
                continue
            if about["dtype"] not in _EXPONENTS:
                yield name, None
                continue
            kind, ones = _EXPONENTS[about["dtype"]]
            begin, end = about["data_offsets"]
            file.seek(8 + size + begin)
            for _ in range(begin, end, _AT_ONCE * np.dtype(kind).itemsize):
                left = (end + 8 + size - file.tell()) // np.dtype(kind).itemsize
                bits = np.fromfile(file, kind, min(left, _AT_ONCE))
                yield name, (bits & kind(ones)) != ones


def _typed(value: Any, kind: Any) -> Any:
    """Returns a value of JSON as `fits` has it: lists as tuples, whole numbers as floats where wanted."""
    if isinstance(value, list):
        return tuple(float(v) if type(v) is int else v for v in value)
    return float(value) if kind is float and type(value) is int else value


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str) and len(value) <= _LONGEST:
        return printable(value)
    if value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**63):
        return value
    if depth and isinstance(value, dict):
        return {_plain(str(k), 0): _plain(v, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, list):
        return [_plain(v, depth - 1) for v in value]
    raise DataError(f"facts must be short text and numbers, not {str(value)[:50]!r}")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
