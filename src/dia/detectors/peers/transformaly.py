"""Transformaly: a vision transformer's class tokens, and a student's errors in its blocks. Knows `weights`.

Source: Cohen and Avidan, "Transformaly: Two (Feature Spaces) Are Better Than One", CVPR Workshops 2022.
A frozen teacher has tokens x_0 … x_12 before, between and after its 12 blocks T_i. The student is 12 randomly
initialised blocks S_i, each fed with the teacher's tokens:

    loss = Σ_i MSE(S_i(x_{i−1}), x_i),   e_i(x) = MSE(S_i(x_{i−1}), x_i) of one image
    score = −[ log N₁(class token after the last norm, PCA-whitened, 90 % of variance) + log N₂(e_2 … e_11) ]

N₁ and N₂ are one Gaussian each, fitted to the training normals. The teacher takes images in [−1, 1], as the
published weights want them. Teacher and student are both saved, so a model loads with no network and no hub.

Written from the paper's facts alone; the official code was neither used nor looked at, so where it differs is
not known. Ours: batches come from (seed, step), without augmentation; a batch of 32; images are resized to
squares, not cropped; the errors' covariance is regularised after standardising each block's, because their
scales differ by orders of magnitude; at most `bank_size` normals make the Gaussians. Presets other than
`paper` are small and take a random teacher, because nothing is fetched unasked: `--settings.weights imagenet`
or a file is what the method is about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...core.processes import choose_device, share
from ...core.settings import chosen, require
from ...core.training import Precision, Timed, batch_indices, seed_step
from ...data.imageset import subsample
from ..base import Detector
from ..features import as_tensor, double
from ..saving import StageCache, load_module, module_tensors
from .backbones import as_input, backbone, check_weights, describe, restored, to_input

_PIXELS = 2**20  # of one forward pass without gradients
_STUDENT = 2**31  # added to the seed: a random teacher must not be its own student
_RIDGE = 1e-6  # of the covariances, of standardised values
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TransformalySettings:
    """Two feature spaces of a vision transformer.

    Args:
        backbone: timm's name of the transformer.
        weights: of the teacher: `imagenet`, `none` (random, by seed), or a file.
        size: images are resized to squares of this side, a multiple of 16.
        epochs: passes over the training normals.
        batch: images per step.
        lr: of Adam.
        variance: share of the class tokens' variance that is kept.
        bank_size: training normals that make the Gaussians; of more, this many evenly spaced ones.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
    """

    backbone: Literal["vit_base_patch16_384", "vit_tiny_patch16_224"] = "vit_base_patch16_384"
    weights: str = "none"
    size: int = 384
    epochs: int = 30
    batch: int = 32
    lr: float = 1e-4
    variance: float = 0.9
    bank_size: int = 16384
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("backbone", "precision"):
            chosen(self, name)
        check_weights(self.weights, "transformaly")
        for name, low in {"epochs": 1, "batch": 1, "bank_size": 16}.items():
            require(getattr(self, name) >= low, name, f"must be at least {low}, not {getattr(self, name)}")
        whole = self.size >= 32 and self.size % 16 == 0
        require(whole, "size", f"must be a multiple of 16 from 32, not {self.size}")
        require(self.lr > 0, "lr", f"must be above 0, not {self.lr}")
        require(0 < self.variance < 1, "variance", f"must be a share of it, not {self.variance}")

    @classmethod
    def preset(cls, name: str) -> Self:
        """`paper` as published; the others small enough for two cores, or for one accelerator."""
        if name == "paper":
            return cls(weights="imagenet", precision="32")
        if name == "gpu":
            return cls(size=128)
        return cls(backbone="vit_tiny_patch16_224", size=64, epochs=10)


class Transformaly(Detector):
    """Class tokens of a frozen vision transformer, and the errors of a student of its blocks."""

    method = "transformaly"
    family = "teacher and student"
    paper = "Cohen and Avidan, Transformaly, CVPR Workshops 2022"
    pretrained = "vit_base_patch16_384"
    Settings: ClassVar[type] = TransformalySettings

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        s = self.s
        self.where_ = choose_device(self.device)
        self.teacher_: Any = backbone(s.backbone, s.weights, seed=self.seed, img_size=s.size).to(self.where_)
        self.student_ = student_of(s, self.seed).to(self.where_)
        key = replace(s, variance=TransformalySettings.variance, bank_size=TransformalySettings.bank_size)
        path = stages.path("transformaly", key, self.weights_source(), self.seed, images)
        module = Imitation(partial(tokens, self.teacher_), self.student_, images, s, self.seed)
        stages.trained(path, module, len(images), s, self.device)
        classes, errors = self._spaces(subsample(images, s.bank_size))
        self.mean_ = classes.mean(0)
        _, values, axes = np.linalg.svd(classes - self.mean_, full_matrices=False)
        share_of_first = np.cumsum(values**2) / max((values**2).sum(), 1e-24)
        kept = min(int(np.searchsorted(share_of_first, s.variance, side="right")) + 1, len(values))
        scale = np.maximum(values[:kept] / np.sqrt(max(len(classes) - 1, 1)), 1e-12)
        self.whiten_ = np.ascontiguousarray((axes[:kept] / scale[:, None]).T)  # (D, d)
        self.of_class_ = Gaussian.of((classes - self.mean_) @ self.whiten_)
        self.of_errors_ = Gaussian.of(errors)

    def weights_source(self) -> str:
        """Where the teacher's weights are from."""
        return describe(self.s.backbone, self.s.weights, seed=self.seed)

    def _spaces(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class tokens `(N, D)` and the errors of the inner blocks `(N, 10)`, float64."""
        spaces, step, parts = Spaces(self.teacher_, self.student_, self.s.size), self._at_once(), []
        with torch.inference_mode():
            for start in range(0, len(images), step):
                made = spaces(as_tensor(images[start : start + step], self.where_))
                parts.append([values.cpu().numpy() for values in made])
        classes, errors = zip(*parts, strict=True)
        return np.concatenate(classes), np.concatenate(errors)

    def _at_once(self) -> int:
        return max(_PIXELS // self.s.size**2, 4)

    def _module(self) -> nn.Module:
        spaces = Spaces(self.teacher_, self.student_, self.s.size)
        return Unlikelihood(spaces, self.mean_, self.whiten_, self.of_class_, self.of_errors_)

    def _tensors(self) -> dict[str, np.ndarray]:
        networks = module_tensors(self.teacher_, "teacher.") | module_tensors(self.student_, "student.")
        own = {"mean": self.mean_, "whiten": self.whiten_}
        return networks | own | self.of_class_.tensors("class") | self.of_errors_.tensors("errors")

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        s, self.where_ = self.s, choose_device(self.device)
        self.teacher_ = restored(s.backbone, tensors, "teacher.", img_size=s.size).to(self.where_)
        self.student_ = student_of(s, self.seed).to(self.where_).eval().requires_grad_(False)
        load_module(self.student_, tensors, "student.")
        self.mean_, self.whiten_ = tensors["mean"], tensors["whiten"]
        self.of_class_, self.of_errors_ = (Gaussian.restored(tensors, k) for k in ("class", "errors"))


def student_of(s: TransformalySettings, seed: int) -> nn.ModuleList:
    """The untrained student: blocks as the teacher's, random by seed."""
    other: Any = backbone(s.backbone, "none", seed=seed + _STUDENT, img_size=s.size)
    return nn.ModuleList(other.blocks).requires_grad_(True)


def _input(images: np.ndarray, size: int, device: torch.device) -> Tensor:
    return to_input(images, size, device, mean=HALF, std=HALF)


@torch.no_grad()
def tokens(teacher: Any, x: Tensor) -> list[Tensor]:
    """x_0 … x_12 of the teacher, `(N, T, D)` each, of images `(N, 3, S, S)`."""
    between = [teacher.norm_pre(teacher._pos_embed(teacher.patch_embed(x)))]  # has no public name
    for block in teacher.blocks:
        between.append(block(between[-1]))
    return between


def block_errors(between: list[Tensor], student: nn.ModuleList) -> list[Tensor]:
    """e_1 … e_12 `(N,)`: how far each block is from the teacher's, given the teacher's tokens."""
    pairs = zip(student, between, between[1:], strict=False)
    return [(block(x).float() - y.float()).square().mean((1, 2)) for block, x, y in pairs]


class Imitation(Timed):
    """The student's training; every batch comes from (seed, step).

    Args:
        tokens: what the teacher gives of a batch. No module, so that checkpoints do not hold the teacher.
        student: trained in place.
        images: `(N, H, W, C)` uint8.
        settings: of the method.
        seed: of the batches.
    """

    def __init__(
        self,
        tokens: Callable[[Tensor], list[Tensor]],
        student: nn.ModuleList,
        images: np.ndarray,
        settings: TransformalySettings,
        seed: int,
    ):
        super().__init__()
        self.tokens, self.student, self.images, self.s, self.seed = tokens, student, images, settings, seed

    def training_step(self, batch: int, _: int) -> Tensor:
        """One batch of its own making; the mean over its images of Σ_i e_i."""
        seed_step(self.seed, self.global_step)
        index = batch_indices(len(self.images), self.s.batch, self.seed, self.global_step)
        x = _input(self.images[index[share(len(index))]], self.s.size, self.device)
        return torch.stack(block_errors(self.tokens(x), self.student)).sum(0).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam of the student."""
        return torch.optim.Adam(self.student.parameters(), self.s.lr)


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian: mean and deviation `(d,)`, and the Cholesky factor `(d, d)` of the correlations."""

    mean: np.ndarray
    deviation: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Self:
        """That of greatest likelihood of `(N, d)`, but for a ridge on the standardised covariance."""
        mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-12)
        z = (x - mean) / deviation
        return cls(mean, deviation, np.linalg.cholesky(z.T @ z / len(z) + _RIDGE * np.eye(z.shape[1])))

    def greatest(self) -> float:
        """The log-likelihood at the mean."""
        constant = np.log(self.factor.diagonal()).sum() + np.log(self.deviation).sum()
        return float(-constant - 0.5 * len(self.mean) * np.log(2 * np.pi))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Its arrays, to be saved."""
        return {f"{name}.mean": self.mean, f"{name}.deviation": self.deviation, f"{name}.factor": self.factor}

    @classmethod
    def restored(cls, tensors: dict[str, np.ndarray], name: str) -> Self:
        """From such arrays."""
        return cls(*(tensors[f"{name}.{part}"] for part in ("mean", "deviation", "factor")))


class Spaces(nn.Module):
    """Both feature spaces: class tokens, and the errors of the student's inner blocks.

    Args:
        teacher: the frozen transformer.
        student: its blocks' student.
        size: side that images are resized to.
    """

    def __init__(self, teacher: Any, student: nn.ModuleList, size: int):
        super().__init__()
        self.teacher, self.student, self.size = teacher, student, size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, C, H, W)` uint8 to `(N, D)` and `(N, 10)`, float64."""
        between = tokens(self.teacher, as_input(x, self.size, HALF, HALF))
        errors = torch.stack(block_errors(between, self.student)[1:-1], 1).double()
        return self.teacher.norm(between[-1])[:, 0].double(), errors


class LogLikelihood(nn.Module):
    """The log-likelihood of a Gaussian: `(N, d)` float64 to `(N,)`.

    Args:
        gaussian: fitted.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, gaussian: Gaussian):
        super().__init__()
        scaled = np.linalg.inv(gaussian.factor) / gaussian.deviation  # (d, d)
        self.register_buffer("mean", torch.from_numpy(gaussian.mean))
        self.register_buffer("whiten", torch.from_numpy(np.ascontiguousarray(scaled.T)))
        self.greatest = gaussian.greatest()

    def forward(self, x: Tensor) -> Tensor:
        """Of each row."""
        z = (x - self.mean) @ self.whiten
        return double(self.greatest) - 0.5 * (z**2).sum(1)


class Unlikelihood(nn.Module):
    """The score: minus the log-likelihood in both spaces.

    Args:
        spaces: of the features.
        mean: `(D,)` of the class tokens.
        whiten: `(D, d)`.
        of_class: Gaussian of the whitened class tokens.
        of_errors: Gaussian of the errors.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(
        self, spaces: Spaces, mean: np.ndarray, whiten: np.ndarray, of_class: Gaussian, of_errors: Gaussian
    ):
        super().__init__()
        self.spaces = spaces
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("whiten", torch.from_numpy(whiten))
        self.of_class, self.of_errors = LogLikelihood(of_class), LogLikelihood(of_errors)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Of `(N, C, H, W)` uint8."""
        classes, errors = self.spaces(x)
        return (-(self.of_class((classes - self.mean) @ self.whiten) + self.of_errors(errors)),)
