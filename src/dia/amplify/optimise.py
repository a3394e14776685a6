"""Optimiser and learning rates of contrastive training. Knows weights and settings; knows no image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .settings import AmplifySettings


def make_optimizer(weights: Iterable[nn.Parameter], s: AmplifySettings, lr: float | Tensor) -> Any:
    """The optimiser of these settings; with a tensor of the device as rate, it can be captured in a graph."""
    if s.optimizer == "lars":
        s.check_installed()
        from timm.optim import Lars

        return Lars(
            weights,
            lr=lr,
            momentum=0.9,
            weight_decay=s.weight_decay,
            trust_coeff=0.001,
            always_adapt=True,
            # with a rate in a tensor timm would take one weight at a time, and wait for the device at each
            **({"foreach": True} if isinstance(lr, Tensor) else {}),
        )
    on_device = isinstance(lr, Tensor) and lr.is_cuda
    return torch.optim.AdamW(weights, lr, weight_decay=s.weight_decay, fused=True, capturable=on_device)


def schedule(optimizer: torch.optim.Optimizer, s: AmplifySettings, n: int) -> Any:
    """The rate over the steps on n images: up linearly from a tenth, then down a half cosine."""
    steps = s.length(n)
    warm = max(round(s.warmup * steps), 1)
    return torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warm, 1)),
        ],
        milestones=[warm],
    )


def learning_rates(s: AmplifySettings, n: int) -> list[float]:
    """The rate of every step on n images."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], s.lr)
    rates, over = [], schedule(optimizer, s, n)
    for _ in range(s.length(n)):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        over.step()
    return rates
