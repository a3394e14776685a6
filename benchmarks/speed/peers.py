"""Seconds of fitting, images per second and peak memory: dia's methods beside three of anomalib 2.7.0.

    python benchmarks/peers.py              # results/peers-256.json; about 15 minutes on two idle cores
    python benchmarks/peers.py --size 64    # EfficientAD cannot; its own error says why

All read the same PNG files of generated images and run alone, one after the other, each in a process of its
own on the CPU, decoding in that process. Fitting and scoring both start from files. What takes
anomalib's methods hours is measured for some steps and extrapolated, never without `yes` in the column
`extrapolated`. Their weights are random, for there is no network here: time does not depend on weights'
values, AUROC does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from dia.data import phantoms
from dia.data.imageset import ANOMALOUS
from dia.data.readers import read
from dia.detectors.presets import MAX_SIZE, settings
from dia.detectors.registry import METHODS

from ..common import RESULTS, answer, apart, parser, publish

OURS = ("dia+", "dia", "csi")
PEERS = ("patchcore", "efficientad", "rd4ad")
AUROC = "AUROC (peers' random weights: not a comparison of quality)"
WARMUP_IMAGES = 8  # scored before the clock starts, as in `peers_anomalib.py`


def draw(folder: Path, size: int, train: int, test: int) -> None:
    """Phantoms as `data/{train,test}/KIND/*.png`, and stand-ins for Imagenette, larger and in colour."""
    for split, n in (("train", train), ("test", test)):
        made = phantoms.load(split, size=size, n=n)
        for image, name in zip(made.images, made.names, strict=True):
            file = folder / "data" / split / f"{name.replace('normal/', 'good/')}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    made = phantoms.load("val", size=2 * size, n=8, colour=True)
    (folder / "imagenette" / "any").mkdir(parents=True)
    for i, image in enumerate(made.images):
        Image.fromarray(image).save(folder / "imagenette" / "any" / f"{i}.png")


def one(method: str, data: Path) -> dict[str, Any]:
    """Fits and scores one of our methods, `cpu` preset, from files, as `dia fit` and `dia score` do."""
    working = MAX_SIZE["cpu"]
    start = time.perf_counter()
    train = read(data, split="train", max_size=working, workers=1)
    detector = METHODS[method](settings(METHODS[method].Settings, "cpu"), device="cpu").fit(train)
    fit_seconds = time.perf_counter() - start
    detector.score(read(data, split="test", max_size=working, workers=1).images[:WARMUP_IMAGES])
    start = time.perf_counter()
    test = read(data, split="test", max_size=working, workers=1)
    scores = detector.score(test)
    score_seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as temporary:
        saved = detector.save(Path(temporary) / "model").rglob("*.safetensors")
        kept = sum(array.size for file in saved for array in load_file(file).values())
    return {
        "method": method, "weights": "from scratch", "threads": torch.get_num_threads(),
        "working_size": max(train.images.shape[1:3]), "n_train": len(train), "fit_seconds": fit_seconds,
        "extrapolated": False, "score_seconds": score_seconds, "images_per_second": len(test) / score_seconds,
        "auroc": float(roc_auc_score(np.asarray(test.labels) == ANOMALOUS, scores)), "n_test": len(test),
        "parameters": kept,
    }  # fmt: skip


def run(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The facts of one method, from a process of its own; under `error` why there are none."""
    data = folder / "data"
    try:
        if method in OURS:
            return apart("benchmarks.speed.peers", "--one", method, "--data", data)
        steps = options.steps if method == "efficientad" else options.rd4ad_steps
        facts = apart(
            "benchmarks.speed.peers_anomalib", method, "--data", data, "--imagenet", folder / "imagenette",
            "--size", options.size, "--steps", steps, "--warmup", options.warmup,
            "--coreset-seconds", options.coreset_seconds, python=options.python,
        )  # fmt: skip
        return facts | {"working_size": options.size}
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        return {"method": method, "error": f"{type(error).__name__}: {error}"}


def row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table; `–` for what there is not. Parameters include PatchCore's bank of features."""
    none = "–"
    fitted = "fit_seconds" in facts
    steps = f"{facts['measured_steps']} / {facts['published_steps']}" if "measured_steps" in facts else none
    kept = facts.get("parameters", 0) + facts.get("memory_bank", 0)
    memory = facts.get("peak_memory_mb", none)
    note = facts.get("unit", "")
    if "sampling" in facts:
        note += f", sampling ratio {facts['sampling']}"
        note += "; rest of the coreset at random" if facts["extrapolated"] else ""
    return {
        "method": facts["method"],
        "side": facts.get("working_size", none),
        "fit s": whole(facts["fit_seconds"]) if fitted else none,
        "extrapolated": ("yes" if facts["extrapolated"] else "no") if fitted else none,
        "steps measured / published": steps,
        "s per step": facts.get("seconds_per_step", none),
        "images/s": facts.get("images_per_second", none),
        "peak MiB": none if "error" in facts else whole(memory),
        "M params": kept / 1e6 if fitted else none,
        AUROC: facts.get("auroc", none),
        "weights": facts.get("weights", none) if fitted else none,
        "note": facts.get("error", note),
    }


def whole(value: float) -> float:
    """Large numbers without digits after the point."""
    return round(value) if value >= 1000 else value


def ratios(all_facts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Fit seconds and images/s of each peer against `dia+`; above 1 where `dia+` is faster."""
    made: dict[str, float] = {}
    ours = all_facts.get("dia+", {})
    for name in PEERS:
        peer = all_facts.get(name, {})
        if "fit_seconds" in peer and "fit_seconds" in ours:
            mark = " (extrapolated)" if peer["extrapolated"] else ""
            made[f"fit seconds{mark}: {name} / dia+"] = peer["fit_seconds"] / ours["fit_seconds"]
            made[f"images/s: dia+ / {name}"] = ours["images_per_second"] / peer["images_per_second"]
    return made


def main() -> None:
    """Runs the methods one after the other and publishes `peers-SIZE`; those not run keep their facts."""
    p = parser(__doc__)
    p.add_argument("--python", default=sys.executable, help="interpreter that has anomalib")
    p.add_argument("--size", type=int, default=256, help="side of the files, and what anomalib works at")
    p.add_argument("--train", type=int, default=256, help="normal images to train on")
    p.add_argument("--test", type=int, default=128, help="images to score, half of them anomalous")
    p.add_argument("--steps", type=int, default=10, help="EfficientAD: optimiser steps to measure")
    p.add_argument("--rd4ad-steps", type=int, default=3, help="RD4AD: the same, of 16 images each")
    p.add_argument("--warmup", type=int, default=2, help="optimiser steps before those")
    p.add_argument("--coreset-seconds", type=float, default=30, help="PatchCore: picking is cut here")
    p.add_argument("--methods", nargs="+", choices=OURS + PEERS, default=OURS + PEERS)
    p.add_argument("--one", choices=OURS, help=argparse.SUPPRESS)
    p.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.one:
        return answer(one(options.one, options.data))
    if set(options.methods) & set(PEERS) and not Path(options.python).exists():
        p.error(f"{options.python}: no such interpreter; give one that has anomalib with --python")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder, options.size, options.train, options.test)
        facts = {name: run(name, folder, options) for name in options.methods}
    path = RESULTS / f"peers-{options.size}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if all(kept.get(k) == getattr(options, k) for k in ("size", "train", "test")):
        earlier = {f["method"]: f for f in kept["methods"]}
        facts = {name: (earlier | facts)[name] for name in OURS + PEERS if name in earlier | facts}
    publish(
        f"peers-{options.size}", [row(f) for f in facts.values()], ratios(facts),
        size=options.size, train=options.train, test=options.test, methods=list(facts.values()),
        seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip


if __name__ == "__main__":
    main()
