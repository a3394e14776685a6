"""The files of a model folder, which may come from a stranger: JSON and safetensors, checked first.

Nothing else of a folder is opened. A file is read only if it is a plain file that lies in the folder, is no
larger than the limits below, and is unchanged: `checksums.json` holds the SHA-256 of each file that is read.
That finds damage and exchanged files; it does not say who made the folder, because whoever makes a folder
makes its checksums too. Knows files, sizes and hashes; knows no method and no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import DataError

MAX_JSON = 16 * 2**20  # bytes of one JSON file, and of the header of one safetensors file
MAX_WEIGHTS = 8 * 2**30  # bytes of all safetensors files of a folder
MAX_FILES = 1000  # files that checksums may name
SUMS = "checksums.json"
READ = (".json", ".safetensors")  # the suffixes of files that are read
STRESS = "stress.json"  # the result of `dia stress` for the model


class ModelFiles:
    """The files of a folder.

    Args:
        folder: the model folder.

    Attributes:
        sums: SHA-256 by relative name; None in a folder that was saved before checksums existed.

    Raises:
        DataError: weights of more than `MAX_WEIGHTS` bytes, or malformed checksums.
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
        self.nbytes = sum(p.stat().st_size for p in self.folder.rglob("*.safetensors") if p.is_file())
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
        found = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
        if not isinstance(found, dict):
            raise DataError(f"{self.folder}: {name} holds no JSON object")
        return found

    def weights(self, name: str) -> Path:
        """Checks the header of a safetensors file, without allocating its tensors, and returns its path."""
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


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_hub_cache(real: Path, root: Path) -> bool:
    """Returns whether a file is a blob of the hub's cache, whose folders hold links to blobs."""
    snapshots = next((p for p in (root, *root.parents) if p.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number
