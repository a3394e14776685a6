"""What `dia score` does with findings: looks for them batch by batch, then writes lists and masks of them.

Joins the parts of this folder for one run. Knows models by their heatmaps of normals alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ...core.errors import DataError
from ...core.running.progress import Bar
from ...data.readers import Listing
from ...detectors.calibration import HeatScale
from ...evaluate.findings import why_none
from ..heatmaps import MaskForm
from .kept import FindingsKept, part_of
from .lists import write_list
from .masks import MaskFiles

if TYPE_CHECKING:
    from ...detectors import Detector
    from ..onnx_model import OnnxModel


class Findings:
    """The findings of one run. A context manager, which ends writing.

    Args:
        out: the list to write, .json or .csv; None for none.
        masks: the folder of masks; None for none.
        forms: the forms of masks.
        heat: the heatmaps of normals; None where the model keeps none.
        rate: share of normal images that may have a finding.
        method: of the model.

    Attributes:
        why_none: why nothing can be found, and the remedies; empty where findings are possible.
    """

    def __init__(
        self,
        out: Path | None,
        masks: Path | None,
        forms: Sequence[MaskForm],
        heat: HeatScale | None,
        rate: float,
        method: str,
    ):
        self.out, self.heat, self.rate, self.method = out, heat, rate, method
        self.files = None if masks is None else MaskFiles(masks, forms, method)
        self.why_none = why_none(heat, rate)
        self.kept: FindingsKept | None = None

    @classmethod
    def of(
        cls,
        out: str | None,
        masks: str | None,
        forms: Sequence[MaskForm],
        detector: Detector | OnnxModel,
        rate: float,
    ) -> Self | None:
        """Makes what the options of `dia score` ask for; None where they ask for nothing.

        Args:
            out: --findings.
            masks: --masks.
            forms: --masks-as.
            detector: fitted.
            rate: the false-alarm rate.

        Raises:
            DataError: a name that is no list's, or a library that is missing.
        """
        if out and not out.endswith((".json", ".csv")):
            raise DataError(f"--findings {out}: the name must end in .json or .csv")
        if not (out or masks):
            return None
        return cls(
            Path(out) if out else None, Path(masks) if masks else None, forms, detector.heat_, rate,
            detector.method,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.kept:
            self.kept.close()

    def begin(self, scores: Path, listing: Listing, start: int, rows: int) -> None:
        """Begins, or goes on with an interrupted run.

        Args:
            scores: the file of scores.
            listing: the images of the run.
            start: number of images done before.
            rows: how many of these have a row.
        """
        heat = None if self.why_none else self.heat
        self.kept = FindingsKept(scores, listing, heat, self.rate, start, rows)

    def add(self, names: Sequence[str], heatmaps: np.ndarray, sizes: Sequence[tuple[int, int]]) -> None:
        """Keeps the findings of a batch, as `FindingsKept.append`.

        Args:
            names: of N images.
            heatmaps: `(N, H, W)` at the model's size.
            sizes: (height, width) of their files.
        """
        assert self.kept is not None
        self.kept.append(names, heatmaps, sizes)

    def write(self, about: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Writes the list and the masks of all images.

        Args:
            about: facts of the model, for the list.

        Returns:
            Facts for the user, and lines about what has no mask.
        """
        assert self.kept is not None
        self.kept.close()
        facts: dict[str, Any] = {}
        if self.out:
            level = None if self.why_none or self.heat is None else self.heat.level(self.rate)
            info = {
                "description": "findings of dia-anomaly, for research; not a medical device", **about,
                "false_alarm_rate": self.rate, "level": level,
                "normals": 0 if self.heat is None else len(self.heat.peaks),
                "words": self.why_none
                or f"at most {100 * self.rate:.3g} % of normal images (or slices) have a finding, on average",
            }  # fmt: skip
            many, images = write_list(self.out, self.kept, info)
            facts |= {"findings": many, "images_with_findings": images, "findings_out": str(self.out)}
        if self.files:
            with Bar("Writing masks", len(self.kept.listing), "image", after=2) as bar:
                for case in self.kept.cases():
                    self.files.write(case)
                    bar.update(len(case.images))
            facts["masks"] = str(self.files.folder)
        left = self.files.left_out if self.files else {}
        return facts, [f"{why}: {n} left out" for why, n in left.items()]


def forget(scores: Path) -> None:
    """Removes the hidden file of findings, once the scores are complete."""
    part_of(scores).unlink(missing_ok=True)
