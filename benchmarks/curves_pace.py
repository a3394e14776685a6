"""CPU seconds of a training step of each preset, and so how long the whole of it would take one core.

Images are noise of the preset's size, in batches that fit the memory, seconds in proportion to the batch:
what is measured is arithmetic. CPU seconds, not wall time: what else the machine does counts little.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, publish
from lightning.pytorch.callbacks import Callback

from dia.amplify.learning import Dissolved, learn
from dia.detectors import DIA
from dia.dissolve import make_dissolver
from dia.dissolve.bank import LiveDissolving
from dia.presets import settings

SIZES = {"cpu": 32, "gpu": 64, "paper": 224}
BATCHES = {"cpu": 32, "gpu": 16, "paper": 4}  # as many images as leave room in memory and end soon
STEPS = 4


class _Clock(Callback):
    """CPU seconds at the end of each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Reads it."""
        self.at.append(time.process_time())


class _Kept:
    """Dissolved copies that lie in a bank: here the images themselves, which cost as much to take."""

    def __init__(self, images: np.ndarray, ts: tuple[int, ...]):
        self.images, self.ts = images, ts

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """As the bank's."""
        return self.images[index]


def seconds_a_step(preset: str, size: int, work: Path) -> tuple[float, Any]:
    """Of `dia`'s encoder with a whole batch, extrapolated; and the preset's settings."""
    s, batch = settings(DIA.Settings, preset), BATCHES[preset]
    images = np.random.default_rng(0).integers(0, 256, (4 * batch, size, size, 1), np.uint8)
    views: Dissolved = _Kept(images, s.ts)
    if s.live:
        dissolver = make_dissolver(replace(s.dissolver, steps=1, batch=batch), seed=0, device="cpu")
        views = LiveDissolving(images, dissolver.fit(images, workdir=work / "dissolver"), s.ts)
    clock = _Clock()
    few = replace(s.amplify, size=size, steps=STEPS, batch=batch)
    learn(images, views, few, device="cpu", workdir=work / "encoder", watchers=[clock])
    return median(np.diff(clock.at)) * s.amplify.batch / batch, s


def pace() -> None:
    """Measures every preset."""
    rows = []
    for preset, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, s = seconds_a_step(preset, size, Path(folder))
        a = s.amplify
        steps = a.length(1214)  # of PneumoniaMNIST, where the set decides
        row = {
            "preset": preset,
            "size": size,
            "batch": a.batch,
            "measured_batch": BATCHES[preset],
            "steps": steps,
        }
        rows.append(row | {"cpu_seconds_a_step": seconds, "hours": seconds * steps / 3600})
    publish("curves_pace", rows, {}, measured_steps=STEPS)


def table() -> list[str]:
    """Markdown of what was measured; nothing where nothing was."""
    there = RESULTS / "curves_pace.json"
    if not there.exists():
        return []
    rows = json.loads(there.read_text())["rows"]
    lines = [
        "Not done: more than one seed of the longest and the largest, and the presets `gpu` and `paper`. "
        "What a training step of `dia`'s encoder takes of one core, the dissolver's not counted:",
        "",
        "| preset | pixels | batch | CPU seconds a step | steps | hours of one core, one seed, one set |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        hours = f"{r['hours']:,.2f}" if r["hours"] < 10 else f"{r['hours']:,.0f}"
        cells = f"`{r['preset']}`", r["size"], r["batch"], f"{r['cpu_seconds_a_step']:.3g}", r["steps"], hours
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    batches = ", ".join(str(r["measured_batch"]) for r in rows)
    return [*lines, "", f"Of noise, in batches of {batches}, in proportion."]
