"""Conformal calibration: from scores of held-out normals to p-values, thresholds and joined evidence.

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
_TAIL = 0.2  # upper share of the normals to which the exponential tail is fitted
_FINEST = 1e-5  # of the scores' size: no kernel is narrower, or the last digits of a score would count


class Prediction(NamedTuple):
    """What one pass over N images of one size gives.

    Attributes:
        score: `(N,)` float64, raw, higher = more anomalous.
        heatmap: `(N, H, W)` float32, higher where more anomalous; None if it was not asked for, or if the
            method has none.
        dissolved: `(N, T, H, W, C)` uint8, the images dissolved at T steps; None as for `heatmap`.
    """

    score: np.ndarray
    heatmap: np.ndarray | None = None
    dissolved: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of n held-out normals, ascending."""

    scores: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Calibration:
        """From scores in any order."""
        return cls(np.sort(np.asarray(scores, np.float64)))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """(1 + number of held-out normals scoring at least as high) / (n + 1), `(N,)` in (0, 1]."""
        n = len(self.scores)
        return (1 + n - np.searchsorted(self.scores, scores, side="left")) / (n + 1)

    def threshold(self, false_alarm_rate: float) -> float:
        """The score above which, strictly, p ≤ `false_alarm_rate`; ∞ where n is too small for the rate."""
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"the false-alarm rate must lie between 0 and 1, not {false_alarm_rate}")
        allowed = int(np.floor(false_alarm_rate * (len(self.scores) + 1) + 1e-9))
        allowed = min(allowed, len(self.scores))
        return float(self.scores[-allowed]) if allowed else float("inf")

    def evidence(self, scores: np.ndarray) -> np.ndarray:
        """−log p, smooth: by a kernel estimate among the normals, an exponential tail beyond most of them.

        Plain conformal p-values step from normal to normal and cannot fall below 1/(n+1). Here each normal
        counts by a logistic curve instead of a step (Nadaraya 1964), which bounds the slope, and the tail
        keeps the order of what lies beyond. Not a valid p-value itself: what is joined of it is calibrated
        anew.
        """
        import torch  # not above: scoring with an exported file takes no torch

        from .residual import Evidence

        column = torch.from_numpy(np.asarray(scores, np.float64))[:, None]
        return Evidence(self.scores[:, None])(column)[:, 0].numpy()

    def smoothing(self) -> tuple[float, float, float]:
        """The logistic kernel's scale, the score where the tail begins, and the tail's mean excess.

        The kernel has the standard deviation of Silverman's rule (1986, eq. 3.31).
        """
        x, n = self.scores, len(self.scores)
        low, high = np.percentile(x, [25, 75])
        spread = min(np.std(x), (high - low) / 1.34) or np.std(x)
        width = 0.9 * spread * n**-0.2 * np.sqrt(3) / np.pi
        width = max(float(width), _FINEST * float(np.abs(x).mean()), 1e-9)
        edge = x[min(int(np.ceil((1 - _TAIL) * n)), n - 1)]
        return width, float(edge), max(float(np.mean(x[x >= edge] - edge)), width)


def joined(evidence: np.ndarray) -> np.ndarray:
    """Evidence −log p̊ of the harmonic mean p̊ of p-values, from the `(N, P)` evidence −log p of P parts."""
    return np.asarray(np.logaddexp.reduce(evidence, axis=1) - np.log(evidence.shape[1]))


def held_out(
    n: int, holdout: float, seed: int, volumes: Sequence[str | None] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of n normals for calibration, for statistics and for training, drawn by `seed`.

    The slices of a volume resemble each other, so a new volume is exchangeable with held-out volumes only:
    they are held out as wholes, which takes a little more than `holdout`. Where that would leave less than
    half to train on, slices are drawn each for itself, with a warning.

    Args:
        n: how many normals.
        holdout: share for the first two together.
        seed: of the draw.
        volumes: for each normal the volume it is a slice of, None for none; empty where none is.
    """
    draw = np.random.default_rng([seed, 1])
    held = max(round(holdout * n), 4)
    if any(volumes):
        units = group_by_volume(n, volumes)
        units = [units[i] for i in draw.permutation(len(units))]
        ends = np.cumsum([len(unit) for unit in units])
        first = int(np.searchsorted(ends, held // 2))
        second = max(int(np.searchsorted(ends, held)), first + 1)
        if second < len(ends) and ends[second] <= n // 2:
            calibration, reference, train = np.split(np.concatenate(units), [ends[first], ends[second]])
            return calibration, reference, train
        warnings.warn(
            f"{len(units)} volumes are too few to hold out whole ones: slices of one volume are on both "
            "sides, so a new volume will have smaller p-values than it should",
            stacklevel=3,
        )
        draw = np.random.default_rng([seed, 1])
    calibration, reference, train = np.split(draw.permutation(n), [held // 2, held])
    return calibration, reference, train
