"""The base of every detector: fit, score, heatmap, save and load, calibrated on normals.

The normals it is calibrated on are held out of training, or judged each by the others (`leaves_one_out`); no
patient is on both sides, nor judged by images of their own.

Knows image sets, settings and folders; knows no method. Saved models are JSON and safetensors, never
pickles. Anomaly scores are raw, higher = more anomalous, everywhere but in scikit-learn's own methods.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from torch import nn

from ..core.allocation import AllocationLimit
from ..core.errors import DataError, TrainingError
from ..core.modelfiles import ModelFiles, check_facts, write_sums, written
from ..core.processes import barrier, join_processes, of_all
from ..core.running.progress import Bar
from ..core.running.threads import adapt
from ..core.settings import SettingsError, flat, from_dict, plain, replaced
from ..core.storage import reserve
from ..data.imageset import NO_DIGEST, ImageSet, codes_of, digests, group_by_unit, middle_slices, subsample
from ..features.untrained import as_tensor
from . import drift, saving
from .calibration import (
    FALSE_ALARM_RATE,
    HOLDOUT,
    LOOKED,
    Calibration,
    HeatScale,
    Prediction,
    effective,
    finite,
    held_out,
    one_of_each,
)
from .presets import settings as preset_settings
from .registry import detector_class
from .saving import DIGESTS, StageCache, fingerprint, identity_of
from .teaching.taught import FILE as TAUGHT
from .teaching.taught import HEADING, Taught, said_of

MIN_NORMALS = 20
_THUMBNAIL = 16
_NAMED = 8  # images of a batch at fault


class UnfittedError(DataError, NotFittedError):
    """The detector is not fitted yet; scikit-learn knows this error as its `NotFittedError`."""


class Detector(OutlierMixin, BaseEstimator):
    """A one-class detector of anomalous images, and an estimator of scikit-learn's.

    Args:
        settings: the method's frozen dataclass; the `cpu` preset's where None.
        seed: decides the split, the initial weights, and every random draw.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        holdout: share of the normals kept from training, to calibrate on.
        false_alarm_rate: the rate of `predict`, `decision_function` and the threshold shown.

    Attributes:
        calibration_: scores of the held-out normals, or of all, each judged by the others; of each patient
            one, where patients are known and images are no slices.
        n_calibration_: the number of these scores.
        n_effective_: how many independent ones tell as much, by `effective`: fewer where they are of slices.
        drift_: a few quantiles of acquisition statistics of all normals, by statistic; empty in folders
            written before they were kept.
        heat_: what heatmaps of unseen normals are like, for colours and contours; None where the method has
            none, and in folders written before it was kept.
        digests_: `(M,)` uint64 digests of the images it was fitted on, ascending; None in folders written
            before they were kept.
        original_: the files of its folder as the fit wrote them, by name, where `dia calibrate` replaced
            them: a copy of the model can be brought back too. Otherwise None or empty.
        shape_: (H, W, C) of the images.
        fit_seconds_: time of training, interrupted and shared parts included.
        resumed_: whether a part of the fit was made before, by itself or by another; not in saved folders.
        facts_: facts that the saved folder remembers for the caller (data set, preset, versions).
    """

    method: ClassVar[str]
    Settings: ClassVar[type]
    family: ClassVar[str]
    paper: ClassVar[str] = ""  # where it was published
    pretrained: ClassVar[str] = ""  # the network whose ImageNet weights the publication starts from
    smallest: ClassVar[int] = 8  # side in pixels
    extra: ClassVar[str] = ""  # of the package, without which it cannot be fitted
    maps: ClassVar[bool] = False  # whether it has heatmaps
    fewest: ClassVar[int] = MIN_NORMALS  # normals to fit on
    leaves_one_out: ClassVar[bool] = False  # whether all normals train, and each is judged without itself
    exports: ClassVar[bool] = True  # whether its module is a graph of torch operations alone
    revision: ClassVar[int] = 1  # raised where equal settings come to other scores than before
    heat_: HeatScale | None = None
    taught_: Taught | None = None  # what marks added to the score
    original_: Mapping[str, bytes] | None = None
    hash_: str | None = None  # as it was when the model was saved
    _made: tuple[Any, nn.Module] | None = None  # settings, and the module made with them

    def __init__(
        self,
        settings: Any = None,
        *,
        seed: int = 0,
        device: str = "auto",
        holdout: float = HOLDOUT,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ):
        self.settings, self.seed, self.device = settings, seed, device
        self.holdout, self.false_alarm_rate = holdout, false_alarm_rate

    @classmethod
    def has_heatmaps(cls) -> bool:
        """Returns whether the method has heatmaps."""
        return cls.maps

    def weights_source(self) -> str:
        """Returns where the first weights are from, for the ledger."""
        return "none (trained from scratch on the normals)"

    def side(self) -> int | None:
        """Returns the side of the squares that images are resized to; None where they stay as they are."""
        return getattr(self.s, "size", None)

    @property
    def s(self) -> Any:
        """The settings; those of the `cpu` preset where none were given."""
        return preset_settings(self.Settings, "cpu") if self.settings is None else self.settings

    # --- provided by a method -------------------------------------------------------------------

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        """Trains on `images`; statistics that no training may have touched come from `reference` normals."""
        raise NotImplementedError

    def _module(self) -> nn.Module:
        """Makes the module that `module` returns; a method without one gives `_predict` in its place."""
        raise NotImplementedError

    def _at_once(self) -> int:
        """Returns how many images go through the module in one pass."""
        return 256

    def _predict(self, images: np.ndarray, heatmaps: bool, dissolved: bool) -> Prediction:
        """Scores one pass of `(N, H, W, C)` uint8, N > 0."""
        module, wanted = self._prepared(), {"score": True, "heatmap": heatmaps, "dissolved": dissolved}
        names = ("score", *getattr(module, "outputs", ()))
        with torch.inference_mode():
            outputs = module(as_tensor(images, getattr(self, "where_", "cpu")))
        found = zip(names, outputs, strict=True)
        return Prediction(**{name: values.cpu().numpy() for name, values in found if wanted[name]})

    def _prepared(self) -> nn.Module:
        if self._made is None or self._made[0] != self.s:
            module = self._module().to(getattr(self, "where_", "cpu")).eval().requires_grad_(False)
            self._made = self.s, module
        return self._made[1]

    def _tensors(self) -> dict[str, np.ndarray]:
        """Returns everything fitted, as arrays."""
        raise NotImplementedError

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        """Restores what `_tensors` returned and `_save_parts` wrote."""
        raise NotImplementedError

    def _restore_taught(self, tensors: dict[str, np.ndarray]) -> None:
        """Restores what marks taught; methods that can be taught do it."""
        raise DataError(f"{TAUGHT}: {self.method} cannot learn from marks")

    def _save_parts(self, folder: Path) -> None:
        """Saves sub-models that have a format of their own."""

    # --- shared by all -----------------------------------------------------------------------------

    def fit(
        self,
        images: np.ndarray | ImageSet,
        y: None = None,
        *,
        workdir: Path | None = None,
        resume: bool = False,
        progress: bool = False,
    ) -> Self:
        """Trains on normal images and calibrates on those of them it held out.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet` (of which only the normals are used).
            y: ignored, for scikit-learn.
            workdir: keeps finished stages (shared between methods of equal settings) and checkpoints.
            resume: whether to go on from checkpoints found there.
            progress: whether to show progress bars.

        Raises:
            DataError: there are fewer than 20 normal images, they are too small, of too few patients, or not
                images at all.
            TrainingError: the loss became NaN or infinite; names the step and the images of the batch.

        Example:
            >>> from dia.detectors import METHODS
            >>> normals = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 1), np.uint8)
            >>> detector = METHODS["trivial:brightness"]().fit(normals)
            >>> detector.n_train_, detector.n_calibration_
            (32, 4)
        """
        normals = images.normals() if isinstance(images, ImageSet) else ImageSet(_as_images(images))
        x, n, (h, w) = normals.images, len(normals.images), normals.images.shape[1:3]
        join_processes()
        self.facts_, self.hash_, self._made = dict(getattr(self, "facts_", {})), None, None
        for name in ("patients", "calibrated", "taught", "lineage"):
            self.facts_.pop(name, None)
        self.taught_ = self.original_ = None
        read = dict(self.facts_.get("read") or {})
        self.facts_["read"] = read | {"levels": normals.levels or read.get("levels") or "full"}
        if normals.n_patients:
            self.facts_["patients"] = normals.n_patients
        if n < self.fewest:
            raise DataError(f"{n} normal image{'s' * (n != 1)} to fit on; at least {self.fewest} are needed")
        if min(h, w) < self.smallest:
            needs = f"{self.method} needs at least {self.smallest} on each side: read them at a larger size"
            raise DataError(f"images of {h}×{w} pixels; {needs}")
        start = time.perf_counter()
        units, by_patient = normals.units, any(normals.patients) and not any(normals.volumes)
        if any(normals.patients):  # known by their first image: what they are called may change
            first = [members[0] for members in group_by_unit(n, units)]
            owners = np.array([str(first[code]) for code in codes_of(units, n)])
        else:
            of = enumerate(_each(normals.volumes, n))
            owners = np.array([str(i) if v is None else f"of {v}" for i, v in of])
        own_digests = digests(x)
        if self.leaves_one_out:
            train = _distinct(own_digests, self.fewest)
            calibration, reference = train, np.arange(0)
        else:
            parts = held_out(n, self.holdout, self.seed, units, whole=any(normals.patients))
            calibration, reference, train = map(np.sort, parts)
        self.shape_, self.n_train_ = x.shape[1:], len(train)
        self._units = owners[train]  # equal for the images of a patient, or the slices of a volume
        with tempfile.TemporaryDirectory() as temporary:
            shared = Path(of_all(temporary)[0])  # several processes work in one folder
            stages = StageCache(Path(workdir or shared), resume=resume, progress=progress)
            try:
                self._fit(_rows(x, train, Path(temporary)), x[reference], stages)
            except TrainingError as error:
                if not len(error.batch) or error.of != len(train):
                    raise
                names = [normals.names[train[i]] for i in error.batch]
                more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
                at_fault = f"{error}: {', '.join(names[:_NAMED])}{more}"
                raise TrainingError(at_fault, error.batch, error.of) from None
            barrier()
        del self._units
        if self.leaves_one_out:
            scores, self.heat_ = self.__dict__.pop("_left_out"), self.__dict__.pop("_heat", None)
            calibration = subsample(calibration, len(scores))
            alone = any(normals.volumes) and len(np.unique(owners[train])) == 1
            if alone:
                warnings.warn(
                    "the normals are slices of one volume, which tell nothing of how much volumes differ: "
                    "there is no threshold, and p-values say nothing; give more volumes",
                    stacklevel=2,
                )
            if by_patient or alone:
                chosen = one_of_each([units[int(i)] for i in calibration], len(scores), self.seed)
                calibration, scores = calibration[chosen], scores[chosen]
        else:
            if by_patient:
                chosen = one_of_each([units[int(i)] for i in calibration], len(calibration), self.seed)
                calibration = calibration[chosen]
            few = (calibration[i : i + 512] for i in range(0, len(calibration), 512))
            scores = np.concatenate([self._scored(x[part]).score for part in few])
            some = x[subsample(calibration, LOOKED)]
            maps = self._scored(some, heatmaps=True).heatmap if self.has_heatmaps() else None
            self.heat_ = None if maps is None else HeatScale.of(maps)
        self.calibration_, self.n_calibration_ = Calibration.of(scores), len(scores)
        self.n_effective_ = effective([units[int(i)] for i in calibration] if units else (), len(scores))
        self.fit_seconds_ = time.perf_counter() - start + stages.earlier
        self.resumed_ = stages.earlier > 0  # a part of it was made before, by this fit or by another
        self.drift_ = drift.references(x, middle_slices(units, n))
        self.digests_: np.ndarray | None = np.setdiff1d(own_digests, [NO_DIGEST])
        return self

    def _scored(
        self, x: np.ndarray, heatmaps: bool = False, dissolved: bool = False, batch: int = 512
    ) -> Prediction:
        """Scores images pass by pass."""
        step = min(batch, self._at_once())
        parts = []
        with Bar("Scoring", len(x), "image", after=2) as bar:
            for i in range(0, len(x), step):
                adapt()
                parts.append(self._predict(x[i : i + step], heatmaps, dissolved))
                bar.update(min(i + step, len(x)))
        if not parts:
            return Prediction(np.empty(0))
        columns: Any = zip(*parts, strict=True)
        whole: Any = (None if column[0] is None else np.concatenate(column) for column in columns)
        return Prediction(*whole)

    def module(self) -> nn.Module:
        """Returns the fitted scoring, in eval mode: the one definition of the score, which is exported too.

        Returns:
            A module from `(N, C, H, W)` uint8, in the detector's own shape and on its device, to a tuple: the
            score `(N,)` float64 and the outputs that the module's `outputs` names, of `heatmap` `(N, H, W)`
            float32 and `dissolved` `(N, T, H, W, C)` uint8.

        Raises:
            DataError: it is not fitted, or its method has no module, as anomalib's models have none.
        """
        self._fitted()
        if type(self)._module is Detector._module:
            raise DataError(f"{self.method} has no module of its own")
        return self._prepared()

    def cannot_export(self) -> str:
        """Returns why no graph can hold the fitted detector, in one line; empty where one can."""
        return ""

    def detect(
        self,
        images: np.ndarray | ImageSet,
        *,
        heatmaps: bool = True,
        dissolved: bool = False,
        batch: int = 512,
    ) -> Prediction:
        """Scores images and makes heatmaps and dissolved copies, in one pass, each image on its own.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`, in the shape that was fitted.
            heatmaps: whether to give heatmaps, where the method has them.
            dissolved: whether to give dissolved copies, where the method dissolves when scoring.
            batch: images taken at a time at most, which changes nothing but memory.

        Returns:
            The score of each image, and its heatmap and dissolved copies as far as they were asked for.

        Raises:
            DataError: the images have another shape or type, or a score is not finite.
            UnfittedError: it is not fitted.

        Example:
            >>> from dia.detectors import METHODS
            >>> normals = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 1), np.uint8)
            >>> found = METHODS["trivial:pca"]().fit(normals).detect(normals[:2])
            >>> found.score.shape, found.heatmap.shape, found.dissolved
            ((2,), (2, 16, 16), None)
        """
        found = self._scored(self._check(images), heatmaps and self.has_heatmaps(), dissolved, batch)
        finite(found.score, images.names if isinstance(images, ImageSet) else ())
        return found

    def score(self, images: np.ndarray | ImageSet, y: None = None, *, batch: int = 512) -> np.ndarray:
        """Returns raw anomaly scores `(N,)` float64, higher = more anomalous, each image on its own.

        It is not scikit-learn's one number for all: searches of scikit-learn need `scoring=`.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`.
            y: ignored, for scikit-learn's pipelines.
            batch: images taken at a time at most.

        Example:
            >>> from dia.detectors import METHODS
            >>> normals = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 1), np.uint8)
            >>> METHODS["trivial:brightness"]().fit(normals).score(normals[:3]).shape
            (3,)
        """
        return self.detect(images, heatmaps=False, batch=batch).score

    def heatmap(self, images: np.ndarray | ImageSet, *, batch: int = 512) -> np.ndarray | None:
        """Maps where images are anomalous, on one scale for all; `detect` gives scores in the same pass.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`.
            batch: images taken at a time at most.

        Returns:
            `(N, H, W)` float32, higher where more anomalous; None where the method has no heatmaps.

        Example:
            >>> from dia.detectors import METHODS
            >>> normals = np.random.default_rng(0).integers(0, 99, (40, 16, 16, 1), np.uint8)
            >>> METHODS["trivial:pca"]().fit(normals).heatmap(normals[:2]).shape
            (2, 16, 16)
        """
        return self.detect(images, batch=batch).heatmap if self.has_heatmaps() else None

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Returns features to compare images by, `(N, D)` float32: the grey 16×16 thumbnail, standardised.

        Each thumbnail has mean 0 and variance 1, so brightness and contrast do not count. Methods with an
        encoder return its features.
        """
        small = ImageSet(self._check(images)).with_channels(1).resized(_THUMBNAIL, _THUMBNAIL).images
        x = small.reshape(len(small), -1).astype(np.float32)
        x -= x.mean(1, keepdims=True)
        return x / np.maximum(x.std(1, keepdims=True), 1e-6)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Returns conformal p-values `(N,)` of raw scores; `calibration.py` says what they promise."""
        return self._fitted().calibration_.p_values(scores)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """Returns the raw score above which an image is flagged at a rate, by default the constructor's."""
        return self._fitted().calibration_.threshold(false_alarm_rate or self.false_alarm_rate)

    def was_fitted_on(self, images: np.ndarray | ImageSet) -> np.ndarray | None:
        """Returns whether each image has the very pixels of one that it was fitted or calibrated on.

        Images that taught it count as well.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`, in the shape that was fitted.

        Returns:
            `(N,)` bool, False for images of one grey level alone; None where the model does not know, as it
            was fitted by an earlier version.
        """
        x = self._check(images)
        known = getattr(self, "digests_", None)
        if known is None:
            return None
        made = digests(x)
        return np.isin(made, known) | (self.taught_.knows(made) if self.taught_ is not None else False)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Returns minus the anomaly score, as scikit-learn has it: higher = more normal."""
        return -self.score(X)

    @property
    def offset_(self) -> float:
        """The offset of scikit-learn: `decision_function` is `score_samples` minus it."""
        return -self.threshold()

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Returns `score_samples` shifted so that flagged images are negative.

        It is finite even where too few normals were held out for a finite threshold: then none is negative,
        and the order is that of `score_samples`.
        """
        threshold, scores = self.threshold(), self.score(X)
        if np.isfinite(threshold):
            return threshold - scores
        far = np.hypot(scores, 1) + np.abs(scores)
        return np.where(scores > 0, 1 / far, far)  # √(s² + 1) − s, without its cancellation

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Returns −1 for flagged images and 1 for the others."""
        return np.where(self.score(X) > self.threshold(), -1, 1)

    def _check(self, images: np.ndarray | ImageSet) -> np.ndarray:
        shape = self._fitted().shape_
        x = images.images if isinstance(images, ImageSet) else _as_images(images)
        known = (self.facts_.get("read") or {}).get("levels")  # not in models of 0.1
        if isinstance(images, ImageSet) and images.levels and known and images.levels != known:
            raise DataError(
                f"images read with black and white {images.levels}, the model was fitted with {known}; "
                f"read them with levels={known!r}"
            )
        if tuple(x.shape[1:]) != shape:
            h, w, c = shape
            raise DataError(
                f"images are {x.shape[1:]}, the model was fitted on {shape}; "
                f"read them with size=({h}, {w}), channels={c}"
            )
        return x

    def _fitted(self) -> Self:
        if not self.__sklearn_is_fitted__():
            raise UnfittedError(f"{self.method} is not fitted; call fit() or load a fitted model first")
        return self

    # --- scikit-learn -----------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images are four-dimensional
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments; if `deep` also each setting, as `settings__amplify__width`."""
        own = super().get_params(deep=False)
        inner = flat(self.s) if deep and is_dataclass(self.s) else {}
        return own | {f"settings__{k.replace('.', '__')}": v for k, v in inner.items()}

    def set_params(self, **params: Any) -> Self:
        """Sets parameters that `get_params` names; other settings stay as they are.

        Raises:
            SettingsError: there is no such setting, or it cannot have that value.
        """
        inner = {k: v for k, v in params.items() if k.startswith("settings__")}
        super().set_params(**{k: v for k, v in params.items() if k not in inner})
        if inner:
            names = {k.removeprefix("settings__").replace("__", "."): v for k, v in inner.items()}
            self.settings = replaced(self.s, names)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_made"}  # made anew where needed

    # --- folders ------------------------------------------------------------------------------------

    def save(self, folder: Path | str, card: str = "") -> Path:
        """Writes the model folder: JSON, weights, digests of the images it was fitted on, checksums, card.md.

        The folder appears complete or not at all; one of the same name is replaced.

        Args:
            folder: where to write.
            card: the text of card.md; a short one by default.

        Returns:
            The folder.
        """
        self._fitted()
        folder = Path(folder)
        facts = check_facts(json.loads(json.dumps(self.facts_)))  # so that what is written can be loaded
        config = saving.Config(
            saving.FORMAT, self.method, plain(self.s), self.seed, self.holdout, self.false_alarm_rate,
            self.shape_, self.n_train_, self.n_calibration_, self.fit_seconds_, facts, self.revision,
            self.settings_hash(), self.n_effective_,
        )  # fmt: skip
        scores = {"held_out_normal_scores": self.calibration_.scores.tolist()}
        with written(folder) as new:
            tensors = {k: np.ascontiguousarray(v) for k, v in self._tensors().items()}
            save_file(tensors, new / "weights.safetensors")
            (new / "calibration.json").write_text(json.dumps(scores))
            (new / "drift.json").write_text(json.dumps(drift.to_json(self.drift_)))
            if self.heat_ is not None:
                (new / "heatmaps.json").write_text(json.dumps(self.heat_.to_json()))
            if (known := getattr(self, "digests_", None)) is not None:
                save_file({"digests": known}, new / DIGESTS)
            (new / "card.md").write_text(card or self._card())
            if self.taught_ is not None:
                save_file(self.taught_.tensors(), new / TAUGHT)
            self._save_parts(new)
            for name, content in (self.original_ or {}).items():
                (new / name).write_bytes(content)
            (new / "config.json").write_text(json.dumps(plain(config), indent=2))  # without it, no model
            write_sums(new)
        return folder

    @staticmethod
    def load(folder: Path | str, *, device: str = "auto") -> Detector:
        """Loads the detector saved in a folder, of whatever method. Runs no code from the folder.

        `modelfiles.py` and `saving.py` say what is read and how it is checked.

        Args:
            folder: a folder that `save` wrote.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            DataError: it is no model folder, damaged, changed, or asks for more than it can need.
        """
        folder = Path(folder)
        with torch.inference_mode(False), saving.naming(folder):  # else its weights would not count changes
            return _loaded(folder, device)

    def settings_hash(self) -> str:
        """Returns a hash of method, revision, settings and hold-out: with the seed it names a run.

        Weights from a file or a run enter by their contents, not by their place.
        """
        if self.hash_:
            return self.hash_
        s = self.s
        if hasattr(s, "weights"):
            s = replace(s, weights=identity_of(s.weights))
        later = [self.revision] * (self.revision > 1)
        return fingerprint(self.method, s, self.holdout, *later)

    def _card(self) -> str:
        h, w, c = self.shape_
        try:
            loaded = self.hash_ is not None  # from a folder whose settings may name any file
            weights = self.facts_.get("weights") or "not told" if loaded else self.weights_source()
        except DataError:  # the fitted model needs the file no more
            weights = "a file that is not there any more"
        own = self.leaves_one_out and "calibrated" not in self.facts_
        others = "of them, each judged without itself" if own else "others"
        taught = self.facts_.get("taught")
        return (
            f"# {self.method}\n\nA one-class anomaly detector fitted on {self.n_train_} normal images "
            f"of {h}×{w}×{c}, calibrated on {self.n_calibration_} {others} (seed {self.seed}). "
            f"Weights: {weights}. For research; not a medical device.\n"
            + (f"\n{HEADING}\n\n{said_of(taught)}\n" if taught else "")
        )


def _loaded(folder: Path, device: str) -> Detector:
    files = ModelFiles(folder)
    files.verify()
    config, scores = saving.read(files)
    cls = detector_class(config.method)
    if config.revision != cls.revision:
        here = f"here is {cls.revision}, so fit it again"
        raise DataError(f"{folder}: of revision {config.revision} of {cls.method}; {here}")
    try:
        older = getattr(cls.Settings, "from_0_1", dict)
        settings = from_dict(cls.Settings, older(config.settings))
    except SettingsError as error:
        raise DataError(f"{folder}: {error}; fitted by another version of dia: fit it again") from error
    saving.check_settings(settings)
    kept = {"holdout": config.holdout, "false_alarm_rate": config.false_alarm_rate}
    self = cls(settings, seed=config.seed, device=device, **kept)
    self.shape_, self.facts_ = config.shape, config.facts
    self.hash_ = config.settings_hash or fingerprint(config.method, settings, config.holdout)  # reads no file
    self.n_train_, self.n_calibration_ = config.n_train, config.n_calibration
    self.fit_seconds_, self.calibration_ = config.fit_seconds, Calibration.of(scores)
    self.drift_ = saving.read_drift(files)
    # not in older folders, which measured one image of each unit for drift, and so know at most how many
    most = min([self.n_calibration_, *(reference.n for reference in self.drift_.values())])
    self.n_effective_ = float(min(config.n_effective or most, self.n_calibration_))
    if (folder / "heatmaps.json").exists():  # not in older folders
        self.heat_ = HeatScale.from_json(files.json("heatmaps.json"))
    self.digests_ = saving.read_digests(files) if (folder / DIGESTS).exists() else None
    self.original_ = saving.read_fitted(files)
    weights = files.weights("weights.safetensors")
    with AllocationLimit(folder, files.nbytes):
        self._restore(load_file(weights), folder)
        if (folder / TAUGHT).exists() != bool(self.facts_.get("taught")):
            raise DataError(
                f"config.json and {TAUGHT} do not agree on what marks taught it; fetch the folder again"
            )
        if self.facts_.get("taught"):
            self._restore_taught(load_file(files.weights(TAUGHT)))
    saving.probe(self)  # arrays of other shapes may fail only here
    if files.sums is None:
        warnings.warn(
            f"{folder}: saved before checksums were, so damage to it may go unseen; "
            "Detector.load(...).save(...) writes them",
            stacklevel=3,
        )
    return self


def _each(volumes: Sequence[str | None], n: int) -> Sequence[str | None]:
    return volumes if len(volumes) else (None,) * n


def _as_images(x: np.ndarray) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.ndim != 4 or x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
        what = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"images must be a uint8 array (N, H, W, 1 or 3), not {what}")
    return x


def _distinct(found: np.ndarray, fewest: int) -> np.ndarray:
    """Returns the indices of images without those that are exact copies of an earlier one, in order.

    A copy would judge its image, which then looks more usual than any new one.

    Args:
        found: `(N,)` of `digests`.
        fewest: where fewer would be left, all stay.
    """
    first = np.unique(found, return_index=True)[1]
    kept = np.union1d(first, np.flatnonzero(found == NO_DIGEST))
    copies = len(found) - len(kept)
    if copies and len(kept) >= fewest:
        warnings.warn(
            f"{copies} of the {len(found)} normals are copies of others; each counts once", stacklevel=3
        )
        return kept
    if copies:
        warnings.warn(f"of the {len(found)} normals {len(kept)} differ: p-values say nothing", stacklevel=3)
    return np.arange(len(found))


def _rows(x: np.ndarray, index: np.ndarray, folder: Path) -> np.ndarray:
    """Returns `x[index]`; from a memory map, as another one."""
    if not isinstance(x, np.memmap):
        return x[index]
    rows = np.lib.format.open_memmap(folder / "train.npy", "w+", x.dtype, (len(index), *x.shape[1:]))
    reserve(folder / "train.npy")
    for start in range(0, len(index), 1024):
        rows[start : start + 1024] = x[index[start : start + 1024]]
    return rows
