"""A grid of runs: data sets × cells of settings × seeds, judged by test images or by development data.

`dia benchmark`, `dia ablate`, `dia explore` and `dia confirm` are four ways to fill one `Grid`: from
arguments, from a YAML file of factors with named levels, and, for the last two, from a recipe, which is a
YAML file with one cell. This file knows settings, ledger lines and raw scores; it reads no images and
trains nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np

from ..core.errors import DataError
from ..core.settings import SettingsError
from ..core.yamlfile import read_yaml
from ..data import lesions
from ..data.datasets import name_of
from ..detectors import DIA
from ..detectors.presets import MAX_SIZE, PRESETS
from ..detectors.registry import METHODS, PREFIX, wanted_settings
from ..evaluate.compare import Difference, paired_difference
from .runs import OWN_WEIGHTS, full_settings, planned, read_scores, scores_path, sized

SHIPPED = Path(__file__).parent / "ablations"
TEST, VAL, LESIONS = "test", "val", "lesions"
ABLATION = "ablation"  # the field of a line that says which cell it is of
CONTAMINATION = "contamination"  # of the training set; all other names in a level are settings
Names = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One way to detect: a method with named changes of its preset's settings.

    Args:
        names: the level of each factor; in a benchmark or a recipe the method's name.
        method: its name.
        changes: settings that differ from the preset's, by dotted name.
        contamination: share of anomalies, unmarked, among the training normals, in [0, 1).
    """

    names: Names
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    contamination: float = 0.0

    @property
    def label(self) -> str:
        """The cell's name for people."""
        return " · ".join(self.names)

    @property
    def all_changes(self) -> dict[str, Any]:
        """The changes, and the contamination if there is any."""
        return {**self.changes, **({CONTAMINATION: self.contamination} if self.contamination else {})}


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        dataset: a known set's name, the YAML file that declares a set, or the path of its images.
        method: its name.
        seed: of every random number.
        preset: of the settings.
        changes: settings that differ from the preset's, by dotted name.
        side: images are read at this longer side at most, in pixels.
        contamination: share of anomalies, unmarked, among the training normals.
        about: further fields of the line.
        encoder: changes of `dia`'s settings, if the weights are `dia`.
        judged: `test`, or a kind of development data of `protocol.development`.
    """

    dataset: str
    method: str
    seed: int
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    side: int | None = None
    contamination: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    judged: str = TEST

    @property
    def label(self) -> str:
        """The data set's name in the ledger's line."""
        name = name_of(self.dataset)
        return name if self.judged == TEST else f"{name}/{self.judged}"

    def __str__(self) -> str:
        weights = f" (weights: {self.changes['weights']})" if "weights" in self.changes else ""
        cell = self.about.get(ABLATION, {}).get("cell")
        return f"{self.label} seed {self.seed} {' · '.join(cell) if cell else self.method + weights}"


@dataclass(frozen=True)
class Grid:
    """Data sets × cells × seeds.

    Args:
        name: of its file; `benchmark` if it has none.
        cells: what is compared.
        datasets: names of known data sets, or paths.
        seeds: each cell is run once with each.
        protocol: the purpose; a grid to confirm is frozen, see `protocol.check_frozen`.
        preset: the settings that the cells change.
        max_size: images are read at this longer side at most, in pixels; the preset's if None.
        sizes: by data set, the setting `size` of methods that resize images and have it changed.
        encoder: changes of `dia`'s settings, for cells whose weights are `dia`.
        factors: the factors that a cell's names belong to.
        reference: names of the cell with which the others are compared.
        published: by data set, AUROC by cell ("level/level").
        source: where the published values are from.
        title: one line for people.
        question: what the grid is to answer; the reasoning of a recipe.
        date: on which a recipe was frozen.

    Raises:
        DataError: a preset, method, setting or reference that is not there, or two data sets of one name.
    """

    name: str
    cells: tuple[Cell, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: Literal["benchmark", "ablation", "explore", "confirm"] = "benchmark"
    preset: str = "cpu"
    max_size: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    factors: tuple[str, ...] = ()
    reference: Names | None = None
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""
    title: str = ""
    question: str = ""
    date: datetime.date | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise DataError(f"{self.name}: no preset {self.preset!r}; there are: {', '.join(PRESETS)}")
        names = [name_of(d) for d in self.datasets]
        if twice := [d for d, n in zip(self.datasets, names, strict=True) if names.count(n) > 1]:
            raise DataError(
                f"{' and '.join(twice)} have one name in the table, {name_of(twice[0])}; rename one"
            )
        if self.reference is not None and self.reference not in [c.names for c in self.cells]:
            raise DataError(f"{self.name}: reference {list(self.reference)} is not one of the cells")
        for cell in self.cells:
            try:
                self.settings(cell)
            except SettingsError as error:
                where = self.name if cell.label == cell.method else f"{self.name}, {cell.label}"
                raise DataError(f"{where}: {error}") from error

    @property
    def side(self) -> int:
        """The longer side at which images are read at most, in pixels."""
        return self.max_size or MAX_SIZE[self.preset]

    def settings(self, cell: Cell) -> Any:
        """Returns the whole settings of a cell."""
        return wanted_settings(cell.method, self.preset, cell.changes)

    def jobs(
        self,
        judged: Mapping[str, Sequence[str]] | None = None,
        before: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Job]:
        """Lists every run of the grid, one data set after the other.

        Args:
            judged: by data set, the images to judge by: `test`, or kinds of development data; test if None.
            before: by data set, the recipes that met its test images before this one.

        Returns:
            The runs in the order in which they are made.
        """
        made = []
        for name in self.datasets:
            kinds = [TEST] if judged is None else judged[name]
            for kind, seed, cell in product(kinds, self.seeds, self.cells):
                about = self._about(cell, (before or {}).get(name, ()))
                changes = sized(cell.changes, self.sizes.get(name_of(name)))
                run = name, cell.method, seed, self.preset, changes, self.side, cell.contamination
                made.append(Job(*run, about, self.encoder, kind))
        return made

    def _about(self, cell: Cell, before: Sequence[str]) -> dict[str, Any]:
        """Returns the fields of a cell's line that describe the grid."""
        if self.protocol == "ablation":
            share = {CONTAMINATION: cell.contamination} if cell.contamination else {}
            return {ABLATION: {"grid": self.name, "cell": list(cell.names), "side": self.side} | share}
        if self.protocol == "benchmark" or self.date is None:
            return {}
        more = {"lesions": lesions.VERSION} if self.protocol == "explore" else {"before": list(before)}
        recipe = {"name": self.name, "date": self.date.isoformat(), "side": self.side} | more
        return {"protocol": self.protocol, "recipe": recipe}

    def same_settings(self, cell: Cell) -> Callable[[Mapping[str, Any]], bool]:
        """Returns a test of a ledger line: has it a cell's method, revision and settings, by any preset?"""
        wanted = full_settings(planned("", cell.method, self.preset, 0, "", cell.changes))
        return lambda line: line["method"] == cell.method and full_settings(line) == wanted

    def is_of(self, cell: Cell) -> Callable[[Mapping[str, Any]], bool]:
        """Returns a test of an ablation's or a recipe's line: is it of a cell, whatever the cell's name?

        It is if `same_settings` holds, and images were of the same size and as contaminated.
        """
        same, field_of_grid = self.same_settings(cell), ABLATION if self.protocol == "ablation" else "recipe"

        def of(line: Mapping[str, Any]) -> bool:
            about = line.get(field_of_grid, {})
            alike = about.get("side") == self.side and about.get(CONTAMINATION, 0) == cell.contamination
            return alike and same(line)

        return of


# --- four ways to fill it ---------------------------------------------------------------------------------


def benchmark_grid(
    datasets: Sequence[str],
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    preset: str,
    *,
    max_size: int | None = None,
    weights: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Grid, list[str]]:
    """Fills a grid with data sets × methods × weights × seeds.

    Args:
        datasets: known names, or paths.
        methods: names of the registry; if None, those without pretrained weights and extra packages.
        seeds: of the runs.
        preset: of the settings.
        max_size: images are read at this longer side at most, in pixels; the preset's if None.
        weights: first weights of methods that start from a network's; the preset's if empty. `dia` is the
            encoder of `dia` fitted on the same normals.
        settings: changes by dotted name, by method.
        sizes: by data set, the `size` of methods for which `settings` changes it.

    Returns:
        The grid; and a remark for each method that cannot take some of the weights, which is then left out.

    Raises:
        DataError: no such method, also one that has settings alone, or preset.
        SettingsError: a setting that is not there, or cannot have its value.
    """
    given, remarks, cells = settings or {}, list[str](), list[Cell]()
    if unknown := [m for m in given if m not in METHODS and not m.startswith(PREFIX)]:
        raise DataError(f"settings are for {unknown[0]}, which is no method; `dia methods` lists them")
    if methods is None:
        methods = [m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra]
    for method in methods:
        own = dict(given.get(method, {}))
        takes = "weights" not in own and hasattr(wanted_settings(method, preset, own), "weights")
        for changed in [{"weights": w} for w in weights if takes] or [{}]:
            cell = Cell((method, *changed.values()), method, own | changed)
            try:  # whether the method takes the encoder of a run is checked as if there were one
                run = {"weights": "dia:RUN"} if changed.get("weights") == OWN_WEIGHTS else {}
                wanted_settings(method, preset, own | changed | run)
                cells.append(cell)
            except SettingsError as error:
                remarks.append(f"{method} is left out with weights {changed.get('weights')}: {error}")
    encoder = given.get(DIA.method, {})
    grid = Grid(
        "benchmark", tuple(cells), tuple(datasets), tuple(seeds), preset=preset, max_size=max_size,
        encoder=encoder, sizes=sizes or {},
    )  # fmt: skip
    return grid, remarks


def shipped() -> dict[str, Path]:
    """Returns the files of the grids of `dia ablate` that come with the package, by name."""
    return {p.stem: p for p in sorted(SHIPPED.glob("*.yaml"))}


def load_grid(name: str) -> Grid:
    """Loads a shipped grid of `dia ablate` by its name, or one from a YAML file of its arguments.

    Raises:
        DataError: no such file, not a grid, or settings that cannot be.
    """
    path = shipped().get(name, Path(name))
    try:
        values = read_yaml(path)
    except DataError as error:
        raise DataError(f"{name}: neither a YAML file nor one of {', '.join(shipped())} ({error})") from error
    return _filled(ablation_grid, path, values)


def load_recipe(path: Path | str) -> Grid:
    """Loads the recipe of a YAML file of `recipe_grid`'s arguments; its name is the file's.

    Raises:
        DataError: not there, not YAML, not a recipe, or settings that cannot be.
    """
    return _filled(recipe_grid, Path(path), read_yaml(path))


def _filled(fill: Callable[..., Grid], path: Path, values: Any) -> Grid:
    """Calls one of the functions below with the values of a YAML file."""
    try:
        return fill(**{"name": path.stem, **values})
    except DataError:
        raise
    except Exception as error:  # no mapping, names that are no arguments, or values of another kind
        what, reason = fill.__name__.replace("_", " "), " ".join(str(error).split())[:200]
        raise DataError(f"{path}: no {what} ({reason})") from error


def ablation_grid(
    name: str,
    factors: Mapping[str, Mapping[str, Mapping[str, Any]]],
    reference: Sequence[str],
    *,
    method: str = DIA.method,
    datasets: Sequence[str] = ("pneumoniamnist", "breastmnist"),
    seeds: Sequence[int] = (0, 1, 2),
    leave_out: Sequence[Mapping[str, str]] = (),
    title: str = "",
    published: Mapping[str, Mapping[str, float]] | None = None,
    **more: Any,
) -> Grid:
    """Fills a grid whose cells are the combinations of factors' levels.

    Args:
        name: of its files.
        factors: by name, levels by name, each a mapping from dotted setting, or `contamination`, to value.
        reference: the level of each factor with which the other cells are compared.
        method: whose settings change.
        datasets: names of known data sets.
        seeds: each cell is run once with each.
        leave_out: combinations that are not run, as mappings from factor to level.
        title: one line for people; the name if empty.
        published: by data set, AUROC by cell ("level/level").
        **more: `preset`, `max_size`, `question` and `source`, see `Grid`.

    Returns:
        The grid.

    Raises:
        DataError: no factors, or no such preset, method, setting or reference.
    """
    if not factors or not all(factors.values()):
        raise DataError(f"{name}: an ablation needs factors, each with levels")
    cells = []
    for names in product(*factors.values()):
        levels = dict(zip(factors, names, strict=True))
        if any(all(levels.get(k) == v for k, v in gap.items()) for gap in leave_out):
            continue
        changes: dict[str, Any] = {}
        for factor, level in levels.items():
            changes |= factors[factor][level] or {}
        share = float(changes.pop(CONTAMINATION, 0))
        cells.append(Cell(names, method, changes, share))
    return Grid(
        name, tuple(cells), tuple(datasets), tuple(seeds), "ablation", factors=tuple(factors),
        reference=tuple(reference), published=published or {}, title=title or name, **more,
    )  # fmt: skip


def recipe_grid(
    name: str,
    date: datetime.date,
    reasoning: str,
    method: str,
    *,
    preset: str = "cpu",
    settings: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    max_size: int | None = None,
) -> Grid:
    """Fills a grid of one cell, to be explored or confirmed.

    Args:
        name: of the recipe.
        date: on which it was frozen.
        reasoning: why it should work, in words.
        method: a name of the registry.
        preset: of the settings.
        settings: changes by dotted name.
        datasets: names of known data sets.
        seeds: of the runs.
        max_size: images are read at this longer side at most, in pixels; the preset's if None.

    Returns:
        The grid.

    Raises:
        DataError: a value that is missing or of another kind, or a setting that cannot be.
    """
    if not isinstance(date, datetime.date) or not reasoning.strip():
        raise DataError(f"{name}: a recipe has a date (YYYY-MM-DD) and its reasoning")
    if not seeds or not datasets:
        raise DataError(f"{name}: a recipe is confirmed on datasets, with seeds")
    return Grid(
        name, (Cell((method,), method, settings or {}),), tuple(datasets), tuple(seeds), "confirm",
        preset=preset, max_size=max_size, title=name, question=reasoning, date=date,
    )  # fmt: skip


# --- what the ledger says of it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One cell on one data set.

    Args:
        cell: the cell.
        aurocs: by seed.
        ci: the mean over seeds of each run's 95 % bootstrap interval, which counts the images only.
        published: the published value, if there is one.
        difference: from the reference, over the seeds both have; None for the reference itself.
        maps: mean pixel AUROC and PRO of the heatmaps, over the seeds; None where there are no masks.
    """

    cell: Cell
    aurocs: Mapping[int, float]
    ci: tuple[float, float] | None
    published: float | None
    difference: Difference | None
    maps: tuple[float, float] | None = None


def measured(grid: Grid, lines: Sequence[Mapping[str, Any]], scores: Path) -> dict[str, list[Measured]]:
    """Collects the ledger's results of each cell; cells without a run have no AUROC.

    Args:
        grid: of `dia ablate`.
        lines: of the ledger; the grid's are found by settings, data set and size of images.
        scores: folder of the raw scores, for the paired differences.

    Returns:
        The cells in order, by data set.
    """
    tests = {cell.names: grid.is_of(cell) for cell in grid.cells}
    found: dict[str, list[Measured]] = {}
    for dataset in grid.datasets:
        own = [r for r in lines if ABLATION in r and r["dataset"] == dataset and r["seed"] in grid.seeds]
        runs = {names: {r["seed"]: r for r in filter(is_of, own)} for names, is_of in tests.items()}
        base, published = runs.get(grid.reference or (), {}), grid.published.get(dataset, {})
        found[dataset] = []
        for cell in grid.cells:
            by_seed = dict(sorted(runs[cell.names].items()))
            ends = list(zip(*(r["auroc_ci"] for r in by_seed.values()), strict=True))
            apart = None if cell.names == grid.reference else paired(by_seed, base, scores)
            aurocs = {seed: float(r["auroc"]) for seed, r in by_seed.items()}
            ci = (mean(ends[0]), mean(ends[1])) if ends else None
            stated = published.get("/".join(cell.names))
            mapped = [(r["pixel_auroc"], r["pro"]) for r in by_seed.values() if "pixel_auroc" in r]
            maps = (mean(m[0] for m in mapped), mean(m[1] for m in mapped)) if mapped else None
            found[dataset].append(Measured(cell, aurocs, ci, stated, apart, maps))
    return found


def paired(
    runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], scores: Path
) -> Difference | None:
    """Compares mean AUROCs over the seeds that both have, paired by seed and image.

    Args:
        runs: ledger lines by seed.
        base: the lines to compare with, by seed.
        scores: folder of the raw scores.

    Returns:
        The difference; None if no seed is common, or raw scores are not there.
    """
    common = sorted(set(runs) & set(base))
    paths = [[scores_path(scores, lines[seed]) for seed in common] for lines in (runs, base)]
    if not common or not all(p.exists() for side in paths for p in side):
        return None
    kept = [[read_scores(p) for p in side] for side in paths]
    first, second = (np.stack([k["scores"] for k in side]) for side in kept)
    one = kept[0][0]
    return paired_difference(one["labels"], first, second, one.get("units"))
