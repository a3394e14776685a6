"""Model folders and finished stages: what their JSON must hold, networks as arrays, what weights are.

Knows JSON, numbers, settings and files; builds no detector. Values are checked before anything is made of
their size. A run's identity holds its weights by what they are: two copies of a file are the same weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ..core.errors import DataError
from ..core.modelfiles import ModelFiles
from ..core.processes import barrier, is_main, of_all
from ..core.settings import flat, plain
from ..core.storage import locked
from ..core.training import Timed, train

MAX_SIDE = 8192  # pixels: of the images a model takes, and of every size in its settings
MAX_SAMPLES = 1000  # augmentations averaged for one score


class Saved(NamedTuple):
    """Both files, checked.

    Args:
        config: the object of config.json.
        scores: `(n,)` float64 of the held-out normals, finite, n ≥ 1.
    """

    config: dict[str, Any]
    scores: np.ndarray


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda v: isinstance(v, str), "a name"),
    "revision": (lambda v: _whole(v, 0), "a whole number"),
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "settings_hash": (lambda v: v is None or isinstance(v, str), "text"),
    "seed": (lambda v: _whole(v, 0), "a whole number from 0"),
    "holdout": (lambda v: _number(v) and 0 < v < 1, "a share between 0 and 1"),
    "false_alarm_rate": (lambda v: _number(v) and 0 < v < 1, "a share between 0 and 1"),
    "shape": (
        lambda v: isinstance(v, list) and list(map(_side, v)) == [True] * 3 and v[2] in (1, 3),
        f"[height, width, 1 or 3] of at most {MAX_SIDE} pixels a side",
    ),
    "n_train": (lambda v: _whole(v, 0), "a whole number"),
    "n_calibration": (lambda v: _whole(v, 0), "a whole number"),
    "fit_seconds": (lambda v: _number(v) and v >= 0, "a number of seconds"),
    "facts": (lambda v: isinstance(v, dict), "an object"),
}  # fmt: skip
_OPTIONAL = ("revision", "settings_hash")


def read(files: ModelFiles, known_format: int) -> Saved:
    """What a folder says of its model.

    Raises:
        DataError: another format, or something missing or of another kind.
    """
    config, where = files.json("config.json"), f"{files.folder}: config.json"
    if "format" not in config:
        raise DataError(f"{where} has no format; not a model folder made by `dia fit`")
    if config["format"] != known_format:
        raise DataError(
            f"{files.folder}: format {str(config['format'])[:20]} is not known here; there is {known_format}"
        )
    for name, (holds, what) in _FIELDS.items():
        if name not in config and name in _OPTIONAL:
            continue
        if name not in config or not holds(config[name]):
            raise DataError(f"{where}: {name} must be {what}")
    scores = files.json("calibration.json").get("held_out_normal_scores")
    if not isinstance(scores, list) or not scores or not all(map(_number, scores)):
        raise DataError(f"{files.folder}: calibration.json must list finite held_out_normal_scores")
    return Saved(config, np.array(scores, np.float64))


def config_of(folder: Path, known_format: int) -> dict[str, Any]:
    """What a model folder says of its model, of any method; empty where it is no folder of `dia fit`.

    Args:
        folder: of a model, of `dia fit` or not.
        known_format: the format that is read.

    Returns:
        The object of config.json, checked.

    Raises:
        DataError: another format, something missing or of another kind, or a damaged file.
    """
    if not (folder / "calibration.json").is_file():
        return {}
    try:
        return read(ModelFiles(folder), known_format).config
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: not a model folder made by `dia fit` ({reason})") from error


def check_settings(files: ModelFiles, settings: Any) -> None:
    """Refuses settings by which a small image would cost much: sizes and samples above their limits."""
    for name, value in flat(settings).items():
        most = {"size": MAX_SIDE, "samples": MAX_SAMPLES}.get(name.rpartition(".")[2])
        if most is not None and isinstance(value, int) and value > most:
            raise DataError(f"{files.folder}: settings.{name} is {value}; at most {most} is read of a folder")


def _whole(value: Any, least: int, most: int = 2**63 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _side(value: Any) -> bool:
    return _whole(value, 1, MAX_SIDE)


def _number(value: Any) -> bool:
    """A finite number; JSON's whole ones may be larger than any float."""
    return type(value) in (int, float) and abs(value) <= 1e300


def module_tensors(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The state of a network as named arrays, contiguous: safetensors writes memory as it lies."""
    state = module.state_dict()
    return {prefix + k: np.ascontiguousarray(v.detach().cpu().numpy()) for k, v in state.items()}


def load_module(module: torch.nn.Module, tensors: dict[str, np.ndarray], prefix: str) -> None:
    """Puts such a state back."""
    state = {k[len(prefix) :]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
    module.load_state_dict(state)


OWN = "dia:"  # before the folder of a fitted csi or dia, whose encoder is meant


def identity_of(weights: str) -> str:
    """What weights are, wherever they lie: a file by its sha256, `dia:RUN` by how the run was made.

    What is no longer there keeps its name.
    """
    if weights in ("none", "imagenet"):
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
    """Sixteen hex digits of a file's sha256."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


class StageCache:
    """Finished parts of a fit, kept in a folder by the hash of all they depend on.

    Methods that share a part (the dissolver) find it there, and an interrupted fit goes on with it.
    """

    def __init__(self, workdir: Path, *, resume: bool = False, progress: bool = False):
        self.workdir, self.resume, self.progress = workdir, resume, progress
        self.earlier = 0.0  # seconds spent on found parts when they were made

    def path(self, name: str, *key: object) -> Path:
        """The folder of this part."""
        path = self.workdir / f"{name}-{fingerprint(*key)}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def part(self, path: Path, make: Callable[[], float], load: Callable[[], None]) -> None:
        """Runs `make`, which saves into `path` and returns its seconds; or `load` if that was done before.

        Of two fits that want the same part at once, one waits for the other.
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
        """Trains `module` as settings with `epochs`, `batch` and `precision` say; or finds it trained.

        Its whole state is kept in `path`, so frozen networks that are saved elsewhere should not be part of
        it. It ends frozen, in eval mode.

        Args:
            path: of the part.
            module: trained in place; makes its own batches.
            images: their number.
            s: the method's settings.
            device: as in the detector.
        """
        file = path / "trained.safetensors"

        def make() -> float:
            start = time.perf_counter()
            train(
                module,
                steps=s.epochs * (images // min(s.batch, images)),
                workdir=path,
                resume=self.resume,
                device=device,
                precision=s.precision,
                progress=self.progress,
            )
            if is_main():
                save_file(module_tensors(module, ""), file)
            return module.seconds_before + time.perf_counter() - start

        self.part(path, make, lambda: load_module(module, load_file(file), ""))
        module.eval().requires_grad_(False)


def fingerprint(*parts: object) -> str:
    """Sixteen hex digits of anything JSON can write, and of arrays."""
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
