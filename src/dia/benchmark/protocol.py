"""Recipes that are frozen before they meet a test set, and the development data to find one on.

A recipe is a grid of one cell: a method with its settings, the same for all data sets, dated, with its
reasoning. It is explored on development data: `val` if that has labels, and lesions pasted into training
normals that were left out. It meets a test set once, with all its seeds, and only as its file was
committed. Every line says which of the two it is (`protocol`), and a confirmation names the recipes that
met that test set before. This file knows data, files and the ledger's lines; it trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.environment import changed_since_commit
from ..core.errors import DataError
from ..data.datasets import load, load_training
from ..data.imageset import ImageSet, group_by_unit
from ..data.lesions import KINDS, paste
from ..data.options import ReadOptions
from .grid import LESIONS, VAL, Grid

LEFT_OUT = 5  # one in so many training normals is left out to be judged, with lesions and without
SIZES = (0.08, 0.32)  # of the lesions, uniform in the logarithm, as are the contrasts
CONTRASTS = (0.1, 0.8)


# --- development data -------------------------------------------------------------------------------------


def development(
    name: str, kind: str, data_root: str | None, side: int | None, normal: str | None = None
) -> tuple[ImageSet, ImageSet]:
    """Reads normals to fit on and labelled images to judge by, none of them of a test split.

    Args:
        name: of a data set.
        kind: `val` judges by its validation split; `lesions` by one in five of the training normals, as they
            are and with one lesion of each kind, and fits on the rest.
        data_root: folder of the known sets.
        side: images are read at this longer side at most, in pixels.
        normal: the normal classes of a set that is named by its path.

    Returns:
        The normals and the labelled images.

    Raises:
        DataError: no labels of both classes in `val`, or too few normals.
    """
    reading = ReadOptions(max_size=side, normal=normal)
    normals = load_training(name, data_root, reading)
    if kind == VAL:
        judged = load(name, VAL, data_root, reading)
        if judged.labels is None or not 0 < judged.labels.sum() < len(judged):
            raise DataError(f"{name}: its val split has no labels of both classes; explore by lesions")
        return normals, judged
    units = group_by_unit(len(normals), normals.units)
    order = np.random.default_rng(LEFT_OUT).permutation(len(units))
    out = np.sort(np.concatenate([units[i] for i in order[: max(len(units) // LEFT_OUT, 1)]])).astype(int)
    rest = np.setdiff1d(np.arange(len(normals)), out)
    made = pasted(normals.images, out, LEFT_OUT)  # (K, n, H, W, C)
    images = np.concatenate([normals.images[out], *made])
    labels = np.repeat([0, 1], [len(out), len(images) - len(out)])
    names = [f"{kind}/{i:05d}" for i in range(len(images))]
    return normals.subset(rest), ImageSet(images, labels, names=names)


def pasted(normals: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Pastes a lesion of every kind into each of the normals at `index`.

    Size and contrast are drawn for each image and kind, by its place among all normals.

    Args:
        normals: `(N, H, W, C)` uint8.
        index: `(n,)`, which of them.
        seed: of places, sizes and contrasts.

    Returns:
        `(K, n, H, W, C)` uint8, for K kinds.
    """
    out = []
    for k, kind in enumerate(KINDS):
        draw = np.random.default_rng([seed, 4, k]).uniform(size=(2, len(normals)))[:, index]
        sizes, contrasts = (
            low * (high / low) ** u for (low, high), u in zip((SIZES, CONTRASTS), draw, strict=True)
        )
        out.append(paste(normals[index], kind, sizes, contrasts, seed=seed)[0])
    return np.stack(out)


def development_kinds(name: str, data_root: str | None, side: int, normal: str | None = None) -> list[str]:
    """Returns the kinds of development data that a set has.

    Args:
        name: of a data set.
        data_root: folder of the known sets.
        side: images are read at this longer side at most, in pixels.
        normal: the normal classes of a set that is named by its path.

    Returns:
        `lesions`, and before it `val` if that split has labels of both classes.
    """
    try:
        development(name, VAL, data_root, side, normal)
    except DataError:
        return [LESIONS]
    return [VAL, LESIONS]


# --- meeting a test set once ------------------------------------------------------------------------------


def met_before(recipe: Grid, dataset: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of other recipes that met a test set, in the order in which they did.

    Args:
        recipe: its own name is left out.
        dataset: name of the test set's data set.
        rows: of the ledger, oldest first.

    Returns:
        Names, each once.
    """
    names = [r["recipe"]["name"] for r in confirmations(rows) if r["dataset"] == dataset]
    return [n for n in dict.fromkeys(names) if n != recipe.name]


def confirmations(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the lines of confirmed recipes."""
    return [r for r in rows if r.get("protocol") == "confirm"]


def met_unconfirmed(
    recipe: Grid, runs: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> bool:
    """Returns whether the ledger holds a run of a recipe's settings that confirms nothing.

    Args:
        recipe: with its settings.
        runs: descriptions of the recipe's runs, of `runs.planned`.
        rows: of the ledger.

    Returns:
        True if a line is of the same settings, images and seed as one of the runs, and of no confirmation.
    """

    def run(line: Mapping[str, Any]) -> tuple[Any, ...]:
        return line["dataset"], line["seed"], line["data_sha256"]

    same = list(filter(recipe.same_settings(recipe.cells[0]), rows))
    met, confirmed = set(map(run, same)), set(map(run, confirmations(same)))
    return not (met - confirmed).isdisjoint(map(run, runs))


def check_frozen(path: Path, recipe: Grid, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a recipe that is not committed, or has changed since it met a test set under its name.

    Args:
        path: of the recipe's file.
        recipe: the recipe in it.
        rows: of the ledger.

    Raises:
        DataError: one line that says which.
    """
    if changed_since_commit(path):
        raise DataError(f"{path}: commit it first; a recipe is frozen before it meets a test set")
    is_of = recipe.is_of(recipe.cells[0])
    for row in confirmations(rows):
        name, same = row["recipe"]["name"], is_of(row)
        if name == recipe.name and not same:
            raise DataError(
                f"{path}: {name} met {row['dataset']} as another recipe ({row['method']}, preset "
                f"{row['preset']}, settings {row.get('settings')}, images of {row['recipe'].get('side')} "
                "px); what is changed needs a new name"
            )
        if name != recipe.name and same:
            raise DataError(f"{path}: the same as {name}, which met {row['dataset']} already")
