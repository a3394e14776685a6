"""Fits detectors, scores test sets, and keeps the ledger: one line per (data set, method, settings, seed).

Knows detectors and metrics; test labels are used for the numbers in the line and for nothing before them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.imageset import DataError, ImageSet
from ..detectors import Detector, detector_class
from ..presets import settings
from ..settings import replaced
from .ledger import Ledger, environment, peak_memory_mb, reset_peak_memory
from .metrics import image_metrics, pixel_metrics


@dataclass(frozen=True, eq=False)
class Scored:
    """A detector's output on one set of images.

    Args:
        scores: `(N,)`.
        heatmaps: `(N, H, W)` or None.
        images_per_second: of scoring alone.
        metrics: image and, with masks and heatmaps, pixel metrics; None without labels of both classes.
    """

    scores: np.ndarray
    heatmaps: np.ndarray | None
    images_per_second: float
    metrics: dict[str, Any] | None


def score_set(detector: Detector, images: ImageSet, *, heatmaps: bool = True, n_boot: int = 2000) -> Scored:
    """Scores a set, and measures against its labels and masks where it has them."""
    detector.score(images.subset(slice(0, 1)))  # first use of a network is slow, and not what is measured
    start = time.perf_counter()
    scores = detector.score(images)
    speed = len(images) / (time.perf_counter() - start)
    maps = detector.heatmap(images) if heatmaps else None
    metrics = None
    if images.labels is not None and 0 < images.labels.sum() < len(images):
        metrics = image_metrics(images.labels, scores, n_boot=n_boot)
        if images.masks is not None and maps is not None and images.masks.any():
            metrics |= pixel_metrics(images.masks, maps)
    return Scored(scores, maps, speed, metrics)


def facts_of(detector: Detector, dataset: str, preset: str, normals: ImageSet) -> dict[str, Any]:
    """What a saved run remembers of how it came about."""
    return {
        "dataset": dataset,
        "preset": preset,
        "train_sha256": normals.sha256(),
        "weights": detector.weights_source(),
        **environment(),
    }


def record(detector: Detector, scored: Scored, test: ImageSet, dataset: str) -> dict[str, Any]:
    """The ledger's line for a fitted detector with `facts_` and its scores on a labelled test set."""
    if scored.metrics is None:
        raise DataError(f"{dataset}: the test set needs labels of both classes for a ledger line")
    now = environment()
    facts = detector.facts_
    return {
        "dataset": dataset,
        "method": detector.method,
        "preset": facts["preset"],
        "seed": detector.seed,
        **scored.metrics,
        "n_train": detector.n_train_,
        "n_calibration": detector.n_calibration_,
        "n_test": len(test),
        "image_shape": list(detector.shape_),
        "fit_seconds": round(detector.fit_seconds_, 2),
        "score_images_per_second": round(scored.images_per_second, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "device": now["device"],
        "cpu_count": now["cpu_count"],
        "weights": facts["weights"],
        "data_sha256": f"{facts['train_sha256'][:32]}{test.sha256()[:32]}",
        "settings_hash": detector.settings_hash(),
        "commit": now["commit"],
        "versions": now["versions"],
        **({"adapted": facts["adapted"]} if facts.get("adapted") else {}),
    }


def scores_path(folder: Path, line: Mapping[str, Any]) -> Path:
    """Where the raw scores of a ledger line lie."""
    kind = line["method"].replace(":", "_")
    parts = line["dataset"], kind, line["settings_hash"], line["data_sha256"][:8], line["seed"]
    return folder / f"{'-'.join(map(str, parts))}.npz"


def keep_scores(path: Path, scores: np.ndarray, test: ImageSet) -> None:
    """Writes `scores` float64 and `labels` int8, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}")
    np.savez_compressed(new, scores=scores, labels=np.asarray(test.labels))
    new.replace(path)


def run(
    dataset: str,
    normals: ImageSet,
    test: ImageSet,
    method: str,
    *,
    preset: str = "cpu",
    seed: int = 0,
    device: str = "auto",
    workdir: Path,
    ledger: Ledger | None = None,
    changes: Mapping[str, Any] | None = None,
    scores: Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_fitted: Callable[[Detector, Scored], None] | None = None,
) -> Mapping[str, Any]:
    """Fits one method on `normals`, measures it on `test`, writes the line; a line already there is returned.

    Args:
        changes: settings by dotted name that differ from the preset's.
        scores: folder in which the raw scores and labels are kept too, for paired comparisons.
        about: further fields of the line.
        workdir: shares finished stages between methods, and an interrupted fit goes on from there.
    """
    cls = detector_class(method)
    wanted = settings(cls.Settings, preset)
    detector = cls(replaced(wanted, changes) if changes else wanted, seed=seed, device=device)
    identity = {
        "dataset": dataset,
        "method": method,
        "settings_hash": detector.settings_hash(),
        "seed": seed,
        "data_sha256": f"{normals.sha256()[:32]}{test.sha256()[:32]}",
    }
    made = None if ledger is None else ledger.find(**identity)
    if made and (scores is None or scores_path(scores, made).exists()):
        return made
    reset_peak_memory()
    detector.facts_ = facts_of(detector, dataset, preset, normals)
    detector.fit(normals, workdir=workdir, resume=True, progress=progress)
    scored = score_set(detector, test)
    line = record(detector, scored, test, dataset) | dict(about or {})
    if scores is not None:
        keep_scores(scores_path(scores, line), scored.scores, test)
    if ledger is not None:
        ledger.append(line)
    if on_fitted is not None:
        on_fitted(detector, scored)
    return line
