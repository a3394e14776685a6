"""A fit from read images to a model folder: its facts, its curves, its checkpoints, and their end.

`dia fit` and the trainings of the reading room share it. Knows a detector and images; knows no option of a
command line, and no page.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..core.processes import barrier, is_main
from ..core.storage import Owner
from ..core.tracking import tracking
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..detectors import Detector
from ..detectors.saving import with_reading
from .runs import facts_of


def work_of(target: Path) -> Path:
    """Returns where a fit keeps its finished parts and checkpoints until the model is saved."""
    return target.with_name(f".{target.name}.work")


def logs_of(target: Path) -> Path:
    """Returns where the curves of a fit are logged, unless a user names another place."""
    return target.with_name(f"{target.name}.logs")


def fit_into(
    target: Path,
    detector: Detector,
    normals: ImageSet,
    reading: ReadOptions,
    *,
    dataset: str,
    preset: str,
    split: str,
    data_root: str | None,
    contamination: float = 0.0,
    resume: bool = False,
    logger: str = "none",
    log_dir: str | None = None,
    owner: Owner | None = None,
) -> None:
    """Fits a detector and saves it; interrupted, it goes on where it stopped.

    Args:
        target: the model folder.
        detector: not fitted.
        normals: what it is fitted on.
        reading: how they were read.
        dataset: the path or known set that they are from.
        preset: of the detector's settings.
        split: that was read.
        data_root: the folder of known data sets.
        contamination: share of anomalies mixed among the normals.
        resume: whether to go on from what an earlier fit of the same target left.
        logger: of the curves, as for `tracking`.
        log_dir: where it writes; beside the model where None.
        owner: of the target, in the process that writes; None in others, which save nothing.

    Raises:
        DataError: the images do not suit the method, or another process has taken the target over.
        TrainingError: training cannot go on.
        Stopped: the process was asked to stop; the same call with `resume` goes on.
    """
    work = work_of(target)
    if not resume and is_main():
        shutil.rmtree(work, ignore_errors=True)
    barrier()
    detector.facts_ = with_reading(
        facts_of(detector, dataset, preset, normals), reading, split=split, data_root=data_root,
        contamination=contamination,
    )  # fmt: skip
    about = {"method": detector.method, "preset": preset, "settings_hash": detector.settings_hash()}
    with tracking(logger, log_dir or logs_of(target), run=target.name, about=about):
        detector.fit(normals, workdir=work, resume=resume, progress=True)
    if owner is None:
        return
    owner.check()
    detector.save(target)
    shutil.rmtree(work, ignore_errors=True)
