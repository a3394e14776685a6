"""Watches for drift while images are scored: counts batch by batch, and gives a verdict at the end.

Knows detectors' references, names and numbers; knows nothing of pixels or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..data.imageset import middle_slices
from ..detectors import drift
from ..detectors.calibration import Calibration

_SCORE = "score"


class Calibrated(Protocol):
    """A model that knows the scores of its normals: a detector, or an exported one."""

    calibration_: Calibration


class DriftMonitor:
    """The counts of one run. Of a patient or a volume, only the middle image is counted.

    Args:
        detector: the model, which keeps statistics of its normals.
        names: the names of all images of the run, in order.
        volumes: the volume of each image; None for images that are no slices.
        units: the patient or volume of each image, of `ImageSet.units`; the volumes where empty.
        rate: the greatest share of runs with a false alarm, in (0, 1).
        share: the share of the images that may be anomalous without an alarm, in [0, 1).
        before: what `state` gave at the batch where an interrupted run goes on; None at the beginning.
        resumed: whether this run goes on with an interrupted one.
    """

    def __init__(
        self,
        detector: Calibrated,
        names: Sequence[str],
        volumes: Sequence[str | None],
        *,
        units: Sequence[str | None] = (),
        rate: float,
        share: float,
        before: dict[str, Any] | None = None,
        resumed: bool = False,
    ):
        self.rate, self.share = rate, share
        kept = dict(getattr(detector, "drift_", {}))
        self.columns = tuple(kept)  # of the statistics that `add` takes
        facts, scores = getattr(detector, "facts_", {}), detector.calibration_.scores
        # at another site both are of its normals, of whatever number
        n = len(scores) if "calibrated" in facts else getattr(detector, "n_train_", 0)
        most = max((r.n for r in kept.values()), default=0)
        one_each = "patients" in facts and len(scores) <= most  # of patients
        by_volume = any(volumes) or (bool(kept) and most < n and not one_each)
        if not by_volume and len(scores) > 1:  # scores of slices do not compare with those of single images
            kept[_SCORE] = drift.Reference.of(scores)
        self.references = kept
        units = units or volumes
        self.chosen = {names[i] for i in middle_slices(units, len(names))} if any(units) else None
        self.unknown = resumed and before is None
        self.images = int(before["images"]) if before else 0
        none = np.zeros((2, len(drift.AT)), int)
        self.counts = {name: np.array(before["counts"][name]) if before else none.copy() for name in kept}

    def add(self, names: Sequence[str], scores: np.ndarray, acquisition: np.ndarray | None) -> None:
        """Counts a batch.

        Args:
            names: the names of its N images.
            scores: `(N,)` scores.
            acquisition: `(N, D)` statistics of `detectors.drift.acquisition`; None if the model keeps none.
        """
        mine = np.array([self.chosen is None or name in self.chosen for name in names], bool)
        self.images += int(mine.sum())
        values = {_SCORE: scores}
        if acquisition is not None:
            values |= zip(self.columns, acquisition.T, strict=False)  # the model may keep none
        for name, reference in self.references.items():
            self.counts[name] += reference.counts(values[name][mine])

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON."""
        return {"images": self.images, "counts": {k: v.tolist() for k, v in self.counts.items()}}

    def verdict(self) -> dict[str, Any]:
        """Returns `alarm` (None if it cannot be judged), `words`, and the numbers behind them."""
        asked = {"false_alarm_rate": self.rate, "anomalous_up_to": self.share}
        if self.unknown or not self.references:
            interrupted = "the interrupted run had another --batch, or did not count"
            why = interrupted if self.unknown else "the model keeps nothing of its normals; fit it again"
            return {"alarm": None, "words": f"drift cannot be judged: {why}", **asked}
        found = drift.judged(self.references, self.counts, self.images, rate=self.rate, share=self.share)
        said = drift.words(found)
        if not self.columns:
            said += " (judged by the scores alone, as this model keeps nothing else of its normals)"
        return {**vars(found), "words": said, **asked}
