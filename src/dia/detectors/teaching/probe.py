"""A small probe on frozen features: normals that the model was fitted on, against images that readers marked.

Logistic regression on principal components of the normals. Knows arrays only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd

from ...data.imageset import subsample

COMPONENTS = 48  # at most, and a third of the normals
STRENGTH = 0.02  # C of the logistic regression
_MARKS, _WEIGHTS = (5, 10, 20), (0.0, 0.25, 0.5)
_LEAST = 1e-6  # of a deviation that vanishes
_LOOKED = 2000  # normals of which the components are found


def weight_of(marks: int) -> float:
    """Returns the weight of the probe beside the score: 0 at 5 marks and fewer, .25 at 10, .5 from 20 on.

    Args:
        marks: images that are marked normal or anomalous.

    Example:
        >>> [weight_of(n) for n in (5, 6, 10, 15, 20, 500)]
        [0.0, 0.05, 0.25, 0.375, 0.5, 0.5]
    """
    return float(np.interp(marks, _MARKS, _WEIGHTS))


class Axes(NamedTuple):
    """Principal components of normals, each in deviations of theirs.

    Attributes:
        mean: `(D,)`.
        axes: `(D, K)`, K at most 48 and at most a third of the normals.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, normals: np.ndarray, seed: int) -> Axes:
        """Finds the components of normals, of many of evenly spaced ones.

        Args:
            normals: `(N, D)`, N ≥ 2.
            seed: of the randomised decomposition.
        """
        x = subsample(normals, _LOOKED).astype(np.float64)
        mean, count = x.mean(0), min(COMPONENTS, max(len(x) // 3, 1))
        _, sizes, axes = randomized_svd(x - mean, count, random_state=seed)
        spread = np.maximum(sizes / np.sqrt(len(x)), _LEAST)
        return cls(mean, (axes / spread[:, None]).T)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Maps `(N, D)` to `(N, K)` float64."""
        parts = [(x[i : i + _LOOKED] - self.mean) @ self.axes for i in range(0, len(x), _LOOKED)]
        return np.concatenate(parts)

    def slope(self, direction: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns slope `(D,)` and offset of a direction `(K,)`: its value is x · slope + offset."""
        slope = self.axes @ direction
        return slope, -float(self.mean @ slope)


def direction(normals: np.ndarray, marked: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the direction `(K,)` in which images become anomalous, by logistic regression.

    All normals together weigh no more than the marks: each of N weighs min(1, M / N).

    Args:
        normals: `(N, K)`, fitted on.
        marked: `(M, K)`.
        labels: `(M,)`, 1 = anomalous; at least one is.
    """
    x, y = np.concatenate([normals, marked]), np.concatenate([np.zeros(len(normals)), labels])
    weights = np.concatenate(
        [np.full(len(normals), min(1.0, len(marked) / len(normals))), np.ones(len(marked))]
    )
    found: np.ndarray = (
        LogisticRegression(C=STRENGTH, max_iter=1000).fit(x, y, sample_weight=weights).coef_[0]
    )
    return found
