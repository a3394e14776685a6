"""What the experiments of `hypotheses.py` are made of: development data, dissolvers, encoders, scores.

Everything trained is kept in a work folder and made once. Knows no test split and no label: labels lie in
`Development.judged` and are read by the ledger's side alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hypotheses_training import LESIONS, lesion_rows, level_rows, trained_to_tell
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from sklearn.covariance import LedoitWolf
from torch import Tensor

from dia.amplify.learning import AmplifySettings, build_encoder, untrained_encoder
from dia.calibrate import held_out
from dia.data.imageset import ImageSet
from dia.detectors import CSI
from dia.detectors.base import Stages, fingerprint, load_module, module_tensors
from dia.detectors.csi import CSISettings
from dia.detectors.dia import DIA, DIASettings
from dia.detectors.residual import GRID, nearest
from dia.dissolve import DissolverSettings, Dissolving, make_dissolver
from dia.dissolve.bank import DissolvedBank
from dia.evaluate.protocol import development
from dia.presets import settings

SIDE = 32  # images are read, and encoders see them, at this longer side at most
BATCH = 16  # half of the cpu preset's: a quarter of an hour of one core for what takes half of one
TS = (20, 50, 100, 300)  # of residuals, as `dia+`
MAHALANOBIS, NEIGHBOUR = "mahalanobis", "neighbour"


def amplify(preset: AmplifySettings | None = None) -> AmplifySettings:
    """Training of every encoder: the cpu preset's, smaller images and batches."""
    return replace(preset or settings(DIASettings).amplify, size=SIDE, batch=BATCH)


def gentle(s: AmplifySettings) -> AmplifySettings:
    """Its augmentation made gentle: crops of at least three quarters, no jitter."""
    return replace(s, augment=replace(s.augment, jitter=(0.0, 0.0, 0.0, 0.0), crop=(0.75, 1.0)))


@lru_cache(maxsize=12)
def _read(name: str, by: str, data: str, side: int) -> tuple[ImageSet, ImageSet]:
    return development(name, by, data, side)


class Development:
    """Development data of one set, judged one way, and all that was trained on it.

    Args:
        name: of the set.
        by: `val` or `lesions`.
        data: folder of the sets.
        work: folder that keeps what was trained.
        side: images are read at this longer side at most.

    Attributes:
        normals, judged: as `dia.evaluate.protocol.development` gives them.
        train: indices of the normals that everything is fitted on, ascending; `rest`: of the others.
        accuracy: in training, of those encoders that tell classes, by pretext and seed.
        stages: finished parts; its `earlier` are the seconds that found parts took when they were made.
    """

    def __init__(self, name: str, by: str, data: str, work: Path, side: int = SIDE):
        self.name, self.by, self.data, self.work, self.side = name, by, data, work, side
        self.normals, self.judged = _read(name, by, data, side)
        calibration, spare, train = held_out(len(self.normals), 0.2, 0, self.normals.volumes)
        self.train, self.rest = np.sort(train), np.sort(np.concatenate([calibration, spare]))
        self.images = self.normals.images[self.train]
        self.stages = Stages(work / name, resume=True)
        self.accuracy: dict[tuple[str, int], float] = {}

    @cached_property
    def data_hash(self) -> str:
        """Of normals and judged images."""
        return fingerprint(self.normals.sha256(), self.judged.sha256())

    def at(self, side: int) -> Development:
        """The same data read at another size; seconds go on to be counted here."""
        other = Development(self.name, self.by, self.data, self.work, side)
        other.stages = self.stages
        return other

    @cache  # noqa: B019  a unit of an experiment has one of these objects for itself
    def dissolver(self, kind: str = "diffusion", size: int = DissolverSettings().size) -> Dissolving:
        """The cpu preset's diffusion model of seed 0, trained at `size` at most; or a blur."""
        if kind != "diffusion":
            return make_dissolver(DissolverSettings(kind=kind), seed=0, device="cpu")
        size = size if size < max(self.images.shape[1:3]) else DissolverSettings().size
        s = replace(settings(DIASettings), dissolver=DissolverSettings(size=size))
        return DIA(s, seed=0, device="cpu")._fit_dissolver(self.images, self.stages)

    @cache  # noqa: B019
    def bank(self, kind: str) -> DissolvedBank:
        """The training normals dissolved at the t of `dia`."""
        ts, dissolver = settings(DIASettings).ts, self.dissolver(kind)
        path = self.stages.path("bank", dissolver.sha256(), list(ts), self.images)
        return DissolvedBank.build(self.images, dissolver, ts, path / "bank.npy")

    @cache  # noqa: B019
    def encoder(self, pretext: str, seed: int) -> CSI:
        """An encoder of the pretext, as part of a detector.

        Args:
            pretext: `csi`, `gentle` (csi with gentle augmentation), `diffusion` and `gaussian` (dia),
                `levels`, `lesions`, or `untrained`.
            seed: of weights, batches and augmentations.
        """
        s = gentle(amplify()) if pretext == "gentle" else amplify()
        made = CSI(CSISettings(s, samples=settings(DIASettings).samples), seed=seed, device="cpu")
        made.shape_ = tuple(self.images.shape[1:])
        if pretext in ("csi", "gentle"):
            made._fit_encoder(self.images, self.stages, None, "none")
        elif pretext in ("diffusion", "gaussian"):
            dissolver = self.dissolver(pretext).sha256()
            made._fit_encoder(self.images, self.stages, self.bank(pretext), dissolver)
        else:
            made.encoder_ = self._other(pretext, s, seed)
            made._ready()
        return made

    def _other(self, pretext: str, s: AmplifySettings, seed: int) -> torch.nn.Module:
        shape = tuple(self.images.shape[1:])
        encoder = build_encoder(shape, s)
        if pretext == "untrained":
            return untrained_encoder(shape, s, seed).eval().requires_grad_(False)
        path = self.stages.path(f"pretext-{pretext}", 2, s, self.dissolver().sha256(), seed, self.images)

        def make() -> float:
            began = time.perf_counter()
            if pretext == "levels":
                bank = self.bank("diffusion")
                rows, classes = level_rows(self.images, bank, s), len(bank.ts) + 1
            else:
                rows, classes = lesion_rows(self.images, s), len(LESIONS)
            trained, accuracy = trained_to_tell(len(self.images), shape, classes, rows, s, seed)
            (path / "accuracy.json").write_text(json.dumps(accuracy))
            save_file(module_tensors(trained, ""), path / "encoder.safetensors")
            return time.perf_counter() - began

        self.stages.part(path, make, lambda: None)
        self.accuracy[pretext, seed] = json.loads((path / "accuracy.json").read_text())
        load_module(encoder, load_file(path / "encoder.safetensors"), "")
        return encoder.eval().requires_grad_(False)

    # --- scores of the judged images, higher = more anomalous --------------------------------------------

    def by_features(self, pretext: str, seed: int, how: str, images: np.ndarray | None = None) -> np.ndarray:
        """By penultimate features, summed over the shifts; of other images where given."""
        encoder = self.encoder(pretext, seed)
        images = self.judged.images if images is None else images
        return distances(encoder._features(self.images), encoder._features(images), how).sum(0)

    def energies(self, remove: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Residual energies of the training normals and of the judged images."""
        return residual_energies(self.images, remove), residual_energies(self.judged.images, remove)


def distances(fitted: np.ndarray, judged: np.ndarray, how: str) -> np.ndarray:
    """Distances `(K, M)` of judged `(K, M, D)` features to fitted `(K, N, D)`, each shift for itself.

    Mahalanobis with the covariance of Ledoit and Wolf (JMVA 2004); or Euclidean to the nearest.
    """
    if how == NEIGHBOUR:
        return np.stack([nearest(b, a, 1) for a, b in zip(fitted, judged, strict=True)])
    out = []
    for a, b in zip(fitted, judged, strict=True):
        fit = LedoitWolf().fit(a)
        c = b - fit.location_
        out.append(np.sqrt(np.einsum("nd,de,ne->n", c, fit.precision_, c, optimize=True)))
    return np.stack(out)


def standardised(fitted: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All `(N, D)` by mean and standard deviation of the first, float32."""
    mean, std = fitted.mean(0), fitted.std(0)
    std = np.where(std > 1e-9, std, 1.0)
    return [((x - mean) / std).astype(np.float32) for x in (fitted, *others)]


# --- residuals --------------------------------------------------------------------------------------------


def residual(images: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """x − D(x), mean over channels, `(N, H, W)` float32."""
    return (images.astype(np.float32) - removed).mean(-1)


def residual_energies(images: np.ndarray, remove: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Log energies on a 6×6 grid for each strength of `remove`, `(N, T·36)`: those of `residual.py`."""
    parts = []
    for start in range(0, len(images), 256):
        chunk = images[start : start + 256]
        squares = [torch.from_numpy(residual(chunk, removed) ** 2) for removed in remove(chunk)]
        pooled = [F.adaptive_avg_pool2d(x, GRID).add(1).log().flatten(1) for x in squares]
        parts.append(torch.cat(pooled, 1).numpy())
    return np.concatenate(parts)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur in pixels, `(N, H, W, C)` float32, not rounded."""
    return ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0))


def strength(images: np.ndarray, removed: np.ndarray) -> float:
    """Mean squared residual, in grey levels squared."""
    return float((residual(images, removed) ** 2).mean())


def matched_blurs(images: np.ndarray, removed: Sequence[np.ndarray]) -> list[float]:
    """For each removal of these normals the σ in pixels of the blur that takes as much from them.

    By bisection; the widest blur is half the shorter side, also where even that takes less.
    """
    out = []
    for one in removed:
        wanted, low, high = strength(images, one), 0.05, min(images.shape[1:3]) / 2
        for _ in range(20):
            middle = (low * high) ** 0.5
            weaker = strength(images, blur(images, middle)) < wanted
            low, high = (middle, high) if weaker else (low, middle)
        out.append((low * high) ** 0.5)
    return out


# --- patches ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def patches(encoder: CSI, images: np.ndarray) -> np.ndarray:
    """Local features `(N, P, D)`: second and third stage on the grid of the second, averaged over 3×3.

    As in PatchCore (Roth et al., CVPR 2022), of the image as it is.
    """
    parts = []
    for x in encoder._inputs(images, 1):
        y = encoder.encoder_.stem((x - 0.5) / 0.5)
        maps: list[Tensor] = []
        for i, block in enumerate(encoder.encoder_.stages):
            y = block(y)
            if i in (3, 5):
                maps.append(F.avg_pool2d(y, 3, 1, 1, count_include_pad=False))
        coarse = F.interpolate(maps[1], maps[0].shape[-2:], mode="bilinear")
        parts.append(torch.cat([maps[0], coarse], 1).flatten(2).transpose(1, 2).numpy())
    return np.concatenate(parts)
