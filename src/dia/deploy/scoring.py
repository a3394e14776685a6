"""Decodes and scores images batch by batch and in order, in this process or in Ray actors.

Knows listings and detectors; knows nothing of rows or files of scores. Of this folder, only this file uses
Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.cluster import last_line, start_ray
from ..core.errors import DataError
from ..core.modelfiles import READ, STRESS, sha256
from ..data.imageset import ImageSet
from ..data.readers import Listing
from ..data.volumes import files_of
from ..detectors.drift import acquisition

if TYPE_CHECKING:
    from ..detectors import Detector
    from .onnx_model import OnnxModel

BATCH = 512  # images scored at a time
_IN_FLIGHT = 2  # batches for each actor: one that it scores, and the next


@dataclass(frozen=True)
class Job:
    """One run of scoring.

    Args:
        run: the model folder or exported file, which every machine that scores must be able to read.
        detector: the same model, loaded.
        listing: the images, which those machines must be able to read too.
        start: the number of images done before.
        batch: the number of images scored at a time.
        heatmaps: whether to make heatmaps.
        device: the device of each model.
        workers: the number of decoding threads, without Ray.
        address: the address of a Ray cluster; Ray is started on this machine where None.
        hash: of the model, by `hash_of`: whoever loads it later refuses another; None where it is not known.
    """

    run: str
    detector: Detector | OnnxModel
    listing: Listing
    start: int = 0
    batch: int = BATCH
    heatmaps: bool = False
    device: str = "auto"
    workers: int | None = None
    address: str | None = None
    hash: str | None = None


class Scored(NamedTuple):
    """One scored batch.

    Args:
        names: the names of its N images.
        scores: `(N,)` scores.
        heatmaps: `(N, H, W)` heatmaps, if wanted and the method has them.
        skipped: one line for each file that could not be read.
        acquisition: `(N, D)` statistics of `detectors.drift.acquisition`, if the model keeps those of its
            normals.
        seen: `(N,)` bool, whether the model was fitted on the image; None where it does not know.
        sizes: (height, width) of the N images in their files.
    """

    names: Sequence[str]
    scores: np.ndarray
    heatmaps: np.ndarray | None
    skipped: Sequence[str]
    acquisition: np.ndarray | None
    seen: np.ndarray | None = None
    sizes: Sequence[tuple[int, int]] = ()


def load_model(run: str, *, device: str = "auto") -> Detector | OnnxModel:
    """Loads a model; an exported one needs no torch.

    Args:
        run: a folder written by `dia fit`, or an .onnx file of `dia export`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The detector, or the exported one.
    """
    if Path(run).suffix == ".onnx":
        from .onnx_model import OnnxModel

        return OnnxModel(run, device=device)
    from ..detectors import Detector

    return Detector.load(run, device=device)


def local(job: Job) -> Generator[Scored, None, None]:
    """Yields scored batches; scores in this thread while other threads decode."""
    with contextlib.closing(job.listing.stream(job.batch, job.start, workers=job.workers)) as batches:
        for images in batches:
            yield _scored(job.detector, images, job.heatmaps)


def on_ray(job: Job) -> Generator[Scored, None, None]:
    """Yields batches scored by Ray actors, one for each free GPU, or for each CPU core if there is no GPU.

    Raises:
        DataError: Ray is not installed or failed, or an actor cannot read the model or the images.
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
        device = "cuda" if job.device.startswith("cuda") else job.device  # an actor sees only its own GPU
        # an actor that dies is replaced, and its batches are scored again; with one CPU each, Ray sets
        # OMP_NUM_THREADS=1 in them
        kind = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_restarts=2, max_task_retries=2)(_Scorer)
        actors = [kind.remote(os.getcwd(), job.run, device, job.hash) for _ in range(number)]
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
    """The class of the actors: loads the model once and scores parts of the listing."""

    def __init__(self, folder: str, run: str, device: str, hash: str | None = None):
        with contextlib.suppress(OSError):
            os.chdir(folder)  # so that relative paths are the caller's
        self.run, self.device, self.hash = run, device, hash
        self.detector: Detector | OnnxModel | None = None

    def score(self, part: Listing, heatmaps: bool) -> Scored | str:
        """Returns the scores, or one line that says why there are none."""
        try:
            if self.detector is None:
                with unchanged(Path(self.run)) as found:
                    detector = load_model(self.run, device=self.device)
                if self.hash not in (None, found):
                    return f"{self.run}: another model than the one the run began with; begin anew"
                self.detector = detector
            (images,) = part.stream(len(part), workers=1)
            return _scored(self.detector, images, heatmaps)
        except DataError as error:
            return str(error)


def _scored(detector: Detector | OnnxModel, images: ImageSet, heatmaps: bool) -> Scored:
    found = detector.detect(images, heatmaps=heatmaps)
    whole = acquisition(images.images) if getattr(detector, "drift_", None) else None
    known = getattr(detector, "was_fitted_on", None)  # an exported file keeps no digests
    seen = known(images) if known and len(images) else None
    sizes = images.sizes or [images.shape[:2]] * len(images)
    return Scored(images.names, found.score, found.heatmap, images.skipped, whole, seen, sizes)


@contextlib.contextmanager
def unchanged(run: Path) -> Iterator[str]:
    """Yields `hash_of` a model that is loaded within: of the very files that were read.

    Args:
        run: a model folder or exported file.

    Raises:
        DataError: another process changed it meanwhile.
    """
    found = hash_of(run)
    yield found
    if hash_of(run) != found:
        raise DataError(f"{run}: another process changed it while it was read; run this again")


def hash_of(run: Path) -> str:
    """Returns 16 hex digits: a hash of all in a folder or exported file that decides scores and p-values.

    It is empty for a folder that is no model, in which anything may lie.
    """
    if run.is_file():
        return sha256(run)[:16]
    if not (run / "config.json").is_file():
        return ""
    h = hashlib.sha256()
    for path in sorted(p for p in run.rglob("*") if p.suffix in READ and p.is_file()):
        if path.name == STRESS:  # a result about the model, not a part of it
            continue
        h.update(path.relative_to(run).as_posix().encode() + bytes.fromhex(sha256(path)))
    return h.hexdigest()[:16]


def stamp_of(listing: Listing) -> str:
    """Returns 16 hex digits that change with the images: with sizes of their files and times of last changes.

    No pixel is read, so that a large archive is stamped at once; images of an `.npz` are hashed by their
    pixels.
    """
    if listing.whole is not None:
        return listing.whole.sha256()[:16]
    h, known = hashlib.sha256(), dict[Path, str]()
    for entry in listing.entries:
        if entry.file not in known:
            with contextlib.suppress(OSError):  # reading it says what is wrong
                found = [file.stat() for file in files_of(entry)]
                known[entry.file] = " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in found)
        h.update(f"{known.get(entry.file)}\n".encode())
    if listing.options.view.window == "volume":  # which is measured on slices that are left out, too
        stacks = {id(e.stack): e.stack for e in listing.entries if e.stack is not None}.values()
        for file in dict.fromkeys(file for stack in stacks for file, _ in stack.slices):
            if file not in known:
                with contextlib.suppress(OSError):
                    h.update(f"{file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return h.hexdigest()[:16]
