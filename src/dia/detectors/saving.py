"""Model folders and finished stages: the contents of their JSON, networks as arrays, the identity of weights.

Knows JSON, numbers, settings and files; builds no detector. Values are checked before anything is made of
their size. A run's identity holds its weights by their contents: two copies of a file are the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..core.allocation import Enough, WorkLimit
from ..core.errors import DataError, printable
from ..core.modelfiles import ModelFiles, check_facts, sha256
from ..core.processes import barrier, is_main, of_all
from ..core.seal import seal, sealed
from ..core.settings import check, flat, from_dict, plain, require
from ..core.storage import locked
from ..core.training import Timed
from ..data.datasets import known_sets
from ..data.options import ReadOptions
from ..features.own import OWN
from ..features.package import LITE
from .drift import Reference, from_json

FORMAT = 1  # of model folders
MAX_SIDE = 8192  # pixels of the images a model takes, and of every size in its settings
MAX_SAMPLES = 1000  # augmentations averaged for one score
MAX_NORMALS = 2**22  # that a test of drift may count, which keeps tables of so many numbers
# the greatest numbers among settings that say what scoring costs, by the last part of their names; lists of
# them may be no longer than the last
_MOST = {"samples": MAX_SAMPLES, "layers": 100, "coupling_blocks": 100, "flow_steps": 100} | dict.fromkeys(
    ("size", "place_size", "map_size", "patch", "kernel", "sigma", "sigmas"), MAX_SIDE
)  # fmt: skip
_MOST_LISTED = 100
_PROBED, _SECONDS, _LARGE = 2**20, 10.0, 2**28  # pixels, seconds and bytes that a probe may cost
DIGESTS = "digests.safetensors"  # of the images that a model was fitted on
REPLACED = ("config.json", "calibration.json", "drift.json", "heatmaps.json")  # by a calibration elsewhere
ABSENT = b"null"  # stands in the place of a file that the fit did not write


@dataclass(frozen=True)
class Config:
    """The object of a model folder's config.json.

    Args:
        format: the version of the folder's format.
        method: the name of the method.
        settings: all settings, nested ones as objects.
        seed: of the fit.
        holdout: share of the normals that was kept from training.
        false_alarm_rate: the default rate of the threshold.
        shape: (height, width, channels) of the images, in pixels.
        n_train: normals trained on.
        n_calibration: normals calibrated on.
        fit_seconds: the time of training.
        facts: whatever the caller wanted the folder to remember; `check_facts` says what may be there.
        revision: of the method's scores.
        settings_hash: of method, revision, settings and hold-out.
        n_effective: independent normals that tell as much as those calibrated on; None in older folders.
    """

    format: int
    method: str
    settings: dict[str, Any]
    seed: int
    holdout: float
    false_alarm_rate: float
    shape: tuple[int, int, int]
    n_train: int
    n_calibration: int
    fit_seconds: float
    facts: dict[str, Any]
    revision: int = 1
    settings_hash: str | None = None
    n_effective: float | None = None

    def __post_init__(self) -> None:
        check(
            self, seed="[0, inf)", holdout="(0, 1)", false_alarm_rate="(0, 1)", shape=f"[1, {MAX_SIDE}]",
            n_train="[0, inf)", n_calibration="[0, inf)", fit_seconds="[0, inf)", revision="[0, inf)",
            n_effective="[1, inf)",
        )  # fmt: skip
        require(self.shape[2] in (1, 3), "shape", f"must end with 1 or 3 channels, not {self.shape[2]}")


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turns every error within it into a `DataError` that names the model folder."""
    try:
        yield
    except DataError as error:
        if str(folder) in str(error):
            raise
        raise DataError(f"{folder}: {error}") from error
    except Exception as error:
        reason = f"no {Path(error.filename).name}" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(
            f"{folder}: not a model folder made by `dia fit` ({' '.join(reason.split())[:200]})"
        ) from error


def read(files: ModelFiles) -> tuple[Config, np.ndarray]:
    """Reads the JSON of a model folder.

    Returns:
        The checked config.json, and the scores of the held-out normals, `(n,)` float64, finite, n ≥ 1.

    Raises:
        DataError: the folder has another format, or a value is missing or of another kind.
    """
    config = files.json("config.json")
    if "format" not in config:
        raise DataError("config.json has no format; not a model folder made by `dia fit`")
    if config["format"] != FORMAT:
        raise DataError(f"format {str(config['format'])[:20]} is not known here; there is {FORMAT}")
    known = {f.name for f in fields(Config)}
    made: Config = from_dict(Config, {k: v for k, v in config.items() if k in known})
    made = replace(made, facts=check_facts(made.facts))
    scores = files.json("calibration.json").get("held_out_normal_scores")
    numbers = isinstance(scores, list) and all(type(v) in (int, float) for v in scores)
    if not scores or not numbers or not np.isfinite(np.array(scores, np.float64)).all():
        raise DataError("calibration.json must list finite held_out_normal_scores")
    if len(scores) != made.n_calibration:
        counted = f"config.json says {made.n_calibration}"
        raise DataError(f"calibration.json lists {len(scores)} held_out_normal_scores, and {counted}")
    return made, np.array(scores, np.float64)


def config_of(folder: Path) -> Config | None:
    """Reads the config.json of a model folder of any method; None where it is no folder of `dia fit`.

    Raises:
        DataError: the folder has another format, or a value is missing, damaged or of another kind.
    """
    if not (folder / "calibration.json").is_file():
        return None
    with naming(folder):
        return read(ModelFiles(folder))[0]


def read_digests(files: ModelFiles) -> np.ndarray:
    """Returns the digests of the images that a model was fitted on, `(M,)` uint64, ascending."""
    found = load_file(files.weights(DIGESTS)).get("digests")
    if found is None or found.dtype != np.uint64 or found.ndim != 1:
        raise DataError(f"{DIGESTS} must hold digests, a list of 64-bit numbers")
    return np.sort(found)


def read_drift(files: ModelFiles) -> dict[str, Reference]:
    """Returns what a model knows of its normals' acquisition, by statistic; empty in folders before it was.

    Raises:
        DataError: a statistic is of more normals than can be counted.
    """
    if not (files.folder / "drift.json").exists():
        return {}
    found = from_json(files.json("drift.json"))
    if too_many := [name for name, reference in found.items() if reference.n > MAX_NORMALS]:
        raise DataError(f"drift.json: {printable(too_many[0])} is of more than {MAX_NORMALS} normals")
    return found


def fitted(name: str) -> str:
    """Returns the name that one of `REPLACED`, as the fit wrote it, has beside the one in its place."""
    return name.replace(".json", ".fitted.json")


def read_fitted(files: ModelFiles) -> dict[str, bytes]:
    """Returns what the fit wrote of `REPLACED`, by the names of `fitted`; nothing where nothing was replaced.

    Raises:
        DataError: a file is damaged, or no JSON object.
    """
    found = {}
    for name in map(fitted, REPLACED):
        if (files.folder / name).exists():
            path = files.path(name)
            if path.stat().st_size != len(ABSENT) or path.read_bytes() != ABSENT:
                files.json(name)
            found[name] = path.read_bytes()
    return found


def training_set(facts: Mapping[str, Any], data_root: str | None, given: str | None = None) -> str | None:
    """Returns the data set that a model was fitted on, if it is a declared one, or one that the caller names.

    Any other place that facts name is opened only where this user's account sealed it: whoever made the
    folder would choose what is read here.

    Args:
        facts: the detector's `facts_`.
        data_root: the caller's folder of known data sets, by default `$DIA_DATA`; that of the facts is not
            looked into.
        given: images that the caller names anyway, as a path or known set.
    """
    name = facts.get("dataset")
    if not isinstance(name, str):
        return None
    if is_own(facts):
        return name
    if given and os.path.abspath(name) == os.path.abspath(given):
        return given
    # a folder here may bear the name of a set
    return name if name in known_sets(data_root) and not os.path.exists(name) else None


def with_reading(
    facts: Mapping[str, Any],
    options: ReadOptions,
    *,
    split: str,
    data_root: str | None,
    contamination: float = 0.0,
) -> dict[str, Any]:
    """Adds to the facts of a fit how its images were read, with a seal on the place that they name.

    Args:
        facts: with `dataset`.
        options: as the images were read.
        split: the split that was read.
        data_root: the folder of known data sets.
        contamination: share of anomalies mixed among the normals.
    """
    read = {"split": split, "normal": options.normal, "data_root": data_root, "contamination": contamination,
            "group_by": options.group_by, **options.kept()}  # fmt: skip
    made = {**facts, "read": read}
    return made | {"read": read | {"sealed": seal(*_sealed(made))}}


def is_own(facts: Mapping[str, Any]) -> bool:
    """Returns whether this user's account wrote these facts: the place that they name may be opened."""
    return sealed((facts.get("read") or {}).get("sealed"), *_sealed(facts))


def _sealed(facts: Mapping[str, Any]) -> list[str | None]:
    read = facts.get("read") or {}
    return [facts.get("dataset"), *(read.get(name) for name in ("split", "normal", "data_root", "group_by"))]


def probe(detector: Any) -> None:
    """Scores one image as far as that costs little, to find arrays that fit neither one another nor settings.

    A few bytes can claim a large image, or settings that make a small one large. So an image of more than
    `_PROBED` pixels, and whatever takes longer than `_SECONDS` or makes a tensor of more than `_LARGE` bytes,
    is left to the first image that is scored.

    Args:
        detector: loaded, all but this.

    Raises:
        ValueError: there is no score, or it is not finite.
    """
    h, w, _ = detector.shape_
    if h * w > _PROBED:
        return
    image = np.resize(np.arange(256, dtype=np.uint8), (1, *detector.shape_))
    with suppress(Enough), WorkLimit(_SECONDS, _LARGE):
        score = detector._predict(image, False, False).score
        if score.shape != (1,) or not np.isfinite(score).all():
            raise ValueError("its weights give no score")


def check_settings(settings: Any) -> None:
    """Refuses settings by which a small image would cost much: sizes, samples, lists above their limits."""
    for name, value in flat(settings).items():
        most = _MOST.get(name.rpartition(".")[2], 2**63)
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > _MOST_LISTED:
            raise DataError(f"settings.{name} lists {len(values)} values; at most {_MOST_LISTED} are read")
        if above := [v for v in values if isinstance(v, int | float) and v > most]:
            raise DataError(f"settings.{name} is {above[0]}; at most {most} is read of a folder")


def module_tensors(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """Returns the state of a network as named arrays, contiguous, since safetensors writes memory as it lies.

    Args:
        module: the network.
        prefix: stands before each name.
    """
    state = module.state_dict()
    return {prefix + k: np.ascontiguousarray(v.detach().cpu().numpy()) for k, v in state.items()}


def load_module(module: torch.nn.Module, tensors: dict[str, np.ndarray], prefix: str) -> None:
    """Loads a state that `module_tensors` returned.

    Args:
        module: the network.
        tensors: arrays by name; those without the prefix are left out.
        prefix: as in `module_tensors`.
    """
    state = {k[len(prefix) :]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
    module.load_state_dict(state)


def identity_of(weights: str) -> str:
    """Returns the identity of weights: a file's by its sha256, `dia:RUN` by how the run was made.

    Weights that are no longer there keep their name.
    """
    if weights in ("none", "imagenet", *LITE):
        return weights
    path = Path(weights.removeprefix(OWN))
    if not weights.startswith(OWN):
        return f"sha256:{sha256_of(path)}" if path.is_file() else weights
    try:
        config = json.loads((path / "config.json").read_text())
        return f"{OWN}{config['settings_hash']}-{config['seed']}-{config['facts']['train_sha256'][:32]}"
    except (OSError, ValueError, KeyError):  # not there, or fitted without such facts
        file = path / "weights.safetensors"
        return f"{OWN}{sha256_of(file)}" if file.is_file() else weights


def sha256_of(file: Path) -> str:
    """Returns sixteen hex digits of a file's sha256."""
    return sha256(file)[:16]


class StageCache:
    """Finished parts of a fit, kept in a folder by the hash of all they depend on.

    Methods that share a part (the dissolver) find it there, and an interrupted fit goes on with it.

    Args:
        workdir: the folder.
        resume: whether training goes on from checkpoints.
        progress: whether progress bars are shown.

    Attributes:
        earlier: seconds that found parts took when they were made.
    """

    def __init__(self, workdir: Path, *, resume: bool = False, progress: bool = False):
        self.workdir, self.resume, self.progress = workdir, resume, progress
        self.earlier = 0.0

    def path(self, name: str, *key: object) -> Path:
        """Returns the folder of a part, by its name and all that it depends on."""
        path = self.workdir / f"{name}-{fingerprint(*key)}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def part(self, path: Path, make: Callable[[], float], load: Callable[[], None]) -> None:
        """Makes a part, or loads it if it was made before; of two fits that want it at once, one waits.

        Args:
            path: the folder of the part.
            make: saves into `path` and returns the seconds it took.
            load: reads from `path`.
        """
        done = path / "done.json"
        with locked(path / "lock") if is_main() else nullcontext():
            if of_all(done.exists())[0]:
                self.earlier += json.loads(done.read_text())["seconds"]
                return load()
            began = time.perf_counter()
            seconds = make()
            self.earlier += max(seconds - (time.perf_counter() - began), 0.0)  # before an interruption
            if is_main():
                temporary = done.with_suffix(".tmp")
                temporary.write_text(json.dumps({"seconds": seconds}))
                temporary.replace(done)
            barrier()

    def trained(self, path: Path, module: Timed, images: int, s: Any, device: str) -> None:
        """Trains a module, or loads it if it was trained before; it ends frozen, in eval mode.

        Its whole state is kept in `path`, so frozen networks that are saved elsewhere should not be part of
        it.

        Args:
            path: the folder of the part.
            module: is trained in place and makes its own batches.
            images: the number of training images.
            s: settings with `epochs`, `steps`, `batch` and `precision`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
        """
        file = path / "trained.safetensors"

        def make() -> float:
            from ..core.running.loop import train

            start = time.perf_counter()
            steps = s.steps or s.epochs * (images // min(s.batch, images))
            train(
                module, steps=steps, workdir=path, resume=self.resume, device=device,
                precision=s.precision, progress=self.progress,
            )  # fmt: skip
            if is_main():
                save_file(module_tensors(module, ""), file)
            return module.seconds_before + time.perf_counter() - start

        self.part(path, make, lambda: load_module(module, load_file(file), ""))
        module.eval().requires_grad_(False)


def fingerprint(*parts: object) -> str:
    """Returns sixteen hex digits of anything that JSON can write, of settings and of arrays."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(repr(part.shape).encode())
            for start in range(0, len(part), 1024):  # a memory map stays one
                h.update(np.ascontiguousarray(part[start : start + 1024]).data)
        else:
            values = plain(part) if is_dataclass(part) and not isinstance(part, type) else part
            h.update(json.dumps(values, sort_keys=True).encode())
    return h.hexdigest()[:16]
