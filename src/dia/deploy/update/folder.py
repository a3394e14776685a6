"""A model folder that learns from marked images, or is brought back to what its fit found.

An update begins from the model as it was fitted, with all marks that it has learned from and the new ones:
of an image that is marked again the later mark counts. It adds one file, `taught.safetensors`, which holds
the marks, as the model sees them, and the calibration before; the fitted weights stay as they are. An undo
takes the file away, and with it all marks. Folders are replaced whole: a process that is killed leaves the
model before or after. Knows model folders and arrays; knows no files of images or marks, and no names of
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ...core.errors import DataError, printable
from ...data.imageset import pixels_sha256
from ...detectors import Detector
from ...detectors.calibration import Calibration
from ...detectors.teaching.lesson import Lesson, teach
from ...detectors.teaching.model import cannot_teach, forget, ground_of, look, scorer_of
from ...detectors.teaching.taught import FILE, HEADING, Learned, said_of
from ..recalibrate import Taken, taken

_READERS, _NAME = 20, 80  # names of readers that are kept, and characters of each
_WATCHED = 100  # missed anomalies that are kept


@dataclass(frozen=True)
class Updated:
    """What became of an update.

    Args:
        kept: whether the model was changed.
        words: why, in one line.
        before: cross-validated AUROC on the marks without the update; None where it cannot be judged.
        after: the same with it.
        p: one-sided p-value of the gain, in [0, 1]; None as above.
        marks: images that it learned from, earlier ones among them.
        watch: missed anomalies, marked anomalous and not flagged: sha256, score and p-value before and after.
            Those after are by updates that do not know the image.
        at: when, in ISO 8601, UTC.
    """

    kept: bool
    words: str
    before: float | None = None
    after: float | None = None
    p: float | None = None
    marks: int = 0
    watch: Sequence[Mapping[str, Any]] = field(default=())
    at: str = ""


def update_folder(
    run: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    about: Mapping[str, Any] | None = None,
    *,
    flagged: np.ndarray | None = None,
    units: np.ndarray | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Updated:
    """Teaches a model folder, where cross-validation on the marks says that it ranks better for it.

    It is kept where the one-sided p-value of the gain is at most `lesson.LEVEL`, 0.25.

    Args:
        run: a folder written by `dia fit`, taught before or not.
        images: `(M, H, W, C)` uint8 at the model's size, each once.
        labels: `(M,)`, 1 = anomalous, 0 = normal.
        about: `readers`: the names of those who marked; kept in the model's facts and on its card.
        flagged: `(M,)` bool, whether the model as fitted flagged them when they were marked; by its own
            threshold where None.
        units: `(M,)` whole numbers, equal for images of one patient or volume, which are judged together;
            None where each image is alone. No name of a patient is kept.
        out: folder of a copy to teach; `run` itself by default.
        device: where images are seen.

    Returns:
        What became of it. A model that was taught before keeps that where the update is not kept.

    Raises:
        DataError: the model cannot be taught, images, labels or units do not fit, or `out` is there already.
    """
    folder, target = Path(run), Path(out or run)
    with taken(folder, target) as model:
        return _update(model, images, labels, about or {}, flagged, units, device)


def _update(
    model: Taken,
    images: np.ndarray,
    labels: np.ndarray,
    about: Mapping[str, Any],
    flagged: np.ndarray | None,
    units: np.ndarray | None,
    device: str,
) -> Updated:
    """Teaches a model folder as `update_folder` does, once the target is owned."""
    folder = model.folder
    detector = Detector.load(folder, device=device)
    lineage = str(detector.facts_.get("lineage") or model.hash)
    before, earlier = detector.taught_, detector.facts_.get("taught") or {}
    forget(detector)
    if reason := cannot_teach(detector):
        raise DataError(f"{folder}: {reason}")
    labels = _checked(detector, images, labels)
    if units is not None and np.shape(units) != (len(images),):
        raise DataError(f"units must be {len(images)} whole numbers, equal for images of a patient or volume")
    if not len(images):
        return Updated(False, "no marks; the model stays as it is")
    seen = look(detector, images)
    scores = scorer_of(detector)(seen)
    flags = scores > detector.threshold() if flagged is None else np.asarray(flagged, bool)
    learned = Learned.of(seen, images, labels, flags, units)
    if before is not None:
        learned = before.learned.then(learned)
    lesson = teach(ground_of(detector), learned)
    watch = _watched(detector, lesson, learned)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    judged = lesson.before, lesson.after, lesson.p
    made = Updated(lesson.kept, lesson.words, *judged, len(learned), watch, at)
    if lesson.kept:
        assert lesson.taught is not None
        assert lesson.calibration is not None
        facts = {
            "marks": len(learned), "anomalous": int(learned.labels.sum()),
            "normal": int((learned.labels == 0).sum()), "at": at,
            "readers": _names([*(earlier.get("readers") or ()), *(about.get("readers") or ())]),
            "auc_before": lesson.before, "auc_after": lesson.after, "gain_p": lesson.p,
            "weight": lesson.taught.weight, "normals_added": lesson.taught.n_added,
            "watch": [dict(one) for one in watch],
        }  # fmt: skip
        with model.edited() as new:
            save_file(lesson.taught.tensors(), new / FILE)
            _write(new, lesson.calibration, {"lineage": lineage, "taught": facts})
            card = new / "card.md"
            card.write_text(f"{_plain_card(card)}\n{HEADING}\n\n{said_of(facts)}\n", encoding="utf-8")
    return made


def undo_folder(run: str | Path, *, out: str | Path | None = None) -> None:
    """Brings back the model as it was fitted.

    Args:
        run: a folder that `update_folder` changed.
        out: folder of a copy to bring back; `run` itself by default.

    Raises:
        DataError: it was not taught, or was calibrated on a site's normals since.
    """
    folder, target = Path(run), Path(out or run)
    with taken(folder, target) as model:
        detector = Detector.load(folder, device="cpu")
        if detector.taught_ is None:
            raise DataError(f"{folder}: no marks have taught it; there is nothing to undo")
        if detector.facts_.get("calibrated"):
            remedy = f"bring back its own calibration first: dia calibrate {folder} --original"
            raise DataError(f"{folder}: it was calibrated on a site's normals after it was taught; {remedy}")
        with model.edited() as new:
            _write(new, detector.taught_.calibration, None)
            (new / FILE).unlink()
            (new / "card.md").write_text(_plain_card(new / "card.md"), encoding="utf-8")


def _checked(detector: Detector, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels must be {len(images)} values of 0 (normal) or 1 (anomalous)")
    if len(images):
        detector._check(images)
        shas = [pixels_sha256(image) for image in images]
        if len(set(shas)) < len(shas):
            raise DataError("an image is marked twice; give each once")
    return labels.astype(int)


def _watched(detector: Detector, lesson: Lesson, learned: Learned) -> list[dict[str, Any]]:
    """Returns missed anomalies, those of the highest score first, as far as cross-validation judged them."""
    if lesson.held is None or lesson.calibration is None:
        return []
    scores, names = scorer_of(detector)(learned.seen), learned.names
    before, after = detector.p_values(scores), Calibration.of(lesson.calibration).p_values(lesson.held)
    missed = (learned.labels == 1) & ~learned.flagged
    order = [int(i) for i in np.argsort(-scores, kind="stable") if missed[i]][:_WATCHED]
    return [
        {"sha256": names[i], "before": float(scores[i]), "after": float(lesson.held[i]),
         "p_before": float(before[i]), "p_after": float(after[i])}
        for i in order
    ]  # fmt: skip


def _names(names: Sequence[str]) -> list[str]:
    """Returns the names of readers, in order, each once."""
    kept = sorted({printable(" ".join(str(name).split()))[:_NAME] for name in names} - {""})
    return kept if len(kept) <= _READERS else [*kept[: _READERS - 1], f"and {len(kept) - _READERS + 1} more"]


def _write(new: Path, scores: np.ndarray, facts: Mapping[str, Any] | None) -> None:
    """Writes another calibration, and facts in the place of those of an earlier update."""
    config = json.loads((new / "config.json").read_text())
    kept = {k: v for k, v in config["facts"].items() if k not in ("taught", "lineage")}
    config["n_calibration"], config["facts"] = len(scores), {**kept, **(facts or {})}
    (new / "config.json").write_text(json.dumps(config, indent=2))
    held = {"held_out_normal_scores": np.sort(np.asarray(scores, np.float64)).tolist()}
    (new / "calibration.json").write_text(json.dumps(held))


def _plain_card(card: Path) -> str:
    """Returns a card without what it says of marks."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    return re.split(rf"\n{re.escape(HEADING)}\n", text, maxsplit=1)[0]
