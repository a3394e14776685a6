"""The tables of the benchmark within another text, such as the README. Knows the ledger's lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...benchmark.ledger import update_section
from ...benchmark.results import BenchmarkResults, benchmark_results
from ...benchmark.runs import current_lines
from ...core.errors import DataError
from ...data.datasets import CATALOG
from ...detectors.registry import DEFAULT, TRIVIAL
from .. import render
from . import sentences, tables
from .extras import extras_of
from .scores import Scores, comparisons
from .standing import standing

TABLES, STANDING = ("SETS", "RESULTS", "HEATMAPS"), ("FAIR", "COUNT")  # the marks of either function below


def marks_in(path: Path, names: Sequence[str]) -> list[str]:
    """Returns which of some marks a text has.

    Args:
        path: a text file.
        names: `TABLES` or `STANDING`.

    Returns:
        Those of the names that are there.

    Raises:
        DataError: it has none of them.
    """
    text = path.read_text(encoding="utf-8")
    if found := [name for name in names if f"<!-- {name}:begin -->" in text]:
        return found
    raise DataError(f"{path} holds none of the marks <!-- NAME:begin --> with NAME one of {', '.join(names)}")


def marked_tables(path: Path, rows: Sequence[Mapping[str, Any]], datasets: Sequence[str] = ()) -> None:
    """Draws the ledger's `cpu` rows and the paper's values into a text, and says who beats whom.

    Only lines of the preset as it is now are drawn: those of earlier settings stay in the ledger as history.

    Args:
        path: a text file with a pair of the marks SETS, RESULTS or HEATMAPS, or with several.
        rows: lines of the ledger.
        datasets: those of RESULTS, which has their other directions too; all that were compared where empty.

    Raises:
        DataError: it has none of them, or one without its end.
    """
    there = marks_in(path, TABLES)
    today = current_lines(rows, "cpu")
    # generated images are no result, but their heatmaps are; controls are of the heatmaps
    real = [
        r for r in today
        if not r["dataset"].startswith("phantom") and not r["method"].startswith("control:")
    ]  # fmt: skip
    compared = {r["dataset"] for r in real if r["method"] != DEFAULT and r["method"] not in TRIVIAL}
    asked = {_images(name) for name in datasets}
    shown = [r for r in real if r["dataset"] in compared and (not asked or _images(r["dataset"]) in asked)]
    shown = shown or real
    mapped = [r for r in today if "pixel_auroc" in r]
    made = {
        "SETS": render.markdown(tables.default_table(benchmark_results(real))) if real else "",
        "RESULTS": "No run yet.",
        "HEATMAPS": "No run with masks yet.",
    }
    if shown:
        results = benchmark_results(shown)
        page = render.markdown_page(
            "readme.md.j2", results=results, standing=standing(results, {}), tables=tables,
            sentences=sentences,
        )  # fmt: skip
        made["RESULTS"] = page
    if mapped:
        made["HEATMAPS"] = render.markdown(tables.heatmap_table(benchmark_results(mapped)))
    for name in there:
        update_section(path, name, made[name])


def _images(name: str) -> str:
    """Returns where a set's images are: both directions of a set have one file."""
    return CATALOG[name].path if name in CATALOG and CATALOG[name].path else name


def marked_standing(path: Path, results: BenchmarkResults, scores: Mapping[str, Scores]) -> None:
    """Draws into a text, between the marks FAIR, how methods stand over the data sets.

    Args:
        path: the text file; with the marks COUNT the sentences alone are drawn between them.
        results: results of the benchmark.
        scores: raw scores by data set.

    Raises:
        DataError: it has no such marks, or one without its end.
    """
    there = marks_in(path, STANDING)
    stands = standing(results, comparisons(results, scores))
    count = sentences.counts(stands)
    made = render.markdown(tables.standing_table(stands))
    if more := extras_of(results, stands).longer:
        made += f"\n\nWith more steps, judged once at the end:\n\n{render.markdown(more)}"
    for name in there:
        spent = f"{sentences.spent(results)} Seeds: {results.seeds} at most."
        whole = count if name == "COUNT" else f"{count} {spent}\n\n{made}"
        update_section(path, name, whole)
