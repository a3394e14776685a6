"""What stands in for the diffusion model in controls and ablations. Knows no network.

`Control` has the interface of `Dissolver`. Gaussian and median windows have a fixed side (7 in the paper's
ablation), whatever t; the Gaussian's width follows from its side by OpenCV's rule. Noise takes the place of
the network's estimate in the one-step formula, x + √(1/ᾱ_t − 1)·ε, so that t means the same as for
diffusion; ε is drawn from the pixels and t, so the same image is always given the same noise. Given a
strength of their own (`sigma`, `noise`), both keep it whatever t, as `shrink` and `bottleneck` do.

`shrink` is soft thresholding (Donoho, IEEE Trans. Inf. Theory 1995) of the whole working image's orthonormal
cosine transform (DCT-II; Ahmed et al., IEEE Trans. Comput. 1974): what is weak goes, however fine.
`bottleneck` is what a diffusion model that works on fewer pixels does to an image before it dissolves.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d, median_blur
from scipy import fft, ndimage
from torch import Tensor

from ..core.errors import DataError
from ..core.modelfiles import ModelFiles
from ..core.processes import choose_device
from ..core.settings import from_dict, plain
from .base import DissolverSettings, Dissolving, fit_in
from .schedule import cosine_alphas_cumprod
from .settings import STRENGTHS


class Control(Dissolving):
    """Dissolves as `settings.kind` says: by a Gaussian, a median, noise, shrinking, a bottleneck; or not at
    all (`identity`).

    It works at `settings.size` as a Dissolver does, so that resizing falls on both alike: `bottleneck` below
    `size` resizes once more, and at or above it adds nothing to what `size` does.

    Raises:
        DataError: settings whose strength is still to be matched; `matching.matched` finds it.
    """

    def __init__(self, settings: DissolverSettings, *, seed: int = 0, device: str = "auto"):
        if settings.matched:
            raise DataError(
                f"{settings.kind} has no strength yet; `matching.matched` finds it, as fitting dia does"
            )
        self.settings, self.seed, self.device = settings, seed, device
        self.where_ = choose_device(device)
        self.fit_seconds_ = 0.0
        self._alphas = cosine_alphas_cumprod()

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        s, kind, kernel = self.settings, self.settings.kind, self.settings.kernel
        if kind == "gaussian":
            sigma, side = gaussian_width(kernel), kernel
            if s.sigma is not None:
                sigma, side = s.sigma, 2 * math.ceil(4 * s.sigma) + 1
            side = min(side, *(2 * s - 1 for s in z.shape[-2:]))  # reflection reaches no further
            return gaussian_blur2d(z, side, (sigma, sigma), border_type="reflect")
        if kind == "median":
            # kornia pads with zeros, which are grey here: reflect first, cut off afterwards
            wide = F.pad(z, [min(kernel // 2, z.shape[-1] - 1)] * 2 + [min(kernel // 2, z.shape[-2] - 1)] * 2,
                         mode="reflect")  # fmt: skip
            y = median_blur(wide, kernel)
            top, left = ((wide.shape[i] - z.shape[i]) // 2 for i in (-2, -1))
            return y[..., top : top + z.shape[-2], left : left + z.shape[-1]]
        if kind == "noise":
            strength = (1 / self._alphas[t.cpu()] - 1).sqrt().to(z).view(-1, 1, 1, 1)
            if s.noise is not None:
                strength = torch.full_like(strength, s.noise / 127.5)
            return (
                z + strength * torch.stack([self._noise(x, int(v)) for x, v in zip(z, t, strict=True)])
            ).clamp(-1, 1)
        if kind == "shrink":
            rows, columns = (dct_matrix(int(side)).to(z) for side in z.shape[-2:])
            most = torch.full(z.shape[-2:], s.threshold / 127.5).to(z)
            most[0, 0] = 0  # brightness is no detail
            taken = (rows @ z @ columns.T).clamp(-most, most)
            return (z - rows.T @ taken @ columns).clamp(-1, 1)
        if kind == "bottleneck":
            small, undo = fit_in(z, s.bottleneck, int(z.shape[1]), 1)
            return undo(small)
        return z

    def _noise(self, x: Tensor, t: int) -> Tensor:
        pixels = x.cpu().contiguous().numpy()
        own = torch.Generator().manual_seed(zlib.crc32(pixels.tobytes()) << 10 | t)
        return torch.randn(x.shape, generator=own).to(x)

    def save(self, folder: Path) -> None:
        """Writes `dissolver.json`, which is all there is."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        facts = {"settings": plain(self.settings), "seed": self.seed, "fit_seconds": 0.0}
        (Path(folder) / "dissolver.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto") -> Control:
        """A saved control."""
        known = saved_facts(folder)
        return cls(from_dict(DissolverSettings, known["settings"]), seed=known["seed"], device=device)

    def sha256(self) -> str:
        """Hash of kind, strength and working size: the same hash dissolves alike."""
        s = self.settings
        name = STRENGTHS.get(s.kind, "kernel")
        own = None if name == "kernel" else getattr(s, name)  # the window has always been part of it
        facts = f"{s.kind} {s.kernel} {s.size}" + (f" {own}" if own is not None else "")
        return hashlib.sha256(facts.encode()).hexdigest()


def saved_facts(folder: Path | str) -> dict[str, Any]:
    """What `dissolver.json` of a folder says; empty where there is none.

    Raises:
        DataError: not what `save` writes.
    """
    if not (Path(folder) / "dissolver.json").exists():
        return {}
    facts = ModelFiles(folder).json("dissolver.json")
    seed, seconds = facts.get("seed"), facts.get("fit_seconds")
    if (
        not isinstance(facts.get("settings"), dict)
        or type(seed) is not int
        or type(seconds) not in (int, float)
    ):
        raise DataError(f"{folder}: dissolver.json must hold settings, seed and fit_seconds")
    return facts


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II of n values as a matrix, `(n, n)` float64; its transpose is the inverse."""
    return torch.from_numpy(fft.dct(np.eye(n), axis=0, norm="ortho"))


def gaussian_width(kernel: int) -> float:
    """σ in pixels of a Gaussian window of `kernel` pixels, as OpenCV has it: 1.4 for 7."""
    return 0.3 * ((kernel - 1) / 2 - 1) + 0.8


def gaussian(images: np.ndarray, sigma: float | Sequence[float]) -> np.ndarray:
    """Gaussian blur of each `(N, H, W, C)` uint8 image, `sigma` in pixels; reflected at the borders."""
    if isinstance(sigma, int | float):
        return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect")
    return np.stack([gaussian(images, s) for s in sigma])
