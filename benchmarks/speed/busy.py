"""Fit and score beside two programs that keep cores busy, and without: as a command runs them, and otherwise.

`now` is a command as it is: waiting threads sleep, and there are as many as free cores. `before` is torch's
own number of threads, which spin where they wait. `one thread` is OMP_NUM_THREADS=1. Each runs in a process
of its own, in turns; ratios are of seconds within one round, and above 1 where `now` is faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..common import Rounds, answer, apart, parser, publish

WAYS = {
    "now": {},
    "before": {"GOMP_SPINCOUNT": "300000"},  # what GNU's OpenMP takes where nothing is set
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NEIGHBOUR = "while True: sum(range(10000))"


def work(what: str, govern: bool) -> dict[str, float]:
    """Seconds of training steps of the dissolver, or of scoring with `dia+`, after a warm-up."""
    from dia.core.running import threads

    if govern:
        threads.govern()
    from dia.data.phantoms import load
    from dia.detectors.registry import METHODS, wanted_settings
    from dia.dissolve import Dissolver, DissolverSettings

    images = load("train", size=28, n=120).images
    if what == "score":
        detector = METHODS["dia+"](wanted_settings("dia+", "cpu")).fit(images[:60])
        start = time.perf_counter()
        for _ in range(2):
            detector.score(images)
        return {"seconds": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        Dissolver(DissolverSettings(steps=3)).fit(images, workdir=Path(folder, "warm"))
        start = time.perf_counter()
        Dissolver(DissolverSettings(steps=20)).fit(images, workdir=Path(folder, "measured"))
        return {"seconds": time.perf_counter() - start}


def run(what: str, way: str) -> float:
    """Seconds of one piece of work in a process of its own."""
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    governed = ["--govern"] * (way == "now")
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(own | WAYS[way])
    try:
        return float(apart("benchmarks.speed.busy", "--work", what, *governed)["seconds"])
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Prints and writes `results/busy.json`."""
    p = parser(__doc__)
    p.add_argument("--work", choices=("train", "score"))
    p.add_argument("--govern", action="store_true")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--neighbours", type=int, nargs="+", default=[0, 2])
    a = p.parse_args()
    if a.work:
        return answer(work(a.work, a.govern))
    rows, ratios = [], {}
    for count in a.neighbours:
        beside = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
        try:
            for what in ("train", "score"):
                seconds: dict[str, list[float]] = {way: [] for way in WAYS}
                for i in range(a.repeats):
                    for way in list(WAYS)[:: 1 if i % 2 else -1]:
                        seconds[way].append(run(what, way))
                found = Rounds(seconds)
                rows.append(
                    {"work": what, "neighbours": count, **{f"{way} s": found.seconds(way) for way in WAYS}}
                )
                for way in ("before", "one thread"):
                    ratios[f"{what}, {count} neighbours: {way} / now"] = found.ratio(way, "now")
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        finally:
            for process in beside:
                process.kill()
                process.wait()
    return publish("busy", rows, ratios)


if __name__ == "__main__":
    main()
