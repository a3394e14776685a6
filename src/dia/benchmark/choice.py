"""What choosing a training's length on the test set would be worth, from a ledger of fits of several lengths.

Published code often evaluates on the test set after each epoch and keeps the best. For one training, the
worth of that is the best AUROC of the looks less that of the last one, which nobody chose. The ledger is of
`benchmarks/epoch_choice.py`. Knows lines; fits nothing and chooses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..core.errors import DataError
from .ledger import Ledger

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
    for number, line in enumerate(Ledger(path).rows(), 1):
        part = line.get(CHOICE)
        if not isinstance(part, dict) or not {"steps", "of"} <= set(part):
            raise DataError(f"{path}:{number}: no field {CHOICE} with steps and of; is it another ledger?")
        key = line["method"], line["dataset"], line["seed"], f"{line['data_sha256']} {part['of']}"
        of[key][round(looks * part["steps"] / part["of"])] = line["auroc"]
    gains: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (method, dataset, _, _), aurocs in of.items():
        if len(aurocs) == looks:
            gains[method].append((dataset, max(aurocs.values()) - aurocs[looks]))
    return {
        method: Worth(
            fmean(g for _, g in found), max(g for _, g in found), looks, len(found),
            tuple(dict.fromkeys(d for d, _ in found)),
        )
        for method, found in gains.items()
    }  # fmt: skip
