"""How well findings of `dia+` lie on lesions: PRO, and recall per lesion at 0.5, 1 and 2 false ones an image.

`python -m benchmarks.findings --data ../shared/data` writes benchmarks/results/findings.json, what is there
already left as it is, and the table of docs/howto/findings.md. Beside `dia+`: two heatmaps without training,
and maps that see no image at all. No label chooses anything: the level is that of the training normals. A
FROC's thresholds are swept, as is usual; the columns "at the level" have no sweep in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dia.benchmark.ledger import update_section
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors.registry import detector_class
from dia.evaluate.findings import findings_of
from dia.evaluate.metrics import froc, pixel_metrics, recall_at

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks/results/findings.json", ROOT / "docs/howto/findings.md"
SETS, SEEDS, RATE = ("phantom", "kvasirseg_patches-128", "busi-128"), (0, 1, 2), 0.05
COLUMNS = ("pro", "recall@0.5", "recall@1", "recall@2")
AT_LEVEL = ("lesions found", "false findings an image", "normal images with a finding")


def _centre(images: ImageSet) -> np.ndarray:
    h, w, _ = images.shape
    y, x = np.mgrid[:h, :w]
    far = np.hypot((y - (h - 1) / 2) / h, (x - (w - 1) / 2) / w)
    return np.broadcast_to(-far, (len(images), h, w))


def _noise(images: ImageSet) -> np.ndarray:
    return np.random.default_rng(0).random(images.images.shape[:3])


# what sees no image: nearest to the centre, and white noise (a constant map has no peak to look at)
BLIND: dict[str, Callable[[ImageSet], np.ndarray]] = {"centre": _centre, "noise": _noise}
METHODS = ("dia+", "trivial:blur", "trivial:pca")


def of_detector(method: str, normals: ImageSet, test: ImageSet, seed: int) -> dict[str, float]:
    """Fits on normals and measures on a test set with masks.

    Returns:
        The columns.
    """
    detector = detector_class(method)(seed=seed).fit(normals)
    parts = [detector.detect(test.images[i : i + 64]).heatmap for i in range(0, len(test), 64)]
    maps = np.concatenate(parts)
    found = measured(test, maps)
    level = detector.heat_.level(RATE)
    if np.isfinite(level):
        recall, false = recall_at(np.asarray(test.masks), maps, np.nextafter(level, np.inf))
        normal = maps[np.asarray(test.labels) == 0]
        alarms = np.mean([bool(findings_of(m, detector.heat_, RATE)) for m in normal])
        found |= dict(zip(AT_LEVEL, (recall, false, float(alarms)), strict=True))
    return found


def measured(test: ImageSet, maps: np.ndarray) -> dict[str, float]:
    """Measures what sweeps thresholds."""
    masks = np.asarray(test.masks)
    return {"pro": pixel_metrics(masks, maps)["pro"], **froc(masks, maps)}


def of_set(name: str, root: str, runs: dict[str, list[dict[str, float]]], keep: Callable[[], None]) -> None:
    """Adds what is still to come of a set."""
    normals, test = load_training(name, root), load(name, "test", root)
    for method in METHODS:
        for seed in SEEDS[len(runs.get(method, [])) :] if method == "dia+" else SEEDS[: method not in runs]:
            runs.setdefault(method, []).append(of_detector(method, normals, test, seed))
            print(name, method, seed, runs[method][-1], flush=True)
            keep()
    for blind, make in BLIND.items():
        if blind not in runs:
            runs[blind] = [measured(test, make(test))]
            print(name, blind, runs[blind][-1], flush=True)
            keep()


def table(found: dict[str, dict[str, list[dict[str, float]]]], columns: tuple[str, ...]) -> str:
    """Returns a Markdown table: rows of sets and methods, means over seeds with their standard deviation."""
    lines = [f"| data set | heatmap | {' | '.join(columns)} |", f"|---|---|{'--:|' * len(columns)}"]
    for name, runs in found.items():
        for method, seeds in runs.items():
            cells = []
            for column in columns:
                values = [run[column] for run in seeds if column in run]
                spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
            if any(cell != "–" for cell in cells):
                lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is still to come, and draws the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT / "../shared/data"))
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}

    def keep() -> None:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")

    for name in SETS:
        of_set(name, options.data, found.setdefault(name, {}), keep)
    if PAGE.exists():
        update_section(PAGE, "FINDINGS", table(found, COLUMNS))
        update_section(PAGE, "AT_LEVEL", table(found, AT_LEVEL))


if __name__ == "__main__":
    main()
