"""Tables in every form: what stands in them is shown, marks and notes with it, and nothing of it runs."""

import csv
import io

import pytest
from pages import EVIL, Page
from rich.console import Console

from dia.report import render
from dia.report.table import Marked, Table, table

ODD = "a|b & <i>x</i> \\end{tabular} 50%"


@pytest.fixture
def made():
    """Two blocks; marked values with notes; hostile text in head, heading, cells and notes."""
    rows = (("row", Marked("0.9", "best", ("[0.8, 1.0]", ODD))), (ODD, Marked("0.8", "second")))
    return Table(("name", EVIL), (("plain", rows), (EVIL, (("last", "–"),))), 1)


def test_markdown_has_one_row_each_with_as_many_cells(made):
    head, sides, family, first, second, *_ = render.markdown(made).splitlines()
    assert sides == "| --- | ---: |"
    assert family == "| *plain* |  |"
    assert first.startswith("| row | **0.9**<br>[0.8, 1.0]<br>a\\|b &amp; &lt;i>")
    assert second.endswith("| <ins>0.8</ins> |")
    assert "<i>" not in render.markdown(made)
    assert "<script" not in head
    assert render.escaped("a|b <i> *x* `y`\nz & w") == r"a\|b &lt;i> \*x\* \`y\` z &amp; w"
    assert render.markdown(table(("a", "b"), [])) == "None."


def test_csv_gives_the_text_back(made):
    text = render.csv(made)
    assert text[0] == "\ufeff"  # for Excel, as there is more than ASCII
    rows = list(csv.reader(io.StringIO(text[1:])))
    assert rows == [["name", EVIL], ["row", "0.9"], [ODD, "0.8"], ["last", "–"]]


def test_csv_runs_nothing():
    text = render.csv(table(("name", "=1+1"), [["@x", "-0.5"], ["+0.1 [0, 1]", "=cmd|' /C calc'!A0"]]))
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "'=1+1"], ["'@x", "-0.5"], ["'+0.1 [0, 1]", "'=cmd|' /C calc'!A0"],
    ]  # fmt: skip


def test_latex_prints_and_runs_nothing(made):
    assert render.tex(r"a_b & 50% \x{#}~^$") == (
        r"a\_b \& 50\% \textbackslash{}x\{\#\}\textasciitilde{}\textasciicircum{}\$"
    )
    text = render.latex(made, ODD)
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"\shortstack[r]{\textbf{0.9}\\ {\scriptsize [0.8, 1.0]}" in text
    assert r"\underline{0.8}" in text
    assert r"\begin{tabular}{lr}" in text


def test_html_shows_hostile_text_and_speaks_its_marks(made):
    page = Page(str(render.html(made, EVIL, "results")))
    assert (page.count("script"), page.count("i")) == (0, 0)
    assert page.text.count(EVIL) == 3  # caption, head, heading
    assert ODD in page.text
    assert "0.9 best" in page.text
    assert "0.8 second best" in page.text
    assert page.count("caption") == 1
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert "none" in render.html(table(("a",), []), "All")


def test_a_terminal_takes_no_markup_from_the_text():
    out = io.StringIO()
    Console(file=out, width=80).print(render.console(table(("[red]a",), [("[bold]b",)])))
    assert "[red]a" in out.getvalue()
    assert "[bold]b" in out.getvalue()
