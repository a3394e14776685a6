"""The ledger of runs, and the tables drawn from it: one JSON line per (data set, method, settings, seed).

A line says what was run: `revision` of the method, `preset`, and in `settings` what differs from that preset,
by dotted name. Lines of which this is no longer known have `settings` null: they are history that no table
shows. Numbers are appended once and read back, never typed. This file knows nothing of images, models or how
a run is made. Appending needs a POSIX system (file locks).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from ..core.errors import DataError

REQUIRED = (
    *("dataset", "method", "preset", "seed", "auroc", "auroc_ci", "ap", "fit_seconds"),
    *("score_images_per_second", "peak_memory_mb", "device", "weights", "data_sha256", "settings_hash"),
    *("commit", "versions", *("revision", "settings", "weights_kind", "holdout")),
)
_LATER = ("revision", "settings", "weights_kind", "holdout")  # older lines are without, and are history
LEDGER = "results/runs.jsonl"  # where `dia benchmark` writes
FAILED = ("dataset", "method", "preset", "seed", "weights", "reason")  # of the lines beside it
# The fields by whose values two lines are the same run; `encoder` only where weights are of a run.
IDENTITY = (
    *("dataset", "method", "revision", "preset", "settings", "encoder", "holdout", "seed", "data_sha256"),
)
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: type(v) is int and abs(v) < 2**63, "a whole number"),
    "auroc": (lambda v: _share(v), "a number from 0 to 1"),
    "ap": (lambda v: _share(v), "a number from 0 to 1"),
    "auroc_ci": (lambda v: isinstance(v, list) and list(map(_share, v)) == [True] * 2, "two from 0 to 1"),
    "run_seconds": (lambda v: _number(v), "a number"),
    "ablation": (lambda v: isinstance(v, dict), "an object"),
    "fit_seconds": (lambda v: v is None or _number(v), "a number or null"),
    "score_images_per_second": (lambda v: v is None or _number(v), "a number or null"),
    "peak_memory_mb": (lambda v: v is None or _number(v), "a number or null"),
    "commit": (lambda v: v is None or isinstance(v, str), "text or null"),
    "versions": (lambda v: isinstance(v, dict), "an object"),
    "revision": (lambda v: v is None or type(v) is int, "a whole number or null"),
    "settings": (lambda v: v is None or isinstance(v, dict), "an object or null"),
    "encoder": (lambda v: isinstance(v, dict), "an object"),
    "holdout": (lambda v: v is None or _share(v), "a number from 0 to 1, or null"),
}
_TEXT: tuple[Callable[[Any], bool], str] = (lambda v: isinstance(v, str), "text")  # all others


class Ledger:
    """Runs in a file of JSON lines that several processes may append to, and that survives a kill.

    Args:
        path: the file; made with its folder on the first append.
        required: fields that every line has, each of its kind.
    """

    def __init__(self, path: str | Path, required: Sequence[str] = REQUIRED) -> None:
        self.path, self.required = Path(path), required

    def append(self, record: Mapping[str, Any]) -> None:
        """Write `record` as one whole line, flushed to disk.

        Raises:
            ValueError: a required field is missing, or a value is not finite or not JSON.
        """
        append_line(self.path, _encoded(record))

    def rows(self) -> list[dict[str, Any]]:
        """All records, oldest first; a torn last line is left out.

        Raises:
            DataError: a damaged line before the last, or a line that lacks a field or has another kind of it.
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
            holds, what = _KINDS.get(name, _TEXT)
            if name not in record or not holds(record[name]):
                raise DataError(f"{self.path}:{number}: {name} must be {what}; repair or delete this line")

    def find(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first line of the same run, by the fields of `IDENTITY`; None where it was not made."""
        wanted = identity(run)
        return next((r for r in self.rows() if identity(r) == wanted), None)


def identity(line: Mapping[str, Any]) -> str:
    """The values of `IDENTITY` as text: equal for two lines exactly where they are of the same run."""
    return json.dumps([line.get(name) for name in IDENTITY], sort_keys=True)


def append_line(path: Path, line: bytes) -> None:
    """Adds a whole line of JSON to a file that several processes may append to; mends a torn last one."""
    import fcntl  # POSIX only: reading and tables work without

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:  # O_APPEND
        fcntl.flock(file, fcntl.LOCK_EX)  # released on close
        _mend(path, file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def failures_path(ledger: Path) -> Path:
    """Where the reasons of failed runs stand, a JSON line each."""
    return ledger.with_suffix(f".failures{ledger.suffix}")


def _mend(path: Path, file: Any) -> None:
    """Under the lock: end a last line that lacks only its line end, drop one that is torn."""
    file.seek(0)
    start = 0
    last = b""
    for last in file:
        start += len(last)
    if not last or last.endswith(b"\n"):
        return
    if _decoded(last) is not None:
        file.write(b"\n")
        return
    warnings.warn(f"{path}: dropped a torn last line ({len(last)} bytes)", stacklevel=3)
    file.truncate(start - len(last))


def _encoded(record: Mapping[str, Any]) -> bytes:
    missing = [k for k in REQUIRED if k not in record]
    if missing:
        raise ValueError(f"the record lacks {', '.join(missing)}: give every field of ledger.REQUIRED")
    ci = record["auroc_ci"]
    if len(ci) != 2:
        raise ValueError(f"auroc_ci must be [low, high], not {ci!r}")
    try:
        # numpy scalars and arrays as plain numbers and lists
        return json.dumps(dict(record), default=lambda x: x.tolist(), allow_nan=False).encode() + b"\n"
    except (AttributeError, ValueError, TypeError) as e:
        raise ValueError(f"the record is not JSON ({e}): use None for what is unknown") from None


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn, also within a UTF-8 character
        return None
    return record if isinstance(record, dict) else None


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _number(value: Any) -> bool:
    """A finite one; JSON's whole numbers may be larger than any float."""
    return type(value) in (int, float) and abs(value) <= 1e300


def table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs grouped by data set and method, in order of first appearance.

    Returns:
        One dict per group: `dataset`, `method`, `preset`, `n_seeds`, `auroc_mean`, `auroc_std` (over seeds,
        n - 1; None with one seed), `auroc_ci` (mean of the ends over seeds), likewise `ap_mean` and `ap_std`,
        and the medians `fit_seconds`, `score_images_per_second`, `peak_memory_mb`.

    Raises:
        ValueError: a group mixes presets, settings of one seed, or data: no honest mean exists.
    """
    unique = {identity(r): r for r in rows}  # a run made twice counts once, the later one
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in unique.values():
        groups.setdefault((r["dataset"], r["method"]), []).append(r)
    out = []
    for (dataset, method), runs in groups.items():
        for field in ("preset", "data_sha256"):
            if len({r[field] for r in runs}) > 1:
                raise ValueError(f"{method} on {dataset} mixes several {field}: filter the rows to one first")
        if len({r["seed"] for r in runs}) < len(runs):
            raise ValueError(f"{method} on {dataset} has a seed with several settings: filter the rows first")
        summary: dict[str, Any] = {"dataset": dataset, "method": method}
        summary |= {"preset": runs[0]["preset"], "n_seeds": len(runs)}
        for field in ("auroc", "ap"):
            values = [r[field] for r in runs]
            summary[f"{field}_mean"] = mean(values)
            summary[f"{field}_std"] = stdev(values) if len(values) > 1 else None
        summary["auroc_ci"] = [mean(r["auroc_ci"][end] for r in runs) for end in (0, 1)]
        for field in ("fit_seconds", "score_images_per_second", "peak_memory_mb"):
            values = [r[field] for r in runs if r[field] is not None]
            summary[field] = median(values) if values else None
        out.append(summary)
    return out


def update_section(path: str | Path, name: str, text: str) -> bool:
    """Replace what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in a file.

    Returns:
        True if the file changed.

    Raises:
        ValueError: the pair of marks is not there exactly once.
    """
    path = Path(path)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if old.count(begin) != 1 or old.count(end) != 1 or not pattern.search(old):
        raise ValueError(f"{path} must hold {begin} … {end} exactly once: add or repair the marks")
    new = pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", old)
    if new != old:
        path.write_text(new, encoding="utf-8")
    return new != old
