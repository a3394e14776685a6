"""Rate of a whole training step of the encoder, against its bare forward and backward, and the reference.

`whole` is everything between two optimiser steps of a real run: batch, views from the dissolved bank,
augmentation, loss, optimiser, schedule, trainer. `bare` is forward and backward of the same encoder, at the
same precision, on tensors that are ready: the limit. `reference` is the official order of work with the
same encoder, batch and size. All three take turns within one run.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dia.amplify.contrast import AmplifySettings, ContrastiveTraining
from dia.core.processes import bf16_is_fast, choose_device
from dia.core.running.loop import train
from dia.data.phantoms import load
from dia.detectors.dia import DIASettings
from dia.detectors.presets import settings
from dia.dissolve import Dissolver, DissolverSettings
from dia.dissolve.bank import DissolvedBank

from ..common import Rounds, parser, publish, synchronise
from .reference import ReferenceStep

CPU = settings(DIASettings, "cpu").amplify
PAPER = replace(settings(DIASettings, "paper").amplify, augment=CPU.augment, precision="auto")

# encoder, side of the images, colour
CASES: dict[str, tuple[AmplifySettings, int, bool]] = {
    "paper encoder, 28 px": (PAPER, 28, False),
    "cpu preset, 64 px grey": (CPU, 64, False),
    "cpu preset, 64 px RGB": (CPU, 64, True),
}


class _Timed(ContrastiveTraining):
    """The package's own training, which lets the others take their turn before each of its steps."""

    others: dict[str, Any]

    def prepare(self, others: dict[str, Any]) -> None:
        self.others, self.ended = others, 0.0
        self.seconds: dict[str, list[float]] = {"whole": [], **{name: [] for name in others}}

    def training_step(self, batch: int, index: int) -> Any:
        synchronise()
        if self.ended:
            self.seconds["whole"].append(time.perf_counter() - self.ended)
        for name, work in self.others.items():
            start = time.perf_counter()
            work()
            synchronise()
            self.seconds[name].append(time.perf_counter() - start)
        self.ended = time.perf_counter()
        return super().training_step(batch, index)


def measure(
    case: str, *, repeats: int = 7, warmup: int = 2, reference: bool = True, n: int = 128
) -> tuple[dict[str, Any], Rounds]:
    """A row of the table, and the seconds of each round."""
    s, side, colour = CASES[case]
    device = choose_device()
    images = load("train", size=side, n=n, colour=colour).images
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # the bank's contents do not matter here, so its dissolver is hardly trained
        dissolver = Dissolver(DissolverSettings(steps=1)).fit(images, workdir=work / "dissolver")
        bank = DissolvedBank.build(images, dissolver, (30, 53, 76, 99), work / "bank.npy")
        module = _Timed(images, bank, replace(s, steps=repeats + warmup + 1), 0)
        encoder = copy.deepcopy(module.encoder).to(device).train()
        ready = module.augmented(torch.arange(s.batch).numpy()).to(device)
        low = s.precision == "auto" and bf16_is_fast(device)

        def bare() -> None:
            encoder.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                _, z, logits = encoder(ready)
                loss = z.float().square().mean() + logits.float().square().mean()
            loss.backward()

        others: dict[str, Any] = {"bare": bare}
        if reference:
            wide = encoder
            if encoder.channels != 3:
                wide = ContrastiveTraining(images, bank, replace(s, rgb=True), 0).encoder
            others["reference"] = ReferenceStep(images, wide, s.batch, device=device)
        module.prepare(others)
        train(module, steps=repeats + warmup + 1, workdir=work / "encoder", checkpoint_every=10**6)
    measured = Rounds({name: x[warmup : warmup + repeats] for name, x in module.seconds.items()})
    row: dict[str, Any] = {
        "case": case,
        "precision": "bf16" if low else "32",
        **{f"{name} s": measured.seconds(name) for name in ("bare", "whole")},
        "whole / bare rate": measured.ratio("bare", "whole"),
    }
    if reference:
        row |= {
            "reference s": measured.seconds("reference"),
            "times faster than reference": measured.ratio("reference", "whole"),
        }
    return row, measured


def main() -> None:
    """Prints and writes `results/train_step.json`."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, default=7)
    a = p.parse_args()
    rows, ratios, seconds = [], {}, {}
    for case in CASES:
        row, measured = measure(case, repeats=a.repeats)
        rows.append(row)
        seconds[case] = measured.all
        ratios[f"{case}: whole / bare"] = row["whole / bare rate"]
        ratios[f"{case}: reference / whole"] = row["times faster than reference"]
    publish("train_step", rows, ratios, seconds=seconds)


if __name__ == "__main__":
    main()
