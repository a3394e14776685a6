"""Where images are decoded and scored, batch by batch and in order: in this process, or in Ray actors.

Knows listings and detectors; knows nothing of rows or files of scores. Ray is imported only here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.cluster import last_line, start_ray
from ..core.errors import DataError
from ..core.modelfiles import READ, STRESS
from ..data.imageset import ImageSet
from ..data.readers import Listing
from ..detectors.drift import acquisition

if TYPE_CHECKING:
    from ..detectors import Detector
    from .onnx_model import OnnxModel

_IN_FLIGHT = 2  # batches per actor: one to score, one to follow at once


@dataclass(frozen=True)
class Job:
    """What to score, and how.

    Args:
        run: the model folder or exported file, which every machine that scores must be able to read.
        detector: the same, loaded.
        listing: the images, which those machines must be able to read too.
        start: images done before.
        batch: images scored at a time.
        heatmaps: make them too.
        device: of each model.
        workers: decoding threads; Ray's actors decode for themselves.
        address: of a Ray cluster; Ray is started on this machine where None.
    """

    run: str
    detector: Detector | OnnxModel
    listing: Listing
    start: int = 0
    batch: int = 512
    heatmaps: bool = False
    device: str = "auto"
    workers: int | None = None
    address: str | None = None


class Scored(NamedTuple):
    """One batch: names, `(N,)` scores, `(N, H, W)` heatmaps if asked for, and a line per skipped file.

    And the `(N, D)` statistics of `data.acquisition`, where the model keeps those of its normals.
    """

    names: Sequence[str]
    scores: np.ndarray
    heatmaps: np.ndarray | None
    skipped: Sequence[str]
    acquisition: np.ndarray | None


def load_model(run: str, *, device: str = "auto") -> Detector | OnnxModel:
    """The detector of a folder, or what `dia export` made of one, which takes no torch."""
    if Path(run).suffix == ".onnx":
        from .onnx_model import OnnxModel

        return OnnxModel(run, device=device)
    from ..detectors import Detector

    return Detector.load(run, device=device)


def local(job: Job) -> Generator[Scored, None, None]:
    """Scores in this thread, while others decode."""
    with contextlib.closing(job.listing.stream(job.batch, job.start, workers=job.workers)) as batches:
        for images in batches:
            yield _scored(job.detector, images, job.heatmaps)


def on_ray(job: Job) -> Generator[Scored, None, None]:
    """Scores in one Ray actor per free GPU, or CPU core where there is no GPU; each decodes its own slices.

    Raises:
        DataError: Ray is not installed, or failed; and what an actor finds in model and images.
    """
    if job.start >= len(job.listing):
        return
    ray, ours = start_ray(job.address)
    actors: list[Any] = []
    try:
        free = ray.available_resources()
        gpus = 0 if job.device == "cpu" else int(free.get("GPU", 0))
        starts = range(job.start, len(job.listing), job.batch)
        number = max(1, min(gpus or int(free.get("CPU", 0)), len(starts)))
        device = "cuda" if job.device.startswith("cuda") else job.device  # an actor sees its own GPU only
        # scoring again changes nothing, so an actor that dies is replaced
        kind = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_restarts=2, max_task_retries=2)(_Scorer)
        actors = [kind.remote(os.getcwd(), job.run, device) for _ in range(number)]
        parts = (job.listing.part(i, i + job.batch) for i in starts)
        tasks = (a.score.remote(part, job.heatmaps) for a, part in zip(cycle(actors), parts, strict=False))
        window = deque(islice(tasks, _IN_FLIGHT * number))
        while window:
            scored = ray.get(window.popleft())
            window.extend(islice(tasks, 1))  # the actor just done is the next in the cycle
            if isinstance(scored, str):
                raise DataError(scored)
            yield scored
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray gave up ({last_line(error)}); go on with --resume") from error
    finally:
        if ours:
            ray.shutdown()
        else:
            for actor in actors:
                ray.kill(actor)


EXECUTORS = {"local": local, "ray": on_ray}


class _Scorer:
    """In an actor: the model, loaded once, and what it makes of slices of a listing."""

    def __init__(self, folder: str, run: str, device: str):
        os.environ["OMP_NUM_THREADS"] = "1"  # the other cores have actors of their own
        if Path(run).suffix != ".onnx":
            import torch

            torch.set_num_threads(1)
        with contextlib.suppress(OSError):
            os.chdir(folder)  # relative paths mean what they mean to the caller
        self.run, self.device = run, device
        self.detector: Detector | OnnxModel | None = None

    def score(self, part: Listing, heatmaps: bool) -> Scored | str:
        """The scores, or the line that says why there are none."""
        try:
            self.detector = self.detector or load_model(self.run, device=self.device)
            (images,) = part.stream(len(part), workers=1)
            return _scored(self.detector, images, heatmaps)
        except DataError as error:
            return str(error)


def _scored(detector: Detector | OnnxModel, images: ImageSet, heatmaps: bool) -> Scored:
    found = detector.detect(images, heatmaps=heatmaps)
    whole = acquisition(images.images) if getattr(detector, "drift_", None) else None
    return Scored(images.names, found.score, found.heatmap, images.skipped, whole)


def hash_of(run: Path) -> str:
    """Sixteen hex digits of all that decides scores and p-values, of a model's folder or exported file."""
    if run.is_file():
        return hashlib.sha256(run.read_bytes()).hexdigest()[:16]
    h = hashlib.sha256()
    for path in sorted(p for p in run.rglob("*") if p.suffix in READ and p.is_file()):
        if path.name == STRESS:  # what was found out about the model is no part of it
            continue
        h.update(path.relative_to(run).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()[:16]
