"""The findings of a run of scoring while it goes on: a line for each image, so that a killed run resumes.

The lines are in one hidden file beside the scores, `.NAME.findings.part`, and hold all that masks and lists
are made of when the run ends: nothing of them is in memory before, and then one volume at a time. Lines of a
batch are written before its rows are, so that an image with a row has its findings. Knows listings and
heatmaps; knows no form of file that users see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...data.formats import dicom, geometry
from ...data.formats.geometry import Grid, Spacing
from ...data.layouts import Entry
from ...data.readers import Listing
from ...detectors.calibration import HeatScale
from ...evaluate.findings import Finding, Lesion, findings_of, joined


@dataclass(frozen=True)
class Looked:
    """One image that was looked at.

    Args:
        index: its number in the listing.
        name: its name.
        number: of the slice in its volume, as `Entry.slice`; None where it is no slice.
        size: (height, width) of its file.
        spacing: of its pixels; None where not known.
        findings: with the numbers of their lesions.
        entry: its file; None where it comes from none.
    """

    index: int
    name: str
    number: int | None
    size: tuple[int, int]
    spacing: Spacing | None
    findings: Sequence[Finding]
    entry: Entry | None


@dataclass(frozen=True)
class Case:
    """An image that is no slice, or the slices of one volume in order.

    Args:
        volume: its name; None of an image.
        images: what was looked at, at least one.
        lesions: the highest peak first.
        grid: where a volume's voxels lie; None where not known.
        on_grid: the slice of the grid that each image is; empty where there is none.
    """

    volume: str | None
    images: Sequence[Looked]
    lesions: Sequence[Lesion]
    grid: Grid | None
    on_grid: Sequence[int]

    @property
    def name(self) -> str:
        """Of the volume or image."""
        return self.volume or self.images[0].name


class FindingsKept:
    """Writes the findings of a listing's images, in order, and reads them again case by case.

    Args:
        scores: the file of scores that the run writes.
        listing: the images of the run.
        heat: the heatmaps of normals; None where the model has none, and then nothing is found.
        rate: share of normal images that may have a finding.
        start: number of images done before.
        rows: how many of these have a row.

    Raises:
        DataError: the findings of the images done before are not there.
    """

    def __init__(
        self, scores: Path, listing: Listing, heat: HeatScale | None, rate: float, start: int, rows: int
    ):
        self.part = part_of(scores)
        self.listing, self.heat, self.rate = listing, heat, rate
        self._positions = iter(enumerate(listing.names))
        kept, end = 0, 0
        if start:
            for line, after in self._lines():
                if line["index"] >= start:
                    break
                kept, end = kept + 1, after
        if kept != rows:
            raise DataError(
                f"{self.part}: it lacks findings of images that have scores; begin anew without --resume"
            )
        new = self.part.with_name(f"{self.part.name}.new")  # as its last owner may hold the old one open
        with new.open("wb") as file:
            if end:
                with self.part.open("rb") as old:
                    while end and (piece := old.read(min(end, 2**20))):
                        file.write(piece)
                        end -= len(piece)
        new.replace(self.part)
        self._file = self.part.open("a", encoding="utf-8")

    def append(self, names: Sequence[str], heatmaps: np.ndarray, sizes: Sequence[tuple[int, int]]) -> int:
        """Finds and keeps what is in some images, which follow those of the last call in the listing.

        Args:
            names: of N images; others between them in the listing are passed over.
            heatmaps: `(N, H, W)` at the model's size.
            sizes: (height, width) of their files.

        Returns:
            The number of findings.
        """
        many = 0
        for name, heatmap, size in zip(names, heatmaps, sizes, strict=True):
            index = next(i for i, other in self._positions if other == name)
            entry, spacing = self._entry(index), None
            if entry is not None:
                view = self.listing.options.view
                spacing = geometry.spacing_of(entry.file, entry.kind, entry.number, view, size)
            plane = None if spacing is None else spacing.plane
            found = [] if self.heat is None else findings_of(
                heatmap, self.heat, self.rate, size=size, spacing=plane
            )  # fmt: skip
            many += len(found)
            line = {"index": index, "size": size, "spacing": spacing, "found": [*map(_packed, found)]}
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return many

    def cases(self) -> Iterator[Case]:
        """Reads what was kept, a volume or an image at a time, and joins findings to lesions."""
        volumes = self.listing.volumes

        def of(line: dict[str, Any]) -> tuple[str | None, int]:
            volume = volumes[line["index"]]
            return volume, -1 if volume is not None else line["index"]

        for (volume, _), lines in groupby((line for line, _ in self._lines()), of):
            yield self._case(volume, [*lines])

    def _case(self, volume: str | None, lines: Sequence[dict[str, Any]]) -> Case:
        entries = [self._entry(line["index"]) for line in lines]
        grid, on_grid = None, list[int]()
        if volume is not None and None not in entries:
            grid, on_grid = _grid([e for e in entries if e is not None], self.listing.options.view)
        numbers = [None if e is None else e.slice for e in entries]
        between = None if grid is None or grid.spacing is None else grid.spacing.z
        slices, lesions = joined(
            [[_unpacked(f, k or 0) for f in line["found"]] for line, k in zip(lines, numbers, strict=True)],
            distance=between,
        )
        looked = []
        for line, found, entry, number in zip(lines, slices, entries, numbers, strict=True):
            spacing = line["spacing"] and Spacing(*line["spacing"])
            height, width = line["size"]
            name = self.listing.names[line["index"]]
            looked.append(Looked(line["index"], name, number, (height, width), spacing, found, entry))
        return Case(volume, looked, lesions, grid, on_grid)

    def close(self) -> None:
        """Ends writing."""
        self._file.close()

    def _entry(self, index: int) -> Entry | None:
        return self.listing.entries[index] if self.listing.entries else None

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields each line and its end in bytes, up to the first that is torn."""
        end = 0
        try:
            with self.part.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    end += len(line)
                    yield json.loads(line), end
        except (FileNotFoundError, ValueError):
            return


def part_of(scores: Path) -> Path:
    """Returns the hidden file of findings beside a file of scores."""
    return scores.with_name(f".{scores.name}.findings.part")


def _grid(entries: Sequence[Entry], view: Any) -> tuple[Grid | None, list[int]]:
    """Returns where the slices of a volume lie, and which slice of that grid each is."""
    first = entries[0]
    try:
        if first.kind in ("nifti", "itk"):
            return geometry.grid_of_file(first.file, first.kind, view), [e.slice or 0 for e in entries]
        if first.kind == "dicom":
            heads: dict[Path, dicom.Header] = {}
            places = []
            for e in entries:
                head = heads.get(e.file) or dicom.header(e.file)
                heads = {e.file: head}  # the frames of one file stand together
                places.append(head.places[e.number or 0 if len(head.places) > 1 else 0])
            if (found := geometry.grid_of_places(places)) is not None:
                return found
    except (DataError, OSError):
        pass
    return None, []


def _packed(f: Finding) -> dict[str, Any]:
    """Returns a finding as JSON, its mask as the lengths of runs, row by row, the first of False."""
    return {
        "box": f.box, "runs": runs_of(f.mask), "contour": [ring.tolist() for ring in f.contour],
        "holes": f.holes, "area_mm2": f.area_mm2, "peak": f.peak, "peak_at": f.peak_at, "p": f.p_value,
    }  # fmt: skip


def _unpacked(kept: dict[str, Any], number: int) -> Finding:
    x, y, w, h = kept["box"]
    values = np.arange(len(kept["runs"])) % 2 == 1
    mask = np.repeat(values, kept["runs"]).reshape(h, w)
    contour = [np.array(ring) for ring in kept["contour"]]
    at = (kept["peak_at"][0], kept["peak_at"][1])
    return Finding(
        number, (x, y, w, h), mask, contour, kept["holes"], kept["area_mm2"], kept["peak"], at, kept["p"]
    )


def runs_of(mask: np.ndarray) -> list[int]:
    """Returns the lengths of runs of equal values of a mask, row by row, the first of False.

    Args:
        mask: of any shape, bool.
    """
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(ends).tolist()
    return [0, *runs] if flat.size and flat[0] else runs
