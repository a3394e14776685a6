"""Measures the stages of a fit and of scoring: `dia+`, `cpu` preset, on phantoms.

Times the stages by wrapping the functions that do them, and the operators of one scored batch by torch's
profiler. `--label` names the file, to set states of the code beside each other.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from dia.data.phantoms import load
from dia.detectors.diaplus import DIAPlus
from dia.detectors.nearest import Nearest
from dia.detectors.places import Places, Residuals
from dia.detectors.presets import settings
from dia.features.backbone import Backbone

from ..common import parser, publish


def timed(owner: Any, name: str, label: str, seconds: dict[str, float]) -> None:
    """Adds up the seconds spent in `owner.name`."""
    original = inspect.getattr_static(owner, name)  # inherited, too
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
    timed(DIAPlus, "_fit_maps", "fit: channels, and the heatmap's coarse map", seconds)
    timed(DIAPlus, "_mirrored", "fit: whether mirrored copies are normal", seconds)
    timed(DIAPlus, "_fit_banks", "fit: banks, and distances of normals to others", seconds)
    timed(Places, "of", "fit: places", seconds)
    detector = DIAPlus(settings(DIAPlus.Settings, "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        detector.fit(load("train", n=a.images), workdir=Path(folder))
        seconds["fit: all"] = time.perf_counter() - start
    fit = dict(seconds)
    seconds.clear()
    images = load("test").images
    timed(Backbone, "forward", "score: backbone", seconds)
    timed(Backbone, "fine", "score: backbone, of blurred copies", seconds)
    timed(Residuals, "forward", "score: what blurs remove", seconds)
    timed(Places, "forward", "score: places", seconds)
    timed(Nearest, "forward", "score: nearest normals", seconds)
    start = time.perf_counter()
    detector.score(images)
    seconds["score: all"] = time.perf_counter() - start
    score = {k: 1000 * v / len(images) for k, v in seconds.items() if k.startswith("score")}
    rows = [{"stage": k, "seconds": v, "ms / image": ""} for k, v in fit.items()]
    rows += [{"stage": k, "seconds": "", "ms / image": v} for k, v in score.items()]
    found = operators(lambda: detector.score(images[:64]))
    publish(f"breakdown-{a.label}", rows, {}, operators={"scoring": found})


if __name__ == "__main__":
    main()
