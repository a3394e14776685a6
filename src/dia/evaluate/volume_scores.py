"""From scores of slices to scores of volumes: the highest, and the mean of the k highest.

Knows names and numbers; knows nothing of files, images or models.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

TOP_K = 5


class VolumeScore(NamedTuple):
    """What the slices of one volume say of it.

    Args:
        volume: its name.
        slices: how many were scored.
        max: the highest score of a slice.
        top_k_mean: the mean of the k highest; of all where there are fewer.
        max_slice: name of the (first) slice with the highest score.
    """

    volume: str
    slices: int
    max: float
    top_k_mean: float
    max_slice: str

    def p_value(self, of_highest: float) -> float:
        """Bonferroni's: the p-value of the highest slice times their number, at most 1.

        It holds however the slices of a volume depend on each other.
        """
        return min(1.0, round(self.slices * of_highest, 6))


def volume_scores(slices: Iterable[tuple[str | None, str, float]], k: int = TOP_K) -> Iterator[VolumeScore]:
    """One score for each volume, in order; no more than k scores are held.

    Args:
        slices: volume (None: of none, passed over), name and score of each slice; a volume's stand together.
        k: how many of its highest scores are averaged, at least 1.
    """
    for volume, group in groupby(slices, key=lambda row: row[0]):
        if volume is None:
            continue
        count, highest, where = 0, -np.inf, ""
        top: list[float] = []
        for _, name, score in group:
            count += 1
            if count == 1 or score > highest:
                highest, where = score, name
            if len(top) < k:
                heapq.heappush(top, score)
            else:
                heapq.heappushpop(top, score)
        yield VolumeScore(volume, count, float(highest), float(np.mean(sorted(top))), where)


def volume_metrics(
    labels: np.ndarray, scores: np.ndarray, volumes: Sequence[str | None], k: int = TOP_K
) -> dict[str, Any]:
    """AUROC over volumes, of which one is anomalous where any of its slices is.

    Returns:
        `volumes`, `volume_auroc_max`, `volume_auroc_max_ci`, `volume_auroc_top_k`, `volume_auroc_top_k_ci`;
        nothing where the volumes are of one class only.
    """
    from .metrics import image_metrics

    rows = [(v, str(label), float(s)) for v, label, s in zip(volumes, labels, scores, strict=True)]
    found = list(volume_scores(rows, k))
    anomalous = {v for v, label in zip(volumes, labels, strict=True) if label}
    of_volumes = np.array([f.volume in anomalous for f in found], np.int8)
    if not 0 < of_volumes.sum() < len(found):
        return {}
    out: dict[str, Any] = {"volumes": len(found)}
    for name, column in (("max", [f.max for f in found]), ("top_k", [f.top_k_mean for f in found])):
        metrics = image_metrics(of_volumes, np.array(column))
        out |= {f"volume_auroc_{name}": metrics["auroc"], f"volume_auroc_{name}_ci": metrics["auroc_ci"]}
    return out
