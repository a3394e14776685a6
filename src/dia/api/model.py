"""`dia.fit` and `dia.load`: a detector for images in any form, which answers with a table and with figures.

A `Model` holds a `Detector`, or an exported one, and adds no method of its own: images are read, scored and
judged as by `dia fit` and `dia score`. Messages go to the logger `dia`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import DataError
from ..data.formats.geometry import spacing_of
from ..data.imageset import ANOMALOUS
from ..data.layouts import refuse_mixed
from ..data.options import ReadOptions
from ..deploy.scoring import BATCH, Job, load_model, local
from ..detectors.calibration import FALSE_ALARM_RATE, HOLDOUT
from ..detectors.drift import RATE, SHARE
from ..evaluate.drift_monitor import DriftMonitor
from .given import Range, levels_of_arrays, listing_of, shuffled
from .table import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data.readers import Listing
    from ..deploy.onnx_model import OnnxModel
    from ..detectors import Detector

_log = logging.getLogger(__name__)
_READING = {f.name for f in fields(ReadOptions) if f.init} - {"progress"}


class Model:
    """A fitted detector and how its images are read: what `dia.fit` and `dia.load` return.

    Args:
        detector: fitted or loaded.

    Attributes:
        detector: the same, with scores, heatmaps, features and scikit-learn's methods for uint8 arrays.
    """

    def __init__(self, detector: Detector | OnnxModel):
        self.detector = detector

    def __repr__(self) -> str:
        d, (h, w, c) = self.detector, self.detector.shape_
        fitted = f", fitted on {d.n_train_} normals" if hasattr(d, "n_train_") else ""
        return f"Model({d.method}{fitted}, images of {h}×{w}×{c})"

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """Returns the score above which an image is flagged at a rate, by default the model's."""
        return self.detector.threshold(_rate(false_alarm_rate, self.detector))

    def predict(
        self,
        images: Any,
        *,
        false_alarm_rate: float | None = None,
        heatmaps: bool = False,
        range: Range | None = None,
        split: str = "test",
        data_root: str | os.PathLike[str] | None = None,
        batch: int = BATCH,
        progress: bool | None = None,
        **reading: Any,
    ) -> Predictions:
        """Scores images, and flags those that are too unusual, as `dia score` does.

        Args:
            images: as for `fit`; they are read at the model's size.
            false_alarm_rate: share of normals to flag at most, on average; the model's where None.
            heatmaps: whether the table keeps heatmaps, of which its findings are made.
            range: as for `fit`; what was given there where None, but not for uint8.
            split: of a folder or known set that has splits.
            data_root: the folder of known data sets, by default `$DIA_DATA`.
            batch: images scored at a time.
            progress: whether to show a bar; where None, in a terminal or notebook.
            reading: options of `ReadOptions`, such as `skip_bad=True`.

        Returns:
            The table. A warning is logged if the images differ as a whole from the model's normals.

        Raises:
            DataError: images that cannot be read or could mean two things, a rate outside (0, 1), or heatmaps
                of a method that has none.
        """
        from rich.console import Console
        from rich.progress import Progress

        d, rate = self.detector, _rate(false_alarm_rate, self.detector)
        if shuffled(images):
            _log.warning("the loader shuffles: row i of the table is not image i of its dataset")
        listing = self._listing(images, range, split, data_root, reading)
        watch = DriftMonitor(d, listing.names, listing.volumes, units=listing.units, rate=RATE, share=SHARE)
        names: list[str] = []
        scores, maps, skipped = list[np.ndarray](), list[np.ndarray](), list[str]()
        sizes, fitted_on = list[tuple[int, int]](), 0
        job = Job("", d, listing, batch=batch, heatmaps=heatmaps)
        with (
            Progress(console=Console(stderr=True), disable=not _watched(progress)) as bar,
            closing(local(job)) as parts,
        ):
            shown = bar.add_task("Scoring", total=len(listing))
            for part in parts:
                if heatmaps and len(part.names):
                    if part.heatmaps is None:
                        raise DataError(f"{d.method} has no heatmaps; fit dia+ for them")
                    maps.append(part.heatmaps)
                names += part.names
                sizes += part.sizes
                scores.append(part.scores)
                skipped += part.skipped
                fitted_on += 0 if part.seen is None else int(part.seen.sum())
                watch.add(part.names, part.scores, part.acquisition)
                bar.advance(shown, len(part.names) + len(part.skipped))
        for line in skipped:
            _log.warning("skipped: %s", line)
        if not names:
            more = f"; the first: {skipped[0]}" if skipped else ""
            raise DataError(f"none of {len(listing)} images could be read{more}")
        if fitted_on:
            _log.warning("the model was fitted on %d of the images: their p-values say little", fitted_on)
        if (drift := watch.verdict())["alarm"]:
            _log.warning("%s", drift["words"])
        score, threshold = np.concatenate(scores), d.threshold(rate)
        return Predictions(
            names, score, d.p_values(score), score > threshold, threshold, rate,
            np.concatenate(maps) if maps else None, drift, skipped, getattr(d, "heat_", None), sizes,
            _spacing(listing, names, sizes) if maps else (), _numbers(listing, names) if maps else (),
        )  # fmt: skip

    def plot(
        self,
        image: Any,
        *,
        false_alarm_rate: float | None = None,
        range: Range | None = None,
        **reading: Any,
    ) -> Figure:
        """Draws an image, and beside it its heatmap, with the score, the p-value and the verdict.

        Args:
            image: one image, in any form that `fit` takes.
            false_alarm_rate: share of normals to flag at most, on average; the model's where None.
            range: as for `predict`.
            reading: options of `ReadOptions`.

        Returns:
            A figure, which notebooks show; `savefig` writes it.

        Raises:
            DataError: not one image, or as `predict`.
        """
        from .figure import figure_of

        rate = _rate(false_alarm_rate, self.detector)
        found = self._listing(image, range, "test", None, reading).read()
        if len(found) != 1:
            raise DataError(f"plot takes one image, not {len(found)}")
        scored = self.detector.detect(found)
        (score,), (p,) = scored.score, self.detector.p_values(scored.score)
        flagged = score > self.detector.threshold(rate)
        verdict = f"{'flagged' if flagged else 'not flagged'} at {100 * rate:.3g} %"
        said = f"{found.names[0]}\nscore {score:.4g}, p = {p:.3g}, {verdict}"
        heatmap = None if scored.heatmap is None else scored.heatmap[0]
        return figure_of(found[0], heatmap, said, getattr(self.detector, "heat_", None), rate)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Writes the model folder, which `dia.load` and every command read.

        Args:
            folder: where to write.
            overwrite: whether a model of that name is replaced.

        Returns:
            The folder.

        Raises:
            DataError: it is an exported model, or the folder holds something already.
        """
        folder = Path(folder)
        if not hasattr(self.detector, "save"):
            raise DataError("an exported model is its .onnx file; copy that")
        if folder.exists() and not (folder / "config.json").exists():
            raise DataError(f"{folder} exists and is not a model; choose another folder")
        if folder.exists() and not overwrite:
            raise DataError(f"{folder} holds a model already; choose another folder, or give overwrite=True")
        return self.detector.save(folder)

    def _listing(
        self,
        images: Any,
        range: Range | None,
        split: str,
        data_root: str | os.PathLike[str] | None,
        reading: Mapping[str, Any],
    ) -> Any:
        facts = self.detector.facts_
        whole = {"divide": False} | dict(reading)  # only a fit divides a folder
        options = _options(whole).as_fitted(facts, self.detector.shape_)
        usual, levels = facts.get("range"), (facts.get("read") or {}).get("levels")
        return listing_of(
            images, options, split, data_root=data_root, value_range=range,
            usual_range=usual and (float(usual[0]), float(usual[1])), levels=levels,
        )  # fmt: skip


def fit(
    images: Any,
    *,
    method: str = "dia+",
    preset: str = "cpu",
    settings: Any = None,
    seed: int = 0,
    device: str = "auto",
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    holdout: float = HOLDOUT,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    range: Range | None = None,
    split: str = "train",
    all: bool = False,
    data_root: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **reading: Any,
) -> Model:
    """Trains a detector on normal images and calibrates it, as `dia fit` does.

    Args:
        images: a folder, .npz, .csv, .xlsx or image, the name of a known data set, several paths, an
            `ImageSet`, an array or tensor `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, PIL images, or a
            Dataset or DataLoader of these. Only normal images are used of what has labels.
        method: a name of `dia methods`.
        preset: named settings: cpu, gpu or paper.
        settings: the method's settings, or those that differ from the preset's, by dotted name.
        seed: decides the hold-out, the first weights and every random draw.
        device: auto, cpu, cuda or cuda:N.
        size: (H, W) in pixels, or n for n × n; by default their own, shrunk to the method's longest side.
        channels: 1 or 3; by default as the images are.
        holdout: share of the normals kept for calibration, where the method needs that.
        false_alarm_rate: share of normals that the threshold flags at most, on average.
        range: the values of black and white in arrays and tensors. Without it uint8 is 0–255 and float 0–1;
            of other integers, percentiles of the images are black and white, as of files.
        split: of a folder or known set that has splits.
        all: whether all images of a folder are taken as normal, whatever the names of its sub-folders.
        data_root: the folder of known data sets, by default `$DIA_DATA`.
        progress: whether to show bars; where None, in a terminal or notebook.
        reading: options of `ReadOptions`, such as `normal="healthy"` or `window="lung"`.

    Returns:
        The model.

    Raises:
        DataError: images that cannot be read or could mean two things, too few normals, or a rate outside
            (0, 1).
        SettingsError: no such setting, or a value that it cannot have.
        TrainingError: training cannot go on.
    """
    from ..benchmark.runs import facts_of
    from ..detectors.presets import PRESETS, longest_side
    from ..detectors.registry import detector_class, wanted_settings
    from ..detectors.saving import with_reading

    _rate(false_alarm_rate)
    if preset not in PRESETS:
        raise DataError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    cls = detector_class(method)
    if settings is None or isinstance(settings, Mapping):
        settings = wanted_settings(method, preset, settings)
    shown = _watched(progress)
    options = replace(_options(reading), size=size, channels=channels, progress=shown)
    options = replace(options, max_size=options.max_size or longest_side(cls.Settings, preset))
    levels = levels_of_arrays(images) if range is None else None
    listing = listing_of(
        images, options, split, data_root=data_root, value_range=range, levels=levels, one_class=True
    )
    of = [e for e in listing.entries if e.label != ANOMALOUS]
    if of and not all and isinstance(images, str | os.PathLike) and os.path.isdir(images):
        refuse_mixed(os.fspath(images), of, options.normal, "dia.fit(")
    if listing.grouped:
        _log.info("%s", listing.grouped)
    found = listing.read()
    for line in found.skipped:
        _log.warning("skipped: %s", line)
    normals = found.normals()
    if len(found) and not len(normals):
        raise DataError("no image is normal; see normal= and split=")
    left = len(found) - len(normals)
    left_out = f" ({left} anomalous ones left out)" if left else ""
    _log.info("%s: fitting on %d normal images%s", method, len(normals), left_out)
    detector = cls(settings, seed=seed, device=device, holdout=holdout, false_alarm_rate=false_alarm_rate)
    place = os.fspath(images) if isinstance(images, str | os.PathLike) else None
    detector.facts_ = facts_of(detector, place, preset, normals)
    if place is not None or listing.entries:
        root = os.environ.get("DIA_DATA") if data_root is None else os.fspath(data_root)
        detector.facts_ = with_reading(detector.facts_, listing.reading, split=split, data_root=root)
    if range is not None:
        detector.facts_["range"] = [float(range[0]), float(range[1])]
        detector.facts_["read"] = {"levels": f"{range[0]:.9g}:{range[1]:.9g}"}  # for files that are scored
    detector.fit(normals, progress=shown)
    return Model(detector)


def load(run: str | os.PathLike[str], *, device: str = "auto") -> Model:
    """Loads a model.

    Args:
        run: a folder that `dia fit` or `Model.save` wrote, or an .onnx file of `dia export`.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The model.

    Raises:
        DataError: there is no such model, or it is damaged.
    """
    if not Path(run).exists():
        raise DataError(f"{os.fspath(run)}: no such model; name a folder of `dia fit`, or an .onnx file")
    return Model(load_model(os.fspath(run), device=device))


def _rate(given: float | None, detector: Detector | OnnxModel | None = None) -> float:
    """Returns a false-alarm rate, checked before any work is done."""
    try:
        rate = float(detector.false_alarm_rate if given is None and detector is not None else given or 0)
    except ValueError:
        raise DataError(
            f"false_alarm_rate must be a number between 0 and 1, not {given!r}; 5 % is 0.05"
        ) from None
    if not 0 < rate < 1:
        raise DataError(f"false_alarm_rate must lie between 0 and 1, not {rate:g}; 5 % is 0.05")
    return rate


def _spacing(
    listing: Listing, names: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> list[tuple[float, float] | None]:
    """Returns mm between rows and columns of images, None where their files do not tell."""
    entries = {e.name: e for e in listing.entries}
    found = []
    for name, size in zip(names, sizes, strict=True):
        e, view = entries.get(name), listing.options.view
        mm = None if e is None else spacing_of(e.file, e.kind, e.number, view, size)
        found.append(None if mm is None else mm.plane)
    return found


def _numbers(listing: Listing, names: Sequence[str]) -> list[int | None]:
    """Returns the numbers of slices in their volumes, None of what is no slice."""
    entries = {e.name: e for e in listing.entries}
    return [None if (e := entries.get(name)) is None else e.slice for name in names]


def _options(reading: Mapping[str, Any]) -> ReadOptions:
    if unknown := sorted(set(reading) - _READING):
        raise TypeError(f"no argument {unknown[0]!r}; options of reading are {', '.join(sorted(_READING))}")
    return ReadOptions(**reading)


def _watched(progress: bool | None) -> bool:
    """Returns whether progress is shown: as said, or else in a terminal or notebook."""
    if progress is not None:
        return progress
    return sys.stderr.isatty() or "ipykernel" in sys.modules
