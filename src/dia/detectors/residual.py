"""Judges what a removal takes away from an image against what it takes from normal ones.

Knows removals only as modules: dissolving at several t (`dia+`), or Gaussian blurs at several σ
(`trivial:blur`, the control). For each strength the residual x − D(x) gives three maps: its signed mean
at a fine and at a coarse scale, and the log energy of its finest detail. Three statistics of them, each
turned into evidence (−log of a smoothed conformal p-value) by normals that trained nothing:

- `single`: the greatest deviation of any map at any place from that place's mean over normals, in its
  standard deviations, by the smallest p-value over the maps (Tippett);
- `joint`: the greatest local Mahalanobis distance of all maps together; its map is the heatmap;
- `overall`: mean distance to the 3 nearest normals in residual energies on a 6×6 grid.

They are joined by the harmonic mean of their p-values (Wilson, PNAS 2019), which needs no independence.

The Mahalanobis map is that of Defard et al., "PaDiM", ICPR 2021, on residuals instead of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from ..core.errors import DataError
from ..dissolve import Dissolving
from ..dissolve.base import fit_in
from .features import Linear, measured, passes, pooling, resizing, smoothing
from .nearest import Nearest

STRIDE = 2  # of the grid on which the Mahalanobis distance is taken
GRID = 6
NEIGHBOURS = 3
_RIDGE = 0.05
_CHUNK = 256
_MOST = 1000
_TRUNCATE = 4.0  # scipy's Gaussians end after so many σ
_TAIL = 0.2  # upper share of the normals to which the exponential tail is fitted
_FINEST = 1e-5  # of the scores' size: no kernel is narrower, or the last digits of a score would count
_FITTED = ("mean", "std", "precision", "energy_mean", "energy_std", "bank", "normals")


# --- removals: `(N, C, H, W)` uint8 to `(S, N, C, H, W)` in [0, 255], for S strengths -----------------------


class Dissolve(nn.Module):
    """Dissolves at several t, which share the passes of the network.

    Args:
        dissolver: fitted.
        ts: diffusion steps.

    Raises:
        DataError: the dissolver knows fewer diffusion steps.
    """

    t: Tensor

    def __init__(self, dissolver: Dissolving, ts: tuple[int, ...]):
        super().__init__()
        if max(ts) >= dissolver.t_max:
            raise DataError(f"t must lie in 0–{dissolver.t_max - 1}, not {max(ts)}")
        self.dissolver, self.network = dissolver, getattr(dissolver, "unet_", None)
        self.register_buffer("t", torch.tensor(ts, device=dissolver.where_))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` uint8 to `(T, N, C, H, W)` float32, not rounded to whole grey values."""
        n, many = x.shape[0], len(self.t)
        x = x.to(self.t.device)
        z, undo = fit_in(
            (x.float() / 127.5 - 1).repeat(many, 1, 1, 1),
            self.dissolver.settings.size,
            *self.dissolver._working(int(x.shape[1])),
        )
        t = self.t[:, None].expand(many, n).reshape(-1)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # which know no number of rows
            y = self.dissolver._remove(z, t)
        else:
            rows = 32 if self.t.device.type == "cpu" else 256  # more fall out of a CPU's caches
            parts = zip(z.split(rows), t.split(rows), strict=True)
            y = torch.cat([self.dissolver._remove(*part) for part in parts])
        return ((undo(y) + 1) * 127.5).clamp(0, 255).view(many, n, *x.shape[1:])


class GaussianBlur(nn.Module):
    """scipy's Gaussian filter of uint8 images at several σ, to the bit.

    scipy adds up the two sides of its window pair by pair, from the ends to the middle, and cuts off what
    is below a whole number; on even ground the sum is whole but for its last bit, so the order decides.

    Args:
        sigmas: in pixels.
    """

    def __init__(self, sigmas: tuple[float, ...]):
        super().__init__()
        for i, sigma in enumerate(sigmas):
            reach = int(_TRUNCATE * sigma + 0.5)
            unit = np.zeros(2 * reach + 1)
            unit[reach] = 1
            weights = gaussian_filter1d(unit, sigma, mode="constant")[reach:]
            self.register_buffer(f"weights_{i}", torch.from_numpy(weights.copy()))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` uint8 to `(S, N, C, H, W)` whole numbers in float64."""
        x = x.double()
        return torch.stack([_along(_along(x, 2, w), 3, w) for w in self.buffers()])


def _along(x: Tensor, dim: int, weights: Tensor) -> Tensor:
    n, reach = int(x.shape[dim]), len(weights) - 1
    mirrored = torch.from_numpy(np.pad(np.arange(n), reach, mode="symmetric")).to(x.device)
    padded = x.index_select(dim, mirrored)
    total = x * weights[0]
    for k in range(reach, 0, -1):
        pair = padded.narrow(dim, reach - k, n) + padded.narrow(dim, reach + k, n)
        total += pair.mul_(weights[k])
    return total.floor()


def blur(sigmas: tuple[float, ...], height: int, width: int) -> GaussianBlur:
    """Makes blurs of several widths.

    Args:
        sigmas: in pixels of an image whose shorter side is 64; they scale with the image.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    unit = min(height, width) / 64
    return GaussianBlur(tuple(sigma * unit for sigma in sigmas))


# --- residuals ----------------------------------------------------------------------------------------------


class Evidence(nn.Module):
    """Smooth evidence, −log p, of several scores at once, each by its own normals.

    A kernel estimate serves among the normals, an exponential tail beyond most of them. Plain conformal
    p-values step from normal to normal and cannot fall below 1/(n+1). Here each normal counts by a logistic
    curve instead of a step (Nadaraya 1964), which bounds the slope, and the tail keeps the order of what lies
    beyond. It is no valid p-value itself: what is joined of it is calibrated anew.

    Args:
        normals: `(S, P)`: for each of P scores the values of S normals, ascending.
    """

    normals: Tensor
    width: Tensor
    edge: Tensor
    excess: Tensor

    def __init__(self, normals: np.ndarray):
        super().__init__()
        normals = normals.astype(np.float64)
        self.register_buffer("normals", torch.from_numpy(normals))
        scales = [kernel_and_tail(column) for column in normals.T]
        for name, values in zip(("width", "edge", "excess"), zip(*scales, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, scores: Tensor) -> Tensor:
        """Maps `(N, P')` to `(N, P')` float64, for the first P' of the P scores."""
        scores, p = scores.double(), scores.shape[1]
        edge = self.edge[:p]
        above = ((self.normals[:, :p] - scores.minimum(edge)[:, None]) / self.width[:p]).sigmoid().mean(1)
        return (scores - edge).clamp(min=0) / self.excess[:p] - above.log()


def kernel_and_tail(x: np.ndarray) -> tuple[float, float, float]:
    """Returns the logistic kernel's scale, the score where the tail begins, and the tail's mean excess.

    The kernel has the standard deviation of Silverman's rule (1986, eq. 3.31).

    Args:
        x: `(n,)` float64 scores of normals, ascending.
    """
    low, high = np.percentile(x, [25, 75])
    spread = min(np.std(x), (high - low) / 1.34) or np.std(x)
    width = 0.9 * spread * len(x) ** -0.2 * np.sqrt(3) / np.pi
    width = max(float(width), _FINEST * float(np.abs(x).mean()), 1e-9)
    edge = x[min(int(np.ceil((1 - _TAIL) * len(x))), len(x) - 1)]
    return width, float(edge), max(float(np.mean(x[x >= edge] - edge)), width)


def evidence(scores: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Returns the smooth evidence, −log p, of scores by those of normals, `(N,)` float64; see `Evidence`.

    Args:
        scores: `(N,)`.
        normals: `(n,)` scores of held-out normals, such as `detector.calibration_.scores`.
    """
    column = torch.from_numpy(np.asarray(scores, np.float64))[:, None]
    return np.asarray(Evidence(np.sort(normals)[:, None])(column)[:, 0])


def joined(evidence: np.ndarray) -> np.ndarray:
    """Joins `(N, P)` evidence −log p of P parts: −log of the harmonic mean of the p-values, `(N,)`."""
    return np.asarray(np.logaddexp.reduce(evidence, axis=1) - np.log(evidence.shape[1]))


class Measured(NamedTuple):
    """Measurements of N images by `Residual`.

    Args:
        greatest: `(N, M)` the greatest |z| of each map.
        distance: `(N, H', W')` joint distances, at every `STRIDE`-th pixel.
        energies: `(N, T, 6, 6)` log mean squares of the residuals.
        removed: `(T, N, C, H, W)` what the removal left of the images.
    """

    greatest: Tensor
    distance: Tensor
    energies: Tensor
    removed: Tensor


class Residual(nn.Module):
    """Statistics of the residuals of one removal. All lengths scale with the shorter side of the image.

    Args:
        remove: from `(N, C, H, W)` uint8 to `(T, N, C, H, W)` in [0, 255].
        height: of the images, in pixels.
        width: of the images, in pixels.
    """

    mean: Tensor
    std: Tensor
    precision: Tensor
    energy_mean: Tensor
    energy_std: Tensor

    def __init__(self, remove: nn.Module, height: int, width: int):
        super().__init__()
        self.remove, self.unit = remove, min(height, width) / 64
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        self.fine, self.wide, self.wider = (_smoother(height, width, k * self.unit) for k in (1, 2, 3))
        self.joint = _smoother(rows, columns, self.unit)
        self.pool = Linear(pooling(height, GRID).float(), pooling(width, GRID).float())
        self.larger = Linear(resizing(rows, height).float(), resizing(columns, width).float())

    @torch.inference_mode()
    def fit(self, images: np.ndarray) -> Self:
        """Learns what the removal takes from normals `(N, H, W, C)` uint8.

        Beyond 1000 normals, 1000 evenly spaced ones are used, which bounds memory.
        """
        images = images[np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(int)]
        seen = (self._seen(x)[:2] for x in passes(images, _CHUNK, self.fine.down.device))
        parts = [[v.cpu().numpy() for v in pair] for pair in seen]
        maps, energies = (np.concatenate(values) for values in zip(*parts, strict=True))
        energies = energies.reshape(len(energies), -1)
        mean = _smooth(maps.mean(0), 0.7 * self.unit)
        std = np.sqrt(_smooth(((maps - mean) ** 2).mean(0), 1.5 * self.unit)) + 1e-3
        z = ((maps - mean) / std)[..., ::STRIDE, ::STRIDE]
        covariance = np.einsum("nihw,njhw->ijhw", z, z) / len(z)
        covariance = _smooth(covariance, 0.5 * self.unit).transpose(2, 3, 0, 1)
        precision = np.linalg.inv(covariance + _RIDGE * np.eye(z.shape[1])).astype(np.float32)
        energy_mean, energy_std = energies.mean(0), energies.std(0) + 1e-6
        bank = ((energies - energy_mean) / energy_std).astype(np.float32)
        self._take(dict(zip(_FITTED, (mean, std, precision, energy_mean, energy_std, bank), strict=False)))
        return self

    def measured(self, images: np.ndarray) -> np.ndarray:
        """Returns the `columns` of images `(N, H, W, C)` uint8, `(N, M + 2)`."""
        return measured(lambda x: self.columns(self(x)), images, _CHUNK, self.fine.down.device)

    def calibrate(self, columns: np.ndarray) -> None:
        """Sets the scale of the evidence by `columns` of other normals, `(S, M + 2)`."""
        self.evidence = Evidence(np.sort(columns, 0)).to(self.fine.down.device)

    def tensors(self, prefix: str = "residual") -> dict[str, np.ndarray]:
        """Returns everything fitted, by name after `prefix`."""
        own = {"bank": self.nearest.bank, "normals": self.evidence.normals}
        values = {k: own[k] if k in own else self.get_buffer(k) for k in _FITTED}
        return {f"{prefix}.{k}": v.cpu().numpy() for k, v in values.items()}

    def restore(self, tensors: Mapping[str, np.ndarray], prefix: str = "residual") -> Self:
        """Restores what `tensors` returned.

        Args:
            tensors: arrays by name.
            prefix: as in `tensors`.
        """
        self._take({k: tensors[f"{prefix}.{k}"] for k in _FITTED if k != "normals"})
        self.evidence = Evidence(tensors[f"{prefix}.normals"]).to(self.fine.down.device)
        return self

    def _take(self, values: Mapping[str, np.ndarray]) -> None:
        where = self.fine.down.device
        for name, value in values.items():
            if name == "bank":
                self.nearest = Nearest(value, NEIGHBOURS).to(where)
            else:
                self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)).to(where))

    # --- of images ----------------------------------------------------------------------------------

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `(N, M, H, W)`, M = 3·T, energies `(N, T, 6, 6)`, and what was left `(T, N, C, H, W)`."""
        removed = self.remove(x)
        r = (x.float() - removed.float()).mean(2)
        detail = torch.log(self.wider((r - self.fine(r)) ** 2) + 1)
        maps = torch.stack([self.wide(r), self.wider(r), detail], 1).flatten(0, 1).transpose(0, 1)
        return maps, torch.log(self.pool(r**2) + 1).transpose(0, 1), removed

    def forward(self, x: Tensor) -> Measured:
        """Measures `(N, C, H, W)` uint8; the evidence is not part of it."""
        maps, energies, removed = self._seen(x)
        z = (maps - self.mean) / self.std  # (N, M, H, W)
        placed = z[..., ::STRIDE, ::STRIDE].permute(2, 3, 0, 1)
        squared = (placed @ self.precision * placed).sum(-1).permute(2, 0, 1)
        distance = self.joint(squared.clamp(min=0).sqrt())
        return Measured(z.abs().amax((-2, -1)), distance, energies, removed)

    def scaled(self, energies: Tensor) -> Tensor:
        """Returns energies `(..., T·36)` in standard deviations of the normals."""
        return (energies - self.energy_mean) / self.energy_std

    def columns(self, seen: Measured) -> Tensor:
        """Returns the scores that become evidence, `(N, M + 2)` float64: each map's, `joint`, `overall`."""
        overall = self.nearest(self.scaled(seen.energies.flatten(1)))
        joint = seen.distance.amax((1, 2)).double()
        return torch.cat([seen.greatest.double(), joint[:, None], overall[:, None]], 1)

    def parts(self, columns: Tensor) -> Tensor:
        """Returns the evidence of `single`, `joint` and `overall`, `(N, 3)`, from `columns`."""
        e = self.evidence(columns)
        return torch.cat([e[:, :-2].amax(1, keepdim=True), e[:, -2:]], 1)

    def single(self, seen: Measured) -> Tensor:
        """Returns the evidence of `single` alone, `(N,)`."""
        return self.evidence(seen.greatest).amax(1)

    def heatmap(self, seen: Measured) -> Tensor:
        """Returns the local Mahalanobis distance of the residuals, `(N, H, W)` float32."""
        return self.larger(seen.distance).float()


def _smoother(height: int, width: int, sigma: float) -> Linear:
    return Linear(*(torch.from_numpy(smoothing(side, sigma)) for side in (height, width)))


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of the last two axes, as scipy's, by products with its matrix for each axis."""
    rows, columns = (smoothing(side, sigma) for side in x.shape[-2:])
    return np.asarray(rows @ x.astype(np.float32, copy=False) @ columns.T)
