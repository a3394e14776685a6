"""What a view *dissolve contrast* would be worth: whether an image lies nearer to dissolved normals.

`python -m benchmarks.contrast --data ../shared/data` writes benchmarks/results/contrast.json, a run at a
time, and the table of docs/decisions/0023-eyes.md. The view is the log distance to the nearest normal less
that to the nearest dissolved normal, in 4×4 cells of the fine map; its control takes blurred normals. A
normal is dissolved by a network that has not seen it, and judged without its own copies. Only development
data, as in recipes/eyes.yaml: what is chosen here is whether the view is built.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from dia.benchmark.ledger import update_section
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import DIAPlus
from dia.detectors.diaplus import Measuring, Scale
from dia.detectors.nearest import Nearest, left_out
from dia.detectors.places import folds_of
from dia.detectors.views import BLUR, Cells
from dia.dissolve.several import SeveralT
from dia.features.untrained import as_tensor, blurring

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks/results/contrast.json", ROOT / "docs/decisions/0023-eyes.md"
SETS = {"pneumoniamnist": "val", "breastmnist": "val", "breastmnist-128": "val", "chestxray-128": "test"}
TS, SIGMAS = (100, 200, 300, 500), (1 / 64, 2 / 64, 4 / 64, BLUR)  # of the side
CELLS, ROWS = 4, 32
Row = dict[str, list[float | None]]  # by addition, AUROC alone and with the views
Changed = Callable[[Tensor], Tensor]  # from `(N, C, H, W)` uint8 to squares in [0, 1]


class Compared:
    """A fitted `dia+` with two dissolvers, and its normals.

    Args:
        detector: with the view `gain`, fitted on `normals`.
        normals: `(N, H, W, C)` uint8.
    """

    def __init__(self, detector: DIAPlus, normals: np.ndarray):
        self.detector, self.normals = detector, normals
        self.measuring = Measuring(detector).eval()
        fine = self.measuring.backbone.fine(self.measuring.small(as_tensor(normals[:1], torch.device("cpu"))))
        self.view = Cells("fine", CELLS, fine)
        self.plain = self.vectors(normals, self.measuring.small)
        half = np.concatenate(folds_of(np.arange(len(normals)), detector.seed)[::2])
        self.second = ~np.isin(np.arange(len(normals)), half)  # which of the two has not seen an image

    def vectors(self, images: np.ndarray, changed: Changed) -> Tensor:
        """Returns `(N, D)` of images after a change."""
        made = []
        for start in range(0, len(images), ROWS):
            x = changed(as_tensor(images[start : start + ROWS], torch.device("cpu")))
            maps = self.measuring.backbone(x)
            made.append(self.view.finish(self.view.raw(x, maps)).float())
        return torch.cat(made)

    def dissolved(self, t: int) -> Tensor:
        """Returns the vectors of the normals, dissolved at t by the network that has not seen them."""
        both = [
            self.vectors(self.normals, lambda x, net=net: self.measuring.small(SeveralT(net, (t,))(x)[0]))
            for net in self.detector.dissolvers_
        ]
        return torch.where(torch.from_numpy(self.second)[:, None], both[1], both[0])

    def blurred(self, sigma: float) -> Tensor:
        """Returns the vectors of the blurred normals."""
        blur = blurring(self.detector._side, sigma * self.detector._side)
        return self.vectors(self.normals, lambda x: blur(self.measuring.small(x)))

    def contrast(self, new: Tensor, changed: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns the contrast of the normals, each judged by the others, and of new images; raw."""
        n, bank = len(self.plain), Nearest(changed.numpy(), 1)
        near = left_out(self.plain, np.arange(n))
        apart = torch.cdist(self.plain, changed).fill_diagonal_(torch.inf).amin(1).numpy()
        own = np.log(near + 1e-6) - np.log(apart + 1e-6)
        far = Nearest(self.plain.numpy(), 1)(new), bank(new)
        return own, ((far[0] + 1e-6).log() - (far[1] + 1e-6).log()).numpy()


@torch.inference_mode()
def measured(normals: ImageSet, test: ImageSet, seed: int) -> Row:
    """Returns, by addition to the seven views, image AUROC of it alone and of the mean evidence with it."""
    usual = DIAPlus().s
    diffusion = replace(usual.dissolver, kind="diffusion")
    settings = replace(usual, dissolver=diffusion, ts=TS, views=(*usual.views, "gain"))
    with torch.inference_mode(False):
        detector = DIAPlus(settings, seed=seed).fit(normals)
    compared, module, labels = Compared(detector, normals.images), detector._module().eval(), test.labels
    distances: dict[str, list[Tensor]] = {}
    numbers: dict[str, list[Tensor]] = {}
    for start in range(0, len(test), ROWS):
        seen = module.seen(as_tensor(test.images[start : start + ROWS], torch.device("cpu")), False)
        for name, vectors in seen[0].items():
            distances.setdefault(name, []).append(module.banks[name](vectors))
        for name, values in seen[1].items():
            numbers.setdefault(name, []).append(values)
    away = {name: torch.cat(parts) for name, parts in distances.items()}
    found = {name: torch.cat(parts) for name, parts in numbers.items()}
    views = module.evidence(away, {"detail": found["detail"]})
    count = len(away) + 1

    def row(value: np.ndarray, scale: Scale) -> list[float | None]:
        joined = (views * count + (scale(torch.from_numpy(value)) / 2).tanh()) / (count + 1)
        return [float(roc_auc_score(labels, value)), float(roc_auc_score(labels, joined.numpy()))]

    made: Row = {"nothing": [None, float(roc_auc_score(labels, views.numpy()))]}
    made["gain"] = row(found["gain"].numpy(), detector.scales_["gain"])
    new = compared.vectors(test.images, compared.measuring.small)
    changed = {f"dissolved, t = {t}": compared.dissolved(t) for t in TS}
    changed |= {f"blurred, σ = {sigma * 64:.0f} of 64": compared.blurred(sigma) for sigma in SIGMAS}
    for name, vectors in changed.items():
        own, value = compared.contrast(new, vectors)
        made[name] = row(value, Scale.of(own))
    return made


def table(found: dict[str, Row]) -> str:
    """Returns a Markdown table: rows of additions, two columns for each data set."""
    runs = {name: [made for key, made in found.items() if key.split(":")[0] == name] for name in SETS}
    names = " | ".join(f"{name} alone | with the views" for name in SETS)
    lines = [f"| added | {names} |", f"|---|{'--:|--:|' * len(SETS)}"]
    for addition in next(iter(found.values())):
        cells = []
        for name in SETS:
            for part in (0, 1):
                values = [value for made in runs[name] if (value := made[addition][part]) is not None]
                spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.3f}{spread}" if values else "–")
        lines.append(f"| {addition} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the runs that are still to come, and draws the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT / "../shared/data"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for seed in range(options.seeds):
        for name, split in SETS.items():
            if (key := f"{name}:{seed}") not in found:
                normals = load_training(name, options.data, max_size=128)
                found[key] = measured(normals, load(name, split, options.data, max_size=128), seed)
                print(key, found[key], flush=True)
                KEPT.write_text(json.dumps(found, indent=1) + "\n")
    update_section(PAGE, "CONTRAST", table(found))


if __name__ == "__main__":
    main()
