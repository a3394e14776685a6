"""Fits detectors, scores test sets, and keeps the ledger: one line per (data set, method, settings, seed).

Knows detectors and metrics; test labels are used for the numbers in the line and for nothing before them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.environment import environment, peak_memory_mb, reset_peak_memory
from ..core.errors import DataError
from ..core.settings import changes_from, from_dict
from ..core.storage import locked
from ..data.imageset import ImageSet
from ..detectors import DIA, Detector
from ..detectors.registry import detector_class, wanted_settings
from ..detectors.saving import OWN, fingerprint, identity_of, sha256_of
from ..evaluate.metrics import image_metrics, pixel_metrics
from .ledger import Ledger, identity

OWN_WEIGHTS = "dia"


@dataclass(frozen=True, eq=False)
class Scored:
    """A detector's output on one set of images.

    Args:
        scores: `(N,)`.
        heatmaps: `(N, H, W)` or None.
        images_per_second: of scoring, with the heatmaps where they were made.
        metrics: image and, with masks and heatmaps, pixel metrics; None without labels of both classes.
    """

    scores: np.ndarray
    heatmaps: np.ndarray | None
    images_per_second: float
    metrics: dict[str, Any] | None


def score_set(detector: Detector, images: ImageSet, *, heatmaps: bool = True, n_boot: int = 2000) -> Scored:
    """Scores a set, and measures against its labels and masks where it has them.

    Args:
        detector: fitted.
        images: N images in the shape that was fitted.
        heatmaps: make them in the same pass, where the method has them.
        n_boot: resamples of each confidence interval.

    Returns:
        Scores, heatmaps, speed and metrics.
    """
    first = images.subset(slice(0, 1))  # first use of a network is slow, and not what is measured
    detector.detect(first, heatmaps=heatmaps)
    start = time.perf_counter()
    scores, maps, _ = detector.detect(images, heatmaps=heatmaps)
    speed = len(images) / (time.perf_counter() - start)
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
    data = f"{facts['train_sha256'][:32]}{test.sha256()[:32]}"
    return {
        **described(dataset, detector, facts["preset"], data),
        **scored.metrics,
        "n_train": detector.n_train_,
        "n_calibration": detector.n_calibration_,
        "n_test": len(test),
        "image_shape": list(detector.shape_),
        "size": detector.side(),
        "fit_seconds": round(detector.fit_seconds_, 2),
        "score_images_per_second": round(scored.images_per_second, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "threads": torch.get_num_threads(),
        "device": now["device"],
        "cpu_count": now["cpu_count"],
        "weights": facts["weights"],
        "settings_hash": detector.settings_hash(),
        "commit": now["commit"],
        "versions": now["versions"],
        **{name: facts[name] for name in ("adapted", "matched") if facts.get(name)},
    }


def described(
    dataset: str, detector: Detector, preset: str, data_sha256: str, own: Detector | None = None
) -> dict[str, Any]:
    """What a line says of a run before its numbers: the fields of `ledger.IDENTITY`, and `weights_kind`.

    Args:
        dataset: its name.
        detector: fitted or not; its settings are what is run.
        preset: which the settings are compared with.
        data_sha256: of training normals and test images, 32 hex digits each.
        own: the detector whose encoder is meant by the weights `dia`; not needed once these are `dia:RUN`.

    Returns:
        `settings` holds what differs from the preset. Weights of a file are `sha256:…` there. Those of a run
        are `dia`, and `encoder` says how that run was made.
    """
    s, base = detector.s, wanted_settings(detector.method, preset)
    given = getattr(s, "weights", "none")
    kind = weights_kind(given)
    made: dict[str, Any] = {
        "dataset": dataset, "method": detector.method, "revision": detector.revision, "preset": preset,
    }  # fmt: skip
    if kind in ("dia", "file"):
        s = replace(s, weights=OWN_WEIGHTS if kind == "dia" else identity_of(given))
    made |= {"settings": changes_from(s, base), "weights_kind": kind}
    if kind == "dia":
        if given.startswith(OWN):
            made["encoder"] = _encoder_of(Path(given.removeprefix(OWN)), preset)
        elif own is not None:
            made["encoder"] = _encoder(own, preset, data_sha256)
    return made | {"holdout": detector.holdout, "seed": detector.seed, "data_sha256": data_sha256}


def full_settings(line: Mapping[str, Any]) -> Any:
    """The whole settings of a line's run, as they are written today; None where they are not known.

    Two lines may name the same settings in two ways, such as by presets that do not differ for a method.
    """
    if line.get("settings") is None:
        return None
    try:
        if line["revision"] != detector_class(line["method"]).revision:
            return None
        return _full_settings(line["method"], line["preset"], json.dumps(line["settings"], sort_keys=True))
    except DataError:  # a method or a setting that is gone
        return None


@lru_cache(maxsize=1024)  # many lines are of few settings
def _full_settings(method: str, preset: str, changes: str) -> Any:
    return wanted_settings(method, preset, json.loads(changes))


def weights_kind(weights: str) -> str:
    """`none`, `imagenet`, `dia` or `file`, of a setting `weights`."""
    if weights in ("none", "imagenet"):
        return weights
    return "dia" if weights == OWN_WEIGHTS or weights.startswith(OWN) else "file"


def _encoder(own: Detector, preset: str, train_sha256: str) -> dict[str, Any]:
    """How the encoder that others start from was made."""
    return {
        "method": own.method,
        "revision": own.revision,
        "settings": changes_from(own.s, wanted_settings(own.method, preset)),
        "seed": own.seed,
        "train_sha256": train_sha256[:32],
    }


def _encoder_of(run: Path, preset: str) -> dict[str, Any]:
    """The same of a saved run; where its folder does not say, the sha256 of its weights."""
    try:
        config = json.loads((run / "config.json").read_text())
        own = detector_class(config["method"])(seed=config["seed"])
        own.settings = from_dict(own.Settings, config["settings"])
        return _encoder(own, preset, config["facts"]["train_sha256"]) | {
            "revision": config.get("revision", 1)
        }
    except (OSError, ValueError, KeyError):  # the folder is gone, or was fitted without these facts
        file = run / "weights.safetensors"
        return {"weights": f"sha256:{sha256_of(file)}" if file.is_file() else str(run)}


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
    encoder: Mapping[str, Any] | None = None,
    scores: Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_fitted: Callable[[Detector, Scored], None] | None = None,
) -> Mapping[str, Any]:
    """Fits one method on `normals`, measures it on `test`, writes the line; a line already there is returned.

    Args:
        changes: settings by dotted name that differ from the preset's. `weights` may be `dia` here: the
            encoder of `dia` with this preset and seed, fitted on the same normals before.
        encoder: that `dia`'s own changes, likewise.
        scores: folder in which the raw scores and labels are kept too, for paired comparisons.
        about: further fields of the line.
        workdir: shares finished stages between methods, and an interrupted fit goes on from there.
    """
    wanted = wanted_settings(method, preset, changes)
    own = DIA(wanted_settings(DIA.method, preset, encoder), seed=seed, device=device)
    data = f"{normals.sha256()[:32]}{test.sha256()[:32]}"
    asked = described(dataset, detector_class(method)(wanted, seed=seed), preset, data, own)
    # of several processes that want this run at once, the others find its line
    with locked(workdir / "locks" / fingerprint(identity(asked))):
        made = None if ledger is None else ledger.find(asked)
        if made and (scores is None or scores_path(scores, made).exists()):
            return made
        start, cpu = time.perf_counter(), time.process_time()
        if getattr(wanted, "weights", None) == OWN_WEIGHTS:
            own.facts_ = facts_of(own, dataset, preset, normals)
            wanted = replace(wanted, weights=f"{OWN_WEIGHTS}:{_kept(own, normals, workdir, progress)}")
        reset_peak_memory()
        detector = detector_class(method)(wanted, seed=seed, device=device)
        detector.facts_ = facts_of(detector, dataset, preset, normals)
        detector.fit(normals, workdir=workdir, resume=True, progress=progress)
        wants_maps = test.masks is not None or on_fitted is not None
        scored = score_set(detector, test, heatmaps=wants_maps)
        line = record(detector, scored, test, dataset) | dict(about or {})
        line["run_seconds"] = round(time.perf_counter() - start, 2)
        line["cpu_seconds"] = round(time.process_time() - cpu, 2)  # of all threads: other work counts less
        if scores is not None:
            keep_scores(scores_path(scores, line), scored.scores, test)
        if ledger is not None:
            ledger.append(line)
        if on_fitted is not None:
            on_fitted(detector, scored)
        return line


def current_lines(
    rows: Sequence[Mapping[str, Any]],
    preset: str,
    *,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Mapping[str, Any]]:
    """Of a ledger's lines those that a benchmark with this preset makes today: one for each run.

    Left out are ablations, lines of earlier settings, of data other than the newest line's, and of methods
    that are no longer there. Of a run made twice the later line counts.

    Args:
        rows: oldest first.
        preset: of the settings.
        datasets: all where None.
        methods: likewise.
        changes: of settings by dotted name, by method.
    """
    wanted: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for r in rows:
        asked = r["dataset"] in (datasets or [r["dataset"]]) and r["method"] in (methods or [r["method"]])
        if not asked or r["preset"] != preset or "ablation" in r:
            continue
        if r.get("settings") is not None and identity(r) == _identity_today(r, changes or {}):
            wanted[r["dataset"], r["method"], r["weights_kind"], r["seed"]] = r
    newest = {r["dataset"]: r["data_sha256"] for r in rows if any(r is w for w in wanted.values())}
    return [r for r in wanted.values() if r["data_sha256"] == newest[r["dataset"]]]


def _identity_today(line: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The identity that such a line with the same weights would have now; None if the method is gone."""
    method, preset, data = line["method"], line["preset"], line["data_sha256"]
    try:
        wanted = wanted_settings(method, preset, changes.get(method))
    except DataError:
        return None
    if hasattr(wanted, "weights"):
        weights = line["settings"].get("weights", wanted_settings(method, preset).weights)
        wanted = replace(wanted, weights=weights)
    own = DIA(wanted_settings(DIA.method, preset, changes.get(DIA.method)), seed=line["seed"])
    detector = detector_class(method)(wanted, seed=line["seed"])
    return identity(described(line["dataset"], detector, preset, data, own))


def _kept(own: Detector, normals: ImageSet, workdir: Path, progress: bool) -> Path:
    """The folder of this detector fitted on these normals, made if absent."""
    folder = workdir / f"own-{fingerprint(own.settings_hash(), own.seed, normals.sha256())}"
    with locked(workdir / "locks" / folder.name):
        if not folder.exists():
            own.fit(normals, workdir=workdir, resume=True, progress=progress).save(folder)
    return folder
