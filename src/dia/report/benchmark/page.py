"""The page of the benchmark, drawn from the ledger, with its files.

Draws results and their raw scores; runs and fits nothing. The words of the pages are in `templates`; the HTML
page asks nothing of the network, and runs the one script that its policy names by its hash.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ...benchmark.published import BASE, paper_gains, paper_table
from ...benchmark.results import BenchmarkResults, FailureKey, about, benchmark_results, headline_gain
from ...detectors.registry import DEFAULT
from ...evaluate.ranking import ROPE
from .. import render
from ..constants import LIMITS
from ..style import environment, save, svg
from . import sentences, tables
from .dots import Plot, auroc_scale, plot
from .extras import Extras, extras_of
from .figures import critical_difference_diagram, roc_curves
from .pictures import Pictures
from .scores import comparisons, load_scores, paired_table, pairs_table
from .sets import ENOUGH, Context, copies_table, set_table
from .standing import Standing, standing

_RANKS = "critical-difference"
_COSTS = {
    "processor": ("processor seconds of a run", "s"),
    "score_images_per_second": ("images a second", "images/s"),
}


def write_benchmark_report(
    out: Path,
    lines: Sequence[Mapping[str, Any]],
    scores_folder: Path,
    failures: Mapping[FailureKey, str] | None = None,
    title: str = "Benchmark",
    sets: Mapping[str, Context] | None = None,
    extras: Extras | None = None,
    pictures: Pictures | None = None,
    notes: Sequence[str] = (),
    data_root: str | None = None,
) -> list[Path]:
    """Writes `benchmark.md`, `.html`, `.csv` and `.tex`, `pairs.csv` and their pictures into `out`.

    Args:
        out: a folder, made if it is absent.
        lines: lines of the ledger, already selected: one per method, kind of weights, data set and seed.
        scores_folder: folder of raw scores (`benchmark.runs.scores_path`); some may be missing.
        failures: reasons of failed runs by (data set, method, weights, seed).
        title: title of the page.
        sets: what is known of the images themselves, by data set.
        extras: tables from elsewhere; those of `extras_of` if None.
        pictures: what methods marked in test images.
        notes: sentences for the top of the page, such as on runs that are not made yet.
        data_root: where the data sets lie, for intervals by patient or frame where names tell them.

    Returns:
        The files written.

    Raises:
        ValueError: there are no lines, or several settings, presets or data behind one cell.
    """
    results = benchmark_results(lines, failures)
    scores, sets = load_scores(results, scores_folder, data_root), sets or {}
    differences, curves = comparisons(results, scores), roc_curves(results, scores)
    stands, labels = standing(results, differences), {d: of.labels for d, of in scores.items()}
    out.mkdir(parents=True, exist_ok=True)
    slugs = dict[str, str]()
    for d in curves:  # names may differ in what no file's name should hold
        slug = f"roc-{re.sub(r'[^A-Za-z0-9_.-]+', '_', d)}"
        slugs[d] = slug if slug not in slugs.values() else f"{slug}-{len(slugs)}"
    written = [save(draw, out / f"{slugs[d]}.png") for d, draw in curves.items()]
    written += [p.file for of in (pictures.sets if pictures else ()) for p in of.pictures]
    ranks = None
    if results.ranking is not None:
        diagram = partial(critical_difference_diagram, results.ranking)
        written += [save(diagram, out / f"{_RANKS}.{form}") for form in ("png", "svg")]
        ranks = svg(diagram, "Critical-difference diagram: mean ranks, best on the left")
    content = {
        "title": title,
        "notes": notes,
        "results": results,
        "standing": stands,
        "default": DEFAULT,
        "tables": tables,
        "sentences": sentences,
        "of_sets": set_table(results, labels, {d: of.facts for d, of in sets.items()}),
        "copies": {
            d: copies_table(results, scores[d].rows, of.labels, of.copied, scores[d].units)
            for d, of in sets.items()
            if of.copied.mean() >= ENOUGH and d in scores and np.array_equal(of.labels, labels[d])
        },
        "paired": {
            d: {reference: paired_table(pairs) for reference, pairs in of.items()}
            for d, of in differences.items()
        },
        "scores": scores,
        "base": BASE,
        "paper_gain": paper_gains()["dia"],
        "headline": headline_gain(),
        "wrong": [p for p in paper_table().values() if p.corrected],
        "about": about,
        "extras": extras or extras_of(results, stands),
        "pictures": pictures,
        "rope": ROPE,
        "limits": LIMITS,
    }
    script = (Path(__file__).parents[1] / "templates" / "sort.js").read_text(encoding="utf-8")
    drawn = (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            **content,
            html=render.html,
            scale=_scale(results),
            plots=_plots(stands),
            ranks=ranks,
            curves={d: svg(draw, f"ROC curves on {d}") for d, draw in curves.items()},
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        )
    )
    words = vars(environment().get_template("words.j2").module)
    caption = " ".join([f"{title}.", str(words["how_to_read"]), *sentences.direction_notes(results)])
    for name, made in {
        "benchmark.md": render.markdown_page("benchmark.md.j2", **content, slugs=slugs),
        "benchmark.html": drawn,
        "benchmark.csv": render.csv(tables.long_table(results)),
        "benchmark.tex": render.latex(tables.results_table(results), caption),
        "pairs.csv": render.csv(pairs_table(scores)),
    }.items():
        written.append(out / name)
        written[-1].write_text(made, encoding="utf-8", errors="replace")
    return written


def _scale(results: BenchmarkResults) -> Any:
    """The axis of all figures of dots: it holds every mean, and the most of every interval."""
    cells = [c for r in results.rows if r.contends or r.control for c in r.cells.values()]
    return auroc_scale(
        [c.mean for c in cells] + [results.best_trivial[d].cells[d].mean for d in results.best_trivial]
    )


def _plots(stands: Standing) -> list[tuple[str, Plot]]:
    """AUROC over costs, of the methods that have all data sets and of the best untrained row."""
    found = []
    whole = [*stands.whole, *filter(None, [stands.untrained])]
    for what, (words, unit) in _COSTS.items():
        values = []
        for s in whole:
            css = "untrained" if s.row.trivial else "default" if s.row.method == DEFAULT else "method"
            if (cost := s.row.average(what)) is not None:
                values.append((stands.short(s.row), max(cost, 0.01), s.mean, css))
        if values:
            found.append((words, plot(values, unit)))
    return found
