"""Measures how fine a detector sees: the share of lesions it flags, over kind, size and contrast.

Lesions of `data/lesions.py` are pasted into normal images the detector did not train on; an image counts as
found where its score is above the calibrated threshold. Knows detectors; draws nothing and knows no labels.

The lesions are synthetic. A detector that finds them all can miss a disease, and the reverse; the curves
say how large and how strong a change must be on these images before this detector says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.base import clone

from ..core.errors import DataError
from ..data.imageset import ImageSet, codes_of
from ..data.lesions import CONTRASTS, KINDS, SIZES, VERSION, paste
from ..detectors import Detector
from ..detectors.calibration import held_out
from ..detectors.places import folds_of
from ..detectors.saving import fingerprint
from .metrics import pixel_metrics
from .unseen import Unseen, unseen

FORMAT = 1
FOUND = 0.8  # detection rate at which a lesion counts as found
Cell = tuple[str, float, float]


@dataclass(frozen=True)
class Plan:
    """The lesions of a stress test.

    Args:
        kinds: of `data.lesions.KINDS`.
        sizes: diameters as shares of the shorter side, in (0, 1]; kept ascending.
        contrasts: in each kind's own units, in (0, 1]; kept ascending.
        seed: of places and forms.

    Raises:
        DataError: there is no such kind, or a list is empty or out of range.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    sizes: tuple[float, ...] = SIZES
    contrasts: tuple[float, ...] = CONTRASTS
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [k for k in self.kinds if k not in KINDS]:
            raise DataError(f"no lesion {unknown[0]!r}; there are: {', '.join(KINDS)}")
        if empty := [name for name in ("kinds", "sizes", "contrasts") if not getattr(self, name)]:
            raise DataError(f"a stress test needs {empty[0]}; leave the flag out for the usual ones")
        for name in ("sizes", "contrasts"):
            values = getattr(self, name)
            if not all(0 < v <= 1 for v in values):
                raise DataError(f"{name} must lie in (0, 1], not {list(values)}")
            object.__setattr__(self, name, tuple(sorted(set(values))))

    def cells(self) -> list[Cell]:
        """Returns (kind, size, contrast) of all lesions."""
        return list(product(self.kinds, self.sizes, self.contrasts))


@dataclass(frozen=True, eq=False)
class Ground:
    """Normal images to paste into.

    Args:
        images: normal images, in the detector's shape.
        source: `calibration` where they set the threshold themselves, `fifth` where the detector was fitted
            anew without them, `given` otherwise.
        remark: a caution for the reader; empty where none is needed.
        stand_in: the detector to test in place of the fitted one, if that has seen the images; else None.
    """

    images: ImageSet
    source: str
    remark: str = ""
    stand_in: Detector | None = None


def untrained_normals(
    detector: Detector, normals: ImageSet, most: int = 200, *, keep_seen: bool = False
) -> Ground:
    """Selects normals that a fitted detector did not train on.

    If the very images it was fitted on (by their hash) are among them, its calibration part is taken, since
    the hold-out is drawn by seed and number alone; or the others, if these are more. A detector that holds
    nothing out is fitted anew without a fifth of them, which is taken. If only some of the images it was
    fitted on are there (by their pixels), they are left out.

    Args:
        detector: fitted, or loaded.
        normals: images in the detector's shape; those known to be anomalous are left out.
        most: images to take at most, evenly spaced; 0 for all.
        keep_seen: leave none out because it was fitted on.

    Returns:
        The images, and where they come from.

    Raises:
        DataError: no normal image, or the detector was fitted on all of them and on others.
    """
    normals = normals.normals()
    if not len(normals):
        raise DataError("a stress test needs normal images; see --normal and --split")
    stand_in = None
    source, remark = "given", (
        "The normals are not, as a whole, the images the model was fitted on. If some of them were "
        "trained on, rates are distorted: such images look more normal than new ones."
    )  # fmt: skip
    fresh = Unseen(normals, known=False) if keep_seen else unseen(detector, normals)
    own = None if keep_seen else _training_among(detector, normals, fresh.seen)
    if own is not None and (own is normals or len(fresh.images) < len(own) * _held(detector)):
        if detector.leaves_one_out:
            source, remark = "fifth", (
                "The model holds no normals out, so the detector that was tested is another one, fitted with "
                "the same settings on four fifths of them; lesions are pasted into the others."
            )  # fmt: skip
            if any(own.patients):  # as wholes, whatever one of them has
                fifth, *others = folds_of(codes_of(own.units, len(own)), detector.seed)
                if not others:
                    raise DataError(
                        "the normals are of one patient; a stress test needs others than the fit's"
                    )
            else:
                fifth, *others = held_out(len(own), 2 * _held(detector), detector.seed, own.units)
            stand_in = clone(detector).fit(own.subset(np.sort(np.concatenate(others))))
            normals = own.subset(np.sort(fifth))
        else:
            source, remark = "calibration", (
                "The normals are those that set the threshold, so their own false alarms are as promised by "
                "construction and say nothing."
            )  # fmt: skip
            calibration = held_out(
                len(own), detector.holdout, detector.seed, own.units, whole=any(own.patients)
            )[0]
            normals = own.subset(np.sort(calibration))
    elif fresh.known:
        normals, n = fresh.images, len(fresh.seen)
        remark = f"{n} images that the model was fitted on are left out." if n else ""
        if not len(normals):
            raise DataError(
                f"the model was fitted on all {n} normals given, and on others; give all of those (with "
                "--group-by, if fit had it), or new ones, or --keep-seen"
            )
    if most and len(normals) > most:
        normals = normals.subset(np.unique(np.linspace(0, len(normals) - 1, most).round().astype(int)))
    return Ground(normals, source, remark, stand_in)


def _training_among(detector: Detector, normals: ImageSet, seen: Sequence[str]) -> ImageSet | None:
    """Returns those of the normals that a detector was fitted on, if all are there and in their order."""
    among = set(seen)
    own = (normals, normals.subset([i for i, name in enumerate(normals.names) if name in among]))
    for images in own:
        as_read = [replace(images, labels=v) for v in (images.labels, None, np.zeros(len(images), np.int8))]
        if detector.facts_.get("train_sha256") in {n.sha256() for n in as_read}:
            return images
        as_read = [replace(n, patients=()) for n in as_read]
        if any(images.patients) and detector.facts_.get("train_sha256") in {n.sha256() for n in as_read}:
            return replace(images, patients=())  # fitted without regard to patients
    return None


def _held(detector: Detector) -> float:
    """Returns the share of its normals that a test takes of those that a detector was fitted on."""
    return 0.2 if detector.leaves_one_out else detector.holdout / 2


def stress(
    detector: Detector,
    ground: Ground,
    plan: Plan,
    rate: float,
    *,
    localise: bool = False,
    kept: Mapping[str, Any] | None = None,
    on_cell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measures every cell of the plan.

    Args:
        detector: fitted.
        ground: normals it did not train on.
        plan: what is pasted.
        rate: false-alarm rate of the threshold, in (0, 1).
        localise: also measure whether heatmaps point at the lesion; takes about twice the time.
        kept: an earlier result of the same test; its cells stay and are not measured again.
        on_cell: called after each cell with the result so far.

    Returns:
        A plain dict: the test's `identity`, `false_alarms` on the normals as they are, and in `cells` for
        each kind, size and contrast: images `found` of `n`, their `share` with its 95 % Wilson interval
        `ci`, the `lift` (median rise of the score by pasting, in standard deviations of the unpasted
        scores); with `localise` also `pixel_auroc` and `pointed`, the share of images whose hottest pixel
        lies in the mask, and that share `by_chance`.

    Raises:
        DataError: a threshold that no score can pass, or heatmaps asked of a method without.
    """
    fitted, detector = detector, ground.stand_in or detector
    threshold = detector.threshold(rate)
    if not np.isfinite(threshold):
        n = detector.n_calibration_
        raise DataError(
            f"{n} normals to calibrate on, too few for a false-alarm rate of {rate:g}: nothing is flagged; "
            f"give --false_alarm_rate {np.ceil(1000 / (n + 1)) / 1000:g} or fit with more normals"
        )
    if localise and not detector.has_heatmaps():
        raise DataError(f"{detector.method} has no heatmaps; leave --localise out")
    x = ground.images.images
    before = detector.score(x)
    made: dict[str, Any] = {
        "identity": identity_of(fitted, ground, plan.seed, rate, localise),
        "method": detector.method,
        "threshold": threshold,
        "false_alarm_rate": rate,
        "normals": {"images": len(x), "shape": list(x.shape[1:]), "source": ground.source},
        "remark": ground.remark,
        "false_alarms": counted(before > threshold),
        "cells": [],
    }
    cells = _by_cell(kept) if kept is not None and kept.get("identity") == made["identity"] else {}
    spread = max(float(before.std()), 1e-12)
    for cell in plan.cells():
        if cell not in cells:
            pasted, masks = paste(x, *cell, seed=plan.seed)
            after, maps, _ = detector.detect(pasted, heatmaps=localise)
            found = dict(zip(("kind", "size", "contrast"), cell, strict=True)) | counted(after > threshold)
            found["lift"] = float(np.median(after - before)) / spread
            cells[cell] = found | (_localised(maps, masks) if maps is not None else {})
        made["cells"] = [cells[c] for c in sorted(cells, key=lambda c: (list(KINDS).index(c[0]), *c[1:]))]
        if on_cell is not None:
            on_cell(made)
    return made


def identity_of(detector: Detector, ground: Ground, seed: int, rate: float, localise: bool) -> dict[str, Any]:
    """Returns the facts that two stress tests share exactly if they are the same test.

    Args:
        detector: fitted.
        ground: the normals.
        seed: of the lesions' places and forms.
        rate: false-alarm rate of the threshold, in (0, 1).
        localise: whether heatmaps are measured too.

    Returns:
        Plain values by name.
    """
    return {
        "format": FORMAT,
        "lesions": VERSION,
        "model": _model(detector),
        "normals_sha256": ground.images.sha256(),
        "lesion_seed": seed,
        "false_alarm_rate": rate,
        "localise": localise,
    }


def is_of(result: Mapping[str, Any], detector: Detector) -> bool:
    """Returns whether a result was measured with this very detector.

    Args:
        result: of `stress`.
        detector: fitted.

    Returns:
        True if it was.
    """
    return bool(result["identity"]["model"] == _model(detector))


def _model(detector: Detector) -> str:
    scores = detector.calibration_.scores.tolist()
    return fingerprint(detector.settings_hash(), detector.seed, detector.facts_.get("train_sha256"), scores)


def counted(flags: np.ndarray) -> dict[str, Any]:
    """Counts True in `(N,)` bool, with its share and the share's 95 % interval (Wilson 1927)."""
    hits, n = int(flags.sum()), len(flags)
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return {"found": hits, "n": n, "share": hits / n, "ci": [float(interval.low), float(interval.high)]}


def _localised(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    hottest = maps.reshape(len(maps), -1).argmax(1)
    inside = masks.reshape(len(masks), -1)[np.arange(len(maps)), hottest]
    return {
        "pixel_auroc": pixel_metrics(masks, maps)["pixel_auroc"],
        "pointed": float(inside.mean()),
        "by_chance": float(masks.mean()),
    }


def _by_cell(result: Mapping[str, Any]) -> dict[Cell, dict[str, Any]]:
    return {(c["kind"], c["size"], c["contrast"]): c for c in result["cells"]}


def smallest(result: Mapping[str, Any]) -> dict[str, dict[float, tuple[float | None, float | None]]]:
    """Finds the smallest size that is found: by the rate itself, and by its interval's lower end.

    A size counts if it and all larger ones tested are found at a rate of at least `FOUND`.

    Args:
        result: of `stress`.

    Returns:
        By kind and contrast the two sizes; None if no size counts.
    """
    cells = _by_cell(result)
    out: dict[str, dict[float, tuple[float | None, float | None]]] = {}
    for kind, contrast in dict.fromkeys((k, c) for k, _, c in cells):
        of = sorted(((s, v) for (k, s, c), v in cells.items() if (k, c) == (kind, contrast)), reverse=True)
        by_rate = [s for s, _ in takewhile(lambda size: size[1]["share"] >= FOUND, of)]
        surely = [s for s, _ in takewhile(lambda size: size[1]["ci"][0] >= FOUND, of)]
        out.setdefault(kind, {})[contrast] = min(by_rate, default=None), min(surely, default=None)
    return out


def load_stress(path: Path) -> dict[str, Any]:
    """Reads a result that `keep_stress` wrote.

    Raises:
        DataError: not a stress test's file, or one of another version.
    """
    try:
        made = dict(json.loads(path.read_text(encoding="utf-8")))
        version = made["identity"]["format"]
        _by_cell(made)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a file of `dia stress`; give another --out or delete it") from error
    if version != FORMAT:
        raise DataError(f"{path}: of another version of the stress test; measure anew with --overwrite")
    return made


def keep_stress(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result to a JSON file, whole or not at all.

    Args:
        path: of the file; its folder is made if it is absent.
        result: of `stress`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(result, indent=1), encoding="utf-8")
    new.replace(path)


def in_pixels(size: float, shape: Sequence[int]) -> float:
    """Converts a size to pixels.

    Args:
        size: a share of the shorter side, in (0, 1].
        shape: of an image, (H, W, C).

    Returns:
        The size in pixels.
    """
    return size * min(shape[:2])


def load_same(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the result of an earlier run of the same test.

    Args:
        path: a file that `keep_stress` wrote.
        identity: what `identity_of` says of the test now.

    Returns:
        The result.

    Raises:
        DataError: the file holds another test, or none.
    """
    kept = load_stress(path)
    if differing := [k for k in identity if kept["identity"].get(k) != identity[k]]:
        raise DataError(
            f"{path} holds another test (it differs in {', '.join(differing)}); choose another --out, or "
            "--overwrite it"
        )
    return kept


def pasted_examples(detector: Detector, normals: ImageSet, plan: Plan) -> list[tuple[str, np.ndarray]]:
    """Pastes lesions of each kind into the image of median score, at the plan's middle size.

    Args:
        detector: fitted.
        normals: normal images.
        plan: the kinds, sizes and contrasts.

    Returns:
        A caption and `(len(plan.contrasts), H, W, C)` uint8 images for the image as it is and for each kind.
    """
    order = np.argsort(detector.score(normals.images))
    x = normals.images[[order[len(order) // 2]] * len(plan.contrasts)]
    size, contrasts = plan.sizes[len(plan.sizes) // 2], np.array(plan.contrasts)
    pasted = [(kind, paste(x, kind, size, contrasts, seed=plan.seed)[0]) for kind in plan.kinds]
    return [("as it is", x), *pasted]
