"""Growth with the data: seconds and peak memory of fit and score at 1k to 64k images, and of a long stream.

Every size runs in a process of its own. Images are phantoms, moved and brightened a little each, in a file
that is mapped into memory. Training takes few steps and scoring one sample per shift, so that what does grow
with the data is not hidden behind what does not. The stream scores images made on the fly, with a small
encoder: the loop is measured.
"""

from __future__ import annotations

import math
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dia.core.environment import reset_peak_memory
from dia.data.phantoms import load
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS

from ..common import answer, apart, parser, publish

SIDE = 64
KINDS = 500  # phantoms that the images are made of


def generated(n: int, side: int, chunk: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """n images in chunks `(chunk, side, side, 1)` uint8."""
    base = load("train", size=side, seed=seed, n=KINDS).images
    rng = np.random.default_rng(seed)
    for start in range(0, n, chunk):
        m = min(chunk, n - start)
        x = base[rng.integers(KINDS, size=m)].astype(np.int16) + rng.integers(-9, 10, (m, 1, 1, 1))
        yield np.roll(x.clip(0, 255).astype(np.uint8), int(rng.integers(-2, 3)), 2)


class Anonymous(threading.Thread):
    """Greatest memory of this process that no file backs, in MB: a mapped data set does not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        """Reads the memory ten times a second."""
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            time.sleep(0.1)


def one_size(n: int) -> dict[str, Any]:
    """Fits on n images and scores n images."""
    watch = Anonymous()
    with tempfile.TemporaryDirectory() as folder:
        images = np.lib.format.open_memmap(Path(folder, "x.npy"), "w+", np.uint8, (n, SIDE, SIDE, 1))
        for i, part in enumerate(generated(n, SIDE)):
            images[1000 * i : 1000 * i + len(part)] = part
        images.flush()
        images = np.load(Path(folder, "x.npy"), mmap_mode="r")
        reset_peak_memory()
        watch.start()
        s = settings(METHODS["dia"].Settings, "cpu")
        s = replace(
            s, dissolver=replace(s.dissolver, steps=20), amplify=replace(s.amplify, steps=40), samples=1
        )
        start = time.perf_counter()
        detector = METHODS["dia"](s).fit(images, workdir=Path(folder))
        fit = time.perf_counter() - start
        start = time.perf_counter()
        detector.score(images)
        return {
            "images": n,
            "fit s": fit,
            "score s": time.perf_counter() - start,
            "anonymous MB": round(watch.peak, 1),
        }


def stream(n: int) -> dict[str, Any]:
    """Scores n generated images with a small encoder."""
    s = settings(METHODS["csi"].Settings, "cpu")
    s = replace(s, amplify=replace(s.amplify, width=8, steps=10), samples=1)
    detector = METHODS["csi"](s).fit(load("train", size=28, n=400))
    reset_peak_memory()
    watch = Anonymous()
    watch.start()
    start = time.perf_counter()
    total = sum(float(detector.score(part).sum()) for part in generated(n, 28, chunk=2000))
    assert math.isfinite(total)
    return {
        "images": n, "fit s": 0.0, "score s": time.perf_counter() - start,
        "anonymous MB": round(watch.peak, 1),
    }  # fmt: skip


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Fits the slope of log seconds over log images, by least squares."""
    n, y = (np.log([row[k] for row in rows]) for k in ("images", key))
    return float(np.polyfit(n, y, 1)[0])


def main() -> None:
    """Prints and writes `results/scale.json`."""
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000, 64000])
    p.add_argument("--streams", type=int, nargs="+", default=[10_000, 1_000_000])
    p.add_argument("--one", type=int, help="one size, in this process")
    p.add_argument("--stream", type=int, help="one stream, in this process")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    if a.one or a.stream:
        answer(one_size(a.one) if a.one else stream(a.stream))
        return
    here = "benchmarks.speed.scale"
    rows = []
    for n in a.sizes:
        rows.append({"run": "fit and score", **apart(here, "--one", n)})
        print(rows[-1], file=sys.stderr, flush=True)
    streams = []
    for n in a.streams:
        streams.append({"run": "stream", **apart(here, "--stream", n)})
        print(streams[-1], file=sys.stderr, flush=True)
    facts = {
        "log-log slope of fit": slope(rows, "fit s"),
        "log-log slope of score": slope(rows, "score s"),
        "log-log slope of score, last step": slope(rows[-2:], "score s"),
        "peak memory, longest / shortest stream": streams[-1]["peak_memory_mb"]
        / streams[0]["peak_memory_mb"],
    }
    publish("scale", rows + streams, facts)


if __name__ == "__main__":
    main()
