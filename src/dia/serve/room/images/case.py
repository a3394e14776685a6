"""One case: its slices, what a model says of them, and what a reader sees.

Knows models and pixels; knows no session, request or page.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from ....data.imageset import pixels_sha256
from ....data.options import ReadOptions
from ....deploy.predictor import Inferencer, Verdict
from ....detectors.drift import acquisition
from ...current import Served
from ...limits import Deadline
from ..mark import Mark, Seen
from .native import Native, range_of, shown, type_of

_THUMBNAIL = 128  # pixels
_SECONDS = 60.0  # for a batch of heatmaps, behind those of others


class Marked(NamedTuple):
    """An image of the session with a reader's label, to learn from.

    Args:
        sha256: of its shape and pixels at the model's size.
        image: `(H, W, C)` uint8 at the model's size; of a volume the slice that the mark is about.
        label: 1 anomalous, 0 normal.
        flagged: whether it was flagged when the verdict was given.
        reader: who said so.
        unit: equal for the images of a patient, where that is known, or else of a case.
    """

    sha256: str
    image: np.ndarray
    label: int
    flagged: bool
    reader: str
    unit: str


@dataclass(frozen=True)
class Judged:
    """What a model says of a case of S slices.

    Args:
        served: the model.
        images: `(S, H, W, C)` uint8 at the model's size.
        hashes: sha256 of each slice's shape and pixels at the model's size.
        sha256: of the case; that of its image where it has one slice.
        scores: `(S,)` raw, higher = more anomalous.
        p_values: `(S,)` conformal, in (0, 1].
        maps: S heatmaps `(H, W)`, float16 or float32, at the model's size, each None until it is made; None
            where the method has none.
        acquisition: `(1, D)` statistics of the slice in the middle, for drift.
    """

    served: Served
    images: np.ndarray
    hashes: tuple[str, ...]
    sha256: str
    scores: np.ndarray
    p_values: np.ndarray
    maps: list[np.ndarray | None] | None
    acquisition: np.ndarray
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def worst(self) -> int:
        """Which slice has the greatest score."""
        return int(np.argmax(self.scores))

    @property
    def score(self) -> float:
        """The greatest score."""
        return float(self.scores.max())

    @property
    def p_value(self) -> float:
        """Of the greatest score, times the number of slices (Bonferroni), at most 1."""
        return min(1.0, round(float(self.p_values.min()) * len(self.scores), 6))

    @property
    def cold(self) -> bool:
        """Whether heatmaps are still to be made."""
        return self.maps is not None and any(one is None for one in self.maps)

    def heat(self, slices: Sequence[int], batch: int, stopped: Callable[[], bool] = bool) -> list[np.ndarray]:
        """Returns heatmaps, which are made where they are not there yet: they take longer than scores.

        Args:
            slices: which of them are wanted; the method has heatmaps.
            batch: how many are made at a time; the model is free for others between.
            stopped: whether nobody waits any more.

        Returns:
            `(H, W)` float16 or float32 each; fewer where it was stopped.

        Raises:
            Refused: the model is no longer served, or many wait for it.
        """
        assert self.maps is not None
        while not stopped():
            with self.lock:
                wanted = [k for k in slices if self.maps[k] is None][:batch]
                if not wanted:
                    break
                made = self.served.batcher.score(self.images[wanted], True, Deadline(_SECONDS)).heatmaps
                assert made is not None
                for k, one in zip(wanted, made, strict=True):
                    self.maps[k] = _narrow(one)
        return [one for k in slices if (one := self.maps[k]) is not None]

    @property
    def lineage(self) -> str:
        """Hash of the model as first fitted."""
        return lineage_of(self.served.inferencer)


@dataclass(eq=False)
class Case:
    """One case of S slices.

    Args:
        id: random, of this session.
        name: the client's.
        slices: at their own size and depth.
        numbers: of the slices in their file, by which pages, marks and findings know them.
        spacing: mm between rows, columns and slices; None where the files do not say.
        levels: real values that are first shown black and white.
        images: `(S, H, W, C)` uint8 at the size of the model that reads.
        size: bytes in memory; 0 once they were given back.
        judged: by the model in use, or the one before while that is not done; None before the first.
        unheated: a judgement of which no heatmaps could be made.
        patient: equal for the cases of a patient, for comparing only; None where that is not known.
    """

    id: str
    name: str
    slices: list[Native]
    numbers: tuple[int, ...]
    spacing: tuple[float, float, float | None] | None
    levels: tuple[float, float]
    images: np.ndarray
    size: int
    judged: Judged | None = None
    unheated: Judged | None = None
    patient: str | None = None
    _thumb: bytes = b""
    _range: tuple[float, float] | None = None

    @property
    def scored(self) -> bool:
        """Whether any model has scored it."""
        return self.judged is not None

    @property
    def now(self) -> Judged:
        """What the model says of it, once it is scored."""
        assert self.judged is not None
        return self.judged

    def take(self, judged: Judged, levels: tuple[float, float]) -> None:
        """Takes what another model says.

        Args:
            judged: by that model.
            levels: black and white as it sees them.
        """
        self.judged, self.images, self.levels, self._thumb = judged, judged.images, levels, b""

    @property
    def shape(self) -> tuple[int, int]:
        """Native height and width."""
        height, width = self.slices[0].values.shape[:2]
        return height, width

    @property
    def channels(self) -> int:
        """3 where any slice is in colour, else 1."""
        return 3 if any(one.values.ndim == 3 for one in self.slices) else 1

    @property
    def dtype(self) -> str:
        """The type in which slices are sent."""
        return type_of(self.slices)

    def at(self, number: int) -> int | None:
        """Returns which of its slices has a number in the file; None where none that was read has it."""
        return self.numbers.index(number) if number in self.numbers else None

    def seen(self, rate: float) -> Seen:
        """Returns what is seen at a rate of false alarms.

        Args:
            rate: in (0, 1).

        Raises:
            DataError: another rate.
        """
        now, inferencer = self.now, self.now.served.inferencer
        several = len(self.slices) > 1  # whose p-value counts them
        flagged = now.p_value <= rate + 1e-9 if several else now.score > inferencer.threshold(rate)
        model = str(inferencer.about()["model"])
        return Seen(
            flagged, rate, now.score, now.p_value, now.worst, now.hashes, self.shape, model, self.numbers
        )

    def named(self, mark: Mark) -> Mark:
        """Returns a mark of this case with the numbers of its slices, which marks of before do not hold."""
        return replace(mark, numbers=self.numbers)

    def range(self) -> tuple[float, float]:
        """Returns the least and the greatest value of its slices."""
        self._range = self._range or range_of(self.slices)
        return self._range

    def thumb(self) -> bytes:
        """Returns a small JPEG of the slice with the greatest score."""
        if not self._thumb:
            one = self.slices[self.judged.worst if self.judged else 0]
            small, buffer = Image.fromarray(shown(one, self.levels)), io.BytesIO()
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small.save(buffer, "JPEG", quality=80)
            self._thumb = buffer.getvalue()
        return self._thumb


def lineage_of(inferencer: Inferencer) -> str:
    """Returns the hash of a model as first fitted, which an update keeps."""
    return str(inferencer.about()["lineage"])


def reading_of(inferencer: Inferencer) -> ReadOptions:
    """Returns how the images of a model are read: as its normals were, at its size."""
    return ReadOptions(skip_bad=True).as_fitted(inferencer.detector.facts_, inferencer.shape)


def hash_of(images: np.ndarray) -> str:
    """Returns the sha256 of shape and pixels of a case `(S, H, W, C)`; of one image that of the image."""
    one = images[0] if len(images) == 1 else images
    return pixels_sha256(one)


def _narrow(heat: np.ndarray) -> np.ndarray:
    """Halves a heatmap where float16 can hold them to a thousandth."""
    most = float(np.abs(heat).max(initial=0))
    return heat.astype(np.float16) if 1e-2 < most < 6e4 else heat.astype(np.float32)


def judgements(served: Served, images: Sequence[np.ndarray], parts: Sequence[Verdict]) -> list[Judged]:
    """Returns what a model says of each case.

    Args:
        served: the model.
        images: stacks `(S, H, W, C)` uint8, one for each case.
        parts: what it said of all of them, in their order, batch by batch.
    """
    scores = np.concatenate([part.scores for part in parts])
    p_values = np.concatenate([part.p_values for part in parts])
    made, at = [], 0
    for own in images:
        part = slice(at, at := at + len(own))
        hashes = tuple(hash_of(image[None]) for image in own)
        middle = acquisition(own[len(own) // 2][None])
        maps: list[np.ndarray | None] | None = [None] * len(own) if served.inferencer.has_heatmaps else None
        made.append(Judged(served, own, hashes, hash_of(own), scores[part], p_values[part], maps, middle))
    return made
