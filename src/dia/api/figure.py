"""The figure of one image with its heatmap. Draws what it is given."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..data.formats.mark import MARK
from ..report.pictures import COLOURS, scale_of

if TYPE_CHECKING:
    from ..detectors.calibration import HeatScale


class Shown(Figure):
    """A figure that a notebook shows when it is the value of a cell, whatever backend matplotlib has.

    A PNG of it carries the mark by which it is not read again as a scan.
    """

    def savefig(self, fname: Any, **options: Any) -> None:
        """Writes the figure; arguments as matplotlib's."""
        kind = options.get("format") or (Path(fname).suffix if isinstance(fname, str | Path) else "")
        if kind.lower() in ("", "png", ".png"):
            options["metadata"] = {"Software": MARK, **options.get("metadata", {})}
        super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def figure_of(
    image: np.ndarray, heatmap: np.ndarray | None, title: str, heat: HeatScale | None, rate: float
) -> Figure:
    """Draws an image and, beside it, its heatmap over it, with a contour and the scale of colours.

    Args:
        image: `(H, W, C)` uint8.
        heatmap: `(H, W)`; None where there is none.
        title: lines above both.
        heat: what heatmaps of normals are like, which sets colours and contour; None where it is not known.
        rate: share of normals that have a place within a contour, at most.

    Returns:
        The figure.
    """
    figure = Shown((3.6 if heatmap is None else 7.8, 4.0), layout="constrained")
    figure.suptitle(title, parse_math=False, fontsize=10)
    panels = figure.subplots(1, 1 if heatmap is None else 2, squeeze=False)[0]
    for ax in panels:
        ax.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.axis("off")
    if heatmap is not None:
        low, high = scale_of(heatmap) if heat is None else heat.scale
        over = 0.65 * np.clip((heatmap - low) / max(high - low, 1e-9), 0, 1)  # usual places stay clear
        panels[1].imshow(heatmap, cmap=COLOURS, vmin=low, vmax=high, alpha=over)
        shown = ScalarMappable(Normalize(low, high), COLOURS)
        figure.colorbar(shown, ax=panels[1], shrink=0.8, label="unusual, higher is more")
        level = None if heat is None else heat.level(rate)
        if level is not None and heatmap.min() < level < heatmap.max():
            panels[1].contour(heatmap, [level], colors="cyan", linewidths=1.2)
            panels[1].set_title(f"line: at most {100 * rate:.3g} % of normals have such a place", fontsize=8)
    return figure
