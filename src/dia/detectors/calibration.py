"""Conformal calibration: from scores of held-out normals to p-values and thresholds.

Knows only numbers. Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005;
Bates et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 2023.

Guarantee: if a new normal image and the held-out normals are exchangeable (same scanner, population and
preparation; none of them used in training), P(p ≤ α) ≤ α, on average over held-out sets. It says nothing
of how many anomalies are found, and fails where new normals differ from the held-out ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.imageset import group_by_volume

HOLDOUT = 0.2  # share of the normals that is kept from training, to calibrate on
FALSE_ALARM_RATE = 0.05  # share of normals that a threshold flags at most, on average


class Prediction(NamedTuple):
    """The result of one pass over N images of one size.

    Attributes:
        score: `(N,)` float64, raw, higher = more anomalous.
        heatmap: `(N, H, W)` float32, higher where more anomalous; None if it was not asked for, or if the
            method has no heatmaps.
        dissolved: `(N, T, H, W, C)` uint8, the images dissolved at T steps; None as for `heatmap`.
    """

    score: np.ndarray
    heatmap: np.ndarray | None = None
    dissolved: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """The scores of held-out normals.

    Args:
        scores: `(n,)` float64, ascending.
    """

    scores: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Calibration:
        """Makes a calibration from scores in any order."""
        return cls(np.sort(np.asarray(scores, np.float64)))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Returns (1 + number of held-out normals that score at least as high) / (n + 1), `(N,)` in (0, 1].

        Example:
            >>> Calibration.of([0.1, 0.2, 0.3, 0.4]).p_values([0.35, 0.5])  # 1 and 0 of 4 normals are above
            array([0.4, 0.2])
        """
        n = len(self.scores)
        return (1 + n - np.searchsorted(self.scores, scores, side="left")) / (n + 1)

    def threshold(self, false_alarm_rate: float) -> float:
        """Returns the score above which, strictly, p ≤ `false_alarm_rate`; ∞ where n is too small for that.

        Raises:
            ValueError: the rate lies outside (0, 1).
        """
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"the false-alarm rate must lie between 0 and 1, not {false_alarm_rate}")
        n = len(self.scores)
        allowed = min(int(np.floor(false_alarm_rate * (n + 1) + 1e-9)), n)
        return float(self.scores[-allowed]) if allowed else float("inf")


def held_out(
    n: int, holdout: float, seed: int, volumes: Sequence[str | None] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits n normals into three parts by a seeded draw.

    The slices of a volume resemble each other, so a new volume is exchangeable with held-out volumes only:
    they are held out as wholes, which takes a little more than `holdout`. Where that would leave less than
    half to train on, slices are drawn each for itself, with a warning.

    Args:
        n: the number of normals.
        holdout: the share of the first two parts together.
        seed: decides the draw.
        volumes: for each normal the volume it is a slice of, None for none; empty where none is.

    Returns:
        The indices for calibration, for statistics and for training.
    """
    held = max(round(holdout * n), 4)
    if any(volumes):
        units = group_by_volume(n, volumes)
        units = [units[i] for i in np.random.default_rng([seed, 1]).permutation(len(units))]
        ends = np.cumsum([len(unit) for unit in units])
        first = int(np.searchsorted(ends, held // 2))
        second = max(int(np.searchsorted(ends, held)), first + 1)
        if second < len(ends) and ends[second] <= n // 2:
            calibration, reference, train = np.split(np.concatenate(units), ends[[first, second]])
            return calibration, reference, train
        warnings.warn(
            f"{len(units)} volumes are too few to hold out whole ones: slices of one volume are on both "
            "sides, so a new volume will have smaller p-values than it should",
            stacklevel=3,
        )
    order = np.random.default_rng([seed, 1]).permutation(n)
    calibration, reference, train = np.split(order, [held // 2, held])
    return calibration, reference, train
