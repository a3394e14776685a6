"""Figures of benchmarks, ablations and stress tests: ranks, ROC curves, differences, detection rates.

Knows numbers and names only. Ink, grid and the colours "C0" and "C1" are those of `style.py`, so that the
same figure can stand in a page or in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from ..benchmark.grid import Grid, Measured
from ..benchmark.results import Ranking
from ..evaluate.learning_curve import Point
from ..evaluate.stress import FOUND, in_pixels, smallest
from .style import axes, lines, save
from .table import Table, table

FPR = np.linspace(0, 1, 201)
QUIET = "#8a94a0"
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


# --- the stress test --------------------------------------------------------------------------------------

COLUMNS = 4
MARKERS = "os^Dvp"


def normals_curve(points: Sequence[Point]) -> Figure:
    """Image AUROC by the number of normals, on a logarithmic scale: a mark for each draw, a line of means."""
    figure, ax = axes("normals", "image AUROC")
    for point in points:
        ax.plot([point.normals] * len(point.aurocs), point.aurocs, "o", color="C1", markersize=3.5, alpha=0.6)
    count = [point.normals for point in points]
    ax.plot(count, [point.mean for point in points], color="C1", linewidth=1.6)
    ax.set(xscale="log", xticks=count, xticklabels=[str(n) for n in count])
    ax.minorticks_off()
    ax.tick_params(axis="x", labelsize=8)
    return figure


def detection_curves(result: Mapping[str, Any]) -> Figure:
    """Detection rate over lesion size, a panel for each kind, a line for each contrast.

    Args:
        result: measurements of `evaluate.stress.stress`.

    Returns:
        The figure.
    """
    kinds = list(dict.fromkeys(c["kind"] for c in result["cells"]))
    contrasts = sorted({c["contrast"] for c in result["cells"]})
    sizes = sorted({c["size"] for c in result["cells"]})
    columns = min(COLUMNS, len(kinds))
    rows = ceil(len(kinds) / columns)
    figure = Figure((2.35 * columns + 0.6, 2.05 * rows + 1), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    ink, false = mpl.rcParams["text.color"], result["false_alarms"]
    for ax, kind in zip(panels.flat, kinds, strict=False):
        for i, contrast in enumerate(contrasts):
            own = [c for c in result["cells"] if (c["kind"], c["contrast"]) == (kind, contrast)]
            x, y, low, high = np.array(sorted((c["size"], c["share"], *c["ci"]) for c in own)).T
            apart = 1 + 0.035 * (i - (len(contrasts) - 1) / 2)  # so that intervals do not cover each other
            strength = 0.35 + 0.65 * (i + 1) / len(contrasts)
            ax.errorbar(
                x * apart, y, yerr=[y - low, high - y], color="C0", alpha=strength,
                marker=MARKERS[i % len(MARKERS)], markersize=3.5, linewidth=0.8 + 0.5 * i,
                elinewidth=0.9, label=f"contrast {contrast:g}",
            )  # fmt: skip
        ax.axhline(FOUND, color=ink, linewidth=0.8, linestyle="--")
        ax.axhspan(*false["ci"], color=ink, alpha=0.1, linewidth=0)
        ax.axhline(false["share"], color=ink, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", ylim=(-0.03, 1.03), xticks=sizes, xticklabels=[f"{s:g}" for s in sizes])
        ax.minorticks_off()
        ax.set_title(kind, fontsize=10)
        ax.tick_params(labelsize=8, labelbottom=True)
    for ax in panels.flat[len(kinds) :]:
        ax.set_visible(False)
    figure.supxlabel("size, share of side", fontsize=9)
    figure.supylabel("share found", fontsize=9)
    keys = panels[0, 0].get_legend_handles_labels()
    figure.legend(*keys, loc="outside lower center", ncols=len(contrasts), fontsize=9)
    return figure


def smallest_table(result: Mapping[str, Any]) -> Table:
    """The smallest size found, by kind and contrast."""
    contrasts = sorted({c["contrast"] for c in result["cells"]})
    shape, rows = result["normals"]["shape"], []
    for kind, by_contrast in smallest(result).items():
        found = [by_contrast.get(contrast, (None, None)) for contrast in contrasts]
        pixels = ["–" if s is None else f"{s:g} ({in_pixels(s, shape):.1f} px)" for s, _ in found]
        rows.append([kind, *(p + " ?" * (s != sure) for p, (s, sure) in zip(pixels, found, strict=True))])
    return table(["lesion", *(f"contrast {c:g}" for c in contrasts)], rows)


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Returns the notes to the detection curves, in plain words."""
    cells, high = result["cells"], result["false_alarms"]["ci"][1]
    kinds = dict.fromkeys(c["kind"] for c in cells)
    blind = [k for k in kinds if all(c["ci"][0] <= high for c in cells if c["kind"] == k)]
    found = sum(c["share"] >= FOUND for c in cells)
    return lines("stress.txt.j2", result=result, found=found, blind=blind)


# --- ablations --------------------------------------------------------------------------------------------


def ablation_plot(path: Path, grid: Grid, made: Mapping[str, Sequence[Measured]]) -> Path:
    """Draws two panels for each data set: AUROC of each cell, and its difference from the reference.

    Args:
        path: the PNG, whose folder is made if absent.
        grid: a grid of `dia ablate`.
        made: what was measured, by data set, one of each of the grid's cells.

    Returns:
        The path.
    """
    return save(partial(_ablation_figure, grid, made), path)


def _ablation_figure(grid: Grid, made: Mapping[str, Sequence[Measured]]) -> Figure:
    cells = grid.cells
    figure = Figure((9.5, 0.9 + (0.34 * len(cells) + 0.75) * len(made)), layout="constrained")
    panels = figure.subplots(len(made), 2, squeeze=False, sharey="row", width_ratios=(1.15, 1))
    names = [f"{c.label}{'  (reference)' if c.names == grid.reference else ''}" for c in cells]
    keys: dict[str, Any] = {}
    for (left, right), (dataset, found) in zip(panels, made.items(), strict=True):
        for y, m in enumerate(found):
            values = list(m.aurocs.values())
            if m.ci is not None:
                band = left.plot(m.ci, [y, y], color="C1", alpha=0.35, linewidth=5, solid_capstyle="butt")
                keys["95 % by images (left), paired (right)"] = band[0]
                keys["one seed"] = left.plot(values, [y] * len(values), "C1|", markersize=9)[0]
                keys["mean over seeds"] = left.plot(mean(values), y, "C1o")[0]
            if m.published is not None:
                keys["published"] = left.plot(m.published, y, "C0D", fillstyle="none")[0]
            if m.difference is not None:
                right.plot([m.difference.low, m.difference.high], [y, y], "C1", linewidth=1.6)
                right.plot(m.difference.value, y, "C1o", markersize=5)
        right.axvline(0, color=QUIET, linewidth=1, linestyle="--")
        left.set(yticks=range(len(cells)), yticklabels=names, xlabel="AUROC")
        left.set_title(dataset, loc="left", fontweight="bold", fontsize=10)
        right.set(xlabel="difference from the reference")
        for ax in (left, right):
            ax.locator_params(axis="x", nbins=5)  # more labels would overlap
        left.invert_yaxis()
    figure.legend(keys.values(), keys.keys(), loc="outside upper center", ncols=max(len(keys), 1), fontsize=8)
    return figure
