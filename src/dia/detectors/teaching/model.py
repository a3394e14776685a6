"""Teaching of a fitted model: what it sees of marked images and saw of its normals, and what it gains.

Knows detectors that keep what their normals were like (`dia+`); knows no files and no readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...core.errors import DataError
from ...features.untrained import as_tensor
from ..calibration import Calibration, one_of_each
from .lesson import Ground, Lesson
from .seen import PROBED, Seen

_CLOSE = 1e-6  # scores of normals that are made anew are those of the calibration but for rounding


def cannot_teach(detector: Any) -> str:
    """Returns why a model cannot learn from marks, in one line; empty where it can.

    Args:
        detector: fitted, of any method.
    """
    if not hasattr(detector, "normals_"):
        return f"{detector.method} cannot learn from marks; dia+ can"
    if not set(PROBED) & set(detector.banks_):
        return f"it has none of the views {', '.join(PROBED)}, in which marks are learned; fit it with them"
    if not detector.normals_:
        return "it was fitted before models kept what marks need: fit it again"
    if detector.facts_.get("calibrated"):
        return (
            "it is calibrated on a site's normals: bring back its own calibration (`dia calibrate RUN "
            "--original`), update, and calibrate it again"
        )
    return ""


def look(detector: Any, images: np.ndarray) -> Seen:
    """Returns what a model sees of images, by its own banks without what was taught.

    Args:
        detector: dia+, fitted.
        images: `(N, H, W, C)` uint8 in its shape, N ≥ 1.
    """
    module, step = detector.module(), detector._at_once()
    vectors: dict[str, list[np.ndarray]] = {}
    distances: dict[str, list[np.ndarray]] = {}
    numbers: dict[str, list[np.ndarray]] = {}
    place = []
    with torch.inference_mode():
        for start in range(0, len(images), step):
            x = as_tensor(images[start : start + step], detector.where_)
            seen, counted, oddest, *_ = module.seen(x, False)
            for name, values in seen.items():
                vectors.setdefault(name, []).append(values.float().cpu().numpy())
                away = detector.banks_[name].to(detector.where_)(values)
                distances.setdefault(name, []).append(away.cpu().numpy())
            for name, values in counted.items():
                numbers.setdefault(name, []).append(values.cpu().numpy())
            place.append(oddest.cpu().numpy())
    joined = [{k: np.concatenate(v) for k, v in table.items()} for table in (vectors, distances, numbers)]
    return Seen(joined[0], joined[1], joined[2], np.concatenate(place))


def own_normals(detector: Any) -> Seen:
    """Returns what a model saw of the N normals it was fitted on, each judged by the others.

    Args:
        detector: dia+, fitted.
    """
    kept, n = detector.normals_, len(detector.normals_["place"])
    return Seen(
        {name: bank.bank[:n].cpu().numpy() for name, bank in detector.banks_.items()},
        {name: kept[f"away.{name}"] for name in detector.banks_},
        {k.removeprefix("number."): v for k, v in kept.items() if k.startswith("number.")},
        kept["place"],
    )


def scorer_of(detector: Any) -> Any:
    """Returns the model's own score `(K,)` of what it sees of K images, without what was taught.

    Args:
        detector: dia+, fitted.
    """
    module = detector.module()

    def score(seen: Seen) -> np.ndarray:
        tables = ({k: torch.from_numpy(v) for k, v in t.items()} for t in (seen.distances, seen.numbers))
        with torch.inference_mode():
            made: np.ndarray = module.scored(*tables, torch.from_numpy(seen.place)).numpy()
        return made

    return score


def ground_of(detector: Any) -> Ground:
    """Returns what lessons of a model start from; it may be kept for several.

    Args:
        detector: dia+, fitted, without anything taught.

    Raises:
        DataError: the model cannot be taught.
    """
    if reason := cannot_teach(detector):
        raise DataError(reason)
    normals, scorer, units = own_normals(detector), scorer_of(detector), detector.normals_["unit"]
    known, scores = detector.calibration_.scores, scorer(normals)
    chosen = np.arange(len(normals))
    if len(known) < len(normals):
        chosen = one_of_each([str(unit) for unit in units], len(normals), detector.seed)
    if len(chosen) != len(known) or not np.allclose(np.sort(scores[chosen]), known, rtol=_CLOSE, atol=_CLOSE):
        raise DataError("its calibration is not that of its normals: fit it again")
    single = detector.s.neighbours == 1
    return Ground(normals, units, chosen, scorer, known, further=single, seed=detector.seed)


def apply(detector: Any, lesson: Lesson, about: Mapping[str, Any]) -> None:
    """Gives a model what it was taught.

    Args:
        detector: as for `ground_of`.
        lesson: with a taught part.
        about: kept as `facts_["taught"]`.
    """
    assert lesson.taught is not None
    assert lesson.calibration is not None
    detector.taught_, detector._made = lesson.taught.to(detector.where_), None
    detector.calibration_ = Calibration.of(lesson.calibration)
    detector.facts_ = {**detector.facts_, "taught": dict(about)}


def forget(detector: Any) -> None:
    """Brings back the model as it was fitted.

    Args:
        detector: of any method; unchanged where nothing was taught.
    """
    if detector.taught_ is not None:
        detector.calibration_ = Calibration.of(detector.taught_.calibration)
        detector.taught_, detector._made = None, None
        detector.facts_ = {k: v for k, v in detector.facts_.items() if k not in ("taught", "lineage")}
