"""Pictures of a benchmark: the critical-difference diagram and ROC curves laid over each other.

Knows numbers and names only. Each function takes its ink, so that a page draws in its own colours and a file
in black on white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from .benchmark_table import Ranking

FPR = np.linspace(0, 1, 201)
# told apart on white and on black; dashes tell them apart without colour
QUIET = "#8a94a0"
LINES = (
    *(("#d0690c", "-"), ("#2f86d6", "-"), ("#2a9d74", "-"), ("#c0569b", (0, (5, 1.5)))),
    *(("#8f7ae0", (0, (3, 1, 1, 1))), ("#a8902a", (0, (1.5, 1.2)))),
)


def critical_difference_diagram(ranking: Ranking, ink: str = "#000000") -> Figure:
    """Demšar's diagram: mean ranks on a line, best on the left, bars over the groups that do not differ.

    Half of the names stand on either side, one below the other, so that none meets another.
    """
    ranks = ranking.friedman.ranks
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    k, groups = len(order), ranking.nemenyi.groups
    half = (k + 1) // 2
    top = 0.9 + 0.22 * len(groups)  # of the first name, below the axis, in units of a line of text
    height = top + half
    figure = Figure(figsize=(8.4, 0.25 * (height + 3)))
    ax = figure.add_axes((0.31, 0.01, 0.38, 0.98))
    ax.set(xlim=(1, k), ylim=(height, -3))
    ax.axis("off")
    ax.plot([1, k], [0, 0], color=ink, linewidth=1.2)
    for tick in np.unique(np.linspace(1, k, min(k, 8)).round()):
        ax.plot([tick, tick], [0, -0.25], color=ink, linewidth=1)
        ax.text(tick, -0.4, f"{tick:.0f}", color=ink, ha="center", va="bottom", fontsize=9)
    critical = ranking.nemenyi.critical
    end = min(1 + critical, k)
    ax.plot([1, end], [-1.9, -1.9], color=ink, linewidth=1.2)
    for x, mark in ((1, "|"), (end, "|" if end < k else ">")):
        ax.plot(x, -1.9, mark, color=ink, markersize=7, clip_on=False)
    longer = " (longer than the scale)" if 1 + critical > k else ""
    ax.text(1, -2.2, f"critical difference {critical:.2f}{longer}", color=ink, va="bottom", fontsize=9)
    for place, i in enumerate(order):
        left = place < half
        y = top + (place if left else k - 1 - place)
        side = -0.03 if left else 1.03
        x = 1 + side * (k - 1)
        ax.plot([ranks[i], ranks[i], x], [0, y, y], color=QUIET, linewidth=0.9, clip_on=False)
        name = f"{ranking.names[i]}  {ranks[i]:.2f}" if left else f"{ranks[i]:.2f}  {ranking.names[i]}"
        ax.text(
            1 + (side + (-0.01 if left else 0.01)) * (k - 1),
            y,
            name,
            color=ink,
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            parse_math=False,  # a name is a name
        )
        ax.plot(ranks[i], 0, "o", color=ink, markersize=4, clip_on=False)
    for number, group in enumerate(groups):
        ends = ranks[list(group)]
        reach = 0.008 * (k - 1)
        y = 0.45 + 0.22 * number
        ax.plot([ends.min() - reach, ends.max() + reach], [y, y], color=ink, linewidth=3, clip_on=False)
    return figure


def mean_curve(labels: np.ndarray, by_seed: Sequence[np.ndarray]) -> np.ndarray:
    """Sensitivity at each of `FPR`, averaged over seeds (vertically): `(201,)`."""
    curves = []
    for scores in by_seed:
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        curves.append(np.interp(FPR, fpr, tpr))
    return np.mean(curves, axis=0)


def roc_overlay(
    curves: Mapping[str, np.ndarray],
    aurocs: Mapping[str, float],
    shown: Sequence[str],
    trivial: str = "",
    ink: str = "#000000",
) -> Figure:
    """ROC curves of many rows: those `shown` in colour with their AUROC, the untrained dashed, the rest thin.

    Args:
        curves: sensitivity at `FPR` by name.
        aurocs: by name.
        shown: names drawn in colour, at most six.
        trivial: the best untrained row.
        ink: of words and the untrained row.
    """
    figure = Figure(figsize=(5.6, 4.7), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlabel("false positive rate", color=ink)
    ax.set_ylabel("true positive rate, mean over seeds", color=ink)
    ax.tick_params(color=ink, labelcolor=ink)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(ink)
    ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    rest = [n for n in curves if n not in shown and n != trivial]
    for name in rest:
        ax.plot(FPR, curves[name], color=QUIET, linewidth=0.8, alpha=0.6)
    keys, words = [], []
    styles = {n: (*LINES[i % len(LINES)], 1.9) for i, n in enumerate(n for n in shown if n != trivial)}
    styles |= {trivial: (ink, "--", 1.9)} if trivial in curves else {}
    for name in sorted(styles, key=lambda n: -aurocs[n]):
        colour, dash, width = styles[name]
        keys += ax.plot(FPR, curves[name], color=colour, linestyle=dash, linewidth=width)
        words.append(f"{aurocs[name]:.3f}  {name}")
    if rest:
        keys += ax.plot([], [], color=QUIET, linewidth=0.8)
        low, high = min(aurocs[n] for n in rest), max(aurocs[n] for n in rest)
        words.append(
            f"{len(rest)} more, {low:.3f} to {high:.3f}" if len(rest) > 1 else f"{low:.3f}  {rest[0]}"
        )
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    legend = figure.legend(
        keys, words, frameon=False, labelcolor=ink, loc="outside lower center", ncols=2, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
