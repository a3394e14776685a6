"""Whether marks make a model better, and the model that they make: judged and calibrated without cheating.

An update is kept only where cross-validation on the marks says that it ranks them better than the model does:
each mark is then scored by a probe and banks that do not know it. The model's own normals enter neither side
of that comparison: nearly all lie below whatever was flagged, and would flatter both.

The new threshold and p-values come from the normals that the model was fitted on, never from marked images.
Each normal is scored as a new one would be: its distances are to others, and its probe is fitted on normals of
other parts, patients or volumes kept together. Knows what is seen of images; knows no images, files or readers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from ..nearest import nearest_squared
from ..places import folds_of, owners_of
from .probe import Axes, direction, weight_of
from .taught import MOST_MARKS, Taught

PROBED = ("cells", "coarse", "pooled")  # the views of the probe
FEWEST = 3  # marked normal, and marked anomalous, below which ranking cannot be judged
_FOLDS, _REPEATS = 5, 5
_LEAST_SPREAD = 1e-3
_STAYS = "the model stays as it is"
Scorer = Callable[["Seen"], np.ndarray]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model sees of N images.

    Args:
        vectors: `(N, D)` float32, by view.
        distances: `(N,)` to the nearest normals, by view; of the model's own normals, to the nearest others.
        numbers: `(N,)` by view that is one number.
        place: `(N,)`, the most unusual place.
    """

    vectors: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    numbers: Mapping[str, np.ndarray]
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    def take(self, index: np.ndarray | Sequence[int]) -> Seen:
        """Returns some of the images.

        Args:
            index: `(K,)` whole numbers, or `(N,)` bool.
        """
        tables = (self.vectors, self.distances, self.numbers)
        return Seen(*({k: v[index] for k, v in table.items()} for table in tables), self.place[index])

    def beside(self, others: Seen) -> Seen:
        """Returns the same images with further normals among those compared with.

        Args:
            others: the normals, of which no image is one itself; there may be none.
        """
        if not len(others):
            return self
        made = {}
        for name, known in self.distances.items():
            bank = torch.from_numpy(others.vectors[name])
            away = nearest_squared(torch.from_numpy(self.vectors[name]), bank, 1).sqrt()[:, 0]
            made[name] = np.minimum(known, away.numpy())
        return Seen(self.vectors, made, self.numbers, self.place)

    def probed(self) -> np.ndarray:
        """Returns the vectors of the probe side by side, `(N, D)` float32."""
        return np.concatenate([self.vectors[n] for n in PROBED if n in self.vectors], 1)


@dataclass(frozen=True, eq=False)
class Lesson:
    """The result of teaching.

    Args:
        taught: the part of the model; None where there is none to make.
        kept: whether the model is to have it.
        words: why, in one line.
        before: cross-validated AUROC on the marks without the update; None where it cannot be judged.
        after: the same with it.
        held: `(M,)` scores of the marks, each by an update that does not know it; None as above.
        calibration: `(n,)` scores of normals by the taught model.
    """

    taught: Taught | None
    kept: bool
    words: str
    before: float | None = None
    after: float | None = None
    held: np.ndarray | None = None
    calibration: np.ndarray | None = None


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """Returns the median of normals, and the root mean square distance from it of those above.

    Args:
        values: `(N,)`.
    """
    median = float(np.median(values))
    above = values[values > median] - median
    return median, max(float(np.sqrt((above**2).mean())) if len(above) else 0.0, _LEAST_SPREAD)


class Ground:
    """What every lesson of a model starts from: its normals, and their components by part.

    Args:
        normals: that the model was fitted on, judged each by the others.
        units: `(N,)` of the normals, equal for those of a patient or volume.
        calibrated: `(n,)` indices of the normals that set p-values: of each patient one.
        scorer: gives the score `(K,)` of what is seen of K images.
        known: `(n,)` scores that the model is calibrated on, ascending; they are brought back by an undo.
        further: whether flagged normals enter the banks.
        seed: of parts and components.
    """

    def __init__(
        self,
        normals: Seen,
        units: np.ndarray,
        calibrated: np.ndarray,
        scorer: Scorer,
        known: np.ndarray,
        *,
        further: bool,
        seed: int,
    ):
        self.normals, self.calibrated, self.scorer, self.known = normals, calibrated, scorer, known
        self.further, self.seed = further, seed
        self.bank, self.scale = normals.probed(), scale_of(scorer(normals))
        self.axes = Axes.of(self.bank, seed)
        self.own = self.axes(self.bank)
        everything = np.arange(len(normals))
        self.parts = [
            (part, others, Axes.of(self.bank[others], seed))
            for part in folds_of(owners_of(units), seed)
            for others in (np.setdiff1d(everything, part),)
        ]

    def probed(self, theirs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns the values `(N,)` of the normals, each by a probe fitted on normals of other parts.

        Args:
            theirs: `(M, D)` vectors of the marks.
            labels: `(M,)`, 1 = anomalous.
        """
        made = np.empty(len(self.normals))
        for part, others, axes in self.parts:
            found = direction(axes(self.bank[others]), axes(theirs), labels)
            made[part] = axes(self.bank[part]) @ found
        return made


def teach(ground: Ground, marks: Seen, labels: np.ndarray, flagged: np.ndarray, digests: np.ndarray) -> Lesson:
    """Makes an update, and says whether the marks prove it one.

    Args:
        ground: of the model.
        marks: the M marked images.
        labels: `(M,)`, 1 = anomalous, 0 = normal.
        flagged: `(M,)` bool, whether the model flagged them: flagged normals enter the banks.
        digests: `(M,)` uint64 of the images.
    """
    labels, anomalous = labels.astype(int), int(labels.sum())
    counts = anomalous, len(labels) - anomalous
    if len(labels) > MOST_MARKS:
        return Lesson(None, False, f"{len(labels)} marks; at most {MOST_MARKS} are learned from: {_STAYS}")
    if not (weight := weight_of(len(labels))):
        return Lesson(None, False, f"{len(labels)} marks are too few; from 6 on an update is tried: {_STAYS}")
    enters = flagged & (labels == 0) & ground.further
    if not anomalous:
        return Lesson(None, False, f"none of {len(labels)} marks is anomalous: {_STAYS}")
    before = after = held = None
    if min(counts) >= FEWEST:
        before = float(roc_auc_score(labels, ground.scorer(marks)))
        held, after = _cross_validated(ground, marks, labels, enters, weight)
    kept = before is not None and after is not None and after > before
    added, theirs = marks.take(enters), marks.probed()
    scores, probed = ground.scorer(ground.normals.beside(added)), ground.probed(theirs, labels)
    (median, spread), (middle, width) = scale_of(scores), scale_of(probed)
    slope, offset = ground.axes.slope(direction(ground.own, ground.axes(theirs), labels))
    sizes = {n: ground.normals.vectors[n].shape[1] for n in PROBED if n in ground.normals.vectors}
    slopes = dict(zip(sizes, np.split(slope, np.cumsum(list(sizes.values()))[:-1]), strict=True))
    scale = np.array([median, spread, middle, width, weight])
    taught = Taught(slopes, offset, scale, added.vectors, ground.known, digests)
    made = (scores - median) / spread + weight * (probed - middle) / width
    words = _words(counts, before, after, kept)
    return Lesson(taught, kept, words, before, after, held, np.sort(made[ground.calibrated]))


def _words(counts: tuple[int, int], before: float | None, after: float | None, kept: bool) -> str:
    if before is None or after is None:
        what = f"{counts[0]} marked anomalous, {counts[1]} normal; {FEWEST} of each are needed to judge an update"
        return f"{what}: {_STAYS}"
    went = f"cross-validated AUROC on the marks {before:.3f} → {after:.3f}"
    return f"the update is kept: {went}" if kept else f"{went}: {_STAYS}"


def _cross_validated(
    ground: Ground, marks: Seen, labels: np.ndarray, enters: np.ndarray, weight: float
) -> tuple[np.ndarray, float]:
    """Scores each mark by updates that do not know it.

    Returns:
        Mean scores `(M,)` over the repeats, and the mean AUROC of the repeats.
    """
    (median, spread), theirs, made = ground.scale, ground.axes(marks.probed()), []
    folds = min(_FOLDS, int(np.bincount(labels).min()))
    for repeat in range(_REPEATS):
        scores = np.empty(len(labels))
        drawn = StratifiedKFold(folds, shuffle=True, random_state=ground.seed + repeat)
        for known, new in drawn.split(labels, labels):
            found = direction(ground.own, theirs[known], labels[known])
            middle, width = scale_of(ground.own @ found)
            plain = ground.scorer(marks.take(new).beside(marks.take(known[enters[known]])))
            scores[new] = (plain - median) / spread + weight * (theirs[new] @ found - middle) / width
        made.append(scores)
    return np.mean(made, 0), float(np.mean([roc_auc_score(labels, scores) for scores in made]))
