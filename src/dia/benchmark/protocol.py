"""Recipes that are frozen before they meet a test set, and what may be looked at while one is sought.

A recipe is a grid of one cell: a method with all its settings, one for all data sets, dated, with its
reasoning. It is explored on development data: `val` where that has labels, and lesions pasted into training
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
from ..data.imageset import ImageSet, group_by_volume
from ..evaluate.selection import pasted
from .grid import CONFIRM, LESIONS, VAL, Grid
from .runs import full_settings

LEFT_OUT = 5  # one in so many training normals is left out to be judged, with lesions and without


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


def met_before(recipe: Grid, dataset: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of other recipes that met this test set, in the order in which they did.

    Args:
        recipe: whose own name does not count.
        dataset: whose test set.
        rows: of the ledger, oldest first.
    """
    names = [r["recipe"]["name"] for r in confirmations(rows) if r["dataset"] == dataset]
    return [n for n in dict.fromkeys(names) if n != recipe.name]


def confirmations(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a ledger's lines those of confirmed recipes."""
    return [r for r in rows if r.get("protocol") == CONFIRM]


def met_unconfirmed(
    recipe: Grid, runs: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> bool:
    """Whether the ledger holds a run of a recipe on the same images with the same seed that confirms nothing.

    Args:
        recipe: with its settings.
        runs: what its lines will say, by `runs.described`.
        rows: of the ledger.
    """
    asked = {(r["dataset"], r["seed"], r["data_sha256"]) for r in runs}
    same = recipe.same_settings(recipe.cells[0])
    said: dict[tuple[Any, ...], set[Any]] = {}
    for r in rows:
        run = r["dataset"], r["seed"], r["data_sha256"]
        if run in asked and same(r):
            said.setdefault(run, set()).add(r.get("protocol"))
    return any(CONFIRM not in protocols for protocols in said.values())


def check_frozen(path: Path, recipe: Grid, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a recipe that is not committed, or is no longer what met a test set under its name.

    Args:
        path: of the recipe's file.
        recipe: as it is there.
        rows: of the ledger.

    Raises:
        DataError: one line that says which.
    """
    if changed_since_commit(path):
        raise DataError(f"{path}: commit it first; a recipe is frozen before it meets a test set")
    is_of = recipe.is_of(recipe.cells[0])
    for row in confirmations(rows):
        name = row["recipe"]["name"]
        if name == recipe.name and not is_of(row):
            raise DataError(
                f"{path}: {recipe.name} met {row['dataset']} as another recipe ({_told(row)}); "
                "what is changed needs a new name"
            )
        if name != recipe.name and is_of(row):
            raise DataError(f"{path}: the same as {name}, which met {row['dataset']} already")


def _told(line: Mapping[str, Any]) -> str:
    """What a line says of its settings, for people."""
    if full_settings(line) is None:
        return "settings of an earlier version"
    changed = ", ".join(f"{k} {v}" for k, v in line["settings"].items()) or "no changes"
    return f"{line['method']}, preset {line['preset']}, {changed}, images of {line['recipe'].get('side')} px"
