"""From a fitted detector and images to its report page.

Gathers what `run_page.py` draws. Fits the trivial rows; trains nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark.runs import Scored, score_set
from ..data.imageset import ImageSet
from ..detectors import Detector
from ..detectors.registry import TRIVIAL
from ..evaluate.stress import is_of, load_stress
from .bias import best_of, direction_of, facts_of_set
from .bias import sentences as bias_sentences
from .pictures import DISSOLVE_TS
from .run_page import ReportContent, write_report

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
    untrained = method.startswith("trivial:") and method not in CONTROLS
    return {"method": method, "kind": "trivial" if untrained else "control", **metrics}


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
    stress: Path | None = None,
    normals: ImageSet | None = None,
    normal: str | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes the report page of one detector on one set of images, with its stress test if there is one.

    `normals`: those of training, to look for copies of them; `normal`: the classes that were named so;
    `name`: of the detector in `comparison`, where another one has its method; `notes`: to be added.
    """
    scored = scored or score_set(detector, test)
    name = name or detector.method
    facts = detector.facts_
    rows = list(comparison)
    if scored.metrics is not None and rows and name not in {r["method"] for r in rows}:
        rows.insert(0, comparison_row(name, scored.metrics))
    rows = [{**r, "kind": "ours"} if r["method"] == name else r for r in rows]
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
            title=f"{name} on {dataset}",
            method=name,
            dataset=dataset,
            scores=scored.scores,
            names=test.names,
            images=test.images,
            lead=(
                f"{name} was trained on {detector.n_train_} normal images of "
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
            volumes=test.volumes or None,
            dissolve_strip=_strip(detector, test, scored.scores),
            comparison=rows,
            stress=None if stress is None else _stress(stress, detector),
            notes=[*verdict(name, rows), *notes],
            beside=_beside(name, scored.metrics, test, normals, rows, direction_of(dataset, normal)),
        ),
    )


def _stress(path: Path, detector: Detector) -> tuple[dict[str, Any], bytes | None] | None:
    """What `dia stress` left there of this very model, if anything."""
    if not path.exists():
        return None
    made, picture = load_stress(path), path.with_name(f"{path.stem}-lesions.png")
    if not is_of(made, detector):
        warnings.warn(f"{path} is of another model and left out; run `dia stress` anew", stacklevel=3)
        return None
    return made, picture.read_bytes() if picture.exists() else None


def _beside(
    method: str,
    metrics: Mapping[str, Any] | None,
    test: ImageSet,
    normals: ImageSet | None,
    rows: Sequence[Mapping[str, Any]],
    direction: str,
) -> list[str]:
    """What stands beside an AUROC."""
    if metrics is None:
        return []
    facts = facts_of_set(test, normals, direction)
    return bias_sentences(facts, metrics, best_of(rows, "fitted on the same normals"), method)


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
