"""The common parts of pages and figures: jinja's environment, colours, inline SVG, pictures, closing words.

Knows no numbers, runs or images. The style of the pages is in `style.html.j2`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from ..data.formats.mark import MARK

# Colours of ink, grid, anomalous ("C0") and normal ("C1"). Matplotlib has no CSS colours: a page is drawn in
# colours that nothing else uses, which are then replaced by the page's own.
_CSS = {
    "#010203": "currentColor",
    "#010204": "var(--line)",
    "#010206": "var(--anomalous)",
    "#010205": "var(--normal)",
}
QUIET = "#8a94a0"  # legible on white and on black
_FILE = ("#24292f", "#d5d9de", "#c2500a", "#0072b2")


@cache
def environment() -> Environment:
    """Jinja's environment for the templates of this folder, with HTML escaped."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": _number, "percent": lambda v: f"{100 * v:.3g}\N{NO-BREAK SPACE}%"}
    return made


def lines(template: str, **values: Any) -> list[str]:
    """Fills a template of plain sentences.

    Args:
        template: name of a file in `templates`, with a sentence a line.
        **values: values that the template names.

    Returns:
        The sentences; empty lines are left out.
    """
    text = environment().overlay(autoescape=False).get_template(template).render(**values)
    return [line for line in text.splitlines() if line]


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def axes(xlabel: str, ylabel: str, size: tuple[float, float] = (5.2, 3.6)) -> tuple[Figure, Any]:
    """A figure with one pair of axes.

    Args:
        xlabel: label of the x axis.
        ylabel: label of the y axis.
        size: width and height in inches.

    Returns:
        The figure and its axes.
    """
    figure = Figure(size, layout="constrained")
    ax = figure.add_subplot()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return figure, ax


def svg(draw: Callable[[], Figure], description: str) -> Markup:
    """Inline SVG in the page's own colours and fonts.

    Args:
        draw: makes the figure.
        description: text that screen readers read out.

    Returns:
        The `svg` element; the same figure gives the same text.
    """
    buffer = io.StringIO()
    with _painted(description, *_CSS):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    for colour, css in _CSS.items():
        drawn = drawn.replace(colour, css)
    opening = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(drawn[drawn.index("<svg") :].replace("<svg", opening, 1))  # safe: matplotlib escapes text


def save(draw: Callable[[], Figure], path: Path) -> Path:
    """Writes a figure on white, PNG or SVG by the name's ending; the same figure gives the same file.

    Args:
        draw: makes the figure.
        path: the file, whose folder is made if absent.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dates = {"Date": None} if path.suffix == ".svg" else {"Software": MARK}
    with _painted(path.name, *_FILE):
        draw().savefig(path, dpi=130, facecolor="white", metadata=dates)
    return path


def _painted(salt: str, ink: str, grid: str, anomalous: str, normal: str) -> AbstractContextManager[None]:
    """Matplotlib's settings while a figure is drawn and saved, as ticks are made only then."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        "axes.prop_cycle": cycler(color=[anomalous, normal]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # ids would be random otherwise
    }
    return mpl.rc_context(settings | dict.fromkeys(inked, ink))
