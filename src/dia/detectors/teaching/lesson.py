"""Whether marks make a model better, and the model that they make: judged and calibrated without cheating.

An update is kept only where cross-validation says that marked anomalies rank higher for it, against marked
normals and, weighing as much as all marks, the normals that the model was fitted on. Marks and normals are
then scored by probes and banks that do not know them. Images are marked because their score is high, which
flatters the model without the update: where the update wins, it wins in spite of that.

The new threshold and p-values come from the normals that the model was fitted on, never from marked images.
Each normal is scored as a new one would be: its distances are to others, and its probe is fitted on normals
of other parts, patients or volumes kept together. Knows what is seen of images; knows no images, files or
readers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from ..places import folds_of, owners_of
from .probe import Axes, direction, weight_of
from .seen import PROBED, Seen
from .taught import MOST_MARKS, Learned, Taught

FEWEST = 3  # marked anomalous, below which ranking cannot be judged
_FOLDS, _REPEATS = 5, 5
_LEAST_SPREAD = 1e-3
_STAYS = "the model stays as it is"
Scorer = Callable[[Seen], np.ndarray]


@dataclass(frozen=True, eq=False)
class Lesson:
    """The result of teaching.

    Args:
        taught: the part of the model; None where there is none to make.
        kept: whether the model is to have it.
        words: why, in one line.
        before: cross-validated AUROC of the marks without the update; None where it cannot be judged.
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
        self.parts = [self._part(part) for part in folds_of(owners_of(units), seed)]

    def _part(self, part: np.ndarray) -> tuple[np.ndarray, Axes, np.ndarray, np.ndarray]:
        """Returns a part of the normals, the components of the others, and both along them."""
        others = np.setdiff1d(np.arange(len(self.bank)), part)
        axes = Axes.of(self.bank[others], self.seed)
        return part, axes, axes(self.bank[others]), axes(self.bank[part])

    def probe(self, theirs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Fits the probe: the mean of those of the parts, each fitted on the normals of the other parts.

        So it varies no more than any of them, and a new normal scores no further out than a normal of the fit
        does by the one probe that has not seen it.

        Args:
            theirs: `(M, D)` vectors of the marks.
            labels: `(M,)`, 1 = anomalous.

        Returns:
            The values `(N,)` of the normals, each by the probe of its part; slope `(D,)` and offset.
        """
        made, slopes, offsets = np.empty(len(self.normals)), [], []
        for part, axes, others, own in self.parts:
            found = direction(others, axes(theirs), labels)
            made[part] = own @ found
            slope, offset = axes.slope(found)
            slopes.append(slope)
            offsets.append(offset)
        return made, np.mean(slopes, 0), float(np.mean(offsets))


def teach(ground: Ground, learned: Learned) -> Lesson:
    """Makes an update, and says whether the marks prove it one.

    Args:
        ground: of the model.
        learned: the marked images; flagged normals among them enter the banks.
    """
    marks, labels = learned.seen, learned.labels
    anomalous = int(labels.sum())
    if len(labels) > MOST_MARKS:
        return Lesson(None, False, f"{len(labels)} marks; at most {MOST_MARKS} are learned from: {_STAYS}")
    if not (weight := weight_of(len(labels))):
        return Lesson(None, False, f"{len(labels)} marks are too few; from 6 on an update is tried: {_STAYS}")
    enters = learned.flagged & (labels == 0) & ground.further
    if not anomalous:
        return Lesson(None, False, f"none of {len(labels)} marks is anomalous: {_STAYS}")
    before = after = held = None
    if anomalous >= FEWEST:
        held, before, after = _cross_validated(ground, marks, labels, enters, weight)
    kept = before is not None and after is not None and after > before
    theirs = marks.probed()
    scores = ground.scorer(ground.normals.beside(ground.normals.away(marks.take(enters))))
    probed, slope, offset = ground.probe(theirs, labels)
    (median, spread), (middle, width) = scale_of(scores), scale_of(probed)
    sizes = {n: ground.normals.vectors[n].shape[1] for n in PROBED if n in ground.normals.vectors}
    slopes = dict(zip(sizes, np.split(slope, np.cumsum(list(sizes.values()))[:-1]), strict=True))
    scale = np.array([median, spread, middle, width, weight])
    taught = Taught(slopes, offset, scale, ground.known, learned, enters)
    made = (scores - median) / spread + weight * (probed - middle) / width
    words = _words(anomalous, before, after, kept)
    return Lesson(taught, kept, words, before, after, held, np.sort(made[ground.calibrated]))


def _words(anomalous: int, before: float | None, after: float | None, kept: bool) -> str:
    if before is None or after is None:
        what = f"{anomalous} marked anomalous; {FEWEST} are needed to judge an update"
        return f"{what}: {_STAYS}"
    went = f"cross-validated AUROC of the marks {before:.3f} → {after:.3f}"
    return f"the update is kept: {went}" if kept else f"{went}: {_STAYS}"


def _cross_validated(
    ground: Ground, marks: Seen, labels: np.ndarray, enters: np.ndarray, weight: float
) -> tuple[np.ndarray, float, float]:
    """Scores each mark, and each normal, by updates that do not know it.

    Returns:
        Mean scores `(M,)` over the repeats, AUROC without the update, and its mean over the repeats with it.
    """
    n, many, made, ranks = len(ground.normals), len(labels), [], []
    truth, shares = (
        np.concatenate([np.zeros(n), labels]),
        np.concatenate([np.full(n, many / n), np.ones(many)]),
    )
    (median, spread), folds = ground.scale, min(_FOLDS, int(labels.sum()), len(ground.parts))
    banks, own, theirs = marks.take(enters), ground.own, ground.axes(marks.probed())
    sides = tuple((seen, along, seen.away(banks)) for seen, along in ((ground.normals, own), (marks, theirs)))
    for repeat in range(_REPEATS):
        values = np.empty(n), np.empty(many)
        order = StratifiedKFold(folds, shuffle=True, random_state=ground.seed + repeat)
        for fold, (known, new) in enumerate(_splits(order, labels)):
            part = np.concatenate([members for members, *_ in ground.parts[fold::folds]])
            others = np.setdiff1d(np.arange(n), part)
            found = direction(own[others], theirs[known], labels[known])
            middle, width = scale_of(own[others] @ found)
            inside = np.isin(np.flatnonzero(enters), known)
            for i, where, (seen, along, away) in zip((0, 1), (part, new), sides, strict=True):
                near = {name: d[np.ix_(where, inside)] for name, d in away.items()}
                plain = (ground.scorer(seen.take(where).beside(near)) - median) / spread
                values[i][where] = plain + weight * (along[where] @ found - middle) / width
        made.append(values[1])
        ranks.append(roc_auc_score(truth, np.concatenate(values), sample_weight=shares))
    plain = np.concatenate([ground.scorer(ground.normals), ground.scorer(marks)])
    before = float(roc_auc_score(truth, plain, sample_weight=shares))
    return np.mean(made, 0), before, float(np.mean(ranks))


def _splits(order: StratifiedKFold, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():  # of fewer normals than folds, which are then in some of them
        warnings.simplefilter("ignore", UserWarning)
        yield from order.split(labels, labels)
