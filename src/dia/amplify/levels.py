"""Draws t for the dissolved views: uniform, by a Beta, or by a Beta of the epoch. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .augment import Device
from .settings import AmplifySettings


def draw_levels(
    count: int, shifts: int, batch: int, settings: AmplifySettings, epoch: int, device: Device = None
) -> Tensor:
    """Draws the place of each dissolved view's t in the grid of t.

    A level is ⌊count·U⌋, so that with the steps 30–99 t = ⌊100·(.3 + .7·U)⌋ as published.

    Args:
        count: the number of diffusion steps in the grid.
        shifts: K.
        batch: B images.
        settings: only `t_per`, `t_sampler` and `t_beta` count.
        epoch: counts for the sampler `cycled`.
        device: where the levels lie; the CPU by default.

    Returns:
        `(K, B)` int64 in [0, count).
    """
    s = settings
    shape = {"batch": (1, 1), "shift": (shifts, 1), "image": (shifts, batch)}[s.t_per]
    if s.t_sampler == "uniform":
        level = torch.randint(0, count, shape, device=device)
    else:
        a, b = s.t_beta if s.t_sampler == "beta" else cycled_beta(epoch)
        beta = torch.distributions.Beta(torch.tensor(a, device=device), torch.tensor(b, device=device))
        level = (count * beta.sample(shape)).long().clamp(max=count - 1)
    return level.expand(shifts, batch)


def cycled_beta(epoch: int) -> tuple[float, float]:
    """Returns (α, β) for an epoch, by the official code's option of period 30.

    Beta(20, 2 + 1.2·e) serves the epochs e = 0 to 14, from large t towards the middle; epoch 29 − e takes the
    mirror image Beta(2 + 1.2·e, 20) of epoch e, on to small t.
    """
    e = epoch % 30
    return (20.0, 2 + 1.2 * e) if e < 15 else (2 + 1.2 * (29 - e), 20.0)
