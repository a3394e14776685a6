"""Optimiser and learning rates of contrastive training. Knows weights and settings; knows no image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .settings import AmplifySettings


def make_optimizer(weights: Iterable[nn.Parameter], s: AmplifySettings, lr: float | Tensor) -> Any:
    """Makes the optimiser.

    Args:
        weights: the parameters to train.
        s: the settings of training.
        lr: the learning rate; with a tensor on the device, a step can be captured in a CUDA graph.
    """
    if s.optimizer == "lars":
        s.check_installed()
        from timm.optim import Lars

        # with a rate in a tensor timm would take one weight at a time, and wait for the device at each
        foreach = {"foreach": True} if isinstance(lr, Tensor) else {}
        fixed: dict[str, Any] = {"momentum": 0.9, "trust_coeff": 0.001, "always_adapt": True}
        return Lars(weights, lr=lr, weight_decay=s.weight_decay, **fixed, **foreach)
    on_device = isinstance(lr, Tensor) and lr.is_cuda
    return torch.optim.AdamW(weights, lr, weight_decay=s.weight_decay, fused=True, capturable=on_device)


def schedule(s: AmplifySettings, n: int) -> Callable[[int], float]:
    """Returns the learning rate of each step, as a multiple of `lr`: up from a tenth, down a half cosine.

    Args:
        s: the settings of training.
        n: the number of training images.
    """
    steps = s.length(n)
    warm = max(round(s.warmup * steps), 1)

    def at(step: int) -> float:
        if step < warm:
            return 0.1 + 0.9 * step / warm
        return (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2

    return at
