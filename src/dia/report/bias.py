"""What stands beside a result, so that it is not taken for more than it is.

The best untrained row on the same images, duplicates and copies of training images, the balance of the
classes, and which class is taken as anomalous. Knows image sets, numbers and the ledger; fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import mean
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from ..benchmark.results import TRIVIAL, BenchmarkResults
from ..core.errors import DataError
from ..data.datasets import known_set
from ..data.imageset import ANOMALOUS, NORMAL, ImageSet
from ..data.quality import has_near_duplicate, near_duplicate_limit, nearest_images, thumbnails
from .table import Table, table
from .text import signed as _signed


def facts_of_set(test: ImageSet, normals: ImageSet | None, direction: str) -> dict[str, Any]:
    """Of a labelled test set, and of the training normals where they are known.

    Returns:
        `normal`, `anomalous`: numbers of images; `direction`: which class is normal; `near_duplicates`: test
        images that have a near-duplicate (or identical image) before them among the test images;
        `copies_of_training`, `copies_anomalous`: test images that have one among the training normals, and
        how many of these are labelled anomalous; None where the training normals are not known.
    """
    labels = np.zeros(len(test), np.int8) if test.labels is None else test.labels
    limit = near_duplicate_limit((test if normals is None else normals).images)
    within = nearest_images(thumbnails(test.images), volumes=test.volumes).distance <= limit
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
    """Which class is taken as normal, in words, for a known set's name or a path.

    Args:
        dataset: as it was given to the command.
        normal: the option `--normal`, None where it was not given.
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
        rows: of the ledger; of a run made twice the later line counts.
        data_sha256: as the ledger has it.
    """
    runs = {
        (r["method"], r["seed"]): r
        for r in rows
        if r["data_sha256"] == data_sha256 and r["method"].startswith(TRIVIAL) and "ablation" not in r
    }
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for (method, _), r in runs.items():
        by_method.setdefault(method, []).append(r)
    return best_of(
        [{"method": m, "auroc": mean(r["auroc"] for r in of)} for m, of in by_method.items()], "the ledger"
    )


def best_of(rows: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any] | None:
    """`method`, `auroc` and `source` of the best untrained row among `rows`; None without any."""
    untrained = [r for r in rows if r["method"].startswith(TRIVIAL)]
    if not untrained:
        return None
    best = max(untrained, key=lambda r: r["auroc"])
    return {"method": best["method"], "auroc": float(best["auroc"]), "source": source}


def sentences(
    facts: Mapping[str, Any], metrics: Mapping[str, Any], best: Mapping[str, Any] | None, method: str
) -> list[str]:
    """The same in plain words, the gravest first.

    Args:
        facts: of `facts_of_set`.
        metrics: of `image_metrics`.
        best: of `best_of` or `best_in_ledger`; None where it is not known.
        method: whose result it is.
    """
    total = facts["normal"] + facts["anomalous"]
    out = [*backwards(metrics)]
    if best is None:
        out.append(
            "Best untrained row: not known here. It needs the training normals: give --normals, or fit one "
            "(dia fit --method trivial:hog) and evaluate it on the same images."
        )
    elif best["method"] == method:
        out.append(f"This is the best untrained row itself (compared with {best['source']}).")
    else:
        stands = "below" if metrics["auroc"] < best["auroc"] else "above"
        out.append(
            f"Best untrained row: {best['method']}, AUROC {best['auroc']:.3f} ({best['source']}); "
            f"this result, {metrics['auroc']:.3f}, lies {stands} it."
        )
    copies = facts["copies_of_training"]
    if copies is None:
        out.append("Copies of training images among the test images: not known; give --normals.")
    else:
        out.append(
            f"{copies} of {total} test images are near-duplicates of a training image"
            + (f", {facts['copies_anomalous']} of them labelled anomalous" if copies else "")
            + f"; {facts['near_duplicates']} of another test image"
            + ("; dia data check --run says what they change." if copies else ".")
        )
    out.append(
        f"{facts['anomalous']} of {total} test images are anomalous ({facts['anomalous'] / total:.0%}): the "
        "average precision of chance. AUROC does not depend on it."
    )
    out.append(f"Direction: {facts['direction']}; a higher score is more anomalous.")
    return out


def backwards(metrics: Mapping[str, Any]) -> list[str]:
    """A warning where the scores rank the other way; they are never turned round."""
    auroc, (_, high) = metrics["auroc"], metrics["auroc_ci"]
    if auroc >= 0.5:
        return []
    if high < 0.5:
        return [
            f"AUROC {auroc:.3f} lies below .5 with its whole interval: the anomalous images score lower than "
            "the normal ones. Scores are not turned round: the sign would be chosen by test labels. See that "
            "the right class is normal."
        ]
    return [f"AUROC {auroc:.3f} lies below .5; its interval reaches .5, so it is not told from chance."]


# --- the benchmark's page ---------------------------------------------------------------------------------

CONTEXT = (
    "Near-duplicates are images as alike as an image and its re-saved copy, or ten times as alike as is "
    "usual in the set; identical ones are among them. Copies of training images are test images with a "
    "near-duplicate among the training normals: they flatter whatever remembers those. Rows below .5 rank "
    "anomalous images as more normal; no sign is turned round after labels were seen."
)
ENOUGH = 0.01  # of the test images: fewer copies change nothing that can be seen


def set_table(
    results: BenchmarkResults,
    labels: Mapping[str, np.ndarray],
    facts: Mapping[str, Mapping[str, Any]],
) -> Table:
    """What stands beside the results of each data set.

    Args:
        results: the benchmark's.
        labels: of the test images, by data set, where raw scores were kept.
        facts: of `facts_of_set`, by data set, where its images are at hand.
    """
    out = []
    for d in results.datasets:
        of, best, y = facts.get(d), results.best_trivial.get(d), labels.get(d)
        balance = "not known: no raw scores"
        if y is not None:
            balance = (
                f"{int((y == NORMAL).sum())} + {int((y == ANOMALOUS).sum())} ({np.mean(y == ANOMALOUS):.0%})"
            )
        copies, near = ("not known: give --data_root",) * 2
        if of is not None:
            copies = f"{of['copies_of_training']}" + (
                f" ({of['copies_anomalous']} anomalous)" if of["copies_of_training"] else ""
            )
            near = str(of["near_duplicates"])
        untrained = "–" if best is None else f"{best.name} ({best.cells[d].mean:.3f})"
        out.append([d, balance, direction_of(d), untrained, near, copies])
    head = ("data set", "test images: normal + anomalous", "direction", "best untrained row")
    return table((*head, "near-duplicates in the test", "copies of training images"), out)


def below_chance(results: BenchmarkResults) -> list[str]:
    """A line on each data set where rows rank anomalous images as more normal."""
    out = []
    for d in results.datasets:
        below = [(r.name, c) for r in results.rows if (c := r.cells.get(d)) is not None and c.mean < 0.5]
        clear = [f"{name} ({c.mean:.3f})" for name, c in below if c.ci[1] < 0.5]
        others = [f"{name} ({c.mean:.3f})" for name, c in below if c.ci[1] >= 0.5]
        if below:
            parts = [f"with the whole interval {', '.join(clear)}"] * bool(clear)
            parts += [f"by the mean alone {', '.join(others)}"] * bool(others)
            out.append(f"{d}, below .5: {'; '.join(parts)}.")
    return out


def copies_table(
    results: BenchmarkResults,
    scores: Mapping[str, Mapping[int, np.ndarray]],
    labels: np.ndarray,
    same: np.ndarray,
) -> Table:
    """Of each row of the benchmark on one data set: AUROC with and without copies of training images.

    Args:
        results: the benchmark's.
        scores: by row and seed, `(N,)`.
        labels, same: `(N,)`, of the test images; see `effect_of_copies`.
    """
    out = []
    for r in results.rows:
        if r.name not in scores:
            continue
        found = effect_of_copies(labels, np.stack(list(scores[r.name].values())), same)
        shown = ["–", "–"]
        if found["auroc_without"] is not None:
            low, high = found["difference_ci"]
            ends = f"[{_signed(low)}, {_signed(high)}]"
            shown = [f"{found['auroc_without']:.3f}", f"{_signed(found['difference'])} {ends}"]
        out.append([r.name, f"{found['auroc']:.3f}", *shown, str(len(scores[r.name]))])
    return table(("method", "AUROC", "without copies", "difference [95 %]", "seeds"), out)


def effect_of_copies(
    labels: np.ndarray, scores: np.ndarray, copied: np.ndarray, *, n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """AUROC of all test images, of those without a copy in training, and the difference.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)` or `(S, N)`, raw, higher = more anomalous; AUROCs are means over S seeds.
        copied: `(N,)` bool, True where training has a near-duplicate.
        n_boot: resamples for the interval.
        seed: of the resamples.

    Returns:
        `copied_normal`, `copied_anomalous`: how many; `auroc`; `auroc_without`; `difference`: the first minus
        the second, above 0 where copies flatter; `difference_ci` (95 %, percentile bootstrap of the images,
        resampled within each class, both AUROCs of the same resample). The last three are None where a class
        has no image left.

    Raises:
        ValueError: lengths that differ, or one class only.
    """
    labels, scores, copied = np.asarray(labels), np.atleast_2d(np.asarray(scores, float)), np.asarray(copied)
    if not labels.shape == scores.shape[1:] == copied.shape:
        raise ValueError(f"labels {labels.shape}, scores {scores.shape}, copied {copied.shape}: not alike")
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError("labels must hold both 0 (normal) and 1 (anomalous)")
    auroc, kept = float(np.mean([roc_auc_score(labels, s) for s in scores])), ~copied.astype(bool)
    found: dict[str, Any] = {
        "copied_normal": int((~kept & (labels == 0)).sum()),
        "copied_anomalous": int((~kept & (labels == 1)).sum()),
        "auroc": auroc,
        "auroc_without": None,
        "difference": None,
        "difference_ci": None,
    }
    if len(np.unique(labels[kept])) < 2:
        return found
    without = float(np.mean([roc_auc_score(labels[kept], s[kept]) for s in scores]))
    differences = np.mean([_resampled(labels, s, kept, n_boot, seed) for s in scores], axis=0)
    low, high = np.nanquantile(differences, (0.025, 0.975))  # a resample may leave a class empty
    return found | {
        "auroc_without": without,
        "difference": auroc - without,
        "difference_ci": [float(low), float(high)],
    }


def _resampled(
    labels: np.ndarray, scores: np.ndarray, kept: np.ndarray, n_boot: int, seed: int
) -> np.ndarray:
    """Differences `(n_boot,)`; how often each image is drawn is multinomial, so ties need no special care."""
    rng = np.random.default_rng(seed)  # the same draws of images for all seeds of a method
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    out = []
    block = max(1, 4_000_000 // len(labels))  # bounds memory
    for first in range(0, n_boot, block):
        size = min(block, n_boot - first)
        drawn = np.zeros((size, len(labels)))
        for c in (0, 1):
            own = np.flatnonzero(labels == c)
            drawn[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size)
        aurocs = []
        for weights in (drawn, drawn * kept):
            positive, negative = (
                np.add.reduceat((weights * (labels == c))[:, order], starts, axis=1) for c in (1, 0)
            )
            below = np.cumsum(negative, axis=1) - negative / 2
            pairs = positive.sum(1) * negative.sum(1)
            with np.errstate(invalid="ignore"):
                aurocs.append((positive * below).sum(1) / pairs)
        out.append(aurocs[0] - aurocs[1])
    return np.concatenate(out)
