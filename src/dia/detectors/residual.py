"""What a removal takes away from an image, judged against what it takes from normal ones.

Knows removals only as functions: dissolving at several t (`dia+`), or Gaussian blurs at several σ
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

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import logsumexp

from .calibration import Calibration

Removal = Callable[[np.ndarray], np.ndarray]  # (N, H, W, C) uint8 to (T, N, H, W, C) uint8

PARTS = ("single", "joint", "overall")
STRIDE = 2  # of the grid on which the Mahalanobis distance is taken
_RIDGE = 0.05
GRID = 6
NEIGHBOURS = 3
_CHUNK = 256
_MOST = 1000


class Residual:
    """Statistics of the residuals of one removal. All lengths scale with the shorter side of the image."""

    def __init__(self, remove: Removal):
        self.remove = remove

    def fit(self, images: np.ndarray, spare: np.ndarray) -> Residual:
        """From normals `(N, H, W, C)` uint8 and other normals that set the scale of the evidence.

        Beyond 1000 normals, 1000 evenly spaced ones are used, which bounds memory.
        """
        images = images[np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(int)]
        parts = [self._maps(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
        maps = np.concatenate([p[0] for p in parts])  # (N, M, H, W)
        energies = np.concatenate([p[1] for p in parts])
        unit = min(images.shape[1:3]) / 64
        mean = maps.mean(0)
        self.mean_ = _smooth(mean, 0.7 * unit)
        self.std_ = np.sqrt(_smooth(((maps - self.mean_) ** 2).mean(0), 1.5 * unit)) + 1e-3
        z = ((maps - self.mean_) / self.std_)[..., ::STRIDE, ::STRIDE]
        covariance = np.einsum("nihw,njhw->ijhw", z, z) / len(z)
        covariance = _smooth(covariance, 0.5 * unit).transpose(2, 3, 0, 1)
        self.precision_ = np.linalg.inv(covariance + _RIDGE * np.eye(z.shape[1])).astype(np.float32)
        self.energy_mean_, self.energy_std_ = energies.mean(0), energies.std(0) + 1e-6
        self.bank_ = ((energies - self.energy_mean_) / self.energy_std_).astype(np.float32)
        greatest, joint, overall, _ = self._statistics(spare)
        self.normals_ = np.sort(np.column_stack([greatest, joint, overall]), 0)  # (S, M + 2)
        return self

    def evidence(self, images: np.ndarray) -> np.ndarray:
        """Evidence of each of `PARTS`, `(N, 3)`: about exponential(1) on normals, higher = more anomalous."""
        out = []
        for start in range(0, len(images), _CHUNK):
            greatest, joint, overall, _ = self._statistics(images[start : start + _CHUNK])
            columns = np.column_stack([greatest, joint, overall])
            e = [Calibration(n).evidence(c) for n, c in zip(self.normals_.T, columns.T, strict=True)]
            out.append(np.column_stack([np.max(e[:-2], axis=0), e[-2], e[-1]]))
        return np.concatenate(out)

    def heatmap(self, images: np.ndarray) -> np.ndarray:
        """`(N, H, W)` float32: local Mahalanobis distance of the residuals, in standard deviations."""
        chunks = range(0, len(images), _CHUNK)
        return np.concatenate([self._statistics(images[i : i + _CHUNK])[3] for i in chunks])

    def single(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of `PARTS` alone, `(N,)`, and the energies as `grid_energies` has them: one removal."""
        singles, energies = [], []
        for start in range(0, len(images), _CHUNK):
            maps, energy = self._maps(images[start : start + _CHUNK])
            greatest = self._greatest(maps)[1].T
            each = [Calibration(n).evidence(g) for n, g in zip(self.normals_.T, greatest, strict=False)]
            singles.append(np.max(each, axis=0))
            energies.append(energy.reshape(len(energy), -1, GRID, GRID))
        return np.concatenate(singles), np.concatenate(energies)

    def tensors(self, prefix: str = "residual") -> dict[str, np.ndarray]:
        """Everything fitted."""
        return {f"{prefix}.{name}": getattr(self, f"{name}_") for name in _FITTED}

    def restore(self, tensors: dict[str, np.ndarray], prefix: str = "residual") -> Residual:
        """Puts it back."""
        for name in _FITTED:
            setattr(self, f"{name}_", tensors[f"{prefix}.{name}"])
        return self

    def _maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps `(N, M, H, W)`, M = 3·T, and energies `(N, T·36)` of the residuals."""
        unit = min(images.shape[1:3]) / 64
        maps, energies = [], []
        for removed in self.remove(images):
            r = (images.astype(np.float32) - removed).mean(-1)
            fine = r - _smooth(r, unit)
            maps += [_smooth(r, 2 * unit), _smooth(r, 3 * unit), np.log(_smooth(fine**2, 3 * unit) + 1)]
            energies.append(_energy(r))
        return np.stack(maps, 1), np.stack(energies, 1).reshape(len(images), -1)

    def _greatest(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps in standard deviations of normals, and the greatest of each, `(N, M)`, in either direction."""
        z = (maps - self.mean_) / self.std_
        return z, np.abs(z).max((-2, -1))

    def _statistics(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per image: greatest |z| of each map `(N, M)`, greatest joint distance, overall, and the heatmap."""
        maps, energies = self._maps(images)
        z, greatest = self._greatest(maps)
        z = z[..., ::STRIDE, ::STRIDE]
        squared = np.einsum("nihw,hwij,njhw->nhw", z, self.precision_, z, optimize=True)
        distance = _smooth(np.sqrt(np.maximum(squared, 0)), min(images.shape[1:3]) / 64)
        heatmap = F.interpolate(
            torch.from_numpy(distance.astype(np.float32))[:, None], images.shape[1:3], mode="bilinear"
        )[:, 0].numpy()
        scaled = ((energies - self.energy_mean_) / self.energy_std_).astype(np.float32)
        return greatest, distance.max((1, 2)), nearest(scaled, self.bank_, NEIGHBOURS), heatmap


def grid_energies(images: np.ndarray, remove: Removal) -> np.ndarray:
    """Log mean squares of the residuals of `(N, H, W, C)` uint8 on a 6×6 grid, `(N, T, 6, 6)` float32."""
    chunks = (images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK))
    parts = [
        np.stack([_energy((c.astype(np.float32) - removed).mean(-1)) for removed in remove(c)], 1)
        for c in chunks
    ]
    return np.concatenate(parts)


def _energy(r: np.ndarray) -> np.ndarray:
    """`(N, H, W)` to `(N, 6, 6)`."""
    return torch.log(F.adaptive_avg_pool2d(torch.from_numpy(r**2), GRID) + 1).numpy()


def joined(evidence: np.ndarray) -> np.ndarray:
    """Evidence −log p̊ of the harmonic mean p̊ of p-values, from the `(N, P)` evidence −log p of P parts."""
    return logsumexp(evidence, axis=1) - np.log(evidence.shape[1])


_FITTED = ("mean", "std", "precision", "energy_mean", "energy_std", "bank", "normals")


def nearest(features: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    """Mean Euclidean distance of each `(N, D)` row to its k nearest of `(M, D)`, `(N,)`."""
    x, y = torch.from_numpy(features), torch.from_numpy(bank)
    # without the matrix-product shortcut a row's distances do not depend on the other rows
    d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return d.topk(min(k, len(bank)), largest=False).values.mean(1).numpy()


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of the last two axes, as scipy's, by products with its matrix for each axis."""
    rows, columns = (smoothing(side, sigma) for side in x.shape[-2:])
    return np.asarray(rows @ x.astype(np.float32, copy=False) @ columns.T)


@lru_cache(maxsize=64)
def smoothing(side: int, sigma: float, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """`(side, side)`: scipy's Gaussian filter of a line, as a matrix."""
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0).astype(dtype)
