"""Turns scores of slices into scores of volumes: the highest, and the mean of the k highest.

Knows names and numbers; knows nothing of files, images or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

TOP_K = 5


class VolumeScore(NamedTuple):
    """The scores of one volume, from those of its slices.

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
        """Returns the p-value of the highest slice times the number of slices (Bonferroni), at most 1.

        It holds however the slices of a volume depend on each other.
        """
        return min(1.0, round(self.slices * of_highest, 6))


def volume_scores(slices: Iterable[tuple[str | None, str, float]], k: int = TOP_K) -> Iterator[VolumeScore]:
    """Yields the scores of each volume, in order, and holds no more than k scores at a time.

    Args:
        slices: volume (slices of None are passed over), name and score of each slice, grouped by volume.
        k: how many of a volume's highest scores are averaged, at least 1.

    Yields:
        One result for each volume.
    """
    for volume, group in groupby(slices, key=lambda row: row[0]):
        if volume is None:
            continue
        count, where, top = 0, "", list[float]()
        for _, name, score in group:
            count += 1
            if not top or score > top[0]:
                where = name
            top = nlargest(k, [*top, score])
        yield VolumeScore(volume, count, float(top[0]), float(np.mean(top[::-1])), where)


def volume_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    volumes: Sequence[str | None],
    k: int = TOP_K,
    patients: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Measures AUROC over volumes; a volume is anomalous where any of its slices is.

    Args:
        labels: `(N,)` of the slices, 0 = normal, 1 = anomalous.
        scores: `(N,)`, raw, higher = more anomalous.
        volumes: the N slices' volumes, grouped; None for a slice of no volume.
        k: how many of a volume's highest scores are averaged, at least 1.
        patients: the N slices' patients, by which intervals are made; empty where they are not known.

    Returns:
        `volumes`, `volume_auroc_max`, `volume_auroc_max_ci`, `volume_auroc_top_k`, `volume_auroc_top_k_ci`;
        nothing where the volumes are of one class only.
    """
    from .metrics import image_metrics  # scoring volumes needs no scikit-learn

    rows = [(v, str(label), float(s)) for v, label, s in zip(volumes, labels, scores, strict=True)]
    found = list(volume_scores(rows, k))
    anomalous = {v for v, label in zip(volumes, labels, strict=True) if label}
    of_volumes = np.array([f.volume in anomalous for f in found], np.int8)
    if not 0 < of_volumes.sum() < len(found):
        return {}
    of_whom = dict(zip(volumes, patients or volumes, strict=True))
    owners = [of_whom[f.volume] or f.volume for f in found]
    units = np.unique(owners, return_inverse=True)[1] if len(set(owners)) < len(found) else None
    out: dict[str, Any] = {"volumes": len(found)}
    for name, column in (("max", [f.max for f in found]), ("top_k", [f.top_k_mean for f in found])):
        metrics = image_metrics(of_volumes, np.array(column), units)
        out |= {f"volume_auroc_{name}": metrics["auroc"], f"volume_auroc_{name}_ci": metrics["auroc_ci"]}
    return out
