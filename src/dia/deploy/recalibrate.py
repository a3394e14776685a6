"""A model folder's calibration, replaced by that of another site's normals, and brought back.

Knows the files of a model folder; knows no method, and trains nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.modelfiles import ModelFiles, write_sums, written
from ..core.storage import Owner
from ..detectors import drift
from ..detectors.calibration import HeatScale
from ..detectors.teaching.taught import FILE as TAUGHT
from .scoring import hash_of

_REPLACED = ("config.json", "calibration.json", "drift.json", "heatmaps.json")


def _keep_first(new: Path, name: str) -> None:
    """Copies a file as the fit wrote it, once."""
    first = new / name.replace(".json", ".fitted.json")
    if (new / name).exists() and not first.exists():
        shutil.copyfile(new / name, first)


def calibrate_folder(
    folder: Path,
    target: Path,
    scores: np.ndarray,
    references: Mapping[str, drift.Reference],
    about: Mapping[str, Any],
    false_alarm_rate: float,
    heat: HeatScale | None = None,
) -> None:
    """Gives a model folder another calibration; what the fit found stays in it.

    Args:
        folder: the model folder, checked.
        target: where the result goes: the folder itself, or a place where nothing is.
        scores: of the normals that the model is calibrated on now, `(n,)`.
        references: the values of the same normals for the test of drift.
        about: facts of the calibration, kept as `facts.calibrated`.
        false_alarm_rate: the rate of the threshold.
        heat: the heatmaps of the same normals; None where the method has none.
    """
    lineage = hash_of(folder)  # by which marks of the model know it again
    with edited(folder, target) as new:
        for name in _REPLACED if heat is not None else _REPLACED[:-1]:
            _keep_first(new, name)
        config = json.loads((new / "config.json").read_text())
        config["n_calibration"], config["false_alarm_rate"] = len(scores), false_alarm_rate
        config["facts"] = {"lineage": lineage} | config["facts"] | {"calibrated": dict(about)}
        (new / "config.json").write_text(json.dumps(config, indent=2))
        held = {"held_out_normal_scores": np.sort(np.asarray(scores, np.float64)).tolist()}
        (new / "calibration.json").write_text(json.dumps(held))
        (new / "drift.json").write_text(json.dumps(drift.to_json(references)))
        if heat is not None:
            if not (new / "heatmaps.json").exists():  # an older folder: the fit found none
                (new / "heatmaps.fitted.json").write_text("null")
            (new / "heatmaps.json").write_text(json.dumps(heat.to_json()))


def restore_folder(folder: Path, target: Path) -> None:
    """Brings back what the fit found, where `calibrate_folder` replaced it.

    Args:
        folder: the model folder, checked.
        target: as for `calibrate_folder`.

    Raises:
        DataError: the folder has its first calibration.
    """
    if not (folder / "calibration.fitted.json").is_file():
        raise DataError(f"{folder}: it has the calibration of its fit; there is nothing to bring back")
    with edited(folder, target) as new:
        for name in _REPLACED:
            if (first := new / name.replace(".json", ".fitted.json")).exists():
                none = first.read_text() == "null"
                first.replace(new / name)
                if none:
                    (new / name).unlink()


@contextmanager
def taken(folder: Path, target: Path) -> Iterator[None]:
    """Owns the target from before the model is read, so that no change between reading and writing is lost.

    Args:
        folder: the model folder.
        target: the folder itself, or a place where nothing is.

    Raises:
        DataError: another process writes the target, or `target` is another folder that is there already.
    """

    def refuse_existing() -> None:
        if target != folder and target.exists():
            raise DataError(f"--out {target} exists already; choose another")

    refuse_existing()
    # where there is no model, reading it says so, and a lock would make the folder around it
    with Owner(target) if folder.is_dir() else nullcontext():
        refuse_existing()  # another process may have written it until now
        yield


@contextmanager
def edited(folder: Path, target: Path) -> Iterator[Path]:
    """Yields a copy of a folder, which replaces the target whole, with new checksums, or not at all.

    Args:
        folder: the model folder, checked.
        target: the folder itself, or a place where nothing is.
    """
    sums = ModelFiles(folder).sums
    with written(target) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        yield new
        known = {
            *(sums or {}),
            TAUGHT,
            *(f"{n[:-5]}{kind}.json" for n in _REPLACED for kind in ("", ".fitted")),
        }
        if sums is not None:
            write_sums(new, (name for name in known if (new / name).is_file()))
