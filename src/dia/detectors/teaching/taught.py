"""The part of a model that marks made: a probe added to the score, and further normals beside its banks.

Plain tensor operations, so that an exported graph holds it. What a stranger's file says is checked. Knows
tensors; knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import DataError
from ...data.imageset import NO_DIGEST
from ...features.untrained import double
from ..nearest import Nearest

FILE = "taught.safetensors"  # in the model folder
MOST_MARKS = 10_000
_LARGEST = 1e6  # of scales and offsets in a file
_KNOWN = ("scale", "offset", "calibration", "digests")


class Taught(nn.Module):
    """z(score) + w · z(probe), and normals that were taken for anomalies.

    Args:
        slopes: `(D,)` of the probe, by view.
        offset: of the probe.
        scale: of the score median and spread, of the probe median and spread, and w, in [0, 1]: `(5,)`.
        added: `(A, D)` vectors of further normals by view, of all views; A may be 0.
        calibration: `(n,)` scores that the model was calibrated on before, ascending.
        digests: `(M,)` uint64 of the marked images, which count as seen.
    """

    def __init__(
        self,
        slopes: Mapping[str, np.ndarray],
        offset: float,
        scale: np.ndarray,
        added: Mapping[str, np.ndarray],
        calibration: np.ndarray,
        digests: np.ndarray,
    ):
        super().__init__()
        self.names, self.offset, self.scale = sorted(slopes), float(offset), [float(v) for v in scale]
        for name in self.names:
            self.register_buffer(f"slope_{name}", torch.from_numpy(np.asarray(slopes[name], np.float64)))
        self.added = {name: np.asarray(rows, np.float32) for name, rows in added.items()}
        self.calibration, self.digests = np.asarray(calibration, np.float64), np.asarray(digests, np.uint64)

    @property
    def weight(self) -> float:
        """The probe's weight beside the score."""
        return self.scale[4]

    @property
    def n_added(self) -> int:
        """How many flagged normals are in the banks."""
        return len(next(iter(self.added.values())))

    def probe(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Returns the probe's values `(N,)` float64.

        Args:
            vectors: `(N, D)` by view.
        """
        parts = [vectors[name].float().double() @ self.get_buffer(f"slope_{name}") for name in self.names]
        total: Tensor = torch.stack(parts).sum(0) + double(self.offset)
        return total

    def forward(self, score: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        """Returns the score `(N,)` float64 as it was taught.

        Args:
            score: `(N,)`, by the banks with the further normals.
            vectors: `(N, D)` by view.
        """
        median, spread, middle, width, weight = (double(v) for v in self.scale)
        return (score - median) / spread + weight * ((self.probe(vectors) - middle) / width)

    def joined(self, banks: Mapping[str, Nearest]) -> dict[str, Nearest]:
        """Returns banks with the further normals in them.

        Args:
            banks: by view.
        """
        rows = {name: bank.bank.cpu().numpy() for name, bank in banks.items()}
        return {name: Nearest(np.concatenate([rows[name], self.added[name]]), bank.k) for name, bank in banks.items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns everything as arrays, for a file."""
        made: dict[str, np.ndarray] = {f"slope.{n}": self.get_buffer(f"slope_{n}").cpu().numpy() for n in self.names}
        made |= {f"added.{name}": rows for name, rows in self.added.items()}
        one = {"scale": np.array(self.scale), "offset": np.array([self.offset])}
        return made | one | {"calibration": self.calibration, "digests": self.digests}

    @classmethod
    def restored(cls, tensors: Mapping[str, np.ndarray], banks: Mapping[str, Nearest]) -> Taught:
        """Restores what `tensors` gave.

        Args:
            tensors: of a file whose numbers are finite.
            banks: of the model, by view: their sizes are what the file must fit.

        Raises:
            DataError: a tensor is missing, of another name, size or kind, or a number that cannot be.
        """
        views = {kind: _named(tensors, f"{kind}.") for kind in ("slope", "added")}
        known = {*_KNOWN, *(f"{kind}.{name}" for kind, found in views.items() for name in found)}
        sizes = {name: bank.bank.shape[1] for name, bank in banks.items()}
        count = {len(rows) for rows in views["added"].values()}
        _require(set(tensors) == known, "its tensors are not those of `dia update`")
        _require(bool(views["slope"]) and set(views["slope"]) <= set(sizes), "it probes views that are not there")
        _require(set(views["added"]) == set(sizes) and len(count) == 1, "its normals are not of the model's views")
        _require(max(count) <= MOST_MARKS, f"it has more than {MOST_MARKS} normals")
        for kind, dims, dtype in (("slope", 1, np.float64), ("added", 2, np.float32)):
            for name, array in views[kind].items():
                fits = array.ndim == dims and array.shape[-1] == sizes[name] and array.dtype == dtype
                _require(fits, f"{kind}.{name} is of another size or kind")
        wanted: Any = (("scale", np.float64, (5, 5)), ("offset", np.float64, (1, 1)),
                       ("calibration", np.float64, (1, 2**24)), ("digests", np.uint64, (1, MOST_MARKS)))  # fmt: skip
        for name, dtype, (least, most) in wanted:
            array = tensors[name]
            fits = array.ndim == 1 and array.dtype == dtype and least <= len(array) <= most
            _require(fits, f"{name} is of another size or kind")
        scale, offset = tensors["scale"], float(tensors["offset"][0])
        _require(bool((np.abs([*scale, offset]) <= _LARGEST).all()), "its scales are too large")
        _require(scale[1] > 0 and scale[3] > 0 and 0 <= scale[4] <= 1, "its scales cannot be")
        return cls(views["slope"], offset, scale, views["added"], np.sort(tensors["calibration"]), tensors["digests"])

    def knows(self, digests: np.ndarray) -> np.ndarray:
        """Returns which images were marked, `(N,)` bool.

        Args:
            digests: `(N,)` uint64.
        """
        return np.isin(digests, self.digests[self.digests != NO_DIGEST])


def _named(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise DataError(f"{FILE}: {what}; undo the update, or fetch the folder again")
