"""What scanners, windows and resampling leave in an image as a whole: a few numbers of each image.

Knows pixels; fitted to nothing. Lesions are local and move these numbers little, a change of the source moves
them in every image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..calibrate import drawn_as_one
from .imageset import LUMA

GREY = ("brightness", "contrast", "shadows", "highlights", "clipped", "sharpness", "noise")
COLOUR = ("redness", "blueness", "saturation")
_CHUNK = 64  # images measured at once
_FLOOR = 1e-3  # of a grey step, squared: keeps logarithms of flat images finite


def statistics_of(channels: int) -> tuple[str, ...]:
    """The names of the numbers, for grey (1) or RGB (3) images."""
    return GREY if channels == 1 else GREY + COLOUR


def acquisition(images: np.ndarray) -> np.ndarray:
    """The numbers of each image, in grey steps of 0–255 where not said otherwise.

    - brightness, contrast: mean and standard deviation of luma;
    - shadows, highlights: its 5 % and 95 % quantiles;
    - clipped: share of pixels at 0 or 255, in [0, 1];
    - sharpness: log₁₀ of the mean squared difference of neighbours over that of pixels two apart: blur
      makes it lower, noise higher, and contrast does not count;
    - noise: log₁₀ of the median absolute second difference in both directions, plus a small floor (after
      Immerkær, "Fast Noise Variance Estimation", CVIU 64, 1996);
    - redness, blueness: mean of R and B minus luma; saturation: mean of the largest channel minus the least.

    Args:
        images: `(N, H, W, 1 or 3)` uint8, H and W at least 3.

    Returns:
        `(N, D)` float64, columns as `statistics_of`; finite.
    """
    chunks = [_measured(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, len(statistics_of(images.shape[-1]))))


def one_of_each(volumes: Sequence[str | None], n: int) -> np.ndarray:
    """Indices `(U,)` of the middle slice of each volume, and of each image that is no slice.

    Slices of one volume resemble each other and are not drawn one by one; volumes are.

    Args:
        volumes: for each image the volume it is a slice of, None for none; empty where none is.
        n: how many images.
    """
    return np.array(sorted(unit[len(unit) // 2] for unit in drawn_as_one(n, volumes)), int)


def _measured(images: np.ndarray) -> np.ndarray:
    x = images.astype(np.float32)
    luma = x[..., 0] if x.shape[-1] == 1 else x @ np.array(LUMA, np.float32)  # (n, H, W)
    flat = luma.reshape(len(luma), -1)
    shadows, highlights = np.percentile(flat, (5, 95), axis=1)
    clipped = ((images == 0).all(-1) | (images == 255).all(-1)).mean((1, 2))
    near, far = (sum(_energy(luma, lag, axis) for axis in (1, 2)) + _FLOOR for lag in (1, 2))
    second = np.diff(np.diff(luma, 2, axis=1), 2, axis=2)
    noise = np.log10(np.median(np.abs(second).reshape(len(x), -1), axis=1) + 0.1)
    columns = [flat.mean(1), flat.std(1), shadows, highlights, clipped, np.log10(near / far), noise]
    if x.shape[-1] == 3:
        spread = x.max(-1) - x.min(-1)
        columns += [(x[..., c] - luma).mean((1, 2)) for c in (0, 2)] + [spread.mean((1, 2))]
    return np.stack(columns, 1).astype(np.float64)


def _energy(luma: np.ndarray, lag: int, axis: int) -> np.ndarray:
    """Mean squared difference of pixels `lag` apart, `(n,)`."""
    x = luma.swapaxes(1, axis)
    return np.asarray(((x[:, lag:] - x[:, :-lag]) ** 2).mean((1, 2)))
