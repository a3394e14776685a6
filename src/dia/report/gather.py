"""What stands beside a model's numbers, and the report page of a model on a set of images.

Gathers what `run_page.py` draws: untrained rows on the same images, copies, balance, direction. Fits
untrained rows; trains nothing else.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from ..benchmark.ledger import LEDGER, Ledger
from ..benchmark.runs import Scored, score_set
from ..core.errors import DataError
from ..data import datasets
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..data.quality import check, has_near_duplicate
from ..detectors import Detector
from ..detectors.registry import TRIVIAL
from ..evaluate.stress import is_of, load_stress
from .bias import best_in_ledger, best_of, direction_of, effect_of_copies, facts_of_set, sentences
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


def training_normals(
    detector: Detector, data_root: str | None, given: str | None = None, normal: str | None = None
) -> ImageSet | None:
    """The normals a model was fitted on, read again; None where it does not say from where.

    Args:
        detector: the model.
        data_root: where known data sets lie, if not where they lay then.
        given: a path or known set's name, to be read in their place.
        normal: of these, the classes that are normal.

    Raises:
        DataError: they cannot be read.
    """
    read = detector.facts_.get("read")
    if given is None and read is None:
        return None
    options = ReadOptions().as_fitted(detector.facts_, detector.shape_)
    if given is not None or read is None:
        return datasets.open_data(str(given), "train", data_root, options, normal=normal).normals()
    root = read["data_root"] or data_root
    train = datasets.open_data(
        detector.facts_["dataset"], read["split"], root, options, normal=read["normal"]
    )
    share = read.get("contamination", 0.0)  # absent in older models
    return train.normals().contaminated(train.anomalies(), share, detector.seed)


def beside(
    detector: Detector,
    test: ImageSet,
    metrics: Mapping[str, Any],
    *,
    dataset: str,
    normal: str | None,
    data_root: str | None,
    given: str | None,
    ledger: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What `dia evaluate` shows beside its numbers: `best_untrained`, the facts of the set, `sentences`.

    The best untrained row is fitted on the normals that were given; else it is the ledger's, of the same
    images; else it is fitted on those the model says it was fitted on; else it is not known.
    """
    normals, best = None, None
    try:
        normals = training_normals(detector, data_root, given, normal)
    except DataError as error:
        if given:
            raise DataError(f"--normals: {error}") from error
        say(f"the training images are not where the model was fitted ({error})")
    if not given and (file := Path(ledger or LEDGER)).exists():
        identity = f"{detector.facts_.get('train_sha256', '')[:32]}{test.sha256()[:32]}"
        best = best_in_ledger(Ledger(file).rows(), identity)
        if best:
            best["source"] = f"on the same images, in {file}"
    if best is None and normals is not None:
        say(
            f"fitting the {len(TRIVIAL)} untrained rows on {len(normals)} normal images; --compare false "
            "leaves them out"
        )
        best = best_of(compare_trivial(normals, test, detector.seed), "fitted on the same normals")
    facts = facts_of_set(test, normals, direction_of(dataset, normal))
    return {"best_untrained": best, **facts, "sentences": sentences(facts, metrics, best, detector.method)}


def check_data(a: Namespace, options: ReadOptions) -> dict[str, Any]:
    """`dia data check`, with the effect of copies on the AUROC of a run, scores or an untrained row."""
    if sum(x is not None for x in (a.run, a.scores, a.row)) > 1:
        raise DataError("--run, --scores and --row are three ways to one thing; give one of them")
    sets = datasets.open_splits(a.name, a.data_root, options)
    result = check(sets)
    if a.run is None and a.scores is None and a.row is None:
        return result
    if not {"train", "test"} <= set(sets):
        raise DataError(f"{a.name}: needs a train and a test split to see what copies change")
    normals, test, labels = sets["train"].normals(), sets["test"], sets["test"].labels
    if labels is None or not 0 < labels.sum() < len(test):
        raise DataError(f"{a.name}: the test split needs labels of both classes; see --normal")
    if normals.shape[2] != test.shape[2]:
        normals, test = normals.with_channels(1), test.with_channels(1)
    which, scores = _scores(a, normals, test, options)
    result["effect_of_copies"] = {
        "scores": which,
        **effect_of_copies(labels, scores, has_near_duplicate(test, normals)),
    }
    return result


def _scores(a: Namespace, normals: ImageSet, test: ImageSet, options: ReadOptions) -> tuple[str, np.ndarray]:
    if a.scores is not None:
        return a.scores, scores_by_name(Path(a.scores), test.names)
    if a.row is not None:
        if a.row not in TRIVIAL:
            raise DataError(f"--row {a.row}: not an untrained row; there are: {', '.join(TRIVIAL)}")
        h, w, _ = normals.shape
        return a.row, TRIVIAL[a.row](device="cpu").fit(normals).score(test.resized(h, w))
    detector = Detector.load(a.run, device="cpu")
    own = datasets.open_data(a.name, "test", a.data_root, options.as_fitted(detector.facts_, detector.shape_))
    return a.run, detector.score(own)


def scores_by_name(path: Path, names: Sequence[str]) -> np.ndarray:
    """Scores `(N,)` of these images from a file that `dia score` wrote.

    Raises:
        DataError: no such file, not of this form, or an image without a score.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = (
                list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
            )
        found = {row["path"]: float(row["score"]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a file of scores by `dia score` ({error})") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{path}: no score of {missing[0]} and {len(missing) - 1} more of {len(names)} test images; "
            "score the same split of the same data"
        )
    return np.array([found[name] for name in names])
