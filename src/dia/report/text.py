"""Numbers as text. Knows no results."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev

from ..evaluate.compare import Difference


def signed(number: float, digits: int = 3) -> str:
    """A number with its sign, a true minus.

    Args:
        number: any number.
        digits: decimals.

    Returns:
        The text.
    """
    return f"{number:+.{digits}f}".replace("-", "−")


def mean_and_spread(value: float, std: float | None) -> str:
    """'mean ± standard deviation' to three decimals, or the mean alone.

    Args:
        value: an AUROC, the mean over seeds.
        std: its standard deviation; None with one seed.

    Returns:
        The text.
    """
    return f"{value:.3f}" if std is None else f"{value:.3f} ± {std:.3f}"


def difference(d: Difference) -> str:
    """The difference with its interval, which one image or patient of a class leaves unknown."""
    return f"{signed(d.value)} [{signed(d.low)}, {signed(d.high)}]" if isfinite(d.low) else signed(d.value)


def amount(number: float | None) -> str:
    """A measured quantity to two digits, or to whole numbers from 10 on; a dash where it is not known."""
    return "–" if number is None else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{amount(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def over_seeds(aurocs: Sequence[float]) -> str:
    """'mean ± standard deviation' of AUROCs; the value alone with one seed, a dash with none."""
    if not aurocs:
        return "–"
    return mean_and_spread(mean(aurocs), stdev(aurocs) if len(aurocs) > 1 else None)
