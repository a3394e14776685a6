"""Recipes that are frozen before they meet a test set, and what may be looked at while one is sought.

A recipe is a YAML file: a method with all its settings, one for all data sets, dated, with its reasoning. It
is explored on development data: `val` where that has labels, and lesions pasted into training normals that
were left out. A test set it meets once, with all its seeds, and only as its file was committed. Every line
says which of the two it is (`protocol`), and a confirmation which recipes met that test set before. Knows
data, files and the ledger's lines; trains nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..core.environment import changed_since_commit
from ..core.errors import DataError
from ..core.settings import SettingsError
from ..core.yamlfile import read_yaml
from ..data import lesions
from ..data.datasets import load, load_training
from ..data.imageset import ImageSet, group_by_volume
from ..detectors.presets import MAX_SIZE, PRESETS
from ..detectors.registry import detector_class, wanted_settings
from ..evaluate.selection import pasted
from .runs import described, full_settings

EXPLORE, CONFIRM = "explore", "confirm"
VAL, LESIONS = "val", "lesions"
LEFT_OUT = 5  # one in so many training normals is left out to be judged, with lesions and without


@dataclass(frozen=True)
class Recipe:
    """One way to detect, for all data sets alike.

    Args:
        name: that of its file.
        date: on which it was frozen.
        reasoning: why it should be good, and on what it was explored.
        method: its name.
        preset: of the settings.
        settings: changes of those by dotted name.
        datasets: which it is confirmed on.
        seeds: with which.
        max_size: images are read at this longer side at most; the preset's where None.
    """

    name: str
    date: datetime.date
    reasoning: str
    method: str
    preset: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ("pneumoniamnist", "breastmnist", "sarscov2ct", "kvasirseg_patches")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise DataError(f"{self.name}: no preset {self.preset!r}; there are: {', '.join(PRESETS)}")
        if not isinstance(self.date, datetime.date) or not self.reasoning.strip():
            raise DataError(f"{self.name}: a recipe has a date (YYYY-MM-DD) and its reasoning")
        try:
            wanted_settings(self.method, self.preset, self.settings)
        except SettingsError as error:
            raise DataError(f"{self.name}: {error}") from error
        if not self.seeds or not self.datasets:
            raise DataError(f"{self.name}: a recipe is confirmed on datasets, with seeds")

    @property
    def side(self) -> int:
        """Images are read at this longer side at most."""
        return self.max_size or MAX_SIZE[self.preset]

    def made(self, line: Mapping[str, Any]) -> bool:
        """Whether a line is of the same method, revision and settings, whatever name or preset it came by."""
        wanted = wanted_settings(self.method, self.preset, self.settings)
        own = described("", detector_class(self.method)(wanted), self.preset, "")
        return line["method"] == self.method and full_settings(line) == full_settings(own)

    def is_of(self, line: Mapping[str, Any]) -> bool:
        """Whether a recipe's line is of this one, whatever its name: as `made`, on images of this size."""
        return line["recipe"].get("side") == self.side and self.made(line)


def load_recipe(path: Path | str) -> Recipe:
    """The recipe of a YAML file, whose name is the recipe's.

    Raises:
        DataError: not there, not YAML, or not a recipe.
    """
    path = Path(path)
    given = read_yaml(path)
    known = {f.name for f in fields(Recipe)} - {"name"}
    if not isinstance(given, dict) or not {"date", "reasoning", "method"} <= set(given) <= known:
        raise DataError(f"{path}: a recipe has date, reasoning, method, and may have of {sorted(known)}")
    lists = {k: tuple(given[k]) for k in ("datasets", "seeds") if isinstance(given.get(k), list)}
    try:
        return Recipe(path.stem, **given | lists)
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())[:200]}") from error


# --- what may be looked at --------------------------------------------------------------------------------


def development(name: str, kind: str, data_root: str | None, side: int | None) -> tuple[ImageSet, ImageSet]:
    """Normals to fit on and labelled images to judge by, none of them of a test split.

    Args:
        name: of a data set.
        kind: `val`: its validation split against its training normals; `lesions`: one in five of the training
            normals as it is and with one lesion of each kind, against the rest.
        data_root: where known sets lie.
        side: images are read at this longer side at most.

    Raises:
        DataError: no labels of both classes in `val`, or too few normals.
    """
    normals = load_training(name, data_root, max_size=side)
    if kind == VAL:
        judged = load(name, VAL, data_root, max_size=side)
        if judged.labels is None or not 0 < judged.labels.sum() < len(judged):
            raise DataError(f"{name}: its val split has no labels of both classes; explore by lesions")
        return normals, judged
    units = group_by_volume(len(normals), normals.volumes)
    order = np.random.default_rng(LEFT_OUT).permutation(len(units))
    out = np.sort(np.concatenate([units[i] for i in order[: max(len(units) // LEFT_OUT, 1)]])).astype(int)
    rest = np.setdiff1d(np.arange(len(normals)), out)
    made = pasted(normals.images, out, LEFT_OUT)  # (K, n, H, W, C)
    images = np.concatenate([normals.images[out], *made])
    labels = np.repeat([0, 1], [len(out), len(images) - len(out)])
    names = [f"{kind}/{i:05d}" for i in range(len(images))]
    return normals.subset(rest), ImageSet(images, labels, names=names)


def kinds_of(name: str, data_root: str | None, side: int) -> list[str]:
    """Which development data a set has."""
    try:
        development(name, VAL, data_root, side)
    except DataError:
        return [LESIONS]
    return [VAL, LESIONS]


# --- meeting a test set once ------------------------------------------------------------------------------


def about(recipe: Recipe, protocol: str) -> dict[str, Any]:
    """What a line of this recipe says beside its numbers."""
    said: dict[str, Any] = {
        "name": recipe.name,
        "date": recipe.date.isoformat(),
        "side": recipe.side,
    }
    if protocol == EXPLORE:
        said["lesions"] = lesions.VERSION
    return {"protocol": protocol, "recipe": said}


def met_before(recipe: Recipe, dataset: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of other recipes that met this test set, in the order in which they did."""
    names = [r["recipe"]["name"] for r in confirmations(rows) if r["dataset"] == dataset]
    return [n for n in dict.fromkeys(names) if n != recipe.name]


def confirmations(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a ledger's lines those of confirmed recipes."""
    return [r for r in rows if r.get("protocol") == CONFIRM]


def met_unconfirmed(
    recipe: Recipe, runs: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> bool:
    """Whether the ledger holds a run of a recipe on the same images with the same seed that confirms nothing.

    Args:
        recipe: with its settings.
        runs: what its lines will say, by `runs.described`.
        rows: of the ledger.
    """
    asked = {(r["dataset"], r["seed"], r["data_sha256"]) for r in runs}
    said: dict[tuple[Any, ...], set[Any]] = {}
    for r in rows:
        run = r["dataset"], r["seed"], r["data_sha256"]
        if run in asked and recipe.made(r):
            said.setdefault(run, set()).add(r.get("protocol"))
    return any(CONFIRM not in protocols for protocols in said.values())


def check_frozen(path: Path, recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a recipe that is not committed, or is no longer what met a test set under its name.

    Raises:
        DataError: one line that says which.
    """
    if changed_since_commit(path):
        raise DataError(f"{path}: commit it first; a recipe is frozen before it meets a test set")
    for row in confirmations(rows):
        said = row["recipe"]
        if said["name"] == recipe.name and not recipe.is_of(row):
            raise DataError(
                f"{path}: {recipe.name} met {row['dataset']} as another recipe ({_told(row)}); "
                "what is changed needs a new name"
            )
        if said["name"] != recipe.name and recipe.is_of(row):
            raise DataError(f"{path}: the same as {said['name']}, which met {row['dataset']} already")


def _told(line: Mapping[str, Any]) -> str:
    """What a line says of its settings, for people."""
    if full_settings(line) is None:
        return "settings of an earlier version"
    changed = ", ".join(f"{k} {v}" for k, v in line["settings"].items()) or "no changes"
    return f"{line['method']}, preset {line['preset']}, {changed}, images of {line['recipe'].get('side')} px"
