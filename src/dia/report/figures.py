"""Figures of a run: AUROC by the number of normals, and detection rates of the stress test.

Knows numbers and names only. Ink, grid and the colours "C0" and "C1" are those of `style.py`, so that the
same figure can stand in a page or in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ..evaluate.learning_curve import Point
from ..evaluate.stress import FOUND, in_pixels, smallest
from .style import axes, lines
from .table import Table, table

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
