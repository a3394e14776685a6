"""Dissolved views for training: computed once over a grid of t (`DissolvedBank`), or live.

Both give the same pixels; the bank keeps the U-Net out of the training loop. Knows no loss.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ..core.processes import barrier, of_all, processes
from ..core.storage import reserve
from .base import Dissolving

_CHUNK = 256


class LiveDissolving:
    """Dissolves on demand; a bank has the same `take`.

    Args:
        images: `(N, H, W, C)` uint8.
        dissolver: a fitted dissolver or a control.
        ts: the grid of t.
    """

    def __init__(self, images: np.ndarray, dissolver: Dissolving, ts: tuple[int, ...]):
        self.images, self.dissolver, self.ts = images, dissolver, ts

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Returns dissolved copies, `(B, H, W, C)` uint8.

        Args:
            index: `(B,)` int, which images.
            flip: `(B,)` bool, where an image is mirrored first.
            level: `(B,)` int, the place of each image's t in `ts`.
        """
        chosen = np.where(flip[:, None, None, None], self.images[index][:, :, ::-1], self.images[index])
        return self.dissolver.dissolve_each(chosen, np.asarray(self.ts)[level])


class DissolvedBank:
    """Training images, plain and mirrored, dissolved at every t of a grid, on disk as a memory map.

    Args:
        array: `(T, 2, M, H, W, C)` uint8, the copies of M images.
        ts: the grid of t.
        index: `(M,)`, ascending, which images they are; training shorter than an epoch needs no others.
    """

    def __init__(self, array: np.ndarray, ts: tuple[int, ...], index: np.ndarray):
        self.array, self.ts, self.index = array, ts, index

    @classmethod
    def build(
        cls,
        images: np.ndarray,
        dissolver: Dissolving,
        ts: tuple[int, ...],
        path: Path,
        index: np.ndarray | None = None,
    ) -> DissolvedBank:
        """Computes the bank, goes on where an earlier run was stopped, or opens a complete one.

        Args:
            images: `(N, H, W, C)` uint8.
            dissolver: a fitted dissolver or a control.
            ts: the grid of t.
            path: the file (.npy); several processes must see the same one, and build it together.
            index: ascending indices of the images that will be asked for; all by default.

        Returns:
            The bank in `path`.
        """
        index = np.arange(len(images)) if index is None else index
        (rank, size), shape = processes(), [len(ts), 2, len(index), *images.shape[1:]]
        marker = path.with_suffix(f".{rank}.json" if size > 1 else ".json")
        key = {"dissolver": dissolver.sha256(), "ts": list(ts), "shape": shape, "size": size}
        key["index"] = hashlib.sha256(index.astype(np.int64).tobytes()).hexdigest()
        known = json.loads(marker.read_text()) if marker.exists() and path.exists() else {}
        done = known.pop("done", 0)
        done = min(of_all(done if known == key else 0))  # where one process starts anew, all do
        if not done:
            marker.unlink(missing_ok=True)  # it speaks of pixels about to be overwritten
            if rank == 0:
                np.lib.format.open_memmap(path, "w+", np.uint8, tuple(shape)).flush()
                reserve(path)
        barrier()
        array = np.lib.format.open_memmap(path, "r+")
        for start in range(done, len(index), _CHUNK * size):
            end = min(start + _CHUNK * size, len(index))
            mine = np.arange(start, end)[rank::size]
            if len(mine):
                chosen = images[index[mine]]
                array[:, 0, mine] = dissolver.dissolve(chosen, ts)
                array[:, 1, mine] = dissolver.dissolve(chosen[:, :, ::-1], ts)
            array.flush()
            temporary = marker.with_suffix(".tmp")
            temporary.write_text(json.dumps(key | {"done": end}))
            temporary.replace(marker)
        barrier()
        return cls(array, ts, index)

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Returns dissolved copies, `(B, H, W, C)` uint8.

        Args:
            index: `(B,)` int, which images.
            flip: `(B,)` bool, where an image is mirrored first.
            level: `(B,)` int, the place of each image's t in `ts`.
        """
        return self.array[level, flip.astype(int), np.searchsorted(self.index, index)]
