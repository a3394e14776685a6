"""The paper's table of results as printed, with the weights its methods truly start from, and the class its
numbers take as normal where that is in question. Knows no runs.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024; `paper_table.csv` beside this file holds the facts,
transcribed by a program at the commit `92f48f9`. Other splits and training than ours: compare with care.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ..evaluate.compare import relative_gain

BASE = "csi"  # of the paper's relative gain
TABLE = Path(__file__).parent / "paper_table.csv"


@dataclass(frozen=True)
class Published:
    """A row of the paper's table.

    Args:
        method: our name of it.
        title: the paper's.
        family: the paper's heading above it.
        venue: where the method was published.
        extra_data: the column "extra training data" as printed.
        mark: † or ‡ before its name as printed, whose meaning is not known here.
        weights: the weights its publication starts from; `none` if it trains from scratch.
        aurocs: (mean, standard deviation) by data set.
    """

    method: str
    title: str
    family: str
    venue: str
    extra_data: bool
    mark: str
    weights: str
    aurocs: Mapping[str, tuple[float, float]]

    @property
    def corrected(self) -> bool:
        """True if it is printed as without extra data, but its publication starts from ImageNet."""
        return not self.extra_data and self.weights != "none"

    def printed_for(self, dataset: str) -> tuple[tuple[float, float] | None, str]:
        """Returns the value printed for a data set in either direction, and how sure the direction is.

        Args:
            dataset: our name of the data set, in either direction.

        Returns:
            The value, None if nothing is printed; and `""` if the direction is in no question, `LIKELY` if it
            is most likely this one, `OTHER` if it is most likely the other, `UNKNOWN` if nothing tells.
        """
        known = known_direction(self.method, dataset)
        if known is None:
            return self.aurocs.get(dataset), ""
        sure = UNKNOWN if not known.likely else LIKELY if known.likely == dataset else OTHER
        return self.aurocs.get(known.dataset), sure


@dataclass(frozen=True)
class Direction:
    """The class that printed numbers may take as normal, where it could be either.

    Args:
        dataset: our name of the paper's column, with the catalogue's usual class as normal.
        other: our name of the same images with the other class as normal.
        methods: the methods whose numbers are meant; empty for all others.
        likely: the one of the two names the numbers most likely belong to; empty if nothing tells.
        reason: the evidence.
    """

    dataset: str
    other: str
    methods: tuple[str, ...]
    likely: str
    reason: str


LIKELY, OTHER, UNKNOWN = "likely", "other", "unknown"
DIRECTIONS = (
    Direction(
        "breastmnist", "breastmnist-0", ("csi", "dia"), "breastmnist-0",
        "the official command trains on label 0, malignant, as normal, and both come from that code",
    ),
    Direction(
        "breastmnist", "breastmnist-0", (), "",
        "nothing we have says on which label the other methods were trained",
    ),
    Direction(
        "sarscov2ct", "sarscov2ct-covid", (), "",
        "the paper's diffusion model is trained on non-COVID, but its command names class 0, COVID",
    ),
)  # fmt: skip


def known_direction(method: str, dataset: str) -> Direction | None:
    """Returns what is known of the direction of a method's printed number.

    Args:
        method: our name.
        dataset: our name of the data set, in either direction.

    Returns:
        The first entry of `DIRECTIONS` that fits; None if the direction is in no question.
    """
    found = [d for d in DIRECTIONS if dataset in (d.dataset, d.other) and method in (d.methods or (method,))]
    return found[0] if found else None


@cache
def paper_table() -> dict[str, Published]:
    """Returns the paper's fourteen rows by our names, in its order."""
    found = {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        for method, lines in groupby(csv.DictReader(file), key=itemgetter("method")):
            cells = list(lines)
            r = cells[0]
            found[method] = Published(
                method, r["title"], r["family"], r["venue"], r["extra_data_as_printed"] == "yes",
                r["mark_as_printed"], r["weights_in_truth"],
                {cell["dataset"]: (float(cell["auroc"]), float(cell["std"])) for cell in cells},
            )  # fmt: skip
    return found


def paper_gains() -> dict[str, float]:
    """Returns the paper's mean relative gain over CSI by method, on all six data sets of its table."""
    base = paper_table()[BASE].aurocs
    return {
        method: relative_gain([row.aurocs[d][0] for d in base], [mean for mean, _ in base.values()])
        for method, row in paper_table().items()
    }
