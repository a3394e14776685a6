"""Maps of frozen networks in files, so that the methods of a comparison compute them once and share them.

An entry is found by the network's weights, the image's pixels and the precision of mixed training: no method,
setting or data set has to be known, and an image of another size or with other pixels is another entry. Knows
tensors and files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .runtime import digest, learns

_LEVELS = 255 * 256  # of a pixel's key: 8-bit images prepared in two ways have one, other images nearly
_SPENT = "spent"  # on the entry's computation, kept with it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """What a computation took.

    Args:
        wall: seconds by the clock, which other work on the machine lengthens.
        processor: seconds of all threads.
    """

    wall: float = 0.0
    processor: float = 0.0

    @staticmethod
    def now() -> Spent:
        """Returns both clocks; the difference of two readings is what was spent between them."""
        return Spent(time.perf_counter(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.processor - other.processor)

    def __truediv__(self, n: int) -> Spent:
        return Spent(self.wall / n, self.processor / n)


class SharedMaps:
    """A folder of entries, one file an image; several processes may use one.

    Args:
        folder: made if it is absent; safe to delete.
        most_bytes: of all entries together; what comes later is computed and not kept.

    Attributes:
        computed: images computed here.
        found: images found.
        saved: what the found ones cost when they were computed.
    """

    def __init__(self, folder: Path, most_bytes: int):
        self.folder, self.most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.bytes = _bytes(folder)
        self.computed, self.found, self.saved = 0, 0, Spent()

    def maps(
        self, network: nn.Module, x: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Returns what `compute(x)` does.

        Args:
            network: whose weights decide the maps.
            x: `(N, 3, H, W)` in [−1, 1], on the CPU.
            compute: gives tensors of N rows; a row depends on its image alone.
        """
        keys = self._keys(network, x)
        rows = [self._read(key) for key in keys]
        lacks = [i for i, row in enumerate(rows) if row is None]
        if lacks:
            start = Spent.now()
            made = compute(x if len(lacks) == len(x) else x[lacks])
            each = (Spent.now() - start) / len(lacks)
            for k, i in enumerate(lacks):
                rows[i] = [part[k] for part in made]
                self._keep(keys[i], rows[i] or [], each)
            self.computed += len(lacks)
            if len(lacks) == len(x):
                return list(made)
        return [torch.stack(parts) for parts in zip(*(row or [] for row in rows), strict=True)]

    def _keys(self, network: nn.Module, x: Tensor) -> list[str]:
        weights = digest(network, [*network.parameters()])
        levels = ((x.detach() * 0.5 + 0.5) * _LEVELS).round().to(torch.int32).contiguous().numpy()
        shape = str(tuple(x.shape[1:])).encode()
        if torch.is_autocast_enabled("cpu"):  # maps of mixed precision are no others' maps
            shape += str(torch.get_autocast_dtype("cpu")).encode()
        return [blake2b(weights + shape + image.tobytes(), digest_size=16).hexdigest() for image in levels]

    def _read(self, key: str) -> list[Tensor] | None:
        try:
            kept = load_file(self.folder / key)
            self.saved += Spent(*kept.pop(_SPENT).tolist())
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged: it is made again
            _log.warning("%s: %s; computed anew", self.folder / key, error)
            return None
        self.found += 1
        return [kept[str(i)] for i in range(len(kept))]

    def _keep(self, key: str, row: list[Tensor], spent: Spent) -> None:
        if self.bytes >= self.most_bytes:
            return
        entry = {str(i): part.detach().contiguous().clone() for i, part in enumerate(row)}
        new = self.folder / f".{key}-{os.getpid()}"  # whole or not at all
        try:
            save_file(entry | {_SPENT: torch.tensor([spent.wall, spent.processor])}, new)
            self.bytes += new.stat().st_size
            new.replace(self.folder / key)
        except OSError as error:
            _log.warning("%s: %s; features are computed and not kept from here on", self.folder, error)
            self.most_bytes = 0
            new.unlink(missing_ok=True)


def _bytes(folder: Path) -> int:
    """Sums up the entries; another process may rename or remove one meanwhile."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


_active: SharedMaps | None = None


@contextmanager
def sharing(maps: SharedMaps | None) -> Iterator[SharedMaps | None]:
    """While it lasts, frozen networks ask these maps first; with None, or outside, they compute.

    Args:
        maps: from which and into which.
    """
    global _active
    before, _active = _active, maps
    try:
        yield maps
    finally:
        _active = before


def shared(network: nn.Module, x: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """Returns `compute(x)`, of the maps that are shared now where the network is frozen and on the CPU.

    Args:
        network: as for `SharedMaps.maps`.
        x: likewise.
        compute: likewise.
    """
    if _active is None or learns([*network.parameters()], x) or x.device.type != "cpu":
        return list(compute(x))
    return _active.maps(network, x, compute)


def saved() -> Spent:
    """Returns what shared maps saved so far; nothing where none are shared."""
    return Spent() if _active is None else _active.saved
