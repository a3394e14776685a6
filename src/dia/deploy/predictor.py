"""A fitted model that answers: files to pictures, pictures to scores, heatmaps, dissolved copies, neighbours.

What the HTTP service and the review page share. Knows readers and detectors; knows nothing of requests,
pages, limits on bytes or stored reviews. Nothing it says names a place on this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.environment import environment
from ..core.errors import DataError
from ..data.as_fitted import as_fitted
from ..data.datasets import open_listing
from ..data.imageset import ImageSet
from ..data.readers import Listing, listing
from ..detectors import Detector
from ..report.pictures import scale_of
from .scoring import hash_of

MOST_NORMALS = 2000  # that are looked through for neighbours
_BATCH = 256
_FOR_SCALE = 64  # normals whose heatmaps set the scale of colours
_SETS = (".csv", ".npz")  # name files of this machine, or hold arrays: no pictures someone hands in


@dataclass(frozen=True)
class Picture:
    """One image of what was handed in: a file, a frame or a slice.

    Args:
        name: file name without folders; of one of several in a file, with `#7`.
        image: `(H, W, C)` uint8 at the model's size.
        file: index of its file among those read.
    """

    name: str
    image: np.ndarray
    file: int = 0


@dataclass(frozen=True)
class Reading:
    """What files became.

    Args:
        pictures: in the order of the files.
        errors: (file name, one line) of each file that is left out.
        left_out: pictures of files that had more than were accepted; they are among the errors too.
    """

    pictures: list[Picture]
    errors: list[tuple[str, str]]
    left_out: int = 0

    def images(self, shape: tuple[int, int, int]) -> np.ndarray:
        """`(N, H, W, C)` uint8, also of no pictures."""
        return (
            np.stack([p.image for p in self.pictures]) if self.pictures else np.empty((0, *shape), np.uint8)
        )


@dataclass(frozen=True)
class Verdict:
    """What the model says of N images.

    Args:
        scores: `(N,)` raw, higher = more anomalous.
        p_values: `(N,)` conformal, in (0, 1].
        heatmaps: `(N, H, W)` float32, higher where more anomalous; None where not asked for or not had.
    """

    scores: np.ndarray
    p_values: np.ndarray
    heatmaps: np.ndarray | None


@dataclass(frozen=True)
class Nearest:
    """The k normals nearest to each of N images, nearest first.

    Args:
        images: `(N, k, H, W, C)` uint8.
        names: k file names without folders, for each image.
        distances: `(N, k)`, 1 − cosine of `Detector.features`, in [0, 2].
    """

    images: np.ndarray
    names: list[list[str]]
    distances: np.ndarray


class Inferencer:
    """A model folder, loaded once, for any number of threads.

    The folder keeps no training images: for neighbours and the colour scale they are read again, from
    `normals` or from where the model was fitted, a bounded number and only when asked for. They include
    the normals held out for calibration.

    Args:
        run: folder written by `dia fit`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        normals: path or known name of a data set whose (training) normals to show as neighbours.
        data_root: where known data sets lie; by default as when the model was fitted.

    Attributes:
        detector: the model.

    Raises:
        DataError: no model folder, or `normals` that cannot be read.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        normals: str | None = None,
        data_root: str | None = None,
    ):
        self.detector = Detector.load(run, device=device)
        self._hash = hash_of(Path(run))
        self._model = threading.RLock()  # networks and seeded draws are for one thread at a time
        self._neighbours = threading.Lock()  # their features are made once
        self._scale: tuple[float, float] | None = None
        self._where = normals, data_root
        self._why = ""
        if normals is not None:
            self._listing  # noqa: B018 - complains now, if at all

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images the model takes."""
        h, w, c = self.detector.shape_
        return h, w, c

    @property
    def rate(self) -> float:
        """The false-alarm rate the model was fitted with."""
        return float(self.detector.false_alarm_rate)

    @property
    def has_heatmaps(self) -> bool:
        """Whether the method says where."""
        return self.detector.has_heatmaps()

    @property
    def can_dissolve(self) -> bool:
        """Whether the model has a dissolver."""
        return hasattr(self.detector, "dissolver_")

    @property
    def t_max(self) -> int:
        """Diffusion steps there are: t lies in 0 to `t_max` − 1. 0 without a dissolver."""
        return int(self.detector.dissolver_.t_max) if self.can_dissolve else 0

    def threshold(self, rate: float) -> float:
        """The score above which an image is flagged; infinite where the held-out normals are too few.

        Raises:
            DataError: a rate outside (0, 1).
        """
        if not 0 < rate < 1:
            raise DataError(f"the false-alarm rate must lie between 0 and 1, not {rate:g}")
        return self.detector.threshold(rate)

    def about(self) -> dict[str, Any]:
        """Facts of the model for whoever uses it; nothing of where it or its data lie."""
        return dict(self._about)

    @cached_property
    def _about(self) -> dict[str, Any]:
        d = self.detector
        return {
            "method": d.method,
            "model": self._hash,
            "shape": list(self.shape),
            "settings_hash": d.settings_hash(),
            "seed": d.seed,
            "preset": d.facts_.get("preset"),
            "n_train": d.n_train_,
            "n_calibration": d.n_calibration_,
            "false_alarm_rate": self.rate,
            "threshold": float(t) if np.isfinite(t := d.threshold()) else None,
            "heatmaps": self.has_heatmaps,
            "t_max": self.t_max,
            "versions": environment()["versions"],
            "fitted_with": d.facts_.get("versions"),
        }

    def read(
        self,
        files: Sequence[Path],
        *,
        names: Sequence[str] | None = None,
        most: int | None = None,
    ) -> Reading:
        """The pictures in some files, at the model's size.

        A file that cannot be read does not keep others from being read. Only files with images are: a
        `.csv` or a folder could name other files of this machine.

        Args:
            files: on this machine.
            names: of the files as their owner knows them; by default theirs, without folders.
            most: pictures in all; files beyond are errors.
        """
        pictures: list[Picture] = []
        errors: list[tuple[str, str]] = []
        left_out = 0
        for i, (file, name) in enumerate(zip(files, names or [f.name for f in files], strict=True)):
            try:
                listed = self._listed(Path(file))
                if most is not None and len(pictures) + len(listed) > most:
                    left_out += len(listed)
                    raise DataError(f"{len(listed)} images, with which there are more than {most}")
                found = next(listed.stream(max(len(listed), 1), workers=1))
            except DataError as error:
                errors.append((name, _unplaced(str(error), Path(file), name)))
                continue
            errors += [(name, _unplaced(line, Path(file), name)) for line in found.skipped]
            several = len(found) > 1
            pictures += [
                Picture(_picture_name(name, str(n), j if several else None), image, i)
                for j, (n, image) in enumerate(zip(found.names, found.images, strict=True))
            ]
        return Reading(pictures, errors, left_out)

    def _listed(self, file: Path) -> Listing:
        h, w, c = self.shape
        if not file.is_file() or file.suffix.lower() in _SETS:
            raise DataError(f"{file}: not an image file; hand in images, one file or more")
        return listing(file, size=(h, w), channels=c, skip_bad=True, **self._reading)

    @cached_property
    def _reading(self) -> dict[str, Any]:
        """How the model's own images were made from files: intensity window, axis and range of slices."""
        return as_fitted(self.detector.facts_)

    def score(self, images: np.ndarray, heatmaps: bool = True) -> Verdict:
        """Scores of `(N, H, W, C)` uint8 images, an image's own whatever it is scored with.

        To the last bits: networks sum in another order in batches of another size.
        """
        with self._model:
            scores, maps, _ = self.detector.detect(images, heatmaps=heatmaps)
            if maps is not None and self._scale is None:
                self._scale = self._scale_of_normals() or scale_of(maps)
        return Verdict(scores, self.detector.p_values(scores), maps)

    @property
    def heat_scale(self) -> tuple[float, float] | None:
        """Where the colours of all heatmaps begin and end, once and for all.

        From heatmaps of normals; where there are none to read, from the first images scored, and None
        before that. So colours can be compared between pictures.
        """
        if self._scale is None and self.has_heatmaps:
            with self._model:
                self._scale = self._scale or self._scale_of_normals()
        return self._scale

    def dissolve(self, images: np.ndarray, ts: Sequence[int]) -> np.ndarray:
        """`(N, H, W, C)` uint8 images dissolved at each of T diffusion steps: `(T, N, H, W, C)` uint8.

        Raises:
            DataError: a model without a dissolver, or a t outside 0 to `t_max` − 1.
        """
        self.check_steps(ts)
        with self._model:
            return np.asarray(self.detector.dissolver_.dissolve(images, list(ts)))

    def check_steps(self, ts: Sequence[int]) -> None:
        """Raises as `dissolve` would, without waiting for the model."""
        if not self.can_dissolve:
            raise DataError(f"{self.detector.method} has no dissolver; fit dia or dia+ for it")
        if bad := [t for t in ts if not 0 <= t < self.t_max]:
            raise DataError(f"t must lie in 0–{self.t_max - 1}, not {bad[0]}")

    def nearest(self, images: np.ndarray, k: int = 4) -> Nearest | None:
        """The training normals most alike, by cosine of `Detector.features`; None without `normals`.

        Of more than 2000 normals, that many evenly spaced ones are looked through.
        """
        with self._neighbours:
            known = self._bank
        if known is None:
            return None
        normals, bank = known
        distance = 1 - self._directions(images) @ bank.T if len(images) else np.empty((0, len(bank)))
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        names = [[Path(normals.names[j]).name for j in row] for row in order]
        return Nearest(normals.images[order], names, np.take_along_axis(distance, order, axis=1))

    # --- the training images ------------------------------------------------------------------------

    @property
    def why_no_normals(self) -> str:
        """One line, without a path, where the training images cannot be read; else empty."""
        return "" if self._listing else self._why

    @cached_property
    def _bank(self) -> tuple[ImageSet, np.ndarray] | None:
        normals = self._normals(MOST_NORMALS)
        return None if normals is None else (normals, self._directions(normals.images))

    def _directions(self, images: np.ndarray) -> np.ndarray:
        """Features of length 1; the model is free for others between batches."""
        parts = []
        for start in range(0, len(images), _BATCH):
            with self._model:
                parts.append(self.detector.features(images[start : start + _BATCH]))
        features = np.concatenate(parts)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def _scale_of_normals(self) -> tuple[float, float] | None:
        normals = self._normals(_FOR_SCALE)
        maps = None if normals is None else self.detector.heatmap(normals)
        return None if maps is None else scale_of(maps)

    def _normals(self, most: int) -> ImageSet | None:
        """At most so many evenly spaced normals; None, and a reason, where they cannot be read."""
        if self._listing is None:
            return None
        labels = self._listing.labels
        index = np.arange(len(self._listing)) if labels is None else np.flatnonzero(labels == 0)
        if len(index) > most:
            index = index[np.linspace(0, len(index) - 1, most).astype(int)]
        try:
            found = _some(self._listing, index).read()
        except DataError:
            self._why = "the training images are there no more, or none of them can be read"
            self._listing = None
            return None
        return found

    @cached_property
    def _listing(self) -> Listing | None:
        normals, data_root = self._where
        facts, h, w, c = self.detector.facts_, *self.shape
        read = facts.get("read") or {}
        where = facts.get("dataset") if normals is None else normals
        if where is None or (normals is None and not read):
            self._why = "the model does not say where its training images are"
            return None
        root = data_root or read.get("data_root")
        ways = [(read.get("split"), read.get("normal"))]
        if normals is not None:  # perhaps the same set at another place, perhaps a folder of normals
            ways.append(("train", None))
        for split, normal in ways:
            try:
                return open_listing(
                    where, split, root, normal=normal, size=(h, w), channels=c, skip_bad=True, **self._reading
                )
            except DataError as error:
                last = error
        if normals is not None:
            raise last
        self._why = (
            "the training images are not where they were when the model was fitted; name them with --normals"
        )
        return None


def _some(whole: Listing, index: np.ndarray) -> Listing:
    if whole.whole is not None:
        return replace(whole, whole=whole.whole.subset(index))
    return replace(whole, entries=[whole.entries[i] for i in index])


def _picture_name(name: str, entry: str, number: int | None) -> str:
    """Of one of several, with the mark that the reader gave it, or its number."""
    if number is None:
        return name
    _, mark, rest = entry.rpartition("#")
    return f"{name}#{rest if mark else number}"


def _unplaced(line: str, file: Path, name: str) -> str:
    """What is wrong with a file, in one line without its place on this machine."""
    line = " ".join(line.split())
    for place in {str(file), str(file.resolve())}:
        line = line.replace(place, name)
    for folder in {str(file.parent), str(file.resolve().parent)} - {".", "/"}:
        line = line.replace(folder, "…")
    return line.removeprefix(f"{name}: ")
