"""Watches for drift while images are scored: which are counted, what is counted, and what it says at the end.

Knows detectors' references, names and numbers; knows nothing of pixels or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.imageset import middle_slices
from ..detectors import drift

if TYPE_CHECKING:
    from ..detectors import Detector
    from .onnx_model import OnnxModel

SCORE = "score"


class DriftMonitor:
    """Counts of one run, batch by batch. The middle slice stands for its volume.

    Args:
        detector: the model, which keeps what its normals were like.
        names, volumes: of all images of the run, in order.
        rate: of false alarms.
        share: of the images that may be anomalous without an alarm.
        before: what `state` gave at the batch where an interrupted run goes on; None at the beginning.
        resumed: whether it goes on with one.
    """

    def __init__(
        self,
        detector: Detector | OnnxModel,
        names: Sequence[str],
        volumes: Sequence[str | None],
        *,
        rate: float,
        share: float,
        before: dict[str, Any] | None = None,
        resumed: bool = False,
    ):
        self.rate, self.share = rate, share
        kept = dict(getattr(detector, "drift_", {}))
        self.columns = tuple(kept)  # of what `acquisition` gives
        self.remark = (
            "" if kept else "judged by the scores alone, as this model keeps nothing else of its normals"
        )
        by_volume = any(volumes) or (
            bool(kept) and max(r.n for r in kept.values()) < getattr(detector, "n_train_", 0)
        )
        scores = detector.calibration_.scores
        if not by_volume and len(scores) > 1:  # those of slices are no scores of single images
            kept[SCORE] = drift.Reference.of(scores)
        self.references = kept
        self.chosen = {names[i] for i in middle_slices(volumes, len(names))} if any(volumes) else None
        self.unknown = resumed and before is None
        self.images = int(before["images"]) if before else 0
        self.counts = {
            name: np.array(before["counts"][name]) if before else np.zeros((2, len(drift.AT)), int)
            for name in kept
        }

    def add(self, names: Sequence[str], scores: np.ndarray, acquisition: np.ndarray | None) -> None:
        """Counts a batch: `(N,)` scores, `(N, D)` acquisition statistics if the model keeps any."""
        mine = np.array([self.chosen is None or name in self.chosen for name in names], bool)
        self.images += int(mine.sum())
        for name, reference in self.references.items():
            if name == SCORE:
                values = scores
            else:
                assert acquisition is not None
                values = acquisition[:, self.columns.index(name)]
            self.counts[name] += reference.counts(values[mine])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        return {"images": self.images, "counts": {k: v.tolist() for k, v in self.counts.items()}}

    def verdict(self) -> dict[str, Any]:
        """For machines: `alarm` (null where it cannot be judged), `words`, and how it came about."""
        asked = {"false_alarm_rate": self.rate, "anomalous_up_to": self.share}
        if self.unknown:
            why = "drift cannot be judged: the interrupted run had another --batch, or did not count"
            return {"alarm": None, "words": why, **asked}
        if not self.references:
            why = "drift cannot be judged: the model keeps nothing of its normals; fit it again"
            return {"alarm": None, "words": why, **asked}
        found = drift.judged(self.references, self.counts, self.images, rate=self.rate, share=self.share)
        said = drift.words(found) + (f" ({self.remark})" if self.remark else "")
        return {**vars(found), "words": said, **asked}
