"""The noise schedule and the one-step formula of dissolving, as pure functions. Knows no network.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024; the cosine schedule is that of Nichol and
Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, eq. 17.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_alphas_cumprod(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Returns ᾱ_t = Π_{s≤t} (1 − β_s) of the cosine schedule, `(steps,)` float64, decreasing within (0, 1).

    Args:
        steps: the number of diffusion steps.
        offset: keeps the first β away from 0.
        max_beta: the greatest β.
    """

    def f(u: float) -> float:
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), max_beta) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def one_step(x: Tensor, epsilon: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Dissolves images in one reverse step: x̂_{t→0} = √(1/ᾱ_t)·x − √(1/ᾱ_t − 1)·ε_θ(x, t), in [−1, 1].

    The clean image stands in the place of x_t and no noise is drawn: the result is a function of (x, t).

    Args:
        x: images `(N, C, H, W)` in [−1, 1].
        epsilon: the network's noise estimate for them, same shape.
        alpha_bar: ᾱ_t, a number or `(N,)`, in (0, 1].

    Returns:
        The dissolved images, `(N, C, H, W)`, clamped to [−1, 1].

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.full((1, 1, 1, 1), 0.5)
        >>> round(one_step(x, torch.full_like(x, 0.1), 0.64).item(), 6)  # .5 / .8 − √(.36 / .64) · .1
        0.55
    """
    a = torch.as_tensor(alpha_bar, dtype=x.dtype, device=x.device)
    if x.shape != epsilon.shape or a.ndim > 1 or (a.ndim == 1 and a.shape[0] != x.shape[0]):
        raise ValueError(f"x {tuple(x.shape)}, epsilon {tuple(epsilon.shape)}, ᾱ {tuple(a.shape)} do not fit")
    a = a.reshape(-1, *[1] * (x.ndim - 1))
    return ((1 / a).sqrt() * x - (1 / a - 1).sqrt() * epsilon).clamp(-1, 1)
