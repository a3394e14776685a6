"""Dissolving at several t as one module, which exports. Knows dissolvers; knows no detector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.errors import DataError
from .base import Dissolving, fit_in


class SeveralT(nn.Module):
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
