"""Seconds of a fit of `dia` and `csi`, `cpu` preset, on phantoms, and of the reference.

The AUROC is that of the phantoms' `val` images, whose lesions are small. The reference trains what `dia`
trains. Its full schedule would take days on a CPU, so its seconds are steps × measured seconds of a step,
twice: for its own schedule, with the fewest steps its authors call enough (diffusion: 5 epochs; encoder: 1000
epochs of at most 200 steps), and for as many steps as our preset takes. Its AUROC is not known from that.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from sklearn.metrics import roc_auc_score

from dia.amplify.encoder import Encoder
from dia.data.phantoms import load
from dia.detectors.registry import METHODS, wanted_settings

from ..common import parser, publish
from .reference import ReferenceDissolverStep, ReferenceStep

OURS = ("dia", "csi")


def ours(method: str, seed: int) -> dict[str, Any]:
    """Fits with a work folder of its own, so that nothing is shared, and scores `val`."""
    train, val = load("train"), load("val")
    assert val.labels is not None
    with tempfile.TemporaryDirectory() as folder:
        detector = METHODS[method](wanted_settings(method, "cpu"), seed=seed)
        start = time.perf_counter()
        detector.fit(train, workdir=Path(folder))
        seconds = time.perf_counter() - start
        reached = roc_auc_score(val.labels, detector.score(val))
    return {
        "what": method,
        "seed": seed,
        "seconds": seconds,
        "AUROC": round(reached, 4),
        "extrapolated": "no",
    }


def reference(steps: int) -> tuple[float, float]:
    """Median seconds of a step of the reference's diffusion model and of its encoder, at 32 px."""
    images = load("train", size=32).images
    seconds = []
    for step in (ReferenceDissolverStep(images), ReferenceStep(images, Encoder(3, 4, 64, "cifar", 32))):
        step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        seconds.append(median(times))
    return seconds[0], seconds[1]


def main() -> None:
    """Prints and writes `results/fit.json`."""
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--reference-steps", type=int, default=5)
    a = p.parse_args()
    rows = [ours(what, seed) for what in OURS for seed in a.seeds]
    diffusion, encoder = reference(a.reference_steps)
    s = wanted_settings("dia", "cpu")
    epoch = len(load("train")) // 32
    schedules = {
        "reference, its own schedule": (5 * epoch, 1000 * min(epoch, 200)),
        "reference, as many steps as dia": (s.dissolver.steps, s.amplify.steps),
    }
    for what, (first, second) in schedules.items():
        seconds = first * diffusion + second * encoder
        rows.append({"what": what, "seed": "", "seconds": seconds, "AUROC": "", "extrapolated": "yes"})
    ours_seconds = median(r["seconds"] for r in rows if r["what"] == "dia")
    ratios = {f"{r['what']} / dia": r["seconds"] / ours_seconds for r in rows if r["extrapolated"] == "yes"}
    publish(
        "fit", rows, ratios,
        reference_step_seconds={"diffusion": diffusion, "encoder": encoder},
        schedules={what: list(steps) for what, steps in schedules.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
