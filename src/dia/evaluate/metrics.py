"""Measures how well raw scores and heatmaps separate anomalous from normal, with intervals.

Higher score = more anomalous. Only the order of scores counts: every number here is unchanged by a strictly
increasing transform. Knows nothing of models, detectors, thresholds or files.

Images of one patient are no independent draws. Where units (patients, volumes) are given, intervals are those
of the cluster bootstrap: units are drawn, with all their images, within three strata: units whose images are
all normal, all anomalous, or of both kinds. With few units such intervals are somewhat too narrow themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

PRO_LIMIT = 0.3  # highest false positive rate of the PRO integral, as in MVTec AD
FROC_AT = (0.5, 1.0, 2.0)  # false findings an image
_THRESHOLDS = 100  # of a FROC curve
_EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner are connected


def image_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    units: np.ndarray | None = None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict:
    """Measures AUROC with its interval, average precision, and the false alarms at 95 % sensitivity.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, raw, higher = more anomalous. Ties count as in scikit-learn.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        n_boot: resamples for the interval; 0 for none (both ends NaN).
        seed: of the resamples.

    Returns:
        `auroc`; `auroc_ci` [low, high] (95 %, percentile bootstrap, resampled within each class or
        stratum; [0, 1] where the images of a class are of one patient); `ap`;
        `fpr95` (lowest false positive rate at a true positive rate of at least .95).

    Raises:
        ValueError: one class only, scores that are not finite, lengths that differ.

    Example:
        >>> found = image_metrics([0, 0, 0, 1, 1], [0.1, 0.4, 0.2, 0.3, 0.9])
        >>> round(found["auroc"], 3), found["fpr95"]
        (0.833, 0.3333333333333333)
    """
    labels, scores = _checked(labels, scores)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    aurocs = [_auroc(pos, neg) for pos, neg in _resampled(labels, scores, units, n_boot, seed)]
    low, high = np.quantile(np.concatenate(aurocs), (0.025, 0.975)) if aurocs else (np.nan, np.nan)
    if aurocs and units is not None and min(len(np.unique(units[labels == c])) for c in (0, 1)) == 1:
        low, high = 0.0, 1.0  # one patient of a class tells nothing of others
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "auroc_ci": [float(low), float(high)],
        "ap": float(average_precision_score(labels, scores)),
        "fpr95": float(fpr[np.argmax(tpr >= 0.95)]),
    }


def roc_band(
    labels: np.ndarray,
    scores: np.ndarray,
    units: np.ndarray | None = None,
    *,
    n_boot: int = 500,
    seed: int = 0,
    points: int = 201,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the pointwise 95 % band of the ROC curve, by the bootstrap of `image_metrics`.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, raw, higher = more anomalous.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        n_boot: resamples, at least 1.
        seed: of the resamples.
        points: false positive rates, evenly spaced from 0 to 1.

    Returns:
        fpr, low, high: each `(points,)`; sensitivity lies between low and high at each false positive rate.

    Raises:
        ValueError: as for `image_metrics`.
    """
    labels, scores = _checked(labels, scores)
    grid = np.linspace(0, 1, points)
    curves = [
        np.interp(grid, np.r_[0, f], np.r_[0, t])
        for pos, neg in _resampled(labels, scores, units, n_boot, seed)
        for f, t in zip(_share_above(neg), _share_above(pos), strict=True)
    ]
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    return grid, low, high


def pixel_metrics(masks: np.ndarray, heatmaps: np.ndarray) -> dict:
    """Measures pixel AUROC and PRO over all images together, both exact.

    PRO (Bergmann et al., IJCV 2021): at each threshold, the share of a region above it, averaged over all
    8-connected regions of the masks; integrated over the false positive rate of the normal pixels of all
    images up to .3, and divided by .3. The integral of a mean of step curves is the mean of their integrals,
    so each anomalous pixel adds its own area, weighted by 1 / (regions · pixels of its region): one sort of
    the normal pixels replaces a sweep of thresholds.

    Args:
        masks: `(N, H, W)` bool, True on anomalous pixels; all False for a normal image.
        heatmaps: `(N, H, W)` float, raw, higher = more anomalous.

    Returns:
        `pixel_auroc` and `pro`.

    Raises:
        ValueError: shapes that differ, heatmaps that are not finite, no anomalous or no normal pixel.
    """
    masks, heatmaps = np.asarray(masks, dtype=bool), np.asarray(heatmaps)
    if masks.ndim != 3 or masks.shape != heatmaps.shape:
        raise ValueError(f"masks {masks.shape}, heatmaps {heatmaps.shape} must be one (N, H, W): resize them")
    if not np.isfinite(heatmaps).all():
        raise ValueError("heatmaps hold NaN or infinite values: look for a diverged model or an empty image")
    if masks.all() or not masks.any():
        raise ValueError("masks need both anomalous and normal pixels: pass images with masked anomalies")
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = True  # 8-connected within an image, never across images
    regions, n_regions = ndimage.label(masks, in_plane)
    of_pixel = regions[masks]  # (P,) from 1
    weights = 1 / (n_regions * np.bincount(of_pixel)[of_pixel])  # (P,), sums to 1
    normal, anomalous = np.sort(heatmaps[~masks]), heatmaps[masks]
    from_fpr = 1 - np.searchsorted(normal, anomalous, side="right") / len(normal)  # normal pixels above
    to_fpr = 1 - np.searchsorted(normal, anomalous, side="left") / len(normal)  # above or equal
    return {
        "pixel_auroc": float(np.mean(_area(from_fpr, to_fpr, 1.0))),
        "pro": float(weights @ _area(from_fpr, to_fpr, PRO_LIMIT) / PRO_LIMIT),
    }


def froc(masks: np.ndarray, heatmaps: np.ndarray, at: Sequence[float] = FROC_AT) -> dict[str, float]:
    """Measures the recall per lesion at some numbers of false findings an image (free-response ROC).

    At each threshold the findings are the 8-connected places of the heatmaps at or above it. A finding marks
    the lesion (8-connected region of the masks) that its peak lies in, as the points of CAMELYON16 do; one
    whose peak lies in none is false. So a finding as large as the image marks one lesion at most. Several in
    one lesion count once. Thresholds are heights of the heatmaps' local maxima, one for all images: closely
    spaced among the highest, of which as many lie above a threshold as are asked about, and quantiles of the
    rest. As places merge where the threshold falls, the curve may turn back: the recall at a number is the
    greatest at any threshold with no more false findings.

    Args:
        masks: `(N, H, W)` bool, True on anomalous pixels; all False for a normal image, which counts too.
        heatmaps: `(N, H, W)` float, raw, higher = more anomalous.
        at: numbers of false findings an image.

    Returns:
        `recall@NUMBER` for each of them.

    Raises:
        ValueError: shapes that differ, or no anomalous pixel.
    """
    images = _places(masks, heatmaps)
    heights = np.sort(np.concatenate([of_image for *_, of_image in images]))[::-1]
    highest = heights[: int(4 * (max(at) + 1) * len(images))]
    if len(values := np.unique(heights)) > _THRESHOLDS:
        values = np.quantile(values, np.linspace(0, 1, _THRESHOLDS))
    if len(highest) > _THRESHOLDS:
        ranks = np.linspace(0, 1, _THRESHOLDS) ** 2 * (len(highest) - 1)
        highest = highest[ranks.round().astype(int)]
    values = np.unique(np.concatenate([values, highest]))
    found = [_recall(images, float(v)) for v in values]
    return {f"recall@{n:g}": max((r for r, false in found if false <= n), default=0.0) for n in at}


def recall_at(masks: np.ndarray, heatmaps: np.ndarray, threshold: float) -> tuple[float, float]:
    """Measures the findings at one threshold, by the rules of `froc`.

    Args:
        masks: `(N, H, W)` bool.
        heatmaps: `(N, H, W)` float.
        threshold: findings are at or above it.

    Returns:
        The share of lesions that are marked, and the number of false findings an image.

    Raises:
        ValueError: shapes that differ, or no anomalous pixel.
    """
    return _recall(_places(masks, heatmaps), threshold)


_Place = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _places(masks: np.ndarray, heatmaps: np.ndarray) -> list[_Place]:
    """Returns of each image its numbered lesions, its heatmap, and where and how high its maxima are.

    The peak of a connected place is one of the local maxima, whatever the threshold.
    """
    masks, heatmaps = np.asarray(masks, dtype=bool), np.asarray(heatmaps)
    if masks.ndim != 3 or masks.shape != heatmaps.shape or not len(masks):
        raise ValueError(f"masks {masks.shape}, heatmaps {heatmaps.shape} must be one (N, H, W): resize them")
    if not masks.any():
        raise ValueError("masks have no anomalous pixel: pass images with masked anomalies")
    found = []
    for mask, heatmap in zip(masks, heatmaps, strict=True):
        tops = np.flatnonzero(heatmap == ndimage.maximum_filter(heatmap, 3))
        tops = tops[np.argsort(-heatmap.ravel()[tops], kind="stable")]  # the highest first
        found.append((ndimage.label(mask, _EIGHT)[0], heatmap, tops, heatmap.ravel()[tops]))
    return found


def _recall(images: Sequence[_Place], threshold: float) -> tuple[float, float]:
    lesions = marked = false = 0
    for regions, heatmap, tops, heights in images:
        lesions += int(regions.max())
        if not (above := int((heights >= threshold).sum())):
            continue
        places = ndimage.label(heatmap >= threshold, _EIGHT)[0].ravel()[tops[:above]]
        peaks = tops[np.unique(places, return_index=True)[1]]  # the first of each place is its highest
        hit = regions.ravel()[peaks]
        marked, false = marked + len({*hit.tolist()} - {0}), false + int((hit == 0).sum())
    return marked / lesions, false / len(images)


def _area(start: np.ndarray, end: np.ndarray, limit: float) -> np.ndarray:
    """Area up to x = `limit` under curves that rise linearly from 0 at `start` to 1 at `end` (ties)."""
    ramp = np.clip(limit - start, 0, end - start)  # the part of the rise within the limit
    width = np.where(end > start, end - start, 1)
    return ramp**2 / (2 * width) + np.maximum(limit - end, 0)


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be one value per image each")
    if len(bad := np.flatnonzero(~np.isfinite(scores))):
        raise ValueError(
            f"{len(bad)} scores are NaN or infinite, first at index {bad[0]}: look at that image"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 (normal) or 1 (anomalous): recode them")
    if len(np.unique(labels)) != 2:
        raise ValueError("labels hold one class only: metrics need both normal and anomalous images")
    return labels.astype(np.int8), scores


def resampled_units(
    labels: np.ndarray, units: np.ndarray | None, n_boot: int, seed: int, width: int
) -> Iterator[np.ndarray]:
    """Draws units with replacement within their strata.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        n_boot: resamples.
        seed: of the draws.
        width: of the arrays that are made of a resample, which bounds how many come at once.

    Yields:
        How often each image is drawn, `(b, N)`.
    """
    rng = np.random.default_rng(seed)
    unit = np.arange(len(labels)) if units is None else np.unique(units, return_inverse=True)[1]
    kinds = [np.bincount(unit, labels == c) > 0 for c in (0, 1)]
    stratum = kinds[0] + 2 * kinds[1]  # 1: all normal, 2: all anomalous, 3: of both kinds
    block = max(1, 4_000_000 // width)  # bounds memory, about 64 MB
    for start in range(0, n_boot, block):
        drawn = np.empty((min(block, n_boot - start), len(stratum)), np.int64)
        for kind in np.unique(stratum):
            own = np.flatnonzero(stratum == kind)
            drawn[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), len(drawn))
        yield drawn[:, unit]


def _resampled(
    labels: np.ndarray, scores: np.ndarray, units: np.ndarray | None, n_boot: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified bootstrap as counts per distinct score, ascending: blocks of (b, K) anomalous, normal.

    Of single images, a resample with replacement is a multinomial draw over the distinct values, so ties need
    no special care.
    """
    values, where = np.unique(scores, return_inverse=True)
    if units is not None and len(np.unique(units)) < len(units):
        order = np.argsort(where, kind="stable")
        starts = np.searchsorted(where[order], np.arange(len(values)))
        for drawn in resampled_units(labels, units, n_boot, seed, len(labels)):
            pos, neg = (np.add.reduceat((drawn * (labels == c))[:, order], starts, axis=1) for c in (1, 0))
            yield pos, neg
        return
    rng = np.random.default_rng(seed)
    share = {c: np.bincount(where[labels == c], minlength=len(values)) / np.sum(labels == c) for c in (0, 1)}
    n_pos, n_neg = np.sum(labels == 1), np.sum(labels == 0)
    block = max(1, 4_000_000 // len(values))  # bounds memory, about 64 MB
    for start in range(0, n_boot, block):
        size = min(block, n_boot - start)
        yield rng.multinomial(n_pos, share[1], size), rng.multinomial(n_neg, share[0], size)


def _auroc(pos: np.ndarray, neg: np.ndarray) -> np.ndarray:
    """(b, K) counts per ascending distinct score -> (b,) P(anomalous > normal) + P(equal) / 2."""
    below = np.cumsum(neg, axis=1) - neg / 2
    return (pos * below).sum(1) / (pos.sum(1) * neg.sum(1))


def _share_above(counts: np.ndarray) -> np.ndarray:
    """(b, K) counts per ascending distinct score -> (b, K) share at or above each score, descending score."""
    return np.cumsum(counts[:, ::-1], axis=1) / counts.sum(1, keepdims=True)
