"""The results table of the paper, as printed, with what its methods start from in truth, and which class its
numbers take as normal where that is in question. Knows no runs.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024; `paper_table.csv` beside this file holds the facts,
transcribed by a program at the commit `92f48f9`. Other splits and training than ours: compare with care.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
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
        mark: † or ‡ before its name as printed; what they mean is not known here.
        weights: what its publication starts from; 'none' where it trains from scratch.
        aurocs: (mean, standard deviation) by data set.
    """

    method: str
    title: str
    family: str
    venue: str
    extra_data: bool
    mark: str
    weights: str
    aurocs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def corrected(self) -> bool:
        """Whether it is printed as without extra data, and its publication starts from ImageNet."""
        return not self.extra_data and self.weights != "none"

    def beside(self, dataset: str) -> tuple[tuple[float, float] | None, str]:
        """What is printed for the images of a data set in either direction, and how sure the direction is.

        Returns:
            The value, None where nothing is printed; and `""` where the direction is in no question, `LIKELY`
            where it is most likely this one, `OTHER` where the other one, `UNKNOWN` where nothing tells.
        """
        known = known_direction(self.method, dataset)
        if known is None:
            return self.aurocs.get(dataset), ""
        sure = UNKNOWN if not known.likely else LIKELY if known.likely == dataset else OTHER
        return self.aurocs.get(known.dataset), sure


@dataclass(frozen=True)
class Direction:
    """What is known of the class that printed numbers take as normal, where either class might be.

    Args:
        dataset: our name of the paper's column, with the catalogue's usual class as normal.
        other: our name of the same images with the other class as normal.
        methods: whose numbers are meant; empty for all others.
        likely: which of the two the numbers most likely belong to; empty where nothing tells.
        reason: why.
    """

    dataset: str
    other: str
    methods: tuple[str, ...]
    likely: str
    reason: str


LIKELY, OTHER, UNKNOWN = "likely", "other", "unknown"
DIRECTIONS = (
    Direction(
        "breastmnist",
        "breastmnist-0",
        ("csi", "dia"),
        "breastmnist-0",
        "the official command trains on label 0, malignant, as normal, and both come from that code",
    ),
    Direction(
        "breastmnist",
        "breastmnist-0",
        (),
        "",
        "nothing we have says on which label the other methods were trained",
    ),
    Direction(
        "sarscov2ct",
        "sarscov2ct-covid",
        (),
        "",
        "the paper's diffusion model is trained on non-COVID, but its command names class 0, COVID",
    ),
)


def known_direction(method: str, dataset: str) -> Direction | None:
    """What is known of the direction of a method's printed number; None where it is in no question."""
    found = [d for d in DIRECTIONS if dataset in (d.dataset, d.other) and method in (d.methods or (method,))]
    return found[0] if found else None


@cache
def paper_table() -> dict[str, Published]:
    """The paper's fourteen rows by our names, in its order."""
    found: dict[str, Published] = {}
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            cells.setdefault(r["method"], {})[r["dataset"]] = (float(r["auroc"]), float(r["std"]))
            found[r["method"]] = Published(
                r["method"],
                r["title"],
                r["family"],
                r["venue"],
                r["extra_data_as_printed"] == "yes",
                r["mark_as_printed"],
                r["weights_in_truth"],
                cells[r["method"]],
            )
    return found


def paper_gains() -> dict[str, float]:
    """The paper's mean relative gain over CSI by method, on all six data sets of its table."""
    papers = paper_table()
    base = papers[BASE].aurocs
    gains = {}
    for method, p in papers.items():
        gains[method] = relative_gain([p.aurocs[d][0] for d in base], [m for m, _ in base.values()])
    return gains
