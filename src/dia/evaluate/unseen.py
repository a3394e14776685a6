"""Images that a model has not seen: those it was fitted on are found by their pixels, named and left out.

Knows detectors and image sets; reads no files. A model knows again the very pixels alone, so that a copy
saved as JPEG, cropped or turned counts as new; `quality.py` looks for such copies among images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.imageset import ANOMALOUS, ImageSet

if TYPE_CHECKING:
    from ..detectors import Detector

_NAMED = 5  # images in the remark


@dataclass(frozen=True, eq=False)
class Unseen:
    """Images to judge a model on.

    Args:
        images: what is judged.
        seen: the names of images that the model was fitted on, and other images of their patients or volumes.
        anomalous: how many of those are labelled anomalous.
        known: whether the model knows which images it was fitted on.
        kept: whether those are judged all the same.
    """

    images: ImageSet
    seen: Sequence[str] = ()
    anomalous: int = 0
    known: bool = True
    kept: bool = False

    @property
    def given(self) -> int:
        """Returns how many images there were."""
        return len(self.images) + (0 if self.kept else len(self.seen))

    def counts(self) -> dict[str, Any]:
        """Returns how many images and patients are judged, by class where there are labels, and left out."""
        labels, n = self.images.labels, len(self.images)
        found: dict[str, Any] = {"images": n}
        if labels is not None:
            found |= {"normal": n - int(labels.sum()), "anomalous": int(labels.sum())}
        if self.images.n_patients:
            found["patients"] = self.images.n_patients
        if self.seen:
            found["kept_though_seen" if self.kept else "left_out_as_seen"] = len(self.seen)
        return found

    def remark(self) -> str:
        """Returns one line for people; empty where nothing is to be said."""
        if not self.known:
            return (
                "this model does not know which images it was fitted on (an earlier version fitted it), so "
                "none of them is left out here; fit it again"
            )
        if not (n := len(self.seen)):
            return ""
        more = f" and {n - _NAMED} more" if n > _NAMED else ""
        labels = f", {self.anomalous} of them labelled anomalous" if self.anomalous else ""
        named = f"{', '.join(self.seen[:_NAMED])}{more}"
        others = ", or others of their patients" if any(self.images.patients) else ""
        which = f"{n} image{'s' * (n != 1)} that the model was fitted on{others}{labels} ({named})"
        if self.kept:
            return f"kept: {which}; they look more normal than new ones, so the numbers flatter"
        return f"left out: {which}; --keep-seen keeps them"


def unseen(detector: Detector, images: ImageSet, *, keep: bool = False) -> Unseen:
    """Leaves out the images that a model was fitted on, and the others of their patients and volumes.

    Args:
        detector: fitted or loaded.
        images: in its shape.
        keep: leave them in, but say which they are.

    Returns:
        The images to judge it on, and the names of those it has seen.
    """
    seen = detector.was_fitted_on(images)
    if seen is None:
        return Unseen(images, known=False)
    for of in (images.patients, images.volumes):
        both = {u for u, s in zip(of, seen, strict=True) if s and u is not None} if of else set()
        seen = seen | np.array([u in both for u in of], bool) if both else seen
    if not seen.any():
        return Unseen(images)
    labels = np.zeros(len(images), np.int8) if images.labels is None else images.labels
    return Unseen(
        images if keep else images.subset(np.flatnonzero(~seen)),
        tuple(name for name, s in zip(images.names, seen, strict=True) if s),
        int((labels[seen] == ANOMALOUS).sum()),
        kept=keep,
    )
