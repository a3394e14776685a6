"""Other authors' methods as detectors: anomalib's models, with our splits and raw scores. Knows `weights`.

Source: anomalib 2.7 (Intel, Apache-2.0), which is imported when a model is made and not before, so that its
methods can be listed without it. Eight of them have names, settings and presets here; any other image model
is `anomalib:NAME`, with its constructor's arguments as `options`.

anomalib's own here: networks, losses, optimisers, memory banks, training steps, and its pre-processor at the
side in `size`. Ours: the split; batches and chance from (seed, step); checkpoints at the ends of epochs; the
first weights, by `weights.py` (every `timm.create_model` of a model goes through `backbone`), with the
papers' tags instead of anomalib's. Scores and maps are what the network returns: nothing is normalised by
other images, clamped, or thresholded. What a run could not do as its settings ask is in `adapted_`, as
[asked, done].

Deviations, beside random weights in all presets but `paper`:
- cflow: anomalib divides likelihoods by the greatest of the batch; here by the greatest of normals that were
  not trained on, so that an image's score is its own. Its sums of exponentials, as those of fastflow and
  uflow, come to their end for images that are very unlikely.
- efficientad: the penalty wants Imagenette; without `imagenet_dir` it gets the normals with shuffled, turned
  tiles. Map quantiles come from normals that were not trained on. The learning rate falls by step, as
  published; anomalib counts epochs. With `weights` none the teacher is random.
- ganomaly: images are in [-1, 1], where its generator's tanh ends, not standardised by ImageNet.
- uflow and fastflow with ResNets, cfa: timm's networks; images are resized to squares, never cropped.
- patchcore: of too many images for `memory_gb`, so many evenly spaced ones fill the bank.
- `paper` presets: rd4ad's and efficientad's lengths are published; where the length of others is not known
  to us (anomalib has none), the number of epochs is ours, the rest anomalib's defaults.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache, partialmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_origin, get_type_hints

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.imageset import DataError
from ..settings import chosen, require
from ..training import CHECKPOINT, TrainingError, batch_indices, choose_device, processes, seed_step
from .base import Detector, Stages, fingerprint, module_tensors
from .csi import spread
from .weights import OwnFeatures, OwnResNet, _line, _read, backbone, check_weights, describe

PREFIX = "anomalib:"
_PIXELS = 2**18  # of one forward pass when scoring
_EPOCH = 500  # steps of efficientad between checkpoints
_BUILD, _PREPARE, _FINISH = (2**32 - k for k in (5, 6, 7))  # steps of the seed that no batch has
_FIXED = {"mcait": 448, "cait_m48_448": 448, "deit_base_distilled_patch16_384": 384}  # sides of transformers
_OURS = {"size", "batch", "epochs", "steps", "weights", "memory_gb", "imagenet_dir", "statistics", "options"}
_BLIND = ("Ganomaly", "Dfkde")  # which give no map
_ResNet = Literal["resnet18", "resnet50", "wide_resnet50_2"]
_Two = Literal["resnet18", "wide_resnet50_2"]


# --- settings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerSettings:
    """What all have; further fields are arguments of anomalib's constructor, under its names.

    Args:
        size: images are resized to squares of this side; one the method cannot have is raised, and recorded.
        batch: images per step.
    """

    size: int = 256
    batch: int = 32

    own: ClassVar[bool] = True  # whether weights may be `dia:RUN`

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal:
                chosen(self, name)
            elif hint in (int, float) and name not in ("statistics", "weight_decay"):
                require(value > 0, name, f"must be above 0, not {value}")
        require(self.size >= 8, "size", f"must be at least 8, not {self.size}")
        if hasattr(self, "weights"):
            check_weights(self.weights, type(self).__name__.removesuffix("Settings").lower(), own=self.own)
        side = _FIXED.get(getattr(self, "backbone", ""), self.size)
        require(self.size <= side, "size", f"must be at most {side} with this backbone, not {self.size}")

    @classmethod
    def preset(cls, name: str) -> Self:
        """`paper` as published, as far as known; the others small enough for two cores, or an accelerator."""
        return cls(**_PRESETS[cls.__name__].get(name, {}))


@dataclass(frozen=True)
class GanomalySettings(PeerSettings):
    """GANomaly: the difference of two codes of an adversarial autoencoder. Sides are powers of two."""

    epochs: int = 100
    n_features: int = 64
    latent_vec_size: int = 100
    wadv: int = 1
    wcon: int = 50
    wenc: int = 1
    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999


@dataclass(frozen=True)
class CflowSettings(PeerSettings):
    """CFlow: flows of feature vectors, conditioned on their place; no more fibres than a batch has."""

    weights: str = "none"
    epochs: int = 50
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer2", "layer3", "layer4")
    fiber_batch_size: int = 64
    condition_vector: int = 128
    coupling_blocks: int = 8
    clamp_alpha: float = 1.9
    lr: float = 1e-4


@dataclass(frozen=True)
class UflowSettings(PeerSettings):
    """U-Flow: one U-shaped flow over the scales. Its two transformers (`mcait`) want 448 px."""

    weights: str = "none"
    epochs: int = 200
    backbone: Literal["mcait", "resnet18", "wide_resnet50_2"] = "mcait"
    flow_steps: int = 4
    affine_clamp: float = 2.0
    affine_subnet_channels_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.backbone != "mcait" or self.weights in ("none", "imagenet")
        require(fits, "weights", f"of mcait, two networks, must be imagenet or none, not {self.weights}")


@dataclass(frozen=True)
class FastflowSettings(PeerSettings):
    """FastFlow: a flow per scale, of convolutions."""

    weights: str = "none"
    epochs: int = 500
    backbone: Literal["resnet18", "wide_resnet50_2", "cait_m48_448", "deit_base_distilled_patch16_384"] = (
        "resnet18"
    )
    flow_steps: int = 8
    conv3x3_only: bool = False
    hidden_ratio: float = 1.0


@dataclass(frozen=True)
class Rd4adSettings(PeerSettings):
    """RD4AD: a decoder distilled from a frozen encoder through a bottleneck."""

    weights: str = "none"
    batch: int = 16
    epochs: int = 200
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    anomaly_map_mode: Literal["add", "multiply"] = "add"


@dataclass(frozen=True)
class EfficientadSettings(PeerSettings):
    """EfficientAD: a student of patch descriptions, and an autoencoder. From 256 px.

    Args:
        weights: of the teacher: `imagenet` (anomalib's archive), a file with its state, or `none`.
        batch: only 1, as published.
        steps: of the optimiser.
        imagenet_dir: folder with folders of natural images for the penalty; empty: stand-ins of the normals.
        statistics: normals at most for channel means, and for map quantiles; 0: all.
    """

    weights: str = "none"
    batch: Literal[1] = 1
    steps: int = 70_000
    imagenet_dir: str = ""
    statistics: int = 0
    model_size: Literal["small", "medium"] = "small"
    teacher_out_channels: int = 384
    lr: float = 1e-4
    weight_decay: float = 1e-5

    own = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 2, "steps", f"must be at least 2, not {self.steps}")
        require(self.statistics >= 0, "statistics", f"must not be negative, as {self.statistics} is")
        there = not self.imagenet_dir or Path(self.imagenet_dir).is_dir()
        require(there, "imagenet_dir", f"must be a folder with folders of images, not {self.imagenet_dir}")


@dataclass(frozen=True)
class CfaSettings(PeerSettings):
    """CFA: features adapted to spheres about a bank of their means."""

    weights: str = "none"
    size: int = 224
    batch: int = 4
    epochs: int = 30
    backbone: _Two = "wide_resnet50_2"
    gamma_c: int = 1
    gamma_d: int = 1
    num_nearest_neighbors: int = 3
    num_hard_negative_features: int = 3
    radius: float = 1e-5


@dataclass(frozen=True)
class PatchcoreSettings(PeerSettings):
    """PatchCore: distances to a coreset of the normals' patches.

    Args:
        memory_gb: of all patches before the coreset, and their copy while it is made.
    """

    weights: str = "none"
    size: int = 224
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer2", "layer3")
    coreset_sampling_ratio: float = 0.1
    num_neighbors: int = 9
    memory_gb: float = 2.0


@dataclass(frozen=True)
class AnomalibSettings(PeerSettings):
    """Any other model of anomalib.

    Args:
        options: arguments of its constructor.
        weights: for the networks that it asks timm for; what it fetches by other ways, it fetches.
    """

    weights: str = "none"
    epochs: int = 10
    options: dict[str, Any] = field(default_factory=dict)


_PRESETS: dict[str, dict[str, dict[str, Any]]] = {  # what differs from the defaults
    "GanomalySettings": {
        "cpu": {"size": 32, "epochs": 10, "n_features": 32},
        "gpu": {"size": 64, "epochs": 50},
    },
    "CflowSettings": {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2, "fiber_batch_size": 256, "lr": 1e-3},
        "gpu": {"size": 128, "epochs": 10, "fiber_batch_size": 256},
        "paper": {"weights": "imagenet"},
    },
    "UflowSettings": {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2},
        "gpu": {"backbone": "resnet18", "size": 128, "epochs": 20},
        "paper": {"weights": "imagenet", "size": 448},
    },
    "FastflowSettings": {
        "cpu": {"size": 64, "epochs": 2, "flow_steps": 4},
        "gpu": {"size": 128, "epochs": 20},
        "paper": {"weights": "imagenet"},
    },
    "Rd4adSettings": {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2},
        "gpu": {"size": 128, "epochs": 20},
        "paper": {"weights": "imagenet"},
    },
    "EfficientadSettings": {
        "cpu": {"steps": 12, "statistics": 16, "teacher_out_channels": 64, "lr": 1e-3},
        "gpu": {"steps": 5000, "statistics": 1000},
        "paper": {"weights": "imagenet"},
    },
    "CfaSettings": {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2, "batch": 32},
        "gpu": {"size": 128, "epochs": 10, "batch": 16},
        "paper": {"weights": "imagenet"},
    },
    "PatchcoreSettings": {
        "cpu": {"backbone": "resnet18", "size": 64, "coreset_sampling_ratio": 0.01},
        "gpu": {"size": 128, "coreset_sampling_ratio": 0.01, "memory_gb": 16.0},
        "paper": {"weights": "imagenet", "memory_gb": 16.0},
    },
    "AnomalibSettings": {
        "cpu": {"size": 64, "epochs": 2},
        "gpu": {"size": 128},
        "paper": {"weights": "imagenet"},
    },
}


# --- anomalib at work ----------------------------------------------------------------------------------


def _anomalib() -> Any:
    if find_spec("anomalib") is None:
        raise DataError("this method needs anomalib: pip install 'dia-anomaly[peers]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anomalib.models.image as image
    for name in ("anomalib", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return image


def _seed(seed: int, step: int) -> None:
    """All three generators that anomalib draws from."""
    seed_step(seed, step)
    drawn = int(torch.randint(2**31, ()))
    random.seed(drawn), np.random.seed(drawn)  # noqa: NPY002


@contextmanager
def _alone(seed: int, step: int, *, progress: bool = False) -> Iterator[None]:
    """Chance by (seed, step), the caller's put back afterwards; no warnings, and no bars unless asked for."""
    from tqdm import tqdm

    python, arrays, init = random.getstate(), np.random.get_state(), tqdm.__init__  # noqa: NPY002
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tqdm.__init__ = partialmethod(init, disable=not progress)
            _seed(seed, step)
            yield
    finally:
        tqdm.__init__ = init
        random.setstate(python), np.random.set_state(arrays)  # noqa: NPY002


class _Named(nn.Module):
    """The maps of a `features_only` network by the names of their layers, as cfa wants them."""

    def __init__(self, network: nn.Module, names: list[str]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.network(x), strict=True))


@contextmanager
def _networks(weights: str, seed: int, plan: np.ndarray | None = None) -> Iterator[None]:
    """While a model is built, what it wants of timm comes from `backbone`, which asks no network unasked.

    The first pretrained network has the seed itself; others have their own, lest students equal teachers.
    `plan` rebuilds a saved `OwnFeatures` without its run.
    """
    import timm as timm_module
    from anomalib.models.image.cfa import torch_model

    timm: Any = timm_module
    cfa: Any = torch_model
    real, extractor = timm.create_model, cfa.get_feature_extractor
    count = {True: itertools.count(), False: itertools.count()}

    def create(name: str, pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        other = seed + (next(count[pretrained]) * 2 + (not pretrained)) * 2**32
        timm.create_model = real  # for `backbone`
        try:
            if plan is not None and pretrained:
                made: nn.Module = OwnFeatures(OwnResNet(*map(int, plan)), kwargs["out_indices"])
            else:
                made = backbone(name, weights if pretrained else "none", seed=other, **kwargs)
        finally:
            timm.create_model = create
        return made.train().requires_grad_(True)  # as timm gives them

    def extract(name: str, nodes: list[str]) -> nn.Module:
        network = create(name, pretrained=True, features_only=True, out_indices=(1, 2, 3))
        return _Named(network, nodes).eval()

    timm.create_model, cfa.get_feature_extractor = create, extract
    try:
        yield
    finally:
        timm.create_model, cfa.get_feature_extractor = real, extractor


class _Order:
    """Indices of every batch of an epoch; Lightning tells the epoch."""

    def __init__(self, n: int, batch: int, seed: int, most: int | None):
        self.n, self.batch, self.seed, self.epoch = n, min(batch, n), seed, 0
        self.steps = min(n // self.batch, most or n)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            yield batch_indices(self.n, self.batch, self.seed, step)


class _Normals(L.LightningDataModule):
    """Normals as anomalib's batches: an item is a whole batch, of an array of indices."""

    def __init__(self, images: np.ndarray, read: Callable[[np.ndarray], Tensor], order: _Order):
        super().__init__()
        self.images, self.read, self.order, self.train_batch_size = images, read, order, order.batch

    def __getitem__(self, index: np.ndarray) -> Any:
        from anomalib.data import ImageBatch

        return ImageBatch(
            image=self.read(self.images[index]), gt_label=torch.zeros(len(index), dtype=torch.long)
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self, sampler=self.order, batch_size=None)  # type: ignore[arg-type]

    def in_turn(self) -> Iterator[Any]:
        """Whole batches without chance, for statistics."""
        n, batch = len(self.images), min(self.order.batch, len(self.images))
        return (self[np.arange(i, i + batch)] for i in range(0, n - batch + 1, batch))


class _Steps(Callback):
    """Chance of every batch by (seed, step); stops on a loss that is not finite; carries the seconds over."""

    def __init__(self, seed: int):
        self.seed, self.started, self.before = seed, time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        _seed(self.seed, trainer.current_epoch * len(trainer.train_dataloader) + batch_idx)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        losses = outputs.values() if isinstance(outputs, dict) else [outputs]
        if not all(torch.isfinite(x).all() for x in losses if isinstance(x, Tensor)):
            raise TrainingError(f"the loss is not finite in epoch {trainer.current_epoch}")

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.before + time.perf_counter() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]


# --- the detector --------------------------------------------------------------------------------------


class Peer(Detector):
    """One of anomalib's models.

    Attributes:
        model_: the fitted network, which gives `pred_score` and `anomaly_map`.
        adapted_: what was done otherwise than the settings ask, by name, as [asked, done].
    """

    model: ClassVar[str]  # its name in anomalib
    extra = "peers"
    maps: ClassVar[bool] = True
    least: ClassVar[int] = 32  # side the network takes; others are multiples of
    whole: ClassVar[int] = 1

    @classmethod
    def has_heatmaps(cls) -> bool:
        """Whether the method says where."""
        return cls.maps

    def weights_source(self) -> str:
        """Where the network's first weights are from."""
        return describe(self.s.backbone, self.s.weights, seed=self.seed)

    def side(self) -> int:
        """The side of the squares that the network sees: `size`, or the next one that it can have."""
        fixed = _FIXED.get(getattr(self.s, "backbone", ""))
        return fixed or max(self.least, -(-self.s.size // self.whole) * self.whole)

    # what a method does in its own way

    def _pre_processor(self, cls: Any) -> Any:
        return cls.configure_pre_processor(image_size=(self.side(), self.side()))

    def _changed(self, model: Any) -> None:
        """Parts of the network that are ours, before it is trained or loaded."""

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        """Those of the normals that are trained on, once the settings are found to fit them."""
        return images

    def _prepare(self, module: Any, normals: _Normals) -> None:
        """What anomalib does when training starts."""

    def _finish(self, module: Any, spare: _Normals) -> None:
        """Statistics of the trained network."""

    # what all do

    def _built(self, weights: str, plan: np.ndarray | None = None) -> Any:
        """anomalib's module for this side, with nothing about it that changes scores."""
        image, s = _anomalib(), self.s
        cls = getattr(image, self.model)
        options = {f.name: getattr(s, f.name) for f in fields(s) if f.name not in _OURS}
        try:
            with _alone(self.seed, _BUILD), _networks(weights, self.seed, plan):
                module = cls(
                    **options | getattr(s, "options", {}), pre_processor=self._pre_processor(cls),
                    post_processor=False, evaluator=False, visualizer=False,
                )  # fmt: skip
                self._changed(module.model)
        except (TypeError, ValueError, RuntimeError, OSError, NotImplementedError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.method}: anomalib cannot make it so ({_line(error)})") from error
        self.transform_, module.pre_processor = module.pre_processor.transform, None
        module.hparams.clear()  # checkpoints hold tensors and plain values
        return module

    def _input(self, images: np.ndarray) -> Tensor:
        """`(N, H, W, C)` uint8 to what the network sees, `(N, 3, S, S)`."""
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.where_).permute(0, 3, 1, 2).float() / 255
        return self.transform_(x.expand(-1, 3, -1, -1))

    def _normals(self, images: np.ndarray, most: int | None = None) -> _Normals:
        return _Normals(images, self._input, _Order(len(images), self.s.batch, self.seed, most))

    def _fit(self, images: np.ndarray, spare: np.ndarray, stages: Stages) -> None:
        if processes()[1] > 1:
            raise DataError(f"{self.method} runs in one process, not under torchrun with several")
        s = self.s
        _anomalib()
        from anomalib import __version__

        self.where_ = choose_device(self.device)
        key = s, self.weights_source(), self.seed, __version__, fingerprint(images), fingerprint(spare)
        path = stages.path(self.method.replace(":", "-"), *key)

        def make() -> float:
            start = time.perf_counter()
            self.adapted_: dict[str, Any] = {}
            self._adapt("size", s.size, self.side())
            module = self._built(getattr(s, "weights", "none")).to(self.where_)
            used = self._within(module.model, images)
            with _alone(self.seed, _PREPARE, progress=stages.progress):
                self._prepare(module, self._normals(used))
                before = self._trained(module, used, path, stages)
            module.to(self.where_).eval()
            with _alone(self.seed, _FINISH, progress=stages.progress), torch.no_grad():
                self._finish(module, self._normals(spare))
            self.model_ = module.model.requires_grad_(False)
            save_file(self._tensors(), path / "model.safetensors")
            (path / "adapted.json").write_text(json.dumps(self.adapted_))
            return before + time.perf_counter() - start

        def load() -> None:
            self.adapted_ = json.loads((path / "adapted.json").read_text())
            self._restore(load_file(path / "model.safetensors"), path)

        stages.part(path, make, load)
        self.facts_ = {k: v for k, v in self.facts_.items() if k != "adapted"}
        if self.adapted_:
            self.facts_["adapted"] = self.adapted_

    def _adapt(self, name: str, asked: Any, done: Any) -> Any:
        if asked != done:
            self.adapted_[name] = [asked, done]
        return done

    def _trained(self, module: Any, images: np.ndarray, path: Path, stages: Stages) -> float:
        """Trains, from the last checkpoint where there is one; returns the seconds spent before it."""
        s, watch = self.s, _Steps(self.seed)
        steps, bank = getattr(s, "steps", -1), hasattr(module, "_is_fitted")
        kept = ModelCheckpoint(
            path, filename=Path(CHECKPOINT).stem, save_on_train_epoch_end=True, enable_version_counter=False
        )
        checkpoint = path / CHECKPOINT
        if not stages.resume:
            checkpoint.unlink(missing_ok=True)
        arguments = {"max_epochs": -1 if steps > 0 else getattr(s, "epochs", 1), "max_steps": steps}
        trainer = L.Trainer(
            **arguments | module.trainer_arguments
            | {
                "accelerator": "gpu" if self.where_.type == "cuda" else "cpu",
                "devices": [self.where_.index or 0] if self.where_.type == "cuda" else 1,
                "callbacks": [watch] if bank else [watch, kept],  # a bank is filled in one epoch
                "enable_checkpointing": not bank,
                "enable_progress_bar": stages.progress,
                "limit_val_batches": 0, "logger": False, "enable_model_summary": False,
                "use_distributed_sampler": False, "default_root_dir": path,
            }
        )  # fmt: skip
        normals = self._normals(images, _EPOCH if steps > 0 else None)
        found = checkpoint if checkpoint.exists() else None
        trainer.fit(module, datamodule=normals, ckpt_path=found, weights_only=True)
        return watch.before

    @torch.no_grad()
    def _outputs(self, images: np.ndarray) -> Iterator[Any]:
        step = max(_PIXELS // self.side() ** 2, 1)
        for i in range(0, len(images), step):
            yield self.model_(self._input(images[i : i + step]))

    def _score(self, images: np.ndarray) -> np.ndarray:
        with _alone(self.seed, _FINISH):
            scores = [out.pred_score.double().flatten().cpu().numpy() for out in self._outputs(images)]
        return np.concatenate(scores or [np.empty(0)])

    def _heatmap(self, images: np.ndarray) -> np.ndarray | None:
        if not self.maps:
            return None
        made = []
        with _alone(self.seed, _FINISH):
            for out in self._outputs(images):
                if out.anomaly_map is None:  # an option of the model's took it away
                    return None
                maps = out.anomaly_map.float().reshape(-1, 1, *out.anomaly_map.shape[-2:])
                made.append(F.interpolate(maps, images.shape[1:3], mode="bilinear")[:, 0].cpu().numpy())
        return np.concatenate(made or [np.empty((0, *images.shape[1:3]), np.float32)])

    def _tensors(self) -> dict[str, np.ndarray]:
        return module_tensors(self.model_, "model.")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.where_ = choose_device(self.device)
        plan = next((v for k, v in tensors.items() if k.endswith(".plan")), None)
        model = self._built("none", plan).model
        state = {k.removeprefix("model."): torch.from_numpy(v) for k, v in tensors.items()}
        for name, tensor in state.items():  # banks have whatever size was fitted
            owner, _, leaf = name.rpartition(".")
            buffers = model.get_submodule(owner)._buffers
            if leaf in buffers and buffers[leaf].numel() != tensor.numel():
                buffers[leaf] = torch.empty_like(tensor)
        model.load_state_dict(state)
        self.model_ = model.to(self.where_).eval().requires_grad_(False)


class Ganomaly(Peer):
    """An adversarial autoencoder whose image is encoded again."""

    method, model = "ganomaly", "Ganomaly"
    family = "reconstruction"
    paper = "Akcay, Atapour-Abarghouei and Breckon, GANomaly, ACCV 2018"
    Settings: ClassVar[type] = GanomalySettings
    maps = False

    def weights_source(self) -> str:
        """There is nothing to start from."""
        return Detector.weights_source(self)

    def side(self) -> int:
        """The next power of two."""
        return max(self.least, 1 << (self.s.size - 1).bit_length())

    def _pre_processor(self, cls: Any) -> Any:
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        half, side = [0.5] * 3, self.side()
        return PreProcessor(Compose([Resize((side, side), antialias=True), Normalize(half, half)]))


class _Peaks(nn.Module):
    """CFlow's map, with likelihoods relative to the greatest ones it met in training mode, layer by layer."""

    peaks: Tensor

    def __init__(self, layers: int):
        super().__init__()
        self.register_buffer("peaks", torch.full((layers,), -torch.inf))

    def forward(
        self, distribution: list[Tensor], height: list[int], width: list[int], image_size: Any
    ) -> Tensor:
        if self.training:
            self.peaks = torch.maximum(self.peaks, torch.stack([d.max() for d in distribution]))
        total: Tensor | float = 0.0
        for logs, peak, h, w in zip(distribution, self.peaks, height, width, strict=True):
            likely = (logs - peak).exp().reshape(-1, 1, h, w)
            total = total + F.interpolate(likely, image_size, mode="bilinear", align_corners=True)[:, 0]
        return len(self.peaks) - torch.as_tensor(total)


class Cflow(Peer):
    """Conditional flows of feature vectors."""

    method, model = "cflow", "Cflow"
    family = "flow"
    paper = "Gudovskiy, Ishizaka and Kozuka, CFLOW-AD, WACV 2022"
    pretrained = "wide_resnet50_2"
    Settings: ClassVar[type] = CflowSettings

    def _changed(self, model: Any) -> None:
        model.anomaly_map_generator = _Peaks(len(model.pool_layers))

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            seen = model.encoder(torch.zeros(1, 3, self.side(), self.side(), device=self.where_))
        least = min(x.shape[-2] * x.shape[-1] for x in seen.values()) * min(self.s.batch, len(images))
        asked = self.s.fiber_batch_size  # training wants at least so many of every layer, in every batch
        model.fiber_batch_size = self._adapt("fiber_batch_size", asked, min(asked, least))
        return images

    def _finish(self, module: Any, spare: _Normals) -> None:
        module.model.anomaly_map_generator.train()
        for batch in spare.in_turn():
            module.model(batch.image)
        module.model.anomaly_map_generator.eval()


def _whole(extractor: Any, side: int) -> None:
    """Flows are built for maps of exact size, which one of our own encoders may not give."""
    info = getattr(extractor, "feature_info", None)
    if info is not None and any(side % r for r in info.reduction()):
        most = max(info.reduction())
        raise DataError(f"size must be a multiple of {most} with these weights, not {side}")


class Uflow(Peer):
    """A U-shaped flow."""

    method, model = "uflow", "Uflow"
    family = "flow"
    paper = "Tailanian, Pardo and Musé, U-Flow, JMIV 2024"
    pretrained = "cait_m48_448"
    Settings: ClassVar[type] = UflowSettings
    whole = 16

    def weights_source(self) -> str:
        """Those of both transformers."""
        s = self.s
        names = ("cait_m48_448", "cait_s24_224") if s.backbone == "mcait" else (s.backbone,)
        return " and ".join(dict.fromkeys(describe(name, s.weights, seed=self.seed) for name in names))

    def _pre_processor(self, cls: Any) -> Any:
        from anomalib.models.components import AnomalibModule

        return AnomalibModule.configure_pre_processor((self.side(), self.side()))  # its own knows only 448

    def _changed(self, model: Any) -> None:
        _whole(getattr(model.feature_extractor, "feature_extractor", None), self.side())


class Fastflow(Peer):
    """A flow per scale."""

    method, model = "fastflow", "Fastflow"
    family = "flow"
    paper = "Yu et al., FastFlow, arXiv 2021"
    pretrained = "resnet18"
    Settings: ClassVar[type] = FastflowSettings
    whole = 16

    def _changed(self, model: Any) -> None:
        _whole(model.feature_extractor, self.side())


class Rd4ad(Peer):
    """Reverse distillation."""

    method, model = "rd4ad", "ReverseDistillation"
    family = "teacher and student"
    paper = "Deng and Li, RD4AD, CVPR 2022"
    pretrained = "wide_resnet50_2"
    Settings: ClassVar[type] = Rd4adSettings
    whole = 32

    def _changed(self, model: Any) -> None:
        if isinstance(model.encoder.feature_extractor, OwnFeatures):
            fits = list(model.encoder.out_dims) == [64, 128, 256] and self.s.backbone == "resnet18"
            if not fits:
                raise DataError(
                    f"weights {self.s.weights}: rd4ad's decoder wants a width of 64, and backbone resnet18; "
                    f"this encoder's is {model.encoder.out_dims[0]}"
                )


class Efficientad(Peer):
    """A student of patch descriptions, and an autoencoder."""

    method, model = "efficientad", "EfficientAd"
    family = "teacher and student"
    paper = "Batzner, Heckler and König, EfficientAD, WACV 2024"
    pretrained = "wide_resnet101_2"  # which taught the teacher
    Settings: ClassVar[type] = EfficientadSettings
    least = 256

    def weights_source(self) -> str:
        """Where the teacher is from."""
        if self.s.weights == "imagenet":
            return f"imagenet (pretrained_teacher_{self.s.model_size} of anomalib)"
        return describe("", self.s.weights, seed=self.seed)

    def _prepare(self, module: Any, normals: _Normals) -> None:
        self._taught(module)
        module.on_train_start = lambda: None  # which would fetch
        few = self._normals(spread(normals.images, self.s.statistics or len(normals.images)))
        module.model.mean_std.update(module.teacher_channel_mean_std(few.in_turn()))
        if self.s.imagenet_dir:
            module.prepare_imagenette_data((self.side(), self.side()))
            shown = module.imagenet_loader.dataset
            module.imagenet_iterator = _penalty(lambda i: shown[i][0][None], len(shown))
        else:
            self._adapt("imagenette", "natural images", "shuffled tiles of the normals")
            images = normals.images
            module.imagenet_iterator = _penalty(
                lambda i: _shuffled(self._input(images[i : i + 1])), len(images)
            )
        configure = module.configure_optimizers

        def by_step() -> dict[str, Any]:
            made = configure()
            return made | {"lr_scheduler": {"scheduler": made["lr_scheduler"], "interval": "step"}}

        module.configure_optimizers = by_step

    def _taught(self, module: Any) -> None:
        weights = self.s.weights
        try:
            if weights == "imagenet":
                module.prepare_pretrained_model()
            elif weights != "none":
                module.model.teacher.load_state_dict(_read(weights))
        except DataError:
            raise
        except Exception as error:  # of the network, of the archive, of the file
            raise DataError(
                f"weights {weights}: no teacher to be had ({_line(error)}); give anomalib's "
                f"pretrained_teacher_{self.s.model_size}.pth with --settings.weights PATH, or take none"
            ) from error

    def _finish(self, module: Any, spare: _Normals) -> None:
        few = self._normals(spread(spare.images, self.s.statistics or len(spare.images)))
        module.model.quantiles.update(module.map_norm_quantiles(few.in_turn()))


def _penalty(get: Callable[[int], Tensor], n: int) -> Iterator[list[Tensor]]:
    """Images `(1, 3, S, S)` without end, drawn by the chance of the step."""
    while True:
        yield [get(int(torch.randint(n, ())))]


def _shuffled(x: Tensor) -> Tensor:
    """An image `(1, 3, S, S)` as 16 tiles in another order, all turned alike: no longer a normal one."""
    side = x.shape[-1] // 4 * 4
    tiles = F.unfold(x[..., :side, :side], side // 4, stride=side // 4)[..., torch.randperm(16)]
    mixed = F.fold(tiles, (side, side), side // 4, stride=side // 4)
    return F.interpolate(mixed.rot90(int(torch.randint(4, ())), (-2, -1)), x.shape[-2:])


class Cfa(Peer):
    """Features adapted to spheres about their means."""

    method, model = "cfa", "Cfa"
    family = "memory"
    paper = "Lee, Lee and Song, CFA, IEEE Access 2022"
    pretrained = "wide_resnet50_2"
    Settings: ClassVar[type] = CfaSettings

    def _changed(self, model: Any) -> None:
        layer, network = model.descriptor.layer, model.feature_extractor.network
        dims = sum(network.feature_info.channels())  # one of our own encoders may have another width
        if dims != layer.in_channels:
            model.descriptor.layer = type(layer)(
                in_channels=dims, out_channels=dims // self.s.gamma_d, kernel_size=1
            )

    def _prepare(self, module: Any, normals: _Normals) -> None:
        module.model.initialize_centroid(normals.in_turn())
        module.on_train_start = lambda: None  # which would do it again, upon trained features, when resumed


class Patchcore(Peer):
    """Distances to a coreset of patches."""

    method, model = "patchcore", "Patchcore"
    family = "memory"
    paper = "Roth et al., PatchCore, CVPR 2022"
    pretrained = "wide_resnet50_2"
    Settings: ClassVar[type] = PatchcoreSettings

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            seen = model.feature_extractor(torch.zeros(1, 3, self.side(), self.side(), device=self.where_))
            patches = model.generate_embedding(seen)
        each = 2 * 4 * patches.numel()  # bytes; stacking the batches' patches holds them twice
        most = int(self.s.memory_gb * 1e9 / each)
        if most < 1:
            raise DataError(f"memory_gb must be above {each / 1e9:.3f} for one image of {self.side()} px")
        return spread(images, self._adapt("images", len(images), min(most, len(images))))


PEERS: dict[str, type[Detector]] = {
    c.method: c for c in (Ganomaly, Cflow, Uflow, Fastflow, Rd4ad, Efficientad, Cfa, Patchcore)
}


class _Any(Peer):
    """A model of anomalib that has no name of ours."""

    family = "anomalib"
    pretrained = "of anomalib"
    Settings: ClassVar[type] = AnomalibSettings

    def weights_source(self) -> str:
        """Those of its backbone, where it has one."""
        return describe(str(self.s.options.get("backbone", "its default")), self.s.weights, seed=self.seed)


@lru_cache
def anomalib_class(method: str) -> type[Detector]:
    """The class of `anomalib:NAME`.

    Raises:
        DataError: anomalib is missing, or has no such image model.
    """
    name, known = method.removeprefix(PREFIX), _anomalib().__all__
    if name not in known:
        raise DataError(f"method {method} is not known; of anomalib there are: {', '.join(sorted(known))}")
    made = {"method": method, "model": name, "maps": name not in _BLIND, "__doc__": f"anomalib's {name}."}
    return type(f"Anomalib{name}", (_Any,), made)
