"""Which images are worth marking next: those of the highest scores, and some about which there is doubt.

Marking what is flagged first teaches a model more than marks of images drawn at random
(docs/howto/teach.md). Some near the threshold are mixed in, since a probe needs both kinds. Knows numbers.
"""

from __future__ import annotations

import numpy as np

DOUBT = 0.25  # of the images offered are those nearest to the threshold


def next_to_mark(
    scores: np.ndarray, threshold: float, marked: np.ndarray, *, doubt: float = DOUBT
) -> np.ndarray:
    """Returns the indices of all unmarked images, `(U,)`, the one most worth marking first.

    Args:
        scores: `(N,)` raw, higher = more anomalous.
        threshold: above which an image is flagged; where it is infinite, the highest scores alone count.
        marked: `(N,)` bool.
        doubt: share of the images, in [0, 1], taken from those nearest to the threshold; equal ones stay in
            the order of the list.

    Example:
        >>> next_to_mark(np.array([1.0, 9, 5, 8, 4]), 4.2, np.array([0, 0, 0, 1, 0], bool), doubt=0.5)
        array([1, 4, 2, 0])
    """
    scores = np.asarray(scores, np.float64)
    highest = [int(i) for i in np.argsort(-scores, kind="stable") if not marked[i]]
    if not np.isfinite(threshold):
        return np.array(highest, int)
    doubtful = [int(i) for i in np.argsort(np.abs(scores - threshold), kind="stable") if not marked[i]]
    made: dict[int, None] = {}
    turns, share = (iter(highest), iter(doubtful)), 0.0
    for _ in highest:
        share += doubt
        turn = share >= 1 - 1e-9
        share -= turn
        made[next(i for i in turns[turn] if i not in made)] = None
    return np.array(list(made), int)
