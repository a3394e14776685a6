"""Fits detectors, scores test sets, and keeps the ledger: one line per (data set, method, settings, seed).

Knows detectors and metrics; test labels are used for the numbers in the line and for nothing before them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from ..core.environment import environment, peak_memory_mb, reset_peak_memory
from ..core.errors import DataError, first_line
from ..core.settings import changes_from, from_dict
from ..core.storage import locked
from ..data.imageset import ImageSet
from ..detectors import DIA, Detector
from ..detectors.registry import detector_class, wanted_settings
from ..detectors.saving import OWN, fingerprint, identity_of, sha256_of
from ..evaluate.metrics import image_metrics, pixel_metrics
from ..features.package import LITE
from ..features.shared import Spent, saved
from .ledger import Ledger, identity

OWN_WEIGHTS = "dia"


@dataclass(frozen=True, eq=False)
class Scored:
    """A detector's output on one set of images.

    Args:
        scores: `(N,)`.
        heatmaps: `(N, H, W)` or None.
        images_per_second: speed of scoring, with the heatmaps if they were made; features that were shared
            count as if they were computed.
        metrics: image and, with masks and heatmaps, pixel metrics; None without labels of both classes.
    """

    scores: np.ndarray
    heatmaps: np.ndarray | None
    images_per_second: float
    metrics: dict[str, Any] | None


def score_set(detector: Detector, images: ImageSet, *, heatmaps: bool = True, n_boot: int = 2000) -> Scored:
    """Scores a set, and measures the scores against its labels and masks if it has them.

    Args:
        detector: fitted.
        images: N images in the shape that was fitted.
        heatmaps: make heatmaps in the same pass, if the method has them.
        n_boot: resamples of each confidence interval.

    Returns:
        Scores, heatmaps, speed and metrics.
    """
    first = images.subset(slice(0, 1))  # first use of a network is slow, and not what is measured
    detector.detect(first, heatmaps=heatmaps)
    start = Spent.now() + saved()
    scores, maps, _ = detector.detect(images, heatmaps=heatmaps)
    speed = len(images) / (Spent.now() + saved() - start).wall
    metrics = None
    if images.labels is not None and 0 < images.labels.sum() < len(images):
        metrics = image_metrics(images.labels, scores, images.unit_codes, n_boot=n_boot)
        if images.masks is not None and maps is not None and images.masks.any():
            metrics |= pixel_metrics(images.masks, maps)
    return Scored(scores, maps, speed, metrics)


def facts_of(detector: Detector, dataset: str | None, preset: str, normals: ImageSet) -> dict[str, Any]:
    """Returns the facts about its making that a saved run keeps.

    Args:
        detector: to be fitted.
        dataset: name or path of the training data; None where they cannot be read again.
        preset: of the settings.
        normals: the training images.

    Returns:
        Plain values by name.
    """
    return {
        "dataset": dataset, "preset": preset, "train_sha256": normals.sha256(),
        "weights": detector.weights_source(), **environment(),
    }  # fmt: skip


def images_sha256(normals: str, test: str) -> str:
    """Joins the hashes of training normals and test images to a line's `data_sha256`, of 64 hex digits.

    Args:
        normals: `ImageSet.sha256()` of the training normals.
        test: likewise, of the test images.

    Returns:
        The first 32 digits of each.
    """
    return normals[:32] + test[:32]


def record(detector: Detector, scored: Scored, test: ImageSet, dataset: str) -> dict[str, Any]:
    """Returns the ledger's line of a fitted detector on a labelled test set.

    Args:
        detector: fitted, with `facts_`.
        scored: its output on the test set.
        test: the test images, with labels of both classes.
        dataset: name of the data set.

    Returns:
        The line.

    Raises:
        DataError: the test set has no labels of both classes.
    """
    if scored.metrics is None:
        raise DataError(f"{dataset}: the test set needs labels of both classes for a ledger line")
    now, facts = environment(), detector.facts_
    data = images_sha256(facts["train_sha256"], test.sha256())
    return {
        **described(dataset, detector, facts["preset"], data), **scored.metrics,
        "n_train": detector.n_train_, "n_calibration": detector.n_calibration_, "n_test": len(test),
        **({"n_patients": test.n_patients} if test.n_patients else {}),
        "image_shape": list(detector.shape_), "size": detector.side(),
        "fit_seconds": round(detector.fit_seconds_, 2),
        "score_images_per_second": round(scored.images_per_second, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1), "threads": torch.get_num_threads(),
        "device": now["device"], "cpu_count": now["cpu_count"], "weights": facts["weights"],
        "settings_hash": detector.settings_hash(), "commit": now["commit"], "versions": now["versions"],
        **{name: facts[name] for name in ("adapted", "matched") if facts.get(name)},
    }  # fmt: skip


def described(
    dataset: str, detector: Detector, preset: str, data_sha256: str, own: Detector | None = None
) -> dict[str, Any]:
    """Returns the fields of a line that describe its run: those of `ledger.IDENTITY`, and `weights_kind`.

    Args:
        dataset: its name.
        detector: fitted or not, with the run's settings.
        preset: the preset that the settings are compared with.
        data_sha256: of `images_sha256`.
        own: the detector whose encoder the weights `dia` mean; not needed for weights `dia:RUN`.

    Returns:
        The fields by name. `settings` holds the values that differ from the preset; weights from a file are
        `sha256:…` there, weights of a run are `dia`, and then `encoder` describes that run.
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


def planned(
    dataset: str,
    method: str,
    preset: str,
    seed: int,
    data_sha256: str,
    changes: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the fields of `described` for a run that is not made yet.

    Args:
        dataset: its name.
        method: a name of the registry.
        preset: of the settings.
        seed: of the run.
        data_sha256: of `images_sha256`.
        changes: settings by dotted name that differ from the preset's.
        encoder: likewise, of the `dia` whose encoder the weights `dia` name.

    Returns:
        The fields by name.
    """
    own = DIA(wanted_settings(DIA.method, preset, encoder), seed=seed)
    detector = detector_class(method)(wanted_settings(method, preset, changes), seed=seed)
    return described(dataset, detector, preset, data_sha256, own)


def full_settings(line: Mapping[str, Any]) -> Any:
    """Returns the whole settings of a line's run, as they are written today; None if they are not known.

    Two lines may name the same settings in two ways, such as by presets that do not differ for a method.
    """
    try:
        if line.get("settings") is None or line["revision"] != detector_class(line["method"]).revision:
            return None
        return _full_settings(line["method"], line["preset"], json.dumps(line["settings"], sort_keys=True))
    except DataError:  # a method or a setting that is gone
        return None


@lru_cache(maxsize=1024)  # many lines are of few settings
def _full_settings(method: str, preset: str, changes: str) -> Any:
    return wanted_settings(method, preset, json.loads(changes))


def weights_kind(weights: str) -> str:
    """Returns the kind of a setting `weights`: `none`, `imagenet`, `lite0` to `lite2`, `dia` or `file`."""
    if weights in ("none", "imagenet", *LITE):
        return weights
    return "dia" if weights == OWN_WEIGHTS or weights.startswith(OWN) else "file"


def _encoder(own: Detector, preset: str, train_sha256: str) -> dict[str, Any]:
    """Describes the run of the encoder that other methods start from."""
    return {
        "method": own.method,
        "revision": own.revision,
        "settings": changes_from(own.s, wanted_settings(own.method, preset)),
        "seed": own.seed,
        "train_sha256": train_sha256[:32],
    }


def _encoder_of(run: Path, preset: str) -> dict[str, Any]:
    """Describes a saved run; if its folder does not tell, by the sha256 of its weights."""
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
    """Returns the file of a line's raw scores, which holds `scores` float64 and `labels` int8.

    Where patients, volumes or `DataSet.interval_by` are known, it holds `units` too: whole numbers, equal for
    the images of one. Files from before a set had `interval_by` are without; `datasets.units_for` tells then.

    Args:
        folder: of raw scores.
        line: of the ledger.

    Returns:
        The path of an .npz file.
    """
    kind = line["method"].replace(":", "_")
    parts = line["dataset"], kind, line["settings_hash"], line["data_sha256"][:8], line["seed"]
    return folder / f"{'-'.join(map(str, parts))}.npz"


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of raw scores.

    Args:
        path: of `scores_path`.

    Returns:
        `scores` `(N,)`, `labels` `(N,)` and, where they were kept, `units` `(N,)`.

    Raises:
        DataError: it is damaged, or no such file.
    """
    try:
        with np.load(path) as kept:
            found = {name: kept[name] for name in ("scores", "labels", "units") if name in kept}
        if not found["scores"].shape == found["labels"].shape == (found["labels"].size,):
            raise ValueError(f"{found['scores'].shape} scores of {found['labels'].shape} labels")
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: no raw scores ({first_line(error)}); delete it, and `dia benchmark` makes them anew"
        ) from error
    return found


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
    units: np.ndarray | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_fitted: Callable[[Detector, Scored], None] | None = None,
) -> Mapping[str, Any]:
    """Fits one method, measures it on a test set and writes the ledger's line, unless the line is there.

    Args:
        dataset: name of the data set.
        normals: training images.
        test: test images with labels of both classes.
        method: a name of the registry.
        preset: of the settings.
        seed: of every random number.
        device: auto, cpu, cuda or cuda:N.
        workdir: folder of finished stages, which methods share and an interrupted fit goes on from.
        ledger: where the line is looked for and written.
        changes: settings by dotted name that differ from the preset's. The value `dia` of `weights` means the
            encoder of `dia` with this preset and seed, which is fitted on the same normals first.
        encoder: changes of that `dia`'s settings, likewise.
        scores: folder in which raw scores and labels are kept for paired comparisons.
        units: `(N,)` whole numbers, kept with them where test images name no patient or volume: equal for
            images that count as one in intervals.
        about: further fields of the line.
        progress: show progress bars.
        on_fitted: called with the detector and its output on the test set, if the run is made now.

    Returns:
        The line.

    Raises:
        DataError: no such method or setting, or images that do not fit.
    """
    asked = planned(
        dataset, method, preset, seed, images_sha256(normals.sha256(), test.sha256()), changes, encoder
    )
    # of several processes that want this run at once, the others find its line
    with locked(workdir / "locks" / fingerprint(identity(asked))):
        made = None if ledger is None else ledger.find(asked)
        if made and (scores is None or scores_path(scores, made).exists()):
            return made
        start, before = Spent.now(), saved()
        wanted = wanted_settings(method, preset, changes)
        if getattr(wanted, "weights", None) == OWN_WEIGHTS:
            own = DIA(wanted_settings(DIA.method, preset, encoder), seed=seed, device=device)
            own.facts_ = facts_of(own, dataset, preset, normals)
            wanted = replace(wanted, weights=f"{OWN_WEIGHTS}:{_kept(own, normals, workdir, progress)}")
        reset_peak_memory()
        detector = detector_class(method)(wanted, seed=seed, device=device)
        detector.facts_ = facts_of(detector, dataset, preset, normals)
        detector.fit(normals, workdir=workdir, resume=True, progress=progress)
        fit_saved = saved() - before
        scored = score_set(detector, test, heatmaps=test.masks is not None or on_fitted is not None)
        line = record(detector, scored, test, dataset) | dict(about or {})
        here, shared = Spent.now() - start, saved() - before
        line["run_seconds"] = round(here.wall, 2)
        if not detector.resumed_:  # what was spent before an interruption is known by the clock alone
            line["cpu_seconds"] = round(here.processor, 2)
        if shared.wall > 0:  # of features that were computed before: a fit alone has them to pay
            line["shared_seconds"], line["shared_cpu_seconds"] = (
                round(shared.wall, 2),
                round(shared.processor, 2),
            )
            line["fit_seconds"] = round(line["fit_seconds"] + fit_saved.wall, 2)
        if scores is not None:
            path = scores_path(scores, line)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}")  # whole or not at all
            kept: dict[str, Any] = {"scores": scored.scores, "labels": np.asarray(test.labels)}
            if (of := units if test.unit_codes is None else test.unit_codes) is not None:
                kept["units"] = of
            np.savez_compressed(new, **kept)
            new.replace(path)
        if ledger is not None:
            ledger.append(line)
        if on_fitted is not None:
            on_fitted(detector, scored)
        return line


def _kept(own: Detector, normals: ImageSet, workdir: Path, progress: bool) -> Path:
    """Returns the folder of this detector fitted on these normals, and makes it if it is absent."""
    folder = workdir / f"own-{fingerprint(own.settings_hash(), own.seed, normals.sha256())}"
    with locked(workdir / "locks" / folder.name):
        if not folder.exists():
            own.fit(normals, workdir=workdir, resume=True, progress=progress).save(folder)
    return folder


# --- the lines that count ---------------------------------------------------------------------------------


def current_lines(
    rows: Sequence[Mapping[str, Any]],
    preset: str,
    *,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Mapping[str, Any]]:
    """Selects the ledger lines that a benchmark with this preset would make today, one for each run.

    It leaves out ablations, lines of earlier settings, of data other than the newest line's, and of methods
    that are gone. If a run was made twice, the later line counts.

    Args:
        rows: ledger lines, oldest first.
        preset: of the settings.
        datasets: names to select; all if None.
        methods: likewise.
        changes: of settings by dotted name, by method.
        sizes: by data set, the `size` where `changes` has one, see `sized`.

    Returns:
        The lines, in order.
    """
    asked = [r for r in rows if _asked(r, preset, datasets, methods) and "ablation" not in r]
    known = [r for r in asked if r.get("settings") is not None]
    today = [r for r in known if identity(r) == _identity_today(r, changes or {}, sizes or {})]
    wanted = {(r["dataset"], r["method"], r["weights_kind"], weights_of(r), r["seed"]): r for r in today}
    newest = {r["dataset"]: r["data_sha256"] for r in rows if any(r is w for w in wanted.values())}
    return [r for r in wanted.values() if r["data_sha256"] == newest[r["dataset"]]]


def weights_of(line: Mapping[str, Any]) -> str:
    """Tells weights of one kind apart: a file's, or those of an own encoder whatever its seed.

    Args:
        line: of the ledger.

    Returns:
        Eight digits; empty for kinds that are one pair of eyes each, such as lite0 and none.

    Example:
        >>> weights_of({"weights_kind": "file", "settings": {"weights": "sha256:0123456789abcdef"}})
        '01234567'
        >>> weights_of({"weights_kind": "lite0", "settings": {"weights": "lite0"}})
        ''
    """
    if line["weights_kind"] == "file":
        return str((line.get("settings") or {}).get("weights", "")).rpartition(":")[2][:8]
    if encoder := line.get("encoder"):
        return fingerprint(*sorted((k, v) for k, v in encoder.items() if k not in ("seed", "train_sha256")))[
            :8
        ]
    return ""


def open_failures(
    failed: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    preset: str,
    *,
    datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> dict[tuple[str, str, str, int], str]:
    """Selects the failed runs that have no line since.

    Args:
        failed: lines of the file of failures, oldest first.
        lines: of `current_lines`.
        preset: of the settings.
        datasets: names to select; all if None.
        methods: likewise.

    Returns:
        The last reason of each, by data set, method, weights and seed.
    """
    done = {(r["dataset"], r["method"], r["weights_kind"], r["seed"]) for r in lines}
    return {
        (f["dataset"], f["method"], f["weights"], f["seed"]): f["reason"]
        for f in failed
        if _asked(f, preset, datasets, methods)
        and (f["dataset"], f["method"], weights_kind(f["weights"]), f["seed"]) not in done
    }


def _asked(
    row: Mapping[str, Any], preset: str, datasets: Sequence[str] | None, methods: Sequence[str] | None
) -> bool:
    of_set = not datasets or row["dataset"] in datasets
    return row["preset"] == preset and of_set and (not methods or row["method"] in methods)


def sized(changes: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """Returns changes of settings with another `size`, where they change it and there is another.

    Args:
        changes: by dotted name.
        size: in pixels.
    """
    return {**changes, "size": size} if size and "size" in changes else dict(changes)


def _identity_today(
    line: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]
) -> str | None:
    """Returns the identity that a line's run would have now with the same weights; None if it cannot be."""
    method, preset = line["method"], line["preset"]
    own = sized(changes.get(method, {}), sizes.get(line["dataset"]))
    try:
        if hasattr(usual := wanted_settings(method, preset), "weights"):
            own["weights"] = line["settings"].get("weights", usual.weights)
        data, encoder = line["data_sha256"], changes.get(DIA.method)
        return identity(planned(line["dataset"], method, preset, line["seed"], data, own, encoder))
    except DataError:
        return None
