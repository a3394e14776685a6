"""The ledger of runs: one JSON line per (data set, method, settings, seed).

A line says what was run: `revision` of the method, `preset`, and in `settings` the values that differ from
that preset, by dotted name. A line whose settings are no longer known has `settings` null: it is history that
no table shows. Numbers are appended once and read back, never typed. This file knows nothing of images,
models or how a run is made. Appending needs a POSIX system (file locks).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError

REQUIRED = (
    *("dataset", "method", "preset", "seed", "auroc", "auroc_ci", "ap", "fit_seconds"),
    *("score_images_per_second", "peak_memory_mb", "device", "weights", "data_sha256", "settings_hash"),
    *("commit", "versions", *("revision", "settings", "weights_kind", "holdout")),
)
_LATER = ("revision", "settings", "weights_kind", "holdout")  # older lines are without, and are history
LEDGER = "results/runs.jsonl"  # where `dia benchmark` writes
FAILED = ("dataset", "method", "preset", "seed", "weights", "reason")  # fields of a failed run's line
# The fields by whose values two lines are the same run; `encoder` only where weights are of a run.
IDENTITY = (
    *("dataset", "method", "revision", "preset", "settings", "encoder", "holdout", "seed", "data_sha256"),
)
_KINDS = {  # of the fields that hold no text
    "auroc": "a number from 0 to 1", "ap": "a number from 0 to 1", "auroc_ci": "two numbers from 0 to 1",
    "holdout": "a number from 0 to 1 or null", "seed": "a whole number", "revision": "a whole number or null",
    "fit_seconds": "a number or null", "score_images_per_second": "a number or null",
    "peak_memory_mb": "a number or null", "run_seconds": "a number", "commit": "text or null",
    "settings": "an object or null", "encoder": "an object", "versions": "an object", "ablation": "an object",
}  # fmt: skip


class Ledger:
    """A file of JSON lines, one for each run, that several processes may append to and a kill leaves whole.

    Args:
        path: of the file; made with its folder on the first append.
        required: fields that every line has.
    """

    def __init__(self, path: str | Path, required: Sequence[str] = REQUIRED) -> None:
        self.path, self.required = Path(path), required

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes `record` as one whole line, flushed to disk.

        Raises:
            ValueError: a required field is missing, or a value is not finite or not JSON.
        """
        if missing := [k for k in REQUIRED if k not in record]:
            raise ValueError(f"the record lacks {', '.join(missing)}: give every field of ledger.REQUIRED")
        if len(record["auroc_ci"]) != 2:
            raise ValueError(f"auroc_ci must be [low, high], not {record['auroc_ci']!r}")
        try:
            # numpy scalars and arrays as plain numbers and lists
            line = json.dumps(dict(record), default=lambda x: x.tolist(), allow_nan=False)
        except (AttributeError, ValueError, TypeError) as e:
            raise ValueError(f"the record is not JSON ({e}): use None for what is unknown") from None
        append_line(self.path, line.encode() + b"\n")

    def rows(self) -> list[dict[str, Any]]:
        """Reads all records, oldest first, but for a torn last line.

        Raises:
            DataError: a damaged line before the last, or a field that is missing or of another kind.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        found = []
        for number, line in enumerate(lines, 1):
            record = _decoded(line)
            if record is not None:
                self._check(record, number)
                found.append(record)
            elif line.strip() and number < len(lines):  # the last has no line end: torn by a kill
                raise DataError(f"{self.path}:{number}: not a JSON object; repair or delete this line")
        return found

    def _check(self, record: Mapping[str, Any], number: int) -> None:
        required = [n for n in self.required if n not in _LATER]
        known = [*_KINDS, *_LATER]
        for name in (*required, *(n for n in known if n in record and n not in required)):
            kind = _KINDS.get(name, "text")
            if name not in record or not _is(kind, record[name]):
                raise DataError(f"{self.path}:{number}: {name} must be {kind}; repair or delete this line")

    def find(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the first line of the same run, by the fields of `IDENTITY`; None if there is none."""
        wanted = identity(run)
        return next((r for r in self.rows() if identity(r) == wanted), None)


def identity(line: Mapping[str, Any]) -> str:
    """Returns the values of `IDENTITY` as text: equal for two lines exactly if they are the same run."""
    return json.dumps([line.get(name) for name in IDENTITY], sort_keys=True)


def append_line(path: Path, line: bytes) -> None:
    """Appends a line to a file that several processes may append to, and mends a torn last line.

    Args:
        path: of the file; made with its folder if it is absent.
        line: one JSON object and a line end.
    """
    import fcntl  # POSIX only: reading and tables work without

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:  # O_APPEND
        fcntl.flock(file, fcntl.LOCK_EX)  # released on close
        _mend(path, file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def failures_path(ledger: Path) -> Path:
    """Returns the path of the file that holds the reasons of failed runs, a JSON line each."""
    return ledger.with_suffix(f".failures{ledger.suffix}")


def _mend(path: Path, file: Any) -> None:
    """Ends a last line that lacks only its line end, and drops one that is torn; needs the lock."""
    file.seek(0)
    whole = file.read()
    last = whole[whole.rfind(b"\n") + 1 :]
    if last and _decoded(last) is not None:
        file.write(b"\n")
    elif last:
        warnings.warn(f"{path}: dropped a torn last line ({len(last)} bytes)", stacklevel=3)
        file.truncate(len(whole) - len(last))


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn, also within a UTF-8 character
        return None
    return record if isinstance(record, dict) else None


def _is(kind: str, value: Any) -> bool:
    """Returns whether a value is of a kind of `_KINDS`; numbers are finite."""
    plain = kind.removesuffix(" or null")
    if value is None:
        return plain != kind
    if plain == "two numbers from 0 to 1":
        return isinstance(value, list) and len(value) == 2 and all(_is(_KINDS["auroc"], v) for v in value)
    if plain == "a whole number":
        return type(value) is int and abs(value) < 2**63
    if plain in ("an object", "text"):
        return isinstance(value, dict if plain == "an object" else str)
    number = type(value) in (int, float) and abs(value) <= 1e300  # JSON's numbers may exceed any float
    return number and (plain == "a number" or 0 <= value <= 1)


def update_section(path: str | Path, name: str, text: str) -> bool:
    """Replaces the text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in a file.

    Args:
        path: of a text file in UTF-8.
        name: of the pair of marks.
        text: what the file shall hold between them.

    Returns:
        True if the file changed.

    Raises:
        DataError: the pair of marks is not there exactly once.
    """
    path = Path(path)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if old.count(begin) != 1 or old.count(end) != 1 or not pattern.search(old):
        raise DataError(f"{path} must hold {begin} … {end} exactly once: add or repair the marks")
    new = pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", old)
    if new != old:
        path.write_text(new, encoding="utf-8")
    return new != old
