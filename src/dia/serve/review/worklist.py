"""A reviewer's worklist: images with scores, flags and marks, in an order, in memory only.

Knows the model and the marks; knows nothing of pages or requests.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...deploy.predictor import Inferencer, Nearest, Picture
from ...detectors.drift import RATE, SHARE, acquisition
from ...evaluate.drift_monitor import DriftMonitor
from .store import Mark, Reviews

MOST_IMAGES = 500  # in one list
MOST_LISTS = 8  # held at once; the one untouched longest goes first
_THUMBNAIL = 64  # pixels
_FULL = f"the list is full with {MOST_IMAGES} images; export it, and reload the page for more"
_CHUNK = 16  # files read and scored at a time, so that progress is seen

SORTS: dict[str, Callable[[Row], Any]] = {
    "name": lambda r: r.name.lower(),
    "score": lambda r: r.score,
    "p_value": lambda r: r.p_value,
    "flagged": lambda r: r.flagged,
    "verdict": lambda r: r.mark.verdict if r.mark else "",
    "note": lambda r: r.mark.note.lower() if r.mark else "",
}
SHOWN: dict[str, Callable[[Row], bool]] = {
    "all": lambda r: True,
    "flagged": lambda r: r.flagged,
    "unmarked": lambda r: not (r.mark and r.mark.verdict),
}


@dataclass(frozen=True, eq=False)
class Row:
    """One image with its score, flag and mark.

    Args:
        sha256: of its shape and pixels at the model's size.
        name: of the file, or slice of a file.
        image: `(H, W, C)` uint8.
        score: raw, higher = more anomalous.
        p_value: conformal, in (0, 1].
        heatmap: `(H, W)` float16, or None.
        thumbnail: a small JPEG.
        flagged: at the rate asked for; see `Worklist.rows`.
        mark: the reviewer's.
    """

    sha256: str
    name: str
    image: np.ndarray
    score: float
    p_value: float
    heatmap: np.ndarray | None
    thumbnail: bytes = b""
    flagged: bool = False
    mark: Mark | None = None

    @property
    def outdated(self) -> bool:
        """Returns whether the flag has changed, with the rate, since the verdict was given."""
        return bool(self.mark and self.mark.verdict) and self.mark.flagged != self.flagged  # type: ignore[union-attr]


class Worklist:
    """Images in the order they came, each once, and their marks.

    Args:
        inferencer: the model.
        reviews: where marks are kept.
    """

    def __init__(self, inferencer: Inferencer, reviews: Reviews):
        self.inferencer, self.reviews = inferencer, reviews
        self.model = str(inferencer.about()["model"])
        self._rows: dict[str, Row] = {}
        self._nearest: dict[str, Nearest | None] = {}
        self._drift = DriftMonitor(inferencer.detector, (), (), rate=RATE, share=SHARE)
        self._lock = threading.Lock()
        self.open = ""  # sha256 of the image that is looked at

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, files: Sequence[Path]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
        """Reads and scores files, a few at a time.

        Yields:
            the number of files done, and a (file name, line) for each of them that is left out.
        """
        for start in range(0, len(files), _CHUNK):
            part = files[start : start + _CHUNK]
            pictures: list[Picture] = []
            problems: list[tuple[str, str]] = []
            for file in part:
                if room := max(MOST_IMAGES - len(self) - len(pictures), 0):
                    reading = self.inferencer.read([file], most=room)
                    pictures += reading.pictures
                    problems += reading.errors
                else:
                    problems.append((file.name, _FULL))
            if pictures:
                problems += self._score(pictures)
            yield start + len(part), problems

    def drift(self) -> dict[str, Any]:
        """Returns whether the images differ as a whole from the training normals, as `dia score` says it."""
        with self._lock:
            return self._drift.verdict()

    def _score(self, pictures: list[Picture]) -> list[tuple[str, str]]:
        """Adds rows of pictures; returns (name, line) of each whose pixels are listed under another name."""
        images = np.stack([p.image for p in pictures])
        verdict = self.inferencer.score(images)
        repeated, new = [], []
        for i, (picture, image) in enumerate(zip(pictures, images, strict=True)):
            sha = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
            heatmap = None if verdict.heatmaps is None else verdict.heatmaps[i].astype(np.float16)
            row = Row(
                sha, picture.name, image, float(verdict.scores[i]), float(verdict.p_values[i]), heatmap,
                _thumbnail(image), mark=self.reviews.find(self.model, sha),
            )  # fmt: skip
            with self._lock:
                if (same := self._rows.setdefault(sha, row)) is row:
                    new.append(i)
                elif same.name != row.name:
                    repeated.append((row.name, f"has the pixels of {same.name}; listed once"))
        if new:
            with self._lock:
                self._drift.add(
                    [pictures[i].name for i in new], verdict.scores[new], acquisition(images[new])
                )
        return repeated

    def rows(self, rate: float, sort: str = "score", descending: bool = True, show: str = "all") -> list[Row]:
        """Returns the rows, flagged at a rate as by `Detector.threshold`; equal ones are in order of name.

        Args:
            rate: of false alarms, in (0, 1).
            sort: a key of `SORTS`.
            descending: whether the greatest comes first.
            show: a key of `SHOWN`.
        """
        threshold = self.inferencer.threshold(rate)
        with self._lock:
            rows = [replace(r, flagged=r.score > threshold) for r in self._rows.values()]
        rows.sort(key=SORTS["name"])
        rows.sort(key=SORTS[sort], reverse=descending)
        return [r for r in rows if SHOWN[show](r)]

    def row(self, sha256: str, rate: float) -> Row | None:
        """Returns one row with its mark as saved.

        Args:
            sha256: of the image.
            rate: of false alarms, in (0, 1), at which it is flagged.

        Returns:
            The row; None where the list does not hold it.
        """
        if (row := self._rows.get(sha256)) is None:
            return None
        flagged = row.score > self.inferencer.threshold(rate)
        return replace(row, flagged=flagged, mark=self.reviews.find(self.model, sha256))

    def mark(
        self,
        sha256: str,
        rate: float,
        *,
        verdict: str | None = None,
        note: str | None = None,
        reviewer: str = "",
    ) -> Row | None:
        """Saves a verdict or a note (None leaves it as it is), with the flag as it is at `rate`.

        A note alone leaves the flag that a verdict was about; one that is as it was is not saved again.

        Args:
            sha256: of the image.
            rate: of false alarms, in (0, 1).
            verdict: `agree`, `disagree` or empty.
            note: the reviewer's words.
            reviewer: the name given at the login.

        Returns:
            The row; None where the list does not hold it.

        Raises:
            DataError: it could not be saved.
        """
        with self._lock:
            if (row := self.row(sha256, rate)) is None:
                return None
            now = self._unmarked(row, rate, reviewer)
            old = row.mark or now
            if verdict is None:
                if note == old.note:
                    return row
                if old.verdict:
                    now = replace(now, flagged=old.flagged, rate=old.rate)
            verdict = old.verdict if verdict is None else verdict
            saved = self.reviews.save(replace(now, verdict=verdict, note=old.note if note is None else note))
            row = replace(row, mark=saved if saved.time else None)
            self._rows[sha256] = row
            return row

    def nearest(self, row: Row) -> Nearest | None:
        """Returns the four nearest normals, searched once per image."""
        if row.sha256 not in self._nearest:
            self._nearest[row.sha256] = self.inferencer.nearest(row.image[None], k=4)
        return self._nearest[row.sha256]

    def dissolved(self, row: Row, t: int) -> np.ndarray:
        """Returns an image dissolved.

        Args:
            row: of the image.
            t: the diffusion step.

        Returns:
            `(H, W, C)` uint8.
        """
        return self.inferencer.dissolve(row.image[None], [t])[0, 0]

    def marks(self, rate: float) -> list[Mark]:
        """Returns one mark per image, highest score first; without a verdict where none was saved."""
        return [r.mark or self._unmarked(r, rate) for r in self.rows(rate)]

    def _unmarked(self, row: Row, rate: float, reviewer: str = "") -> Mark:
        return Mark(
            row.name, row.sha256, row.score, row.p_value, row.flagged, rate,
            reviewer=reviewer, model=self.model,
        )  # fmt: skip


class Worklists:
    """The worklist of each browser window; beyond `MOST_LISTS` the one untouched longest is forgotten."""

    def __init__(self, inferencer: Inferencer, reviews: Reviews):
        self.inferencer, self.reviews = inferencer, reviews
        self._lists: OrderedDict[str, Worklist] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, window: str) -> Worklist:
        """Returns that window's list; an empty one where it has none."""
        with self._lock:
            if window not in self._lists:
                self._lists[window] = Worklist(self.inferencer, self.reviews)
            self._lists.move_to_end(window)
            while len(self._lists) > MOST_LISTS:
                self._lists.popitem(last=False)
            return self._lists[window]


def _thumbnail(image: np.ndarray) -> bytes:
    small, buffer = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), io.BytesIO()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
