"""What is fuzzed: for each kind of input a function that reads it, and the oracle that judges the result.

A target takes a folder of its own and the input, and returns what can be seen of the result; or raises the
error that the reader documents. The oracle holds that against the rules in `judge`. Knows the readers; knows
nothing of engines, processes or pages.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from dia.benchmark.grid import load_grid
from dia.benchmark.ledger import Ledger
from dia.benchmark.results import benchmark_results
from dia.benchmark.runs import current_lines
from dia.cli import main as cli
from dia.core.errors import DataError
from dia.core.modelfiles import SUMS, write_sums
from dia.data import imageset, readers
from dia.deploy.onnx_model import OnnxModel
from dia.deploy.scorefile import FIELDS, ScoreFile
from dia.detectors import Detector
from dia.evaluate.stress import load_stress
from dia.features.networks import read_state
from dia.report.gather import scores_by_name
from dia.serve.api import build_app
from dia.serve.current import Current
from dia.serve.limits import Deadline, Limits, Refused
from dia.serve.room.mark import Key, Seen, as_csv
from dia.serve.room.store import Marks
from dia.serve.uploads import Unpacking

SECONDS = 10.0  # of one case
MEMORY = 2 * 2**30  # bytes beyond what the libraries take
SECRET = "canary-7c1f55e0"  # in files that lie outside of what is read
LIMITS = Limits(max_mb=8, max_files=50, max_unpacked_mb=32, max_pixels=10**6, max_images=40, batch=8)
BOUNDARY = "b0undary"


class Finding(Exception):
    """What should not be: something else than a result or a documented error, or a rule broken by one."""


@dataclass
class Ground:
    """Where cases happen: `case/`, emptied before each, `temporary/`, and outside of them the canaries.

    Args:
        root: an empty folder.
        model: of `dia fit`, with a dissolver; `small` is one without, which loads in milliseconds.
    """

    root: Path
    model: Path
    small: Path
    _client: Any = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.case, self.temporary = self.root / "case", self.root / "temporary"
        self.temporary.mkdir(exist_ok=True)
        (self.root / "secret.txt").write_text(f"{SECRET}\n")
        (self.root / "secret.json").write_text(json.dumps({SECRET: SECRET}))
        self.outside = self._outside()

    def fresh(self) -> Path:
        """The case's folder, empty."""
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        return self.case

    def client(self) -> Any:
        """The service in this process."""
        if self._client is None:
            from starlette.testclient import TestClient

            current = Current(LIMITS, device="cpu")
            current.serve(self.model)
            app = build_app(current)
            client = TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=True)
            self._client = self._stack.enter_context(client)
        return self._client

    def _outside(self) -> dict[str, tuple[int, int]]:
        found = (p for p in self.root.iterdir() if p not in (self.case, self.temporary))
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in found}

    def harm(self) -> str:
        """What was written outside of the case's folder, or left among temporary files."""
        if self._outside() != self.outside:
            return f"written outside: {sorted(set(self._outside()) ^ set(self.outside))}"
        left = os.listdir(self.temporary)
        return f"temporary files left: {left}" if left else ""


Run = Callable[[Ground, Any], Iterable[str]]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        name: as the table says it.
        run: reads the input; returns the text that a user sees of the result.
        share: of all cases, in parts.
    """

    name: str
    run: Run
    share: int


def judge(ground: Ground, run: Run, data: Any) -> bool:
    """Runs one case. True for a result, False for a documented refusal.

    Raises:
        Finding: anything else, and a message, a warning or a result against the rules: errors and warnings
            are one printable line; nothing is written outside, nothing of what lies outside is shown.
    """
    ground.fresh()
    with warnings.catch_warnings(record=True) as caught, mock.patch.object(
        tempfile, "tempdir", str(ground.temporary)
    ):  # fmt: skip
        warnings.simplefilter("always")
        try:
            shown, done = list(run(ground, data)), True
        except (DataError, Refused) as error:
            shown, done = [str(error)], False
            if not error.args or _unprintable(str(error)):
                raise Finding(f"an error that is no line: {str(error)[:300]!r}") from error
    for warning in caught:
        text = str(warning.message)
        if issubclass(warning.category, UserWarning | RuntimeWarning) and _unprintable(text):
            raise Finding(f"a warning that is no line: {text[:300]!r}")
        if issubclass(warning.category, RuntimeWarning) and "bomb" not in text:  # Pillow's, of many pixels
            raise Finding(f"arithmetic went wrong: {text[:200]} ({warning.filename}:{warning.lineno})")
    if any(SECRET in text for text in shown):
        raise Finding(f"a file from outside is shown: {next(t for t in shown if SECRET in t)[:300]!r}")
    if harm := ground.harm():
        ground.outside = ground._outside()  # the next case is not to blame
        raise Finding(harm)
    return done


def _unprintable(text: str) -> bool:
    return not text.strip() or any(not c.isprintable() for c in text)


# --- images -------------------------------------------------------------------------------------------------


def reads(suffix: str, **options: Any) -> Run:
    """A file of this suffix through the readers, as it is and at a size."""

    def run(ground: Ground, data: bytes) -> list[str]:
        kind = f"{suffix}.gz" if suffix == ".nii" and data[:2] == b"\x1f\x8b" else suffix
        path = ground.case / f"x{kind}"
        path.write_bytes(data)
        made = readers.read(path, workers=1, size=(8, 9), skip_bad=False, **options)
        return _sound(made)

    return run


def _sound(made: imageset.ImageSet) -> list[str]:
    """Names and lines of a set, whose arrays must fit together."""
    x = made.images
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3) or not len(x):
        raise Finding(f"images are {x.dtype} {x.shape}")
    if len(made.names) != len(x) or (made.labels is not None and not np.isin(made.labels, (0, 1)).all()):
        raise Finding("names or labels do not fit the images")
    if any(_unprintable(line) for line in made.skipped):
        raise Finding(f"a line of what is left out is none: {list(made.skipped)!r:.300}")
    return [*map(str, made.names), *made.skipped]


def manifest(ground: Ground, data: bytes) -> list[str]:
    """A CSV or .xlsx beside two images, and a link to what lies outside."""
    from .fuzz_files import GREY, pillow

    for name in ("a.png", "b.png"):
        (ground.case / name).write_bytes(pillow(GREY, "PNG"))
    (ground.case / "out.png").symlink_to(ground.root / "secret.txt")
    file = ground.case / ("list.xlsx" if data.startswith(b"PK") else "list.csv")
    file.write_bytes(data)
    return _sound(readers.read(file, workers=1, size=8))


def folder(ground: Ground, tree: Sequence[tuple[bytes, Any]]) -> list[str]:
    """A folder of (path, what lies there): bytes of a file, ("link", target), "pipe" or "folder"."""
    root = ground.case / "data"
    root.mkdir()
    for name, what in tree:
        path = os.path.join(os.fsencode(root), name)
        with contextlib.suppress(OSError, ValueError):  # two at one place, a name that cannot be
            inside = os.path.realpath(path).startswith(os.path.realpath(os.fsencode(root)))
            if not inside or os.path.lexists(path):
                continue  # through a link of an earlier entry, or into a pipe
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if what == "pipe":
                os.mkfifo(path)
            elif what == "folder":
                os.mkdir(path)
            elif isinstance(what, tuple):
                os.symlink(what[1], path)
            else:
                Path(os.fsdecode(path)).write_bytes(what)
    found = readers.listing(root, size=8, channels=1, skip_bad=True, normal="good" if len(tree) % 2 else None)
    return [line for part in found.stream(16, workers=1) for line in _some(part)]


def _some(part: imageset.ImageSet) -> list[str]:
    return _sound(part) if len(part) else list(part.skipped)


# --- settings, models ---------------------------------------------------------------------------------------


def command(*words: str) -> Run:
    """The command line with this input as its `--config`, up to the call of the command."""
    function_of = cli._function_of

    def idle(name: str) -> Callable[..., None]:
        return functools.wraps(function_of(name))(lambda **_: None)

    def run(ground: Ground, data: bytes) -> list[str]:
        path = ground.case / "c.yaml"
        path.write_bytes(data)
        said, wrote = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(cli, "_function_of", idle),
            mock.patch.dict(os.environ, {"COLUMNS": "10000"}),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(wrote),
            contextlib.chdir(ground.case),
        ):
            try:
                cli.main([*words, "--config", str(path)])
            except SystemExit as end:
                lines = said.getvalue().strip().splitlines()
                if end.code == 0:  # it asked for help
                    return [wrote.getvalue()]
                if end.code != 2 or len(lines) != 1:
                    raise Finding(f"exit status {end.code}: {said.getvalue()[-500:]!r}") from None
                raise DataError(lines[0]) from None
        return [said.getvalue()]

    return run


def ablation(ground: Ground, data: bytes) -> list[str]:
    """A grid of `dia ablate`."""
    path = ground.case / "grid.yaml"
    path.write_bytes(data)
    grid = load_grid(str(path))
    return [str(grid.title), *map(str, grid.cells)]


def small_model(ground: Ground, data: bytes) -> list[str]:
    """The first byte says which file of a small model the rest stands in for; checksums are made anew."""
    names = ("config.json", "calibration.json", "weights.safetensors", "drift.json", SUMS)
    name = names[data[0] % len(names)] if data else SUMS
    return _model(ground, ground.small, {name: data[1:]}, sums=name != SUMS)


def model(ground: Ground, changes: dict[str, Any]) -> list[str]:
    """Files of a model by name: bytes, ("link", target), or None to take one away."""
    return _model(ground, ground.model, changes, sums=True)


def _model(ground: Ground, source: Path, changes: dict[str, Any], *, sums: bool) -> list[str]:
    place = ground.case / "model"
    shutil.copytree(source, place)
    for name, what in changes.items():
        with contextlib.suppress(OSError, ValueError):
            (place / name).unlink(missing_ok=True)
            if isinstance(what, tuple):
                (place / name).symlink_to(what[1])
            elif what is not None:
                (place / name).write_bytes(what)
    if sums and not (place / SUMS).is_symlink():
        plain = [p for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
        write_sums(place, [p.relative_to(place).as_posix() for p in plain])
    detector = Detector.load(place, device="cpu")
    scores = detector.score(np.zeros((2, *detector.shape_), np.uint8))
    if scores.shape != (2,) or not np.isfinite(scores).all():
        raise Finding(f"scores {scores}")
    p = detector.p_values(scores)
    if not ((p > 0) & (p <= 1)).all():
        raise Finding(f"p-values {p}")
    if any(_unprintable(fact) for fact in _texts(detector.facts_)):
        raise Finding(f"facts {detector.facts_}")
    return [str(scores), str(detector.facts_), detector.method]


def onnx(ground: Ground, data: bytes) -> list[str]:
    """An exported model."""
    path = ground.case / "m.onnx"
    path.write_bytes(data)
    found = OnnxModel(path, device="cpu")
    scores = found.score(np.zeros((2, *found.shape_), np.uint8))
    if scores.shape != (2,) or not np.isfinite(scores).all():
        raise Finding(f"scores {scores}")
    p = found.p_values(scores)
    if not ((p > 0) & (p <= 1)).all() or any(_unprintable(fact) for fact in _texts(found.facts_)):
        raise Finding(f"p-values {p}, facts {found.facts_}")
    return [str(scores), str(found.facts_)]


def _texts(value: Any) -> list[str]:
    """All texts of nested facts that are not empty."""
    if isinstance(value, dict):
        return [t for v in value.values() for t in _texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return [value] if isinstance(value, str) and value else []


def weights(ground: Ground, data: bytes) -> list[str]:
    """A file of `--weights`, as torch saves it."""
    path = ground.case / "w.pth"
    path.write_bytes(data)
    return [str(list(read_state(str(path))))]


# --- files of results ---------------------------------------------------------------------------------------


def ledger(ground: Ground, data: bytes) -> list[str]:
    """A file of runs: read, tabled, drawn."""
    path = ground.case / "runs.jsonl"
    path.write_bytes(data)
    lines = current_lines(Ledger(path).rows(), "cpu")
    return [str(benchmark_results(lines))] if lines else []


def score_rows(ground: Ground, data: bytes) -> list[str]:
    """An interrupted `dia score`, gone on with, and the same file as a finished one."""
    names, about = [f"{i}.png" for i in range(9)], {"model": "m"}
    done = ground.case / "done.csv"
    done.write_bytes(data)
    for suffix in (".csv", ".jsonl"):
        (ground.case / f".s{suffix}.part").write_bytes(data)
        (ground.case / f".s{suffix}.part.json").write_text(json.dumps({"model": "m", "scale": None}))
        with contextlib.suppress(DataError), ScoreFile(
            ground.case / f"s{suffix}", about, names, 3, resume=True, gaps=True
        ) as rows:  # fmt: skip
            rows.append([(name, 1.0, 0.5, False) for name in names[rows.start :]])
            rows.write_volumes(names, ["v"] * len(names), 3, lambda s: np.full(len(s), 0.5))
            rows.finish()
            if suffix == ".csv":
                text = (ground.case / "s.csv").read_text(errors="surrogateescape")
                if len(list(csv.DictReader(io.StringIO(text)))) > len(names):
                    raise Finding("more rows than images")
    found = scores_by_name(done, names[:3])
    return [str(found)]


def marks(ground: Ground, data: bytes) -> list[str]:
    """A file of the reading room's marks."""
    path = ground.case / "r.sqlite"
    path.write_bytes(data)
    kept = Marks(path)
    kept.change(Key("m", "1" * 64, "r"), _seen("1" * 64), verdict="agree", note="x")
    return [as_csv([("n.png", mark) for mark in kept.of_lineage("m")])]


def _seen(sha256: str) -> Seen:
    return Seen(False, 0.1, 0.5, 0.5, 0, [sha256], (8, 8), "m")


def mark_seeds() -> list[bytes]:
    """A file of marks, with one of them."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "r.sqlite")
        Marks(path).change(Key("m", "0" * 64, "r"), _seen("0" * 64), verdict="agree", note="left")
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
        return [path.read_bytes()]


def stress_file(ground: Ground, data: bytes) -> list[str]:
    """What `dia stress` kept."""
    path = ground.case / "stress.json"
    path.write_bytes(data)
    return [str(load_stress(path))]


def row_seeds() -> list[bytes]:
    """Rows as `dia score` writes them, in both forms."""
    rows = [(f"{i}.png", 0.5 + i, 0.25, 0) for i in range(9)]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([FIELDS, *rows])
    lines = "".join(json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows)
    return [buffer.getvalue().encode(), lines.encode()]


# --- the service --------------------------------------------------------------------------------------------


def unpacks(ground: Ground, data: bytes | Sequence[tuple[str, bytes]]) -> list[str]:
    """Uploads alone, without a model."""
    place = ground.case / "in"
    place.mkdir()
    sent = [("up.zip", data)] if isinstance(data, bytes) else data
    found = Unpacking(place, LIMITS, Deadline(SECONDS))
    for name, content in sent:
        found.add(name, io.BytesIO(content))
    inside = {p.resolve() for p in place.rglob("*")}
    if any(p.is_symlink() for p in place.rglob("*")) or not {f.resolve() for f in found.files} <= inside:
        raise Finding("what is unpacked lies elsewhere")
    if sum(f.stat().st_size for f in found.files) > LIMITS.max_unpacked + sum(len(c) for _, c in sent):
        raise Finding("more was unpacked than may be")
    lines = [*found.names, *(f"{n}: {e}" for n, e in found.errors)]
    if any(_unprintable(line) for line in lines):
        raise Finding(f"a name or error that is no line: {lines!r:.300}")
    return [*lines, *(f.read_bytes().decode("latin-1") for f in found.files)]


def http(ground: Ground, request: Any) -> list[str]:
    """A request: bytes as a multipart body for /score, or (method, path, headers, body)."""
    if isinstance(request, bytes):
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        request = ("POST", "/score", kind, request)
    method, path, headers, body = request
    response = ground.client().request(method, path, headers=headers, content=body)
    text = response.text
    if response.status_code >= 500 and response.status_code not in (503, 504):
        raise Finding(f"status {response.status_code}: {text[:300]}")
    for place in (str(ground.root), "Traceback", "site-packages"):
        if place in text:
            raise Finding(f"{place} is told: {text[:300]}")
    if response.status_code < 400:
        if method != "HEAD" and "json" in response.headers.get("content-type", ""):
            _finite(text)
        return [text]
    if path in ("/score", "/dissolve") and response.status_code != 405 and method == "POST":
        raise Refused(response.status_code, response.json()["detail"])
    raise Refused(response.status_code, re.sub(r"\s+", " ", text) or "no words")


def _finite(text: str) -> None:
    def constant(word: str) -> None:
        raise Finding(f"{word} in an answer")

    json.loads(text, parse_constant=constant)


def form(
    files: Sequence[tuple[str, bytes]], fields: Sequence[tuple[str, str]] = (), boundary: str = BOUNDARY
) -> bytes:
    """A multipart body of these file names and fields, however odd."""
    parts = []
    for name, data in files:
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogatepass") + data)
    for name, value in fields:
        head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'
        parts.append(head.encode("utf-8", "surrogatepass"))
    mark = f"--{boundary}".encode()
    return b"".join(mark + b"\r\n" + p + b"\r\n" for p in parts) + mark + b"--\r\n"
