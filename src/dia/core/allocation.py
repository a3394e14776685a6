"""Limits what networks cost that are built from settings of a stranger: memory, and work of a first pass.

Knows torch's functions that make tensors; knows no network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import DataError

SPARE = 2**30  # bytes beyond four times the weights: some networks are built whole though a part is kept
MAX_PARTS = 20_000  # tensors
_NAMES = (
    "empty zeros ones full rand randn eye arange linspace logspace empty_strided randint randperm "
    "tril_indices hann_window hamming_window"
)
_FACTORIES = frozenset(getattr(torch, name) for name in _NAMES.split())


class AllocationLimit(TorchFunctionMode):
    """A context that refuses a tensor beyond the limit before it is allocated.

    Args:
        what: the thing that is loaded, for the message.
        weights: bytes of the networks' weights; the networks may take four times as many and 1 GiB.
    """

    def __init__(self, what: object, weights: int):
        super().__init__()
        self.what, self.most, self.nbytes, self.count = what, 4 * weights + SPARE, 0, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            shape_only = {k: v for k, v in kwargs.items() if k not in ("generator", "pin_memory", "out")}
            if func is torch.eye:  # its own shape function imports torch's compiler, which takes seconds
                n = args[0] if args else shape_only.pop("n")
                m = args[1] if len(args) > 1 else shape_only.pop("m", n)
                shown = torch.empty((n, m), **shape_only | {"device": "meta"})
            else:
                shown = func(*args, **shape_only | {"device": "meta"})
            self.nbytes += shown.nbytes
            self.count += 1
            if self.nbytes > self.most or self.count > MAX_PARTS:
                raise DataError(
                    f"{self.what}: its settings ask for more than {self.most >> 20} MiB or {MAX_PARTS} "
                    "tensors, which its weights cannot fill"
                )
        return func(*args, **kwargs)


class Enough(Exception):
    """Work that was stopped since it costs much; it says nothing against whoever wanted it."""


class WorkLimit(TorchFunctionMode):
    """A context that stops torch between two operations.

    Args:
        seconds: after which the next operation is not begun.
        nbytes: of a tensor, after which likewise.

    Raises:
        Enough: from within, where it stops.
    """

    def __init__(self, seconds: float, nbytes: int):
        super().__init__()
        self.until, self.most = time.monotonic() + seconds, nbytes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if time.monotonic() > self.until:
            raise Enough
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.nbytes > self.most:
            raise Enough
        return made
