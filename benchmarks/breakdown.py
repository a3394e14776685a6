"""Where the seconds of a fit and of scoring go: `dia+`, `cpu` preset, on phantoms.

Times the stages by wrapping the functions that do them, and the operators of one training step and of one
dissolved batch by torch's profiler. `--label` names the file, to set states of the code beside each other.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import parser, publish
from torch.profiler import ProfilerActivity, profile

from dia.amplify.augment import Augment
from dia.amplify.encoder import Encoder
from dia.amplify.learning import _Amplify
from dia.data.phantom import load
from dia.detectors import diaplus
from dia.detectors.diaplus import VIEWS, DIAPlus
from dia.detectors.residual import Residual
from dia.dissolve.bank import DissolvedBank
from dia.dissolve.dissolver import Dissolver
from dia.presets import settings


def timed(owner: Any, name: str, label: str, seconds: dict[str, float]) -> None:
    """Adds up the seconds spent in `owner.name`."""
    original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
    plain = original.__func__ if isinstance(original, classmethod) else original

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start

    setattr(owner, name, classmethod(wrapped) if isinstance(original, classmethod) else wrapped)


def operators(work: Any, most: int = 6) -> list[dict[str, Any]]:
    """The operators that take longest in `work`, with their share."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as p:
        work()
    found = sorted(p.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in found)
    return [{"operator": e.key, "share": round(e.self_cpu_time_total / total, 3)} for e in found[:most]]


def main() -> None:
    """Prints and writes `results/breakdown-LABEL.json`."""
    p = parser(__doc__)
    p.add_argument("--label", default="now")
    p.add_argument("--images", type=int, default=1000)
    a = p.parse_args()
    seconds: dict[str, float] = defaultdict(float)
    timed(Dissolver, "fit", "fit: diffusion model", seconds)
    timed(DissolvedBank, "build", "fit: dissolved bank", seconds)
    timed(sys.modules["dia.detectors.csi"], "learn", "fit: encoder", seconds)
    timed(Residual, "fit", "fit: residual statistics", seconds)
    timed(_Amplify, "views", "of the encoder: views", seconds)
    timed(Augment, "forward", "of the encoder: augmentation", seconds)
    timed(Encoder, "forward", "of the encoder: forward", seconds)
    every = replace(settings(DIAPlus.Settings, "cpu"), views=VIEWS)  # an encoder, too
    detector = DIAPlus(every)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        detector.fit(load("train", n=a.images), workdir=Path(folder))
        seconds["fit: all"] = time.perf_counter() - start
    fit = dict(seconds)
    seconds.clear()
    images = load("test").images
    timed(Dissolver, "dissolve", "score: dissolving", seconds)
    timed(DIAPlus, "_untrained", "score: untrained views", seconds)
    timed(diaplus, "grid_energies", "score: energies of blurs", seconds)
    timed(Residual, "single", "score: place and dissolved view, with dissolving", seconds)
    start = time.perf_counter()
    detector.score(images)
    seconds["score: all"] = time.perf_counter() - start
    score = {k: 1000 * v / len(images) for k, v in seconds.items() if k.startswith("score")}
    rows = [{"stage": k, "seconds": v, "ms / image": ""} for k, v in fit.items()]
    rows += [{"stage": k, "seconds": "", "ms / image": v} for k, v in score.items()]
    encoder = detector.encoder_.requires_grad_(True).train()
    views = torch.rand(384, 1, 64, 64)

    def step() -> None:
        encoder(views)[1].square().mean().backward()

    def dissolve() -> None:
        detector.dissolver_.dissolve(images[:64], 50)

    publish(
        f"breakdown-{a.label}", rows, {},
        operators={"encoder, forward and backward": operators(step), "dissolving": operators(dissolve)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
