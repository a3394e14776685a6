"""The paper's table of results as printed, with the weights its methods truly start from, and the class its
numbers take as normal where that is in question. Knows no runs.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024; `paper_table.csv` beside this file holds the facts,
transcribed by a program at the commit `92f48f9`. Other splits and training than ours: compare with care.
`references.csv` beside it holds what others report on the same data sets, each with its source and where the
value was read; a field that was not found there is empty.
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
REFERENCES = Path(__file__).parent / "references.csv"


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


@dataclass(frozen=True)
class Reference:
    """A result on one of our data sets that others report, mostly on other splits and sizes than ours.

    Args:
        dataset: our name of the data set, or of the images that it was made from.
        method: our name where it is one of ours, else the source's.
        value: as reported, from 0 to 1.
        metric: of the value.
        split: how the images were divided; empty where it was not found, as are the fields below.
        normals: how many normals it was trained on; 0 for a method that saw no image of the set.
        chosen_on_test: what was chosen or printed by the test set's labels, as epochs or thresholds.
        source: the publication.
        year: of the source.
        read_in: where the value was read, as not every source was at hand.
    """

    dataset: str
    method: str
    value: float
    metric: str
    split: str
    normals: int | None
    chosen_on_test: str
    source: str
    year: int | None
    read_in: str


@cache
def references() -> tuple[Reference, ...]:
    """Returns results on the same data sets that were reported elsewhere, in the order of the file.

    Example:
        >>> [r.value for r in references() if (r.dataset, r.method) == ("oct2017", "recontrast")]
        [0.996]
    """
    with REFERENCES.open(newline="", encoding="utf-8") as file:
        return tuple(
            Reference(
                r["dataset"], r["method"], float(r["value"]), r["metric"], r["split"], _number(r["normals"]),
                r["chosen_on_test"], r["source"], _number(r["year"]), r["read_in"],
            )
            for r in csv.DictReader(file)
        )  # fmt: skip


def _number(text: str) -> int | None:
    """A whole number; None if the field is empty."""
    return int(text) if text else None
