"""Runs the paper's own training for as long as a machine is lent: jobs in order of worth.

Each job trains the encoder of `csi` or `dia` as published (width 64, LARS, batch 32, 1000 epochs of ⌈N/32⌉
batches) on *all* training normals of a set, from a bank of dissolved copies at fourteen t, and judges it by
every score at some steps on the way. Where the minutes are too few for a job's whole schedule, it is cut to
what fits, after the step was measured; the line says so. Nothing is chosen by a test label: the last step is
the result, and what choosing the best step on test would have given stands beside it.

    python benchmarks/accelerator.py --data ../shared/data --out OUT --minutes 8     # on a GPU
    python benchmarks/accelerator.py ... --dry-run                                   # jobs with estimates
    python benchmarks/accelerator.py ... --banks                                     # banks alone, on a CPU
    python benchmarks/accelerator.py ... --device cpu --steps 5                      # all jobs, in a test
    python benchmarks/accelerator.py --enter OUT                                     # into results/, once

Under OUT: `results.jsonl` (a line for each score at each step judged), `scores.npz`, `losses.npz`. What is
there is not made again; a job that was stopped goes on from its checkpoint under --work. Both go by what a
job is: its settings, those of its diffusion model, and its data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from encoder_scores import PUBLISHED, scorer
from sklearn.metrics import roc_auc_score

from dia.amplify.resident import Resident, ResidentLoop
from dia.benchmark.ledger import Ledger, append_line
from dia.core.environment import environment
from dia.core.processes import choose_device
from dia.core.settings import differences
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import CSI, DIA
from dia.detectors.presets import settings
from dia.detectors.saving import fingerprint
from dia.dissolve import DissolverSettings, make_dissolver
from dia.dissolve.bank import DissolvedBank

LEDGER = Path(__file__).parents[1] / "results/accelerator.jsonl"
REQUIRED = ("job", "dataset", "method", "preset", "score")  # text in every line
TS = tuple(range(30, 100, 5))
LEAST = 0.25  # of its schedule: a job that must be cut below is left for another machine
UNET_STEPS = {"cpu": 2000, "paper": 8000}  # of the diffusion models that make the banks


class Job(NamedTuple):
    """One training."""

    dataset: str
    method: str
    seed: int = 0
    input_range: str = "right"
    preset: str = "paper"
    unet: str = "cpu"  # preset of the diffusion model behind the bank
    size: int = 32  # images are read at this side at most

    @property
    def name(self) -> str:
        """The name in its lines and files."""
        parts = ((self.input_range, "right"), (self.preset, "paper"), (self.unet, "cpu"))
        special = [value for value, usual in parts if value != usual]
        return "-".join([self.dataset, self.method, *special, f"{self.size}px", str(self.seed)])

    @property
    def bank(self) -> str:
        """The name of the file of its dissolved copies."""
        return f"bank-{self.dataset}-{self.input_range}-{self.unet}-{self.size}px.npz"


def jobs() -> list[Job]:
    """Lists all jobs in order of worth: does honest DIA reach its published numbers?"""
    made = [
        Job("breastmnist-0", "dia"),
        Job("breastmnist-0", "dia", input_range="released"),
        Job("breastmnist-0", "csi"),
        Job("breastmnist-0", "dia", seed=1),
        Job("breastmnist-0", "csi", seed=1),
        Job("breastmnist", "dia"),
        Job("breastmnist", "csi"),
        Job("pneumoniamnist", "dia"),
        Job("pneumoniamnist", "csi"),
        Job("sarscov2ct-128", "dia", size=128),
        Job("sarscov2ct-128", "csi", size=128),
    ]
    sets = {"breastmnist-0": 32, "breastmnist": 32, "pneumoniamnist": 32, "sarscov2ct-128": 128}
    made += [Job(d, m, preset="gpu", size=size) for d, size in sets.items() for m in ("dia", "csi")]
    # last, as its U-Net takes longer than all of its training
    return [*made, Job("breastmnist-0", "dia", unet="paper")]


class Sets(NamedTuple):
    """The images of a job, and their hash."""

    normals: np.ndarray
    test: ImageSet
    sha256: str


def sets_of(job: Job, data: str) -> Sets:
    """Reads all training normals, and the test set."""
    normals = load_training(job.dataset, data, max_size=job.size)
    test = load(job.dataset, "test", data, max_size=job.size)
    return Sets(normals.images, test, f"{normals.sha256()[:32]}{test.sha256()[:32]}")


def settings_of(job: Job, a: argparse.Namespace, steps: int | None = None) -> Any:
    """Returns the settings of the job: its preset's, but for the bank's t and, if it is cut, the steps."""
    s = settings({"csi": CSI, "dia": DIA}[job.method].Settings, job.preset)
    amplify = replace(s.amplify, precision="auto", width=a.width or s.amplify.width)
    s = replace(s, amplify=amplify if steps is None else replace(amplify, steps=steps))
    return replace(s, dissolver=dissolver_of(job, a), ts=TS, live=False) if job.method == "dia" else s


def dissolver_of(job: Job, a: argparse.Namespace) -> DissolverSettings:
    """Returns the settings of the diffusion model behind a job's bank."""
    d = settings(DIA.Settings, job.unet).dissolver
    return replace(d, steps=a.steps or UNET_STEPS[job.unet], input_range=job.input_range)


def key_of(job: Job, a: argparse.Namespace, data: Sets) -> str:
    """Returns a hash of everything that decides a job's result, but for the length to which it is cut."""
    return fingerprint(settings_of(job, a), dissolver_of(job, a), job.seed, data.sha256)


def bank_of(job: Job, data: Sets, a: argparse.Namespace) -> DissolvedBank:
    """Reads the dissolved copies from the data's folder, OUT or --work; or makes and keeps them in --work."""
    images, d = data.normals, dissolver_of(job, a)
    key = fingerprint(d, list(TS), data.sha256)
    for folder in (Path(a.data), a.out, a.work):
        with contextlib.suppress(OSError, KeyError, ValueError, BadZipFile):  # absent, or torn
            kept = np.load(folder / job.bank)
            if str(kept["key"]) == key:
                return DissolvedBank(kept["bank"], TS, np.arange(len(images)))
    # both ranges dissolve by one network, trained in the right one
    right = replace(d, input_range="right")
    dissolver = make_dissolver(right, device=a.device)
    dissolver.fit(images, workdir=a.work / f"unet-{fingerprint(right, data.sha256)}", resume=True)
    dissolver.settings = d
    bank = DissolvedBank.build(images, dissolver, TS, a.work / f"{job.bank}-{key}.npy")
    made = {"bank": np.asarray(bank.array), "key": np.array(key)}
    keep(a.out if a.banks else a.work, job.bank, made, anew=True)
    return bank


def judged(job: Job, s: Any, module: Resident, data: Sets, a: argparse.Namespace) -> dict[str, np.ndarray]:
    """Scores the test set by every score; by the published one and cosine with own draws, too."""
    found: dict[str, np.ndarray] = {}
    module.eval()
    with torch.inference_mode():
        for draws, suffix in (("shared", ""), ("own", ", own draws")):
            kind = {"csi": CSI, "dia": DIA}[job.method]
            d = kind(replace(s, score_draws=draws), seed=job.seed, device=a.device)
            d.shape_, d.encoder_ = data.normals.shape[1:], module.encoder
            d._ready()
            d._fit_bank(data.normals)
            of = scorer(d, data.normals, features=not suffix)(data.test.images)
            found |= {n + suffix: v for n, v in of.items() if not suffix or n in (PUBLISHED, "cosine")}
    module.train()
    return found


def step_seconds(module: Resident, workdir: Path) -> float:
    """Measures the seconds of a step after the first ones, on a loop that is thrown away."""
    state = {k: v.clone() for k, v in module.state_dict().items()}
    loop = ResidentLoop(module, workdir, resume=False, seconds=math.inf)
    few = 2 if module.device.type == "cpu" else 60
    loop.run(until=min(few, loop.steps))
    start, before = time.perf_counter(), loop.step
    loop.run(until=min(loop.step + few, loop.steps))
    spent = (time.perf_counter() - start) / max(loop.step - before, 1)
    module.load_state_dict(state)
    return spent


def run(job: Job, a: argparse.Namespace, deadline: float) -> bool:
    """Makes a job, or goes on with it; False if the time left is too short for a useful part of it."""
    data = sets_of(job, a.data)
    key, device, n = key_of(job, a, data), choose_device(a.device), len(data.normals)
    work = a.work / f"{job.name}-{key}"
    work.mkdir(parents=True, exist_ok=True)
    whole = settings_of(job, a).amplify.length(n)
    bank = bank_of(job, data, a) if job.method == "dia" else None
    plan = work / "plan.json"
    if not plan.exists():
        module = Resident(data.normals, bank, settings_of(job, a).amplify, job.seed, device)
        pace, start = step_seconds(module, work), time.perf_counter()
        judged(job, settings_of(job, a), module, data, a)
        left = deadline - time.perf_counter() - a.evaluations * (time.perf_counter() - start)
        steps = int(min(whole, a.steps or whole, max(left / pace, 0)))
        if steps < LEAST * (a.steps or whole):
            return False
        plan.with_suffix(".tmp").write_text(json.dumps({"steps": steps, "step_seconds": pace}))
        plan.with_suffix(".tmp").replace(plan)
    steps = json.loads(plan.read_text())["steps"]
    s = settings_of(job, a, None if steps == whole else steps)
    module = Resident(data.normals, bank, s.amplify, job.seed, device)
    loop = ResidentLoop(module, work, seconds=a.checkpoint_seconds)
    here = environment()
    about = {
        "job": job.name, "key": key, **job._asdict(), "steps": steps, "whole": whole, "n_train": n,
        "settings": {k: v[0] for k, v in differences(s, settings(type(s), job.preset)).items()},
        "unet_steps": dissolver_of(job, a).steps if bank else None,
        "data_sha256": data.sha256, "device": str(here["device"]) if device.type != "cpu" else "cpu",
        "threads": torch.get_num_threads(), "versions": here["versions"], "commit": here["commit"],
    }  # fmt: skip
    there = {r["step"] for r in rows(a.out) if (r["job"], r["key"], r["steps"]) == (job.name, key, steps)}
    for step in sorted({max(round(steps * (i + 1) / a.evaluations), 1) for i in range(a.evaluations)}):
        if step < loop.step and step not in there:
            continue  # stopped between training and judging: the next judging counts
        if loop.run(until=step, deadline=deadline) < step:
            return True  # it goes on another time
        if step in there:
            continue
        scores = judged(job, s, module, data, a)
        lines = [
            about | {
                "step": step, "score": name, "auroc": float(roc_auc_score(data.test.labels, values)),
                "train_seconds": round(loop.seconds, 2), "step_seconds": round(loop.seconds / step, 5),
                "graph": loop.graph is not None,
            }
            for name, values in scores.items()
        ]  # fmt: skip
        if step == steps:  # before the lines, which say that the job is done
            keep(a.out, "losses.npz", {job.name: loop.losses.cpu().numpy()})
            labels = {"labels": np.asarray(data.test.labels)}
            keep(a.out, "scores.npz", {f"{job.name}/{k}": v for k, v in (scores | labels).items()})
        append_line(a.out / "results.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        auroc = next(line["auroc"] for line in lines if line["score"] == PUBLISHED)
        print(f"{job.name} step {step}: {auroc:.3f}, {loop.seconds / step:.4f} s a step", flush=True)
    return True


def keep(folder: Path, name: str, arrays: Mapping[str, np.ndarray], *, anew: bool = False) -> None:
    """Adds arrays to an .npz, whole or not at all."""
    path = folder / name
    there = dict(np.load(path)) if path.exists() and not anew else {}
    new = path.with_suffix(".tmp.npz")
    np.savez_compressed(new, **{**there, **arrays})
    new.replace(path)


def rows(out: Path) -> list[dict[str, Any]]:
    """Reads the lines of a folder's results."""
    return Ledger(out / "results.jsonl", REQUIRED).rows()


def done(job: Job, a: argparse.Namespace) -> bool:
    """Returns whether the last step of a job was judged."""
    key = key_of(job, a, sets_of(job, a.data))
    return any((r["job"], r["key"]) == (job.name, key) and r["step"] == r["steps"] for r in rows(a.out))


def enter(out: Path, ledger: Path = LEDGER) -> int:
    """Appends results to the ledger, but for lines that it holds. Returns the number of new lines."""
    what = ("job", "key", "steps", "step", "score", "commit", "device")
    held = {tuple(r[k] for k in what) for r in Ledger(ledger, REQUIRED).rows()}
    new = [r for r in rows(out) if tuple(r[k] for k in what) not in held]
    if new:
        append_line(ledger, b"".join(json.dumps(r).encode() + b"\n" for r in new))
    return len(new)


def main() -> None:
    """Works through the jobs."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="../shared/data", help="folder of the sets, and of banks made before")
    out, work = Path(os.environ.get("OUT", ".work/accelerator/out")), Path(".work/accelerator")
    p.add_argument("--out", type=Path, default=out, help="results")
    p.add_argument("--work", type=Path, default=work, help="checkpoints; stays on the machine")
    p.add_argument("--minutes", type=float, default=math.inf, help="for all of it; schedules are cut to fit")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--steps", type=int, help="of every training, diffusion models too: for a test")
    p.add_argument("--width", type=int, help="of every encoder: for a test")
    p.add_argument("--jobs", nargs="+", default=[], help="only those whose names begin so")
    p.add_argument("--evaluations", type=int, default=12, help="how often each encoder is judged")
    p.add_argument("--checkpoint_seconds", type=float, default=60, help="between checkpoints")
    p.add_argument("--banks", action="store_true", help="only make the banks into OUT")
    p.add_argument("--dry-run", action="store_true", help="list jobs with estimates")
    p.add_argument("--enter", type=Path, metavar="OUT", help="take the results of OUT into the ledger")
    a = p.parse_args()
    if a.enter:
        print(f"{enter(a.enter)} new lines in {LEDGER}")
        return
    deadline = time.perf_counter() + 60 * a.minutes
    wanted = [j for j in jobs() if not a.jobs or any(j.name.startswith(name) for name in a.jobs)]
    if not wanted:
        sys.exit(f"no such job; there are: {', '.join(j.name for j in jobs())}")
    for folder in (a.out, a.work):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        for job in wanted:
            try:
                if a.dry_run:
                    dry(job, a)
                elif a.banks:
                    if job.method == "dia" and job.unet == "cpu":
                        bank_of(job, sets_of(job, a.data), a)
                elif time.perf_counter() < deadline and not done(job, a) and not run(job, a, deadline):
                    print(f"{job.name}: the time left is too short", flush=True)
            except Exception as error:  # whatever it is: the jobs after it go on
                print(f"{job.name}: {type(error).__name__}: {error}", flush=True)


def dry(job: Job, a: argparse.Namespace) -> None:
    """Prints a job's length, by the floor of one GPU: 8 ms for 384 rows of 28 pixels, in proportion."""
    data = sets_of(job, a.data)
    s = settings_of(job, a).amplify
    side = min(s.size, max(data.normals.shape[1:3]))
    share = 1 if s.stem_of(data.normals.shape[1:])[1] == "cifar" else 1 / 16
    views = 3 if job.method == "dia" else 2
    seconds = 0.008 * (views / 3) * (s.batch / 32) * (side / 28) ** 2 * share * (s.width / 64) ** 2
    steps = a.steps or s.length(len(data.normals))
    there = (Path(a.data) / job.bank).exists()
    bank = "" if job.method == "csi" else f"bank {'there' if there else 'to make'}"
    state = "done" if done(job, a) else bank
    print(f"{job.name:45} {steps:7,d} steps  about {steps * seconds:6.0f} s  {state}")


if __name__ == "__main__":
    main()
