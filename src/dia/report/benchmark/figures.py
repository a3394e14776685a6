"""The benchmark's figures that matplotlib draws: ranks over data sets, and ROC curves.

Knows numbers and names only. Ink, grid and the colours "C0" and "C1" are those of `style.py`, so that the
same figure can stand in a page or in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from ...benchmark.published import BASE
from ...benchmark.results import BenchmarkResults, Ranking
from ..style import QUIET, axes
from .scores import Scores

OURS = ("dia+", "dia", BASE)  # methods always in colour
BEST = 3  # number of further rows in colour
FPR = np.linspace(0, 1, 201)
# colours that differ on white and on black; dashes differ too
LINES = (
    *(("#d0690c", "-"), ("#2f86d6", "-"), ("#2a9d74", "-"), ("#c0569b", (0, (5, 1.5)))),
    *(("#8f7ae0", (0, (3, 1, 1, 1))), ("#a8902a", (0, (1.5, 1.2)))),
)


def critical_difference_diagram(ranking: Ranking) -> Figure:
    """Demšar's diagram: mean ranks on a line, best on the left, bars over the groups that do not differ.

    Half of the names stand on either side, one below the other, so that no two overlap.
    """
    ink, ranks = mpl.rcParams["text.color"], ranking.friedman.ranks
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    k, groups, critical = len(order), ranking.nemenyi.groups, ranking.nemenyi.critical
    half = (k + 1) // 2
    top = 0.9 + 0.22 * len(groups)  # y of the first name, in units of a line of text
    figure = Figure((8.4, 0.25 * (top + half + 3)))
    ax = figure.add_axes((0.31, 0.01, 0.38, 0.98))
    ax.set(xlim=(1, k), ylim=(top + half, -3))
    ax.axis("off")
    line = partial(ax.plot, color=ink, clip_on=False)
    word = partial(ax.text, fontsize=9)
    line([1, k], [0, 0], linewidth=1.2)
    for tick in np.unique(np.linspace(1, k, min(k, 8)).round()):
        line([tick, tick], [0, -0.25], linewidth=1)
        word(tick, -0.4, f"{tick:.0f}", ha="center", va="bottom")
    beyond = 1 + critical > k
    line([1, min(1 + critical, k)], [-1.9, -1.9], linewidth=1.2)
    line(1, -1.9, marker="|")
    line(min(1 + critical, k), -1.9, marker=">" if beyond else "|")
    longer = " (longer than the scale)" if beyond else ""
    word(1, -2.2, f"critical difference {critical:.2f}{longer}", va="bottom")
    for place, i in enumerate(order):
        left = place < half
        y = top + (place if left else k - 1 - place)
        side = -0.03 if left else 1.03
        line([ranks[i], ranks[i], 1 + side * (k - 1)], [0, y, y], color=QUIET, linewidth=0.9)
        line(ranks[i], 0, marker="o", markersize=4)
        both = (ranking.names[i], f"{ranks[i]:.2f}")
        x = 1 + (side + (-0.01 if left else 0.01)) * (k - 1)
        word(x, y, "  ".join(both if left else both[::-1]), ha="right" if left else "left", va="center")
    for number, group in enumerate(groups):
        ends, reach, y = ranks[list(group)], 0.008 * (k - 1), 0.45 + 0.22 * number
        line([ends.min() - reach, ends.max() + reach], [y, y], linewidth=3)
    return figure


def roc_curves(results: BenchmarkResults, scores: Mapping[str, Scores]) -> dict[str, Callable[[], Figure]]:
    """Gathers the curves of the methods and of the best untrained row.

    Args:
        results: results of the benchmark.
        scores: raw scores by data set.

    Returns:
        By data set, what draws them.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    for d, of_set in scores.items():
        trivial = results.best_trivial[d].name if d in results.best_trivial else ""
        aurocs = {
            r.name: r.cells[d].mean
            for r in results.rows
            if r.name in of_set.rows and (not r.trivial or r.name == trivial)
        }
        method = {r.name: r.method for r in results.rows if r.name in aurocs}
        best = sorted(aurocs, key=lambda n: -aurocs[n])
        ours = dict[str, str]()  # of several kinds of weights the best
        for name in best:
            ours.setdefault(method[name], name)
        shown = [ours[m] for m in OURS if m in ours]
        contends = {r.name for r in results.rows if r.contends}
        shown += [n for n in best if n in contends and n not in shown][:BEST]
        curves = {n: mean_curve(of_set.labels, list(of_set.rows[n].values())) for n in aurocs}
        if curves:
            figures[d] = partial(roc_overlay, curves, aurocs, shown, trivial)
    return figures


def mean_curve(labels: np.ndarray, by_seed: Sequence[np.ndarray]) -> np.ndarray:
    """Sensitivity averaged over seeds at each false positive rate of `FPR`.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        by_seed: `(N,)` raw scores of each seed.

    Returns:
        `(201,)` in [0, 1].
    """
    curves = []
    for scores in by_seed:
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        curves.append(np.interp(FPR, fpr, tpr))
    return np.asarray(np.mean(curves, axis=0))


def roc_overlay(
    curves: Mapping[str, np.ndarray], aurocs: Mapping[str, float], shown: Sequence[str], trivial: str = ""
) -> Figure:
    """ROC curves of many rows: those `shown` in colour with their AUROC, the untrained dashed, the rest thin.

    Args:
        curves: sensitivity at `FPR` by name.
        aurocs: AUROC by name.
        shown: names drawn in colour, at most six.
        trivial: name of the best untrained row; empty without one.

    Returns:
        The figure.
    """
    figure, ax = axes("false positive rate", "true positive rate, mean over seeds", (5.6, 4.7))
    ax.grid(False)
    ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    styles = dict(zip((n for n in shown if n != trivial), LINES, strict=False))
    if trivial in curves:
        styles[trivial] = (mpl.rcParams["text.color"], "--")
    rest = [n for n in curves if n not in styles]
    keys, words = [], []
    for name in sorted(styles, key=lambda n: -aurocs[n]):
        colour, dash = styles[name]
        keys += ax.plot(FPR, curves[name], color=colour, linestyle=dash, linewidth=1.9)
        words.append(f"{aurocs[name]:.3f}  {name}")
    for name in rest:
        thin = ax.plot(FPR, curves[name], color=QUIET, linewidth=0.8, alpha=0.6, zorder=1)
    if rest:
        keys += thin
        low, high = min(aurocs[n] for n in rest), max(aurocs[n] for n in rest)
        many = f"{len(rest)} more, {low:.3f} to {high:.3f}"
        words.append(many if len(rest) > 1 else f"{low:.3f}  {rest[0]}")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    figure.legend(keys, words, loc="outside lower center", ncols=2, fontsize=9)
    return figure
