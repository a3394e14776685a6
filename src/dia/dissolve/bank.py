"""Dissolved views for training: computed once over a grid of t (`DissolvedBank`), or live.

Both give the same pixels; the bank keeps the U-Net out of the training loop. Knows nothing of losses.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .dissolver import Dissolver

_CHUNK = 256


class LiveDissolving:
    """Dissolves on demand. `take` is the interface both share."""

    def __init__(self, images: np.ndarray, dissolver: Dissolver, ts: tuple[int, ...]):
        self.images, self.dissolver, self.ts = images, dissolver, ts

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Dissolved copies of images `index`, those with `flip` mirrored first, at `ts[level]`.

        Args: three arrays `(B,)`: int, bool, int. Returns `(B, H, W, C)` uint8.
        """
        chosen = np.where(flip[:, None, None, None], self.images[index][:, :, ::-1], self.images[index])
        out = np.empty_like(chosen)
        for j in np.unique(level):
            out[level == j] = self.dissolver.dissolve(chosen[level == j], self.ts[j])
        return out


class DissolvedBank:
    """Every training image, plain and mirrored, dissolved at every t of a grid: `(T, 2, N, H, W, C)` uint8.

    On disk as a memory map; building goes on where an earlier run was stopped.
    """

    def __init__(self, array: np.ndarray, ts: tuple[int, ...]):
        self.array, self.ts = array, ts

    @classmethod
    def build(
        cls, images: np.ndarray, dissolver: Dissolver, ts: tuple[int, ...], path: Path
    ) -> DissolvedBank:
        """Computes the bank into `path` (.npy), or opens it if it is complete and of this dissolver."""
        shape = (len(ts), 2, *images.shape)
        marker = path.with_suffix(".json")
        key = {"dissolver": dissolver.sha256(), "ts": list(ts), "shape": list(shape)}
        done = 0
        if marker.exists() and path.exists():
            known = json.loads(marker.read_text())
            done = known.pop("done") if {k: v for k, v in known.items() if k != "done"} == key else 0
        if not done:
            marker.unlink(missing_ok=True)  # it speaks of pixels about to be overwritten
        mode = "r+" if done else "w+"
        array = np.lib.format.open_memmap(path, mode, None if done else np.uint8, None if done else shape)
        while done < len(images):
            part = slice(done, done + _CHUNK)
            array[:, 0, part] = dissolver.dissolve(images[part], ts)
            array[:, 1, part] = dissolver.dissolve(images[part][:, :, ::-1], ts)
            done = min(done + _CHUNK, len(images))
            array.flush()
            temporary = marker.with_suffix(".tmp")
            temporary.write_text(json.dumps(key | {"done": done}))
            temporary.replace(marker)
        return cls(array, ts)

    def take(self, index: np.ndarray, flip: np.ndarray, level: np.ndarray) -> np.ndarray:
        """As `LiveDissolving.take`."""
        return self.array[level, flip.astype(int), index]
