"""How fine a detector sees: the share of lesions it flags, over kind, size and contrast.

Lesions of `data/lesions.py` are pasted into normal images the detector did not train on; an image counts as
found where its score is above the calibrated threshold. Knows detectors; draws nothing and knows no labels.

The lesions are synthetic. A detector that finds them all can miss a disease, and the reverse; the curves
say how large and how strong a change must be on these images before this detector says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ..core.errors import DataError
from ..data.imageset import ImageSet
from ..data.lesions import CONTRASTS, KINDS, SIZES, VERSION, paste
from ..detectors import Detector
from ..detectors.calibration import held_out
from ..detectors.saving import fingerprint
from .metrics import pixel_metrics

FORMAT = 1
FOUND = 0.8  # detection rate at which a lesion counts as found
Cell = tuple[str, float, float]


@dataclass(frozen=True)
class Plan:
    """What is pasted.

    Args:
        kinds: of `data.lesions.KINDS`.
        sizes: diameters as shares of the shorter side, ascending.
        contrasts: in each kind's own units, ascending.
        seed: of places and forms.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    sizes: tuple[float, ...] = SIZES
    contrasts: tuple[float, ...] = CONTRASTS
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [k for k in self.kinds if k not in KINDS]:
            raise DataError(f"no lesion {unknown[0]!r}; there are: {', '.join(KINDS)}")
        for name in ("kinds", "sizes", "contrasts"):
            if not getattr(self, name):
                raise DataError(f"a stress test needs {name}; leave the flag out for the usual ones")
        for name in ("sizes", "contrasts"):
            values = getattr(self, name)
            if not all(0 < v <= 1 for v in values):
                raise DataError(f"{name} must lie in (0, 1], not {list(values)}")
            object.__setattr__(self, name, tuple(sorted(set(values))))

    def cells(self) -> list[Cell]:
        """(kind, size, contrast) of all lesions."""
        return list(product(self.kinds, self.sizes, self.contrasts))


@dataclass(frozen=True, eq=False)
class Ground:
    """Normal images to paste into.

    Args:
        images: of them.
        source: `calibration` where they set the threshold themselves, `given` otherwise.
        remark: what the reader must know of them; empty where there is nothing.
    """

    images: ImageSet
    source: str
    remark: str = ""


def untrained_normals(detector: Detector, normals: ImageSet, most: int = 200) -> Ground:
    """Of normals those that a fitted detector did not train on.

    Where they are the very images it was fitted on (told by their hash), its calibration part is taken: the
    hold-out is drawn by seed and number alone. All are taken otherwise.

    Args:
        detector: fitted, or loaded.
        normals: in its own shape; images known to be anomalous are left out.
        most: of them, evenly spaced; 0 for all.

    Raises:
        DataError: no normal image.
    """
    normals = normals.normals()
    if not len(normals):
        raise DataError("a stress test needs normal images; see --normal and --split")
    known = detector.facts_.get("train_sha256")
    as_read = [normals, *(replace(normals, labels=v) for v in (None, np.zeros(len(normals), np.int8)))]
    if known is not None and known in {n.sha256() for n in as_read}:
        calibration = np.sort(held_out(len(normals), detector.holdout, detector.seed, normals.volumes)[0])
        source, remark = "calibration", (
            "The normals are those that set the threshold, so their own false alarms are as promised by "
            "construction and say nothing."
        )  # fmt: skip
        normals = normals.subset(calibration)
    else:
        source, remark = "given", (
            "The normals are not, as a whole, the images the model was fitted on. If some of them were "
            "trained on, rates are distorted: such images look more normal than new ones."
        )  # fmt: skip
    if most and len(normals) > most:
        normals = normals.subset(np.unique(np.linspace(0, len(normals) - 1, most).round().astype(int)))
    return Ground(normals, source, remark)


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
        rate: false-alarm rate of the threshold.
        localise: also look whether heatmaps point at the lesion; takes about twice the time.
        kept: an earlier result of the same test, whose cells are not measured again, and stay.
        on_cell: called after each cell with the result so far.

    Returns:
        A plain dict: what was tested, `false_alarms` on the normals as they are, and in `cells` for each
        kind, size and contrast: images `found` of `n`, their `share` with its 95 % Wilson interval `ci`, the
        `lift` (median rise of the score by pasting, in standard deviations of the unpasted scores); with
        `localise` also `pixel_auroc` and `pointed`, the share of images whose hottest pixel lies in the mask,
        and that share `by_chance`.

    Raises:
        DataError: a threshold that no score can pass, or heatmaps asked of a method without.
    """
    threshold = detector.threshold(rate)
    if not np.isfinite(threshold):
        n = detector.n_calibration_
        raise DataError(
            f"{n} normals were held out, too few for a false-alarm rate of {rate:g}: nothing can be flagged; "
            f"give --false_alarm_rate {np.ceil(1000 / (n + 1)) / 1000:g} or fit with more normals"
        )
    if localise and not detector.has_heatmaps():
        raise DataError(f"{detector.method} has no heatmaps; leave --localise out")
    x = ground.images.images
    before = detector.score(x)
    made: dict[str, Any] = {
        "identity": identity_of(detector, ground, plan.seed, rate, localise),
        "method": detector.method,
        "threshold": threshold,
        "false_alarm_rate": rate,
        "normals": {"images": len(x), "shape": list(x.shape[1:]), "source": ground.source},
        "remark": ground.remark,
        "false_alarms": counted(before > threshold),
        "cells": [],
    }
    same = kept is not None and kept.get("identity") == made["identity"]
    cells = dict(_by_cell(kept)) if kept is not None and same else {}
    spread = max(float(before.std()), 1e-12)
    for cell in plan.cells():
        if cell not in cells:
            pasted, masks = paste(x, *cell, seed=plan.seed)
            after, maps, _ = detector.detect(pasted, heatmaps=localise)
            found = dict(zip(("kind", "size", "contrast"), cell, strict=True)) | counted(after > threshold)
            found["lift"] = float(np.median(after - before)) / spread
            cells[cell] = found | (_localised(maps, masks) if maps is not None else {})
        made["cells"] = [cells[c] for c in sorted(cells, key=_order)]
        if on_cell is not None:
            on_cell(made)
    return made


def identity_of(detector: Detector, ground: Ground, seed: int, rate: float, localise: bool) -> dict[str, Any]:
    """What must agree for two stress tests to be the same one."""
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
    """Whether a result was measured with this very detector."""
    return bool(result["identity"]["model"] == _model(detector))


def _model(detector: Detector) -> str:
    scores = detector.calibration_.scores.tolist()
    return fingerprint(detector.settings_hash(), detector.seed, detector.facts_.get("train_sha256"), scores)


def counted(flags: np.ndarray) -> dict[str, Any]:
    """How many of `(N,)` bool, their share, and its 95 % interval (Wilson 1927)."""
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


def _order(cell: Cell) -> tuple[int, float, float]:
    return list(KINDS).index(cell[0]), cell[1], cell[2]


def _by_cell(result: Mapping[str, Any]) -> list[tuple[Cell, dict[str, Any]]]:
    return [((c["kind"], c["size"], c["contrast"]), c) for c in result["cells"]]


def smallest(result: Mapping[str, Any]) -> dict[str, dict[float, tuple[float | None, float | None]]]:
    """By kind and contrast the smallest size found: at the rate itself, and at its interval's lower end.

    A size counts where it and all larger ones tested are found by at least `FOUND`; None where none is.
    """
    cells = dict(_by_cell(result))
    out: dict[str, dict[float, tuple[float | None, float | None]]] = {}
    for kind, contrast in dict.fromkeys((k, c) for k, _, c in cells):
        sizes = sorted(s for k, s, c in cells if (k, c) == (kind, contrast))
        ends: list[float | None] = [None, None]
        for i, value in enumerate((lambda c: c["share"], lambda c: c["ci"][0])):
            for size in reversed(sizes):
                if value(cells[kind, size, contrast]) < FOUND:
                    break
                ends[i] = size
        out.setdefault(kind, {})[contrast] = (ends[0], ends[1])
    return out


def load_stress(path: Path) -> dict[str, Any]:
    """A result as it was written.

    Raises:
        DataError: not a stress test's file.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        if made["identity"]["format"] != FORMAT:
            raise DataError(f"{path}: of another version of the stress test; measure anew with --overwrite")
        _by_cell(made)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a file of `dia stress`; give another --out or delete it") from error
    return dict(made)


def keep_stress(path: Path, result: Mapping[str, Any]) -> None:
    """Writes it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(result, indent=1), encoding="utf-8")
    new.replace(path)


def in_pixels(size: float, shape: Sequence[int]) -> float:
    """A size in pixels of an image `(H, W, C)`."""
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
