"""What is known of the runs in a folder: their states, their models' facts, their scores of normals.

Knows JSON files of models and trainings; loads no model, and imports no torch.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ....detectors.calibration import Calibration
from .jobs import Jobs

_MOST_JSON = 2**24  # bytes of a model's JSON that a list of runs reads


class Runs:
    """The runs of a folder, as the page shows them.

    Args:
        jobs: the trainings.
    """

    def __init__(self, jobs: Jobs):
        self.jobs = jobs
        self._read: dict[Path, tuple[int, dict[str, Any]]] = {}  # models, by the time of their config.json

    def rows(self, serving: str | None) -> list[dict[str, Any]]:
        """Returns a row for each run, the newest first.

        Args:
            serving: the run that is served.
        """
        made = []
        for name in self.jobs.names():
            facts = self.jobs.facts(name)
            state = self.jobs.state(name, facts)
            model = self._model(name) if state == "done" else {}
            about = facts or {}
            source = about.get("source") or {}
            made.append({
                "name": name, "state": state, "serving": name == serving,
                "method": model.get("method") or about.get("method"),
                "normals": model.get("normals") or source.get("images") or None,
                "of": source.get("name") or None,
                "when": about.get("begun") or model.get("when"), "seconds": about.get("seconds"),
                "rate": model.get("rate") or about.get("rate"), "threshold": model.get("threshold"),
                "problem": about.get("problem") if state == "failed" else None,
                "kept": self.jobs.normals_of(name).is_dir(), "report": self.jobs.report_of(name).is_file(),
            })  # fmt: skip
        return sorted(made, key=lambda run: run["when"] or "", reverse=True)

    def _model(self, name: str) -> dict[str, Any]:
        """Returns facts of a model folder, read once; none where it is damaged."""
        folder = self.jobs.runs / name
        try:
            file = folder / "config.json"
            stamp = file.stat().st_mtime_ns
            if (known := self._read.get(folder)) and known[0] == stamp:
                return known[1]
            if max(file.stat().st_size, (folder / "calibration.json").stat().st_size) > _MOST_JSON:
                return {}
            config = json.loads(file.read_bytes())
            scores = json.loads((folder / "calibration.json").read_bytes())["held_out_normal_scores"]
            rate = float(config["false_alarm_rate"])
            calibration = Calibration.of(scores)
            threshold = calibration.threshold(rate)
            made = {
                "method": str(config["method"]), "normals": int(config["n_train"]), "rate": rate,
                "calibrated": len(scores), "threshold": threshold if threshold < float("inf") else None,
                "few": f"none: {len(scores)} scores of normals allow {1 / (len(scores) + 1):.2g} and more",
                "shape": config["shape"],
                "fit_seconds": config["fit_seconds"], "scores": calibration.scores.tolist(),
                "versions": config["facts"].get("versions"), "device": config["facts"].get("device"),
                "patients": config["facts"].get("patients"), "weights": config["facts"].get("weights"),
                "when": datetime.fromtimestamp(stamp / 1e9).astimezone().isoformat(timespec="seconds"),
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        self._read[folder] = stamp, made
        return made

    def facts(self, run: str, serving: str | None) -> dict[str, Any] | None:
        """Returns what is known of a run without any labelled image; None where there is no such run.

        Args:
            run: its name.
            serving: the run that is served.
        """
        rows = {row["name"]: row for row in self.rows(serving)}
        if run not in rows:
            return None
        model = dict(self._model(run))
        scores = model.pop("scores", [])
        stage, curve = self.jobs.curve(run)
        return {**rows[run], **model, "histogram": histogram(scores), "curve": curve, "curve_of": stage}


def histogram(scores: list[float], bins: int = 30) -> list[list[float]]:
    """Returns [from, to, count] of scores, in bins of equal width.

    Args:
        scores: ascending.
        bins: how many.
    """
    if not scores:
        return []
    counts, edges = np.histogram(scores, bins)
    return [[float(a), float(b), int(n)] for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
