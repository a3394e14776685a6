"""What stands in for the diffusion model in controls and ablations. Knows no network.

Each has the interface of `Dissolver.dissolve`: `(N, H, W, C)` uint8 and a strength, or several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def gaussian(images: np.ndarray, sigma: float | Sequence[float]) -> np.ndarray:
    """Gaussian blur of each image, `sigma` in pixels; reflected at the borders."""
    if isinstance(sigma, int | float):
        return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect")
    return np.stack([gaussian(images, s) for s in sigma])
