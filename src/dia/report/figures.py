"""Pictures of a benchmark and of ablations: mean ranks, ROC curves laid over each other, differences.

Knows numbers and names only. Each function takes its ink, so that a page draws in its own colours and a file
in black on white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from ..benchmark.grid import Grid, Measured
from ..benchmark.results import Ranking
from ..evaluate.stress import FOUND, in_pixels, smallest
from .style import ANOMALOUS, CSS_COLOURS, GRID, INK, svg

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


COLUMNS = 4
MARKERS = "os^Dvp"
PLAIN = {INK: "#24292f", GRID: "#d5d9de", ANOMALOUS: "#c2500a"}  # outside the page
assert set(PLAIN) <= set(CSS_COLOURS)


def curves(results: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str] | None = None) -> Figure:
    """Detection rate over size, a panel for each kind, a line for each contrast; a block for each result.

    Args:
        results: of `stress`, by title ("" for none).
        colours: in place of the page's.
    """
    ink, grid, line = ((colours or {}).get(c, c) for c in (INK, GRID, ANOMALOUS))
    kinds = list(dict.fromkeys(c["kind"] for r in results.values() for c in r["cells"]))
    columns = min(COLUMNS, len(kinds))
    rows = ceil(len(kinds) / columns)
    figure = Figure(
        figsize=(2.35 * columns + 0.6, (2.05 * rows + 0.5) * len(results) + 0.5), layout="constrained"
    )
    blocks = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    keys: list[Any] = []
    for block, (title, result) in zip(blocks, results.items(), strict=True):
        block.set_facecolor("none")
        if title:
            block.suptitle(title, color=ink, fontsize=11, fontweight="bold")
        panels = block.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in panels.flat[len(kinds) :]:
            ax.set_visible(False)
        for ax, kind in zip(panels.flat, kinds, strict=False):
            keys = _panel(ax, kind, result, ink, grid, line)
        for ax in panels[:, 0]:
            ax.set_ylabel("share found", color=ink, fontsize=9)
        for ax in panels.flat[max(len(kinds) - columns, 0) : len(kinds)]:  # the lowest of each column
            ax.set_xlabel("size, share of side", color=ink, fontsize=9)
            ax.tick_params(labelbottom=True)
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, labelcolor=ink, fontsize=9
    )
    return figure


def _panel(ax: Any, kind: str, result: Mapping[str, Any], ink: str, grid: str, line: str) -> list[Any]:
    cells = [c for c in result["cells"] if c["kind"] == kind]
    contrasts = sorted({c["contrast"] for c in result["cells"]})
    keys = []
    for i, contrast in enumerate(contrasts):
        own = sorted((c for c in cells if c["contrast"] == contrast), key=lambda c: float(c["size"]))
        x, y = [c["size"] for c in own], [c["share"] for c in own]
        ends = [[v - c["ci"][0] for v, c in zip(y, own, strict=True)],
                [c["ci"][1] - v for v, c in zip(y, own, strict=True)]]  # fmt: skip
        strength = 0.35 + 0.65 * (i + 1) / len(contrasts)
        x = [v * (1 + 0.035 * (i - (len(contrasts) - 1) / 2)) for v in x]  # bars beside each other
        style = {"marker": MARKERS[i % len(MARKERS)], "markersize": 3.5, "linewidth": 0.8 + 0.5 * i}
        label = f"contrast {contrast:g}"
        keys.append(
            ax.errorbar(x, y, yerr=ends, color=line, alpha=strength, elinewidth=0.9, label=label, **style)
        )
    ax.axhline(FOUND, color=ink, linewidth=0.8, linestyle="--")
    false = result["false_alarms"]
    ax.axhspan(*false["ci"], color=ink, alpha=0.1, linewidth=0)
    ax.axhline(false["share"], color=ink, linewidth=0.8, linestyle=":")
    sizes = sorted({c["size"] for c in result["cells"]})
    ax.set(xscale="log", ylim=(-0.03, 1.03), xticks=sizes, xticklabels=[f"{s:g}" for s in sizes])
    ax.minorticks_off()
    ax.set_title(kind, color=ink, fontsize=10)
    ax.tick_params(color=ink, labelcolor=ink, labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(ink)
    ax.patch.set_alpha(0)
    ax.grid(color=grid, linewidth=0.5)
    ax.set_axisbelow(True)
    return keys


def inline(result: Mapping[str, Any]) -> Markup:
    """The curves as SVG within a page."""
    return svg(curves({"": result}), "Share of pasted lesions found, by kind, over size, for each contrast")


def save_figure(path: Path, results: Mapping[str, Mapping[str, Any]]) -> Path:
    """The curves as a file of their own, PNG or SVG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nothing = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "dia"}):
        curves(results, PLAIN).savefig(path, dpi=120, metadata=nothing, facecolor="white")
    return path


def rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: kinds × contrasts, the smallest size found."""
    found = smallest(result)
    contrasts = sorted({c["contrast"] for c in result["cells"]})
    head = ["lesion", *(f"contrast {c:g}" for c in contrasts)]
    shape = result["normals"]["shape"]
    body = []
    for kind, by_contrast in found.items():
        cells = []
        for contrast in contrasts:
            seen, sure = by_contrast.get(contrast, (None, None))
            if seen is None:
                cells.append("–")
                continue
            cells.append(f"{seen:g} ({in_pixels(seen, shape):.1f} px){'' if sure == seen else ' ?'}")
        body.append([kind, *cells])
    return head, body


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the curves, in plain words."""
    n, false = result["normals"], result["false_alarms"]
    low, high = false["ci"]
    height, width = n["shape"][:2]
    found, all_ = sum(c["share"] >= FOUND for c in result["cells"]), len(result["cells"])
    said = [
        f"{n['images']} normal images of {height}×{width} pixels; {false['found']} of them "
        f"({false['share']:.1%}, 95 % interval {low:.1%} to {high:.1%}) are flagged as they are, at a "
        f"false-alarm rate of {result['false_alarm_rate']:g}.",
        result["remark"],
        f"{found} of {all_} combinations of kind, size and contrast are found in {FOUND:.0%} of the images "
        "or more.",
    ]
    if blind := _blind(result):
        said.append(
            f"At no size and contrast tested does this detector visibly notice: {', '.join(blind)} (no "
            "interval lies above that of the false alarms)."
        )
    return said


def _blind(result: Mapping[str, Any]) -> Sequence[str]:
    ceiling = result["false_alarms"]["ci"][1]
    kinds = dict.fromkeys(c["kind"] for c in result["cells"])
    return [k for k in kinds if all(c["ci"][0] <= ceiling for c in result["cells"] if c["kind"] == k)]


def ablation_plot(path: Path, grid: Grid, made: Mapping[str, Sequence[Measured]]) -> Path:
    """Two panels for each data set: AUROC of each cell, and its difference from the reference.

    Args:
        path: of the PNG, whose folder is made if absent.
        grid: of `dia ablate`.
        made: by data set, of each of the grid's cells.

    Returns:
        The path.
    """
    cells = grid.cells
    height = 0.9 + (0.34 * len(cells) + 0.75) * len(made)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots(len(made), 2, squeeze=False, sharey="row", width_ratios=(1.15, 1))
    y = np.arange(len(cells))
    names = [f"{c.label}{'  (reference)' if c.names == grid.reference else ''}" for c in cells]
    for (left, right), (dataset, found) in zip(axes, made.items(), strict=True):
        for place, r in zip(y, found, strict=True):
            values = list(r.aurocs.values())
            if r.ci is not None:
                left.plot(r.ci, [place, place], color="#9db7d0", linewidth=5, solid_capstyle="butt", zorder=1)
                left.plot(values, [place] * len(values), "|", color="#1b4f82", markersize=9, zorder=2)
                left.plot(mean(values), place, "o", color="#1b4f82", markersize=6, zorder=3)
            if r.published is not None:
                left.plot(r.published, place, "D", color="#c45a11", fillstyle="none", markersize=6, zorder=3)
            if r.difference is not None:
                d = r.difference
                right.plot([d.low, d.high], [place, place], color="#1b4f82", linewidth=1.6)
                right.plot(d.value, place, "o", color="#1b4f82", markersize=5)
        right.axvline(0, color="#555555", linewidth=1, linestyle="--")
        left.set(yticks=y, yticklabels=names, xlabel="AUROC")
        left.set_title(dataset, loc="left", fontweight="bold", fontsize=10)
        right.set(xlabel="difference from the reference")
        for ax in (left, right):
            ax.locator_params(axis="x", nbins=5)  # more run into each other
            ax.grid(axis="x", color="#dddddd", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        left.invert_yaxis()
    keys = [
        *figure.axes[0].plot([], [], "o", color="#1b4f82", label="mean over seeds"),
        *figure.axes[0].plot([], [], "|", color="#1b4f82", markersize=9, label="one seed"),
        *figure.axes[0].plot(
            [], [], color="#9db7d0", linewidth=5, label="95 % by images (left), paired (right)"
        ),
    ]
    if any(r.published is not None for found in made.values() for r in found):
        keys += figure.axes[0].plot([], [], "D", color="#c45a11", fillstyle="none", label="published")
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
