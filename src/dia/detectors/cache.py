"""Finished stages of a fit on disk, found again by what they were made of.

Knows settings, arrays and folders; knows no method.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..core.processes import barrier, is_main, of_all
from ..core.settings import plain
from ..core.storage import locked
from ..core.training import Timed, train
from .saving import load_module, module_tensors


class Stages:
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
