"""What a page is told: of the model in use, of the cases of a session, of marks. Knows no request."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...data.formats.windowing import PRESETS
from ...deploy.predictor import Inferencer
from ...detectors.teaching.order import next_to_mark
from ...report.constants import LIMITS
from ...report.pictures import COLOURS
from .base import Room
from .cases import Cases
from .images.case import Case
from .mark import Key, Mark
from .store import Marks

_MOST = 2000  # scores of normals, evenly spaced, that a histogram needs
_COLOURS = (COLOURS(np.linspace(0, 1, 256))[:, :3] * 255).astype(int).tolist()


def state_of(room: Room) -> dict[str, Any]:
    """Returns facts of the model, the scores of its calibration normals, colours, presets and limits.

    Args:
        room: the shared parts.

    Raises:
        Refused: the model is still being loaded (503).
    """
    made: dict[str, Any] = {
        "model": None, "rate": None, "calibration": [], "heat_scale": None, "heat_level": None,
        "colours": _COLOURS, "dissolve": None, "neighbours": "no model is served", "can_train": True,
        "presets": [
            {"name": name, "low": center - width / 2, "high": center + width / 2}
            for name, (center, width) in PRESETS.items()
        ],
        "limits": vars(room.limits), "limits_text": LIMITS,
    }  # fmt: skip
    if not room.current.there:
        return made
    served = room.current.get()
    inferencer = served.inferencer
    scores = np.sort(inferencer.detector.calibration_.scores)
    if len(scores) > _MOST:
        scores = scores[np.linspace(0, len(scores) - 1, _MOST).astype(int)]
    about = inferencer.about()
    return made | {
        "model": about | {"number": served.number, "taught": about.get("taught")},
        "rate": inferencer.rate,
        "calibration": scores.tolist(),
        "heat_scale": inferencer.heat_scale,
        "heat_level": _heat_level(inferencer, inferencer.rate),
        "dissolve": {"t_max": inferencer.t_max - 1} if inferencer.can_dissolve else None,
        "neighbours": inferencer.why_no_normals or True,
    }


def threshold_of(inferencer: Inferencer, rate: float) -> dict[str, Any]:
    """Returns what a rate of false alarms means.

    Args:
        inferencer: the model.
        rate: in (0, 1).

    Returns:
        `threshold` of scores (None where the normals are too few), `smallest` rate that can be had, `n`
        normals, `heat_level`, and all of it in words.

    Raises:
        DataError: another rate.
    """
    n = len(inferencer.detector.calibration_.scores)
    found, smallest = inferencer.threshold(rate), math.ceil(1000 / (n + 1) - 1e-9) / 1000
    if math.isfinite(found):
        words = f"about {100 * rate:.3g} % of normal images are flagged by mistake, learned from {n} of them"
    else:
        words = (
            f"nothing is flagged: {n} held-out normals cannot tell a rate of {100 * rate:.3g} %; "
            f"the smallest is {100 * smallest:.3g} %"
        )
    return {
        "rate": rate, "threshold": found if math.isfinite(found) else None, "smallest": smallest, "n": n,
        "heat_level": _heat_level(inferencer, rate), "words": words,
    }  # fmt: skip


def _heat_level(inferencer: Inferencer, rate: float) -> float | None:
    heat = inferencer.detector.heat_
    level = math.inf if heat is None else heat.level(rate)
    return level if math.isfinite(level) else None


def listed(cases: Cases, marks_of_all: Marks, me: str) -> list[dict[str, Any]]:
    """Returns the cases of a session as its list shows them, in the order they came.

    Args:
        cases: of the session.
        marks_of_all: of all readers.
        me: the session's reader.

    Raises:
        DataError: the marks cannot be read.
    """
    every = cases.all()
    marks: dict[str, list[Mark]] = {}
    for case, mark in cases.with_marks(marks_of_all):
        marks.setdefault(case.id, []).append(mark)
    mine = {id: next((m for m in own if m.key.reader == me), None) for id, own in marks.items()}
    made = [
        told(case, own, len(marks.get(case.id, ())) - (own is not None), me)
        for case in every
        for own in [mine.get(case.id)]
    ]
    if every:
        inferencer = every[-1].now.served.inferencer
        scores = np.array([case.now.score for case in every])
        done = np.array([bool((own := mine.get(case.id)) and own.verdict) for case in every])
        for rank, i in enumerate(next_to_mark(scores, inferencer.threshold(inferencer.rate), done), 1):
            made[i]["next"] = rank
    return made


def told(case: Case, mine: Mark | None, others: int, me: str) -> dict[str, Any]:
    """Returns a case as the list shows it.

    Args:
        case: the case.
        mine: the mark of who asks.
        others: marks of other readers.
        me: who asks.
    """
    judged = case.now
    return {
        "id": case.id, "name": case.name, "images": len(case.slices), "shape": case.shape,
        "score": judged.score, "p_value": judged.p_value, "worst": case.numbers[judged.worst],
        "mark": mine and mark_told(mine, me), "others": others, "next": None,
    }  # fmt: skip


def mark_told(mark: Mark, me: str) -> dict[str, Any]:
    """Returns a mark as pages show it.

    Args:
        mark: of any reader.
        me: who asks.
    """
    return {
        "reader": mark.key.reader, "verdict": mark.verdict, "note": mark.note,
        "boxes": mark.boxes_told(), "flagged": mark.flagged, "rate": mark.rate,
        "score": mark.score, "p_value": mark.p_value, "time": mark.time, "mine": mark.key.reader == me,
    }  # fmt: skip


def unmarked(case: Case) -> Mark:
    """Returns the mark of nobody that says nothing, at the model's own rate of false alarms."""
    key = Key(case.now.lineage, case.now.sha256, "")
    seen = case.seen(case.now.served.inferencer.rate)
    return Mark(
        key, "", "", (), seen.worst, seen.images[seen.worst], len(case.slices), case.shape, seen.flagged,
        seen.rate, seen.score, seen.p_value, seen.model, "", 0, seen.numbers,
    )  # fmt: skip
