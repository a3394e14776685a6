"""Computes every score of a trained encoder, as a function of images. Knows no labels.

The published one and its three terms alone; Mahalanobis distance and nearest neighbours of penultimate
features over all shifts; and Mahalanobis of the unrotated image alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from dia.data.imageset import subsample
from dia.detectors import CSI
from dia.detectors.dia import PARTS, normality
from dia.detectors.nearest import Nearest

FEATURE_NEIGHBOURS = 3
PUBLISHED, UNROTATED = "csi", "mahalanobis, unrotated"
SCORES = (PUBLISHED, *PARTS, "mahalanobis", "neighbours", UNROTATED)


def gaussians(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres `(K, D)` and precisions `(K, D, D)` of features `(K, N, D)`, by Ledoit and Wolf's estimate."""
    fits = [LedoitWolf().fit(f) for f in h]
    return np.stack([f.location_ for f in fits]), np.stack([f.precision_ for f in fits])


def mahalanobis(h: np.ndarray, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Distances `(K, N)` of features `(K, N, D)` from the centre of their shift."""
    c = h - centre[:, None]
    return np.asarray(np.sqrt(np.einsum("knd,kde,kne->kn", c, precision, c, optimize=True)))


def scorer(
    detector: CSI, normals: np.ndarray, features: bool = True
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns a function from images to every score, `(N,)` each by name.

    Args:
        detector: with a trained encoder and a fitted bank.
        normals: `(N, H, W, C)` uint8, the training images.
        features: compute the scores of penultimate features, too.
    """
    h = detector._features(subsample(normals, detector.s.bank_size)) if features else np.empty((0, 0, 0))
    centre, precision = gaussians(h) if features else (h, h)

    def score(images: np.ndarray) -> dict[str, np.ndarray]:
        z, s = detector._projections(images)
        of = (detector.bank_, detector.lambda_, detector.mu_)
        found = {part: -normality(z, s, *of, (part,)).double().cpu().numpy() for part in PARTS}
        found[PUBLISHED] = -normality(z, s, *of).double().cpu().numpy()
        if features:
            f = detector._features(images)
            far = mahalanobis(f, centre, precision)
            banks = [Nearest(b, FEATURE_NEIGHBOURS) for b in h]
            near = [bank(torch.from_numpy(a)).numpy() for a, bank in zip(f, banks, strict=True)]
            found |= {"mahalanobis": far.sum(0), "neighbours": np.sum(near, axis=0), UNROTATED: far[0]}
        return found

    return score
