"""Faults: every stage killed at random moments and resumed, disks that are full or cannot be written.

Each stage runs in a process of its own, which is killed (SIGKILL) after a random part of the time that the
stage took undisturbed, and started again, until it ends; then what it made must be, byte for byte, what the
undisturbed run made. Rounds go on until the stage was killed so many times. Processes are forked from one
that has imported everything, so that a kill falls into the stage and not into the imports. Checkpoints come
every few steps and parts are small, so that there are many states to be killed in.

    python benchmarks/soak.py [--kills 50]

writes `results/soak.json` and the table between the marks of `docs/reliability.md`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before anything reads it: forked processes share no threads
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from PIL import Image

from dia.amplify.contrast import AmplifySettings
from dia.benchmark.ledger import Ledger, identity, update_section
from dia.cli import main as cli
from dia.core.running import loop
from dia.core.settings import plain
from dia.data import phantoms
from dia.detectors import Detector
from dia.detectors.dia import DIASettings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings, bank
from dia.serve.room.mark import Key, Seen
from dia.serve.room.store import Marks

from ..common import HERE, RESULTS, parser, publish

PAGE = HERE.parent / "docs/reliability.md"
SIDE, EVERY = 32, 5  # pixels, steps between checkpoints
SETTINGS = DIASettings(
    dissolver=DissolverSettings(size=SIDE, widths=(8, 16), steps=60, batch=8),
    amplify=AmplifySettings(size=SIDE, width=4, stem="patch", steps=60, batch=4),
    ts=(30, 60, 90),
    samples=1,
)
MARKS = 4000


@dataclass(frozen=True)
class Stage:
    """Something that is killed.

    Args:
        what: as the table says it.
        work: in a folder, going on with what lies there.
        result: of the folder; must be what an undisturbed run has.
        within: name of the function into which the kills fall; all of `work` where empty.
        before: the parts of a fit that are there already.
        torn: of the folder after a kill: what a reader of the result would find broken.
    """

    what: str
    work: Callable[[Path], None]
    result: Callable[[Path], Any]
    within: str = ""
    before: tuple[str, ...] = ()
    torn: Callable[[Path], int] = lambda _: 0


# --- what is killed -----------------------------------------------------------------------------------------


def fit(folder: Path) -> None:
    """`dia` on generated normals, with its stages in the folder."""
    images = phantoms.load("train", size=SIDE, n=60).images
    detector = METHODS["dia"](SETTINGS, device="cpu").fit(images, workdir=folder / "work", resume=True)
    detector.fit_seconds_ = 0.0
    detector.save(folder / "model")


def refit(folder: Path) -> None:
    """Fits as `fit` does, over another model that is there before the first start."""
    if not (folder / "begun").exists():
        shutil.copytree(folder.parent / "blur", folder / "model")
        (folder / "begun").touch()
    fit(folder)


def missing(folder: Path) -> int:
    """Returns 1 if there is no model that loads, old or new."""
    return 1 if (folder / "begun").exists() and not (folder / "model").exists() else unreadable(folder)


def fitted(folder: Path) -> dict[str, str]:
    """Hashes of the weights and the calibration."""
    kept = [*(folder / "model").rglob("*.safetensors"), folder / "model/calibration.json"]
    return {str(p.relative_to(folder)): digest(p) for p in sorted(kept)}


def unreadable(folder: Path) -> int:
    """Returns 1 if there is a model that does not load."""
    if (folder / "model").exists():
        try:
            Detector.load(folder / "model", device="cpu")
        except Exception:
            return 1
    return 0


def grid(folder: Path) -> None:
    """`dia benchmark`, two methods and three seeds."""
    methods = ("--methods", "[trivial:spectrum,trivial:blur]", "--seeds", "[0,1,2]", "--max_size", SIDE)
    places = ("--ledger", folder / "runs.jsonl", "--scores", folder / "scores", "--work", folder / "work")
    run("benchmark", "--datasets", "[phantom]", *methods, *places, "--device", "cpu")


def ledger(folder: Path) -> dict[str, Any]:
    """Returns the lines without time, memory and machine, and hashes of the raw scores."""
    rows = Ledger(folder / "runs.jsonl").rows()
    named = {identity(r): [r[k] for k in ("auroc", "auroc_ci", "ap")] for r in rows}
    scores = sorted((folder / "scores").glob("*.npz"))
    hashes = {p.name: hashlib.sha256(np.load(p)["scores"].tobytes()).hexdigest() for p in scores}
    return {"lines": len(rows), "runs": named, "scores": hashes}


def score(folder: Path) -> None:
    """`dia score` of a folder, with heatmaps."""
    out = ("--out", folder / "scores.csv", "--heatmaps", folder / "maps")
    how = ("--batch", 8, "--resume", "--device", "cpu")
    run("score", folder.parent / "blur", folder.parent / "scans", *out, *how)


def scored(folder: Path) -> dict[str, str]:
    """Hashes of the rows and of the heatmaps."""
    return {
        str(p.relative_to(folder)): digest(p) for p in sorted([folder / "scores.csv", *folder.rglob("*.png")])
    }


def review(folder: Path) -> None:
    """Marks as the page saves them, each acknowledged by a byte once it is saved."""
    marks, done = Marks(folder / "marks.sqlite"), folder / "acknowledged"
    with done.open("ab", buffering=0) as file:
        for i in range(done.stat().st_size, MARKS):
            seen = Seen(False, 0.05, i / 7, 0.5, 0, [key(i).sha256], (8, 8), "m")
            marks.change(key(i), seen, verdict="agree", note=f"note {i}")
            file.write(b".")


def key(i: int) -> Key:
    """The i-th mark's; every seventh changes another's."""
    return Key("m", f"{i - i % 7 // 6}", "reader")


def reviewed(folder: Path) -> list[Any]:
    """Returns all marks without their times."""
    marks = Marks(folder / "marks.sqlite")
    rows = (marks.find(Key("m", str(i), "reader")) for i in range(MARKS))
    return [(m.score, m.note) if m else None for m in rows]


def lost(folder: Path) -> int:
    """Counts the acknowledged marks that are not there."""
    done = folder / "acknowledged"
    n = done.stat().st_size if done.exists() else 0
    marks, wanted = Marks(folder / "marks.sqlite"), {key(i): f"note {i}" for i in range(n)}
    found = {of: marks.find(of) for of in wanted}
    newer = f"note {n}"  # saved, and killed before it was acknowledged
    return sum(f is None or f.note not in (wanted[of], newer) for of, f in found.items())


TRAINED = ("dissolver", "bank", "amplify", "encoder")
STAGES = (
    Stage("dissolver training", fit, fitted, "loop.train", (), unreadable),
    Stage("bank building", fit, fitted, "bank.build", ("dissolver",), unreadable),
    Stage("encoder training", fit, fitted, "loop.train", ("dissolver", "bank"), unreadable),
    Stage("saving the model", fit, fitted, "detector.save", TRAINED, unreadable),
    Stage("saving over another model", refit, fitted, "detector.save", TRAINED, missing),
    Stage("benchmark grid", grid, ledger, "cli.main"),
    Stage("scoring with heatmaps", score, scored, "cli.main"),
    Stage("the reading room's marks", review, reviewed, "", (), lost),
)


# --- the kills ----------------------------------------------------------------------------------------------


def child(stage: Stage, folder: Path, delay: float | None) -> None:
    """Runs the stage; kills itself `delay` seconds after the stage's function was entered."""
    quick = functools.partial(loop.train, checkpoint_every=EVERY)
    functions = {
        "loop.train": (loop, "train", quick),  # of the dissolver, or of the encoder where that is there
        "bank.build": (bank.DissolvedBank, "build", bank.DissolvedBank.build),
        "detector.save": (Detector, "save", Detector.save),
        "cli.main": (cli, "main", cli.main),
    }

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            ended = threading.Event()
            if delay is not None:
                threading.Thread(target=_kill, args=(delay, ended), daemon=True).start()
            start = time.perf_counter()
            made = function(*args, **kwargs)
            ended.set()
            (folder / ".seconds").write_text(str(time.perf_counter() - start))
            return made

        return inner

    with contextlib.ExitStack() as stack, (folder / ".said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        stack.enter_context(mock.patch.object(bank, "_CHUNK", 4))
        for name, (place, attribute, function) in functions.items():
            inner = watched(function) if name == stage.within else function
            if inner is not getattr(place, attribute):
                stack.enter_context(mock.patch.object(place, attribute, inner))
        if stage.within == "cli.main":
            stage.work(folder)
        else:
            (stage.work if stage.within else watched(stage.work))(folder)


def _kill(delay: float, ended: threading.Event) -> None:
    if not ended.wait(delay):
        os.kill(os.getpid(), signal.SIGKILL)


def soak(stage: Stage, root: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kills the stage so many times, and compares."""
    context = multiprocessing.get_context("fork")

    def attempt(folder: Path, delay: float | None) -> int | None:
        process = context.Process(target=child, args=(stage, folder, delay))
        process.start()
        process.join()
        return process.exitcode

    def fresh() -> Path:
        folder = Path(tempfile.mkdtemp(dir=root))
        for part in (root / "parts").glob("*"):
            if part.name.rpartition("-")[0] in stage.before:
                shutil.copytree(part, folder / "work" / part.name)
        return folder

    undisturbed = fresh()
    if (code := attempt(undisturbed, None)) != 0:
        said = (undisturbed / ".said").read_text()[-2000:]
        raise SystemExit(f"{stage.what}: the undisturbed run ended with {code}: {said}")
    wanted, seconds = stage.result(undisturbed), float((undisturbed / ".seconds").read_text())
    if stage.work in (fit, refit) and not (root / "parts").exists():
        shutil.copytree(undisturbed / "work", root / "parts")
    facts = {"killed": 0, "rounds": 0, "different": 0, "broken": 0, "failed": 0}
    starts = []
    while facts["killed"] < kills:
        folder, n = fresh(), 0
        while facts["killed"] < kills + 5:  # the last round may end
            n += 1
            code = attempt(folder, chance.uniform(0, seconds) if facts["killed"] < kills else None)
            if code != -signal.SIGKILL:
                break
            facts["killed"] += 1
            facts["broken"] += stage.torn(folder)
        if code:
            print(stage.what, code, (folder / ".said").read_text()[-2000:], flush=True)
        facts["failed"] += code != 0
        facts["different"] += code != 0 or stage.result(folder) != wanted
        facts["rounds"] += 1
        starts.append(n)
        shutil.rmtree(folder)
    return {"stage": stage.what, **facts, "starts": median(starts), "seconds": seconds}


# --- disks --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(size: str, options: str = "") -> Iterator[Path]:
    """A small file system in memory; needs to be root."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def commands(root: Path, out: Path) -> dict[str, list[Any]]:
    """Returns the commands that write files, by their names in the table."""
    config = root / "tiny.yaml"
    config.write_text(json.dumps(plain(replace(SETTINGS, ts=(30, 60)))))
    scans, blur, cpu = root / "scans", root / "blur", ("--device", "cpu")
    grid = ("--ledger", out / "runs.jsonl", "--scores", out / "scores", "--work", out / "work")
    return {
        "dia fit": ["fit", scans, "--method", "dia", "--settings", config, "--out", out / "m", *cpu],
        "dia score": ["score", blur, scans, "--out", out / "s.csv", "--heatmaps", out / "maps", *cpu],
        "dia report": ["report", blur, scans, "--out", out / "r.html"],
        "dia benchmark": ["benchmark", "--methods", "[trivial:blur]", "--max_size", SIDE, *grid, *cpu],
        "dia export": ["export", blur, "--out", out / "m.onnx"],
    }


def disks(root: Path) -> list[dict[str, Any]]:
    """Each command on a disk that is full, or cannot be written, and again when it has room."""
    rows = []
    for kind, size, options in (("full", "8k", ""), ("nearly full", "300k", ""), ("read-only", "1m", ",ro")):
        for name in commands(root, root):
            with disk(size, options) as out:
                words = [str(w) for w in commands(root, out)[name]]
                first = _said(words)
                subprocess.run(["mount", "-o", "remount,rw,size=64m", out], check=True)
                again = _said([*words, *["--resume"] * (name in ("dia fit", "dia score"))])
                lines = [line for line in first.stderr.strip().splitlines() if line.startswith("dia: ")]
                row = {"disk": kind, "command": name, "code": first.returncode, "again": again.returncode}
                row["line"] = (lines or [""])[-1].replace(str(out), "OUT") if first.returncode else ""
                rows.append(row | {"traceback": "Traceback" in first.stderr})
                print(rows[-1], flush=True)
    return rows


def _said(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dia", *words], capture_output=True, text=True)


# --- the page -----------------------------------------------------------------------------------------------


def run(*words: object) -> None:
    """The command in this process."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(root: Path) -> None:
    """Images and a model to score with."""
    images = phantoms.load("train", size=SIDE, n=160)
    for i, image in enumerate(images.images):
        path = root / "scans" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    METHODS["trivial:blur"](device="cpu").fit(images).save(root / "blur")


def table(results: dict[str, Any]) -> str:
    """Markdown of both."""
    lines = [
        "| stage | kills | rounds | starts a round (median) | other results | broken or lost in between "
        "| s undisturbed |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results["rows"]:
        cells = (r["stage"], r["killed"], r["rounds"], f"{r['starts']:.0f}", r["different"], r["broken"])
        lines.append(f"| {' | '.join(map(str, cells))} | {r['seconds']:.1f} |")
    lines += ["", "| disk | command | exit code | what it says | with room again |", "|---|---|--:|---|--:|"]
    for r in results["disks"]:
        line = f"| {r['disk']} | `{r['command']}` | {r['code']} | {r['line']} | {r['again']} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Kills, fills disks, draws the page."""
    p = parser(__doc__)
    p.add_argument("--kills", type=int, default=50, help="of each stage")
    p.add_argument("--stages", nargs="+", help="words of their names; all by default, and the disks")
    p.add_argument("--seed", type=int, default=0, help="of the moments")
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    a = p.parse_args()
    there = RESULTS / "soak.json"
    if not a.page:
        before = json.loads(there.read_text()) if there.exists() else {"rows": [], "disks": []}
        rows, of_disks = before["rows"], before["disks"]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            prepare(root)
            for stage in STAGES:
                if a.stages and not any(word in stage.what for word in a.stages):
                    continue
                found = soak(stage, root, a.kills, random.Random(f"{a.seed} {stage.what}"))
                rows = [r for r in rows if r["stage"] != stage.what] + [found]
                publish("soak", rows, {}, disks=of_disks)
            if not a.stages or "disks" in a.stages:
                if os.geteuid():
                    print("disks are left out: to mount small ones takes root", flush=True)
                else:
                    of_disks = disks(root)
                    publish("soak", rows, {}, disks=of_disks)
    update_section(PAGE, "SOAK", table(json.loads(there.read_text())))


if __name__ == "__main__":
    main()
