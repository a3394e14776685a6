"""Dissolved views for training: computed once over a grid of t (`DissolvedBank`), or live.

Both give the same pixels; the bank keeps the U-Net out of the training loop. Knows nothing of losses.
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
    """Dissolves on demand. `take` is the interface both share."""

    def __init__(self, images: np.ndarray, dissolver: Dissolving, ts: tuple[int, ...]):
        self.images, self.dissolver, self.ts = images, dissolver, ts

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Dissolved copies of images `index`, those with `flip` mirrored first, at `ts[level]`.

        Args: three arrays `(B,)`: int, bool, int. Returns `(B, H, W, C)` uint8.
        """
        chosen = np.where(flip[:, None, None, None], self.images[index][:, :, ::-1], self.images[index])
        return self.dissolver.dissolve_each(chosen, np.asarray(self.ts)[level])


class DissolvedBank:
    """Training images, plain and mirrored, dissolved at every t of a grid: `(T, 2, M, H, W, C)` uint8.

    On disk as a memory map; building goes on where an earlier run was stopped. Only the M images of `index`
    are dissolved: training shorter than an epoch never asks for the others.
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
        """Computes the bank into `path` (.npy), or opens it if it is complete and of this dissolver.

        Args:
            images: `(N, H, W, C)` uint8.
            dissolver: fitted, or a control.
            ts: the grid of t.
            path: of the file; several processes must see the same one, and build it together.
            index: ascending indices of the images that will be asked for; all by default.
        """
        index = np.arange(len(images)) if index is None else index
        rank, size = processes()
        shape = (len(ts), 2, len(index), *images.shape[1:])
        marker = path.with_suffix(f".{rank}.json" if size > 1 else ".json")
        key = {"dissolver": dissolver.sha256(), "ts": list(ts), "shape": list(shape), "size": size}
        key["index"] = hashlib.sha256(index.astype(np.int64).tobytes()).hexdigest()
        done = 0
        if marker.exists() and path.exists():
            known = json.loads(marker.read_text())
            done = known.pop("done") if {k: v for k, v in known.items() if k != "done"} == key else 0
        done = min(of_all(done))  # where one process starts anew, all do
        if not done:
            marker.unlink(missing_ok=True)  # it speaks of pixels about to be overwritten
            if rank == 0:
                np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()
                reserve(path)
        barrier()
        array = np.lib.format.open_memmap(path, "r+")
        while done < len(index):
            part = slice(done, min(done + _CHUNK * size, len(index)))
            mine = np.arange(part.start, part.stop)[rank::size]
            if len(mine):
                chosen = images[index[mine]]
                array[:, 0, mine] = dissolver.dissolve(chosen, ts)
                array[:, 1, mine] = dissolver.dissolve(chosen[:, :, ::-1], ts)
            done = part.stop
            array.flush()
            temporary = marker.with_suffix(".tmp")
            temporary.write_text(json.dumps(key | {"done": done}))
            temporary.replace(marker)
        barrier()
        return cls(array, ts, index)

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """As `LiveDissolving.take`."""
        return self.array[level, flip.astype(int), np.searchsorted(self.index, index)]
