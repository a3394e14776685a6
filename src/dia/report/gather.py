"""Gathers the content of reports and of `dia evaluate`: untrained rows, context, the effect of copies.

Fits untrained rows on a model's normals; trains nothing else. `run_page.py` draws the page.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmark.ledger import LEDGER, Ledger
from ..benchmark.runs import Scored, score_set
from ..core.errors import DataError
from ..core.running.progress import Bar
from ..data import datasets
from ..data.formats.spreadsheet import plain_cell
from ..data.imageset import ImageSet
from ..data.layouts import FOLDER
from ..data.options import ReadOptions
from ..detectors import Detector, drift
from ..detectors.registry import TRIVIAL
from ..detectors.saving import is_own, training_set
from ..detectors.teaching.taught import said_of
from ..evaluate import verdict
from ..evaluate.drift_monitor import DriftMonitor
from ..evaluate.learning_curve import Point, learning_curve
from ..evaluate.properties import properties_of
from ..evaluate.quality import check, has_near_duplicate
from ..evaluate.stress import is_of, load_stress
from .context import best_in_ledger, best_of, direction_of, effect_of_copies, facts_of_set, sentences
from .pictures import dissolved_columns
from .run_page import ReportContent, write_report

CONTROLS = ("dia+", "dia", "csi", "trivial:blur")  # rows that are no trivial scores
_SOURCE = "fitted on the same normals"


def compare_trivial(normals: ImageSet, test: ImageSet, seed: int) -> list[dict[str, Any]]:
    """Fits the untrained rows and measures them.

    Args:
        normals: normal images to fit on.
        test: labelled test images in the same shape.
        seed: seed of the fits.

    Returns:
        A row for each, of `comparison_row` with its `scores`; none where the test set lacks a class.
    """
    with Bar("Fitting the untrained rows", len(TRIVIAL), "row") as bar:
        rows = bar.track(TRIVIAL.items())
        scored = {method: score_set(cls(seed=seed).fit(normals), test) for method, cls in rows}
    return [
        comparison_row(m, s.metrics) | {"scores": s.scores}
        for m, s in scored.items()
        if s.metrics is not None
    ]


def comparison_row(method: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the report's comparison.

    Args:
        method: name of the method.
        metrics: at least `auroc`; `auroc_ci` and `pixel_auroc` where known.

    Returns:
        The metrics with `method` and `kind`, "trivial" or "control".
    """
    untrained = method.startswith("trivial:") and method not in CONTROLS
    return {"method": method, "kind": "trivial" if untrained else "control", **metrics}


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
    curve: Sequence[Point] = (),
    normal: str | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Writes the report page of one detector on one set of images.

    Args:
        path: the HTML file.
        detector: fitted, with `facts_`.
        test: images in the shape that was fitted.
        dataset: name or path of the images.
        false_alarm_rate: share of normal images above the threshold, in (0, 1).
        comparison: rows of other methods on the same images, of `comparison_row`.
        scored: output of the detector on the images; computed where None.
        stress: file of `dia stress`; shown where it exists and is of this model.
        normals: normal images of training, to look for copies of them.
        curve: of `curve_of`.
        normal: value of the option `--normal`.
        name: name of the detector in `comparison`, where another row has its method.
        notes: sentences to be added.
        files: the file of each image by its name, where they come from files.

    Returns:
        The path.
    """
    scored = scored or score_set(detector, test)
    name = name or detector.method
    facts = detector.facts_
    rows, said = list(comparison), list[str]()
    if scored.metrics is not None:
        if rows and name not in {r["method"] for r in rows}:
            rows.insert(0, comparison_row(name, scored.metrics))
        of_set = facts_of_set(test, normals, direction_of(dataset, normal))
        paired = any("scores" in r for r in rows)
        said = sentences(of_set, scored.metrics, best_of(rows, _SOURCE), name, compared=paired)
    trained_on = facts.get("dataset") or "images that were given in Python"
    n = detector.n_calibration_
    calibrated = f"calibrated on {n} further normals"
    if at := facts.get("calibrated"):
        calibrated = f"calibrated on {n} other normals ({at.get('on', 'of another site')})"
    elif detector.leaves_one_out:
        calibrated = "calibrated on the same, each judged by the others"
    h, w, c = detector.shape_
    run_facts = [
        ("preset", facts.get("preset", "–")),
        ("trained on", f"{trained_on}: {detector.n_train_} normal images of {h}×{w}×{c}"),
        ("calibration", calibrated),
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
    content = ReportContent(
        title=f"{name} on {dataset}",
        method=name,
        dataset=dataset,
        scores=scored.scores,
        names=test.names,
        images=test.images,
        lead=(
            f"{name} was trained on {detector.n_train_} normal images of {trained_on} and no anomalous ones, "
            f"{calibrated}, and scored {len(test)} images of {dataset}."
            + (f" {said_of(facts['taught'])}" if facts.get("taught") else "")
        ),
        facts=run_facts,
        metrics=scored.metrics,
        labels=test.labels if scored.metrics is not None else None,
        verdict=verdict_of(detector, test, scored, false_alarm_rate, rows, files=files, name=name),
        normal_scores=detector.calibration_.scores,
        p_values=detector.p_values(scored.scores),
        threshold=detector.threshold(false_alarm_rate),
        false_alarm_rate=false_alarm_rate,
        held_out=not detector.leaves_one_out or bool(facts.get("calibrated")),
        heatmaps=scored.heatmaps,
        masks=test.masks,
        volumes=test.volumes or None,
        units=test.unit_codes,
        patients=test.patients or None,
        dissolve_strip=_strip(detector, test, scored.scores),
        comparison=[{**r, "kind": "ours"} if r["method"] == name else r for r in rows],
        stress=None if stress is None else _stress(stress, detector),
        curve=curve,
        notes=notes,
        context=said,
    )
    return write_report(path, content)


def curve_of(detector: Detector, normals: ImageSet, test: ImageSet) -> list[Point]:
    """Fits a model's method and settings anew on fewer of its normals.

    Args:
        detector: fitted or loaded.
        normals: those it was fitted on.
        test: labelled images, of both kinds.

    Returns:
        Points by rising number of normals.
    """

    def fit(some: ImageSet, draw: int) -> Callable[[ImageSet], np.ndarray]:
        made = type(detector)(detector.s, seed=detector.seed, device=detector.device)
        return made.fit(some).score

    return learning_curve(fit, normals, test, fewest=detector.fewest)


def verdict_of(
    detector: Detector,
    test: ImageSet,
    scored: Scored,
    rate: float,
    untrained: Sequence[Mapping[str, Any]] = (),
    *,
    files: Mapping[str, Path] | None = None,
    name: str | None = None,
) -> verdict.Verdict:
    """Judges a result before it is believed.

    With labels, drift is looked for among the normals alone, which must all be like those of training;
    without, half of the images may be anomalous.

    Args:
        detector: fitted or loaded.
        test: the images scored, with labels where they are known.
        scored: the detector's output on them.
        rate: false-alarm rate of the flags, in (0, 1).
        untrained: rows of `compare_trivial`, or others with `method` and `auroc`.
        files: the file of each image by its name, where they come from files.
        name: of the detector among the rows; its method's where None.

    Returns:
        The verdict.
    """
    labels = test.labels if scored.metrics is not None else None
    flagged = scored.scores > detector.threshold(rate)
    which, about, share = np.arange(len(test)), "these images", drift.SHARE
    if labels is not None:
        which, about, share = np.flatnonzero(labels == 0), "the normal images", 0.0
    part = test.subset(which)
    monitor = DriftMonitor(detector, part.names, part.volumes, units=part.units, rate=drift.RATE, share=share)
    if monitor.references:
        monitor.add(part.names, scored.scores[which], drift.acquisition(part.images))
    units = test.unit_codes
    found = [
        verdict.false_alarms(flagged, labels, rate, detector.n_calibration_, units, detector.n_effective_),
        verdict.drift(monitor.verdict(), about),
    ]
    if labels is not None:
        rows = [r for r in untrained if r["method"].startswith(tuple(TRIVIAL))]
        found += verdict.ranking(name or detector.method, labels, scored.scores, rows, units)
        found.append(verdict.properties(labels, scored.scores, properties_of(test, files), units))
    found.append(verdict.sample(test.names, labels, test.volumes, test.patients))
    return verdict.Verdict(found, labels is not None)


def _stress(path: Path, detector: Detector) -> tuple[dict[str, Any], bytes | None] | None:
    """The measurements of `dia stress` and their picture, if the file exists and is of this model."""
    if not path.exists():
        return None
    made, picture = load_stress(path), path.with_name(f"{path.stem}-lesions.png")
    if not is_of(made, detector):
        warnings.warn(f"{path} is of another model and left out; run `dia stress` anew", stacklevel=3)
        return None
    return made, picture.read_bytes() if picture.exists() else None


def _strip(detector: Detector, test: ImageSet, scores: np.ndarray) -> list[list[tuple[str, np.ndarray]]]:
    """Two typical normals and two clear anomalies dissolved; the ends of the ranking without labels."""
    dissolver = getattr(detector, "dissolver_", None)
    if dissolver is None:
        return []
    low = high = np.argsort(scores)
    if test.labels is not None and 0 < test.labels.sum() < len(test):
        normal, high = low[test.labels[low] == 0], low[test.labels[low] == 1]
        low = normal[len(normal) // 2 :]
    chosen = test.subset(np.r_[low[:2], high[-2:][::-1]])
    (_, images), *copies = dissolved_columns(dissolver, chosen.images)
    return [
        [(name, images[i]), *((caption, x[i]) for caption, x in copies)]
        for i, name in enumerate(chosen.names)
    ]


def training_normals(
    detector: Detector,
    data_root: str | None,
    given: str | None = None,
    normal: str | None = None,
    *,
    judged: str | None = None,
) -> ImageSet | None:
    """Reads again the normals that a model was fitted on.

    Args:
        detector: fitted or loaded.
        data_root: folder of known data sets, by default `$DIA_DATA`.
        given: a path or known set's name to be read instead.
        normal: the classes of `given` that are normal.
        judged: a path or known set's name that is read anyway, which the model may have been fitted on.

    Returns:
        The images; None where none are given, and the model was fitted elsewhere, on no known set and not
        on `judged`.

    Raises:
        DataError: they cannot be read.
    """
    read, options = detector.facts_.get("read"), ReadOptions().as_fitted(detector.facts_, detector.shape_)
    if given is not None:
        options = replace(options, divide=False)
        return datasets.open_data(given, "train", data_root, options, normal=normal).normals()
    name = training_set(detector.facts_, data_root, judged)
    group_by = (read or {}).get("group_by")  # absent in older models
    own = is_own(detector.facts_)
    if name is None or not read or not (own or group_by in (None, FOLDER)):  # a pattern can take for ever
        return None
    data_root = data_root or (read.get("data_root") if own else None)
    options = replace(options, group_by=group_by)
    train = datasets.open_data(name, read.get("split"), data_root, options, normal=read.get("normal"))
    share = read.get("contamination", 0.0)  # absent in older models
    return train.normals().contaminated(train.anomalies(), share, detector.seed)


def evaluation_context(
    detector: Detector,
    test: ImageSet,
    scored: Scored,
    *,
    dataset: str,
    normal: str | None,
    data_root: str | None,
    given: str | None,
    ledger: str | None,
    say: Callable[[str], None],
    files: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """The context that `dia evaluate` adds to its numbers.

    The best untrained row is fitted on `given`; else it is the ledger's, on the same images; else it is
    fitted on the model's own normals; else it is not known.

    Args:
        detector: fitted or loaded.
        test: labelled test images.
        scored: the detector's output on them, with metrics.
        dataset: name or path of the test images.
        normal: value of the option `--normal`.
        data_root: folder of known data sets.
        given: path or known set of training normals, None for those of the model.
        ledger: file of the ledger, None for the usual one.
        say: called with remarks for the user.
        files: the file of each image by its name, where they come from files.

    Returns:
        `best_untrained` (of `best_of`), the facts of `facts_of_set`, `sentences` and the `verdict`.

    Raises:
        DataError: `given` cannot be read.
    """
    normals, best, rows = None, None, list[Mapping[str, Any]]()
    try:
        normals = training_normals(detector, data_root, given, normal, judged=dataset)
    except DataError as error:
        if given:
            raise DataError(f"--normals: {error}") from error
        say(f"the training images are not where the model was fitted ({error})")
    if not given and (file := Path(ledger or LEDGER)).exists():
        identity = f"{detector.facts_.get('train_sha256', '')[:32]}{test.sha256()[:32]}"
        best = best_in_ledger(Ledger(file).rows(), identity)
        if best:
            best["source"] = f"on the same images, in {file}"
            rows = [best]
    if best is None and normals is not None:
        say(
            f"fitting the {len(TRIVIAL)} untrained rows on {len(normals)} normal images; --compare false "
            "leaves them out"
        )
        rows = list(compare_trivial(normals, test, detector.seed))
        best = best_of(rows, _SOURCE)
    facts = facts_of_set(test, normals, direction_of(dataset, normal))
    paired = any("scores" in r for r in rows)
    said = sentences(facts, scored.metrics or {}, best, detector.method, compared=paired)
    judged = verdict_of(detector, test, scored, detector.false_alarm_rate, rows, files=files)
    return {"best_untrained": best, **facts, "sentences": said, "verdict": judged.to_json()}


def check_data(
    name: str,
    data_root: str | None,
    options: ReadOptions,
    *,
    run: str | None = None,
    scores: str | None = None,
    row: str | None = None,
) -> dict[str, Any]:
    """Checks a data set, and measures the effect of copies of training images on an AUROC.

    Args:
        name: a known set's name or a path.
        data_root: folder of known data sets.
        options: how images are read.
        run: folder of a fitted model whose AUROC is measured.
        scores: file of `dia score` on the test split instead.
        row: untrained row to be fitted instead.

    Returns:
        The facts of `evaluate.quality.check`; `grey_levels`, what the (training) normals' files store and
        which values are black and white; and `effect_of_copies` where one of the three is given.

    Raises:
        DataError: the data cannot be read or lack labels, or more than one of the three is given.
    """
    if sum(x is not None for x in (run, scores, row)) > 1:
        raise DataError("--run, --scores and --row are three ways to one thing; give one of them")
    sets = datasets.open_splits(name, data_root, options)
    result = check(sets) | {"grey_levels": datasets.grey_levels(name, data_root, options)}
    if options.group_by:
        example = next(s.patients[0] for s in sets.values())
        result["patients_by"] = f"--group-by {options.group_by}, as {example!r}"
    which = run or scores or row
    if which is None:
        return result
    if not {"train", "test"} <= set(sets):
        raise DataError(f"{name}: needs a train and a test split to measure the effect of copies")
    normals, test, labels = sets["train"].normals(), sets["test"], sets["test"].labels
    if labels is None or not 0 < labels.sum() < len(test):
        raise DataError(f"{name}: the test split needs labels of both classes; see --normal")
    if normals.shape[2] != test.shape[2]:
        normals, test = normals.with_channels(1), test.with_channels(1)
    if scores is not None:
        found = scores_by_name(Path(scores), test.names)
    elif row is not None:
        if row not in TRIVIAL:
            raise DataError(f"--row {row}: not an untrained row; there are: {', '.join(TRIVIAL)}")
        h, w, _ = normals.shape
        found = TRIVIAL[row](device="cpu").fit(normals).score(test.resized(h, w))
    else:
        detector = Detector.load(which, device="cpu")
        fitted = options.as_fitted(detector.facts_, detector.shape_)
        found = detector.score(datasets.open_data(name, "test", data_root, fitted))
    effect = effect_of_copies(labels, found, has_near_duplicate(test, normals), test.unit_codes)
    return result | {"effect_of_copies": {"scores": which, **effect}}


def scores_by_name(path: Path, names: Sequence[str]) -> np.ndarray:
    """Reads the scores of images from a file that `dia score` wrote.

    Args:
        path: the file, .csv or .jsonl.
        names: N names of images.

    Returns:
        `(N,)` float64.

    Raises:
        DataError: there is no such file, it has another form, or an image has no score.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = (
                [row | {"path": plain_cell(row["path"])} for row in csv.DictReader(file)]
                if path.suffix == ".csv"
                else [json.loads(line) for line in file]
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
