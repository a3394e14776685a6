"""Hostile files: every reader, manifest, configuration, model, file of results and endpoint, fuzzed.

Bytes are driven by atheris, which sees which branches of this package an input reaches; structured cases, in
which named fields of valid files lie, by hypothesis. Each target runs in a process of its own that may take
so much memory (`MEMORY`, by the system's limit on data) and is killed where one case takes longer than
`SECONDS`. What counts is what was judged, not what was asked for. One core.

    python benchmarks/fuzz.py [--cases 120000] [--targets PNG ...] [--seed 0]

writes `results/fuzz.json`, the table between the marks of `docs/reliability.md`, and what was found wrong,
with its input, into `.work/fuzz/`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import mmap
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything reads it: forked processes share no threads
os.environ["HF_HUB_OFFLINE"] = "1"

from ..common import HERE, RESULTS, parser, publish

sys.path.insert(0, str(HERE.parent / "tests/helpers"))

try:
    import atheris
except ImportError:  # of Linux on x86-64
    atheris = None

with atheris.instrument_imports(include=["dia"]) if atheris else contextlib.nullcontext():
    pass

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from dia.amplify.contrast import AmplifySettings
from dia.benchmark.ledger import update_section
from dia.data import phantoms
from dia.detectors.dia import DIASettings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings

from . import fuzz_bombs
from . import fuzz_cases as cases
from . import fuzz_files as files
from . import fuzz_targets as targets
from .fuzz_targets import MEMORY, SECONDS, Finding, Ground, Run, judge

PAGE = HERE.parent / "docs/reliability.md"
FOUND = HERE.parent / ".work/fuzz"
CASES = 120_000
BYTES = 4096  # of an input that atheris makes
UNTOUCHED = 4 * 2**30  # bytes more that may be asked for, but not used: the system's limit stands there
_STATE = struct.Struct("<qqqqddd")  # judged, results, refused, found; case began; slowest s, peak MB


@dataclass(frozen=True)
class Fuzz:
    """One row of the table.

    Args:
        target: what it says.
        run: of `fuzz_targets`.
        share: of all cases, in parts.
        seeds: for atheris: valid inputs.
        cases: for hypothesis: a strategy.
    """

    target: str
    run: Run
    share: float
    seeds: list[bytes] | None = None
    cases: Any = None

    @property
    def engine(self) -> str:
        """Which of the two."""
        return "hypothesis" if self.seeds is None else "atheris"


def all_targets(ground: Ground) -> list[Fuzz]:
    """Returns every row of the table, with its share of the cases."""
    line = json.loads(Path(HERE.parent / "results/runs.jsonl").read_text().splitlines()[-1])
    small = ground.small
    parts = ("config.json", "calibration.json", "weights.safetensors", "drift.json", "checksums.json")
    of_model = [bytes([i]) + (small / name).read_bytes() for i, name in enumerate(parts)]
    fit, bench = targets.command("fit"), targets.command("benchmark")
    tricks = [cases.ALIASES.encode()]
    return [
        Fuzz("PNG, JPEG, BMP, GIF, WebP, PPM", targets.reads(".png"), 12, files.plain_seeds()),
        Fuzz("PNG, by chunk", targets.reads(".png"), 5, cases=cases.pngs()),
        Fuzz("TIFF", targets.reads(".tif"), 8, files.tiff_seeds()),
        Fuzz("TIFF, by tag", targets.reads(".tif", window="40,400"), 8, cases=cases.tiffs()),
        Fuzz("DICOM", targets.reads(".dcm"), 8, files.dicom_seeds()),
        Fuzz("DICOM, by attribute", targets.reads(".dcm"), 8, cases=cases.dicoms()),
        Fuzz("NIfTI", targets.reads(".nii"), 5, files.nifti_seeds()),
        Fuzz("NIfTI, by field", targets.reads(".nii"), 5, cases=cases.niftis()),
        Fuzz("MetaImage, NRRD", targets.reads(".mha"), 4, files.headed_seeds()),
        Fuzz("MetaImage, NRRD, by field", targets.reads(".mha"), 4, cases=cases.headeds()),
        Fuzz(".npy", targets.reads(".npy"), 3, files.npy_seeds()),
        Fuzz(".npy, by array", targets.reads(".npy"), 3, cases=cases.npys()),
        Fuzz(".npz", targets.reads(".npz"), 5, files.npz_seeds()),
        Fuzz(".npz, by array", targets.reads(".npz"), 5, cases=cases.npzs()),
        Fuzz("manifest", targets.manifest, 5, [b"path,label\na.png,0\nb.png,1\n", b"path,label,mask,split\n"
             b"a.png,good,,train\nb.png,bad,a.png,test\n", b"sep=;\npath;label;patient\na.png;0;\xe4\n",
             "path\tlabel\tx\na.png\t0\t=1\n".encode("utf-16")]),
        Fuzz("manifest, .xlsx", targets.manifest, 3, files.workbook_seeds()),
        Fuzz("manifest, by row", targets.manifest, 4, cases=cases.manifests()),
        Fuzz("folder, by entry", targets.folder, 5, cases=cases.folders()),
        Fuzz("`dia fit --config`", fit, 0.7, [json.dumps(cases.FIT).encode(), *tricks]),
        Fuzz("`dia fit --config`, by setting", fit, 0.7, cases=cases.yamls(cases.FIT)),
        Fuzz("`dia benchmark --config`, by setting", bench, 0.7, cases=cases.yamls(cases.GRID)),
        Fuzz("`dia ablate` grid", targets.ablation, 3, [json.dumps(cases.ABLATION).encode(), *tricks]),
        Fuzz("`dia ablate` grid, by setting", targets.ablation, 2, cases=cases.yamls(cases.ABLATION)),
        Fuzz("model folder", targets.small_model, 3, of_model),
        Fuzz("model folder, by field", targets.model, 1, cases=cases.models(ground.model)),
        # what the check lets pass runs in a process of its own, which takes its time
        Fuzz("exported model", targets.onnx, 2, [cases.small_onnx()]),
        Fuzz("exported model, by field", targets.onnx, 1, cases=cases.onnxs()),
        Fuzz("`--weights` file", targets.weights, 2, _weights()),
        Fuzz("ledger", targets.ledger, 3, [json.dumps(line).encode() + b"\n"]),
        Fuzz("ledger, by field", targets.ledger, 2, cases=cases.lines(line)),
        Fuzz("score file", targets.score_rows, 3, targets.row_seeds()),
        Fuzz("marks of the reading room", targets.marks, 1, targets.mark_seeds()),
        Fuzz("`dia stress` file", targets.stress_file, 1, [b'{"identity": {"format": 1}, "rows": []}']),
        Fuzz("upload", targets.unpacks, 5, [*files.npz_seeds(), files.link("a.png", "../secret.txt")]),
        Fuzz("uploads, by zip entry", targets.unpacks, 4, cases=cases.zips()),
        Fuzz("HTTP body", targets.http, 2, [targets.form([("a.png", files.png(8, 8))], [("t", "50")])]),
        Fuzz("HTTP, by part", targets.http, 2, cases=cases.requests()),
    ]  # fmt: skip


def _weights() -> list[bytes]:
    import io

    import torch

    made = []
    for new in (True, False):
        buffer = io.BytesIO()
        state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        made.append(buffer.getvalue())
    return made


# --- one process --------------------------------------------------------------------------------------------


class Tally:
    """Counts, in memory shared with the process that watches."""

    def __init__(self, shared: mmap.mmap):
        self.shared = shared

    def read(self) -> list[Any]:
        """judged, results, refused, found; when the case began; slowest s, peak MB."""
        return list(_STATE.unpack_from(self.shared))

    def write(self, values: list[Any]) -> None:
        """Writes the values that `read` returns."""
        _STATE.pack_into(self.shared, 0, *values)


def child(fuzz: Fuzz, ground: Ground, tally: Tally, wanted: int, chance: int) -> None:
    """Judges `wanted` cases, and ends the process."""
    faulthandler.register(signal.SIGUSR1)
    out = os.open(ground.root.parent / "said", os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if fuzz.target.startswith("HTTP"):
        ground.client()
    ground.outside = ground._outside()
    used = _status("VmData") * 1024
    most = used + MEMORY + UNTOUCHED
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    state = tally.read()
    end = state[0] + wanted

    def one(data: Any) -> None:
        with (ground.root.parent / "last").open("wb") as file:
            pickle.dump(data, file)
        state[4] = start = time.monotonic()
        tally.write(state)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        try:
            state[2 - judge(ground, fuzz.run, data)] += 1
        except Exception as error:
            state[3] += keep(fuzz, error, ground)
        state[0] += 1
        state[4] = 0.0
        state[5] = max(state[5], time.monotonic() - start)
        state[6] = max(state[6], peak := (_status("VmHWM") - before) / 1024)
        if peak * 2**20 > MEMORY:
            state[3] += keep(fuzz, Finding(f"{peak:.0f} MB"), ground)
        tally.write(state)
        if state[0] >= end:
            os._exit(0)

    if fuzz.seeds is None:
        by_hypothesis(fuzz, one, wanted, chance)
    else:
        by_atheris(fuzz, one, ground, chance)


def by_hypothesis(fuzz: Fuzz, one: Callable[[Any], None], wanted: int, chance: int) -> None:
    """Rounds of some thousand cases: hypothesis remembers those of a round, to try none twice."""
    for round_ in range(1000):
        options = settings(
            max_examples=min(wanted, 1000), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), derandomize=False,
        )  # fmt: skip
        with contextlib.suppress(HypothesisException):  # its own troubles end a round
            seed(f"{chance} {round_}")(options(given(fuzz.cases)(one)))()


def by_atheris(fuzz: Fuzz, one: Callable[[Any], None], ground: Ground, chance: int) -> None:
    """Until the process ends."""
    corpus = ground.root.parent / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir()
    for i, data in enumerate(fuzz.seeds or ()):
        (corpus / f"{i:03d}").write_bytes(data)
    longest = max(len(data) for data in fuzz.seeds or [b""])
    flags = [f"-seed={chance + 1}", f"-max_len={max(BYTES, 2 * longest)}", f"-timeout={int(2 * SECONDS)}"]
    flags += ["-rss_limit_mb=0", "-print_final_stats=0", "-verbosity=0", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


def keep(fuzz: Fuzz, error: Exception, ground: Ground) -> bool:
    """Keeps the input and the traceback of what was found, once for each place; True where it is new."""
    frames = traceback.extract_tb(error.__cause__.__traceback__ if error.__cause__ else error.__traceback__)
    own = [f for f in frames if "/src/dia/" in f.filename] or list(frames)
    words = str(error)[:40] if isinstance(error, Finding) else ""
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    where = f"{type(error).__name__} {words} {place}"
    kept = re.sub(r"[/`.-]", "", f"{fuzz.target} {hashlib.sha256(where.encode()).hexdigest()[:8]}")
    if (FOUND / f"{kept}.txt").exists():
        return False
    FOUND.mkdir(parents=True, exist_ok=True)
    (FOUND / f"{kept}.txt").write_text(
        f"{where}\n\n{''.join(traceback.format_exception(error))}\n"
        + (ground.root.parent / "said").read_text(errors="backslashreplace")[-2000:] * (not own),
        errors="backslashreplace",
    )
    shutil.copy(ground.root.parent / "last", FOUND / f"{kept}.pickle")
    return True


def _status(name: str) -> int:
    """Reads a field of this process's status, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(name) :].split(None, 2)[1])


# --- the process that watches -------------------------------------------------------------------------------


def fuzzed(fuzz: Fuzz, ground: Ground, wanted: int, chance: int) -> dict[str, Any]:
    """Runs the target until so many cases are judged; a process that dies or is slow counts as found."""
    tally, died = Tally(mmap.mmap(-1, _STATE.size)), 0
    context, began_at = multiprocessing.get_context("fork"), time.monotonic()
    while (done := tally.read())[0] < wanted and died < 20:
        process = context.Process(
            target=child, args=(fuzz, ground, tally, wanted - done[0], chance + 1000 * died)
        )
        process.start()
        slow = False
        while process.is_alive():
            process.join(0.5)
            began = tally.read()[4]
            if began and time.monotonic() - began > SECONDS:
                slow = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGUSR1)  # it says where it is
                time.sleep(0.2)
                process.kill()
        if process.exitcode == 0:
            continue
        died += 1
        state = tally.read()
        why = f"longer than {SECONDS:g} s" if slow else f"the process ended with {process.exitcode}"
        state[3] += keep(fuzz, Finding(why), ground)
        state[0], state[4] = state[0] + bool(state[4]), 0.0
        tally.write(state)
    judged, results, refused, found, _, slowest, peak = tally.read()
    return {
        "input": fuzz.target, "engine": fuzz.engine, "cases": judged, "results": results, "refused": refused,
        "findings": found, "slowest_s": round(slowest, 2), "peak_mb": round(peak),
        "seconds": round(time.monotonic() - began_at),
    }  # fmt: skip


@contextlib.contextmanager
def grounds() -> Iterator[Ground]:
    """The place, with a model that dissolves and a small one."""
    with tempfile.TemporaryDirectory() as place:
        images = phantoms.load("train", size=32, n=60).images
        tiny = DIASettings(
            DissolverSettings(size=32, widths=(8, 16), steps=4, batch=4),
            AmplifySettings(size=32, width=4, stem="patch", steps=3, batch=4), ts=(30, 60), samples=1,
        )  # fmt: skip
        model = METHODS["dia"](tiny, device="cpu").fit(images, workdir=Path(place, "work"))
        blur = METHODS["trivial:blur"](device="cpu").fit(images)
        root = Path(place, "root")
        root.mkdir()
        yield Ground(root, model.save(Path(place, "model")), blur.save(Path(place, "small")))


def table(results: dict[str, Any]) -> str:
    """Markdown of all targets, and the sum."""
    rows = results["rows"]
    lines = ["| input | driven by | cases | results | refused | findings left | slowest case, s | peak, MB |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for r in rows:
        counts = " | ".join(f"{r[k]:,}" for k in ("cases", "results", "refused", "findings"))
        lines.append(f"| {r['input']} | {r['engine']} | {counts} | {r['slowest_s']:.2f} | {r['peak_mb']:,} |")
    sums = " | ".join(f"{sum(r[k] for r in rows):,}" for k in ("cases", "results", "refused", "findings"))
    most = (f"{max(r['slowest_s'] for r in rows):.2f}", f"{max(r['peak_mb'] for r in rows):,}")
    lines.append(f"| **all** | | {sums} | {most[0]} | {most[1]} |")
    minutes = sum(r["seconds"] for r in rows) / 60
    lines += [
        "",
        f"Limits: {results['seconds']:g} s for each case, {results['memory_mb']:,} MB beyond what libraries "
        f"take. {minutes:.0f} minutes on one core of a busy machine, seed {results['seed']}.",
    ]
    if results["largest"]:
        lines += [
            "",
            "The smallest files that unfold to the most that is accepted:",
            "",
            "| file | KB | images | CPU s | peak, MB |",
            "|---|--:|--:|--:|--:|",
        ]
    for r in results["largest"]:
        lines.append(f"| {r['file']} | {r['kb']:,} | {r['images']} | {r['cpu_s']:.1f} | {r['peak_mb']:,} |")
    return "\n".join(lines)


def main() -> None:
    """Fuzzes, draws the page."""
    p = parser(__doc__)
    p.add_argument("--cases", type=int, default=CASES, help="of all targets together")
    p.add_argument(
        "--targets", nargs="+", help="words of their names, whose rows are replaced; all by default"
    )
    p.add_argument("--seed", type=int, default=0, help="of both engines")
    p.add_argument("--largest", action="store_true", help="of these rows the largest files alone")
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    a = p.parse_args()
    if not a.page:
        if atheris is None:
            print("atheris is not installed (it is of Linux on x86-64): structured cases alone", flush=True)
        shutil.rmtree(FOUND, ignore_errors=True)
        there = RESULTS / "fuzz.json"
        before = json.loads(there.read_text()) if there.exists() else {}
        kept = before.get("rows", []) if a.targets or a.largest else []
        known, rows = {r["input"]: r for r in kept}, []
        largest = before.get("largest", []) if a.targets else fuzz_bombs.measured()
        with grounds() as ground:
            every = [t for t in all_targets(ground) if atheris or t.seeds is None]
            parts = sum(t.share for t in every)
            for t in every:
                if a.largest or (a.targets and not any(word in t.target for word in a.targets)):
                    continue
                rows.append(fuzzed(t, ground, int(np.ceil(a.cases * t.share / parts)), a.seed))
                print(rows[-1], flush=True)
            known |= {r["input"]: r for r in rows}
            made = [known[t.target] for t in every if t.target in known]  # in the table's order
            publish("fuzz", made, {}, seconds=SECONDS, memory_mb=MEMORY >> 20, seed=a.seed, largest=largest)
        found = sum(r["findings"] for r in rows)
        print(f"{sum(r['cases'] for r in rows)} cases, {found} findings" + f": see {FOUND}" * bool(found))
    update_section(PAGE, "FUZZ", table(json.loads((RESULTS / "fuzz.json").read_text())))


if __name__ == "__main__":
    main()
