"""anomalib's models as detectors: how one is built, trained, scored, saved. Knows `backbones`, no method.

Source: anomalib 2.7 (Intel, Apache-2.0), which is imported when a model is made and not before, so that its
methods can be listed without it. `anomalib_models.py` has those with names of ours; any other image model is
`anomalib:NAME`, with its constructor's arguments as `options`.

From anomalib: networks, losses, optimisers, memory banks, training steps, and its pre-processor at the
side in `size`. From here: the split; batches and chance from (seed, step); checkpoints at the ends of
epochs; the first weights, by `backbones.py` (every `timm.create_model` of a model goes through `backbone`),
with the papers' tags instead of anomalib's. Scores and maps are what the network returns: nothing is
normalised by other images, clamped, or thresholded. Where a run had to differ from its settings, `adapted_`
and the ledger's line hold [asked, done].
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
from typing import Any, ClassVar
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...core.errors import DataError
from ...core.processes import choose_device, processes
from ...core.running.loop import Shown, curves, interruptible
from ...core.running.progress import Bar
from ...core.settings import require
from ...core.training import CHECKPOINT, batch_indices, not_finite, seed_step
from ...features.networks import backbone, one_line, stood_in
from ..base import Detector
from ..calibration import Prediction
from ..registry import PREFIX
from ..saving import StageCache, fingerprint, module_tensors
from .pretrained import Presets, Pretrained, PretrainedSettings

_PIXELS = 2**18  # of one forward pass when scoring
_EPOCH = 500  # steps between checkpoints, where a length is in steps
_BUILD, _PREPARE, _FINISH = (2**32 - k for k in (5, 6, 7))  # steps of the seed that no batch has
_FIXED = {"mcait": 448, "cait_m48_448": 448, "deit_base_distilled_patch16_384": 384}  # sides of transformers
_OURS = {"size", "batch", "epochs", "steps", "weights", "memory_gb", "imagenet_dir", "statistics", "options"}
_BLIND = ("Ganomaly", "Dfkde")  # which give no map


# --- settings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerSettings(PretrainedSettings):
    """The settings of all; further fields are arguments of anomalib's constructor, under its names.

    Args:
        size: images are resized to squares of this side; one the method cannot have is raised, and recorded.
        batch: images per step.
    """

    size: int = 256
    batch: int = 32

    least: ClassVar[dict[str, float]] = {"size": 8, "steps": 2, "statistics": 0, "weight_decay": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        side = _FIXED.get(getattr(self, "backbone", ""), self.size)
        require(self.size <= side, "size", f"must be at most {side} with this backbone, not {self.size}")


@dataclass(frozen=True)
class BackboneSettings(PeerSettings):
    """The settings of models that start from a pretrained network.

    Args:
        weights: `imagenet`, `none` (random, by seed), a file, or `dia:RUN` for ResNets.
    """

    weights: str = "none"


@dataclass(frozen=True)
class AnomalibSettings(BackboneSettings):
    """Any other model of anomalib.

    Args:
        weights: of the networks that the model asks timm for; it fetches others as anomalib does.
        epochs: passes over the training normals.
        options: arguments of its constructor.
    """

    epochs: int = 10
    options: dict[str, Any] = field(default_factory=dict)

    presets: ClassVar[Presets] = {"cpu": {"size": 64, "epochs": 2}, "gpu": {"size": 128}}

    def takes_own_encoder(self) -> bool:
        """Returns True: the network is chosen in `options`, and checked when it is built."""
        return True


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
    """Draws by (seed, step) and keeps the caller's random state; no warnings, and no bars unless asked."""
    from tqdm import tqdm

    quiet = patch.object(tqdm, "__init__", partialmethod(tqdm.__init__, disable=not progress))
    with isolate_rng(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        _seed(seed, step)
        yield


class _Named(nn.Module):
    """The maps of a `features_only` network by the names of their layers, as cfa wants them."""

    def __init__(self, network: nn.Module, names: list[str]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.network(x), strict=True))


@contextmanager
def _networks(weights: str, seed: int, saved: dict[str, np.ndarray] | None = None) -> Iterator[None]:
    """While a model is built, its networks come from `backbone` instead of timm: nothing is fetched unasked.

    The first pretrained network has the seed itself; others have their own: no student equals its teacher.
    `saved` rebuilds a network that stood for a ResNet, as `stood_in` takes it.
    """
    import timm
    from anomalib.models.image.cfa import torch_model

    count = {True: itertools.count(), False: itertools.count()}

    def create(name: str, pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        other = seed + (next(count[pretrained]) * 2 + (not pretrained)) * 2**32
        if saved and pretrained:
            made = stood_in(saved, kwargs["out_indices"])
        else:
            made = backbone(name, weights if pretrained else "none", seed=other, **kwargs)
        return made.train().requires_grad_(True)  # as timm gives them

    def extract(name: str, nodes: list[str]) -> nn.Module:
        network = create(name, pretrained=True, features_only=True, out_indices=(1, 2, 3))
        return _Named(network, nodes).eval()

    extractor = patch.object(torch_model, "get_feature_extractor", extract)
    with patch.object(timm, "create_model", create), extractor:
        yield


class Normals(L.LightningDataModule):
    """Normals as anomalib's batches: an item is a whole batch, of an array of indices.

    Args:
        images: `(N, H, W, C)` uint8.
        read: makes of them what the network sees.
        batch: images per step.
        seed: of the batches.
        most: steps of an epoch at most.
    """

    bank = False  # whether it is for a memory bank, which must have each image once

    def __init__(
        self,
        images: np.ndarray,
        read: Callable[[np.ndarray], Tensor],
        batch: int,
        seed: int,
        most: int | None = None,
    ):
        super().__init__()
        self.images, self.read, self.seed = images, read, seed
        self.train_batch_size = min(batch, len(images))
        self.steps = min(len(images) // self.train_batch_size, most or len(images))

    def __getitem__(self, index: np.ndarray) -> Any:
        from anomalib.data import ImageBatch

        labels = torch.zeros(len(index), dtype=torch.long)
        return ImageBatch(image=self.read(self.images[index]), gt_label=labels)

    def of_step(self, step: int) -> np.ndarray:
        """Returns the indices of a step's batch."""
        return batch_indices(len(self.images), self.train_batch_size, self.seed, step)

    def train_dataloader(self) -> DataLoader:
        """Returns the batches of the current epoch, in the order of (seed, step)."""
        first = self.trainer.current_epoch * self.steps  # type: ignore[union-attr]
        batches = self._in_turn() if self.bank else [self.of_step(first + i) for i in range(self.steps)]
        return DataLoader(self, sampler=batches, batch_size=None)  # type: ignore[arg-type]

    def in_turn(self) -> Iterator[Any]:
        """Yields all of them once, for statistics."""
        return (self[index] for index in self._in_turn())

    def _in_turn(self) -> list[np.ndarray]:
        n = len(self.images)
        return np.array_split(np.arange(n), -(-n // self.train_batch_size))


class _Steps(Callback):
    """Chance of every batch by (seed, step); stops on a loss that is not finite; carries the seconds over."""

    def __init__(self, seed: int):
        self.seed, self.started, self.before = seed, time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.step = trainer.current_epoch * len(trainer.train_dataloader) + batch_idx
        _seed(self.seed, self.step)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        losses = outputs.values() if isinstance(outputs, dict) else [outputs]
        for loss in losses:
            if isinstance(loss, Tensor) and not torch.isfinite(loss).all():
                normals = trainer.datamodule
                index = normals.of_step(self.step)
                raise not_finite(float(loss.sum()), self.step, index, len(normals.images))

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.before + time.perf_counter() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]


# --- the detector --------------------------------------------------------------------------------------


class Peer(Pretrained):
    """One of anomalib's models.

    Attributes:
        model_: the fitted network, which gives `pred_score` and `anomaly_map`.
        adapted_: where the run differs from the settings, [asked, done] by name.
    """

    model: ClassVar[str]  # its name in anomalib
    extra = "peers"
    maps = True
    least: ClassVar[int] = 32  # side the network takes; others are multiples of
    whole: ClassVar[int] = 1

    def side(self) -> int:
        """Returns the side of the squares that the network sees: `size`, or the next possible one."""
        fixed = _FIXED.get(getattr(self.s, "backbone", ""))
        return fixed or max(self.least, -(-self.s.size // self.whole) * self.whole)

    # what a method does in its own way

    def _pre_processor(self, cls: Any) -> Any:
        return cls.configure_pre_processor(image_size=(self.side(), self.side()))

    def _widened(self) -> dict[str, Any]:
        """Arguments of the model that follow from the backbone's widths."""
        return {}

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        """Parts of the network that are ours, before it is trained or loaded; `weights` of the backbone."""

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        """The normals to train on; checks that the settings fit them."""
        return images

    def _prepare(self, module: Any, normals: Normals) -> None:
        """Steps of anomalib when training starts."""

    def _finish(self, module: Any, reference: Normals) -> None:
        """Statistics of the trained network."""

    # what all do

    def _built(self, weights: str, saved: dict[str, np.ndarray] | None = None) -> Any:
        """The module of anomalib for this side, with nothing about it that changes scores."""
        image, s = _anomalib(), self.s
        cls = getattr(image, self.model)
        options = {f.name: getattr(s, f.name) for f in fields(s) if f.name not in _OURS} | self._widened()
        try:
            with _alone(self.seed, _BUILD), _networks(weights, self.seed, saved):
                module = cls(
                    **options | getattr(s, "options", {}), pre_processor=self._pre_processor(cls),
                    post_processor=False, evaluator=False, visualizer=False,
                )  # fmt: skip
                self._changed(module.model, weights, saved)
        except (TypeError, ValueError, RuntimeError, OSError, NotImplementedError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.method}: anomalib cannot make it so ({one_line(error)})") from error
        self.transform_, module.pre_processor = module.pre_processor.transform, None
        module.hparams.clear()  # checkpoints hold tensors and plain values
        return module

    def _input(self, images: np.ndarray) -> Tensor:
        """`(N, H, W, C)` uint8 to what the network sees, `(N, 3, S, S)`."""
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.where_).permute(0, 3, 1, 2).float() / 255
        return self.transform_(x.expand(-1, 3, -1, -1)).contiguous()  # some losses view it flat

    def _normals(self, images: np.ndarray, most: int | None = None) -> Normals:
        return Normals(images, self._input, self.s.batch, self.seed, most)

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        if processes()[1] > 1:
            raise DataError(f"{self.method} runs in one process, not under torchrun with several")
        s = self.s
        _anomalib()
        from anomalib import __version__

        self.where_ = choose_device(self.device)
        key = s, self.weights_source(), self.seed, __version__, fingerprint(images), fingerprint(reference)
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
                self._finish(module, self._normals(reference))
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

    def _trained(self, module: Any, images: np.ndarray, path: Path, stages: StageCache) -> float:
        """Trains, from the last checkpoint where there is one; returns the seconds spent before it."""
        s, watch, stage = self.s, _Steps(self.seed), path.name.rpartition("-")[0]
        bank = hasattr(module, "_is_fitted")  # filled in one epoch
        steps = -1 if bank or s.steps is None else s.steps
        kept = ModelCheckpoint(
            path, filename=Path(CHECKPOINT).stem, save_on_train_epoch_end=True, enable_version_counter=False
        )
        checkpoint = path / CHECKPOINT
        if not stages.resume:
            checkpoint.unlink(missing_ok=True)
        bar = Bar(f"Training the {stage}", unit="step", shown=stages.progress)
        shown = Shown(bar)
        arguments = {"max_epochs": -1 if steps > 0 else getattr(s, "epochs", 1), "max_steps": steps}
        trainer = L.Trainer(
            **arguments | module.trainer_arguments
            | {
                "accelerator": "gpu" if self.where_.type == "cuda" else "cpu",
                "devices": [self.where_.index or 0] if self.where_.type == "cuda" else 1,
                "callbacks": [watch, shown] if bank else [watch, shown, kept, *curves(stage, s, self.seed)],
                "enable_checkpointing": not bank,
                "enable_progress_bar": False,
                "limit_val_batches": 0, "logger": False, "enable_model_summary": False,
                "use_distributed_sampler": False, "default_root_dir": path,
                "reload_dataloaders_every_n_epochs": 1
            }
        )  # fmt: skip
        normals = self._normals(images, _EPOCH if steps > 0 else None)
        normals.bank = bank
        found = checkpoint if checkpoint.exists() else None
        with bar, interruptible():
            trainer.fit(module, datamodule=normals, ckpt_path=found, weights_only=True)
        return watch.before

    @torch.no_grad()
    def _predict(self, images: np.ndarray, heatmaps: bool, dissolved: bool) -> Prediction:
        scores, maps, step = [np.empty(0)], [np.empty((0, *images.shape[1:3]), np.float32)], self._at_once()
        with _alone(self.seed, _FINISH):
            for i in range(0, len(images), step):
                out = self.model_(self._input(images[i : i + step]))
                scores.append(out.pred_score.double().flatten().cpu().numpy())
                heatmaps = heatmaps and out.anomaly_map is not None  # an option of the model may take it away
                if heatmaps:
                    of_net = out.anomaly_map.float().reshape(-1, 1, *out.anomaly_map.shape[-2:])
                    maps.append(F.interpolate(of_net, images.shape[1:3], mode="bilinear")[:, 0].cpu().numpy())
        return Prediction(np.concatenate(scores), np.concatenate(maps) if heatmaps else None)

    def _at_once(self) -> int:
        return max(_PIXELS // self.side() ** 2, 1)

    def _tensors(self) -> dict[str, np.ndarray]:
        return module_tensors(self.model_, "model.")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        self.where_ = choose_device(self.device)
        ends = {k.rpartition(".")[2]: v for k, v in tensors.items()}
        saved: dict[str, np.ndarray] = {k: ends[k] for k in ("plan", "variant") if k in ends}
        model = self._built("none", saved).model
        state = {k.removeprefix("model."): torch.from_numpy(v) for k, v in tensors.items()}
        for name, tensor in state.items():  # banks have whatever size was fitted
            owner, _, leaf = name.rpartition(".")
            buffers = model.get_submodule(owner)._buffers
            if leaf in buffers and buffers[leaf].numel() != tensor.numel():
                buffers[leaf] = torch.empty_like(tensor)
        model.load_state_dict(state)
        self.model_ = model.to(self.where_).eval().requires_grad_(False)


class _Any(Peer):
    """A model of anomalib that has no name of ours."""

    family = "anomalib"
    pretrained = "of anomalib"
    Settings: ClassVar[type] = AnomalibSettings

    def _architecture(self) -> str:
        return str(self.s.options.get("backbone", "its default"))


@lru_cache
def anomalib_class(method: str) -> type[Detector]:
    """Returns the class of `anomalib:NAME`.

    Raises:
        DataError: anomalib is missing, or has no such image model.
    """
    name, known = method.removeprefix(PREFIX), _anomalib().__all__
    if name not in known:
        raise DataError(f"method {method} is not known; of anomalib there are: {', '.join(sorted(known))}")
    made = {"method": method, "model": name, "maps": name not in _BLIND, "__doc__": f"anomalib's {name}."}
    return type(f"Anomalib{name}", (_Any,), made)
