"""What near-duplicates of training images are worth: AUROC with and without the test images that have one.

Knows labels, scores and which images are copies; knows nothing of pixels, models or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score


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
