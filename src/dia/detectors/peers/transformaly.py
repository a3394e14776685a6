"""Transformaly: a vision transformer's class tokens, and a student's errors in its blocks.

Knows `pretrained`.

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
`paper` are small and take a random teacher, because nothing is fetched unasked; the method is meant for
`--settings.weights imagenet` or a file. With `lite0` the teacher is an EfficientNet-Lite: students
make each of its maps of the one before, and pooled features are in the place of class tokens: the paper's
idea, not its network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...core.settings import require
from ...core.training import Precision, seed_step
from ...data.imageset import subsample
from ...features.networks import as_input, backbone
from ...features.standing import LiteFeatures
from ...features.untrained import as_tensor, double
from ..saving import StageCache
from .mirrored import Students
from .pretrained import Distilled, Presets, PretrainedSettings

_STUDENT = 2**31  # added to the seed: a random teacher must not be its own student
_RIDGE = 1e-6  # of the covariances, of standardised values
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class TransformalySettings(PretrainedSettings):
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

    presets: ClassVar[Presets] = {
        "cpu": {"backbone": "vit_tiny_patch16_224", "size": 64, "epochs": 10},
        "gpu": {"size": 128},
        "paper": {"precision": "32"},
    }
    least: ClassVar[dict[str, float]] = {"size": 32, "bank_size": 16}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size % 16 == 0, "size", f"must be a multiple of 16, not {self.size}")
        require(self.variance < 1, "variance", f"must be below 1, not {self.variance}")


class Transformaly(Distilled):
    """Two Gaussians: of class tokens of a frozen vision transformer, and of the errors of a student."""

    method = "transformaly"
    family = "teacher and student"
    paper = "Cohen and Avidan, Transformaly, CVPR Workshops 2022"
    pretrained = "vit_base_patch16_384"
    Settings: ClassVar[type] = TransformalySettings
    parts = ("teacher", "student")
    scoring = ("variance", "bank_size")
    normalisation = (HALF, HALF)

    def _options(self) -> dict[str, Any]:
        return {"features_only": True} if self.s.lite else {"img_size": self.s.size}

    def _untrained(self) -> nn.Module:
        """Blocks as the teacher's."""
        seed = self.seed + _STUDENT
        if self.s.lite:
            with torch.random.fork_rng(devices=[]):
                seed_step(seed, 0)
                return Students(self._widths())
        other: Any = backbone(self.s.backbone, "none", seed=seed, img_size=self.s.size)
        return nn.ModuleList(other.blocks).requires_grad_(True)

    def _loss(self, trained: nn.Module, x: Tensor) -> Tensor:
        return torch.stack(_errors(_tokens(self.frozen_, x), trained)).sum(0).mean()

    def _fit(self, images: np.ndarray, reference: np.ndarray, stages: StageCache) -> None:
        super()._fit(images, reference, stages)
        classes, errors = self._spaces(subsample(images, self.s.bank_size))
        mean = classes.mean(0)
        _, values, axes = np.linalg.svd(classes - mean, full_matrices=False)
        share_of_first = np.cumsum(values**2) / max((values**2).sum(), 1e-24)
        kept = min(int(np.searchsorted(share_of_first, self.s.variance, side="right")) + 1, len(values))
        scale = np.maximum(values[:kept] / np.sqrt(max(len(classes) - 1, 1)), 1e-12)
        whiten = np.ascontiguousarray((axes[:kept] / scale[:, None]).T)  # (D, d)
        of_class, of_errors = _gaussian((classes - mean) @ whiten), _gaussian(errors)
        self.fitted_ = {"mean": mean, "whiten": whiten}
        self.fitted_ |= {f"class.{k}": v for k, v in of_class.items()}
        self.fitted_ |= {f"errors.{k}": v for k, v in of_errors.items()}

    def _spaces(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class tokens `(N, D)` and the errors of the inner blocks `(N, 10)`, float64."""
        spaces, step, parts = self._both_spaces(), self._at_once(), []
        with torch.inference_mode():
            for start in range(0, len(images), step):
                made = spaces(as_tensor(images[start : start + step], self.where_))
                parts.append([values.cpu().numpy() for values in made])
        classes, errors = zip(*parts, strict=True)
        return np.concatenate(classes), np.concatenate(errors)

    def _module(self) -> nn.Module:
        return Unlikelihood(self._both_spaces(), self.fitted_)

    def _both_spaces(self) -> Spaces:
        return Spaces(self.frozen_, self.trained_, self.s.size, self._normalisation())

    def _tensors(self) -> dict[str, np.ndarray]:
        return super()._tensors() | self.fitted_

    def _restore(self, tensors: dict[str, np.ndarray], folder: Path) -> None:
        super()._restore(tensors, folder)
        networks = tuple(f"{part}." for part in self.parts)
        self.fitted_ = {k: v for k, v in tensors.items() if not k.startswith(networks)}


@torch.no_grad()
def _tokens(teacher: Any, x: Tensor) -> list[Tensor]:
    """x_0 … x_12 of the teacher, `(N, T, D)` each, of images `(N, 3, S, S)`; of a backbone its maps."""
    if isinstance(teacher, LiteFeatures):
        return teacher(x)
    between = [teacher.norm_pre(teacher._pos_embed(teacher.patch_embed(x)))]  # has no public name
    for block in teacher.blocks:
        between.append(block(between[-1]))
    return between


def _errors(between: list[Tensor], student: Any) -> list[Tensor]:
    """e_1 … e_12 `(N,)`: how far each block is from the teacher's, given the teacher's tokens."""
    pairs = zip(student, between, between[1:], strict=False)
    return [(block(x).float() - y.float()).square().flatten(1).mean(1) for block, x, y in pairs]


def _gaussian(x: np.ndarray) -> dict[str, np.ndarray]:
    """The Gaussian of greatest likelihood of `(N, d)`, but for a ridge on the standardised covariance.

    Its mean and deviation `(d,)`, and the Cholesky factor `(d, d)` of the correlations.
    """
    mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-12)
    z = (x - mean) / deviation
    factor = np.linalg.cholesky(z.T @ z / len(z) + _RIDGE * np.eye(z.shape[1]))
    return {"mean": mean, "deviation": deviation, "factor": factor}


class Spaces(nn.Module):
    """Both feature spaces: class tokens, and the errors of the student's inner blocks.

    Args:
        teacher: the frozen transformer.
        student: its blocks' student.
        size: side that images are resized to.
        normalisation: mean and deviation of each channel.
    """

    def __init__(self, teacher: Any, student: nn.ModuleList, size: int, normalisation: Any):
        super().__init__()
        self.teacher, self.student, self.size, self.normalisation = teacher, student, size, normalisation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(N, D)` class tokens and `(N, 10)` errors, float64, of `(N, C, H, W)` uint8.

        Of a backbone these are pooled features, and the errors of all its students.
        """
        between = _tokens(self.teacher, as_input(x, self.size, *self.normalisation))
        errors = torch.stack(_errors(between, self.student), 1).double()
        if isinstance(self.teacher, LiteFeatures):
            return self.teacher.pooled(between[-1]).double(), errors
        return self.teacher.norm(between[-1])[:, 0].double(), errors[:, 1:-1]


class LogLikelihood(nn.Module):
    """The log-likelihood of a Gaussian: `(N, d)` float64 to `(N,)`.

    Args:
        mean: `(d,)`.
        deviation: `(d,)`.
        factor: `(d, d)`, the Cholesky factor of the correlations.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, factor: np.ndarray):
        super().__init__()
        scaled = np.linalg.inv(factor) / deviation  # (d, d)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("whiten", torch.from_numpy(np.ascontiguousarray(scaled.T)))
        constant = np.log(factor.diagonal()).sum() + np.log(deviation).sum()
        self.greatest = float(-constant - 0.5 * len(mean) * np.log(2 * np.pi))  # at the mean

    def forward(self, x: Tensor) -> Tensor:
        """Returns the log-likelihood of each row."""
        z = (x - self.mean) @ self.whiten
        return double(self.greatest) - 0.5 * (z**2).sum(1)


class Unlikelihood(nn.Module):
    """The score: minus the log-likelihood in both spaces.

    Args:
        spaces: give class tokens and errors.
        fitted: arrays `mean` `(D,)` and `whiten` `(D, d)` of the class tokens; and `mean`, `deviation` and
            `factor` of two Gaussians, behind `class.` for the whitened class tokens, behind `errors.`.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, spaces: Spaces, fitted: dict[str, np.ndarray]):
        super().__init__()
        self.spaces = spaces
        for name in ("mean", "whiten"):
            self.register_buffer(name, torch.from_numpy(fitted[name]))
        self.of_class, self.of_errors = (
            LogLikelihood(*(fitted[f"{space}.{part}"] for part in ("mean", "deviation", "factor")))
            for space in ("class", "errors")
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Returns the scores `(N,)` of `(N, C, H, W)` uint8."""
        classes, errors = self.spaces(x)
        return (-(self.of_class((classes - self.mean) @ self.whiten) + self.of_errors(errors)),)
