"""`dia fit`: from normal images to a model folder.

Its settings are those of the method and the preset, which are looked for in the command line before there is
a parser. Help that names neither lists no settings, and so needs no method and no torch.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..core.errors import DataError
from ..detectors.calibration import FALSE_ALARM_RATE, HOLDOUT
from .help import ArgumentParser, MarkedParser, parsed
from .options import Device, Output, TrainingImages, err, finite

METHOD = "dia+"  # `detectors.registry.DEFAULT`, for which that module, and torch, would be imported
PRESET = "cpu"


def add_settings(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Adds the settings of the method in the preset that a command line names.

    Args:
        parser: of `dia fit`.
        argv: the words after `fit`; methods and presets of `--config` files count.
    """
    from .main import configured

    files, flags = configured(argv)
    given = {"method": METHOD, "preset": PRESET} | files | flags
    if {"help", "h"} & {w.lstrip("-") for w in argv} and not {"method", "preset"} & {*files, *flags}:
        parser.add_argument(
            "--settings.NAME", metavar="VALUE",
            help=f"one of the method's own settings; `dia fit --method {METHOD} --help` lists them",
        )  # fmt: skip
        return
    from ..detectors.presets import PRESETS, settings
    from ..detectors.registry import detector_class

    with contextlib.suppress(DataError):  # of an unknown method the command itself complains
        cls = detector_class(given["method"]).Settings
        if given["preset"] in PRESETS:
            parser.add_argument(
                "--settings", type=cls, default=settings(cls, given["preset"]), help="the method's own"
            )


@parsed(config=True, parser=MarkedParser, complete=add_settings)
def fit(
    images: TrainingImages,
    *,
    out: str = "runs/model",
    method: str = METHOD,
    preset: str = PRESET,
    seed: int = 0,
    size: int | None = None,
    channels: int | None = None,
    holdout: float = HOLDOUT,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    contamination: float = 0.0,
    weights: str | None = None,
    logger: Literal["none", "csv", "tensorboard", "mlflow"] = "none",
    log_dir: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: Device,
    output: Output,
    settings: Any = None,
) -> None:
    """Train a detector on normal images and calibrate it.

    Of data with labels only the normal images are used. A share of them is held out of training (--holdout),
    so that scores get p-values and a threshold without any anomaly. The model is a folder of JSON and
    safetensors, which says where it comes from.

    With --method or --preset this help lists the settings of that method in that preset; --print_config shows
    all, with the paper's value beside each that differs.

    Args:
        images: what to fit on.
        out: folder of the fitted model
        method: a name of `dia methods`, or anomalib:NAME for any other image model of anomalib
        preset: named settings: cpu (minutes on two cores), gpu (for one accelerator), paper (as published)
        seed: decides the hold-out, the first weights and every random draw
        size: read images as squares of this side (default: as they are, shrunk to the preset's side)
        channels: 1 or 3 (default: as the images are)
        holdout: share of the normals kept for calibration
        false_alarm_rate: share of normal images that the model's threshold flags at most, on average
        contamination: share of anomalies mixed, unmarked, among the normals: to see what they cost
        weights: where a method that has pretrained weights starts from: imagenet (fetched by timm from the
            Hugging Face hub, then cached), a file, none (random), or dia:RUN; short for --settings.weights
        logger: records losses and learning rates during training; the last two need the extra `tracking`
        log_dir: where the logger writes; default: OUT.logs
        resume: go on with an interrupted fit of the same --out
        overwrite: replace a model that is already there
        device: where to train.
        output: how to print the result.
        settings: the method's own.

    Examples:
        dia fit scans/normal --out runs/mine
        dia fit scans --normal healthy --size 64 --out runs/mine --resume
        dia fit pneumoniamnist --data_root data --method csi --seed 1 --out runs/csi
        dia fit scans/normal --settings.dissolver.steps 2000 --print_config
        torchrun --nproc_per_node 4 $(which dia) fit scans/normal --out runs/mine
    """
    from ..benchmark.runs import facts_of
    from ..core.processes import barrier, is_main, join_processes
    from ..core.settings import replaced
    from ..core.tracking import check_logger, tracking
    from ..detectors.presets import MAX_SIZE, PRESETS
    from ..detectors.registry import detector_class

    check_logger(logger)
    join_processes()
    err.quiet = not is_main()
    cls = detector_class(method)
    if preset not in PRESETS:
        raise DataError(f"--preset {preset} is not known; there are: {', '.join(PRESETS)}")
    if weights and not hasattr(settings, "weights"):
        raise DataError(f"--weights: {method} starts from no other network; leave the flag out")
    given = replaced(settings, {"weights": weights}) if weights else settings
    if not 0 < holdout < 1:
        raise DataError(f"--holdout must lie between 0 and 1, not {holdout}")
    target = Path(out)
    if target.exists() and not (target / "config.json").exists():
        raise DataError(f"{target} exists and is not a model; choose another --out")
    if (target / "config.json").exists() and not overwrite:
        if resume:
            err.print(f"{target} is complete; nothing to resume")
            return
        raise DataError(f"{target} holds a model already; choose another --out, or --overwrite it")
    read = images.read(size=size, max_size=MAX_SIZE[preset], channels=channels)
    normals = read.normals()
    if contamination:
        normals = normals.contaminated(read.anomalies(), contamination, seed)
    if len(read) and not len(normals):
        raise DataError(
            f"{images.data}: no image of split {images.split} is normal; see --normal and --split"
        )
    left = len(read) - len(normals)
    left_out = f" ({left} anomalous ones left out)" if left else ""
    if contamination:
        left_out += f", of which {contamination:.3g} are anomalous and not marked"
    err.print(f"{method}: fitting on {len(normals)} normal images{left_out}", highlight=False)
    work = target.with_name(f".{target.name}.work")
    if not resume and is_main():
        shutil.rmtree(work, ignore_errors=True)
    barrier()
    detector = cls(given, seed=seed, device=device.device, holdout=holdout, false_alarm_rate=false_alarm_rate)
    detector.facts_ = facts_of(detector, images.data, preset, normals) | {
        "read": {
            "split": images.split,
            "normal": images.normal,
            "data_root": images.data_root,
            "contamination": contamination,
            **images.options().kept(),
        }
    }
    about = {"method": method, "preset": preset, "settings_hash": detector.settings_hash()}
    with tracking(logger, log_dir or f"{target}.logs", run=target.name, about=about):
        detector.fit(normals, workdir=work, resume=resume, progress=sys.stderr.isatty())
    if not is_main():
        return
    detector.save(target)
    shutil.rmtree(work, ignore_errors=True)
    output.show({
        "run": str(target), "method": method, "n_train": detector.n_train_,
        "n_calibration": detector.n_calibration_, "fit_seconds": round(detector.fit_seconds_, 1),
        "threshold": finite(detector.threshold()), "false_alarm_rate": false_alarm_rate,
    })  # fmt: skip
