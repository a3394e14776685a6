"""Distances to the nearest of many normals, and evidence from them. Knows vectors only.

The search is scikit-learn's; distances are measured anew, because those of the search are quick sums, whose
last digits depend on the other rows of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.neighbors import NearestNeighbors

NEAR = 0.01  # of the median distance of normals: what lies nearer is as good as there
_LEAST_SPREAD = 0.05  # of log distances
TINY = 1e-6  # for the median where normals equal one another


class Nearest:
    """The bank of normals `(M, D)`, kept as float32, and the search in it.

    Args:
        bank: features of normals.
        k: how many are averaged over; all where there are fewer.
    """

    def __init__(self, bank: np.ndarray, k: int):
        self.bank = bank.astype(np.float32)
        self.k = min(k, len(bank))
        self._index = NearestNeighbors(n_neighbors=self.k).fit(self.bank)

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mean Euclidean distance of each `(N, D)` row to its k nearest, `(N,)` float64."""
        x = features.astype(np.float32)
        found = self._index.kneighbors(x, return_distance=False)
        difference = self.bank[found].astype(np.float64) - x[:, None]
        return np.asarray(np.sort(np.linalg.norm(difference, axis=-1), axis=1).mean(1))


@dataclass(frozen=True)
class Scale:
    """Where held-out normals lie: their median, and how far above it they go.

    Args:
        median: of their values.
        spread: root mean square of the distance from the median, of the values above it: copies of one image
            among the normals, which lie far below, say nothing of how far normals lie apart.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """From values `(S,)` of normals that trained nothing."""
        median = float(np.median(values))
        above = values[values > median] - median
        spread = float(np.sqrt((above**2).mean())) if len(above) else 0.0
        return cls(median, max(spread, _LEAST_SPREAD))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """`(N,)`: 0 at the median, in spreads."""
        return np.asarray((values - self.median) / self.spread)


def log_distance(distances: np.ndarray, median: float) -> np.ndarray:
    """Of distances `(N,)`, as multiples of a median of normals; bounded below, as distances are."""
    return np.asarray(np.log(distances / max(median, TINY) + NEAR))
