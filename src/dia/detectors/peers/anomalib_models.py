"""Eight methods of other authors, as anomalib has them: settings, presets, and the special steps of each.

Knows `anomalib.py`, which runs them, and `backbones`. Sources: the papers below; the code is anomalib's.

Deviations, besides random weights in all presets but `paper`:
- cflow: anomalib divides likelihoods by the greatest of the batch; here by the greatest of normals that were
  not trained on, so that an image's score is its own. Its sums of exponentials, as those of fastflow and
  uflow, come to their end for images that are very unlikely.
- efficientad: the penalty wants Imagenette; without `imagenet_dir` it gets the normals with shuffled, turned
  tiles. Map quantiles come from normals that were not trained on. The learning rate falls by step, as
  published; anomalib counts epochs. With `weights` none the teacher is random. At 256 px an image takes most
  of a second on one core, to be scored too, so that even the `cpu` preset wants more than a minute.
- with `lite0`, rd4ad's student mirrors the widths of an EfficientNet-Lite, and efficientad's teacher is one,
  whose maps at strides 4 and 8 are brought to the student's grid, from 128 px: the papers' ideas, not their
  networks.
- ganomaly: images are in [-1, 1], where its generator's tanh ends, not standardised by ImageNet.
- uflow and fastflow with ResNets, cfa: timm's networks; images are resized to squares, never cropped.
- patchcore: of too many images for `memory_gb`, so many evenly spaced ones fill the bank.
- `paper` presets: rd4ad's and efficientad's lengths are published; where the length of others is not known
  to us (anomalib has none), the number of epochs is ours, the rest anomalib's defaults; but patchcore and cfa
  are at 224 px. anomalib's Adam for rd4ad has β₂ .99, where the paper has .999.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import DataError
from ...core.settings import require
from ...data.imageset import subsample
from ...features.networks import backbone, describe, normalised, one_line, read_state, stood_in
from ...features.own import OwnFeatures
from ...features.standing import LiteFeatures
from .anomalib import BackboneSettings, Normals, Peer, PeerSettings
from .mirrored import Bottleneck, PatchTeacher, Student
from .pretrained import Presets

_PATCHES = (24, 40)  # widths of EfficientNet-Lite0's maps at strides 4 and 8
_PART = 2048  # patches whose distances are computed at a time
_ResNet = Literal["resnet18", "resnet50", "wide_resnet50_2"]


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

    presets: ClassVar[Presets] = {
        "cpu": {"size": 32, "epochs": 10, "n_features": 32},
        "gpu": {"size": 64, "epochs": 50},
    }


@dataclass(frozen=True)
class CflowSettings(BackboneSettings):
    """CFlow: flows of feature vectors, conditioned on their place; no more fibres than a batch has."""

    epochs: int = 50
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer2", "layer3", "layer4")
    fiber_batch_size: int = 64
    condition_vector: int = 128
    coupling_blocks: int = 8
    clamp_alpha: float = 1.9
    lr: float = 1e-4

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2, "fiber_batch_size": 128, "lr": 1e-3},
        "gpu": {"size": 128, "epochs": 10, "fiber_batch_size": 256},
    }


@dataclass(frozen=True)
class UflowSettings(BackboneSettings):
    """U-Flow: one U-shaped flow over the scales. Its two transformers (`mcait`) want 448 px."""

    epochs: int = 200
    backbone: Literal["mcait", "resnet18", "wide_resnet50_2"] = "mcait"
    flow_steps: int = 4
    affine_clamp: float = 2.0
    affine_subnet_channels_ratio: float = 1.0

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2},
        "gpu": {"backbone": "resnet18", "size": 128, "epochs": 20},
        "paper": {"size": 448},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.backbone != "mcait" or self.weights in ("none", "imagenet")
        require(fits, "weights", f"of mcait, two networks, must be imagenet or none, not {self.weights}")


@dataclass(frozen=True)
class FastflowSettings(BackboneSettings):
    """FastFlow: a flow per scale, of convolutions."""

    epochs: int = 500
    backbone: Literal["resnet18", "wide_resnet50_2", "cait_m48_448", "deit_base_distilled_patch16_384"] = (
        "resnet18"
    )
    flow_steps: int = 8
    conv3x3_only: bool = False
    hidden_ratio: float = 1.0

    presets: ClassVar[Presets] = {
        "cpu": {"size": 64, "epochs": 2, "flow_steps": 4},
        "gpu": {"size": 128, "epochs": 20},
    }


@dataclass(frozen=True)
class Rd4adSettings(BackboneSettings):
    """RD4AD: a decoder distilled from a frozen encoder through a bottleneck."""

    batch: int = 16
    epochs: int = 200
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    anomaly_map_mode: Literal["add", "multiply"] = "add"

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2},
        "gpu": {"size": 128, "epochs": 20},
    }


@dataclass(frozen=True)
class EfficientadSettings(BackboneSettings):
    """EfficientAD: a student of patch descriptions, and an autoencoder. From 256 px; with `lite0` from 128.

    Args:
        weights: of the teacher: `imagenet` (anomalib's archive), a file with its state, or `none`.
        batch: only 1, as published.
        steps: of the optimiser.
        imagenet_dir: folder with folders of natural images for the penalty; empty: stand-ins of the normals.
        statistics: normals at most for channel means, and for map quantiles; 0: all.
    """

    batch: Literal[1] = 1
    steps: int = 70_000
    imagenet_dir: str = ""
    statistics: int = 0
    model_size: Literal["small", "medium"] = "small"
    teacher_out_channels: int = 384
    lr: float = 1e-4
    weight_decay: float = 1e-5

    presets: ClassVar[Presets] = {
        "cpu": {"steps": 8, "statistics": 8, "teacher_out_channels": 64, "lr": 1e-3},
        "gpu": {"steps": 5000, "statistics": 1000},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        there = not self.imagenet_dir or Path(self.imagenet_dir).is_dir()
        require(there, "imagenet_dir", f"must be a folder with folders of images, not {self.imagenet_dir}")


@dataclass(frozen=True)
class CfaSettings(BackboneSettings):
    """CFA: features adapted to spheres about a bank of their means."""

    size: int = 224
    batch: int = 4
    epochs: int = 30
    backbone: Literal["resnet18", "wide_resnet50_2"] = "wide_resnet50_2"
    gamma_c: int = 1
    gamma_d: int = 1
    num_nearest_neighbors: int = 3
    num_hard_negative_features: int = 3
    radius: float = 1e-5

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "epochs": 2, "batch": 32},
        "gpu": {"size": 128, "epochs": 10, "batch": 16},
    }


@dataclass(frozen=True)
class PatchcoreSettings(BackboneSettings):
    """PatchCore: distances to a coreset of the normals' patches.

    Args:
        memory_gb: of all patches before the coreset, and their copy while it is made.
    """

    size: int = 224
    backbone: _ResNet = "wide_resnet50_2"
    layers: tuple[str, ...] = ("layer2", "layer3")
    coreset_sampling_ratio: float = 0.1
    num_neighbors: int = 9
    memory_gb: float = 2.0

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "resnet18", "size": 64, "coreset_sampling_ratio": 0.01},
        "gpu": {"size": 128, "coreset_sampling_ratio": 0.01, "memory_gb": 16.0},
        "paper": {"memory_gb": 16.0},
    }


# the name in anomalib, the family, the network whose ImageNet weights are published, the publication
_METHODS = {
    "ganomaly": ("Ganomaly", "reconstruction", "", "Akcay et al., GANomaly, ACCV 2018"),
    "cflow": ("Cflow", "flow", "wide_resnet50_2", "Gudovskiy, Ishizaka and Kozuka, CFLOW-AD, WACV 2022"),
    "uflow": ("Uflow", "flow", "cait_m48_448", "Tailanian, Pardo and Musé, U-Flow, JMIV 2024"),
    "fastflow": ("Fastflow", "flow", "resnet18", "Yu et al., FastFlow, arXiv 2021"),
    "rd4ad": (
        "ReverseDistillation", "teacher and student", "wide_resnet50_2", "Deng and Li, RD4AD, CVPR 2022"),
    "efficientad": (
        "EfficientAd", "teacher and student", "wide_resnet101_2", "Batzner et al., EfficientAD, WACV 2024"),
    "cfa": ("Cfa", "memory", "wide_resnet50_2", "Lee, Lee and Song, CFA, IEEE Access 2022"),
    "patchcore": ("Patchcore", "memory", "wide_resnet50_2", "Roth et al., PatchCore, CVPR 2022"),
}  # fmt: skip


class _Listed(Peer):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (name := cls.__name__.lower()) in _METHODS:
            cls.method = name
            cls.model, cls.family, cls.pretrained, cls.paper = _METHODS[name]


class Ganomaly(_Listed):
    """An adversarial autoencoder whose image is encoded again."""

    Settings: ClassVar[type] = GanomalySettings
    maps = False

    def side(self) -> int:
        """Returns the next power of two."""
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


class Cflow(_Listed):
    """Conditional flows of feature vectors."""

    Settings: ClassVar[type] = CflowSettings

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        model.anomaly_map_generator = _Peaks(len(model.pool_layers))

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            seen = model.encoder(torch.zeros(1, 3, self.side(), self.side(), device=self.where_))
        least = min(x.shape[-2] * x.shape[-1] for x in seen.values()) * min(self.s.batch, len(images))
        asked = self.s.fiber_batch_size  # training wants at least so many of every layer, in every batch
        model.fiber_batch_size = self._adapt("fiber_batch_size", asked, min(asked, least))
        return images

    def _finish(self, module: Any, reference: Normals) -> None:
        module.model.anomaly_map_generator.train()
        for batch in reference.in_turn():
            module.model(batch.image)
        module.model.anomaly_map_generator.eval()


class _Flow(_Listed):
    whole = 16

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        """Flows are built for maps of exact size, which one of our own encoders may not give."""
        extractor = getattr(model.feature_extractor, "feature_extractor", model.feature_extractor)
        info = getattr(extractor, "feature_info", None)
        most = max(info.reduction()) if info is not None else 1
        if self.side() % most:
            raise DataError(f"size must be a multiple of {most} with these weights, not {self.side()}")


class Uflow(_Flow):
    """A U-shaped flow."""

    Settings: ClassVar[type] = UflowSettings

    def weights_source(self) -> str:
        """Returns where the weights of both transformers are from."""
        names = ("cait_m48_448", "cait_s24_224") if self.s.backbone == "mcait" else (self.s.backbone,)
        return " and ".join(describe(name, self.s.weights, seed=self.seed) for name in names)

    def _pre_processor(self, cls: Any) -> Any:
        from anomalib.models.components import AnomalibModule

        return AnomalibModule.configure_pre_processor((self.side(), self.side()))  # its own knows only 448


class Fastflow(_Flow):
    """A flow per scale."""

    Settings: ClassVar[type] = FastflowSettings


class Rd4ad(_Listed):
    """Reverse distillation."""

    Settings: ClassVar[type] = Rd4adSettings
    whole = 32

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        if isinstance(model.encoder.feature_extractor, LiteFeatures):
            widths = list(map(int, model.encoder.out_dims))
            model.bottleneck, model.decoder = Bottleneck(widths), Student(widths)
            return
        own = isinstance(model.encoder.feature_extractor, OwnFeatures)
        if own and (list(model.encoder.out_dims) != [64, 128, 256] or self.s.backbone != "resnet18"):
            raise DataError(
                f"weights {self.s.weights}: rd4ad's decoder wants a width of 64, and backbone resnet18; "
                f"this encoder's is {model.encoder.out_dims[0]}"
            )


class Efficientad(_Listed):
    """A student of patch descriptions, and an autoencoder."""

    Settings: ClassVar[type] = EfficientadSettings
    least = 256

    def side(self) -> int:
        """Returns 256 at least, as published; with `lite0` 128, where the last kernel is smaller."""
        return max(128, -(-self.s.size // 32) * 32) if self.s.lite else super().side()

    def _widened(self) -> dict[str, Any]:
        return {"teacher_out_channels": sum(_PATCHES)} if self.s.lite else {}

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        """Puts a backbone in the place of the teacher, with its maps at strides 4 and 8."""
        if not self.s.lite:
            return
        maps = (1, 2)
        made = (
            stood_in(saved, maps)
            if saved
            else backbone("resnet18", weights, features_only=True, out_indices=maps)
        )
        model.teacher = PatchTeacher(made, normalised, margin=8).eval()
        last = model.ae.encoder.enconv6  # of 8×8, which at 256 px is all that is left
        model.ae.encoder.enconv6 = nn.Conv2d(last.in_channels, last.out_channels, self.side() // 32)

    def weights_source(self) -> str:
        """Where the teacher is from."""
        if self.s.weights == "imagenet":
            return f"imagenet (pretrained_teacher_{self.s.model_size} of anomalib)"
        return describe("", self.s.weights, seed=self.seed)

    def _prepare(self, module: Any, normals: Normals) -> None:
        self._taught(module)
        module.on_train_start = lambda: None  # which would fetch
        few = self._normals(subsample(normals.images, self.s.statistics or len(normals.images)))
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
            elif weights != "none" and not self.s.lite:
                module.model.teacher.load_state_dict(read_state(weights))
        except DataError:
            raise
        except Exception as error:  # of the network, of the archive, of the file
            raise DataError(
                f"weights {weights}: no teacher to be had ({one_line(error)}); give anomalib's "
                f"pretrained_teacher_{self.s.model_size}.pth with --settings.weights PATH, or take none"
            ) from error

    def _finish(self, module: Any, reference: Normals) -> None:
        few = self._normals(subsample(reference.images, self.s.statistics or len(reference.images)))
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


class Cfa(_Listed):
    """Features adapted to spheres about their means."""

    Settings: ClassVar[type] = CfaSettings

    def _changed(self, model: Any, weights: str, saved: dict[str, np.ndarray] | None) -> None:
        layer, network = model.descriptor.layer, model.feature_extractor.network
        dims = sum(network.feature_info.channels())  # one of our own encoders may have another width
        if dims != layer.in_channels:
            model.descriptor.layer = type(layer)(
                in_channels=dims, out_channels=dims // self.s.gamma_d, kernel_size=1
            )

    def _prepare(self, module: Any, normals: Normals) -> None:
        module.model.initialize_centroid(normals.in_turn())
        module.on_train_start = lambda: None  # which would do it again, upon trained features, when resumed


class Patchcore(_Listed):
    """Distances to a coreset of patches."""

    Settings: ClassVar[type] = PatchcoreSettings

    def _within(self, model: Any, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            seen = model.feature_extractor(torch.zeros(1, 3, self.side(), self.side(), device=self.where_))
            patches = model.generate_embedding(seen)
        each = 2 * 4 * patches.numel()  # bytes; stacking the batches' patches holds them twice
        most = int(self.s.memory_gb * 1e9 / each)
        if most < 1:
            raise DataError(f"memory_gb must be above {each / 1e9:.3f} for one image of {self.side()} px")
        return subsample(images, self._adapt("images", len(images), min(most, len(images))))

    def _prepare(self, module: Any, normals: Normals) -> None:
        module.model.subsample_embedding = partial(_subsample, module.model)


def _subsample(model: Any, sampling_ratio: float) -> None:
    """Picks the coreset of anomalib, but computes distances a part at a time.

    Its one array for all patches, made anew for every pick, leaves holes in the heap that add up to gigabytes
    (7.7 GB where 1.1 do).
    """
    from anomalib.models.components import KCenterGreedy

    class Frugal(KCenterGreedy):
        def update_distances(self, cluster_center: Any) -> None:
            center = self.features[cluster_center]
            parts = [torch.linalg.norm(p - center, dim=1, keepdim=True) for p in self.features.split(_PART)]
            far = torch.cat(parts)
            self.min_distances = far if self.min_distances is None else far.minimum(self.min_distances)

    model.memory_bank = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    model.memory_bank = Frugal(embedding=model.memory_bank, sampling_ratio=sampling_ratio).sample_coreset()
