"""A grid of runs: data sets × cells of settings × seeds, judged by test images or by development data.

`dia benchmark`, `dia ablate`, `dia explore` and `dia confirm` are four ways to fill one `Grid`: from
arguments, from a YAML file of factors with named levels, and, for the last two, from a recipe, which is a
YAML file with one cell. This file knows settings, ledger lines and raw scores; it reads no images and
trains nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ..core.errors import DataError
from ..core.settings import SettingsError
from ..core.yamlfile import read_yaml
from ..data import lesions
from ..data.datasets import name_of
from ..detectors import DIA
from ..detectors.presets import MAX_SIZE, PRESETS
from ..detectors.registry import detector_class, wanted_settings
from ..evaluate.compare import Difference, paired_difference
from .runs import OWN_WEIGHTS, described, full_settings, scores_path

SHIPPED = Path(__file__).parent / "ablations"
TEST, VAL, LESIONS = "test", "val", "lesions"
BENCHMARK: Final = "benchmark"
ABLATION: Final = "ablation"
EXPLORE: Final = "explore"
CONFIRM: Final = "confirm"
CONTAMINATION = "contamination"  # of the training set; all other names in a level are settings
Names = tuple[str, ...]
Protocol = Literal["benchmark", "ablation", "explore", "confirm"]


@dataclass(frozen=True)
class Cell:
    """One way to detect: a method with named changes of its preset's settings.

    Args:
        names: the level of each factor; of a benchmark or a recipe the method's name.
        method: its name.
        changes: of the settings, by dotted name.
        contamination: share of anomalies, unmarked, among the training normals, in [0, 1).
    """

    names: Names
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    contamination: float = 0.0

    @property
    def label(self) -> str:
        """The cell for people."""
        return " · ".join(self.names)


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        dataset: a known set's name, or the YAML file that declares a set.
        method: its name.
        seed: of everything.
        preset: of the settings.
        changes: of those, by dotted name.
        side: images are read at this longer side at most, in pixels.
        contamination: share of anomalies, unmarked, among the training normals.
        about: further fields of the line.
        encoder: changes of `dia`'s settings, where weights are `dia`.
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
        """The data set as the ledger's line names it."""
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
        name: that of its file; `benchmark` where it is of arguments.
        cells: what is compared.
        datasets: names of known data sets.
        seeds: each cell is run once with each.
        protocol: which command it is for; a grid to confirm is frozen, see `protocol.check_frozen`.
        preset: what the cells change from.
        max_size: images are read at this longer side at most, in pixels; the preset's where None.
        judged: by the test images, or by which development data.
        encoder: changes of `dia`'s settings, for cells whose weights are `dia`.
        factors: what each of a cell's names stands for.
        reference: names of the cell with which the others are compared.
        published: by data set, AUROC by cell ("level/level").
        source: where the published values are from.
        title: one line for people.
        question: what the grid is to answer; of a recipe its reasoning.
        date: on which a recipe was frozen.

    Raises:
        DataError: a preset, method, setting or reference that is not there.
    """

    name: str
    cells: tuple[Cell, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    protocol: Protocol = "benchmark"
    preset: str = "cpu"
    max_size: int | None = None
    judged: tuple[str, ...] = (TEST,)
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
        """Images are read at this longer side at most, in pixels."""
        return self.max_size or MAX_SIZE[self.preset]

    def settings(self, cell: Cell) -> Any:
        """The whole settings of a cell."""
        return wanted_settings(cell.method, self.preset, cell.changes)

    def jobs(
        self,
        judged: Mapping[str, Sequence[str]] | None = None,
        before: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Job]:
        """Every run of the grid, one data set after the other.

        Args:
            judged: by data set, in place of the grid's own.
            before: by data set, the recipes that met its test images before this one.
        """
        made = []
        for name in self.datasets:
            kinds = self.judged if judged is None else judged[name]
            for kind, seed, cell in product(kinds, self.seeds, self.cells):
                about = self._about(cell, (before or {}).get(name, ()))
                made.append(
                    Job(
                        *(name, cell.method, seed, self.preset, cell.changes, self.side, cell.contamination),
                        *(about, self.encoder, kind),
                    )
                )
        return made

    def _about(self, cell: Cell, before: Sequence[str]) -> dict[str, Any]:
        """What a line of this cell says beside its settings and numbers."""
        if self.protocol == ABLATION:
            share = {CONTAMINATION: cell.contamination} if cell.contamination else {}
            return {ABLATION: {"grid": self.name, "cell": list(cell.names), "side": self.side} | share}
        if self.protocol == BENCHMARK or self.date is None:
            return {}
        said: dict[str, Any] = {"name": self.name, "date": self.date.isoformat(), "side": self.side}
        more = {"lesions": lesions.VERSION} if self.protocol == EXPLORE else {"before": list(before)}
        return {"protocol": self.protocol, "recipe": said | more}

    def same_settings(self, cell: Cell) -> Callable[[Mapping[str, Any]], bool]:
        """Tells of a ledger line whether it has a cell's method, revision and settings, by any preset."""
        detector = detector_class(cell.method)(self.settings(cell))
        wanted = full_settings(described("", detector, self.preset, ""))
        return lambda line: line["method"] == cell.method and full_settings(line) == wanted

    def is_of(self, cell: Cell) -> Callable[[Mapping[str, Any]], bool]:
        """Tells of a ledger line of an ablation or a recipe whether it is of a cell, whatever its name.

        It is where `same_settings` holds, and images were of the same size and as contaminated.
        """
        same = self.same_settings(cell)
        where = ABLATION if self.protocol == ABLATION else "recipe"

        def of(line: Mapping[str, Any]) -> bool:
            said = line.get(where, {})
            at_size = said.get("side") == self.side and said.get(CONTAMINATION, 0) == cell.contamination
            return at_size and same(line)

        return of


# --- four ways to fill it ---------------------------------------------------------------------------------


def benchmark_grid(
    datasets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    preset: str,
    *,
    max_size: int | None = None,
    weights: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Grid, list[str]]:
    """Data sets × methods × weights × seeds.

    Args:
        datasets: known names.
        methods: likewise.
        seeds: of the runs.
        preset: of the settings.
        max_size: images are read at this longer side at most, in pixels; the preset's where None.
        weights: of the methods that start from a network's; the preset's where empty. `dia` is the encoder of
            `dia` fitted on the same normals.
        settings: changes by dotted name, by method.

    Returns:
        The grid; and a remark for each method that cannot take some of the weights, which is then left out.

    Raises:
        DataError: no such method or preset.
        SettingsError: a setting that is not there, or cannot be so.
    """
    given, remarks = settings or {}, list[str]()
    cells = []
    for method in methods:
        own = dict(given.get(method, {}))
        takes = "weights" not in own and hasattr(wanted_settings(method, preset, own), "weights")
        for changed in [{"weights": w} for w in weights if takes] or [{}]:
            way, source = own | changed, changed.get("weights")
            try:  # of `dia`, whether the method takes the encoder of a run at all
                wanted_settings(
                    method, preset, way | ({"weights": "dia:RUN"} if source == OWN_WEIGHTS else {})
                )
            except SettingsError as error:
                remarks.append(f"{method} is left out with weights {source}: {error}")
            else:
                cells.append(Cell((method, *changed.values()), method, way))
    grid = Grid(
        *(BENCHMARK, tuple(cells), tuple(datasets), tuple(seeds)), preset=preset, max_size=max_size,
        encoder=given.get(DIA.method, {}),
    )  # fmt: skip
    return grid, remarks


def shipped() -> dict[str, Path]:
    """The grids of `dia ablate` that come with the package, by name."""
    return {p.stem: p for p in sorted(SHIPPED.glob("*.yaml"))}


_ABLATION = {
    *("name", "title", "question", "factors", "reference", "method", "preset", "datasets", "seeds"),
    *("leave_out", "max_size", "published", "source"),
}
_RECIPE = {"date", "reasoning", "method", "preset", "settings", "datasets", "seeds", "max_size"}


def load_grid(name: str) -> Grid:
    """A shipped grid of `dia ablate` by its name, or one from a YAML file.

    Raises:
        DataError: no such file, not a grid, or settings that cannot be.
    """
    path = shipped().get(name, Path(name))
    try:
        values = read_yaml(path)
    except DataError as error:
        raise DataError(f"{name}: neither a YAML file nor one of {', '.join(shipped())} ({error})") from error
    if not isinstance(values, dict) or set(values) - _ABLATION:
        odd = sorted(set(values) - _ABLATION) if isinstance(values, dict) else [type(values).__name__]
        raise DataError(f"{path}: not a grid ({', '.join(odd)}); it takes {', '.join(sorted(_ABLATION))}")
    if absent := sorted({"factors", "reference"} - set(values)):
        raise DataError(f"{path}: {' and '.join(absent)} missing")
    try:
        given: dict[str, Any] = {"name": path.stem} | values
        return ablation_grid(**given)
    except DataError:
        raise
    except Exception as error:  # of values of another kind than a grid's
        raise DataError(f"{path}: a grid with values of another kind ({error})") from error


def ablation_grid(
    name: str,
    factors: Mapping[str, Mapping[str, Mapping[str, Any]]],
    reference: Sequence[str],
    *,
    title: str = "",
    question: str = "",
    method: str = DIA.method,
    preset: str = "cpu",
    datasets: Sequence[str] = ("pneumoniamnist", "breastmnist"),
    seeds: Sequence[int] = (0, 1, 2),
    leave_out: Sequence[Mapping[str, str]] = (),
    max_size: int | None = None,
    published: Mapping[str, Mapping[str, float]] | None = None,
    source: str = "",
) -> Grid:
    """A grid whose cells are the combinations of factors' levels.

    Args:
        name: of its files.
        factors: by name, levels by name, each a mapping from dotted setting, or `contamination`, to value.
        reference: the level of each factor with which the other cells are compared.
        title: one line for people.
        question: what it is to answer.
        method: whose settings change.
        preset: what they change from.
        datasets: names of known data sets.
        seeds: each cell is run once with each.
        leave_out: combinations that are not run, as mappings from factor to level.
        max_size: images are read at this longer side at most, in pixels; the preset's where None.
        published: by data set, AUROC by cell ("level/level").
        source: where the published values are from.

    Raises:
        DataError: no factors, or no such preset, method, setting or reference.
    """
    if not factors or not all(factors.values()):
        raise DataError(f"{name}: an ablation needs factors, each with levels")
    cells = []
    for names in product(*(list(levels) for levels in factors.values())):
        levels = dict(zip(factors, names, strict=True))
        if any(all(levels.get(k) == v for k, v in gap.items()) for gap in leave_out):
            continue
        changes: dict[str, Any] = {}
        for factor, level in levels.items():
            changes |= factors[factor][level] or {}
        share = float(changes.pop(CONTAMINATION, 0))
        cells.append(Cell(names, method, changes, share))
    return Grid(
        *(name, tuple(cells), tuple(datasets), tuple(seeds)), protocol=ABLATION, preset=preset,
        max_size=max_size, factors=tuple(factors), reference=tuple(reference), published=published or {},
        source=source, title=title or name, question=question,
    )  # fmt: skip


def load_recipe(path: Path | str) -> Grid:
    """The recipe of a YAML file, whose name is the recipe's: a grid of one cell, to be explored or confirmed.

    Raises:
        DataError: not there, not YAML, not a recipe, or settings that cannot be.
    """
    path = Path(path)
    given = read_yaml(path)
    if not isinstance(given, dict) or not {"date", "reasoning", "method"} <= set(given) <= _RECIPE:
        raise DataError(f"{path}: a recipe has date, reasoning, method, and may have of {sorted(_RECIPE)}")
    values: dict[str, Any] = {
        "preset": "cpu", "settings": {}, "max_size": None, "seeds": (0, 1, 2, 3, 4),
        "datasets": ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches"),
    } | given  # fmt: skip
    name, method = path.stem, values["method"]
    try:
        if not isinstance(values["date"], datetime.date) or not values["reasoning"].strip():
            raise DataError(f"{name}: a recipe has a date (YYYY-MM-DD) and its reasoning")
        if not values["seeds"] or not values["datasets"]:
            raise DataError(f"{name}: a recipe is confirmed on datasets, with seeds")
        return Grid(
            *(name, (Cell((method,), method, values["settings"]),)),
            *(tuple(values["datasets"]), tuple(values["seeds"])),
            protocol=CONFIRM, preset=values["preset"], max_size=values["max_size"], title=name,
            question=values["reasoning"], date=values["date"],
        )  # fmt: skip
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())[:200]}") from error


# --- what the ledger says of it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One cell on one data set.

    Args:
        cell: which.
        aurocs: by seed.
        ci: the mean over seeds of each run's 95 % bootstrap interval; it counts the images only.
        published: the published value, if there is one.
        difference: from the reference, over the seeds both have; None for the reference itself.
    """

    cell: Cell
    aurocs: Mapping[int, float]
    ci: tuple[float, float] | None
    published: float | None
    difference: Difference | None


def measured(grid: Grid, lines: Sequence[Mapping[str, Any]], scores: Path) -> dict[str, list[Measured]]:
    """What the ledger says of each cell, by data set; cells without a run have no AUROC.

    Args:
        grid: of `dia ablate`.
        lines: of the ledger; those of this grid are told by their settings, data set and size of images.
        scores: folder of the raw scores, for the paired differences.
    """
    own = [r for r in lines if ABLATION in r]
    return {d: list(_of_set(grid, [r for r in own if r["dataset"] == d], scores, d)) for d in grid.datasets}


def _of_set(grid: Grid, lines: Sequence[Mapping[str, Any]], scores: Path, dataset: str) -> Iterator[Measured]:
    made = []
    for cell in grid.cells:
        found = {r["seed"]: r for r in filter(grid.is_of(cell), lines)}
        made.append((cell, {seed: found[seed] for seed in sorted(found) if seed in grid.seeds}))
    base = next(runs for cell, runs in made if cell.names == grid.reference)
    for cell, runs in made:
        ends = np.array([r["auroc_ci"] for r in runs.values()])
        yield Measured(
            cell,
            {seed: float(r["auroc"]) for seed, r in runs.items()},
            (float(ends[:, 0].mean()), float(ends[:, 1].mean())) if len(ends) else None,
            grid.published.get(dataset, {}).get("/".join(cell.names)),
            None if cell.names == grid.reference else paired(runs, base, scores),
        )


def paired(
    runs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], scores: Path
) -> Difference | None:
    """The difference of mean AUROCs over the seeds that both have, paired by seed and image.

    Args:
        runs: ledger lines by seed.
        base: likewise, of what is subtracted.
        scores: folder of the raw scores.

    Returns:
        None where no seed is common, or raw scores are not there.
    """
    common = sorted(set(runs) & set(base))
    sides, labels = [], None
    for lines in (runs, base):
        paths = [scores_path(scores, lines[seed]) for seed in common]
        if not paths or not all(p.exists() for p in paths):
            return None
        kept = [np.load(p) for p in paths]
        labels = kept[0]["labels"]
        sides.append(np.stack([k["scores"] for k in kept]))
    return paired_difference(np.asarray(labels), *sides)
