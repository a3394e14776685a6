"""Places of dots, ticks and labels in the figures that the HTML page itself draws.

Horizontal places are shares of the figure's width, which is not known: the page draws them as wide as the
window is, in its own colours, and letters keep their size. Knows numbers and names only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import NamedTuple

from ..text import amount

LETTER, LINE = 6.6, 14  # width of a letter and height of a line of small text, in pixels
NARROW = (270, 400)  # of the figure on a phone, in pixels: labels that are apart there are apart anywhere
_REACH = 9  # from a point to its label


@dataclass(frozen=True)
class Scale:
    """An axis.

    Args:
        low: its left or lower end.
        high: its other end.
        ticks: values with a label.
        logarithmic: whether equal steps are equal ratios.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Returns the place of a value in percent of the axis; values beyond an end stand at it."""
        ends = (log10(self.low), log10(self.high)) if self.logarithmic else (self.low, self.high)
        shown = log10(max(value, self.low)) if self.logarithmic else value
        return round(100 * min(max((shown - ends[0]) / (ends[1] - ends[0]), 0), 1), 2)


def auroc_scale(values: Iterable[float], end: float = 1.0) -> Scale:
    """An axis of AUROCs with a tick at each tenth.

    Args:
        values: what it must hold.
        end: its upper end, a tenth.

    Returns:
        The axis, which begins at the tenth below the least value.

    Example:
        >>> auroc_scale([0.62, 0.9]).ticks
        (0.6, 0.7, 0.8, 0.9, 1.0)
    """
    last = round(10 * end)
    first = min(floor(10 * min(values, default=0.5)), last - 1)
    return Scale(first / 10, end, tuple(i / 10 for i in range(first, last + 1)))


def log_scale(values: Iterable[float]) -> Scale:
    """A logarithmic axis with a tick at each power of ten, and at 2 and 5 times it where there are few.

    Args:
        values: what it must hold, all above 0.

    Returns:
        The axis.

    Example:
        >>> log_scale([3, 70]).ticks
        (2, 5, 10, 20, 50, 100)
    """
    values = list(values)
    low, high = min(values, default=1.0), max(values, default=10.0)
    first, last = floor(log10(low)), ceil(log10(high))
    steps = (1, 2, 5) if last - first < 3 else (1,)
    ticks = [m * 10**p if p >= 0 else m / 10**-p for p in range(first, last + 1) for m in steps]
    start = max((t for t in ticks if t <= low), default=ticks[0])
    end = min((t for t in ticks if t >= high and t > start), default=10 * start)
    return Scale(start, end, tuple(t for t in ticks if start <= t <= end), True)


class Label(NamedTuple):
    """Where a point's name stands: pixels from the point, and whether it goes to the right of there."""

    dx: float
    dy: float
    right: bool


def labels(points: Sequence[tuple[float, float]], names: Sequence[str]) -> list[Label]:
    """Places names beside points so that none covers another, or a point, however wide the figure is.

    Each takes the nearest free place, those in the most crowded parts first. Points move apart as the figure
    gets wider, so that the box of the left point has to lie left of the other's from the start.

    Args:
        points: percent from the left and from the top.
        names: the names.

    Returns:
        A place for each; the least bad where there is no free one.
    """
    width, height = NARROW
    at = [(x / 100 * width, y / 100 * height) for x, y in points]
    taken = [_Box(x, x - 5, y - 5, x + 5, y + 5) for x, y in at]
    found = dict[int, Label]()

    def crowd(i: int) -> int:
        return -sum(abs(at[i][1] - y) < 2 * LINE and abs(at[i][0] - x) < 90 for x, y in at)

    for i in sorted(range(len(at)), key=crowd):
        long = LETTER * len(names[i])
        best: tuple[float, Label, _Box] | None = None
        for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6):
            for right in (True, False):
                dx, dy = (_REACH if right else -_REACH), step * LINE * 0.75
                left = at[i][0] + dx - (0 if right else long)
                box = _Box(at[i][0], left, at[i][1] + dy - LINE / 2, left + long, at[i][1] + dy + LINE / 2)
                outside = max(-box.left - 30, 0) + max(box.right - width - 8, 0)
                outside += max(-box.top, 0) + max(box.bottom - height, 0)
                others = (t for j, t in enumerate(taken) if j != i)
                cost = 1000 * outside + sum(_shared(box, t) for t in others) * 10 + abs(dy) + (not right)
                if best is None or cost < best[0]:
                    best = cost, Label(dx, dy, right), box
        assert best is not None
        found[i] = best[1]
        taken.append(best[2])
    return [found[i] for i in range(len(at))]


class _Box(NamedTuple):
    """What a name or a point covers, in pixels, and how far right the point is that it goes with."""

    x: float
    left: float
    top: float
    right: float
    bottom: float


def _shared(a: _Box, b: _Box) -> float:
    """Returns the area that two boxes share, or would have to cross as the figure gets wider."""
    first, second = sorted((a, b))
    wide = first.right - second.left
    if first.x == second.x:  # they move together
        wide = min(wide, second.right - first.left)
    return max(wide, 0) * max(min(a.bottom, b.bottom) - max(a.top, b.top), 0)


class Point(NamedTuple):
    """A point of a plot: its name, its place in percent from the left and the top, its class of style."""

    name: str
    x: float
    y: float
    css: str
    label: Label
    words: str


class Plot(NamedTuple):
    """Named points over a logarithmic axis of costs, with AUROC upwards."""

    x: Scale
    y: Scale
    points: tuple[Point, ...]


def plot(values: Sequence[tuple[str, float, float, str]], unit: str) -> Plot:
    """Places named points.

    Args:
        values: name, cost above 0, AUROC, and class of style.
        unit: of the cost, in words.

    Returns:
        The plot.
    """
    x, most = log_scale(v[1] for v in values), max(v[2] for v in values)
    y = auroc_scale((v[2] for v in values), ceil(10 * most) / 10)
    at = [(x.at(cost), round(100 - y.at(auroc), 2)) for _, cost, auroc, _ in values]
    placed = labels(at, [v[0] for v in values])
    words = [f"{name}: AUROC {auroc:.3f}, {amount(cost)} {unit}" for name, cost, auroc, _ in values]
    parts = zip(values, at, placed, words, strict=True)
    return Plot(x, y, tuple(Point(v[0], *place, v[3], label, said) for v, place, label, said in parts))
