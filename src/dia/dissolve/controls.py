"""Controls: simple removals that stand in for the diffusion model in ablations. Knows no network.

`Control` has the interface of `Dissolver`. Gaussian and median windows have a fixed side (7 in the paper's
ablation), whatever t; the Gaussian's width follows from its side by OpenCV's rule. Noise takes the place of
the network's estimate in the one-step formula, x + √(1/ᾱ_t − 1)·ε, so that t means the same as for
diffusion; ε is drawn from the pixels and t, so the same image is always given the same noise. Given a
strength of their own (`sigma`, `noise`), both keep it whatever t, as `shrink` and `bottleneck` do.

`shrink` is soft thresholding (Donoho, IEEE Trans. Inf. Theory 1995) of the whole working image's orthonormal
cosine transform (DCT-II; Ahmed et al., IEEE Trans. Comput. 1974): weak coefficients go, however fine.
`bottleneck` resizes as a diffusion model that works on fewer pixels does before it dissolves.
"""

from __future__ import annotations

import hashlib
import math
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d, median_blur
from scipy import fft
from torch import Tensor

from ..core.errors import DataError
from ..core.processes import choose_device
from .base import DissolverSettings, Dissolving, fit_in
from .schedule import cosine_alphas_cumprod
from .settings import STRENGTHS


class Control(Dissolving):
    """Dissolves by a Gaussian, a median, noise, shrinking or a bottleneck, or not at all (`identity`).

    It works at `settings.size` as a `Dissolver` does, so that both are resized alike: `bottleneck` below
    `size` resizes once more, and at or above it adds nothing.

    Args:
        settings: the kind, its strength and the working size.
        seed: is saved only; the noise of `noise` is drawn from the pixels.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DataError: the strength is still to be matched; `matching.matched` finds it.

    Example:
        >>> image = np.zeros((1, 8, 8, 1), np.uint8)
        >>> image[0, 4, 4] = 200
        >>> int(Control(DissolverSettings(kind="gaussian")).dissolve(image, t=30).max())
        17
    """

    def __init__(self, settings: DissolverSettings, *, seed: int = 0, device: str = "auto"):
        if settings.matched:
            raise DataError(
                f"{settings.kind} has no strength yet; `matching.matched` finds it, as fitting dia does"
            )
        super().__init__(settings, seed=seed, device=device)
        self.where_ = choose_device(device)
        self._alphas = cosine_alphas_cumprod()

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        s, (h, w) = self.settings, z.shape[-2:]
        if s.kind == "gaussian":
            sigma, side = s.sigma, s.kernel
            if sigma is None:
                sigma = gaussian_width(s.kernel)
            else:
                side = 2 * math.ceil(4 * sigma) + 1
            side = min(side, 2 * h - 1, 2 * w - 1)  # reflection reaches no further
            return gaussian_blur2d(z, side, (sigma, sigma), border_type="reflect")
        if s.kind == "median":
            # kornia pads with zeros, which are grey here: reflect first, cut off afterwards
            down, across = min(s.kernel // 2, h - 1), min(s.kernel // 2, w - 1)
            wide = F.pad(z, (across, across, down, down), mode="reflect")
            return median_blur(wide, s.kernel)[..., down : down + h, across : across + w]
        if s.kind == "noise":
            strength = (1 / self._alphas[t.cpu()] - 1).sqrt().to(z).view(-1, 1, 1, 1)
            if s.noise is not None:
                strength = torch.full_like(strength, s.noise / 127.5)
            noise = torch.stack([_noise(x, int(step)) for x, step in zip(z, t, strict=True)])
            return (z + strength * noise).clamp(-1, 1)
        if s.kind == "shrink":
            rows, columns = (dct_matrix(int(side)).to(z) for side in (h, w))
            most = torch.full((h, w), s.threshold / 127.5).to(z)
            most[0, 0] = 0  # brightness is no detail
            taken = (rows @ z @ columns.T).clamp(-most, most)
            return (z - rows.T @ taken @ columns).clamp(-1, 1)
        if s.kind == "bottleneck":
            small, undo = fit_in(z, s.bottleneck, int(z.shape[1]), 1)
            return undo(small)
        return z

    def sha256(self) -> str:
        """Returns a hash of kind, strength and working size: equal hashes dissolve alike."""
        s = self.settings
        name = STRENGTHS.get(s.kind, "kernel")
        own = None if name == "kernel" else getattr(s, name)  # the window has always been part of it
        facts = f"{s.kind} {s.kernel} {s.size}" + (f" {own}" if own is not None else "")
        return hashlib.sha256(facts.encode()).hexdigest()


def _noise(x: Tensor, t: int) -> Tensor:
    """Draws noise from the pixels of one image and t."""
    own = torch.Generator().manual_seed(zlib.crc32(x.cpu().contiguous().numpy().tobytes()) << 10 | t)
    return torch.randn(x.shape, generator=own).to(x)


def dct_matrix(n: int) -> Tensor:
    """Returns the orthonormal DCT-II of n values as a matrix, `(n, n)` float64; its transpose inverts it."""
    return torch.from_numpy(fft.dct(np.eye(n), axis=0, norm="ortho"))


def gaussian_width(kernel: int) -> float:
    """Returns σ in pixels for a Gaussian window of `kernel` pixels by OpenCV's rule: 1.4 for 7."""
    return 0.3 * ((kernel - 1) / 2 - 1) + 0.8
