"""Drift: tests whether a batch differs, as a whole, from the normals of training; anomalies are allowed.

Knows only a few numbers of each image. A batch may hold anomalies of any kind, so a test that all of it is
like the normals would raise an alarm for the anomalies that one looks for. The null hypothesis is therefore
that at least m₀ = m − ⌊share · m⌋ of the m images are exchangeable with the normals, whatever the others are
(Huber, "A Robust Version of the Probability Ratio Test", Annals of Mathematical Statistics 36, 1965).

Test. Let x be the k-th smallest of n normals' values of one statistic. The number J of the m₀ that lie at or
below x is beta-binomial (m₀; k, n − k + 1), whatever the statistic's distribution; ties only make it larger
(Gumbel and von Schelling, "The Distribution of the Number of Exceedances", ibid. 21, 1950). The batch has at
least J such images, so if it has j, P(J ≤ j) is a p-value: too few images lie where normals lie. The same
from above; at k ≈ .2 n, .5 n and .8 n; for every statistic; joined by Bonferroni's bound. Only counts are
needed, so a batch may be a stream of any length.

Guarantee: P(alarm) ≤ rate for a batch of which at most `share` is anomalous, on average over sets of normals.
It fails where images are not drawn one by one (several of one patient).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..data.imageset import LUMA

AT = (0.2, 0.5, 0.8)  # of the normals: where it is counted
RATE = 0.01  # false alarms, for each batch
SHARE = 0.5  # of a batch that may be anomalous without an alarm
_MOST = 1000  # where so many images cannot raise an alarm, there are too few normals


@dataclass(frozen=True, eq=False)
class Reference:
    """Six of n normals' values of one statistic.

    Args:
        n: the number of normals.
        low: `(3,)`, the k-th smallest values, for the k of `ranks(n)`.
        high: `(3,)`, the k-th largest.
    """

    n: int
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Reference:
        """Makes a reference from the values of the normals, `(n,)`, at least two."""
        x, k = np.sort(np.asarray(values, np.float64)), ranks(len(values))
        return cls(len(x), x[k - 1], x[-k])

    def counts(self, values: np.ndarray) -> np.ndarray:
        """Counts how many of `values` `(m,)` lie at or below `low`, and at or above `high`: `(2, 3)`."""
        x = np.asarray(values)[:, None]
        return np.stack([(x <= self.low).sum(0), (x >= self.high).sum(0)])


@dataclass(frozen=True)
class Drift:
    """The result of the test of one batch.

    Args:
        alarm: whether p ≤ rate; None where the batch or the normals are too few for any alarm.
        p: the p-value of the whole batch, all tests joined, at most 1.
        images: the number of images in the batch.
        statistic: the statistic that differs most.
        direction: 'lower' or 'higher' than in the normals.
        found: share of the batch on the normals' side of the value compared with.
        expected: share of the normals on that side.
        needed: the fewest images with which this test can raise an alarm; None if no number can.
    """

    alarm: bool | None
    p: float
    images: int
    statistic: str
    direction: str
    found: float
    expected: float
    needed: int | None


def ranks(n: int) -> np.ndarray:
    """Returns the ranks k at which n normals are counted, `(3,)`."""
    return np.clip(np.round(np.array(AT) * n).astype(int), 1, n)


def judged(
    references: Mapping[str, Reference],
    counts: Mapping[str, np.ndarray],
    m: int,
    *,
    rate: float = RATE,
    share: float = SHARE,
) -> Drift:
    """Tests whether a batch of m images differs as a whole.

    Args:
        references: of the normals, by name of the statistic.
        counts: `Reference.counts` of the batch, summed, by the same names.
        m: the number of images in the batch.
        rate: the rate of false alarms, in (0, 1).
        share: the share of the batch that may be anything, in [0, 1).

    Raises:
        ValueError: the rate or the share is out of range, or there is no statistic.
    """
    if not 0 < rate < 1 or not 0 <= share < 1:
        raise ValueError(f"rate {rate} must lie in (0, 1) and share {share} in [0, 1)")
    tests = 2 * len(AT) * len(references)
    kept = _normal_at_least(m, share)
    found = []
    for name, reference in references.items():
        n = reference.n
        for side, direction in enumerate(("higher", "lower")):
            for k, j in zip(ranks(n), counts[name][side], strict=True):
                found.append((too_few(int(j), kept, int(k), n), name, direction, int(j), int(k), n))
    p, name, direction, j, k, n = min(found)
    sizes = ((i, _least(references, _normal_at_least(i, share))) for i in range(1, _MOST))
    needed = next((i for i, least in sizes if least * tests <= rate), None)
    enough = needed is not None and m >= needed
    alarm = bool(p * tests <= rate) if enough else None
    return Drift(alarm, min(1.0, p * tests), m, name, direction, j / max(m, 1), k / n, needed)


def _normal_at_least(m: int, share: float) -> int:
    """Returns m₀: how many of m images are normal, if at most `share` of them is not."""
    return m - int(np.floor(share * m + 1e-9))


def too_few(j: int, m: int, k: int, n: int) -> float:
    """Returns P(J ≤ j) for J ~ beta-binomial (m; k, n − k + 1).

    Of n + m exchangeable values, J of the m lie below the k-th smallest of the n: J ≤ j just where the k + j
    smallest of all hold at least k of the n, which is hypergeometric.

    Args:
        j: images counted.
        m: images in all, m₀ of the batch.
        k: rank among the normals, 1 to n.
        n: the number of normals.
    """
    if j >= m:
        return 1.0
    drawn = np.arange(k, min(n, k + j) + 1)
    f = _log_factorials(1 << (n + m).bit_length())  # a power of two, so that few sizes are kept
    ways = f[n] - f[drawn] - f[n - drawn] + f[m] - f[k + j - drawn] - f[m - (k + j - drawn)]
    every = f[n + m] - f[k + j] - f[n + m - k - j]
    return float(min(1.0, np.exp(ways - every).sum()))


def words(drift: Drift) -> str:
    """Returns the result in one line for people."""
    if drift.alarm is None:
        least = f"at least {drift.needed} are needed" if drift.needed else "more normals are needed to fit on"
        return f"drift cannot be judged from {drift.images} images; {least}"
    said = f"{drift.images} images, p = {drift.p:.2g}"
    if not drift.alarm:
        return f"no drift found ({said})"
    return (
        f"DRIFT: these images differ as a whole from the normals of training ({said}): {drift.statistic} is "
        f"{drift.direction} ({drift.found:.0%} of them lie where {drift.expected:.0%} of the normals do); "
        "p-values and flags may not hold"
    )


def to_json(references: Mapping[str, Reference]) -> dict[str, Any]:
    """Returns references as plain numbers."""
    return {k: {"n": r.n, "low": r.low.tolist(), "high": r.high.tolist()} for k, r in references.items()}


def from_json(saved: Mapping[str, Any]) -> dict[str, Reference]:
    """Makes references from plain numbers.

    Raises:
        ValueError: they are not what `to_json` wrote.
    """
    found = {}
    for name, r in saved.items():
        low, high = np.array(r["low"], np.float64), np.array(r["high"], np.float64)
        if not (low.shape == high.shape == (len(AT),) and int(r["n"]) > 1):
            raise ValueError(f"{name}: not {len(AT)} low and {len(AT)} high values of several normals")
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name}: values that are not finite")
        found[str(name)] = Reference(int(r["n"]), low, high)
    return found


def _least(references: Mapping[str, Reference], m: int) -> float:
    """Returns the smallest p-value that a batch can have: where no image lies where normals lie."""
    return min((too_few(0, m, int(ranks(r.n)[-1]), r.n) for r in references.values()), default=1.0)


@cache
def _log_factorials(size: int) -> np.ndarray:
    """Returns log 0!, …, log (size − 1)!; without scipy, which an exported model does without."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size)))])


def references(images: np.ndarray, chosen: np.ndarray) -> dict[str, Reference]:
    """Makes the references of normals; nothing is fitted to them, so normals trained on serve as well.

    Args:
        images: `(N, H, W, C)` uint8 normals.
        chosen: indices of the images to measure.
    """
    parts = [acquisition(images[chosen[i : i + 512]]) for i in range(0, len(chosen), 512)]
    columns = zip(statistics_of(images.shape[-1]), np.concatenate(parts).T, strict=True)
    return {name: Reference.of(values) for name, values in columns if len(values) > 1}


GREY = ("brightness", "contrast", "shadows", "highlights", "clipped", "sharpness", "noise")
COLOUR = ("redness", "blueness", "saturation")
_CHUNK = 64  # images measured at once
_FLOOR = 1e-3  # of a grey step, squared: keeps logarithms of flat images finite


def statistics_of(channels: int) -> tuple[str, ...]:
    """Returns the names of the statistics, for grey (1) or RGB (3) images."""
    return GREY if channels == 1 else GREY + COLOUR


def acquisition(images: np.ndarray) -> np.ndarray:
    """Measures acquisition statistics of each image, in grey steps of 0–255 where not said otherwise.

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
    """Returns the mean squared difference of pixels `lag` apart, `(n,)`."""
    x = luma.swapaxes(1, axis)
    return np.asarray(((x[:, lag:] - x[:, :-lag]) ** 2).mean((1, 2)))
