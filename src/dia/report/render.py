"""A `Table` as Markdown, CSV, LaTeX, HTML or rows in a terminal, which show its text and run none of it.

Knows forms of output; no results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup
from rich.markup import escape as rich_escape
from rich.table import Table as RichTable

from ..data.formats.spreadsheet import csv_text, marked
from .style import environment
from .table import Marked, Table, Value

_MARKDOWN = {"best": "**%s**", "clear": "**%s**", "second": "<ins>%s</ins>", "": "%s"}
_TEX_MARKS = {"best": r"\textbf{%s}", "clear": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "✓": r"$\checkmark$", "<": "$<$", ">": "$>$"},
    **{"⇄": r"$\rightleftarrows$", "“": "``", "”": "''", "†": r"\dag{}", "‡": r"\ddag{}"},
}


def _marked(value: Value) -> Marked:
    return value if isinstance(value, Marked) else Marked(value)


def escaped(text: str) -> str:
    """Markdown on one line that shows `text` and nothing else."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|*`\\])", r"\\\1", text)


def markdown(table: Table) -> str:
    """Lines of a Markdown table, or "None." of a table without rows."""
    if not table.rows:
        return "None."
    sides = ["---" if i < table.words else "---:" for i in range(len(table.head))]
    out: list[Iterable[str]] = [map(escaped, table.head), sides]
    for heading, rows in table.blocks:
        if heading:
            out.append([f"*{escaped(heading)}*", *[""] * (len(table.head) - 1)])
        out += [map(_markdown_cell, row) for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in out)


def _markdown_cell(value: Value) -> str:
    cell = _marked(value)
    return "<br>".join([_MARKDOWN[cell.mark] % escaped(cell.text), *map(escaped, cell.notes)])


def markdown_page(template: str, **content: Any) -> str:
    """Fills a template of Markdown, in which values are escaped and tables are drawn.

    Args:
        template: name of a file in `templates`.
        **content: values that the template names.

    Returns:
        The page, in which no two blank lines follow each other.
    """

    def shown(value: Any) -> Markup:
        if isinstance(value, Table):
            return Markup(markdown(value))
        return value if isinstance(value, Markup) else Markup(escaped(str(value)))

    page = environment().overlay(finalize=shown).get_template(template).render(**content)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def csv(table: Table) -> str:
    """Head and rows as CSV that spreadsheets open right; marks, notes and headings are left out."""
    return marked(csv_text([table.head, *([_marked(v).text for v in row] for row in table.rows)]))


def tex(text: str) -> str:
    """LaTeX that prints `text` and runs nothing."""
    return "".join(_TEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def latex(table: Table, caption: str) -> str:
    """A `table*` environment for booktabs and graphicx, with notes in smaller lines below their value.

    Args:
        table: what to draw.
        caption: plain text.

    Returns:
        LaTeX source.
    """
    columns = len(table.head)
    sides = "l" * table.words + "r" * (columns - table.words)
    out = [
        "% \\usepackage{booktabs,graphicx,amssymb}",
        rf"\begin{{table*}}\centering\caption{{{tex(caption)}}}",
        rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        _tex_row(map(tex, table.head)),
    ]
    for heading, rows in table.blocks:
        out.append(r"\midrule")
        if heading:
            out.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{tex(heading)}}}}} \\")
        out += [_tex_row(map(_tex_cell, row)) for row in rows]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_cell(value: Value) -> str:
    cell = _marked(value)
    shown = _TEX_MARKS[cell.mark] % tex(cell.text)
    notes = "".join(rf"\\ {{\scriptsize {tex(note)}}}" for note in cell.notes)
    return rf"\shortstack[r]{{{shown}{notes}}}" if notes else shown


def html(table: Table, caption: str, css: str = "") -> Markup:
    """A `table` element with its caption in a box that scrolls; a paragraph where there are no rows.

    Args:
        table: what to draw.
        caption: plain text.
        css: further class names of the table.

    Returns:
        The element.
    """
    blocks = [(heading, [[*map(_marked, row)] for row in rows]) for heading, rows in table.blocks]
    made = environment().get_template("table.html.j2")
    return Markup(made.render(head=table.head, blocks=blocks, rows=table.rows, caption=caption, css=css))


def console(table: Table) -> RichTable:
    """A table for `rich` to print; marks and notes are left out."""
    made = RichTable(*map(rich_escape, table.head))
    for row in table.rows:
        made.add_row(*(rich_escape(_marked(v).text) for v in row))
    return made
