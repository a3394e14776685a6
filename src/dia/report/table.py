"""The one type of table that is shown anywhere.

A `Table` holds text and marks; `render.py` gives it the form of Markdown, CSV, LaTeX, HTML or a terminal.
Knows no results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Marked(NamedTuple):
    """A value that is marked, or has smaller lines below it.

    Args:
        text: the value as shown.
        mark: `best` and `clear` are bold, `second` is underlined.
        notes: the smaller lines.
    """

    text: str
    mark: Literal["best", "second", "clear", ""] = ""
    notes: tuple[str, ...] = ()


Value = Marked | str
Line = Sequence[Value]


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Args:
        head: names of the C columns.
        blocks: rows of C values each, under a heading, which may be empty.
        words: number of columns from the left that hold words; numbers in the others are aligned right.
    """

    head: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[Line, ...]], ...]
    words: int

    @property
    def rows(self) -> list[Line]:
        """The rows of all blocks."""
        return [row for _, rows in self.blocks for row in rows]


def table(head: Iterable[str], rows: Iterable[Line], words: int | None = None) -> Table:
    """A table of one block without heading.

    Args:
        head: names of the C columns.
        rows: rows of C values each.
        words: number of columns from the left that hold words, None for all.

    Returns:
        The table.

    Example:
        >>> from dia.report import render
        >>> print(render.markdown(table(["method", "AUROC"], [["dia", Marked("0.9", "best")]], words=1)))
        | method | AUROC |
        | --- | ---: |
        | dia | **0.9** |
    """
    names = tuple(head)
    return Table(names, (("", tuple(rows)),), len(names) if words is None else words)
