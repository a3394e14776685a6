"""The benchmark's results: rows of (method, kind of weights), columns of data sets, and the paper's values.

Knows ledger lines, the catalogue's facts of data sets and the paper's table; knows no raw scores, plots or
pages. Every output of `dia.report` is drawn from one `BenchmarkResults`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import mean, median, stdev
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError
from ..data.datasets import CATALOG
from ..detectors.registry import detector_class
from ..evaluate.compare import relative_gain
from ..evaluate.ranking import Friedman, Nemenyi, friedman, nemenyi
from .grid import load_grid
from .ledger import identity
from .published import BASE, DIRECTIONS, OTHER, Published, paper_table
from .runs import weights_kind, weights_of

TRIVIAL, CONTROL = "trivial:", "control:"  # of names: what trains nothing, and what compares with no normal
UNTRAINED = "untrained"
_WHOLE = {  # costs of a whole run: what was spent on it, and on features that it shared
    "run": ("run_seconds", "shared_seconds"), "processor": ("cpu_seconds", "shared_cpu_seconds"),
}  # fmt: skip
FailureKey = tuple[str, str, str, int]  # data set, method, weights, seed


@dataclass
class Entry:
    """One row on one data set.

    Args:
        runs: its ledger lines, one for each seed.
        paper: (mean, standard deviation) the paper prints for this method and data set, in either direction.
        direction: how sure it is that the paper's is of this direction, see `Published.printed_for`.
        mark: 'best' or 'second' of its column to three decimals, or empty.
    """

    runs: tuple[Mapping[str, Any], ...]
    paper: tuple[float, float] | None
    direction: str
    mark: Literal["best", "second", ""] = ""

    @property
    def mean(self) -> float:
        """AUROC, the mean over seeds."""
        return self._mean("auroc")

    @property
    def std(self) -> float | None:
        """The standard deviation of AUROC over seeds, n − 1; None with one seed."""
        return stdev(r["auroc"] for r in self.runs) if len(self.runs) > 1 else None

    @property
    def ci(self) -> tuple[float, float]:
        """The mean over seeds of each run's 95 % bootstrap interval, which counts the images only."""
        low, high = zip(*(r["auroc_ci"] for r in self.runs), strict=True)
        return mean(low), mean(high)

    @property
    def ap(self) -> float:
        """Average precision, the mean over seeds."""
        return self._mean("ap")

    def cost(self, what: str) -> float | None:
        """Returns the median over seeds of a cost, `run`, `processor` or a field; None if it is unknown.

        `run`: seconds of a whole run by the clock; `processor`: of all its threads. Features that were shared
        count as when they were computed; a line that does not tell what those took is left out.
        """
        if what in _WHOLE:
            own, shared = _WHOLE[what]
            known = [
                r[own] + r.get(shared, 0.0)
                for r in self.runs
                if r.get(own) is not None and (shared in r or not r.get("shared_seconds"))
            ]
        else:
            known = [r[what] for r in self.runs if r.get(what) is not None]
        return median(known) if known else None

    def _mean(self, field: str) -> float:
        return float(mean(r[field] for r in self.runs))

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None if the paper's is most likely of the other direction."""
        return None if self.paper is None or self.direction == OTHER else self.mean - self.paper[0]


@dataclass
class Row:
    """One method with one kind of weights.

    Args:
        method: our name.
        kind: 'none', 'imagenet', 'file' or 'dia'.
        family: the paper's heading, else the method's own.
        weights: description in the lines, without seeds and the paths of 'dia' and 'file'.
        label: of its weights, in its name: the kind, with digits where several rows are of one; or empty.
        starts_from: the ImageNet weights its publication starts from, or 'none'.
        published: its row of the paper.
        sizes: the size of the images it worked at and its other deviations from the settings, by data set.
        cells: by data set; those without a run are absent.
        failures: reasons by data set and seed.
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
    label: str = ""
    rank: float | None = None
    gain: float | None = None
    gain_over: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The method, with its weights where they are not none."""
        return f"{self.method} [{self.label}]" if self.label else self.method

    @property
    def trivial(self) -> bool:
        """True if it trains nothing."""
        return self.method.startswith(TRIVIAL)

    @property
    def control(self) -> bool:
        """True if it compares with no normal: what a claim about features or places has to beat."""
        return self.method.startswith(CONTROL)

    @property
    def contends(self) -> bool:
        """True if it counts as a method: it is neither untrained nor a control."""
        return not (self.trivial or self.control)

    def average(self, what: str) -> float | None:
        """Returns the mean over data sets of a cost of the entries; None if it is unknown of one."""
        values = [c.cost(what) for c in self.cells.values()]
        known = [v for v in values if v is not None]
        return mean(known) if known and len(known) == len(values) else None

    @property
    def printed(self) -> str:
        """The paper's mark of extra data, and our correction of it."""
        if self.published is None:
            return "–"
        said = ("✓" if self.published.extra_data else "×") + self.published.mark
        return f"{said}, but starts from ImageNet" if self.published.corrected else said


@dataclass(frozen=True)
class Ranking:
    """The tests over data sets.

    Args:
        datasets: the data sets.
        sources: where they come from: sets of one source count as one, by their mean.
        names: the rows that take part.
        friedman: Friedman's test.
        nemenyi: Nemenyi's test.
        trivial: the one untrained row that takes part, the best by mean AUROC; empty without any.
        left_out: by name of a row that takes no part, the data sets it lacks.
    """

    datasets: tuple[str, ...]
    sources: tuple[str, ...]
    names: tuple[str, ...]
    friedman: Friedman
    nemenyi: Nemenyi
    trivial: str
    left_out: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class BenchmarkResults:
    """The content of all outputs.

    Args:
        datasets: columns; the other direction of a data set right after it.
        rows: the trivial ones, the controls, then methods by family.
        seeds: the most that any cell has.
        best_trivial: the best untrained row of each data set that has one.
        ranking: the tests; None with fewer than two data sets or three rows that have them all.
        why_no_ranking: a sentence that says why there is no ranking, or empty.
    """

    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: int
    best_trivial: Mapping[str, Row]
    ranking: Ranking | None
    why_no_ranking: str

    @property
    def once(self) -> tuple[str, ...]:
        """The columns for tests and gains: without other directions, which are no new images."""
        return _once(self.datasets)

    @property
    def aurocs(self) -> dict[str, dict[str, float]]:
        """Mean AUROC by name of a row, by source of the data sets of `once`: what `ranking.against` takes."""
        return {r.name: _by_source(r, self.once) for r in self.rows}

    def beats(self, row: Row, dataset: str) -> bool:
        """Returns whether a row is above the best untrained row of a data set, by their means.

        Args:
            row: a row with runs on it.
            dataset: with an untrained row.
        """
        return row.cells[dataset].mean > self.best_trivial[dataset].cells[dataset].mean

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
        failures: reasons of failed runs, by (data set, method, weights, seed).

    Returns:
        The results, rows and columns in the order in which they are shown.

    Raises:
        ValueError: no lines, or lines of one row and data set that mix presets, data or settings.
    """
    lines, failures = list(lines), dict(failures or {})
    if not lines and not failures:
        raise ValueError("a benchmark needs at least one line of the ledger: run some first")
    datasets = _in_order(dict.fromkeys([r["dataset"] for r in lines] + [k[0] for k in failures]))
    by_row: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        by_row.setdefault((line["method"], line["weights_kind"], weights_of(line)), []).append(line)
    there = {key[:2] for key in by_row}
    failed = dict.fromkeys((k[1], weights_kind(k[2])) for k in failures)
    by_row |= {(*key, ""): [] for key in failed if key not in there}
    rows = []
    for (method, kind, digits), own in by_row.items():
        several = sum(key[:2] == (method, kind) for key in by_row) > 1
        label = "" if kind == "none" else f"{kind} {digits}" if several else kind
        rows.append(_row(method, kind, label, own, failures))
    papers = paper_table()
    families = list(
        dict.fromkeys([UNTRAINED, "control", *(p.family for p in papers.values()), *(r.family for r in rows)])
    )
    order = list(papers)

    def place(row: Row) -> tuple[int, int, str, str]:
        weights = f"{row.kind} {row.label}"
        if row.trivial:
            return families.index(row.family), 0, "", weights
        printed = order.index(row.method) if row.method in papers else len(papers)
        return families.index(row.family), printed, row.method, weights

    rows.sort(key=place)
    best = {}
    for d in datasets:
        of_set = [r for r in rows if d in r.cells]
        if untrained := [r for r in of_set if r.trivial]:
            best[d] = max(untrained, key=lambda r: r.cells[d].mean)
        shown = {r.name: round(r.cells[d].mean, 3) for r in of_set}  # equal numbers have equal marks
        first, second = [*sorted(set(shown.values()), reverse=True), None, None][:2]
        for r in of_set:
            r.cells[d].mark = (
                "best" if shown[r.name] == first else "second" if shown[r.name] == second else ""
            )
    once = _once(datasets)
    ranking, why = _ranking(rows, once)
    ranks = {} if ranking is None else dict(zip(ranking.names, ranking.friedman.ranks.tolist(), strict=True))
    base = next((r for r in rows if r.name == BASE), None)
    # a gain over an AUROC of 0 is none
    compared = [d for d in once if base is not None and d in base.cells and base.cells[d].mean > 0]
    for r in rows:
        r.rank = ranks.get(r.name)
        r.gain_over = tuple(d for d in compared if d in r.cells)
        if base is not None and r.gain_over and r.contends:
            ours, theirs = ([of.cells[d].mean for d in r.gain_over] for of in (r, base))
            r.gain = relative_gain(ours, theirs)
    most = max((len(c.runs) for r in rows for c in r.cells.values()), default=0)
    return BenchmarkResults(datasets, tuple(rows), most, best, ranking, why)


def source_of(dataset: str) -> str:
    """Returns where a data set's images come from, by the catalogue; the set itself where nothing is known.

    Example:
        >>> source_of("busi-128") == source_of("breastmnist"), source_of("my scans")
        (True, 'my scans')
    """
    return (CATALOG[dataset].origin if dataset in CATALOG else "") or dataset


def _by_source(row: Row, datasets: Sequence[str]) -> dict[str, float]:
    """AUROC by source, the mean over its data sets; sources of which a set is lacking are left out."""
    by_source: dict[str, list[str]] = {}
    for d in datasets:
        by_source.setdefault(source_of(d), []).append(d)
    return {
        source: mean(row.cells[d].mean for d in sets)
        for source, sets in by_source.items()
        if all(d in row.cells for d in sets)
    }


def _in_order(datasets: Iterable[str]) -> tuple[str, ...]:
    """Returns data sets in their order, but the other direction of a set right after it."""
    place = {d: i for i, d in enumerate(datasets)}
    return tuple(sorted(place, key=lambda d: (place.get(_usual(d), place[d]), _usual(d) != d)))


def _usual(dataset: str) -> str:
    """Returns the name of the same images in their usual direction, at the same size."""
    stem = paper_name(dataset)
    return {d.other: d.dataset for d in DIRECTIONS}.get(stem, stem) + dataset[len(stem) :]


def _once(datasets: Sequence[str]) -> tuple[str, ...]:
    return tuple(d for d in datasets if _usual(d) == d or _usual(d) not in datasets)


def paper_name(dataset: str) -> str:
    """Returns the data set whose printed values compare with ours: the same, or one of another size."""
    stem = re.sub(r"-\d+$", "", dataset)
    same = stem in CATALOG and dataset in CATALOG and CATALOG[stem].normal == CATALOG[dataset].normal
    return stem if same else dataset


def about(dataset: str) -> str:
    """Returns the catalogue's facts of a data set with its licence, and whether it stands in for another."""
    known = CATALOG.get(dataset)
    if known is None:
        return "not in the catalogue; no value of the paper compares with it"
    proxy = ["a stand-in: no value of the paper compares with it"] if known.proxy else []
    facts = [known.title, *proxy, f"split {known.split}", known.note, f"licence {known.licence}"]
    return "; ".join(filter(None, facts))


def headline_gain() -> tuple[float, float]:
    """Returns DIA's OCT figure in the paper's ablations, and its mean gain with it: the paper's headline."""
    oct_alone = load_grid("transform-shift").published["oct2017"]["diffusion/rotation"]
    papers = paper_table()
    dia = {d: m for d, (m, _) in papers["dia"].aurocs.items()} | {"oct2017": oct_alone}
    return oct_alone, relative_gain(list(dia.values()), [papers[BASE].aurocs[d][0] for d in dia])


def _row(
    method: str,
    kind: str,
    label: str,
    own: Sequence[Mapping[str, Any]],
    failures: Mapping[FailureKey, str],
) -> Row:
    own_failures = {k: v for k, v in failures.items() if (k[1], weights_kind(k[2])) == (method, kind)}
    texts = [r["weights"] for r in own] or [weights for _, _, weights, _ in own_failures]
    weights = "; ".join(dict.fromkeys(_without_paths(kind, text) for text in texts))
    published = paper_table().get(method)
    try:
        cls = detector_class(method)
        family, starts_from = cls.family, f"{cls.pretrained}, ImageNet" if cls.pretrained else "none"
    except DataError:  # of an earlier or another version
        family, starts_from = "other", "–"
    if published is not None:
        family, starts_from = published.family, published.weights
    if method.startswith(TRIVIAL):
        family, starts_from, weights = UNTRAINED, "none", "nothing trained"
    sets = dict.fromkeys(r["dataset"] for r in own)
    cells = {d: _entry(method, d, [r for r in own if r["dataset"] == d], published) for d in sets}
    reasons: dict[str, dict[int, str]] = {}
    for (d, _, _, seed), reason in own_failures.items():
        reasons.setdefault(d, {})[seed] = reason
    sizes = {r["dataset"]: _images_seen(r) for r in own}
    return Row(method, kind, family, weights, starts_from, published, sizes, cells, reasons, label)


def _entry(
    method: str, dataset: str, lines: Sequence[Mapping[str, Any]], published: Published | None
) -> Entry:
    unique = {identity(r): r for r in lines}  # a run made twice counts once, the later one
    runs = {r["seed"]: r for r in unique.values()}
    if len({(r["preset"], r["data_sha256"]) for r in lines}) > 1 or len(runs) < len(unique):
        raise ValueError(f"{method} on {dataset} mixes presets, data or several settings: filter the lines")
    proxy = dataset in CATALOG and CATALOG[dataset].proxy
    printed = (None, "") if published is None or proxy else published.printed_for(paper_name(dataset))
    return Entry(tuple(runs[s] for s in sorted(runs)), *printed)


def _without_paths(kind: str, weights: str) -> str:
    """Returns a line's description of weights without seed and folders, which differ from run to run."""
    text = re.sub(r", seed \d+", "", weights)
    if kind == "dia":
        return "dia (our own encoder)"
    if kind == "file":
        path, _, rest = text.partition(" (sha256")
        return f"file {PurePath(path).name}" + (f" (sha256{rest}" if rest else "")
    return text


def _images_seen(line: Mapping[str, Any]) -> str:
    """Returns the side a method resizes images to, and its deviations from the settings."""
    side = line.get("size")
    shown = ["as they are" if side is None else f"{side} px"]
    for name, (asked, done) in line.get("adapted", {}).items():
        shown.append(f"{name.replace('_', ' ')} {asked} → {done}")
    return ", ".join(shown)


def _ranking(rows: Sequence[Row], datasets: tuple[str, ...]) -> tuple[Ranking | None, str]:
    lacks = {r.name: tuple(d for d in datasets if d not in r.cells) for r in rows if r.contends}
    complete = [r for r in rows if all(d in r.cells for d in datasets)]
    untrained = [r for r in complete if r.trivial]
    best = max(untrained, key=lambda r: mean(r.cells[d].mean for d in datasets), default=None)
    entered = [r for r in complete if r.contends or r is best]
    sources = tuple(dict.fromkeys(map(source_of, datasets)))
    if len(sources) < 2 or len(entered) < 3:
        return None, (
            f"No test over data sets: it needs two of different sources and three rows that have all, and "
            f"here are {len(sources)} and {len(entered)}."
        )
    test = friedman(np.array([[*_by_source(r, datasets).values()] for r in entered]).T)
    names, left_out = tuple(r.name for r in entered), {name: sets for name, sets in lacks.items() if sets}
    trivial = "" if best is None else best.name
    return Ranking(datasets, sources, names, test, nemenyi(test.ranks, len(sources)), trivial, left_out), ""
