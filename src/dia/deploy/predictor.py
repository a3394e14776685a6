"""A fitted model that answers: reads files and gives scores, heatmaps, dissolved copies and nearest normals.

The HTTP service and the reading room share it. Knows readers and detectors; knows nothing of requests, pages,
limits on bytes or stored reviews. No message of it names a place on this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..core.environment import environment
from ..core.errors import DataError
from ..data.datasets import open_listing
from ..data.formats.geometry import Spacing, spacing_of
from ..data.formats.spreadsheet import NO_PICTURES
from ..data.formats.volume import Stack
from ..data.imageset import ImageSet
from ..data.layouts import Entry, ImageFile
from ..data.options import ReadOptions
from ..data.readers import Listing, listing
from ..data.volumes import in_series
from ..detectors import Detector
from ..detectors.saving import is_own, training_set
from ..detectors.teaching.taught import summary_of
from ..evaluate.findings import of_case
from ..report.pictures import scale_of
from .scoring import unchanged

_MOST_NORMALS = 2000  # among which neighbours are searched
_BATCH = 256
_FOR_SCALE = 64  # normals whose heatmaps set the scale of colours


@dataclass(frozen=True)
class Picture:
    """One image of the files that were read: a file, a frame or a slice.

    Args:
        name: the file's name without folders, with a mark such as `#7`, or `#channel1#7`, if the file holds
            several images.
        image: `(H, W, C)` uint8 at the model's size.
        file: the index of its file among those read.
        size: (height, width) in its file.
        spacing: mm between pixels; None where the file does not tell, or it was not asked for.
        volume: the name of the volume of the file that it is a slice of; None where it is none.
        slice: its number in that volume, as `Entry.slice`; 0 where it is no slice.
    """

    name: str
    image: np.ndarray
    file: int = 0
    size: tuple[int, int] | None = None
    spacing: Spacing | None = None
    volume: str | None = None
    slice: int = 0


@dataclass(frozen=True)
class Reading:
    """The result of reading files.

    Args:
        pictures: the pictures, in the order of the files.
        errors: (file name, one line) of each file that is left out.
        left_out: the number of pictures in files that would exceed the accepted number.
    """

    pictures: list[Picture]
    errors: list[tuple[str, str]]
    left_out: int = 0

    def images(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Returns `(N, H, W, C)` uint8, where N may be 0."""
        return np.array([p.image for p in self.pictures], np.uint8).reshape(-1, *shape)


@dataclass(frozen=True)
class Verdict:
    """The model's judgement of N images.

    Args:
        scores: `(N,)` raw scores, higher = more anomalous.
        p_values: `(N,)` conformal p-values, in (0, 1].
        heatmaps: `(N, H, W)` float32, higher where more anomalous; None if not wanted, or the method has
            none.
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

    The folder keeps no training images. For neighbours and for the scale of colours they are read again, from
    `normals`, from the known data set that the model names, or where this user's account fitted it: a bounded
    number, and only when asked for. They include the normals that were held out for calibration. A place that
    a model from elsewhere names is not looked into.

    Args:
        run: a folder written by `dia fit`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        normals: path or known name of a data set whose (training) normals are shown as neighbours.
        data_root: the folder of known data sets, by default `$DIA_DATA`.

    Attributes:
        detector: the model.
        shape: (H, W, C) of the images that the model takes.
        rate: the false-alarm rate that the model was fitted with.
        has_heatmaps: whether the method has heatmaps.
        t_max: the number of diffusion steps, so that t lies in 0 to `t_max` − 1; 0 without a dissolver.
        can_dissolve: whether the model has a dissolver.
        normals: as given.
        why_no_normals: one line, without a path, if the training images cannot be read; else empty.

    Raises:
        DataError: `run` is no model folder, or `normals` cannot be read.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        normals: str | None = None,
        data_root: str | None = None,
    ):
        self.normals = normals
        with unchanged(Path(run)) as named:
            d = self.detector = Detector.load(run, device=device)
        h, w, c = d.shape_
        self.shape = h, w, c
        self.rate = float(d.false_alarm_rate)
        self.has_heatmaps = d.has_heatmaps()
        self.t_max = int(d.dissolver_.t_max) if hasattr(d, "dissolver_") else 0
        self.can_dissolve = self.t_max > 0
        self._facts = {
            "method": d.method, "model": named, "shape": list(d.shape_),
            "settings_hash": d.settings_hash(), "seed": d.seed, "preset": d.facts_.get("preset"),
            "n_train": d.n_train_, "n_calibration": d.n_calibration_, "false_alarm_rate": self.rate,
            "threshold": float(t) if np.isfinite(t := d.threshold()) else None,
            "heatmaps": self.has_heatmaps, "t_max": self.t_max,
            "lineage": d.facts_.get("lineage") or named,
            "taught": summary_of(d.facts_.get("taught")),
            "versions": environment()["versions"], "fitted_with": d.facts_.get("versions"),
        }  # fmt: skip
        self._model = threading.RLock()  # networks and seeded draws serve one thread at a time
        self._neighbours = threading.Lock()  # so that the features of the normals are made once
        self._bank: tuple[ImageSet, np.ndarray] | None = None  # normals and their directions
        self._scale = None if d.heat_ is None else d.heat_.scale
        self._reading = ReadOptions(skip_bad=True).as_fitted(d.facts_, self.shape)
        self.why_no_normals = ""
        self._listing = self._training_images(normals, data_root)

    def threshold(self, rate: float) -> float:
        """Returns the score above which an image is flagged; infinite if the held-out normals are too few.

        Raises:
            DataError: the rate lies outside (0, 1).
        """
        if not 0 < rate < 1:
            raise DataError(f"the false-alarm rate must lie between 0 and 1, not {rate:g}")
        return self.detector.threshold(rate)

    def about(self) -> dict[str, Any]:
        """Returns facts of the model for its users, which do not say where the model or its data lie."""
        return dict(self._facts)

    def series(self, files: Sequence[Path]) -> dict[Path, Stack]:
        """Finds which DICOM files are one series, where the model's window is of volumes.

        Args:
            files: that are there together.

        Returns:
            For each file of a series of several all of its files; empty where the window asks for none.
        """
        if self._reading.view.window != "volume":
            return {}
        kinds = [(file, ImageFile.of(file)) for file in files if file.is_file()]
        found = in_series([Entry(file, kind.kind, str(file)) for file, kind in kinds if kind])
        return {entry.file: entry.stack for entry in found if entry.stack}

    def read(
        self,
        files: Sequence[Path],
        *,
        names: Sequence[str] | None = None,
        most: int | None = None,
        spacing: bool = False,
        series: Mapping[Path, Stack] | None = None,
    ) -> Reading:
        """Reads the pictures in some files, at the model's size.

        A file that cannot be read does not keep others from being read. Only files with images are read: a
        manifest or a folder could name other files of this machine.

        Args:
            files: the files, on this machine.
            names: their owner's names for the files; the files' own names without folders where None.
            most: the greatest number of pictures; files beyond it are errors.
            spacing: whether to look how far apart pixels are, in mm.
            series: as `series` found them; None to look among these files.

        Returns:
            The pictures, and a line for each file that is left out.
        """
        pictures: list[Picture] = []
        errors: list[tuple[str, str]] = []
        left_out = 0
        series = self.series(files) if series is None else series
        for i, (file, name) in enumerate(zip(files, names or [f.name for f in files], strict=True)):
            try:
                if not file.is_file() or file.suffix.lower() in NO_PICTURES:
                    raise DataError(f"{file}: not an image file; hand in images, one file or more")
                listed = listing(file, self._reading)
                if most is not None and len(pictures) + len(listed) > most:
                    left_out += len(listed)
                    raise DataError(f"{len(listed)} images, with which there are more than {most}")
                if file in series:
                    entries = [e if e.stack else e._replace(stack=series[file]) for e in listed.entries]
                    listed = replace(listed, entries=entries)
                found = next(listed.stream(max(len(listed), 1), workers=1))
            except DataError as error:
                errors.append((name, _without_place(str(error), file, name)))
                continue
            errors += [(name, _without_place(line, file, name)) for line in found.skipped]
            by_name = {e.name: e for e in listed.entries}
            for j, (own, image, size) in enumerate(zip(found.names, found.images, found.sizes, strict=True)):
                mark = own.removeprefix(file.name) or f"#{j}"  # the reader marks channels, frames and slices
                one = f"{name}{mark}" if len(found) > 1 else name
                mm, volume, number = None, None, 0
                if (e := by_name.get(own)) is not None:
                    if spacing:
                        mm = spacing_of(e.file, e.kind, e.number, listed.options.view, size)
                    if e.volume is not None:
                        volume, number = f"{name}{e.volume.removeprefix(file.name)}", e.slice or 0
                pictures.append(Picture(one, image, i, size, mm, volume, number))
        return Reading(pictures, errors, left_out)

    def score(self, images: np.ndarray, heatmaps: bool = True) -> Verdict:
        """Scores images; an image's score does not depend on the other images, but for the last bits.

        Args:
            images: `(N, H, W, C)` uint8 at the model's size.
            heatmaps: whether to make heatmaps.

        Returns:
            Scores, p-values and heatmaps.
        """
        with self._model:
            scores, maps, _ = self.detector.detect(images, heatmaps=heatmaps)
            if maps is not None and self._scale is None:
                self._scale = self._scale_of_normals() or scale_of(maps)
        return Verdict(scores, self.detector.p_values(scores), maps)

    def findings(
        self, pictures: Sequence[Picture], heatmaps: np.ndarray, rate: float
    ) -> list[list[dict[str, Any]]]:
        """Finds what is above the level at a rate, joined across the slices of each volume.

        Args:
            pictures: N pictures of one file, which were read with `spacing`.
            heatmaps: `(N, H, W)` of them.
            rate: share of normal images that may have a finding.

        Returns:
            For each picture its findings, as `Finding.to_json` tells them.
        """
        found: list[list[dict[str, Any]]] = []
        for _, group in groupby(range(len(pictures)), lambda i: pictures[i].volume or i):
            own = [*group]
            numbers = [pictures[i].slice for i in own]
            case = of_case(
                heatmaps[own], self.detector.heat_, rate, size=pictures[own[0]].size,
                spacing=(mm := pictures[own[0]].spacing) and (mm.y, mm.x, mm.z), numbers=numbers,
            )  # fmt: skip
            found += [[f for f in case["findings"] if f["slice"] == k] for k in numbers]
        return found

    @property
    def heat_scale(self) -> tuple[float, float] | None:
        """The heatmap values at which the colours begin and end; the same for all pictures.

        The model keeps it, from heatmaps of normals. For an older model these are made anew; if no normals
        can be read, it comes from the first images scored, and is None before that.
        """
        if self._scale is None and self.has_heatmaps:
            with self._model:
                self._scale = self._scale or self._scale_of_normals()
        return self._scale

    def dissolve(self, images: np.ndarray, ts: Sequence[int]) -> np.ndarray:
        """Dissolves images.

        Args:
            images: `(N, H, W, C)` uint8 at the model's size.
            ts: T diffusion steps, each in 0 to `t_max` − 1.

        Returns:
            `(T, N, H, W, C)` uint8.

        Raises:
            DataError: the model has no dissolver, or a step lies outside the range.
        """
        self.check_steps(ts)
        with self._model:
            return np.asarray(self.detector.dissolver_.dissolve(images, list(ts)))

    def check_steps(self, ts: Sequence[int]) -> None:
        """Checks diffusion steps without waiting for the model.

        Raises:
            DataError: the model has no dissolver, or a step lies outside 0 to `t_max` − 1.
        """
        if not self.can_dissolve:
            raise DataError(
                f"{self.detector.method} has no dissolver; fit dia, or dia+ with dissolver.kind diffusion"
            )
        if bad := [t for t in ts if not 0 <= t < self.t_max]:
            raise DataError(f"t must lie in 0–{self.t_max - 1}, not {bad[0]}")

    def nearest(self, images: np.ndarray, k: int = 4) -> Nearest | None:
        """Finds the training normals most like some images, by cosine of `Detector.features`.

        Args:
            images: `(N, H, W, C)` uint8 at the model's size.
            k: the number of normals for each image. Of more than 2000 normals, 2000 evenly spaced ones are
                searched.

        Returns:
            The normals, or None if the training images cannot be read.
        """
        with self._neighbours:
            if self._bank is None and (found := self._normals(_MOST_NORMALS)) is not None:
                self._bank = found, self._directions(found.images)
        if self._bank is None:
            return None
        normals, bank = self._bank
        distance = 1 - self._directions(images) @ bank.T if len(images) else np.empty((0, len(bank)))
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        names = [[Path(normals.names[j]).name for j in row] for row in order]
        return Nearest(normals.images[order], names, np.take_along_axis(distance, order, axis=1))

    # --- the training images ------------------------------------------------------------------------

    def _directions(self, images: np.ndarray) -> np.ndarray:
        """Returns features of length 1; between batches the model is free for other threads."""
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
        """Reads at most so many evenly spaced normals; None where they cannot be read."""
        found = self._listing
        if found is None:
            return None
        index = np.arange(len(found)) if found.labels is None else np.flatnonzero(found.labels == 0)
        if len(index) > most:
            index = index[np.linspace(0, len(index) - 1, most).astype(int)]
        try:
            if found.whole is not None:
                return replace(found, whole=found.whole.subset(index)).read()
            return replace(found, entries=[found.entries[int(i)] for i in index]).read()
        except DataError:
            self.why_no_normals = "the training images are there no more, or none of them can be read"
            self._listing = None
            return None

    def _training_images(self, normals: str | None, data_root: str | None) -> Listing | None:
        facts = self.detector.facts_
        read = facts.get("read") or {}
        as_fitted = {"split": read.get("split"), "normal": read.get("normal")}
        if normals is not None:
            try:  # the model's own data set, at another place
                return open_listing(normals, data_root=data_root, options=self._reading, **as_fitted)
            except DataError:  # a folder of normals
                return open_listing(normals, "train", data_root, self._reading)
        name = training_set(facts, data_root) if read else None
        if is_own(facts):
            data_root = data_root or read.get("data_root")
        if name is None:
            self.why_no_normals = "the model was fitted elsewhere; name its training images with --normals"
            return None
        try:
            return open_listing(name, data_root=data_root, options=self._reading, **as_fitted)
        except DataError:
            self.why_no_normals = "its training images are not where they were; name them with --normals"
            return None


def _without_place(line: str, file: Path, name: str) -> str:
    """Returns an error in one line, with the file's name in place of its path on this machine."""
    line = " ".join(line.split())
    for place in {str(file), str(file.resolve())}:
        line = line.replace(place, name)
    for folder in {str(file.parent), str(file.resolve().parent)} - {".", "/"}:
        line = line.replace(folder, "…")
    return line.removeprefix(f"{name}: ")
