"""From a fitted detector and a set of images to the report page; and the README's table from the ledger.

Gathers what `evaluate/report.py` draws. Fits the trivial rows; trains nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.imageset import ImageSet
from ..detectors import METHODS, TRIVIAL, Detector
from ..evaluate.benchmark import Scored, score_set
from ..evaluate.ledger import markdown_table, update_section
from ..evaluate.pictures import DISSOLVE_TS
from ..evaluate.report import ReportContent, write_report
from ..presets import settings as preset_settings

CONTROLS = ("dia+", "dia", "csi", "trivial:blur")  # beside the method reported


def compare_trivial(normals: ImageSet, test: ImageSet, seed: int) -> list[dict[str, Any]]:
    """The trivial rows fitted on the same normals and measured on the same images."""
    rows = []
    for method, cls in TRIVIAL.items():
        scored = score_set(cls(seed=seed).fit(normals), test)
        if scored.metrics is not None:
            rows.append(comparison_row(method, scored.metrics))
    return rows


def comparison_row(method: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the report's comparison."""
    return {"method": method, "kind": "control" if method in CONTROLS else "trivial", **metrics}


def examples(scores: np.ndarray, labels: np.ndarray | None, each: int = 2) -> np.ndarray:
    """Indices for a strip: typical normals and clear anomalies; by score alone where there are no labels."""
    order = np.argsort(scores)
    if labels is None or not 0 < labels.sum() < len(labels):
        return np.r_[order[:each], order[-each:][::-1]]
    normal, anomalous = order[labels[order] == 0], order[labels[order] == 1]
    return np.r_[normal[len(normal) // 2 :][:each], anomalous[-each:][::-1]]


def write_run_report(
    path: Path,
    detector: Detector,
    test: ImageSet,
    *,
    dataset: str,
    false_alarm_rate: float,
    comparison: Sequence[dict[str, Any]] = (),
    scored: Scored | None = None,
) -> Path:
    """Writes the report page of one detector on one set of images."""
    scored = scored or score_set(detector, test)
    facts = detector.facts_
    rows = list(comparison)
    if scored.metrics is not None and rows and detector.method not in {r["method"] for r in rows}:
        rows.insert(0, comparison_row(detector.method, scored.metrics))
    rows = [{**r, "kind": "ours"} if r["method"] == detector.method else r for r in rows]
    h, w, c = detector.shape_
    run_facts = [
        ("preset", facts.get("preset", "–")),
        ("trained on", f"{facts.get('dataset', '?')}: {detector.n_train_} normal images of {h}×{w}×{c}"),
        ("held out for calibration", f"{detector.n_calibration_} normal images"),
        ("weights", facts.get("weights", "–")),
        ("seed", detector.seed),
        ("fit", f"{detector.fit_seconds_:.0f} s"),
        ("scoring", f"{scored.images_per_second:.0f} images/s"),
        ("device", facts.get("device", "–")),
        ("commit", facts.get("commit") or "–"),
        ("settings hash", detector.settings_hash()),
        ("training data sha256", facts.get("train_sha256", "–")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items())),
    ]
    return write_report(
        path,
        ReportContent(
            title=f"{detector.method} on {dataset}",
            method=detector.method,
            dataset=dataset,
            scores=scored.scores,
            names=test.names,
            images=test.images,
            lead=(
                f"{detector.method} was trained on {detector.n_train_} normal images of "
                f"{facts.get('dataset', dataset)} and no anomalous ones, calibrated on "
                f"{detector.n_calibration_} further normals, and scored {len(test)} images of {dataset}."
            ),
            facts=run_facts,
            metrics=scored.metrics,
            labels=test.labels if scored.metrics is not None else None,
            p_values=detector.p_values(scored.scores),
            threshold=detector.threshold(false_alarm_rate),
            false_alarm_rate=false_alarm_rate,
            heatmaps=scored.heatmaps,
            masks=test.masks,
            dissolve_strip=_strip(detector, test, scored.scores),
            comparison=rows,
            notes=verdict(detector.method, rows),
        ),
    )


def _strip(detector: Detector, test: ImageSet, scores: np.ndarray) -> list[list[tuple[str, np.ndarray]]]:
    dissolver = getattr(detector, "dissolver_", None)
    if dissolver is None:
        return []
    chosen = test.subset(examples(scores, test.labels))
    dissolved = dissolver.dissolve(chosen.images, DISSOLVE_TS)
    return [
        [(name, image), *((f"t = {t}", d[i]) for t, d in zip(DISSOLVE_TS, dissolved, strict=True))]
        for i, (name, image) in enumerate(zip(chosen.names, chosen.images, strict=True))
    ]


def verdict(method: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Plain words on where the method stands among the rows that need no training."""
    own = next((r for r in rows if r["method"] == method), None)
    untrained = [r for r in rows if r["method"].startswith("trivial:")]
    if own is None or not untrained:
        return []
    best = max(untrained, key=lambda r: r["auroc"])
    if best["auroc"] > own["auroc"]:
        return [
            f"{method} (AUROC {own['auroc']:.3f}) does not beat the best untrained row here, "
            f"{best['method']} ({best['auroc']:.3f})."
        ]
    low = own.get("auroc_ci", [own["auroc"]])[0]
    clear = "more" if best["auroc"] < low else "less"
    return [
        f"{method} (AUROC {own['auroc']:.3f}) stands above the best untrained row, {best['method']} "
        f"({best['auroc']:.3f}), by {clear} than its 95 % interval."
    ]


def readme_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the ledger's `cpu` rows into the README, beside the paper's, and says who beats whom.

    Only lines of the preset as it is now: those of earlier settings stay in the ledger as history.
    """
    hashes = {m: cls(preset_settings(cls.Settings, "cpu")).settings_hash() for m, cls in METHODS.items()}
    rows = [r for r in rows if r["settings_hash"] == hashes.get(r["method"])]
    paper_csv = path.parent / "docs" / "paper_table.csv"
    paper: dict[str, dict[str, tuple[float, float]]] = {}
    if paper_csv.exists():
        with paper_csv.open(newline="") as file:
            for r in csv.DictReader(file):
                cells = paper.setdefault(f"{r['method']}, as printed (ECCV 2024)", {})
                cells[r["dataset"]] = (float(r["auroc"]), float(r["std"]))
    cpu = [r for r in rows if r["preset"] == "cpu"]
    in_paper = {dataset for cells in paper.values() for dataset in cells}
    datasets = [d for d in dict.fromkeys(r["dataset"] for r in cpu) if d in in_paper]
    # a method that is published with pretrained weights belongs in a table that says which it had
    shown = [m for m, cls in METHODS.items() if not cls.pretrained]
    methods = [m for m in shown if any(r["method"] == m for r in cpu)]
    lines = [markdown_table([r for r in cpu if r["dataset"] in datasets], datasets, methods, paper), ""]
    for dataset in datasets:
        of_set = [r for r in cpu if r["dataset"] == dataset]
        means: list[dict[str, Any]] = [
            {"method": m, "auroc": float(np.mean([r["auroc"] for r in of_set if r["method"] == m]))}
            for m in methods
            if any(r["method"] == m for r in of_set)
        ]
        best = max((m for m in means if m["method"].startswith("trivial:")), key=lambda m: m["auroc"])
        for own in (m for m in means if m["method"] in ("dia+", "dia")):
            beats = "beats" if own["auroc"] > best["auroc"] else "does **not** beat"
            lines.append(
                f"- {dataset}: {own['method']} ({own['auroc']:.3f}) {beats} the best untrained row, "
                f"{best['method']} ({best['auroc']:.3f})."
            )
    update_section(path, "RESULTS", "\n".join(lines))
    maps = [r for r in rows if "pixel_auroc" in r]
    table = ["| data set | method | seed | image AUROC | pixel AUROC | PRO |", "|---|---|---|---|---|---|"]
    for row in maps:
        numbers = " | ".join(f"{row[k]:.3f}" for k in ("auroc", "pixel_auroc", "pro"))
        table.append(f"| {row['dataset']} | {row['method']} | {row['seed']} | {numbers} |")
    update_section(path, "HEATMAPS", "\n".join(table if maps else ["No run with masks yet."]))
