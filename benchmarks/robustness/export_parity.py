"""Parity of exported models: the ONNX file beside the detector, on all test images of the sample sets.

`csi` and `dia` are fitted for some seconds on a few normals of each set at 32 px, `dia+` as it is by default,
at the size in which images come. Exported, they score the set's test images (`dia+` at most 200, evenly
spaced) in the size in which they come. What is compared is arithmetic, not detection, so short training does.
Milliseconds are of one thread, with score, p-value and heatmap from the file and the score alone from the
detector.

    DIA_DATA=../shared/data python -m benchmarks.robustness.export_parity

writes `results/export_parity.json` and the table between the marks of `docs/howto/export.md`; with --page it
only draws the table anew.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything reads it

import numpy as np
import torch

from dia.benchmark.ledger import update_section
from dia.data.datasets import load_training, open_data
from dia.data.imageset import ImageSet
from dia.deploy.export import Comparison, export
from dia.deploy.onnx_model import OnnxModel
from dia.detectors import Detector
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS

from ..common import HERE, RESULTS, parser, publish

PAGE = HERE.parent / "docs/howto/export.md"
SETS = (
    "breastmnist", "oct2017_mini-128", "kvasirseg_patches", "phantom", "pneumoniamnist", "sarscov2ct-128",
    "breastmnist-128", "sarscov2ct", "kvasirseg_patches-128", "aptos2019_matched-128", "aptos2019_sub-128",
    "chestxray-128", "headct-128", "brainmri-128", "busi-128",
)  # fmt: skip
SIDE, NORMALS, BATCH, MOST = 32, 120, 64, 200
MODELS = ("csi", "dia", "dia+")


def fitted(normals: ImageSet, folder: Path, models: Sequence[str]) -> Iterator[tuple[str, Detector]]:
    """The models of one set; what they have in common is trained once."""
    for method in models:
        s = settings(METHODS[method].Settings)
        if method != "dia+":
            s = replace(s, amplify=replace(s.amplify, steps=30, size=SIDE))
        if method == "dia":
            s = replace(s, dissolver=replace(s.dissolver, steps=80, size=SIDE))
        yield method, METHODS[method](s, device="cpu").fit(normals, workdir=folder)


def measured(detector: Detector, test: ImageSet, folder: Path) -> dict[str, Any]:
    """Differences over all test images, and milliseconds an image."""
    path = folder / "model.onnx"
    made = export(detector, path)
    run = OnnxModel(path, device="cpu").run
    comparison = Comparison(detector, run)
    for start in range(0, len(test), BATCH):
        comparison.add(test.images[start : start + BATCH])
    some = test.images[:BATCH]
    ready = ImageSet(some).resized(*detector.shape_[:2]).images
    seconds: dict[str, list[float]] = {"file": [], "detector": []}
    for _ in range(3):
        for who, work in (("file", lambda: run(some)), ("detector", lambda: detector.score(ready))):
            start_ = time.perf_counter()
            work()
            seconds[who].append(time.perf_counter() - start_)
    f = comparison.facts
    return {
        "images": f["images"], "score": f["score"], "relative": f["score, relative"],
        "beyond": f["scores beyond tolerance"], "p_value": f["p_value"], "heatmap": f.get("heatmap"),
        "heatmap_relative": f.get("heatmap, relative"), "refused": comparison.beyond,
        "ms": 1000 * median(seconds["file"]) / len(some),
        "detector_ms": 1000 * median(seconds["detector"]) / len(some),
        "mb": made["megabytes"], "export_seconds": made["seconds"],
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown: for each model, over all sets."""
    lines = [
        "| model | images | greatest difference of a score (relative) | scores beyond 1e-4 "
        "| of a p-value | of a heatmap (relative) | ms an image (detector) | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault(row["model"], []).append(row)
    for model, rows in groups.items():
        maps = [(r["heatmap"], r["heatmap_relative"]) for r in rows if r["heatmap"] is not None]
        cells = (
            f"`{model}`", sum(r["images"] for r in rows),
            f"{max(r['score'] for r in rows):.1e} ({max(r['relative'] for r in rows):.1e})",
            sum(r["beyond"] for r in rows), f"{max(r['p_value'] for r in rows):.1g}",
            "{:.1e} ({:.1e})".format(*map(max, zip(*maps, strict=True))) if maps else "–",
            f"{median(r['ms'] for r in rows):.1f} ({median(r['detector_ms'] for r in rows):.1f})",
            f"{median(r['mb'] for r in rows):.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    sets: dict[str, tuple[str, int]] = {r["set"]: (r["read"], r["images"]) for r in results["rows"]}
    listed = ", ".join(f"{name} ({count} of {read})" for name, (read, count) in sets.items())
    sizes = f"`csi` and `dia` of {SIDE} px or the set's own 28, `dia+` of the images' own size"
    return "\n".join([*lines, "", f"Test images: {listed}; {sizes}, on at most {MOST} of them."])


def main() -> None:
    """Measures, and draws the page."""
    p = parser(__doc__)
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    p.add_argument("--sets", nargs="+", default=SETS, help="to measure; the results of others stay")
    p.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="to measure, as --sets")
    a = p.parse_args()
    if not a.page:
        torch.set_num_threads(1)
        there = RESULTS / "export_parity.json"
        rows = json.loads(there.read_text())["rows"] if there.exists() else []
        rows = [row for row in rows if row["set"] not in a.sets or row["model"] not in a.models]
        for name in a.sets:
            data = os.environ.get("DIA_DATA")
            test = open_data(name, "test", data)
            whole = load_training(name, data)
            if len(whole) < 20:  # what is compared is arithmetic
                whole = ImageSet(open_data(name, "all", data).images)
            whole = whole.subset(np.arange(min(len(whole), NORMALS)))
            read = "×".join(map(str, test.shape))
            for method in a.models:
                own = method == "dia+"
                normals = whole if own else whole.resized(*(min(side, SIDE) for side in whole.shape[:2]))
                some = test.subset(np.linspace(0, len(test) - 1, min(len(test), MOST)).astype(int))
                with tempfile.TemporaryDirectory() as folder:
                    label, detector = next(fitted(normals, Path(folder), [method]))
                    found = measured(detector, some if own else test, Path(folder))
                    rows.append({"set": name, "read": read, "model": label, **found})
                    print(name, label, found["score"], found["refused"], flush=True)
            publish("export_parity", rows, {})  # after each set: what was measured is kept
    update_section(PAGE, "PARITY", table(json.loads((RESULTS / "export_parity.json").read_text())))


if __name__ == "__main__":
    main()
