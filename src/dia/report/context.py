"""Gathers what stands beside a result: training normals where they are known, untrained rows, copies, labels.

Reads data and fits untrained rows; `evaluate/bias.py` knows what they mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from ..benchmark.ledger import LEDGER, Ledger
from ..core.errors import DataError
from ..data import datasets
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..data.quality import has_near_duplicate
from ..detectors import Detector
from ..detectors.registry import TRIVIAL
from .bias import best_in_ledger, best_of, direction_of, effect_of_copies, facts_of_set, sentences
from .gather import compare_trivial


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
    result = datasets.check(a.name, a.data_root, options)
    if a.run is None and a.scores is None and a.row is None:
        return result
    sets = datasets.open_splits(a.name, a.data_root, options)
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
