"""The drift alarm and the p-values, measured: false alarms, shifts found, shares of fresh normals at p ≤ α.

For each set: normals are split at random, `trivial:statistics` is fitted on one part, and batches are drawn
from the other, which is fresh and exchangeable with it: any alarm there is false. Then the same batches are
changed as another scanner, window, size or dose would change them, and lesions are put among them. Last, the
set's own test normals, which nobody promises to be exchangeable with the training normals. No label chooses
anything; labels say which images are the normals.

    DIA_DATA=../shared/data python -m benchmarks.robustness.drift

writes `results/drift.json` and the tables between the marks of `docs/howto/drift.md`; with --page it only
draws the tables anew. About six minutes on one core. With --trained METHOD ... it measures the p-values of
`csi`, `dia` or `dia+` (preset `cpu`, one seed), some twenty minutes for all, and keeps the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before anything reads it

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import beta, betabinom

from dia.benchmark.ledger import update_section
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import Detector
from dia.detectors.drift import RATE, SHARE, acquisition
from dia.detectors.presets import MAX_SIZE
from dia.detectors.registry import TRIVIAL, detector_class
from dia.evaluate.drift_monitor import DriftMonitor

from ..common import HERE, RESULTS, parser, publish

PAGE = HERE.parent / "docs/howto/drift.md"
TRAINED = ("csi", "dia", "dia+")
SETS = ("phantom", "pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches")
SPLITS, BATCHES, BATCH = 40, 25, 50  # random splits; batches of each for false alarms; images
SHIFTED = 10  # splits of which a batch is shifted, for each shift and strength
LEVELS = (0.05, 0.1)
LESIONS = (0.1, 0.3, 0.5)

Change = Callable[[np.ndarray], np.ndarray]


def changes() -> dict[str, dict[str, Change]]:
    """By shift, by strength: `(N, H, W, C)` float in 0–255 to the same."""
    return {
        "gamma": {str(g): partial(_gamma, g=g) for g in (0.9, 0.8, 0.65)},
        "window (contrast ×)": {str(s): partial(_window, s=s) for s in (1.1, 1.25, 1.5)},
        "blur (σ, px)": {str(s): partial(_blur, s=s) for s in (0.4, 0.6, 1.0)},
        "noise (σ, grey steps)": {str(s): partial(_noisy, s=s) for s in (2, 5, 10)},
        "acquired smaller (side ×)": {str(f): partial(_smaller, f=f) for f in (0.9, 0.75, 0.5)},
    }


def _gamma(x: np.ndarray, g: float) -> np.ndarray:
    return 255 * (x / 255) ** g


def _window(x: np.ndarray, s: float) -> np.ndarray:
    return (x - 127.5) * s + 127.5


def _blur(x: np.ndarray, s: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (0, s, s, 0))


def _noisy(x: np.ndarray, s: float) -> np.ndarray:
    return x + np.random.default_rng(0).normal(0, s, x.shape)


def _smaller(x: np.ndarray, f: float) -> np.ndarray:
    images = ImageSet(x.astype(np.uint8))
    h, w, _ = images.shape
    return images.resized(round(h * f), round(w * f)).resized(h, w).images.astype(float)


def changed(images: np.ndarray, change: Change) -> np.ndarray:
    """Back in 8 bits, as it would be stored."""
    return np.clip(np.rint(change(images.astype(float))), 0, 255).astype(np.uint8)


class Measured(NamedTuple):
    """What is counted of images."""

    scores: np.ndarray
    acquisition: np.ndarray

    @classmethod
    def of(cls, detector: Detector, images: np.ndarray) -> Measured:
        """By this detector."""
        return cls(detector.score(images), acquisition(images))

    def judged(self, detector: Detector, chosen: np.ndarray, share: float = SHARE) -> dict[str, Any]:
        """What `dia score` says of the batch of these images."""
        names = [str(i) for i in chosen]
        monitor = DriftMonitor(detector, names, (), rate=RATE, share=share)
        monitor.add(names, self.scores[chosen], self.acquisition[chosen])
        return monitor.verdict()


def of_set(name: str) -> dict[str, Any]:
    """Alarms on one set: a detector of two thirds of the normals judges batches of the other third."""
    normals = load(name, "train", os.environ.get("DIA_DATA")).normals().images[:1200]
    test = load(name, "test", os.environ.get("DIA_DATA"))
    anomalous, cut = test.anomalies().images, 2 * len(normals) // 3
    size = min(BATCH, len(normals) - cut)
    alarms = {SHARE: 0, 0.0: 0}
    shifts = {shift: dict.fromkeys(strengths, 0) for shift, strengths in changes().items()}
    lesions = dict.fromkeys(map(str, LESIONS), 0)
    for seed in range(SPLITS):
        rng = np.random.default_rng([seed, 7])
        order = rng.permutation(len(normals))
        detector = TRIVIAL["trivial:statistics"](seed=seed, device="cpu").fit(normals[order[:cut]])
        fresh = normals[order[cut:]]
        measured = Measured.of(detector, fresh)
        for _ in range(BATCHES):
            chosen = rng.permutation(len(fresh))[:size]
            for share in alarms:
                alarms[share] += measured.judged(detector, chosen, share)["alarm"] is True
        if seed >= SHIFTED:
            continue
        batch, every = fresh[rng.permutation(len(fresh))[:size]], np.arange(size)
        for shift, strengths in changes().items():
            for strength, change in strengths.items():
                found = Measured.of(detector, changed(batch, change)).judged(detector, every)
                shifts[shift][strength] += found["alarm"] is True
        for share in LESIONS:
            bad = int(share * size)
            mixed = np.concatenate([batch[bad:], anomalous[rng.permutation(len(anomalous))[:bad]]])
            found = Measured.of(detector, mixed).judged(detector, every)
            lesions[str(share)] += found["alarm"] is True
    whole = TRIVIAL["trivial:statistics"](seed=0, device="cpu").fit(normals)
    own = {}
    for what, images, share in (
        ("normals, none allowed", test.normals().images, 0.0),
        ("normals, half allowed", test.normals().images, SHARE),
        ("all, half allowed", test.images, SHARE),
    ):
        said = Measured.of(whole, images).judged(whole, np.arange(len(images)), share)
        own[what] = {k: said[k] for k in ("alarm", "p", "statistic", "direction", "images")}
    return {
        "set": name, "n": len(normals), "batch": size, "runs": SPLITS * BATCHES, "false": alarms[SHARE],
        "false_share_0": alarms[0.0], "shifted_runs": SHIFTED, "shifts": shifts, "lesions": lesions,
        "own_test": own,
    }  # fmt: skip


def calibration(name: str) -> dict[str, Any]:
    """Shares of fresh normals at p ≤ α, by untrained row: of a random split, and of the set's own test."""
    train = load(name, "train", os.environ.get("DIA_DATA")).normals()
    test = load(name, "test", os.environ.get("DIA_DATA")).normals()
    of: dict[str, dict[str, list[float]]] = {}
    counts = {"split": 0, "test": len(test)}
    for method, cls in TRIVIAL.items():
        of[method] = {}
        for seed in range(5):
            order = np.random.default_rng([seed, 8]).permutation(len(train))
            cut = 4 * len(train) // 5
            detector = cls(seed=seed, device="cpu").fit(train.subset(np.sort(order[:cut])))
            for kind, images in (("split", train.subset(np.sort(order[cut:]))), ("test", test)):
                counts[kind] = len(images)
                p = detector.p_values(detector.score(images))
                for level in LEVELS:
                    of[method].setdefault(f"{kind} {level}", []).append(float(np.mean(p <= level)))
    return {"set": name, "n": counts, "n_calibration": detector.n_calibration_, "rows": of}


def trained(name: str, method: str, work: Path) -> dict[str, Any]:
    """The same of a trained method with one seed: how many fresh normals have p ≤ α, and of how many."""
    data, side = os.environ.get("DIA_DATA"), MAX_SIZE["cpu"]
    train = load_training(name, data, max_size=side)
    test = load(name, "test", data, max_size=side).normals()
    order = np.random.default_rng([0, 8]).permutation(len(train))
    cut = 4 * len(train) // 5
    fitted_on = train.subset(np.sort(order[:cut]))
    detector = detector_class(method)(seed=0, device="cpu").fit(fitted_on, workdir=work, resume=True)
    found = {}
    for kind, images in (("split", train.subset(np.sort(order[cut:]))), ("test", test)):
        p = detector.p_values(detector.score(images))
        found[kind] = {"n": len(images), **{str(a): int(np.sum(p <= a)) for a in LEVELS}}
    print(name, method, found, flush=True)
    return {"set": name, "method": method, "n_calibration": detector.n_calibration_, **found}


# --- the page ---------------------------------------------------------------------------------------------


def interval(k: int, n: int) -> str:
    """Share with Clopper and Pearson's 95 % interval."""
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return f"{100 * k / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def tables(made: dict[str, Any]) -> dict[str, str]:
    """Markdown by mark."""
    rows = made["alarms"]
    head, dashes = [r["set"] for r in rows], ["--:"] * len(rows)
    half = f"false alarms, up to {made['share']:.0%} anomalous allowed"
    false = [
        ["", *head],
        ["---", *dashes],
        ["normals", *(str(r["n"]) for r in rows)],
        ["images in a batch", *(str(r["batch"]) for r in rows)],
        [half, *(interval(r["false"], r["runs"]) for r in rows)],
        ["none allowed (`--anomalous-up-to 0`)", *(interval(r["false_share_0"], r["runs"]) for r in rows)],
    ]
    shifts = [["change", "strength", *head], ["---", "---", *dashes]]
    for shift, strengths in rows[0]["shifts"].items():
        shifts += [[shift, s, *(str(r["shifts"][shift][s]) for r in rows)] for s in strengths]
    for share in rows[0]["lesions"]:
        what = ["none; test anomalies put in", f"{float(share):.0%} of the batch"]
        shifts.append([*what, *(str(r["lesions"][share]) for r in rows)])
    own = [["set", *rows[0]["own_test"]], ["---"] * 4]
    own += [[r["set"], *map(told, r["own_test"].values())] for r in rows]
    calibrated = [["set", "fresh normals", "how many"]]
    calibrated[0] += [cell for a in LEVELS for cell in (f"p ≤ {a}", "by chance")]
    calibrated.append(["---", "---", *["--:"] * (1 + 2 * len(LEVELS))])
    for r in made["calibration"]:
        for kind, words in (("split", "a fifth of the training normals"), ("test", "the test normals")):
            n, held = r["n"][kind], r["n_calibration"]
            cells = [c for a in LEVELS for c in (shares(r["rows"], f"{kind} {a}"), chance(n, held, a))]
            calibrated.append([r["set"], words, str(r["n"][kind]), *cells])
    made_of = {"FALSE": false, "SHIFTS": shifts, "OWN": own, "CALIBRATION": calibrated}
    made_of["TRAINED"] = trained_table(made.get("trained", []))
    return {mark: "\n".join(f"| {' | '.join(row)} |" for row in table) for mark, table in made_of.items()}


def trained_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Shares at p ≤ .05 by set and method, and what chance allows."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    table = [["set", "fresh normals", "how many", *methods, f"p ≤ {LEVELS[0]} by chance"]]
    table.append(["---", "---", *["--:"] * (2 + len(methods))])
    for name in dict.fromkeys(r["set"] for r in rows):
        of = {r["method"]: r for r in rows if r["set"] == name}
        for kind, words in (("split", "a fifth of the training normals"), ("test", "the test normals")):
            one = next(iter(of.values()))
            n = one[kind]["n"]
            flagged = [f"{100 * of[m][kind][str(LEVELS[0])] / n:.1f} %" if m in of else "–" for m in methods]
            table.append([name, words, str(n), *flagged, chance(n, one["n_calibration"], LEVELS[0])])
    return table


def told(said: dict[str, Any]) -> str:
    """What the alarm said."""
    if said["alarm"] is None:
        return f"too few ({said['images']})"
    return f"**{said['statistic']} {said['direction']}**, p = {said['p']:.1g}" if said["alarm"] else "silent"


def chance(n: int, held: int, level: float) -> str:
    """95 % range of one row's share with one seed, were n fresh normals exchangeable with those held out."""
    k = int(np.floor(level * (held + 1)))
    low, high = betabinom.ppf((0.025, 0.975), n, k, held + 1 - k) / n
    return f"{100 * low:.1f} – {100 * high:.1f} %"


def shares(of_rows: dict[str, Any], key: str) -> str:
    """The mean over rows and seeds, the least and the greatest of a row over its seeds."""
    means = {method: float(np.mean(found[key])) for method, found in of_rows.items()}
    most = max(means, key=lambda m: means[m])
    ends = f"{100 * min(means.values()):.1f} – {100 * means[most]:.1f}, {most.removeprefix('trivial:')}"
    return f"{100 * np.mean(list(means.values())):.1f} % [{ends}]"


def main() -> None:
    """Measures, and draws the page."""
    p = parser(__doc__)
    p.add_argument("--trained", nargs="+", choices=TRAINED, help="measure these alone, and keep the rest")
    p.add_argument("--work", type=Path, default=Path(".work"), help="keeps stages of a fit")
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    a = p.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "drift.json"
    if a.trained:
        made = json.loads(path.read_text())
        anew = [trained(name, m, a.work) for name in SETS for m in a.trained]
        rows = anew + [r for r in made.get("trained", []) if r["method"] not in a.trained]
        made["trained"] = sorted(rows, key=lambda r: (SETS.index(r["set"]), TRAINED.index(r["method"])))
        path.write_text(json.dumps(made, indent=1) + "\n")
    elif not a.page:
        alarms = [of_set(name) for name in SETS]
        calibrated = [calibration(name) for name in SETS]
        short = [{k: r[k] for k in ("set", "n", "batch", "runs", "false", "false_share_0")} for r in alarms]
        kept = json.loads(path.read_text()).get("trained", []) if path.exists() else []
        publish(
            "drift", short, {}, rate=RATE, share=SHARE, alarms=alarms, calibration=calibrated, trained=kept
        )
    for mark, text in tables(json.loads(path.read_text())).items():
        update_section(PAGE, mark, text)


if __name__ == "__main__":
    main()
