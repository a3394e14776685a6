"""Conformal calibration: from scores of held-out normals to p-values and thresholds.

Knows only numbers. Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005;
Bates et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 2023.

Guarantee: if a new normal image and the held-out normals are exchangeable (same scanner, population and
preparation; none of them used in training), P(p ≤ α) ≤ α, on average over held-out sets. It says nothing
of how many anomalies are found, and fails where new normals differ from the held-out ones. Where each normal
is judged by the others instead, as in the jackknife+ (Barber et al., Annals of Statistics 2021), there is no
such proof; docs/howto/few-normals.md has what was measured. "Held-out normals" below are either.

Where patients are known, patients are what is exchangeable, and their images are not independent. Then whole
patients are held out, and one image of each, drawn by the seed, sets the p-values (the subsampling of Dunn,
Wasserman and Ramdas, "Distribution-free prediction sets for two-layer hierarchical models", JASA 2023;
weighing all images of a patient equally, as Lee, Barber and Willett do, would take another file format for
the same promise). The promise is then that of an image of a new patient, P(p ≤ α) ≤ α, if images of a patient
are exchangeable among themselves; n is the number of patients. It is no promise that at most a share α of
patients has a flag: a patient of many images has many chances.

Slices of volumes are all kept, for the p-values of volumes (Bonferroni's) need fine ones. With K held-out
volumes of equal size, P(p ≤ α) of a slice of a new one is at most α + (1 − α) / (K + 1), to the order of one
slice: the weighted p-value, which keeps the promise, is (1 + K p) / (K + 1). Of unequal sizes, K is about
what `effective` gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import DataError
from ..data.imageset import group_by_unit

HOLDOUT = 0.2  # share of the normals that is kept from training, to calibrate on
LOOKED = 64  # normals whose maps are looked at, for what heatmaps are standardised and drawn by
FALSE_ALARM_RATE = 0.05  # share of normals that a threshold flags at most, on average


class Prediction(NamedTuple):
    """The result of one pass over N images of one size.

    Attributes:
        score: `(N,)` float64, raw, higher = more anomalous.
        heatmap: `(N, H, W)` float32, higher where more anomalous; None if it was not asked for, or if the
            method has no heatmaps.
        dissolved: `(N, T, H, W, C)` uint8, the images dissolved at T steps; None as for `heatmap`.
    """

    score: np.ndarray
    heatmap: np.ndarray | None = None
    dissolved: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """The scores of held-out normals.

    Args:
        scores: `(n,)` float64, ascending.
    """

    scores: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Calibration:
        """Makes a calibration from finite scores in any order."""
        return cls(np.sort(finite(np.asarray(scores, np.float64))))

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Returns (1 + number of held-out normals that score at least as high) / (n + 1), `(N,)` in (0, 1].

        Example:
            >>> Calibration.of([0.1, 0.2, 0.3, 0.4]).p_values([0.35, 0.5])  # 1 and 0 of 4 normals are above
            array([0.4, 0.2])
        """
        n = len(self.scores)
        return (1 + n - np.searchsorted(self.scores, finite(scores), side="left")) / (n + 1)

    def too_few_for(self, false_alarm_rate: float) -> str:
        """Returns why there is no threshold at a rate, and the remedies; empty where there is one."""
        n, needed = len(self.scores), fewest_for(false_alarm_rate)
        if n >= needed:
            return ""
        return (
            f"no threshold: a false-alarm rate of {false_alarm_rate:.3g} needs {needed} calibration normals, "
            f"and there are {n} (one of each patient, if patients are known): nothing is flagged. Fit on "
            "more normals, hold out more (--holdout, but for "
            f"dia+), give others to `dia calibrate`, or take --false-alarm-rate of {1 / (n + 1):.2g} or more"
        )

    def threshold(self, false_alarm_rate: float) -> float:
        """Returns the score above which, strictly, p ≤ `false_alarm_rate`; ∞ where n is too small for that.

        Raises:
            ValueError: the rate lies outside (0, 1).
        """
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"the false-alarm rate must lie between 0 and 1, not {false_alarm_rate}")
        n = len(self.scores)
        allowed = min(int(np.floor(false_alarm_rate * (n + 1) + 1e-9)), n)
        return float(self.scores[-allowed]) if allowed else float("inf")


@dataclass(frozen=True, eq=False)
class HeatScale:
    """The heatmaps of normals that the model has not seen, as far as colours and contours need them.

    Args:
        usual: the median of all their pixels.
        peaks: `(n,)` float64, the greatest pixel of each.
    """

    usual: float
    peaks: np.ndarray

    @classmethod
    def of(cls, heatmaps: np.ndarray) -> HeatScale:
        """Measures heatmaps `(n, H, W)` of normals."""
        return cls(float(np.median(heatmaps)), heatmaps.max((1, 2)).astype(np.float64))

    @classmethod
    def of_parts(cls, parts: Iterable[np.ndarray]) -> HeatScale:
        """Measures heatmaps of any number of normals, part by part.

        Args:
            parts: each `(n, H, W)`; the usual value is the median of their medians, weighted by n.
        """
        usual, peaks = list[float](), list[np.ndarray]()
        for maps in parts:
            usual += [float(np.median(maps))] * len(maps)
            peaks.append(maps.max((1, 2)).astype(np.float64))
        return cls(float(np.median(usual)), np.concatenate(peaks))

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> HeatScale:
        """Restores what `to_json` gave.

        Raises:
            ValueError: it is not that.
        """
        made = cls(float(kept["usual"]), np.array(kept["peaks"], np.float64))
        if not len(made.peaks) or made.peaks.ndim != 1 or not np.isfinite([made.usual, *made.peaks]).all():
            raise ValueError("the scale of heatmaps must be finite numbers")
        return made

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return {"usual": self.usual, "peaks": self.peaks.tolist()}

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the ends of the colours: nearly all normals have the lower half of them."""
        return self.usual, 2 * float(np.quantile(self.peaks, 0.95)) - self.usual

    def level(self, false_alarm_rate: float) -> float:
        """Returns the value that at most this share of normals exceed anywhere; ∞ if they are too few."""
        return Calibration.of(self.peaks).threshold(false_alarm_rate)


def finite(scores: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Returns scores, of which each is a number: NaN would get the smallest p-value and no flag.

    Args:
        scores: `(N,)`.
        names: of the N images, for the message; empty where they have none.

    Raises:
        DataError: a score is NaN or infinite.
    """
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        of = f" of {names[wrong[0]]}" if len(names) else ""
        more = f" and of {len(wrong) - 1} more" if len(wrong) > 1 else ""
        said = f"the score{of}{more} is {np.asarray(scores)[wrong[0]]}, which is no number to judge by"
        raise DataError(f"{said}: the model is damaged, or none of `dia fit`; fit it again")
    return scores


def fewest_for(false_alarm_rate: float) -> int:
    """Returns the fewest calibration normals that give a threshold at a rate: p-values reach 1 / (n + 1)."""
    return max(int(min(np.ceil(1 / false_alarm_rate - 1 - 1e-9), 2**53)), 1)  # of 5e-324 it is infinite


def held_out(
    n: int, holdout: float, seed: int, units: Sequence[str | None] = (), *, whole: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits n normals into three parts by a seeded draw.

    The images of a patient resemble each other, as the slices of a volume do, so a new patient is
    exchangeable with held-out patients only: they are held out as wholes, which takes a little more than
    `holdout`. Where that would leave less than half to train on, slices are drawn each for itself, with a
    warning; images of known patients are not.

    Args:
        n: the number of normals.
        holdout: the share of the first two parts together.
        seed: decides the draw.
        units: for each normal the patient or volume that it is a part of, None for none; empty where none is.
        whole: whether units are held out as wholes in any case, as patients are.

    Returns:
        The indices for calibration, for statistics and for training.

    Raises:
        DataError: by wholes, less than a quarter of the normals would be left to train on.
    """
    held = max(round(holdout * n), 4)
    if any(units):
        wholes = group_by_unit(n, units)
        wholes = [wholes[i] for i in np.random.default_rng([seed, 1]).permutation(len(wholes))]
        ends = np.cumsum([len(whole) for whole in wholes])
        first = int(np.searchsorted(ends, held // 2))
        second = max(int(np.searchsorted(ends, held)), first + 1)
        if whole and (second >= len(ends) or n - ends[second] < n / 4):
            raise DataError(
                f"too few patients ({len(wholes)}) to hold out whole ones, or one has most of the {n} "
                "images: give more patients, or take dia+, which judges each patient by the others"
            )
        if whole or (second < len(ends) and ends[second] <= n // 2):
            calibration, reference, train = np.split(np.concatenate(wholes), ends[[first, second]])
            return calibration, reference, train
        warnings.warn(
            f"{len(wholes)} volumes are too few to hold out whole ones: slices of one volume are on both "
            "sides, so a new volume will have smaller p-values than it should",
            stacklevel=3,
        )
    order = np.random.default_rng([seed, 1]).permutation(n)
    calibration, reference, train = np.split(order, [held // 2, held])
    return calibration, reference, train


def effective(units: Sequence[str | None], n: int) -> float:
    """Returns how many units of equal size tell as much as those of n images: Kish's effective number.

    It is n² / Σ m² for units of m images each: n where each image is a unit of its own, and the number of
    units where all are of one size (Kish, "Survey Sampling", 1965).

    Args:
        units: for each image the patient or volume that it is a part of, None for none; empty where none is.
        n: how many images, at least 1.

    Example:
        >>> effective(["a", "a", "b", "b"], 4), effective([], 4), effective(["a", "a", "a", None], 4)
        (2.0, 4.0, 1.6)
    """
    return n * n / sum(len(members) ** 2 for members in group_by_unit(n, units))


def one_of_each(units: Sequence[str | None], n: int, seed: int) -> np.ndarray:
    """Draws one image of each patient.

    Args:
        units: for each of n images its patient, None where it is a unit of its own; empty where all are.
        n: how many images.
        seed: decides the draw.

    Returns:
        `(K,)` ascending indices, int, for K patients.
    """
    rng = np.random.default_rng([seed, 7])
    return np.array(sorted(rng.choice(members) for members in group_by_unit(n, units)), int)
