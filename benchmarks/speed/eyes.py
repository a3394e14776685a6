"""`dia+` beside anomalib's PatchCore and imgad's nearest neighbour, all with EfficientNet-Lite0's weights.

    python -m benchmarks.speed.eyes --imgad FOLDER   # FOLDER holds the package imgad, not in the lock

All read the same PNG files, at 128 px, on the CPU, each in a process of its own, one after the other, in
turns; fitting and scoring both start from files, and imports do not count. PatchCore takes the maps at
strides 8 and 16 and keeps 1 % of the patches, the smallest share of its paper, which is fastest; imgad takes
the pooled features, at 224 px, the size its transform has for this network, and at 128. `dia+` makes no
heatmaps while it is timed, nor does imgad; PatchCore makes them always. Writes results/eyes.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from dia.data.datasets import load, load_training
from dia.data.imageset import ANOMALOUS
from dia.data.readers import read
from dia.detectors.registry import METHODS as DETECTORS
from dia.features.package import package_file

from ..common import HERE, answer, apart, parser, publish
from .patchcore import patchcore

METHODS = ("dia+", "patchcore", "imgad knn, 128 px", "imgad knn, 224 px")
SIDE = 128
WARMUP = 8  # images scored before the clock starts


def draw(folder: Path, name: str, root: str) -> None:
    """Writes a data set as `{train,test}/{good,bad}/*.png`, square, 128 px a side."""
    made = {"train": load_training(name, root), "test": load(name, "test", root)}
    for split, images in made.items():
        images = images.resized(SIDE, SIDE)
        labels = np.zeros(len(images), int) if images.labels is None else np.asarray(images.labels)
        for i, (image, label) in enumerate(zip(images.images, labels, strict=True)):
            file = folder / split / ("bad" if label else "good") / f"{i:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB").save(file)


def timm_state() -> dict[str, torch.Tensor]:
    """Returns Lite0's published tensors under the names that timm gives them."""
    timm = importlib.import_module("timm")
    theirs = timm.create_model("tf_efficientnet_lite0").state_dict()
    own = torch.load(package_file("lite0"), weights_only=True)
    names = [name for name in theirs if not name.endswith("num_batches_tracked")]
    tensors = [t for name, t in own.items() if not name.endswith("num_batches_tracked")]
    made = dict(zip(names, tensors, strict=True))
    if wrong := [name for name, t in made.items() if t.shape != theirs[name].shape]:
        raise ValueError(f"{wrong[0]} has another shape")
    return made


def dia_plus(data: Path) -> dict[str, Any]:
    """Fits and scores `dia+` from files, as `dia fit` and `dia score` do."""
    start = time.perf_counter()
    train = read(data, split="train", workers=1)
    detector = DETECTORS["dia+"](device="cpu").fit(train)
    fitted = time.perf_counter() - start
    detector.score(read(data, split="test", workers=1).images[:WARMUP])
    start = time.perf_counter()
    test = read(data, split="test", workers=1)
    scores = detector.score(test)
    seconds = time.perf_counter() - start
    return {
        "n_train": len(train), "fit_seconds": fitted, "images_per_second": len(test) / seconds,
        "auroc": float(roc_auc_score(np.asarray(test.labels) == ANOMALOUS, scores)),
    }  # fmt: skip


def imgad(data: Path, weights: Path, side: int) -> dict[str, Any]:
    """Fits and scores imgad's nearest neighbour on pooled features, from files."""
    theirs = importlib.import_module("imgad")
    extractor = theirs.TimmFeatureExtractor(
        "tf_efficientnet_lite0", checkpoint=str(weights), device="cpu",
        data_config={"input_size": (3, side, side), "crop_pct": 1.0},
    )  # fmt: skip
    extractor._load()  # as the others, which are timed from the first file
    pipe = theirs.AnomalyDetectionPipeline(extractor, theirs.build_detector("knn", k=1), preprocessing=["l2"])
    train = sorted(map(str, (data / "train/good").iterdir()))
    test = sorted(map(str, (data / "test").glob("*/*.png")))
    start = time.perf_counter()
    pipe.fit(train)
    fitted = time.perf_counter() - start
    pipe.score(test[:WARMUP])
    start = time.perf_counter()
    scores = pipe.score(test)
    seconds = time.perf_counter() - start
    return {
        "version": theirs.__version__, "n_train": len(train), "fit_seconds": fitted,
        "images_per_second": len(test) / seconds,
        "auroc": float(roc_auc_score(["bad" in Path(p).parts for p in test], scores)),
    }  # fmt: skip


def run(method: str, data: Path, weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the facts of one method, from a process of its own."""
    return apart("benchmarks.speed.eyes", "--one", method, "--data", data, "--weights", weights,
                 *(("--imgad", options.imgad) if options.imgad else ()))  # fmt: skip


def main() -> None:
    """Runs all methods on all sets and publishes `eyes`."""
    p = parser(__doc__)
    p.add_argument("--imgad", help="folder that holds the package imgad")
    p.add_argument("--root", default=str(HERE / "../../shared/data"), help="folder of the data sets")
    p.add_argument("--sets", nargs="+", default=["pneumoniamnist", "sarscov2ct-128", "busi-128"])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    p.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.imgad:
        sys.path.insert(0, options.imgad)
    if options.one == "dia+":
        return answer(dia_plus(options.data))
    if options.one == "patchcore":
        return answer(patchcore(options.data, options.weights, SIDE, WARMUP))
    if options.one:
        return answer(imgad(options.data, options.weights, int(options.one.split()[-2])))
    methods = [m for m in METHODS if options.imgad or not m.startswith("imgad")]
    rows, found, ratios = [], {}, {}
    os.environ |= {"TQDM_DISABLE": "1"}
    for name in options.sets:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            draw(folder / "data", name, options.root)
            torch.save(timm_state(), weights := folder / "lite0.pth")
            turns = [
                {m: run(m, folder / "data", weights, options) for m in methods[:: 1 if i % 2 else -1]}
                for i in range(options.repeats)
            ]
        found[name] = turns
        for m in methods:
            own = [turn[m] for turn in turns]
            fit, rate = (median(f[key] for f in own) for key in ("fit_seconds", "images_per_second"))
            rows.append({
                "data set": name, "method": m, "normals": own[0]["n_train"], "fit s": fit, "images/s": rate,
                "image AUROC": own[0]["auroc"], "peak MiB": median(f["peak_memory_mb"] for f in own),
            })  # fmt: skip
            if m != "dia+":
                pairs = [(turn[m], turn["dia+"]) for turn in turns]
                slower = median(a["fit_seconds"] / b["fit_seconds"] for a, b in pairs)
                faster = median(b["images_per_second"] / a["images_per_second"] for a, b in pairs)
                ratios[f"{name}: fit seconds: {m} / dia+"] = slower
                ratios[f"{name}: images/s: dia+ / {m}"] = faster
        print(json.dumps(rows[-len(methods) :]), flush=True)
    publish("eyes", rows, ratios, found=found)


if __name__ == "__main__":
    main()
