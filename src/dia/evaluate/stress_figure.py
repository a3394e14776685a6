"""Figures and sentences of a stress test. Draws what `stress.py` measured; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from .page import ANOMALOUS, CSS_COLOURS, GRID, INK, svg
from .stress import FOUND, in_pixels, smallest

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
