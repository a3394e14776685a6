"""Ablations: a declared grid of settings, run into the ledger over seeds, drawn as tables and plots.

A grid is a YAML file: factors with named levels, each a change of settings (or of the training data's
`contamination`). Every combination of levels is a cell; one cell is the reference with which the others are
compared in pairs, by the same seeds on the same images. Published values stand beside ours where there are
some. Knows runs and scores; trains through `benchmark.run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..core.errors import DataError
from ..core.settings import SettingsError, replaced
from ..core.yamlfile import read_yaml
from ..detectors.presets import MAX_SIZE, PRESETS
from ..detectors.presets import settings as preset_settings
from ..detectors.registry import detector_class
from ..evaluate.compare import Difference, paired_difference
from .runs import described, scores_path

SHIPPED = Path(__file__).parent / "ablations"
CONTAMINATION = "contamination"  # of the training set; all other names in a level are settings
Cell = tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """A grid.

    Args:
        name: of its files.
        title: one line for people.
        question: what it is to answer.
        method: whose settings change.
        preset: what they change from.
        datasets: names of known data sets.
        seeds: one run of each cell with each.
        factors: by name, levels by name, each a mapping from dotted setting to value.
        reference: the level of each factor with which cells are compared.
        leave_out: combinations that are not run, as mappings from factor to level.
        max_size: images are read at this longer side at most; the preset's where None.
        published: by data set, AUROC by cell ("level/level").
        source: where the published values are from.
    """

    name: str
    title: str
    question: str
    factors: Mapping[str, Mapping[str, Mapping[str, Any]]]
    reference: tuple[str, ...]
    method: str = "dia"
    preset: str = "cpu"
    datasets: tuple[str, ...] = ("pneumoniamnist", "breastmnist")
    seeds: tuple[int, ...] = (0, 1, 2)
    leave_out: tuple[Mapping[str, str], ...] = ()
    max_size: int | None = None
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise DataError(f"{self.name}: no preset {self.preset!r}; there are: {', '.join(PRESETS)}")
        if not self.factors or not all(self.factors.values()):
            raise DataError(f"{self.name}: an ablation needs factors, each with levels")
        if tuple(self.reference) not in self.cells():
            raise DataError(f"{self.name}: reference {list(self.reference)} is not one of the cells")
        for cell in self.cells():
            try:
                self.settings(cell)
            except SettingsError as error:
                raise DataError(f"{self.name}, {label(cell)}: {error}") from error

    def cells(self) -> list[Cell]:
        """The levels of each cell, in order."""
        every = product(*(list(levels) for levels in self.factors.values()))
        return [c for c in every if not any(self._matches(c, gap) for gap in self.leave_out)]

    def changes(self, cell: Cell) -> dict[str, Any]:
        """What a cell changes: settings, and `contamination`, by name."""
        made: dict[str, Any] = {}
        for levels, level in zip(self.factors.values(), cell, strict=True):
            made |= levels[level] or {}
        return made

    def settings(self, cell: Cell) -> Any:
        """The whole settings of a cell."""
        changes = {k: v for k, v in self.changes(cell).items() if k != CONTAMINATION}
        return replaced(preset_settings(detector_class(self.method).Settings, self.preset), changes)

    @property
    def side(self) -> int:
        """Images are read at this longer side at most."""
        return self.max_size or MAX_SIZE[self.preset]

    def _matches(self, cell: Cell, gap: Mapping[str, str]) -> bool:
        return all(dict(zip(self.factors, cell, strict=True)).get(k) == v for k, v in gap.items())


@dataclass(frozen=True)
class Result:
    """One cell on one data set.

    Args:
        cell: its levels.
        aurocs: by seed.
        ci: the mean over seeds of each run's 95 % bootstrap interval; it counts the images only.
        published: the paper's value, if there is one.
        difference: from the reference, over the seeds both have; None for the reference itself.
    """

    cell: Cell
    aurocs: Mapping[int, float]
    ci: tuple[float, float] | None
    published: float | None
    difference: Difference | None


def shipped() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {p.stem: p for p in sorted(SHIPPED.glob("*.yaml"))}


def load_ablation(name: str) -> Ablation:
    """A shipped grid by its name, or one from a YAML file.

    Raises:
        DataError: no such file, not a grid, or settings that cannot be.
    """
    path = shipped().get(name, Path(name))
    try:
        values = read_yaml(path)
    except DataError as error:
        raise DataError(f"{name}: neither a YAML file nor one of {', '.join(shipped())} ({error})") from error
    known_fields = {f.name for f in fields(Ablation)}
    if not isinstance(values, dict) or set(values) - known_fields:
        odd = sorted(set(values) - known_fields) if isinstance(values, dict) else [type(values).__name__]
        raise DataError(f"{path}: not a grid ({', '.join(odd)}); it takes {', '.join(sorted(known_fields))}")
    made: dict[str, Any] = {"name": path.stem, "title": path.stem, "question": ""}
    made |= {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Ablation(**made)
    except DataError:
        raise
    except Exception as error:  # of values of another kind than a grid's
        raise DataError(f"{path}: a grid with values of another kind ({error})") from error


def results(
    grid: Ablation, lines: Sequence[Mapping[str, Any]], scores: Path, datasets: Sequence[str]
) -> dict[str, list[Result]]:
    """What the ledger says of each cell, by data set; cells without a run have no AUROC.

    Args:
        lines: of the ledger; those of this grid are told by their `ablation`, settings and data set.
        scores: folder of the raw scores, for the paired differences.
    """
    own = [r for r in lines if r.get("ablation", {}).get("side") == grid.side]
    return {d: list(_of_set(grid, [r for r in own if r["dataset"] == d], scores, d)) for d in datasets}


def _of_set(
    grid: Ablation, lines: Sequence[Mapping[str, Any]], scores: Path, dataset: str
) -> Iterator[Result]:
    made = {cell: _runs(grid, cell, lines) for cell in grid.cells()}
    base = made[tuple(grid.reference)]
    for cell, runs in made.items():
        ends = np.array([r["auroc_ci"] for r in runs.values()])
        yield Result(
            cell,
            {seed: float(r["auroc"]) for seed, r in runs.items()},
            (float(ends[:, 0].mean()), float(ends[:, 1].mean())) if len(ends) else None,
            grid.published.get(dataset, {}).get("/".join(cell)),
            None if cell == tuple(grid.reference) else _difference(runs, base, scores),
        )


def _runs(grid: Ablation, cell: Cell, lines: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    cls = detector_class(grid.method)
    wanted = described("", cls(grid.settings(cell)), grid.preset, "")
    share = grid.changes(cell).get(CONTAMINATION, 0)
    found = {
        r["seed"]: r
        for r in lines
        if all(r.get(name) == wanted[name] for name in ("method", "revision", "preset", "settings"))
        and r["ablation"].get(CONTAMINATION, 0) == share
    }  # fmt: skip
    return {seed: found[seed] for seed in sorted(found) if seed in grid.seeds}


def _difference(
    runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], scores: Path
) -> Difference | None:
    common = sorted(set(runs) & set(base))
    if not common:
        return None
    sides, labels = [], None
    for lines in (runs, base):
        kept = [np.load(scores_path(scores, lines[seed])) for seed in common]
        labels = kept[0]["labels"]
        sides.append(np.stack([k["scores"] for k in kept]))
    return paired_difference(np.asarray(labels), *sides)


def label(cell: Cell) -> str:
    """A cell for people."""
    return " · ".join(cell)


def markdown(grid: Ablation, made: Mapping[str, Sequence[Result]], picture: str = "") -> str:
    """The page of a grid: what was asked, a table for each data set, the plot."""
    text = [f"# {grid.title}", ""]
    text += [grid.question, ""] if grid.question else []
    text += [
        f"`{grid.method}`, preset `{grid.preset}`, seeds {', '.join(map(str, grid.seeds))}. AUROC: mean ± "
        f"standard deviation over seeds. The difference from *{label(tuple(grid.reference))}* is paired by "
        "seed and image; its 95 % interval counts both (see `evaluate/compare.py`).",
        "",
    ]
    if grid.published:
        text += [f"Published: {grid.source} Other splits and training; compare with care.", ""]
    text += [f"![{grid.title}]({picture})", ""] if picture else []
    for dataset, found in made.items():
        published = any(r.published is not None for r in found)
        head = [
            *grid.factors,
            "AUROC",
            *(["published", "ours − published"] if published else []),
            "difference [95 %]",
        ]
        text += [
            f"## {dataset}",
            "",
            _row(head),
            _row(["---"] * len(grid.factors) + ["---:"] * (len(head) - len(grid.factors))),
        ]
        text += [_row(_cells(r, grid, published)) for r in found]
        text.append("")
    rest = {d: v for d, v in grid.published.items() if d not in made}
    if rest:
        cells = [c for c in grid.cells() if any("/".join(c) in v for v in rest.values())]
        text += ["## Published, not measured here", "", _row([*grid.factors, *rest])]
        text.append(_row(["---"] * len(grid.factors) + ["---:"] * len(rest)))
        text += [_row([*c, *(_number(v.get("/".join(c))) for v in rest.values())]) for c in cells]
    return "\n".join(text).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def _cells(r: Result, grid: Ablation, published: bool) -> list[str]:
    reference = r.cell == tuple(grid.reference)
    values = list(r.aurocs.values())
    middle = mean(values) if values else None
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    if 0 < len(values) < len(grid.seeds):
        spread += f" ({len(values)} of {len(grid.seeds)} seeds)"
    cells = [*r.cell, _number(middle) + spread]
    if published:
        apart = None if middle is None or r.published is None else middle - r.published
        cells += [_number(r.published), _number(apart, signed=True)]
    d = r.difference
    shown = "reference" if reference else "–"
    if d is not None:
        clear = "**" if d.low > 0 or d.high < 0 else ""
        shown = f"{clear}{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]{clear}"
    return [*cells, shown]


def plot(path: Path, grid: Ablation, made: Mapping[str, Sequence[Result]]) -> Path:
    """Two panels for each data set: AUROC of each cell, and its difference from the reference."""
    cells = grid.cells()
    height = 0.9 + (0.34 * len(cells) + 0.75) * len(made)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots(len(made), 2, squeeze=False, sharey="row", width_ratios=(1.15, 1))
    y = np.arange(len(cells))
    names = [f"{label(c)}{'  (reference)' if c == tuple(grid.reference) else ''}" for c in cells]
    for (left, right), (dataset, found) in zip(axes, made.items(), strict=True):
        for place, r in zip(y, found, strict=True):
            values = list(r.aurocs.values())
            if r.ci is not None:
                left.plot(r.ci, [place, place], color="#9db7d0", linewidth=5, solid_capstyle="butt", zorder=1)
                left.plot(values, [place] * len(values), "|", color="#1b4f82", markersize=9, zorder=2)
                left.plot(mean(values), place, "o", color="#1b4f82", markersize=6, zorder=3)
            if r.published is not None:
                left.plot(r.published, place, "D", color="#c45a11", fillstyle="none", markersize=6, zorder=3)
            if r.difference is not None:
                d = r.difference
                right.plot([d.low, d.high], [place, place], color="#1b4f82", linewidth=1.6)
                right.plot(d.value, place, "o", color="#1b4f82", markersize=5)
        right.axvline(0, color="#555555", linewidth=1, linestyle="--")
        left.set(yticks=y, yticklabels=names, xlabel="AUROC")
        left.set_title(dataset, loc="left", fontweight="bold", fontsize=10)
        right.set(xlabel="difference from the reference")
        for ax in (left, right):
            ax.locator_params(axis="x", nbins=5)  # more run into each other
            ax.grid(axis="x", color="#dddddd", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        left.invert_yaxis()
    keys = [
        *figure.axes[0].plot([], [], "o", color="#1b4f82", label="mean over seeds"),
        *figure.axes[0].plot([], [], "|", color="#1b4f82", markersize=9, label="one seed"),
        *figure.axes[0].plot(
            [], [], color="#9db7d0", linewidth=5, label="95 % by images (left), paired (right)"
        ),
    ]
    if any(r.published is not None for found in made.values() for r in found):
        keys += figure.axes[0].plot([], [], "D", color="#c45a11", fillstyle="none", label="published")
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
