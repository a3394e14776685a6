"""What choosing a training's length on the test set would be worth, from a ledger of fits of several lengths.

And what a longer training than the table's is worth, from the same ledger.

Published code often evaluates on the test set after each epoch and keeps the best. For one training, the
worth of that is the best AUROC of the looks less that of the last one, which nobody chose. The ledger is of
`benchmarks/epoch_choice.py`. Knows lines; fits nothing and chooses nothing.

`choice_before.csv` beside this file holds the same of 39 trainings of `csi` and `dia` by their published
score, drawn by a program from `results/curves.jsonl` at the commit `92f48f9`: runs of 0.1, before the
augmentation was mended.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core.errors import DataError
from .ledger import Ledger, identity

BEFORE = Path(__file__).parent / "choice_before.csv"
LOOKS = 4  # at a training, evenly spaced, the last at its end
CHOICE = "choice"  # a line's field: {"steps": length of this fit, "of": length of the whole training}


@dataclass(frozen=True)
class Worth:
    """What choosing is worth to one method. With few looks it is a lower bound for code that looks often.

    Args:
        mean: AUROC gained by the best look over the last one, over trainings.
        greatest: of the trainings.
        looks: at each training, the last one included.
        trainings: data sets × seeds.
        datasets: their names.
    """

    mean: float
    greatest: float
    looks: int
    trainings: int
    datasets: tuple[str, ...]


def choices(path: Path | str, looks: int = LOOKS) -> dict[str, Worth]:
    """Returns what choosing is worth, by method, over the trainings of which all looks are there.

    Args:
        path: the ledger.
        looks: at each training.

    Returns:
        By method, in the order of the ledger; methods without a whole training are left out.

    Raises:
        DataError: a damaged ledger, or a line that does not say which part of a training it is.
    """
    of: dict[tuple[str, str, int, str], dict[int, float]] = defaultdict(dict)
    for line, part in _parts(path):
        key = line["method"], line["dataset"], line["seed"], f"{line['data_sha256']} {part['of']}"
        of[key][round(looks * part["steps"] / part["of"])] = line["auroc"]
    gains: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (method, dataset, _, _), aurocs in of.items():
        if len(aurocs) == looks:
            gains[method].append((dataset, max(aurocs.values()) - aurocs[looks]))
    return _worths(gains, looks)


@dataclass(frozen=True)
class Longer:
    """Trainings of one method at the table's length and at a multiple of it, with the same data and seeds.

    Args:
        steps: of a training in the table.
        times: how many times as many the longer one has.
        pairs: by data set and seed, AUROC of the table's training and of the longer one.
    """

    steps: int
    times: int
    pairs: Mapping[tuple[str, int], tuple[float, float]]


def longer(path: Path | str, runs: Iterable[Mapping[str, Any]]) -> dict[str, Longer]:
    """Pairs the table's runs with longer trainings that differ from them in their steps alone.

    Args:
        path: the ledger.
        runs: lines of the table.

    Returns:
        By method, in the order of the ledger; of several lengths the longest. Others are left out.

    Raises:
        DataError: as for `choices`.
    """
    table = {_but_steps(run): run for run in runs if (run["settings"] or {}).get("steps")}
    found: dict[str, dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]]] = {}
    for line, part in _parts(path):
        run = table.get(_but_steps(line))
        if run is None or part["steps"] < part["of"] or part["steps"] <= run["settings"]["steps"]:
            continue
        found.setdefault(line["method"], {}).setdefault(part["steps"], []).append((run, line))
    made = {}
    for method, of in found.items():
        steps, pairs = max(of.items())
        first = pairs[0][0]["settings"]["steps"]
        aurocs = {(run["dataset"], run["seed"]): (run["auroc"], line["auroc"]) for run, line in pairs}
        made[method] = Longer(first, steps // first, aurocs)
    return made


def _but_steps(line: Mapping[str, Any]) -> str:
    settings = line["settings"] or {}
    return identity({**line, "settings": {k: v for k, v in settings.items() if k != "steps"}})


def _parts(path: Path | str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, int]]]:
    """The ledger's lines, each with the part of a training that it is."""
    for number, line in enumerate(Ledger(path).rows(), 1):
        part = line.get(CHOICE)
        if not isinstance(part, dict) or not {"steps", "of"} <= set(part):
            raise DataError(f"{path}:{number}: no field {CHOICE} with steps and of; is it another ledger?")
        yield line, part


def choices_before() -> dict[str, Worth]:
    """Returns what choosing was worth to `csi` and `dia` in the trainings of `choice_before.csv`.

    Example:
        >>> found = choices_before()
        >>> {method: (worth.trainings, worth.looks) for method, worth in found.items()}
        {'csi': (19, 7), 'dia': (20, 7)}
    """
    gains: dict[str, list[tuple[str, float]]] = defaultdict(list)
    with BEFORE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for r in rows:
        gains[r["method"]].append((r["dataset"], float(r["best"]) - float(r["last"])))
    return _worths(gains, min(int(r["looks"]) for r in rows))


def _worths(gains: Mapping[str, Sequence[tuple[str, float]]], looks: int) -> dict[str, Worth]:
    """By method, of the gains of its trainings, each with its data set."""
    return {
        method: Worth(
            fmean(g for _, g in found), max(g for _, g in found), looks, len(found),
            tuple(dict.fromkeys(d for d, _ in found)),
        )
        for method, found in gains.items()
    }  # fmt: skip
