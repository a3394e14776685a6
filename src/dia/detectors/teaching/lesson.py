"""Whether marks make a model better, and the model that they make: judged and calibrated without cheating.

An update is kept only where cross-validation says that marked anomalies rank higher for it, against marked
normals and, weighing as much as all marks, the normals that the model was fitted on, and not likely by
chance: the one-sided p-value of the gain in AUROC is at most `LEVEL`. Marks and normals are then
scored by probes and banks that do not know them, nor other images of the same patient or volume. Images are
marked because their score is high, which flatters the model without the update: where the update wins, it
wins in spite of that.

The test is the paired one of `detectors.paired`, which counts patients and volumes, and knows marks and
normals by their weights. It takes scores as independent, while those of several folds are of updates that
share most marks. Its variance is therefore multiplied by 1 + K / (K − 1) for K folds, as Nadeau and Bengio,
"Inference for the Generalization Error", Machine Learning 52, 2003, correct that of resampled tests: a gain
from labels that say nothing varies twice as much as if the scores were independent.

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
from sklearn.model_selection import StratifiedGroupKFold

from ..paired import Paired, difference
from ..places import folds_of, owners_of
from .probe import Axes, direction, weight_of
from .seen import PROBED, Seen
from .taught import MOST_MARKS, Learned, Taught

FEWEST = 3  # patients or volumes (else images) marked anomalous, below which ranking cannot be judged
# An update is kept where the one-sided p-value of its gain is at most this: marks are few, and most updates
# by them gain. With .05 hardly any of ten or twenty marks was kept (docs/howto/teach.md).
LEVEL = 0.25
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
        p: one-sided p-value of the gain, in [0, 1]; None as above.
        held: `(M,)` scores of the marks, each by an update that does not know it; None as above.
        calibration: `(n,)` scores of normals by the taught model.
    """

    taught: Taught | None
    kept: bool
    words: str
    before: float | None = None
    after: float | None = None
    p: float | None = None
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
        self.further, self.seed, self.units = further, seed, owners_of(units)
        self.bank, self.scale = normals.probed(), scale_of(scorer(normals))
        self.axes = Axes.of(self.bank, seed)
        self.own = self.axes(self.bank)
        self.parts = [self._part(part) for part in folds_of(self.units, seed)]

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
    """Makes an update, and says whether the marks prove it one, at `LEVEL`.

    Args:
        ground: of the model.
        learned: the marked images; flagged normals among them enter the banks. Those of one patient or volume
            are judged together, by an update that knows none of them.
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
    before = after = p = held = None
    units = len(np.unique(learned.units[labels == 1]))
    if units >= FEWEST:
        folds = min(_FOLDS, units, len(ground.parts))
        held, before, gain = _cross_validated(ground, learned, enters, weight, folds)
        after, p = before + gain.value, gain.p_above(1 + folds / (folds - 1))
    kept = p is not None and p <= LEVEL
    theirs = marks.probed()
    scores = ground.scorer(ground.normals.beside(ground.normals.away(marks.take(enters))))
    probed, slope, offset = ground.probe(theirs, labels)
    (median, spread), (middle, width) = scale_of(scores), scale_of(probed)
    sizes = {n: ground.normals.vectors[n].shape[1] for n in PROBED if n in ground.normals.vectors}
    slopes = dict(zip(sizes, np.split(slope, np.cumsum(list(sizes.values()))[:-1]), strict=True))
    scale = np.array([median, spread, middle, width, weight])
    taught = Taught(slopes, offset, scale, ground.known, learned, enters)
    made = (scores - median) / spread + weight * (probed - middle) / width
    words = _words(anomalous, units, before, after, p)
    return Lesson(taught, kept, words, before, after, p, held, np.sort(made[ground.calibrated]))


def _words(anomalous: int, units: int, before: float | None, after: float | None, p: float | None) -> str:
    if before is None or after is None or p is None:
        of = f", of {units} patients or volumes" if units < anomalous else ""
        return f"{anomalous} marked anomalous{of}; {FEWEST} are needed to judge an update: {_STAYS}"
    went = f"cross-validated AUROC of the marks {before:.3f} → {after:.3f}"
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p <= LEVEL:
        return f"the update is kept: {went} ({chance})"
    return f"{went} ({chance}; a gain needs p ≤ {LEVEL}): {_STAYS}"


def _cross_validated(
    ground: Ground, learned: Learned, enters: np.ndarray, weight: float, folds: int
) -> tuple[np.ndarray, float, Paired]:
    """Scores each mark, and each normal, by updates that know nothing of its patient or volume.

    Returns:
        Mean scores `(M,)` over the repeats, AUROC without the update, and what its mean over the repeats with
        it is more, its variance that of independent scores.
    """
    marks, labels, (median, spread) = learned.seen, learned.labels, ground.scale
    n, many, made = len(ground.normals), len(labels), []
    banks, own, theirs = marks.take(enters), ground.own, ground.axes(marks.probed())
    sides = tuple((seen, along, seen.away(banks)) for seen, along in ((ground.normals, own), (marks, theirs)))
    for repeat in range(_REPEATS):
        values = np.empty(n), np.empty(many)
        order = StratifiedGroupKFold(folds, shuffle=True, random_state=ground.seed + repeat)
        for fold, (known, new) in enumerate(_splits(order, learned)):
            part = np.concatenate([members for members, *_ in ground.parts[fold::folds]])
            others = np.setdiff1d(np.arange(n), part)
            found = direction(own[others], theirs[known], labels[known])
            middle, width = scale_of(own[others] @ found)
            inside = np.isin(np.flatnonzero(enters), known)
            for i, where, (seen, along, away) in zip((0, 1), (part, new), sides, strict=True):
                near = {name: d[np.ix_(where, inside)] for name, d in away.items()}
                plain = (ground.scorer(seen.take(where).beside(near)) - median) / spread
                values[i][where] = plain + weight * (along[where] @ found - middle) / width
        made.append(np.concatenate(values))
    plain = np.concatenate([ground.scorer(ground.normals), ground.scorer(marks)])
    truth = np.concatenate([np.zeros(n, int), labels])
    shares = np.concatenate([np.full(n, many / n), np.ones(many)])
    units = np.concatenate([ground.units, ground.units.max() + 1 + learned.units])
    before = float(roc_auc_score(truth, plain, sample_weight=shares))
    after = np.stack(made)
    gain = difference(truth, after, np.broadcast_to(plain, after.shape), units, shares)
    return after[:, n:].mean(0), before, gain


def _splits(order: StratifiedGroupKFold, learned: Learned) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():  # of fewer normals than folds, which are then in some of them
        warnings.simplefilter("ignore", UserWarning)
        yield from order.split(learned.labels, learned.labels, learned.units)
