"""What readers' marks are worth to `dia update`: simulated readers on six sets.

`nice -n 10 python -m benchmarks.readers --data ../shared/data` appends a line for each draw to `--lines`,
so that it can be stopped and goes on, then writes benchmarks/results/readers.json and the tables of
docs/howto/teach.md.

For each set a model is fitted on the training normals. New images are of the test set: in each of five
draws, a pool of three quarters of the normals and as many anomalies as make 15 % of it. A reader marks 5,
10, 20 or 50 images of the pool: those of the highest score, those nearest to the threshold, or any; one
kind of reader is wrong in 10 %, and one says nothing: it is wrong in 50 %. AUROC is of all other new images.
A draw counts only if 20 normals are left for that.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from dia.benchmark.ledger import update_section
from dia.core.environment import environment
from dia.data.datasets import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import DIAPlus
from dia.detectors.calibration import Calibration
from dia.detectors.teaching.lesson import LEVEL, Ground, Lesson, teach
from dia.detectors.teaching.model import apply, forget, ground_of, look, scorer_of
from dia.detectors.teaching.seen import Seen
from dia.detectors.teaching.taught import Learned

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks/results/readers.json", ROOT / "docs/howto/teach.md"
SETS = (
    "pneumoniamnist", "breastmnist", "sarscov2ct-128", "kvasirseg_patches-128", "aptos2019_matched-128",
    "chestxray-128",
)  # fmt: skip
MARKS, SEEDS, WRONG = (5, 10, 20, 50), range(5), (0.0, 0.1, 0.5)
CHOICES = ("score", "doubt", "random")
RATE, SHARE, POOL, LEFT = 0.05, 0.15, 0.75, 20


def pool_of(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws the new images of a reader, `(P,)` indices: three quarters of the normals, 15 % anomalies."""
    normal, anomalous = (rng.permutation(np.flatnonzero(labels == kind)) for kind in (0, 1))
    normal = normal[: round(POOL * len(normal))]
    return np.concatenate([normal, anomalous[: round(len(normal) * SHARE / (1 - SHARE))]])


def chosen(
    pool: np.ndarray, scores: np.ndarray, threshold: float, how: str, rng: np.random.Generator
) -> np.ndarray:
    """Returns the pool, the first to be marked first."""
    if how == "random":
        return rng.permutation(pool)
    away = -scores[pool] if how == "score" else np.abs(scores[pool] - threshold)
    return pool[np.argsort(away, kind="stable")]


def taught_scores(detector: DIAPlus, lesson: Lesson, seen: Seen, added: Seen) -> np.ndarray:
    """Returns the scores of images by a lesson, as the taught model gives them."""
    plain = torch.from_numpy(scorer_of(detector)(seen.beside(seen.away(added))))
    assert lesson.taught is not None
    with torch.inference_mode():
        made: np.ndarray = lesson.taught(
            plain, {k: torch.from_numpy(v) for k, v in seen.vectors.items()}
        ).numpy()
    return made


def without_bank(lesson: Lesson, ground: Ground, scores: np.ndarray, seen: Seen) -> np.ndarray:
    """Returns the scores of images by a lesson whose flagged normals do not enter the banks."""
    assert lesson.taught is not None
    with torch.inference_mode():
        probe = lesson.taught.probe({k: torch.from_numpy(v) for k, v in seen.vectors.items()}).numpy()
    (median, spread), (_, _, middle, width, weight) = ground.scale, lesson.taught.scale
    made: np.ndarray = (scores - median) / spread + weight * (probe - middle) / width
    return made


def draws(detector: DIAPlus, test: ImageSet, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yields what was measured in each draw that is still to come."""
    labels, seen = np.asarray(test.labels).astype(int), look(detector, test.images)
    scorer, threshold = scorer_of(detector), detector.threshold(RATE)
    scores = scorer(seen)
    ground, checked = ground_of(detector), False
    for seed, many, how, wrong in product(SEEDS, MARKS, CHOICES, WRONG):
        if (seed, many, how, wrong) in done:
            continue
        rng = np.random.default_rng([seed, many, CHOICES.index(how), int(100 * wrong)])
        pool = pool_of(labels, np.random.default_rng(seed))
        marked = chosen(pool, scores, threshold, how, rng)[:many]
        rest = np.setdiff1d(np.arange(len(labels)), marked)
        if len(marked) < many or (labels[rest] == 0).sum() < LEFT:
            continue
        said = np.where(rng.random(many) < wrong, 1 - labels[marked], labels[marked])
        flagged, normal = scores[marked] > threshold, labels[rest] == 0
        row: dict[str, Any] = {
            "seed": seed,
            "marks": many,
            "choice": how,
            "wrong": wrong,
            "anomalous": int(said.sum()),
        }
        row["before"] = row["after"] = float(roc_auc_score(labels[rest], scores[rest]))
        row["flagged_before"] = row["flagged_after"] = float((scores[rest][normal] > threshold).mean())
        lesson = teach(ground, Learned.of(seen.take(marked), test.images[marked], said, flagged))
        row |= {
            "kept": lesson.kept,
            "cv_before": lesson.before,
            "cv_after": lesson.after,
            "cv_p": lesson.p,
            "always": row["before"],
            "probe_alone": row["before"],
        }
        if lesson.taught is not None:
            made = taught_scores(detector, lesson, seen.take(rest), seen.take(marked[flagged & (said == 0)]))
            row["always"] = float(roc_auc_score(labels[rest], made))
            alone = without_bank(lesson, ground, scores[rest], seen.take(rest))
            row["probe_alone"] = float(roc_auc_score(labels[rest], alone))
            level = Calibration.of(lesson.calibration).threshold(RATE)
            row["flagged_always"] = float((made[normal] > level).mean())
            if lesson.kept:
                row["after"], row["flagged_after"] = row["always"], row["flagged_always"]
            if not checked:  # the model from pixels scores as this does
                apply(detector, lesson, {})
                np.testing.assert_allclose(detector.score(test.images[rest[:32]]), made[:32], atol=1e-5)
                forget(detector)
                checked = True
        yield row


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of draws, and half the width of its 95 % interval by Student's t."""
    half = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        if len(values) > 1
        else 0
    )
    return float(values.mean()), float(half)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns means over sets, with intervals over draws, by number of marks, choice and reader."""
    made = []
    for many, how, wrong in product(MARKS, CHOICES, WRONG):
        part = [r for r in rows if (r["marks"], r["choice"], r["wrong"]) == (many, how, wrong)]
        if not part:
            continue
        by_seed = [[r for r in part if r["seed"] == seed] for seed in SEEDS]
        gains = {
            key: interval(np.array([np.mean([r[key] - r["before"] for r in of]) for of in by_seed if of]))
            for key in ("after", "always", "probe_alone")
        }
        left = [r["always"] - r["before"] for r in part if not r["kept"]]
        made.append({
            "marks": many, "choice": how, "wrong": wrong, "draws": len(part),
            "before": float(np.mean([r["before"] for r in part])),
            "gain": gains["after"], "gain_always": gains["always"],
            "gain_probe_alone": gains["probe_alone"],
            "kept": float(np.mean([r["kept"] for r in part])),
            "worse_by_0.005": float(np.mean([r["after"] < r["before"] - 0.005 for r in part])),
            "worst": float(min(r["after"] - r["before"] for r in part)),
            "left_out": float(np.mean(left)) if left else None,
            "flagged_before": float(np.mean([r["flagged_before"] for r in part])),
            "flagged_after": float(np.mean([r["flagged_after"] for r in part])),
        })  # fmt: skip
    return made


def table(found: list[dict[str, Any]]) -> str:
    """Returns the means over sets as a Markdown table."""
    lines = [
        "| marks | chosen by | reader wrong | AUROC before | gain | kept | gain if always | worst draw | "
        "normals flagged before → after |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in (r for r in found if r["marks"] > MARKS[0]):  # with five nothing is done
        gain, always = (f"{mean:+.3f} ± {half:.3f}" for mean, half in (r["gain"], r["gain_always"]))
        flags = f"{r['flagged_before']:.3f} → {r['flagged_after']:.3f}"
        lines.append(
            f"| {r['marks']} | {r['choice']} | {r['wrong']:.0%} | {r['before']:.3f} | {gain} | "
            f"{r['kept']:.0%} | {always} | {r['worst']:+.3f} | {flags} |"
        )
    return "\n".join(lines)


def by_set(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: before and after by set, chosen by score, by a reader who is not wrong."""
    lines = [f"| set | {' | '.join(f'{m} marks' for m in MARKS[1:])} |", f"|---|{'--:|' * len(MARKS[1:])}"]
    for name in SETS:
        cells = []
        for many in MARKS[1:]:
            part = [
                r
                for r in rows
                if (r["set"], r["marks"], r["choice"], r["wrong"]) == (name, many, "score", 0.0)
            ]
            before, after = (np.mean([r[key] for r in part]) if part else 0 for key in ("before", "after"))
            kept = sum(r["kept"] for r in part)
            cells.append(f"{before:.3f} → {after:.3f} ({kept} of {len(part)})" if part else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_level(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table: what levels of p would keep, of all updates that can be judged."""
    lines = [
        "| reader wrong | updates | kept where | kept | gain, mean of all | worst draw |",
        "|--:|--:|---|--:|--:|--:|",
    ]
    for wrong, level in product(WRONG, (0.05, LEVEL, None)):
        judged = [r for r in rows if r["wrong"] == wrong and r["cv_p"] is not None]
        gains = [
            r["always"] - r["before"]
            for r in judged
            if (r["cv_after"] > r["cv_before"] if level is None else r["cv_p"] <= level)
        ]
        n, where = len(judged), "any gain" if level is None else f"p ≤ {level:g}"
        cells = f"{len(gains) / n:.0%} | {sum(gains) / n:+.3f} | {min(gains):+.3f}"
        lines.append(f"| {wrong:.0%} | {n} | {where} | {cells} |")
    return "\n".join(lines)


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measures the draws that are still to come, and draws the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(ROOT / "../shared/data"))
    parser.add_argument(
        "--lines", default="/tmp/readers.jsonl", help="one line for each draw, kept between runs"
    )
    options = parser.parse_args()
    lines = Path(options.lines)
    lines.touch()
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    for name in SETS:
        done = {(r["seed"], r["marks"], r["choice"], r["wrong"]) for r in rows if r["set"] == name}
        if len(done) == len(SEEDS) * len(MARKS) * len(CHOICES) * len(WRONG):
            continue
        normals, test = (
            load_training(name, options.data, max_size=128),
            load(name, "test", options.data, max_size=128),
        )
        detector = DIAPlus(seed=0).fit(normals)
        with lines.open("a") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in draws(detector, test, done):
                rows.append({"set": name, **row})
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
        print(name, len(normals), len(test), flush=True)
    found = summary(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    kept = [[_short(row.get(key)) for key in columns] for row in rows]
    made = {"summary": found, "columns": columns, "rows": "ROWS", "environment": environment()}
    lines_of = ",\n".join(json.dumps(row) for row in kept)
    KEPT.write_text(json.dumps(made, indent=1).replace('"ROWS"', f"[\n{lines_of}\n]") + "\n")
    if PAGE.exists():
        update_section(PAGE, "READERS", table(found))
        update_section(PAGE, "SETS", by_set(rows))
        update_section(PAGE, "LEVELS", by_level(rows))


if __name__ == "__main__":
    main()
