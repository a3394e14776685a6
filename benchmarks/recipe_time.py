"""Seconds of a fit of the confirmed recipe from nothing, and images scored per second, on the real sets.

    python benchmarks/recipe_time.py --data ../shared/data

Training normals and test images as the benchmark has them; labels leave anomalies out of training, no more.
Each set in a process of its own, for its peak memory, with a work folder of its own, so that no stage is
found ready. `findings.py` draws the table.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import HERE, answer, apart, parser, publish

from dia.data.catalog import load, load_training
from dia.detectors import detector_class
from dia.evaluate.benchmark import wanted_settings
from dia.evaluate.protocol import load_recipe

RECIPE = HERE.parent / "recipes/views-three.yaml"


def measure(dataset: str, data: str, repeats: int) -> dict[str, Any]:
    """One fit, and the median of some times of scoring all test images from memory."""
    recipe = load_recipe(RECIPE)
    normals = load_training(dataset, data, max_size=recipe.side)
    images = load(dataset, "test", data, max_size=recipe.side).images
    detector = detector_class(recipe.method)(wanted_settings(recipe.method, recipe.preset, recipe.settings))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        detector.fit(normals, workdir=Path(folder))
        fit = time.perf_counter() - start
    seconds = []
    for _ in range(repeats + 1):  # the first is not counted
        start = time.perf_counter()
        detector.score(images)
        seconds.append(time.perf_counter() - start)
    _, height, width, channels = images.shape
    return {
        "set": dataset,
        "pixels": f"{height}×{width}×{channels}",
        "normals": len(normals),
        "fit s": fit,
        "scored": len(images),
        "images/s": len(images) / median(seconds[1:]),
        "copies": len(detector.symmetries_),
    }


def main() -> None:
    """Prints and writes `results/recipe_time.json`."""
    p = parser(__doc__)
    p.add_argument("--data", required=True)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--one", help="this set alone, in this process")
    a = p.parse_args()
    if a.one:
        answer(measure(a.one, a.data, a.repeats))
        return
    recipe = load_recipe(RECIPE)
    rows = [
        apart(Path(__file__), "--one", name, "--data", a.data, "--repeats", a.repeats)
        for name in recipe.datasets
    ]
    publish("recipe_time", rows, {}, recipe=recipe.name, identity=recipe.identity())


if __name__ == "__main__":
    main()
