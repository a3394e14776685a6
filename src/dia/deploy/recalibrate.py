"""A model folder's calibration, replaced by that of another site's normals, and brought back.

Knows the files of a model folder; knows no method, and trains nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.modelfiles import ModelFiles, write_sums, written
from ..core.storage import Owner
from ..detectors import drift
from ..detectors.calibration import HeatScale
from ..detectors.saving import ABSENT, REPLACED, fitted
from ..detectors.teaching.taught import FILE as TAUGHT
from .scoring import hash_of


@dataclass(frozen=True)
class Taken:
    """A model folder that a command reads and changes; `taken` makes it.

    Args:
        folder: the model folder.
        target: where the result goes: the folder itself, or a place where nothing is.
        hash: of the folder, by `hash_of`, before it was read.
    """

    folder: Path
    target: Path
    hash: str

    @contextmanager
    def edited(self) -> Iterator[Path]:
        """Yields a copy of the folder, which replaces the target whole, with new checksums, or not at all.

        Raises:
            DataError: the folder is another than when it was taken: what was read, and what is copied, may be
                of two models.
        """
        sums = ModelFiles(self.folder).sums
        with written(self.target) as new:
            shutil.copytree(self.folder, new, dirs_exist_ok=True)
            if not self.hash == hash_of(new) == hash_of(self.folder):
                raise DataError(f"{self.folder}: another process changed it meanwhile; run this again")
            yield new
            known = {*(sums or {}), TAUGHT, *REPLACED, *map(fitted, REPLACED)}
            if sums is not None:
                write_sums(new, (name for name in known if (new / name).is_file()))


def calibrate_folder(
    model: Taken,
    scores: np.ndarray,
    references: Mapping[str, drift.Reference],
    about: Mapping[str, Any],
    false_alarm_rate: float,
    heat: HeatScale | None = None,
    n_effective: float | None = None,
) -> None:
    """Gives a model folder another calibration; what the fit found stays in it.

    Args:
        model: the model folder, checked.
        scores: of the normals that the model is calibrated on now, `(n,)`.
        references: the values of the same normals for the test of drift.
        about: facts of the calibration, kept as `facts.calibrated`.
        false_alarm_rate: the rate of the threshold.
        heat: the heatmaps of the same normals; None where the method has none.
        n_effective: how many independent normals tell as much, by `calibration.effective`; n where None.
    """
    with model.edited() as new:
        for name in REPLACED if heat is not None else REPLACED[:-1]:
            if not (first := new / fitted(name)).exists():  # once
                first.write_bytes((new / name).read_bytes() if (new / name).exists() else ABSENT)
        config = json.loads((new / "config.json").read_text())
        config["n_calibration"], config["false_alarm_rate"] = len(scores), false_alarm_rate
        config["n_effective"] = n_effective or float(len(scores))
        # by its first hash marks of the model know it again
        config["facts"] = {"lineage": model.hash} | config["facts"] | {"calibrated": dict(about)}
        (new / "config.json").write_text(json.dumps(config, indent=2))
        held = {"held_out_normal_scores": np.sort(np.asarray(scores, np.float64)).tolist()}
        (new / "calibration.json").write_text(json.dumps(held))
        (new / "drift.json").write_text(json.dumps(drift.to_json(references)))
        if heat is not None:
            (new / "heatmaps.json").write_text(json.dumps(heat.to_json()))


def restore_folder(model: Taken) -> None:
    """Brings back what the fit found, where `calibrate_folder` replaced it.

    Args:
        model: the model folder, checked.

    Raises:
        DataError: the folder has its first calibration, or lost it.
    """
    folder = model.folder
    if not (folder / fitted("calibration.json")).is_file():
        if json.loads((folder / "config.json").read_text())["facts"].get("calibrated"):
            lost = "the calibration of its fit is not in it: an earlier version copied the model without it"
            raise DataError(f"{folder}: {lost}; take the model that it is a copy of, or fit it again")
        raise DataError(f"{folder}: it has the calibration of its fit; there is nothing to bring back")
    with model.edited() as new:
        for name in REPLACED:
            if (first := new / fitted(name)).exists():
                first.replace(new / name)
                if (new / name).read_bytes() == ABSENT:
                    (new / name).unlink()


@contextmanager
def taken(folder: Path, target: Path) -> Iterator[Taken]:
    """Owns the target from before the model is read, so that no change between reading and writing is lost.

    A folder that is read alone is not owned: it may be where nothing can be written, and other processes may
    read it at the same time. `Taken.edited` refuses it if it changed.

    Args:
        folder: the model folder.
        target: the folder itself, or a place where nothing is.

    Raises:
        DataError: another process writes the target, or `target` is another folder that is there already, or
            lies in the model.
    """

    def refuse_existing() -> None:
        if target != folder and target.exists():
            raise DataError(f"--out {target} exists already; choose another")

    if folder.resolve() in target.resolve().parents:
        raise DataError(f"--out {target}: in the model folder {folder}; choose a place outside")
    refuse_existing()
    # where there is no model, reading it says so, and a lock would make the folder around it
    with Owner(target) if folder.is_dir() else nullcontext():
        refuse_existing()  # another process may have written it until now
        yield Taken(folder, target, hash_of(folder))
