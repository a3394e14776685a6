"""The verdict on a result in plain words: do flags keep their promise, does the ranking say anything?

Knows numbers, names and drift; fits nothing, and knows no pages. Each finding is about the flags (p-values
and threshold), the ranking (AUROC) or the images, and says what was compared with what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from scipy.stats import betabinom, binomtest, mannwhitneyu

from .compare import holm, paired_difference
from .metrics import image_metrics

Mark = Literal["good", "care", "bad", "unknown"]
FEW = 10  # images of a class: fewer say little
_LEVEL = 0.025  # of a one-sided test
_TELLS = 0.7  # AUROC from which a property of the files is worth a word
_SURE = 0.01  # p of that AUROC, corrected for the number of properties
_PATIENT = re.compile(r"(?:^|[^a-z])((?:patient|pat|person|subject|subj|sub|case|p)[ _-]?\d+)", re.IGNORECASE)
_ORDER: tuple[Mark, ...] = ("bad", "care", "unknown", "good")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        about: what it is about.
        mark: whether it speaks for the result, asks for care, speaks against it, or cannot be told.
        words: what was found, in plain sentences.
    """

    about: Literal["flags", "ranking", "images"]
    mark: Mark
    words: str


@dataclass(frozen=True)
class Verdict:
    """What was found, and what follows.

    Args:
        findings: in the order in which they are to be read.
        labelled: whether there were labels of both classes.
    """

    findings: Sequence[Finding]
    labelled: bool = True

    def mark(self, about: str = "") -> Mark:
        """Returns the gravest mark of the findings, or of those about one thing."""
        marks = {f.mark for f in self.findings if about in ("", f.about)}
        if not about and all(f.about == "images" for f in self.findings if f.mark == "unknown"):
            marks.discard("unknown")  # patients hardly ever are known
        return next((m for m in _ORDER if m in marks), "unknown")

    @property
    def headline(self) -> str:
        """The verdict in one or two sentences."""
        flags, ranking = self.mark("flags"), self.mark("ranking")
        if not self.labelled:
            if flags == "bad":
                return "Do not rely on the p-values and flags of these images."
            return (
                "Nothing was found against the flags; without labels nobody can say how often they are right."
            )
        if "bad" in (flags, ranking):
            if flags == ranking:
                return (
                    "Do not trust this result: the flags do not keep their promise, and the ranking says no "
                    "more than chance or something simpler does."
                )
            if flags == "bad":
                return "Do not rely on the p-values and flags; the ranking may still be of use."
            return "Do not take the ranking for something that the model has learned."
        if self.mark() == "care":
            return "Take this result with care, for the reasons below."
        unknown = "; not all could be judged" if self.mark() == "unknown" else ""
        return f"Nothing was found that speaks against this result{unknown}."

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain values."""
        return {"headline": self.headline, "mark": self.mark(), "findings": [vars(f) for f in self.findings]}


def false_alarms(
    flagged: np.ndarray,
    labels: np.ndarray | None,
    rate: float,
    n_calibration: int,
    units: np.ndarray | None = None,
    n_effective: float | None = None,
) -> Finding:
    """Compares the share of normal images that are flagged with the rate that was promised.

    Where the normals are exchangeable with those of calibration, the number flagged is beta-binomial: the
    threshold itself was set by chance. The interval is that of the binomial alone (Clopper and Pearson).
    Where a patient has several images, both take as many images as would tell as much if they were of one
    patient each (Korn and Graubard, Survey Methodology 1998).

    A threshold that is the a-th highest score of n slices, m of each of K volumes, flags at most a share
    (a − 1 + m) / (n + m) of a new volume's slices, on average; m is 1 for single images. The number flagged
    is then taken as beta-binomial with that mean and K in the place of n, as if a volume's slices were
    flagged all or none, which varies most.

    Args:
        flagged: `(N,)` bool.
        labels: `(N,)`, 0 = normal, 1 = anomalous; None where they are not known.
        rate: the promised rate, in (0, 1).
        n_calibration: the number of normals that set the threshold.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.
        n_effective: K, how many independent normals tell as much as those, in [1, n_calibration]; None where
            each is independent.

    Returns:
        The finding, about the flags.
    """
    draws = n_calibration if n_effective is None else n_effective
    allowed = min(int(np.floor(rate * (n_calibration + 1) + 1e-9)), n_calibration)
    if not allowed:
        return Finding(
            "flags", "bad",
            f"Nothing can be flagged: {n_calibration} normals are too few for a false-alarm rate of "
            f"{_percent(rate)}.",
        )  # fmt: skip
    if labels is None:
        many = f"{int(flagged.sum())} of {len(flagged)} images are flagged ({_percent(flagged.mean())})"
        return Finding(
            "flags", "unknown", f"{many}. Without labels it is not known how many are false alarms."
        )
    normal = flagged[np.asarray(labels) == 0]
    k, n = int(normal.sum()), len(normal)
    if not n:
        return Finding(
            "flags", "unknown", "No image is labelled normal: the false-alarm rate cannot be checked."
        )
    worth = n if units is None else _worth(normal, np.asarray(units)[np.asarray(labels) == 0])
    hits = round(k / n * worth)
    low, high = binomtest(hits, worth).proportion_ci(method="exact")
    above = 1 + (allowed - 1) * draws / n_calibration  # (a − 1 + m) / m, and so K + 1 is (n + m) / m
    chance = float(betabinom.sf(hits - 1, worth, above, draws + 1 - above))
    promised = max(rate, above / (draws + 1)) if draws < n_calibration else rate
    more = (
        f": more than the rate of {_percent(rate)}, for the threshold was set on slices, which tell as much "
        f"as {draws:.3g} volumes or patients of equal size"
    )
    said = (
        f"{k} of {n} normal images are flagged: {_percent(k / n)}, 95 % interval {_percent(low)} to "
        f"{_percent(high)}{'' if worth == n else ' by patient'}. At most {_percent(promised)} were "
        f"promised, on average{more if promised > rate else ''}."
    )
    if chance < _LEVEL:
        again = "fewer than once in 1000 times" if chance < 0.001 else f"{_percent(chance)} of the time"
        return Finding(
            "flags", "bad",
            f"{said} The promise does not hold for these images: by chance alone, so many would be flagged "
            f"{again}.",
        )  # fmt: skip
    if worth < FEW:
        return Finding("flags", "care", f"{said} So few normals cannot tell whether that is kept.")
    if draws < min(FEW, n_calibration):
        return Finding("flags", "care", f"{said} So few volumes promise little.")
    agrees = "That agrees." if k / n <= promised else "That is more, but within chance."
    return Finding("flags", "good", f"{said} {agrees}")


def _worth(flagged: np.ndarray, units: np.ndarray) -> int:
    """Returns how many images of a patient each would tell a share as well, between patients and images."""
    n, unit = len(flagged), np.unique(units, return_inverse=True)[1]
    count, share = int(unit.max()) + 1, flagged.mean()
    if count == n:
        return n
    of_unit = np.bincount(unit, flagged - share)  # the ratio estimator's residuals
    variance, alone = count / max(count - 1, 1) * of_unit @ of_unit / n**2, share * (1 - share) / n
    return int(np.clip(round(n * alone / variance) if variance > 0 else count, count, n))


def drift(found: Mapping[str, Any], which: str) -> Finding:
    """Says whether the images look, as a whole, like the normals of training.

    Args:
        found: of `DriftMonitor.verdict`.
        which: the images that were compared, in words.

    Returns:
        The finding, about the flags: they hold for images like those of training.
    """
    if found["alarm"] is None:
        return Finding("flags", "unknown", f"{found['words'][:1].upper()}{found['words'][1:]}.")
    if found["alarm"]:
        return Finding("flags", "bad", f"{found['words'].replace('these images', which)}.")
    return Finding(
        "flags", "good", f"As a whole, {which} look like the normals of training (p = {found['p']:.2g})."
    )


def ranking(
    method: str,
    labels: np.ndarray,
    scores: np.ndarray,
    untrained: Sequence[Mapping[str, Any]],
    units: np.ndarray | None = None,
) -> list[Finding]:
    """Compares a ranking with chance, and with the best row that trains nothing.

    The best row is chosen on the same images, which favours it.

    Args:
        method: the model's name.
        labels: `(N,)`, 0 = normal, 1 = anomalous; both occur.
        scores: `(N,)` of the model.
        untrained: rows with `method`, `auroc` and, for a paired comparison, `scores` `(N,)`.
        units: `(N,)` whole numbers, equal for the images of a patient; None where each image is one.

    Returns:
        The findings, about the ranking.
    """
    own = image_metrics(labels, scores, units)
    auroc, (low, high) = own["auroc"], own["auroc_ci"]
    shown = f"AUROC {auroc:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    found = []
    if high < 0.5:
        found.append(Finding("ranking", "bad", f"Anomalous images score lower than normal ones: {shown}."))
    elif low <= 0.5:
        found.append(Finding("ranking", "bad", f"The ranking may be chance: {shown}."))
    said = "" if found else f"{shown}. "
    return [*found, _against_untrained(said, method, labels, scores, own, untrained, units)]


def _against_untrained(
    said: str,
    method: str,
    labels: np.ndarray,
    scores: np.ndarray,
    own: Mapping[str, Any],
    untrained: Sequence[Mapping[str, Any]],
    units: np.ndarray | None,
) -> Finding:
    """The finding of `ranking` about what trains nothing; its words begin with `said`."""
    rows = [r for r in untrained if r["method"] != method]
    if not rows:
        return Finding("ranking", "unknown", f"{said}It was not compared with anything untrained.")
    best = max(rows, key=lambda r: r["auroc"])
    name, low = f"{best['method']}, which trains nothing, reaches {best['auroc']:.3f}", own["auroc_ci"][0]
    if best.get("scores") is None:
        if best["auroc"] < low:
            return Finding("ranking", "good", f"{said}Nothing untrained does as well: the best, {name}.")
        return Finding("ranking", "bad", f"{said}Something untrained may do as well: {name}.")
    d = paired_difference(labels, scores, best["scores"], units)
    told = (
        f"95 % interval {d.low:+.3f} to {d.high:+.3f}" if np.isfinite(d.low) else "of too few for an interval"
    )
    apart = f"difference {d.value:+.3f}, {told}, paired".replace("-", "−")
    if d.low > 0:
        return Finding(
            "ranking", "good", f"{said}Nothing untrained does as well: the best, {name} ({apart})."
        )
    does = "does better" if d.high < 0 else "may do as well"
    return Finding("ranking", "bad", f"{said}Something untrained {does}: {name} ({apart}).")


def properties(
    labels: np.ndarray, scores: np.ndarray, found: Mapping[str, np.ndarray], units: np.ndarray | None = None
) -> Finding:
    """Says whether a simple property of the files, in either direction, is enough to tell the classes.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous; both occur.
        scores: `(N,)` of the model.
        found: `(N,)` values by name of the property; such as are all equal, or not all known,
            count for nothing.
        units: `(N,)` whole numbers, equal for the images of a patient, of whose images the mean is tested;
            None where each image is one.

    Returns:
        The finding, about the ranking.
    """
    y = np.asarray(labels)
    usable = {k: v for k, v in found.items() if np.isfinite(v).all() and len(np.unique(v)) > 1}
    if not usable:
        return Finding(
            "ranking", "unknown", "The files' properties (size, format, grey range) tell nothing apart."
        )
    tests = {k: mannwhitneyu(v[y == 1], v[y == 0]) for k, v in usable.items()}
    by_patient = tests if units is None else {k: _by_patient(v, y, units) for k, v in usable.items()}
    p = dict(zip(tests, holm([t.pvalue for t in by_patient.values()]), strict=True))
    aurocs = {k: t.statistic / (np.sum(y == 1) * np.sum(y == 0)) for k, t in tests.items()}
    name = max(aurocs, key=lambda k: abs(aurocs[k] - 0.5))
    sign = 1 if aurocs[name] >= 0.5 else -1
    told = max(aurocs[name], 1 - aurocs[name])
    best = (
        f"{name} ({'greater' if sign > 0 else 'smaller'} in anomalous images) reaches an AUROC of {told:.3f}"
    )
    if p[name] > _SURE or told < _TELLS:
        return Finding(
            "ranking", "good", f"No simple property of the files tells the classes: at most, {best}."
        )
    d = paired_difference(y, scores, sign * usable[name], units)
    why = "The classes may come from different sources, or differ as whole images."
    if d.low > 0:
        return Finding("ranking", "care", f"A simple property of the files tells much: {best}. {why}")
    return Finding(
        "ranking", "bad", f"A simple property of the files is enough: {best}, no less than the model. {why}"
    )


def _by_patient(values: np.ndarray, labels: np.ndarray, units: np.ndarray) -> Any:
    """Tests the means of a value over the images of each patient, one mean for each class."""
    means = []
    for c in (1, 0):
        unit = np.unique(units[labels == c], return_inverse=True)[1]
        means.append(np.bincount(unit, values[labels == c]) / np.bincount(unit))
    return mannwhitneyu(*means)


def sample(
    names: Sequence[str],
    labels: np.ndarray | None,
    volumes: Sequence[str | None],
    patients: Sequence[str | None] = (),
) -> Finding:
    """Says how many images there are, of how many patients or volumes, as far as that is known.

    Args:
        names: N names.
        labels: `(N,)`, 0 = normal, 1 = anomalous; None where they are not known.
        volumes: for each image the volume that it is a slice of; empty where none is.
        patients: for each image its patient, by which intervals are made; empty where none is known.

    Returns:
        The finding, about the images.
    """
    n = len(names)
    many, of = f"{n} image{'s' * (n != 1)}", "of an unknown number of patients"
    told = [_PATIENT.search(PurePath(name).as_posix()) for name in names]
    units: Sequence[Any] = range(n)
    mark: Mark = "good"
    if patients and None not in patients:
        units = patients
        of = f"of {(k := len(set(patients)))} patient{'s' * (k != 1)}"
        more = " Intervals are by patient." if k < n else ""
    elif any(volumes):
        units = [v or i for i, v in enumerate(volumes)]
        of = f"of {len(set(units))} volumes"
        more = " Intervals are by volume: of patients with several they are too narrow."
    elif n > 1 and all(told):
        units = [m[1].lower() for m in told if m]
        of, more = f"of {len(set(units))} patients, by their names", ""
        if len(set(units)) < n:
            mark = "care"
            more = (
                " Images of one patient are alike, so the intervals here are too narrow: name patients with "
                "--group-by, if that is what they are."
            )
    else:
        mark, more = "unknown", " If some are of one patient, the intervals here are too narrow."
    said = f"{many} {of}.{more}"
    if labels is not None and len(set(np.asarray(labels).tolist())) == 2:
        of_class = [len({u for u, y in zip(units, labels, strict=True) if y == c}) for c in (0, 1)]
        if min(of_class) < FEW:
            few = f"{of_class[0]} normal and {of_class[1]} anomalous"
            return Finding("images", "care", f"{said} {few}: so few say little.")
    return Finding("images", mark, said)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
