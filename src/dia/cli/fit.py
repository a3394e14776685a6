"""`dia fit`: from normal images to a model folder, and its printed configuration.

The settings depend on the method and the preset, which are looked up in the command line before there is a
parser. Help that names neither lists no settings, and so needs no method and no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from jsonargparse.typing import NonNegativeInt

from ..core.errors import DataError
from ..core.settings import differences, from_dict, plain, replaced
from ..core.storage import Owner
from ..detectors.calibration import FALSE_ALARM_RATE, HOLDOUT
from .help import ArgumentParser, configured
from .options import (
    Device,
    Output,
    Preset,
    Share,
    TrainingImages,
    err,
    finite,
    remark,
    remark_no_threshold,
    remark_skipped,
)  # fmt: skip

METHOD = "dia+"  # `detectors.registry.DEFAULT`, for which that module, and torch, would be imported
PRESET: Preset = "cpu"
_HELD_OUT, _RATE = Share(HOLDOUT), Share(FALSE_ALARM_RATE)


def _add_settings(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Adds the settings of the method in the preset that a command line or its `--config` files name."""
    named = configured(argv, "method", "preset")
    if not named and {"-h", "--help"} & {*argv}:
        parser.add_argument(
            "--settings.NAME", metavar="VALUE",
            help=f"one of the method's own settings; `dia fit --method {METHOD} --help` lists them",
        )  # fmt: skip
        return
    from ..detectors.presets import settings
    from ..detectors.registry import detector_class

    preset = named.get("preset", PRESET)
    parser.printed = _marked
    with contextlib.suppress(DataError):  # the command itself refuses an unknown method
        cls = detector_class(named.get("method", METHOD)).Settings
        if preset in get_args(Preset):
            parser.add_argument(
                "--settings", type=cls, default=settings(cls, preset), help="the method's own"
            )


class _Dumper(yaml.SafeDumper):
    """Writes lists in one line."""


for _kind in (list, tuple):
    _Dumper.add_representer(
        _kind, lambda dumper, v: dumper.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True)
    )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the dotted name and the line of YAML of each entry of a configuration."""
    path: list[str] = []
    for line in yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=float("inf")).splitlines():
        key = line.partition(":")[0]
        path[(len(key) - len(key.lstrip())) // 2 :] = [key.strip()]
        yield ".".join(path), line


def _marked(text: str) -> str:
    """Returns a configuration with the paper's value as a comment on each setting that differs from it."""
    from ..detectors.presets import settings
    from ..detectors.registry import detector_class

    config = yaml.safe_load(text)
    if "settings" not in config:
        return text
    cls = detector_class(str(config["method"])).Settings
    used = from_dict(cls, config["settings"])
    idle = used.idle() if hasattr(used, "idle") else ()  # settings that do nothing are not printed
    own, paper = (
        {name: value for name, value in plain(s).items() if name not in idle}
        for s in (used, settings(cls, "paper"))
    )
    published, lines, differ = dict(_entries({"settings": paper})), [], 0
    for name, line in _entries(config | {"settings": own}):
        if published.get(name, line) != line:
            items = published[name].partition(": ")[2].split(", ")
            shown = items if len(items) < 9 else [*items[:2], "…", items[-1]]
            line, differ = f"{line}  # paper: {', '.join(shown)}", differ + 1
        lines.append(line)
    count = f"{differ} settings differ from the paper's configuration" if differ else "as published"
    return "\n".join([f"# {config['method']}: {count}", *lines, ""])


def _refuse_idle(settings: Any, preset: Preset) -> None:
    """Refuses settings that were changed and do nothing, as the others stand."""
    from ..detectors.presets import settings as of_preset

    idle = settings.idle() if hasattr(settings, "idle") else ()
    for name in differences(settings, of_preset(type(settings), preset)) if idle else ():
        if any(name == each or name.startswith(f"{each}.") for each in idle):
            raise DataError(f"--settings.{name} does nothing as the other settings stand; leave it out")


def fit(
    images: TrainingImages,
    *,
    out: str = "runs/model",
    method: str = METHOD,
    preset: Preset = PRESET,
    seed: NonNegativeInt = 0,
    size: int | None = None,
    channels: int | None = None,
    holdout: Share = _HELD_OUT,
    false_alarm_rate: Share = _RATE,
    contamination: float = 0.0,
    weights: str | None = None,
    logger: Literal["none", "csv", "tensorboard", "mlflow"] = "none",
    log_dir: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: Device,
    output: Output,
    settings: Annotated[Any, _add_settings] = None,
) -> None:
    """Train a detector on normal images and calibrate it.

    Only the normal images of labelled data are used. A share of them is held out of training (--holdout), so
    that scores get p-values and a threshold without any anomaly. The model is a folder of JSON and
    safetensors, which records its origin.

    With --method or --preset this help lists the settings of that method in that preset; --print-config shows
    all options, with the paper's value as a comment where it differs.

    Args:
        images: what to fit on.
        out: folder of the fitted model
        method: a name of `dia methods`, or anomalib:NAME for any other image model of anomalib
        preset: named settings: cpu (minutes on two cores), gpu (for one accelerator), paper (as published)
        seed: decides the hold-out, the first weights and every random draw
        size: side in pixels of the squares to which images are resized (default: their own size, shrunk to
            the method's longest side: 1024 for dia+, else the preset's)
        channels: 1 or 3 (default: as the images are)
        holdout: share of the normals held out, half of it for p-values and threshold, half for the scale of
            scores; dia+ holds none out
        false_alarm_rate: share of normal images that the model's threshold flags at most, on average, as 0.05
            or 5%
        contamination: share of anomalies mixed among the normals as if normal, to measure their cost
        weights: first weights of a method that has pretrained ones: lite0 (EfficientNet-Lite0, a package),
            imagenet (fetched by timm from the Hugging Face hub, then cached), a file, none (random), or
            dia:RUN; short for --settings.weights
        logger: records losses and learning rates during training; the last two need the extra `tracking`
        log_dir: where the logger writes; default: OUT.logs
        resume: continue an interrupted fit of the same --out
        overwrite: replace a model that is already there
        device: where to train.
        output: how to print the result.
        settings: the method's own.

    Examples:
        dia fit scans/normal --out runs/mine
        dia fit scans --normal healthy --size 64 --out runs/mine --resume
        dia fit pneumoniamnist --data-root data --method csi --seed 1 --out runs/csi
        dia fit scans/normal --settings.dissolver.steps 2000 --print-config
        torchrun --nproc_per_node 4 $(which dia) fit scans/normal --out runs/mine
    """
    from ..benchmark.fitting import fit_into
    from ..core.processes import choose_device, is_main, join_processes
    from ..core.tracking import check_logger
    from ..detectors.presets import longest_side
    from ..detectors.registry import detector_class

    check_logger(logger)
    join_processes()
    err.quiet = err.quiet or not is_main()
    cls = detector_class(method)
    if cls.leaves_one_out and holdout != _HELD_OUT:
        raise DataError(
            f"--holdout does nothing for {method}, which judges each normal by the others; leave it out"
        )
    if weights and not hasattr(settings, "weights"):
        raise DataError(f"--weights: {method} starts from no other network; leave the flag out")
    given = replaced(settings, {"weights": weights}) if weights else settings
    choose_device(device.device)  # refused before anything is read
    _refuse_idle(given, preset)
    if not 0 <= contamination < 1:
        raise DataError(f"--contamination must lie in [0, 1), not {contamination}")
    target = Path(out)
    with Owner(target) if is_main() else contextlib.nullcontext() as owner:
        if target.exists() and not (target / "config.json").exists():
            raise DataError(f"{target} exists and is not a model; choose another --out")
        if target.exists() and resume and not overwrite:
            return remark(f"{target} is complete; nothing to resume")
        if target.exists() and not overwrite:
            raise DataError(f"{target} holds a model already; choose another --out, or --overwrite it")
        listing = images.listing(size=size, max_size=longest_side(cls.Settings, preset), channels=channels)
        read = listing.read()
        remark_skipped(read.skipped)
        normals = read.normals()
        if contamination:
            normals = normals.contaminated(read.anomalies(), contamination, seed)
        if len(read) and not len(normals):
            raise DataError(
                f"{images.data}: no image of split {images.split} is normal; see --normal and --split"
            )
        left = len(read) - len(normals)
        left_out = f" ({left} anomalous ones left out)" if left else ""
        mixed = f"; a share of {contamination:.3g} of them is anomalous" if contamination else ""
        of = f" of {n} patient{'s' * (n != 1)}" if (n := normals.n_patients) else ""
        remark(f"{method}: fitting on {len(normals)} normal images{of}{left_out}{mixed}")
        if ":" in (levels := listing.reading.levels or ""):
            remark(
                f"grey levels: black is {levels.replace(':', ', white ')}, learned from the normals and kept "
                "in the model; --window sets others"
            )
        if listing.set_aside:
            remark(
                f"{listing.set_aside} normal images are set aside, to judge the model on; --split all takes "
                "them too"
            )
        detector = cls(
            given, seed=seed, device=device.device, holdout=holdout, false_alarm_rate=false_alarm_rate
        )
        fit_into(
            target, detector, normals, listing.reading, dataset=images.data, preset=preset,
            split=images.split, data_root=images.data_root, contamination=contamination, resume=resume,
            logger=logger, log_dir=log_dir, owner=owner,
        )  # fmt: skip
        if owner is None:
            return None
        remark_no_threshold(detector, false_alarm_rate)
        return output.show({
            "run": str(target), "method": method, "n_train": detector.n_train_,
            "n_calibration": detector.n_calibration_, "fit_seconds": round(detector.fit_seconds_, 1),
            "threshold": finite(detector.threshold()), "false_alarm_rate": false_alarm_rate,
        })  # fmt: skip
