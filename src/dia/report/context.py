"""The context of a result: the best untrained row on the same images, copies, class balance, direction.

Knows image sets, numbers and the ledger; fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

import numpy as np

from ..benchmark.results import TRIVIAL
from ..core.errors import DataError
from ..data.datasets import known_set
from ..data.imageset import ANOMALOUS, NORMAL, ImageSet
from ..evaluate.metrics import resampled_units
from ..evaluate.quality import has_near_duplicate, near_duplicate_limit, nearest_images, thumbnails
from .style import lines


def facts_of_set(test: ImageSet, normals: ImageSet | None, direction: str) -> dict[str, Any]:
    """Counts classes, near-duplicates and copies of training images in a labelled test set.

    Args:
        test: the labelled test images.
        normals: the normal images of training; None where they are not known.
        direction: sentence on which class is normal, of `direction_of`.

    Returns:
        `normal`, `anomalous`: numbers of images; `direction`; `near_duplicates`: number of test images that
        are near-duplicates of an earlier test image; `copies_of_training`, `copies_anomalous`: number of test
        images that are near-duplicates of a training normal, and how many of these are labelled anomalous,
        None where the training normals are not known.
    """
    labels = np.zeros(len(test), np.int8) if test.labels is None else test.labels
    limit = near_duplicate_limit((test if normals is None else normals).images)
    within = nearest_images(thumbnails(test.images), units=test.units).distance <= limit
    found: dict[str, Any] = {
        "normal": int((labels == NORMAL).sum()),
        "anomalous": int((labels == ANOMALOUS).sum()),
        "direction": direction,
        "near_duplicates": int(within.sum()),
        "copies_of_training": None,
        "copies_anomalous": None,
    }
    if normals is not None:
        same = has_near_duplicate(test, normals)
        found |= {
            "copies_of_training": int(same.sum()),
            "copies_anomalous": int(same[labels == ANOMALOUS].sum()),
        }
    return found


def direction_of(dataset: str, normal: str | None = None) -> str:
    """A sentence on which class is normal.

    Args:
        dataset: name of a known set, or a path.
        normal: value of the option `--normal`, None where it was not given.

    Returns:
        The sentence.
    """
    if normal:
        return f"normal is {normal}; all else is anomalous"
    known = None
    with suppress(DataError):  # a path
        known = known_set(dataset)
    if known is None or not known.normal:
        return "normal is what the data call so (good, normal, or label 0); all else is anomalous"
    classes = known.normal_label if known.normal_label and known.path.endswith(".npz") else known.normal
    named = "" if classes == known.normal else f", {known.normal}"
    label = "label " if classes.isdigit() else ""
    return f"normal is {label}{classes}{named}; all else is anomalous ({known.title or known.name})"


def best_in_ledger(rows: Sequence[Mapping[str, Any]], data_sha256: str) -> dict[str, Any] | None:
    """The best untrained row on the same training and test images, by its mean over seeds.

    Args:
        rows: lines of the ledger; of a run made twice the later line counts.
        data_sha256: hash of the images, as the ledger has it.

    Returns:
        As `best_of`.
    """
    runs = {
        (r["method"], r["seed"]): r["auroc"]
        for r in rows
        if r["data_sha256"] == data_sha256 and r["method"].startswith(TRIVIAL) and "ablation" not in r
    }
    methods = dict.fromkeys(method for method, _ in runs)
    means = {name: mean(auroc for (method, _), auroc in runs.items() if method == name) for name in methods}
    return best_of([{"method": name, "auroc": auroc} for name, auroc in means.items()], "the ledger")


def best_of(rows: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any] | None:
    """The best untrained row by AUROC.

    Args:
        rows: mappings with `method` and `auroc`.
        source: where the rows come from, in words.

    Returns:
        `method`, `auroc` and `source`; None without any untrained row.
    """
    untrained = [r for r in rows if r["method"].startswith(TRIVIAL)]
    if not untrained:
        return None
    best = max(untrained, key=lambda r: r["auroc"])
    return {"method": best["method"], "auroc": float(best["auroc"]), "source": source}


def against_untrained(method: str, metrics: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """A sentence that compares a result with the best untrained row.

    Args:
        method: name of the method.
        metrics: its `auroc` and, where known, `auroc_ci`.
        best: the row, of `best_of`.

    Returns:
        The sentence.
    """
    if best["method"] == method:
        return f"This is the best untrained row itself (compared with {best['source']})."
    lies = "below it"
    if metrics["auroc"] >= best["auroc"]:
        low = metrics.get("auroc_ci", [metrics["auroc"]])[0]
        lies = f"above it, by {'more' if best['auroc'] < low else 'less'} than its 95 % interval"
    return (
        f"Best untrained row: {best['method']}, AUROC {best['auroc']:.3f} ({best['source']}); "
        f"{method}, {metrics['auroc']:.3f}, lies {lies}."
    )


def sentences(
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    method: str,
    *,
    compared: bool = False,
) -> list[str]:
    """The context in plain words, the gravest first.

    Args:
        facts: facts of the test set, of `facts_of_set`.
        metrics: metrics of the result, of `image_metrics`.
        best: the best untrained row, of `best_of` or `best_in_ledger`; None where it is not known.
        method: name of the method.
        compared: whether the verdict compares the result with that row, image by image; then it is not said.

    Returns:
        The sentences. Scores that rank the other way are named, and never reversed.
    """
    shown = {"facts": facts, "metrics": metrics, "best": best, "method": method, "compared": compared}
    return lines("context.txt.j2", **shown, against_untrained=against_untrained)


def effect_of_copies(
    labels: np.ndarray,
    scores: np.ndarray,
    copied: np.ndarray,
    units: np.ndarray | None = None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC of all test images, without those that have a copy in training, and the difference.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)` or `(S, N)`, raw, higher = more anomalous; AUROCs are means over S seeds.
        copied: `(N,)` bool, True where training has a near-duplicate.
        units: `(N,)` whole numbers, equal for the images of a patient, which are drawn together; None where
            each image is one.
        n_boot: number of resamples for the interval.
        seed: seed of the resamples.

    Returns:
        `copied_normal`, `copied_anomalous`: numbers of images; `auroc`; `auroc_without`; `difference`: the
        first minus the second, above 0 where copies flatter; `difference_ci` (95 %, percentile bootstrap of
        the images within each class, both AUROCs of the same resample). The last three are None where a
        class has no image left.

    Raises:
        ValueError: lengths differ, or there is one class only.
    """
    labels, scores, copied = np.asarray(labels), np.atleast_2d(np.asarray(scores, float)), np.asarray(copied)
    if not labels.shape == scores.shape[1:] == copied.shape:
        raise ValueError(f"labels {labels.shape}, scores {scores.shape}, copied {copied.shape}: not alike")
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError("labels must hold both 0 (normal) and 1 (anomalous)")
    kept = ~copied.astype(bool)

    def mean_auroc(counts: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean([_auroc(labels, s, counts) for s in scores], axis=0))

    everything = np.ones((1, len(labels)))
    auroc, without = float(mean_auroc(everything)[0]), float(mean_auroc(everything * kept)[0])
    found: dict[str, Any] = {
        "copied_normal": int((~kept & (labels == 0)).sum()),
        "copied_anomalous": int((~kept & (labels == 1)).sum()),
        "auroc": auroc,
    }
    if np.isnan(without):
        return found | dict.fromkeys(("auroc_without", "difference", "difference_ci"))
    resamples = resampled_units(labels, units, n_boot, seed, len(labels))
    differences = [mean_auroc(d) - mean_auroc(d * kept) for d in resamples]
    ends = np.nanquantile(np.concatenate(differences), (0.025, 0.975))  # a resample may leave a class empty
    return found | {
        "auroc_without": without,
        "difference": auroc - without,
        "difference_ci": ends.tolist(),
    }


def _auroc(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUROCs `(B,)` of images that are drawn `counts` `(B, N)` times; NaN where a class is empty."""
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    positive, negative = (np.add.reduceat((counts * (labels == c))[:, order], starts, axis=1) for c in (1, 0))
    below = np.cumsum(negative, axis=1) - negative / 2  # ties count half
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))
