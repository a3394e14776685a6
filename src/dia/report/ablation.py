"""The page of an ablation: its tables and its plot. Knows grids and what was measured; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from ..benchmark.grid import Grid, Measured
from . import render, text
from .style import QUIET, save
from .table import Marked, Table, Value, table
from .text import over_seeds


def ablation_page(grid: Grid, made: Mapping[str, Sequence[Measured]], picture: str = "") -> str:
    """The Markdown page of a grid: its question, a table for each data set, the plot.

    Args:
        grid: a grid of `dia ablate`.
        made: what was measured, by data set, one of each of the grid's cells.
        picture: name of the plot's file; none where empty.

    Returns:
        The page.
    """
    rest = {d: v for d, v in grid.published.items() if d not in made}
    return render.markdown_page(
        "ablation.md.j2",
        grid=grid,
        reference=next(c.label for c in grid.cells if c.names == grid.reference),
        picture=picture,
        tables={d: ablation_table(grid, of_set) for d, of_set in made.items()},
        published=published_table(grid, rest) if rest else None,
    )


def ablation_table(grid: Grid, made: Sequence[Measured]) -> Table:
    """The cells of a grid on one data set: AUROC; published values and measures of heatmaps, if any.

    Args:
        grid: a grid of `dia ablate`.
        made: what was measured, one of each cell.

    Returns:
        The table.
    """
    published, mapped = any(m.published is not None for m in made), any(m.maps for m in made)
    head = [*grid.factors, "AUROC", *(["published", "ours − published"] if published else [])]
    head += ["pixel AUROC", "PRO"] if mapped else []
    rows = []
    for m in made:
        values, seeds, d = list(m.aurocs.values()), len(grid.seeds), m.difference
        few = f" ({len(values)} of {seeds} seeds)" if 0 < len(values) < seeds else ""
        row: list[Value] = [*m.cell.names, over_seeds(values) + few]
        if published:
            both = values and m.published is not None
            row += [_number(m.published), text.signed(mean(values) - (m.published or 0)) if both else "–"]
        if mapped:
            row += map(_number, m.maps or (None, None))
        last = "–" if d is None else Marked(text.difference(d), "clear" if d.low > 0 or d.high < 0 else "")
        rows.append([*row, "reference" if m.cell.names == grid.reference else last])
    return table([*head, "difference [95 %]"], rows, len(grid.factors))


def published_table(grid: Grid, values: Mapping[str, Mapping[str, float]]) -> Table:
    """Published values of data sets that are not measured here.

    Args:
        grid: a grid of `dia ablate`.
        values: AUROC by data set and by cell ("level/level").

    Returns:
        The table.
    """
    cells = [c for c in grid.cells if any("/".join(c.names) in v for v in values.values())]
    rows = [[*c.names, *(_number(v.get("/".join(c.names))) for v in values.values())] for c in cells]
    return table([*grid.factors, *values], rows, len(grid.factors))


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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
