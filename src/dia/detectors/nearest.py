"""Distances to the nearest of many normals. Knows vectors only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

_PART = 4096  # normals in one product of the search


class Nearest(nn.Module):
    """The mean Euclidean distance to the nearest normals, in 64 bits, where near neighbours do not cancel.

    Args:
        bank: `(M, D)` features of normals, kept as float32.
        k: how many are averaged over; all where there are fewer.

    Raises:
        ValueError: there are no normals, or a feature is not finite.
    """

    bank: Tensor

    def __init__(self, bank: np.ndarray, k: int):
        super().__init__()
        if not bank.size or not np.isfinite(bank).all():
            raise ValueError("a bank needs normals, with finite features")
        self.register_buffer("bank", torch.from_numpy(bank.astype(np.float32)))
        self.k = min(k, len(bank))

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `(..., N, D)`, rounded to 32 bits as the bank is, to `(..., N)` float64."""
        return nearest_squared(x.float(), self.bank, self.k).sqrt().mean(-1)


def nearest_squared(x: Tensor, bank: Tensor, k: int) -> Tensor:
    """Returns the smallest squared distances of vectors to those of a bank.

    They are sought by products of matrices, in 64 bits, and measured anew: near neighbours cancel in a
    product, and its last digits depend on the other vectors.

    Args:
        x: `(..., N, D)`.
        bank: `(M, D)`.
        k: how many distances; M where there are fewer.

    Returns:
        `(..., N, min(k, M))` float64, ascending but for rounding.
    """
    x, k = x.double(), min(k, bank.shape[0])
    norms, values, places = (x**2).sum(-1, keepdim=True), [], []
    for start in range(0, bank.shape[0], _PART):
        part = bank[start : start + _PART].double()
        near = (norms + (part**2).sum(-1) - 2 * x @ part.T).topk(min(k, part.shape[0]), largest=False)
        values.append(near.values)
        places.append(near.indices + start)
    place = places[0]
    if len(places) > 1:
        best = torch.cat(values, -1).topk(k, largest=False).indices
        place = torch.cat(places, -1).gather(-1, best)
    return ((bank[place].double() - x[..., None, :]) ** 2).sum(-1)


def left_out(bank: Tensor, owner: np.ndarray, k: int = 1, rows: np.ndarray | None = None) -> np.ndarray:
    """Returns the mean distance of vectors of a bank to the nearest that belong to others, `(R,)` float64.

    Args:
        bank: `(M, D)`, finite.
        owner: `(M,)` whole numbers: vectors of one owner (copies of an image, slices of a volume) are not
            compared.
        k: how many are averaged over; as many as there are where that is fewer.
        rows: `(R,)`, which vectors are measured; all by default.
    """
    x, owners, made = bank.float().double(), torch.from_numpy(owner), []
    measured = torch.arange(len(x)) if rows is None else torch.from_numpy(rows)
    norms = (x**2).sum(1)
    k = min(k, int(len(owner) - np.unique(owner, return_counts=True)[1].max()))
    for part in measured.split(1024):
        squared = norms[part, None] + norms - 2 * x[part] @ x.T
        squared[owners[part, None] == owners] = torch.inf
        place = squared.topk(k, largest=False).indices
        made.append(((x[place] - x[part, None]) ** 2).sum(2).sqrt().mean(1))
    return torch.cat(made).numpy()
