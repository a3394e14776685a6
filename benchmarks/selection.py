"""Does choosing by pasted lesions agree with the truth? The measure of `dia select` beside test AUROC.

Candidates: every untrained row; variants of single methods (number of neighbours, blurs); and, as far as
--minutes allow, `csi`, `dia` and `dia+` in the `cpu` preset, in one split. The lesion AUROC is of normals
alone. The truth is the ledger's test AUROC, mean over its seeds. Where the ledger has no line of today's
settings it is measured here in the same way, or, for trained methods, that of an earlier revision, marked.
Labels enter the truth and nothing else; the lesions were fixed before.
The peers in the ledger would have to be fitted anew and are left out.

    python benchmarks/selection.py --data ../shared/data --minutes 25

writes `results/selection.json` and the tables between the marks of `docs/howto/choose.md`; what was measured
is kept in --work, and --page only draws.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from common import HERE, RESULTS, parser, publish

from dia.data.catalog import load, load_training
from dia.data.imageset import ImageSet
from dia.detectors import TRIVIAL, detector_class
from dia.evaluate.benchmark import current_lines
from dia.evaluate.compare import Agreement, agreement
from dia.evaluate.ledger import Ledger, update_section
from dia.evaluate.metrics import image_metrics
from dia.evaluate.selection import Candidate, Pasted, measure, splits
from dia.presets import MAX_SIZE

PAGE = HERE.parent / "docs/howto/choose.md"
LEDGER = HERE.parent / "results/runs.jsonl"
SETS = ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches")
SPLITS, SEEDS = 3, (0, 1, 2)
TRAINED = ("csi", "dia", "dia+")
NEIGHBOURS = (1, 3, 10, 30)
BLURS = ((0.7,), (1.5,), (3.0,), (6.0,), (0.7, 1.5, 3.0, 6.0))
FAMILIES = {
    method: [Candidate(method, changes={"neighbours": k}) for k in NEIGHBOURS]
    for method in ("trivial:hog", "trivial:statistics", "trivial:spectrum", "trivial:lbp")
} | {"trivial:blur": [Candidate("trivial:blur", changes={"sigmas": list(s)}) for s in BLURS]}


def lesion_aurocs(candidate: Candidate, lesions: Sequence[Pasted], work: Path) -> list[float]:
    """Of one candidate, a number for each split: of both judging parts, as neither chose anything here."""
    runs = [measure(candidate, one, workdir=work) for one in lesions]
    return [float(np.mean([run.aurocs(part).mean() for part in ("inner", "outer")])) for run in runs]


def truth_of(candidate: Candidate, normals: ImageSet, test: ImageSet) -> float:
    """Test AUROC, mean over seeds, as the ledger's runs are made."""
    found = []
    for seed in SEEDS:
        detector = detector_class(candidate.method)(candidate.settings(), seed=seed).fit(normals)
        found.append(image_metrics(test.labels, detector.score(test.images), n_boot=0)["auroc"])
    return fmean(found)


def compared(rows: Sequence[Mapping[str, Any]], key: str = "lesion") -> dict[str, Any] | None:
    """Rank agreement over rows, and what the choice would have cost."""
    lesion, truth = (np.array([r[k] for r in rows]) for k in (key, "truth"))
    if len(rows) < 3 or not np.ptp(lesion) or not np.ptp(truth):
        return None
    found: Agreement = agreement(lesion, truth)
    chosen = int(lesion.argmax())
    return {
        **found._asdict(), "choice": rows[chosen]["name"], "truth_of_choice": float(truth[chosen]),
        "best": rows[int(truth.argmax())]["name"], "truth_of_best": float(truth.max()),
        "truth_of_any": float(truth.mean()),
    }  # fmt: skip


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """All agreements of one set."""
    rows_of = {
        "all untrained rows": [r for r in rows if r["group"] == "row"],
        **{f"variants of {m}": [r for r in rows if r["group"] == m] for m in FAMILIES},
    }
    made = {name: compared(of) for name, of in rows_of.items()}
    trained = [r for r in rows if r["group"] == "trained"]
    if trained:
        both = [r for r in rows if r["group"] == "row"] + trained
        made["untrained and trained rows, one split"] = compared(both, "lesion_first_split")
        made["trained rows, one split"] = compared(trained, "lesion_first_split")
    return {name: found for name, found in made.items() if found is not None}


class Set:
    """A sample set: its normals with their lesions, its test images, what the ledger holds of it."""

    def __init__(self, name: str, data: str):
        self.name, side = name, MAX_SIZE["cpu"]
        self.normals = load_training(name, data, max_size=side)
        self.test = load(name, "test", data, max_size=side)
        n, volumes = len(self.normals), self.normals.volumes
        self.lesions = [Pasted(self.normals, s, 0) for s in splits(n, SPLITS, 0, volumes)]
        rows = [r for r in Ledger(LEDGER).rows() if r["dataset"] == name and r["preset"] == "cpu"]
        self.today = means(current_lines(rows, "cpu"))
        last = {(r["method"], r["seed"]): r for r in rows if "ablation" not in r and r["method"] in TRAINED}
        self.earlier = means(last.values())

    def row(self, group: str, c: Candidate, work: Path, kept: Mapping[str, Any] | None) -> dict[str, Any]:
        """One candidate; of trained ones the first split alone. `kept`: its row of an earlier run."""
        of = lesion_aurocs(c, self.lesions[:1] if group == "trained" else self.lesions, work)
        if not c.changes and c.method in self.today:
            truth, source = self.today[c.method], "ledger"
        elif group == "trained":
            truth, source = self.earlier[c.method], "ledger, an earlier revision"
        else:
            source = "measured here"
            truth = truth_of(c, self.normals, self.test) if kept is None else kept["truth"]
        print(f"{self.name} {c.name}: lesions {fmean(of):.3f}, truth {truth:.3f} ({source})", flush=True)
        return {
            "set": self.name, "group": group, "name": c.name, "family": c.family,
            "lesion": None if group == "trained" else fmean(of), "lesion_first_split": of[0],
            "truth": truth, "truth_from": source,
        }  # fmt: skip


def means(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean AUROC over seeds, by method; of weights other than none nothing is taken."""
    by_method: dict[str, list[float]] = {}
    for r in lines:
        if r["weights"].startswith("none"):
            by_method.setdefault(r["method"], []).append(r["auroc"])
    return {method: fmean(values) for method, values in by_method.items()}


def interval(value: float, ends: Sequence[float]) -> str:
    """ρ with its interval."""
    return f"{value:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"


def summary(results: Mapping[str, Any]) -> list[str]:
    """Over all groups of a kind: how well orders agree, what choosing gained, and what it left."""
    found = [(name, g) for made in results["agreement"].values() for name, g in made.items()]
    kinds = {
        "untrained rows, of different kinds": [g for name, g in found if name == "all untrained rows"],
        "variants of one untrained method": [g for name, g in found if name.startswith("variants")],
        "untrained and trained rows": [g for name, g in found if name.startswith("untrained and")],
        "trained rows": [g for name, g in found if name.startswith("trained")],
    }
    lines = [
        "| candidates | groups | mean Spearman (lowest, highest) | choice above the mean candidate | by "
        "| below the best by |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for kind, of in kinds.items():
        if not of:
            continue
        rho = [g["spearman"] for g in of]
        gained = [g["truth_of_choice"] - g["truth_of_any"] for g in of]
        left = fmean(g["truth_of_best"] - g["truth_of_choice"] for g in of)
        lines.append(
            f"| {kind} | {len(of)} | {fmean(rho):+.2f} ({min(rho):+.2f}, {max(rho):+.2f}) "
            f"| {sum(v > 0 for v in gained)} of {len(of)} | {fmean(gained):+.3f} | {left:.3f} |"
        )
    return [*lines, "", "*By* and *below* are test AUROC, means over the groups.", ""]


def tables(results: Mapping[str, Any]) -> str:
    """Markdown: agreement by set and group, and the rows of `dia select` beside the truth."""
    head = (
        "images",
        "candidates",
        "n",
        "Spearman [95 %]",
        "Kendall [95 %]",
        "choice (truth)",
        "best (truth)",
        "any",
    )
    lines = [*summary(results), "| " + " | ".join(head) + " |", "|---|---|--:|---|---|---|---|--:|"]
    for name, made in results["agreement"].items():
        for group, g in made.items():
            cells = (
                name, group, g["n"], interval(g["spearman"], g["spearman_ci"]),
                interval(g["kendall"], g["kendall_ci"]), f"{g['choice']} ({g['truth_of_choice']:.3f})",
                f"{g['best']} ({g['truth_of_best']:.3f})", f"{g['truth_of_any']:.3f}",
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| candidate | " + " | ".join(SETS) + " |", "|---" * (len(SETS) + 1) + "|"]
    shown = [r for r in results["rows"] if r["group"] in ("row", "trained")]
    for name in dict.fromkeys(r["name"] for r in shown):
        cells = []
        for dataset in SETS:
            found = [r for r in shown if (r["name"], r["set"]) == (name, dataset)]
            cells.append(f"{found[0]['lesion_first_split']:.3f} / {found[0]['truth']:.3f}" if found else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    listed = {r["name"] for r in shown if r["truth_from"].endswith("revision")}
    marked = f" The truth of {', '.join(sorted(listed))} is of an earlier revision." if listed else ""
    missing = [m for m in TRAINED if sum(r["name"] == m for r in shown) < len(SETS)]
    absent = f" Not measured on all sets, for want of time: {', '.join(missing)}." if missing else ""
    return "\n".join(
        [*lines, "", f"Last table: lesion AUROC in the first split / test AUROC.{marked}{absent}"]
    )


def keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what there is."""
    made = {name: groups([r for r in rows if r["set"] == name]) for name in SETS}
    publish("selection", rows, {}, agreement=made, splits=SPLITS, seeds=SEEDS)


def main() -> None:
    """Measures, and draws the page."""
    p = parser(__doc__)
    p.add_argument("--data", default="../shared/data", help="folder of the sample sets")
    p.add_argument("--minutes", type=float, default=0, help="for trained methods in all; 0: none")
    p.add_argument("--work", type=Path, default=Path(".work"), help="keeps what was measured")
    p.add_argument("--page", action="store_true", help="draw the page from the results there are")
    a = p.parse_args()
    if not a.page:
        path = RESULTS / "selection.json"
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        kept = {(r["set"], r["name"]): r for r in before if r["truth_from"] == "measured here"}
        rows = [r for r in before if r["group"] == "trained"]
        for dataset in (Set(name, a.data) for name in SETS):
            wanted = [("row", Candidate(m)) for m in TRIVIAL]
            wanted += [(method, c) for method, of in FAMILIES.items() for c in of]
            rows += [dataset.row(group, c, a.work, kept.get((dataset.name, c.name))) for group, c in wanted]
        keep(rows)
        end = time.monotonic() + 60 * a.minutes
        for method, name in product(TRAINED, SETS):
            done = any((r["set"], r["name"]) == (name, method) for r in rows)
            if not done and time.monotonic() < end:
                rows.append(Set(name, a.data).row("trained", Candidate(method), a.work, None))
                keep(rows)
    update_section(PAGE, "AGREEMENT", tables(json.loads((RESULTS / "selection.json").read_text())))


if __name__ == "__main__":
    main()
