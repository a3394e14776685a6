"""A `Table` as Markdown, CSV, LaTeX, HTML or rows in a terminal, which show its text and run none of it.

Knows forms of output; no results.
"""

from __future__ import annotations

import csv as csv_module
import io
import re
from collections.abc import Iterable

from markupsafe import Markup, escape
from rich.markup import escape as rich_escape
from rich.table import Table as RichTable

from .table import Marked, Table, Value


def _parts(value: Value) -> Marked:
    return value if isinstance(value, Marked) else Marked(value)


# --- Markdown ---------------------------------------------------------------------------------------------

_MARKDOWN = {"best": ("**", "**"), "clear": ("**", "**"), "second": ("<ins>", "</ins>"), "": ("", "")}


def escaped(text: str) -> str:
    """`text` as Markdown that shows it and nothing else."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|*`\\])", r"\\\1", text)


def markdown(table: Table) -> str:
    """Lines of a Markdown table, or "None." of a table without rows."""
    if not table.rows:
        return "None."
    words = len(table.head) if table.words is None else table.words
    out = [
        _row(map(escaped, table.head)),
        _row("---" if i < words else "---:" for i in range(len(table.head))),
    ]
    for heading, rows in table.blocks:
        if heading:
            out.append(_row([f"*{escaped(heading)}*", *[""] * (len(table.head) - 1)]))
        out += [_row(map(_markdown_cell, row)) for row in rows]
    return "\n".join(out)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(value: Value) -> str:
    cell = _parts(value)
    before, after = _MARKDOWN[cell.mark]
    return "<br>".join([before + escaped(cell.text) + after, *map(escaped, cell.notes)])


# --- CSV --------------------------------------------------------------------------------------------------


def csv(table: Table) -> str:
    """Head and rows; marks, notes and headings are left out."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([_parts(v).text for v in row] for row in table.rows)
    return out.getvalue()


# --- LaTeX ------------------------------------------------------------------------------------------------

_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "✓": r"$\checkmark$", "<": "$<$", ">": "$>$"},
    **{"⇄": r"$\rightleftarrows$", "“": "``", "”": "''", "†": r"\dag{}", "‡": r"\ddag{}"},
}
_TEX_MARKS = {"best": r"\textbf{%s}", "clear": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}


def tex(text: str) -> str:
    """`text` as LaTeX that prints it and runs nothing."""
    return "".join(_TEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def latex(table: Table, caption: str) -> str:
    """A `table*` environment for booktabs and graphicx, with notes in smaller lines below their value.

    Args:
        table: what stands in it.
        caption: as plain text.
    """
    columns = len(table.head)
    words = columns if table.words is None else table.words
    out = [
        "% \\usepackage{booktabs,graphicx,amssymb}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{tex(caption)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * words}{'r' * (columns - words)}}}",
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
    cell = _parts(value)
    shown = _TEX_MARKS[cell.mark] % tex(cell.text)
    if not cell.notes:
        return shown
    notes = "".join(rf"\\ {{\scriptsize {tex(note)}}}" for note in cell.notes)
    return rf"\shortstack[r]{{{shown}{notes}}}"


# --- HTML -------------------------------------------------------------------------------------------------

_SPOKEN = {"best": " best", "second": " second best"}  # for those who hear the page


def html(table: Table, caption: str, css: str = "") -> Markup:
    """A `table` with its caption, in a box that scrolls; of a table without rows a paragraph that says so.

    Args:
        table: what stands in it.
        caption: as plain text.
        css: further class names of the table.
    """
    if not table.rows:
        return Markup('<p class="soft">{}: none.</p>').format(caption)
    out = [
        Markup('<div class="scroll" tabindex="0" role="group" aria-label="{}">').format(caption),
        Markup('<table class="{}">').format(f"grid {css}".strip()),
        Markup("<caption>{}</caption>").format(caption),
        Markup("<thead><tr>{}</tr></thead>").format(
            Markup("").join(Markup('<th scope="col">{}</th>').format(h) for h in table.head)
        ),
    ]
    for heading, rows in table.blocks:
        out.append(Markup("<tbody>"))
        if heading:
            out.append(
                Markup(
                    '<tr class="family"><th scope="rowgroup" colspan="{}"><span>{}</span></th></tr>'
                ).format(len(table.head), heading)
            )
        for first, *rest in rows:
            cells = Markup("").join(Markup("<td>{}</td>").format(_html_cell(v)) for v in rest)
            head = Markup('<th scope="row">{}</th>').format(_html_cell(first))
            out.append(Markup("<tr>{}{}</tr>").format(head, cells))
        out.append(Markup("</tbody>"))
    return Markup("\n").join([*out, Markup("</table>\n</div>")])


def _html_cell(value: Value) -> Markup:
    cell = _parts(value)
    shown = escape(cell.text)
    if cell.mark:
        shown = Markup('<span class="{}">{}</span>').format(cell.mark, shown)
    if cell.mark in _SPOKEN:
        shown += Markup('<span class="hidden">{}</span>').format(_SPOKEN[cell.mark])
    return shown + Markup("").join(Markup("<small>{}</small>").format(note) for note in cell.notes)


# --- a terminal -------------------------------------------------------------------------------------------


def console(table: Table) -> RichTable:
    """For `rich` to print; marks and notes are left out."""
    made = RichTable(*map(rich_escape, table.head))
    for row in table.rows:
        made.add_row(*(rich_escape(_parts(v).text) for v in row))
    return made
