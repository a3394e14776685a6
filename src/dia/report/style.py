"""What the HTML pages share: the template's surroundings, plots in the page's own colours, the last words.

Knows no numbers, runs or images. The style is in `style.html.j2`, which every page's template includes.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

LIMITS = (
    "For research use only. Not a medical device: not for diagnosis, triage or any decision about a patient. "
    "A high score says that an image differs from the normal images of training, not that there is disease; "
    "a low score does not exclude disease. Heatmaps hint at where the score comes from and prove nothing."
)

# Matplotlib has no CSS colours: draw in colours nobody uses, then put the page's own in their place.
INK, GRID, NORMAL, ANOMALOUS = "#010203", "#010204", "#010205", "#010206"
CSS_COLOURS = {
    INK: "currentColor",
    GRID: "var(--line)",
    NORMAL: "var(--normal)",
    ANOMALOUS: "var(--anomalous)",
}


def environment() -> Environment:
    """Jinja's, with escaping, for the templates of this folder."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": _number, "percent": _percent}
    return made


def axes(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    """A figure with one pair of axes, in the page's colours."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.tick_params(color=INK, labelcolor=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[:].set_color(INK)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    return figure, ax


def svg(figure: Figure, description: str) -> Markup:
    """The figure as inline SVG in the page's own colours and fonts; `description` is read out."""
    buffer = io.StringIO()
    # fixed salt and no metadata: the same content gives the same page; text stays text
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    for colour, css in CSS_COLOURS.items():
        drawn = drawn.replace(colour, css)
    opening = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(drawn[drawn.index("<svg") :].replace("<svg", opening, 1))  # safe: matplotlib escapes text


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%"
