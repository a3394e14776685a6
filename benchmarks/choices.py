"""What each saving costs in AUROC: `dia`, `cpu` preset, on the `val` split of PneumoniaMNIST, three seeds.

Training: dissolved bank or live dissolving, with their loss curves; a bank of fewer images.
Scoring: number of seeded samples and normals in the bank, of the first seed's encoder. Development data only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from common import parser, publish
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dia.amplify import learning
from dia.data.catalog import load
from dia.detectors.csi import spread
from dia.detectors.dia import DIA, DIASettings
from dia.presets import settings

CPU = settings(DIASettings, "cpu")


def variants(n: int, image_bytes: int) -> dict[str, DIASettings]:
    """Settings by name; n training images."""
    gb = n * 2 * len(CPU.ts) * image_bytes / 2**30
    return {
        "bank": CPU,
        "live": replace(CPU, live=True),
        "bank of half the images": replace(CPU, bank_gb=gb / 2),
    }


def recorded(losses: list[float]) -> type:
    """The package's training, which also keeps its losses."""

    class Recorded(learning.ContrastiveTraining):
        def training_step(self, batch: int, index: int) -> Any:
            loss = super().training_step(batch, index)
            losses.append(float(loss.detach()))
            return loss

    return Recorded


def main() -> None:
    """Prints and writes `results/choices.json`."""
    p = parser(__doc__)
    p.add_argument("--data-root", default="../shared/data")
    p.add_argument("--dataset", default="pneumoniamnist")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--variants", nargs="+", default=["bank", "live", "bank of half the images"])
    a = p.parse_args()
    train = load(a.dataset, "train", a.data_root).normals()
    val = load(a.dataset, "val", a.data_root)
    assert val.labels is not None
    original = learning.ContrastiveTraining
    scores: dict[str, list[float]] = defaultdict(list)
    ranks: dict[str, list[float]] = defaultdict(list)
    curves: dict[str, list[list[float]]] = defaultdict(list)
    image_bytes = int(np.prod(train.shape))
    for seed in a.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for name, s in variants(round(0.8 * len(train)), image_bytes).items():
                if name not in a.variants:
                    continue
                losses: list[float] = []
                learning.ContrastiveTraining = recorded(losses)  # type: ignore[misc]
                work = Path(folder, "live" if s.live else "bank")  # both would find the other's encoder
                if s.live:
                    for made in work.with_name("bank").glob("dissolver-*"):
                        shutil.copytree(made, work / made.name)
                detector = DIA(s, seed=seed).fit(train, workdir=work)
                learning.ContrastiveTraining = original  # type: ignore[misc]
                curves[name].append(losses)
                scores[name].append(roc_auc_score(val.labels, detector.score(val)))
                print(name, seed, round(scores[name][-1], 4), flush=True)
                if name == "bank" and seed == a.seeds[0]:
                    scoring(detector, train.images, val, scores, ranks)
    rows = [
        {
            "what": name,
            "AUROC": f"{mean(x):.4f} ± {stdev(x):.4f}" if len(x) > 1 else f"{x[0]:.4f}",
            "rank correlation with the fullest": f"{mean(ranks[name]):.4f}" if name in ranks else "",
        }
        for name, x in scores.items()
    ]
    ratios = {f"AUROC, {name} / bank": mean(x) / mean(scores["bank"]) for name, x in scores.items()}
    if all(curves["live"]) and all(curves["bank"]):
        bank, live = (np.array(curves[k]).mean(0) for k in ("bank", "live"))
        apart = float(np.abs(bank - live).mean())
        print(f"mean |loss of bank − loss of live| {apart:.4f}, of {bank.mean():.4f}")
    publish("choices", rows, ratios, dataset=a.dataset, auroc=dict(scores), losses=dict(curves))


def scoring(
    detector: DIA, images: np.ndarray, val: Any, scores: dict[str, list[float]], ranks: dict[str, list[float]]
) -> None:
    """The same encoder, scored with other numbers of samples and of normals."""
    full = None
    for samples in (20, 10, 4, 2, 1):
        detector.settings = replace(detector.s, samples=samples)
        detector._fit_bank(images)
        now = detector.score(val)
        full = now if full is None else full
        keep(f"{samples} samples", now, full, val, scores, ranks)
    detector.settings = replace(detector.s, samples=CPU.samples)
    detector._fit_bank(images)
    full = detector.score(val)
    for size in (len(images), 512, 256, 128, 64):
        detector._fit_bank(spread(images, size))
        keep(f"{size} normals in the bank", detector.score(val), full, val, scores, ranks)


def keep(
    name: str, now: np.ndarray, full: np.ndarray, val: Any, scores: dict[str, Any], ranks: dict[str, Any]
) -> None:
    """Files one variant's AUROC and rank correlation."""
    scores[name].append(roc_auc_score(val.labels, now))
    ranks[name].append(float(spearmanr(now, full).statistic))


if __name__ == "__main__":
    main()
