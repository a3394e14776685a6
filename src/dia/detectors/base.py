"""What every detector is: fit, score, heatmap, save and load, calibrated on normals it did not train on.

Knows image sets, settings and folders; knows no method. Saved models are JSON and safetensors, never
pickles. Anomaly scores are raw, higher = more anomalous, everywhere but in scikit-learn's own methods.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
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
from ..core.modelfiles import ModelFiles, write_sums
from ..core.processes import barrier, join_processes, of_all
from ..core.settings import SettingsError, flat, from_dict, plain, replaced
from ..core.storage import replace_folder, reserve
from ..data.imageset import ImageSet, middle_slices
from . import drift, saving
from .calibration import FALSE_ALARM_RATE, HOLDOUT, Calibration, Prediction, held_out
from .drift import acquisition, statistics_of
from .features import as_tensor
from .presets import settings as preset_settings
from .registry import detector_class
from .saving import StageCache, fingerprint, identity_of

FORMAT = 1
MIN_NORMALS = 20
_THUMBNAIL = 16
_NAMED = 8  # images of a batch at fault


class UnfittedError(DataError, NotFittedError):
    """A detector asked for what only a fitted one has; scikit-learn knows it as its `NotFittedError`."""


class Detector(OutlierMixin, BaseEstimator):
    """A one-class detector of anomalous images, and an estimator of scikit-learn's.

    Args:
        settings: the method's frozen dataclass; the `cpu` preset's where None.
        seed: of the split, the initial weights, and every random draw.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        holdout: share of the normals kept from training, to calibrate on.
        false_alarm_rate: of `predict`, `decision_function` and the threshold shown.

    Attributes:
        calibration_: scores of the held-out normals.
        drift_: a few quantiles of acquisition statistics of all normals, by statistic; empty in folders
            written before they were kept.
        shape_: (H, W, C) of the images.
        fit_seconds_: time of training, interrupted and shared parts included.
        facts_: what the caller wants the saved folder to remember (data set, preset, versions).
    """

    method: ClassVar[str]
    Settings: ClassVar[type]
    family: ClassVar[str]
    paper: ClassVar[str] = ""  # where it was published
    pretrained: ClassVar[str] = ""  # the network whose ImageNet weights the publication starts from
    smallest: ClassVar[int] = 8  # side in pixels
    extra: ClassVar[str] = ""  # of the package, without which it cannot be fitted
    maps: ClassVar[bool] = False  # whether it says where
    exports: ClassVar[bool] = True  # whether its module is a graph of torch operations alone
    revision: ClassVar[int] = 1  # raised where equal settings come to other scores than before
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
        self.settings = settings
        self.seed = seed
        self.device = device
        self.holdout = holdout
        self.false_alarm_rate = false_alarm_rate

    @classmethod
    def has_heatmaps(cls) -> bool:
        """Whether the method says where."""
        return cls.maps

    def weights_source(self) -> str:
        """Where the first weights are from, as the ledger says it."""
        return "none (trained from scratch on the normals)"

    def side(self) -> int | None:
        """The side of the squares that images are resized to; None where they stay as they are."""
        return getattr(self.s, "size", None)

    @property
    def s(self) -> Any:
        """The settings; those of the `cpu` preset where none were given."""
        return preset_settings(self.Settings, "cpu") if self.settings is None else self.settings

    # --- what a method provides -------------------------------------------------------------------

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        """Trains on `images`; statistics that no training may have touched come from `reference` normals."""
        raise NotImplementedError

    def _module(self) -> nn.Module:
        """What `module` gives; a method without one gives `_predict` in its place."""
        raise NotImplementedError

    def _at_once(self) -> int:
        """Images in one pass through the module."""
        return 256

    def _predict(self, images: np.ndarray, heatmaps: bool, dissolved: bool) -> Prediction:
        """One batch `(N, H, W, C)` uint8; a method without a module gives this in place of `_module`."""
        module, where, step = self._prepared(), getattr(self, "where_", "cpu"), self._at_once()
        wanted = {"score": True, "heatmap": heatmaps, "dissolved": dissolved}
        names = ("score", *getattr(module, "outputs", ()))
        made: dict[str, list[np.ndarray]] = {name: [] for name in names if wanted[name]}
        with torch.inference_mode():
            for start in range(0, len(images), step):
                outputs = module(as_tensor(images[start : start + step], where))
                for name, values in zip(names, outputs, strict=True):
                    if name in made:
                        made[name].append(values.cpu().numpy())
        return Prediction(**{name: np.concatenate(parts) for name, parts in made.items()})

    def _prepared(self) -> nn.Module:
        if self._made is None or self._made[0] != self.s:
            module = self._module().to(getattr(self, "where_", "cpu")).eval().requires_grad_(False)
            self._made = self.s, module
        return self._made[1]

    def _tensors(self) -> dict[str, np.ndarray]:
        """Everything fitted, as arrays."""
        raise NotImplementedError

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        raise NotImplementedError

    def _save_parts(self, folder: Path) -> None:
        """Sub-models that have a format of their own."""

    # --- what all share -----------------------------------------------------------------------------

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
            resume: go on from checkpoints found there.
            progress: show progress bars.

        Raises:
            DataError: fewer than 20 normal images, too small ones, or not images at all.
            TrainingError: the loss became NaN or infinite; names the step and the images of the batch.
        """
        normals = images.normals() if isinstance(images, ImageSet) else ImageSet(_as_images(images))
        x = normals.images
        join_processes()
        self.facts_, self.hash_, self._made = getattr(self, "facts_", {}), None, None
        if len(x) < MIN_NORMALS:
            raise DataError(
                f"{len(x)} normal image{'s' * (len(x) != 1)} to fit on; at least {MIN_NORMALS} are needed"
            )
        if min(x.shape[1:3]) < self.smallest:
            h, w = x.shape[1:3]
            raise DataError(
                f"images of {h}×{w} pixels; {self.method} needs at least {self.smallest} on each side: "
                "read them at a larger size"
            )
        start = time.perf_counter()
        calibration, reference, train = held_out(len(x), self.holdout, self.seed, normals.volumes)
        self.shape_ = tuple(x.shape[1:])
        self.n_train_, self.n_calibration_ = len(train), len(calibration)
        train, reference = np.sort(train), np.sort(reference)  # in file order, for memory maps
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
                raise TrainingError(
                    f"{error}: {', '.join(names[:_NAMED])}{more}", error.batch, error.of
                ) from None
            barrier()
        calibration.sort()
        parts = (calibration[i : i + 512] for i in range(0, len(calibration), 512))
        scores = [self._predict(x[part], False, False).score for part in parts]
        self.calibration_ = Calibration.of(np.concatenate(scores))
        self.fit_seconds_ = time.perf_counter() - start + stages.earlier
        self.drift_ = _references(x, middle_slices(normals.volumes, len(x)))
        return self

    def module(self) -> nn.Module:
        """The fitted scoring, in eval mode: the one definition of the score, which `dia export` writes too.

        Returns:
            A module from `(N, C, H, W)` uint8, in the detector's own shape and on its device, to a tuple: the
            score `(N,)` float64 and what the module's `outputs` name, of `heatmap` `(N, H, W)` float32 and
            `dissolved` `(N, T, H, W, C)` uint8.

        Raises:
            DataError: it is not fitted, or its method has no module, as anomalib's models have none.
        """
        self._fitted()
        if type(self)._module is Detector._module:
            raise DataError(f"{self.method} has no module of its own")
        return self._prepared()

    def cannot_export(self) -> str:
        """Why no graph can hold what this detector was fitted with, in one line; empty where one can."""
        return ""

    def detect(
        self,
        images: np.ndarray | ImageSet,
        *,
        heatmaps: bool = True,
        dissolved: bool = False,
        batch: int = 512,
    ) -> Prediction:
        """Scores, heatmaps and dissolved copies in one pass; an image's are its own alone.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`, in the shape that was fitted.
            heatmaps: give them where the method has them.
            dissolved: give the dissolved copies where the method dissolves when scoring.
            batch: images taken at a time, on which nothing depends but memory.

        Returns:
            The score of each image, and what else was asked for and had.

        Raises:
            DataError: images of another shape or type.
            UnfittedError: it is not fitted.
        """
        x = self._check(images)
        heatmaps = heatmaps and self.has_heatmaps()
        parts = [self._predict(x[i : i + batch], heatmaps, dissolved) for i in range(0, len(x), batch)]
        if not parts:
            return Prediction(np.empty(0))
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in Prediction._fields
            if getattr(parts[0], name) is not None
        }
        return Prediction(**whole)

    def score(self, images: np.ndarray | ImageSet, y: None = None, *, batch: int = 512) -> np.ndarray:
        """Raw anomaly scores `(N,)` float64, higher = more anomalous; an image's score is its own alone.

        Not scikit-learn's one number for all: its searches need `scoring=`.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`.
            y: ignored, for scikit-learn's pipelines.
            batch: images taken at a time.
        """
        return self.detect(images, heatmaps=False, batch=batch).score

    def heatmap(self, images: np.ndarray | ImageSet, *, batch: int = 512) -> np.ndarray | None:
        """Where images are anomalous, on one scale for all; `detect` gives the scores in the same pass.

        Args:
            images: `(N, H, W, C)` uint8 or an `ImageSet`.
            batch: images taken at a time.

        Returns:
            `(N, H, W)` float32, higher where more anomalous; None without maps.
        """
        return self.detect(images, batch=batch).heatmap if self.has_heatmaps() else None

    def features(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """What images are compared by, `(N, D)` float32: here the grey 16×16 thumbnail, standardised.

        Each thumbnail has mean 0 and variance 1, so brightness and contrast do not count. Methods with an
        encoder of their own give its features.
        """
        small = ImageSet(self._check(images)).with_channels(1).resized(_THUMBNAIL, _THUMBNAIL).images
        x = small.reshape(len(small), -1).astype(np.float32)
        x -= x.mean(1, keepdims=True)
        return x / np.maximum(x.std(1, keepdims=True), 1e-6)

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Conformal p-values `(N,)` of raw scores; see `calibration.py` for what they promise."""
        return self._fitted().calibration_.p_values(scores)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """The raw score above which an image is flagged at this rate (default: the constructor's)."""
        return self._fitted().calibration_.threshold(false_alarm_rate or self.false_alarm_rate)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """scikit-learn's sense: minus the anomaly score, so higher = more normal."""
        return -self.score(X)

    @property
    def offset_(self) -> float:
        """scikit-learn's: `decision_function` is `score_samples` minus it."""
        return -self.threshold()

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """`score_samples` shifted so that flagged images are negative.

        Finite, too, where too few normals were held out for a finite threshold: then none is negative, and
        the order is that of `score_samples`.
        """
        threshold, scores = self.threshold(), self.score(X)
        if np.isfinite(threshold):
            return threshold - scores
        far = np.hypot(scores, 1) + np.abs(scores)
        return np.where(scores > 0, 1 / far, far)  # √(s² + 1) − s, without its cancellation

    def predict(self, X: np.ndarray) -> np.ndarray:
        """−1 for flagged images, 1 for the others."""
        return np.where(self.score(X) > self.threshold(), -1, 1)

    def _check(self, images: np.ndarray | ImageSet) -> np.ndarray:
        shape = self._fitted().shape_
        x = images.images if isinstance(images, ImageSet) else _as_images(images)
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

    # --- scikit-learn's -----------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # images are four-dimensional
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; `deep` also each setting, as `settings__amplify__width`."""
        own = super().get_params(deep=False)
        inner = flat(self.s) if deep and is_dataclass(self.s) else {}
        return own | {f"settings__{k.replace('.', '__')}": v for k, v in inner.items()}

    def set_params(self, **params: Any) -> Self:
        """Sets what `get_params` names; settings not named stay as they are.

        Raises:
            SettingsError: no such setting, or one that cannot be.
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
        """Writes the model folder: config, calibration, drift and checksums as JSON, weights, card.md.

        The folder appears complete or not at all; one of the same name is replaced.
        """
        self._fitted()
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            config = {
                "format": FORMAT,
                "method": self.method,
                "revision": self.revision,
                "settings": plain(self.s),
                "settings_hash": self.settings_hash(),
                "seed": self.seed,
                "holdout": self.holdout,
                "false_alarm_rate": self.false_alarm_rate,
                "shape": list(self.shape_),
                "n_train": self.n_train_,
                "n_calibration": self.n_calibration_,
                "fit_seconds": self.fit_seconds_,
                "facts": self.facts_,
            }
            (new / "config.json").write_text(json.dumps(config, indent=2))
            tensors = {k: np.ascontiguousarray(v) for k, v in self._tensors().items()}
            save_file(tensors, new / "weights.safetensors")
            scores = {"held_out_normal_scores": self.calibration_.scores.tolist()}
            (new / "calibration.json").write_text(json.dumps(scores))
            (new / "drift.json").write_text(json.dumps(drift.to_json(self.drift_)))
            (new / "card.md").write_text(card or self._card())
            self._save_parts(new)
            write_sums(new)
            new.chmod(0o755)
            replace_folder(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return folder

    @staticmethod
    def load(folder: Path | str, *, device: str = "auto") -> Detector:
        """The detector saved in `folder`, of whatever method. Runs no code from the folder.

        What is read of it, and how it is checked, stands in `modelfiles.py` and `saving.py`.

        Raises:
            DataError: no model folder, damaged, changed, or asking for more than it can need.
        """
        folder = Path(folder)
        try:
            files = ModelFiles(folder)
            files.verify()
            config, scores = saving.read(files, FORMAT)
            cls = detector_class(config["method"])
            if (there := config.get("revision", 1)) != cls.revision:
                raise DataError(
                    f"{folder}: of revision {there} of {cls.method}; here is {cls.revision}, so fit it again"
                )
            try:
                older = getattr(cls.Settings, "from_0_1", dict)
                settings = from_dict(cls.Settings, older(config["settings"]))
            except SettingsError as error:
                raise DataError(
                    f"{folder}: {error}; fitted by another version of dia: fit it again"
                ) from error
            saving.check_settings(files, settings)
            self = cls(
                settings,
                seed=config["seed"],
                device=device,
                holdout=config["holdout"],
                false_alarm_rate=config["false_alarm_rate"],
            )
            self.shape_ = tuple(config["shape"])
            self.n_train_, self.n_calibration_ = config["n_train"], config["n_calibration"]
            self.fit_seconds_, self.facts_ = config["fit_seconds"], config["facts"]
            self.hash_ = config.get("settings_hash")
            self.calibration_ = Calibration.of(scores)
            kept = (folder / "drift.json").exists()  # not in older folders
            self.drift_ = drift.from_json(files.json("drift.json")) if kept else {}
            weights = files.weights("weights.safetensors")
            with AllocationLimit(folder, files.nbytes):
                self._restore(load_file(weights), folder)
            probe = np.resize(np.arange(256, dtype=np.uint8), (1, *self.shape_))
            score = self._predict(probe, False, False).score  # arrays of other shapes may fail only here
            if score.shape != (1,):  # or spread
                raise ValueError("its weights give no score")
            if files.sums is None:
                warnings.warn(
                    f"{folder}: saved before checksums were, so damage to it may go unseen; "
                    "Detector.load(...).save(...) writes them",
                    stacklevel=2,
                )
        except DataError as error:
            if str(folder) in str(error):
                raise
            raise DataError(f"{folder}: {error}") from error
        except Exception as error:
            reason = f"no {Path(error.filename).name}" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(
                f"{folder}: not a model folder made by `dia fit` ({' '.join(reason.split())[:200]})"
            ) from error
        return self

    def settings_hash(self) -> str:
        """Hash of method, revision, settings and hold-out: tells the ledger's runs apart, beside the seed.

        Weights from a file or a run enter by what they are, not by where they lie.
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
            weights = self.weights_source()
        except DataError:  # the fitted model needs the file no more
            weights = "a file that is not there any more"
        return (
            f"# {self.method}\n\nA one-class anomaly detector fitted on {self.n_train_} normal images "
            f"of {h}×{w}×{c}, calibrated on {self.n_calibration_} others (seed {self.seed}). "
            f"Weights: {weights}. For research; not a medical device.\n"
        )


def _references(x: np.ndarray, chosen: np.ndarray) -> dict[str, drift.Reference]:
    """Of all normals: nothing is fitted to these numbers, so the normals trained on serve as well."""
    parts = [acquisition(x[chosen[i : i + 512]]) for i in range(0, len(chosen), 512)]
    columns = zip(statistics_of(x.shape[-1]), np.concatenate(parts).T, strict=True)
    return {name: drift.Reference.of(values) for name, values in columns if len(values) > 1}


def _as_images(x: np.ndarray) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.ndim != 4 or x.dtype != np.uint8 or x.shape[-1] not in (1, 3):
        what = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"images must be a uint8 array (N, H, W, 1 or 3), not {what}")
    return x


def _rows(x: np.ndarray, index: np.ndarray, folder: Path) -> np.ndarray:
    """`x[index]`; of a memory map, as another one."""
    if not isinstance(x, np.memmap):
        return x[index]
    rows = np.lib.format.open_memmap(folder / "train.npy", "w+", x.dtype, (len(index), *x.shape[1:]))
    reserve(folder / "train.npy")
    for start in range(0, len(index), 1024):
        rows[start : start + 1024] = x[index[start : start + 1024]]
    return rows
