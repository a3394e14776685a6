"""The benchmark's results: rows of (method, kind of weights), columns of data sets, the paper's values too.

Knows ledger lines, the catalogue's facts of data sets and the paper's table; no raw scores, plots or pages.
Every output is drawn from one `BenchmarkResults`, by `dia.report`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import mean
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError
from ..data.datasets import CATALOG
from ..detectors.registry import detector_class
from ..evaluate.compare import Friedman, Nemenyi, friedman, nemenyi, relative_gain
from .grid import load_grid
from .ledger import table as grouped
from .published import BASE, DIRECTIONS, OTHER, Published, paper_table
from .runs import weights_kind

TRIVIAL = "trivial:"
UNTRAINED = "untrained"
Mark = Literal["best", "second", ""]
FailureKey = tuple[str, str, str, int]  # data set, method, weights, seed


@dataclass(frozen=True)
class Entry:
    """One row on one data set.

    Args:
        runs: its ledger lines, one for each seed.
        mean: AUROC over seeds.
        std: over seeds, n − 1; None with one seed.
        ci: the mean over seeds of each run's 95 % bootstrap interval; it counts the images only.
        ap: average precision over seeds.
        paper: (mean, standard deviation) the paper prints for this method and data set, in either direction.
        direction: how sure it is that the paper's is of this direction, see `published.Published.beside`.
        mark: 'best' or 'second' of its column to three decimals, or empty.
        fit_seconds: median over seeds, as are `images_per_second` and `peak_memory_mb`; None where unknown.
    """

    runs: tuple[Mapping[str, Any], ...]
    mean: float
    std: float | None
    ci: tuple[float, float]
    ap: float
    paper: tuple[float, float] | None
    direction: str
    mark: Mark
    fit_seconds: float | None
    images_per_second: float | None
    peak_memory_mb: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None beside a number that is most likely of the other direction."""
        return None if self.paper is None or self.direction == OTHER else self.mean - self.paper[0]


@dataclass(frozen=True)
class Row:
    """One method with one kind of weights.

    Args:
        method: our name.
        kind: 'none', 'imagenet', 'file' or 'dia'.
        family: the paper's heading, else the method's own.
        weights: what the lines say of them, without seeds; paths of 'dia' and 'file' are left out.
        starts_from: the ImageNet weights its publication starts from, or 'none'.
        published: its row of the paper.
        sizes: what images it worked at, and what else it did otherwise than asked, by data set.
        cells: by data set; those without a run are absent.
        failures: reasons by data set.
        rank: mean rank among the rows of the test; None if it takes no part.
        gain: mean relative gain over CSI, on the data sets named in `gain_over`; None without any.
    """

    method: str
    kind: str
    family: str
    weights: str
    starts_from: str
    published: Published | None
    sizes: Mapping[str, str]
    cells: Mapping[str, Entry]
    failures: Mapping[str, Mapping[int, str]]
    rank: float | None = None
    gain: float | None = None
    gain_over: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The method, with its weights where they are not none."""
        return self.method if self.kind == "none" else f"{self.method} [{self.kind}]"

    @property
    def trivial(self) -> bool:
        """Whether it trains nothing."""
        return self.method.startswith(TRIVIAL)

    def average(self, what: str) -> float | None:
        """Mean over data sets of the cells' `fit_seconds`, `images_per_second` or `peak_memory_mb`."""
        values = [v for c in self.cells.values() if (v := getattr(c, what)) is not None]
        return mean(values) if values else None

    @property
    def printed(self) -> str:
        """The paper's mark of extra data, and our correction of it."""
        if self.published is None:
            return "–"
        said = ("✓" if self.published.extra_data else "×") + self.published.mark
        return f"{said}, but starts from ImageNet" if self.published.corrected else said


@dataclass(frozen=True)
class Ranking:
    """The tests over data sets: these, the names of the rows, and of those left out with what they lack.

    `trivial` is the one untrained row that takes part, the best by mean AUROC; empty without any.
    """

    datasets: tuple[str, ...]
    names: tuple[str, ...]
    friedman: Friedman
    nemenyi: Nemenyi
    trivial: str
    left_out: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class BenchmarkResults:
    """All that the outputs show.

    Args:
        datasets: columns; the other direction of a data set right after it.
        rows: the trivial ones, then methods by family.
        seeds: the most that any cell has.
        best_trivial: the best untrained row of each data set that has one.
        ranking: the tests; None with fewer than two data sets or three rows that have them all.
        why_no_ranking: a sentence, if there is none.
    """

    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int
    best_trivial: Mapping[str, Row]
    ranking: Ranking | None
    why_no_ranking: str

    @property
    def once(self) -> tuple[str, ...]:
        """The columns over which tests and gains are: without other directions, which are no new images."""
        return _once(self.datasets)

    @property
    def blocks(self) -> list[tuple[str, list[Row]]]:
        """Rows by family, in order."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.family, []).append(row)
        return list(found.items())


def benchmark_results(
    lines: Iterable[Mapping[str, Any]], failures: Mapping[FailureKey, str] | None = None
) -> BenchmarkResults:
    """Gathers ledger lines into rows and cells.

    Args:
        lines: of the ledger, already selected: of each row and data set one line per seed.
        failures: reasons of runs that came to nothing, by (data set, method, weights, seed).

    Raises:
        ValueError: no lines, or lines of one row and data set that mix presets, data or settings.
    """
    lines, failures = list(lines), dict(failures or {})
    if not lines and not failures:
        raise ValueError("a benchmark needs at least one line of the ledger: run some first")
    datasets = _in_order(dict.fromkeys([r["dataset"] for r in lines] + [k[0] for k in failures]))
    keys = [(r["method"], r["weights_kind"]) for r in lines] + [(k[1], weights_kind(k[2])) for k in failures]
    rows = [_row(m, kind, lines, failures) for m, kind in dict.fromkeys(keys)]
    families = _families(rows)
    papers = list(paper_table())

    def place(row: Row) -> tuple[int, int, str, str]:
        printed = papers.index(row.method) if row.method in papers else len(papers)
        return (
            families.index(row.family),
            0 if row.trivial else printed,
            "" if row.trivial else row.method,
            row.kind,
        )

    rows = _marked(sorted(rows, key=place), datasets)
    best = {}
    for d in datasets:
        untrained = [r for r in rows if r.trivial and d in r.cells]
        if untrained:
            best[d] = max(untrained, key=lambda r: r.cells[d].mean)
    ranking, why = _ranking(rows, _once(datasets))
    ranks = {} if ranking is None else dict(zip(ranking.names, ranking.friedman.ranks, strict=True))
    base = next((r for r in rows if r.name == BASE), None)
    rows = [_placed(r, ranks.get(r.name), base, _once(datasets)) for r in rows]
    most = max((len(c.runs) for r in rows for c in r.cells.values()), default=0)
    return BenchmarkResults(datasets, tuple(rows), most, best, ranking, why)


def _in_order(datasets: Iterable[str]) -> tuple[str, ...]:
    """As they come, but the other direction of a data set right after it."""
    place = {d: i for i, d in enumerate(datasets)}
    return tuple(sorted(place, key=lambda d: (place.get(_usual(d), place[d]), _usual(d) != d)))


def _usual(dataset: str) -> str:
    """The same images in their usual direction, at the same size."""
    stem = paper_name(dataset)
    return {d.other: d.dataset for d in DIRECTIONS}.get(stem, stem) + dataset[len(stem) :]


def _once(datasets: Sequence[str]) -> tuple[str, ...]:
    return tuple(d for d in datasets if _usual(d) == d or _usual(d) not in datasets)


def paper_name(dataset: str) -> str:
    """The data set whose printed values stand beside ours: the same, or one that differs in size alone."""
    stem = re.sub(r"-\d+$", "", dataset)
    same = stem in CATALOG and dataset in CATALOG and CATALOG[stem].normal == CATALOG[dataset].normal
    return stem if same else dataset


def about(dataset: str) -> str:
    """The catalogue's facts of a data set, first of all whether it stands in for another."""
    known = CATALOG.get(dataset)
    if known is None:
        return "not in the catalogue; no value of the paper beside it"
    proxy = ["a stand-in: no value of the paper can stand beside it"] if known.proxy else []
    return "; ".join([known.title, *proxy, f"split {known.split}", known.note]).rstrip("; ")


def headline_gain() -> tuple[float, float]:
    """DIA's OCT figure in the paper's ablations, below its table's, and the gain with it: its headline."""
    oct_alone = load_grid("transform-shift").published["oct2017"]["diffusion/rotation"]
    papers = paper_table()
    dia = {d: m for d, (m, _) in papers["dia"].aurocs.items()} | {"oct2017": oct_alone}
    return oct_alone, relative_gain(list(dia.values()), [papers[BASE].aurocs[d][0] for d in dia])


def _row(
    method: str, kind: str, lines: Sequence[Mapping[str, Any]], failures: Mapping[FailureKey, str]
) -> Row:
    own = [r for r in lines if (r["method"], r["weights_kind"]) == (method, kind)]
    published = paper_table().get(method)
    try:
        cls = detector_class(method)
        family, starts_from = cls.family, f"{cls.pretrained}, ImageNet" if cls.pretrained else "none"
    except DataError:  # of an earlier or another version
        family, starts_from = "other", "–"
    if published is not None:
        family, starts_from = published.family, published.weights
    cells = {}
    for g in grouped(own):
        d = g["dataset"]
        runs = {r["seed"]: r for r in own if r["dataset"] == d}  # a run made twice counts once, the later one
        proxy = d in CATALOG and CATALOG[d].proxy
        paper, direction = (None, "") if published is None or proxy else published.beside(paper_name(d))
        cells[d] = Entry(
            runs=tuple(runs[s] for s in sorted(runs)),
            mean=g["auroc_mean"],
            std=g["auroc_std"],
            ci=(g["auroc_ci"][0], g["auroc_ci"][1]),
            ap=g["ap_mean"],
            paper=paper,
            direction=direction,
            mark="",
            fit_seconds=g["fit_seconds"],
            images_per_second=g["score_images_per_second"],
            peak_memory_mb=g["peak_memory_mb"],
        )
    failed: dict[str, dict[int, str]] = {}
    for (d, m, weights, seed), reason in failures.items():
        if (m, weights_kind(weights)) == (method, kind):
            failed.setdefault(d, {})[seed] = reason
    texts = [r["weights"] for r in own] or [
        k[2] for k in failures if (k[1], weights_kind(k[2])) == (method, kind)
    ]
    trivial = method.startswith(TRIVIAL)
    return Row(
        method=method,
        kind=kind,
        family=UNTRAINED if trivial else family,
        weights="nothing trained" if trivial else "; ".join(dict.fromkeys(_said(kind, t) for t in texts)),
        starts_from="none" if trivial else starts_from,
        published=published,
        sizes={r["dataset"]: _seen(r) for r in own},
        cells=cells,
        failures=failed,
    )


def _said(kind: str, weights: str) -> str:
    """What a line says of its weights, without seed and folders, which differ from run to run."""
    text = re.sub(r", seed \d+", "", weights)
    if kind == "dia":
        return "dia (our own encoder)"
    if kind == "file":
        path, _, rest = text.partition(" (sha256")
        return f"file {PurePath(path).name}" + (f" (sha256{rest}" if rest else "")
    return text


def _seen(line: Mapping[str, Any]) -> str:
    """The side that a method brings images to, and what it did otherwise than its settings ask."""
    side = line.get("size")
    shown = ["as they are" if side is None else f"{side} px"]
    for name, (asked, done) in line.get("adapted", {}).items():
        shown.append(f"{name.replace('_', ' ')} {asked} → {done}")
    return ", ".join(shown)


def _families(rows: Sequence[Row]) -> list[str]:
    """The untrained first, then the paper's in its order, then others."""
    printed = [p.family for p in paper_table().values()]
    return list(dict.fromkeys([UNTRAINED, *printed, *(r.family for r in rows)]))


def _marked(rows: Sequence[Row], datasets: Sequence[str]) -> list[Row]:
    """Marks the best and second best of each column as shown, so that equal numbers have equal marks."""
    out = list(rows)
    for d in datasets:
        values = sorted({round(r.cells[d].mean, 3) for r in rows if d in r.cells}, reverse=True)
        marks: dict[float, Mark] = dict(zip(values, ("best", "second"), strict=False))
        for i, r in enumerate(out):
            if d in r.cells:
                cell = replace(r.cells[d], mark=marks.get(round(r.cells[d].mean, 3), ""))
                out[i] = replace(r, cells={**r.cells, d: cell})
    return out


def _placed(row: Row, rank: float | None, base: Row | None, once: Sequence[str]) -> Row:
    both = tuple(d for d in once if d in row.cells and base is not None and d in base.cells)
    gain = None
    if base is not None and both and not row.trivial:
        gain = relative_gain([row.cells[d].mean for d in both], [base.cells[d].mean for d in both])
    return replace(row, rank=None if rank is None else float(rank), gain=gain, gain_over=both)


def _ranking(rows: Sequence[Row], datasets: Sequence[str]) -> tuple[Ranking | None, str]:
    lacks = {r.name: tuple(d for d in datasets if d not in r.cells) for r in rows if not r.trivial}
    complete = [r for r in rows if all(d in r.cells for d in datasets)]
    untrained = [r for r in complete if r.trivial]
    best = max(untrained, key=lambda r: mean(r.cells[d].mean for d in datasets), default=None)
    entered = [r for r in complete if not r.trivial or r is best]
    if len(datasets) < 2 or len(entered) < 3:
        return None, (
            f"No test over data sets: it needs two of them and three rows that have all, and here are "
            f"{len(datasets)} and {len(entered)}."
        )
    test = friedman(np.array([[r.cells[d].mean for r in entered] for d in datasets]))
    return Ranking(
        datasets=tuple(datasets),
        names=tuple(r.name for r in entered),
        friedman=test,
        nemenyi=nemenyi(test.ranks, len(datasets)),
        trivial="" if best is None else best.name,
        left_out={name: missing for name, missing in lacks.items() if missing},
    ), ""
