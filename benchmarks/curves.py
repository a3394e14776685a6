"""AUROC over training for each score of the encoder, on `val` and on the test set: what choosing would gain.

`csi` and `dia` train with N times the steps of a preset. The encoder is kept at some steps, geometrically
spaced, and each of these snapshots is judged by every score there is: the published one and its three terms
alone, Mahalanobis distance and nearest neighbours of penultimate features over all shifts, and Mahalanobis of
the unrotated image alone. A snapshot before the last is of an encoder whose learning rate, on a cosine over
all steps, has not yet come down: that is what "over epochs" means here and in the paper's released code.

Nothing is chosen by these numbers. All settings are fixed by the arguments before the first step; the lines
of the ledger say `"protocol": "curve"`, and show how far a choice on the test set would have carried.

    python benchmarks/curves.py --data_root ../shared/data --times 4 --seeds 0 1 2

appends to `results/curves.jsonl` what it lacks, a whole run at a time, a run killed going on from its last
checkpoint; then draws `docs/figures/curves.png` and the section between the marks of `docs/findings.md`. With
--page it only draws. --pace measures seconds a step of every preset instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything reads it

import numpy as np
import torch
from common import HERE, parser
from curves_pace import pace
from curves_page import draw
from encoder_scores import SCORES, scorer
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from dia.amplify.learning import Dissolved, build_encoder, learn
from dia.data.catalog import load, load_training
from dia.data.imageset import DataError, ImageSet
from dia.detectors import CSI, DIA
from dia.detectors.base import Stages, load_module, module_tensors
from dia.evaluate.ledger import Ledger, append_line, environment
from dia.evaluate.protocol import VAL, development
from dia.presets import MAX_SIZE, PRESETS, settings
from dia.settings import replaced
from dia.training import choose_device

LEDGER = HERE.parent / "results/curves.jsonl"
SETS = ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches")
CURVE = "curve"
REQUIRED = ("protocol", "dataset", "method", "score", "settings_hash", "data_sha256")


def snapshot_steps(steps: int, count: int) -> list[int]:
    """At most `count` numbers of steps up to the last, each about double the one before."""
    return sorted({max(round(steps / 2**i), 1) for i in range(count)})


class Snapshots(Callback):
    """Keeps the encoder after some steps, with the seconds it had been trained by then."""

    def __init__(self, folder: Path, steps: Sequence[int]):
        self.folder, self.steps = folder, steps

    def path(self, step: int) -> Path:
        """Of one of them."""
        return self.folder / f"step-{step}.safetensors"

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """After the optimiser's step."""
        if trainer.global_step in self.steps:
            path = self.path(trainer.global_step)
            seconds = module.seconds_before + time.perf_counter() - module.started
            new = path.with_suffix(".tmp")
            save_file(module_tensors(module.encoder, ""), new, {"seconds": str(seconds)})
            new.replace(path)

    def seconds(self, step: int) -> float:
        """Of training until then."""
        with safe_open(self.path(step), "np") as file:
            return float(file.metadata()["seconds"])


class _Watched(CSI):
    """A detector whose encoder is watched while it trains; otherwise, and in the end, the same.

    Attributes:
        at: the steps to keep.
        images_: the normals it trained on.
        snapshots_: of the encoder.
    """

    at: Sequence[int]

    def _fit_encoder(
        self, images: np.ndarray, stages: Stages, dissolved: Dissolved | None, dissolver_hash: str
    ) -> None:
        a = self.s.amplify
        a.check_installed()
        self.where_ = choose_device(self.device)
        ts = list(dissolved.ts) if dissolved else []
        path = stages.path("curve", a, ts, dissolver_hash, self.seed, list(self.at), images)
        self.images_, self.snapshots_ = images, Snapshots(path, self.at)

        def make() -> float:
            _, seconds = learn(
                images, dissolved, a, seed=self.seed, device=self.device, workdir=path,
                resume=stages.resume, progress=stages.progress, watchers=[self.snapshots_],
            )  # fmt: skip
            return seconds

        stages.part(path, make, lambda: None)
        self._take(max(self.at))

    def _take(self, step: int) -> None:
        """The encoder of this step becomes the detector's."""
        self.encoder_ = build_encoder(self.shape_, self.s.amplify)
        load_module(self.encoder_, load_file(self.snapshots_.path(step)), "")
        self._ready()


class WatchedCSI(_Watched):
    """CSI, watched."""


class WatchedDIA(_Watched, DIA):
    """DIA, watched."""


WATCHED: dict[str, type[_Watched]] = {"csi": WatchedCSI, "dia": WatchedDIA}


def curve(
    detector: _Watched, normals: ImageSet, judged: Mapping[str, ImageSet], workdir: Path
) -> list[dict[str, Any]]:
    """Trains the detector, and judges each snapshot by each score on each set of labelled images.

    Returns:
        One dict for each step, ascending, and score: `step`, `epoch`, `train_seconds`, `score`, and
        `auroc_NAME` of each set.
    """
    detector.fit(normals, workdir=workdir, resume=True)
    found = []
    for step in sorted(detector.at, reverse=True):
        if step < max(detector.at):  # the last is the fitted detector
            detector._take(step)
            detector._fit_bank(detector.images_)
        score = scorer(detector, detector.images_)
        scores = {name: score(images.images) for name, images in judged.items()}
        about = {
            "step": step,
            "epoch": round(step / detector.s.amplify.batches(detector.n_train_), 3),
            "train_seconds": round(detector.snapshots_.seconds(step), 2),
        }
        for kind in SCORES:
            aurocs = {
                f"auroc_{name}": roc_auc_score(judged[name].labels, of[kind]) for name, of in scores.items()
            }
            found.append(about | {"score": kind} | aurocs)
    return sorted(found, key=lambda r: (r["step"], SCORES.index(r["score"])))


def is_there(rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any], steps: Sequence[int]) -> bool:
    """Whether a ledger holds every line of a run."""
    there = {(r["step"], r["score"]) for r in rows if all(r[k] == v for k, v in identity.items())}
    return there >= {(step, score) for step in steps for score in SCORES}


def run(
    dataset: str, method: str, seed: int, *, ledger: Path = LEDGER, data_root: str | None, work: Path,
    preset: str = "cpu", size: int = 32, times: float = 1, count: int = 7, device: str = "auto",
    changes: Mapping[str, Any] | None = None,
) -> bool:  # fmt: skip
    """Makes one run and appends its lines at once, unless they are there. True if it was made."""
    side = max(size, MAX_SIZE[preset])
    normals = load_training(dataset, data_root, max_size=side)
    judged = {"test": load(dataset, "test", data_root, max_size=side)}
    with contextlib.suppress(DataError):  # it has no labelled validation split
        judged[VAL] = development(dataset, VAL, data_root, side)[1]
    s = replaced(settings(WATCHED[method].Settings, preset), {"amplify.size": size, **(changes or {})})
    steps = round(s.amplify.length(len(normals)) * times)
    s = replaced(s, {"amplify.steps": steps})
    detector = WATCHED[method](s, seed=seed, device=device)
    detector.at = snapshot_steps(steps, count)
    identity = {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "settings_hash": detector.settings_hash(),
        "data_sha256": f"{normals.sha256()[:32]}{judged['test'].sha256()[:32]}",
    }
    if is_there(Ledger(ledger, REQUIRED).rows(), identity, detector.at):
        return False
    found = curve(detector, normals, judged, work / dataset)
    here = environment()
    about = {"protocol": CURVE, **identity, "preset": preset, "size": size, "times": times, "steps": steps}
    fixed = {
        "n_train": detector.n_train_,
        "threads": torch.get_num_threads(),
        "device": here["device"],
        "commit": here["commit"],
        "versions": here["versions"],
    }
    lines = [about | {f"auroc_{VAL}": None} | line | fixed for line in found]
    append_line(ledger, b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines))
    return True


def main() -> None:
    """Runs what the ledger lacks, and draws the page."""
    p = parser(__doc__)
    p.add_argument("--data_root", default="../shared/data", help="folder of the sample sets")
    p.add_argument("--sets", nargs="+", default=SETS, help="names of data sets")
    p.add_argument("--methods", nargs="+", default=list(WATCHED), choices=list(WATCHED))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="all runs of one, then the next")
    p.add_argument("--preset", default="cpu", choices=PRESETS, help="of all settings")
    p.add_argument("--size", type=int, default=32, help="side of the encoder's images in pixels")
    p.add_argument("--times", type=float, default=4, help="training steps, as a multiple of the preset's")
    p.add_argument("--snapshots", type=int, default=7, help="how many, each at half the steps of the next")
    p.add_argument("--work", type=Path, default=Path(".work"), help="keeps dissolvers and snapshots")
    p.add_argument("--threads", type=int, default=1, help="of torch")
    p.add_argument("--pace", action="store_true", help="only measure seconds a step, of every preset")
    p.add_argument("--page", action="store_true", help="only draw, from the results there are")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.pace:
        pace()
    elif not a.page:
        for seed in a.seeds:
            for dataset in a.sets:
                for method in a.methods:
                    start = time.perf_counter()
                    made = run(
                        dataset, method, seed, data_root=a.data_root, work=a.work, preset=a.preset,
                        size=a.size, times=a.times, count=a.snapshots,
                    )  # fmt: skip
                    how = f"{time.perf_counter() - start:.0f} s" if made else "there"
                    print(dataset, method, f"seed {seed}: {how}", flush=True)
    draw(LEDGER)


if __name__ == "__main__":
    main()
