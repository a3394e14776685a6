"""Controls matched to a diffusion model: they remove as much of the same normal images, but something else.

Without that a comparison may only say that one of the two removes more. Knows dissolvers and images; knows no
labels and no scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import DataError
from ..core.settings import replaced
from .base import DissolverSettings, Dissolving
from .controls import Control
from .settings import STRENGTHS

_HALVINGS = 60
_CLOSE, _SAID = 0.002, 0.01  # relative; where bisection stops, and from where on it says that it fell short
_ASKED = 256  # images at most
_WIDEST = 31  # pixels of a median's window


@dataclass(frozen=True)
class Match:
    """A control with the strength that was found.

    Args:
        settings: of the control; not `matched` any more, since its strength is known.
        wanted: what the other dissolver removes, in grey levels of 0–255: see `removed`.
        reached: what the control removes.
    """

    settings: DissolverSettings
    wanted: float
    reached: float

    def facts(self) -> dict[str, float]:
        """What tables show: the strength by its name, and grey levels `wanted` and `reached`."""
        name = STRENGTHS[self.settings.kind]
        return {
            name: getattr(self.settings, name),
            "wanted": round(self.wanted, 4),
            "reached": round(self.reached, 4),
        }


def removed(dissolving: Dissolving, images: np.ndarray, ts: int | Sequence[int]) -> float:
    """How much dissolving takes away: the root mean square of x − x̂ over images, pixels, channels and t.

    Args:
        dissolving: fitted, or a control.
        images: `(N, H, W, C)` uint8, at least one.
        ts: a diffusion step in 0–999, or several.

    Returns:
        Grey levels of 0–255, before x̂ is rounded; what resizing to the working size takes away is part of it.

    Raises:
        DataError: no image, images of another type or shape, t out of range, or not fitted.
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
    """The control that removes as much of the images as `like` does, on average over `ts`: see `removed`.

    One strength is found, by bisection, for all t. `sigma`, `noise` and `threshold` come within 1 %, with a
    warning where no strength does; windows and bottlenecks are whole pixels and come as near
    as any tried does.

    Args:
        settings: of the control, of kind `gaussian`, `median`, `noise`, `shrink` or `bottleneck`; its own
            strength is replaced.
        like: what to match, fitted; usually a diffusion model.
        images: `(N, H, W, C)` uint8 normal images that `like` was not trained on; of more than 256, so many
            evenly spaced ones are asked.
        ts: a diffusion step in 0–999, or several.

    Raises:
        DataError: another kind, or what `removed` refuses.
    """
    if settings.kind not in STRENGTHS:
        raise DataError(f"kind {settings.kind} has no strength to match; there are: {', '.join(STRENGTHS)}")
    images = images[np.linspace(0, len(images) - 1, min(len(images), _ASKED)).astype(int)]
    wanted = removed(like, images, ts)
    scale = min(1.0, settings.size / max(images.shape[1:3]))
    shorter, longer = (max(round(side * scale), 1) for side in sorted(images.shape[1:3]))
    # a number that grows with what is removed, as the setting; and the greatest there is
    strengths: dict[str, tuple[Callable[[float], float], float]] = {
        "gaussian": (float, longer),
        # reflection reaches no further, and memory grows with the square
        "median": (lambda v: 2 * int(v) + 1, max(min(shorter - 1, _WIDEST // 2), 1)),
        "noise": (float, 2550),
        "shrink": (float, 255 * longer),
        "bottleneck": (lambda v: longer - int(v), max(longer - 1, 1)),
    }
    strength, most = strengths[settings.kind]
    plain = replace(settings, matched=False, pretrained=None, input_range="right")

    def control(v: float) -> Control:
        changed = replaced(plain, {STRENGTHS[settings.kind]: strength(v)})
        return Control(changed, device=str(like.where_))

    every = [int(t) for t in np.atleast_1d(ts)]
    once = every if settings.kind == "noise" else every[:1]  # the others are the same at every t
    whole = settings.kind in ("median", "bottleneck")
    v, reached = _nearest(lambda v: removed(control(v), images, once), wanted, whole, most)
    if not whole and abs(reached - wanted) > _SAID * wanted:
        warnings.warn(
            f"{settings.kind} removes {reached:.3g} grey levels, not the {wanted:.3g} to be matched; "
            "no strength comes nearer",
            stacklevel=2,
        )
    return Match(control(v).settings, wanted, reached)


def _nearest(
    amount: Callable[[float], float], wanted: float, whole: bool, most: float
) -> tuple[float, float]:
    """(v, amount(v)) of the v in (0, most] whose amount is nearest to `wanted`, as far as amounts grow."""
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
