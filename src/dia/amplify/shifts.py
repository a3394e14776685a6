"""Shifted instances: K distributional shifts whose rows are negatives of each other. Pure functions.

Source: Tack et al., "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
Instances", NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, k: int) -> Tensor:
    """Turns square images by k·90° anticlockwise; the four turns form the cyclic group.

    Args:
        x: `(N, C, S, S)`.
        k: 0–3.

    Raises:
        ValueError: the images are not square.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"rotation needs square images, not {tuple(x.shape[-2:])}; use shift='cutperm'")
    return x.rot90(k % 4, (-2, -1))


def cutperm(x: Tensor, k: int) -> Tensor:
    """Swaps halves: top with bottom by bit 0 of k, left with right by bit 1; each is its own inverse.

    Args:
        x: `(N, C, H, W)`; the middle line of an odd side stays in its place.
        k: 0–3.
    """
    if k & 1:
        x = _swap_halves(x, -2)
    return _swap_halves(x, -1) if k & 2 else x


def _swap_halves(x: Tensor, dim: int) -> Tensor:
    n, half = x.shape[dim], x.shape[dim] // 2
    middle = x.narrow(dim, half, n - 2 * half)
    return torch.cat([x.narrow(dim, n - half, half), middle, x.narrow(dim, 0, half)], dim)


SHIFTS = {"rotation": (4, rotate), "cutperm": (4, cutperm), "none": (1, lambda x, k: x)}
