"""Gradients of convolutions in low precision on CPUs: what they leave unwritten is set to zero.

A tap of a kernel that meets nothing but padding has the gradient 0. oneDNN's bf16 kernels do not write it, so
that it holds whatever lay in memory, NaN included. Knows convolutions; knows no training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def written_gradients(module: nn.Module) -> Iterator[None]:
    """Sets, while it lasts, the gradients of taps that meet only padding to zero, of every `Conv2d` within.

    Args:
        module: about to be trained; its convolutions may see inputs of any size.
    """
    handles = []
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.weight.requires_grad and max(conv.kernel_size) > 1:
            taps = _Taps(conv)
            handles += [conv.register_forward_pre_hook(taps.see), conv.weight.register_hook(taps.clean)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Taps:
    """Keeps, for one convolution, which taps met pixels in the step that goes on."""

    def __init__(self, conv: nn.Conv2d):
        self.met = torch.zeros(conv.kernel_size, dtype=torch.bool)

    def see(self, conv: Any, args: tuple[Any, ...]) -> None:
        rows, columns = (
            met_taps(n, conv.kernel_size[i], conv.stride[i], conv.padding[i], conv.dilation[i])
            for i, n in enumerate(args[0].shape[-2:])
        )
        self.met |= rows[:, None] & columns[None, :]

    def clean(self, gradient: Tensor) -> Tensor | None:
        met, self.met = self.met, torch.zeros_like(self.met)
        return None if met.all() else torch.where(met.to(gradient.device), gradient, 0.0)


def met_taps(n: int, kernel: int, stride: int, padding: int | str, dilation: int) -> Tensor:
    """Returns which taps of a kernel meet at least one of n pixels along an axis.

    Args:
        n: pixels.
        kernel: number of taps.
        stride: of the convolution.
        padding: pixels before the first, or `same` or `valid`.
        dilation: pixels between taps.

    Returns:
        `(kernel,)` bool.

    Example:
        >>> met_taps(1, 3, 2, 1, 1)
        tensor([False,  True, False])
    """
    reach = dilation * (kernel - 1)
    before = padding if isinstance(padding, int) else reach // 2 if padding == "same" else 0
    after = reach - before if padding == "same" else before
    outputs = (n + before + after - reach - 1) // stride + 1
    place = torch.arange(max(outputs, 0))[:, None] * stride - before + dilation * torch.arange(kernel)
    return ((place >= 0) & (place < n)).any(0)
