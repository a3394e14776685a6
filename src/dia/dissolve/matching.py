"""Matches a control to a diffusion model, so that both remove equally much from the same normal images.

Without that a comparison may only say that one of the two removes more. Knows dissolvers and images; knows no
label and no score.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import DataError
from .base import DissolverSettings, Dissolving
from .controls import Control
from .settings import STRENGTHS

_HALVINGS = 60
_CLOSE, _SAID = 0.002, 0.01  # relative; where bisection stops, and from where on it says that it fell short
_ASKED = 256  # images at most
_WIDEST = 31  # pixels of a median's window


class Match(NamedTuple):
    """A control with the strength that was found.

    Attributes:
        settings: the control's settings, with the strength and no longer `matched`.
        wanted: the amount that the other dissolver removes, in grey levels of 0–255: see `removed`.
        reached: the amount that the control removes.
    """

    settings: DissolverSettings
    wanted: float
    reached: float


def removed(dissolving: Dissolving, images: np.ndarray, ts: int | Sequence[int]) -> float:
    """Measures what dissolving removes: the root mean square of x − x̂ over images, pixels, channels and t.

    Args:
        dissolving: a fitted dissolver or a control.
        images: `(N, H, W, C)` uint8, at least one.
        ts: a diffusion step in 0–999, or several.

    Returns:
        Grey levels of 0–255, before x̂ is rounded; the loss by resizing to the working size is part of it.

    Raises:
        DataError: there is no image, t is out of range, or `Dissolving.dissolve` refuses the images.
    """
    if not len(images):
        raise DataError("at least one image is needed to measure what dissolving removes")
    squares = [
        np.mean(np.square(images - dissolving.dissolve(images, int(t), rounded=False), dtype=np.float64))
        for t in np.atleast_1d(ts)
    ]
    return float(np.sqrt(np.mean(squares)))


def matched(
    settings: DissolverSettings, like: Dissolving, images: np.ndarray, ts: int | Sequence[int]
) -> Match:
    """Finds the strength at which a control removes as much as another dissolver.

    It warns where no strength comes within 1 %.

    Args:
        settings: the control's; its `kind` names the control, and its strength is found.
        like: the dissolver to match, fitted, such as a diffusion model.
        images: `(N, H, W, C)` uint8 normal images that `like` was not trained on; of more than 256, so many
            evenly spaced ones are used.
        ts: a diffusion step in 0–999, or several.

    Raises:
        DataError: the kind has no strength, or `removed` refuses the images or t.
    """
    kind = settings.kind
    if kind not in STRENGTHS:
        raise DataError(f"kind {kind} has no strength to match; there are: {', '.join(STRENGTHS)}")
    images = images[np.linspace(0, len(images) - 1, min(len(images), _ASKED)).astype(int)]
    wanted = removed(like, images, ts)
    scale = min(1.0, settings.size / max(images.shape[1:3]))
    shorter, longer = (max(round(side * scale), 1) for side in sorted(images.shape[1:3]))
    # the greatest strength; reflection reaches no further than the side, and memory grows with its square
    most = {
        "gaussian": longer, "median": max(min(shorter - 1, _WIDEST // 2), 1), "noise": 2550,
        "shrink": 255 * longer, "bottleneck": max(longer - 1, 1),
    }[kind]  # fmt: skip
    whole = kind in ("median", "bottleneck")

    def control(v: float) -> Control:  # more is removed with greater v
        strength = {"median": 2 * v + 1, "bottleneck": longer - v}.get(kind, v)
        changes: dict[str, Any] = {"matched": False, "pretrained": None, "input_range": "right"}
        changes[STRENGTHS[kind]] = int(strength) if whole else float(strength)
        return Control(replace(settings, **changes), device=str(like.where_))

    every = [int(t) for t in np.atleast_1d(ts)]
    once = every if kind == "noise" else every[:1]  # the others are the same at every t
    v, reached = _nearest(lambda v: removed(control(v), images, once), wanted, whole, most)
    if not whole and abs(reached - wanted) > _SAID * wanted:
        said = f"{kind} removes {reached:.3g} grey levels, not the {wanted:.3g} to be matched"
        warnings.warn(f"{said}; no strength comes nearer", stacklevel=2)
    return Match(control(v).settings, wanted, reached)


def _nearest(
    amount: Callable[[float], float], wanted: float, whole: bool, most: float
) -> tuple[float, float]:
    """Returns (v, amount(v)) for the v in (0, most] whose growing amount is nearest to `wanted`."""
    tried: dict[float, float] = {}

    def enough(v: float) -> bool:
        tried[v] = amount(v)
        return tried[v] >= wanted

    low, high = 0.0, 1.0
    while not enough(high) and high < most:
        low, high = high, min(2 * high, most)
    if max(tried.values()) < wanted:  # not even the greatest strength removes enough
        return max(tried.items(), key=lambda pair: pair[1])
    for _ in range(_HALVINGS):
        close = any(abs(a - wanted) <= _CLOSE * wanted for a in tried.values())
        if high - low <= 1 if whole else close:
            break
        middle = (low + high) // 2 if whole else (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(tried.items(), key=lambda pair: abs(pair[1] - wanted))
