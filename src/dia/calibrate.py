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

import numpy as np

_TAIL = 0.2  # upper share of the normals to which the exponential tail is fitted


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
        """−log p, continuous: interpolated between the normals, an exponential tail beyond most of them.

        Plain conformal p-values cannot fall below 1/(n+1); the tail keeps the order of what lies beyond.
        Sums of it over several scores are Fisher's way to join p-values.
        """
        levels, start, spread = self.tail()
        edge = self.scores[start]
        inside = np.interp(scores, self.scores, levels)
        beyond = levels[start] + (np.asarray(scores) - edge) / spread
        return np.where(scores > edge, beyond, np.minimum(inside, levels[start]))

    def tail(self) -> tuple[np.ndarray, int, float]:
        """Evidence at each of the normals `(n,)`, where its tail begins, and the tail's mean excess."""
        n = len(self.scores)
        start = min(int(np.ceil((1 - _TAIL) * n)), n - 1)
        excess = float(np.mean(self.scores[start:] - self.scores[start]))
        spread = max(excess, 1e-9 + 1e-3 * float(np.std(self.scores)))
        return -np.log(1 - (np.arange(n) + 0.5) / n), start, spread


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
        of_units: dict[str | int, list[int]] = {}
        for i, volume in enumerate(volumes):
            of_units.setdefault(i if volume is None else volume, []).append(i)
        units = list(of_units.values())
        units = [units[i] for i in draw.permutation(len(units))]
        ends = np.cumsum([len(unit) for unit in units])
        first = int(np.searchsorted(ends, held // 2))
        second = max(int(np.searchsorted(ends, held)), first + 1)
        if second < len(ends) and ends[second] <= n // 2:
            calibration, spare, train = np.split(np.concatenate(units), [ends[first], ends[second]])
            return calibration, spare, train
        warnings.warn(
            f"{len(units)} volumes are too few to hold out whole ones: slices of one volume are on both "
            "sides, so a new volume will have smaller p-values than it should",
            stacklevel=3,
        )
        draw = np.random.default_rng([seed, 1])
    calibration, spare, train = np.split(draw.permutation(n), [held // 2, held])
    return calibration, spare, train
