"""How `dia+` does with few normals: AUROC and false alarms by the number it is fitted on.

`python -m benchmarks.few_normals --data ../shared/data` writes benchmarks/results/few_normals.json by set,
and the tables of docs/howto/few-normals.md. Normals are drawn at random, three times; all of them once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from dia.benchmark.ledger import update_section
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import DIAPlus

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks/results/few_normals.json", ROOT / "docs/howto/few-normals.md"
SETS = (
    "pneumoniamnist", "breastmnist", "sarscov2ct-128", "kvasirseg_patches-128", "aptos2019_sub-128",
    "chestxray-128",
)  # fmt: skip
SIZES, DRAWS, RATE = (5, 10, 20, 50, 100, 200), 3, 0.05


def measured(normals: ImageSet, test: ImageSet, seed: int) -> tuple[float, float | None]:
    """Fits on normals and measures on a test set.

    Returns:
        AUROC, and the share of normal test images flagged at 5 %; None where there is no threshold.
    """
    detector = DIAPlus(seed=seed).fit(normals)
    scores, labels = detector.score(test), np.asarray(test.labels)
    threshold = detector.threshold(RATE)
    flagged = float((scores[labels == 0] > threshold).mean()) if np.isfinite(threshold) else None
    return float(roc_auc_score(labels, scores)), flagged


def curve(name: str, root: str) -> dict[str, list[tuple[float, float | None]]]:
    """Returns, by number of normals, what was measured in each draw."""
    normals, test = load_training(name, root, max_size=128), load(name, "test", root, max_size=128)
    made = {}
    for n in (*(n for n in SIZES if n < len(normals)), len(normals)):
        whole = n == len(normals)
        made[str(n)] = []
        for k in range(1 if whole else DRAWS):
            index = np.random.default_rng([n, k]).permutation(len(normals))[:n]
            made[str(n)].append(measured(normals.subset(np.sort(index)), test, k))
        print(name, n, made[str(n)], flush=True)
    return made


def table(found: dict[str, dict[str, list[tuple[float, float | None]]]], part: int) -> str:
    """Returns a Markdown table: rows of numbers of normals, columns of data sets."""
    lines = [f"| normals | {' | '.join(found)} |", f"|--:|{'--:|' * len(found)}"]
    for n in (*map(str, SIZES), "all"):
        cells = []
        for by_n in found.values():
            runs = by_n[list(by_n)[-1]] if n == "all" else by_n.get(n, [])
            values = [run[part] for run in runs if run[part] is not None]
            spread = f" ± {np.std(values):.3f}" if len(values) > 1 and not part else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        lines.append(f"| {n} | {' | '.join(cells)} |")
    lines[-1] += f"\n\nAll: {', '.join(f'{name} {list(by_n)[-1]}' for name, by_n in found.items())}."
    return "\n".join(lines)


def main() -> None:
    """Measures the sets that are still to come, and draws the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT / "../shared/data"))
    options = parser.parse_args()
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in SETS:
        if name not in found:
            found[name] = curve(name, options.data)
            KEPT.write_text(json.dumps(found, indent=1) + "\n")
    update_section(PAGE, "AUROC", table(found, 0))
    update_section(PAGE, "FALSE_ALARMS", table(found, 1))


if __name__ == "__main__":
    main()
