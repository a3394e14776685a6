"""A small grid of runs as `dia benchmark` is given it, and what its lines say whoever makes them."""

import json

import numpy as np
import yaml
from conftest import smooth_images

from dia.benchmark.ledger import Ledger
from dia.benchmark.runs import scores_path

ENCODER = {"amplify.size": 16, "amplify.width": 4, "amplify.steps": 3, "amplify.batch": 4}
TINY = {
    "csi": ENCODER | {"samples": 1},
    "dia": ENCODER | {"dissolver.size": 16, "dissolver.widths": [8, 8], "dissolver.steps": 2, "samples": 1},
    "msc": {"size": 16, "epochs": 1},
}
OF_THE_RUN = {
    "began", "fit_seconds", "run_seconds", "cpu_seconds", "score_images_per_second", "peak_memory_mb",
    "commit", "weights", "shared_seconds",
}  # fmt: skip


def two_sets(folder):
    """Two known sets of small images."""
    for seed, name in enumerate(("breastmnist", "pneumoniamnist")):
        arrays = {}
        normal = 1 if name == "breastmnist" else 0
        for split, (n, m) in {"train": (30, 4), "val": (4, 4), "test": (12, 12)}.items():
            images = smooth_images(n + m, 16, 16, 1, seed=seed)[..., 0]
            images[n:] = 255 - images[n:] // 2
            arrays |= {f"{split}_images": images}
            labels = np.r_[np.full(n, normal), np.full(m, 1 - normal)]
            arrays |= {f"{split}_labels": labels[:, None].astype(np.uint8)}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def options(root, out, **more):
    values = {
        "datasets": ["breastmnist", "pneumoniamnist"], "methods": ["csi", "trivial:hog", "trivial:std"],
        "seeds": [0, 1], "settings": TINY, "data_root": str(root), "ledger": str(out / "l.jsonl"),
        "scores": str(out / "s"), "work": str(out / "w"), "device": "cpu",
    }  # fmt: skip
    return values | more


def benchmark(root, out, **more):
    out.mkdir(exist_ok=True)
    path = out / "grid.yaml"
    path.write_text(yaml.safe_dump(options(root, out, **more)))
    return ["benchmark", "--config", str(path)]


def lines_of(out):
    return Ledger(out / "l.jsonl").rows()


def compared(out):
    """What must not depend on where and when a line was made."""
    return sorted(
        (
            json.dumps({k: v for k, v in line.items() if k not in OF_THE_RUN}, sort_keys=True),
            np.load(scores_path(out / "s", line))["scores"].tobytes(),
        )
        for line in lines_of(out)
    )
