"""The part of a model that marks made: a probe added to the score, and further normals beside its banks.

Plain tensor operations, so that an exported graph holds it. What a stranger's file says is checked. Knows
tensors; knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import DataError
from ...data.imageset import NO_DIGEST, digests, pixels_sha256
from ...features.untrained import double
from ..nearest import Nearest
from .seen import PROBED, Seen

FILE = "taught.safetensors"  # in the model folder
MOST_MARKS = 10_000
HEADING = "## Taught by readers"  # of the card
_LARGEST = 1e6  # of scales and offsets in a file
_MOST_NORMALS = 2**22  # calibrated on


@dataclass(frozen=True, eq=False)
class Learned:
    """The M marked images of a lesson. A model keeps them, so that a later lesson adds to them.

    Args:
        seen: what the model as fitted saw of them.
        labels: `(M,)` int, 1 = anomalous, 0 = normal.
        flagged: `(M,)` bool, whether they were flagged when they were marked.
        units: `(M,)` int, equal for images of one patient or volume; the numbers mean nothing else.
        digests: `(M,)` uint64 of `data.imageset`, by which they count as seen.
        sha256: `(M, 32)` uint8, of shapes and pixels.
    """

    seen: Seen
    labels: np.ndarray
    flagged: np.ndarray
    units: np.ndarray
    digests: np.ndarray
    sha256: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(
        cls,
        seen: Seen,
        images: np.ndarray,
        labels: np.ndarray,
        flagged: np.ndarray,
        units: np.ndarray | None = None,
    ) -> Learned:
        """Makes it of images.

        Args:
            seen: what the model as fitted sees of them.
            images: `(M, H, W, C)` uint8.
            labels: `(M,)`, 1 = anomalous, 0 = normal.
            flagged: `(M,)` bool.
            units: `(M,)` whole numbers, equal for images of one patient or volume; None where each is alone.
        """
        of = np.arange(len(labels)) if units is None else np.unique(units, return_inverse=True)[1]
        shas = np.array([list(bytes.fromhex(pixels_sha256(x))) for x in images], np.uint8).reshape(-1, 32)
        return cls(seen, labels.astype(int), flagged.astype(bool), of, digests(images), shas)

    @property
    def names(self) -> list[str]:
        """The hashes in hex."""
        return [bytes(row).hex() for row in self.sha256]

    def take(self, index: np.ndarray) -> Learned:
        """Returns some of the images.

        Args:
            index: `(K,)` whole numbers, or `(M,)` bool.
        """
        rest = (self.labels, self.flagged, self.units, self.digests, self.sha256)
        return Learned(self.seen.take(index), *(part[index] for part in rest))

    def then(self, later: Learned) -> Learned:
        """Returns these and later ones; of an image that is marked again, the later mark.

        No patient is kept, only which images are of one. So images of a patient or volume are known to belong
        to those of a later lesson where one of them is marked again there.

        Args:
            later: of the same model.
        """
        again = dict(zip(later.names, later.units, strict=True))
        joined = {u: again[name] for name, u in zip(self.names, self.units, strict=True) if name in again}
        old = self.take(np.array([name not in again for name in self.names], bool))
        free = later.units.max(initial=-1) + 1
        units = np.array([joined.get(unit, free + unit) for unit in old.units], int)
        pairs = ((old.labels, later.labels), (old.flagged, later.flagged), (units, later.units),
                 (old.digests, later.digests), (old.sha256, later.sha256))  # fmt: skip
        return Learned(old.seen.then(later.seen), *map(np.concatenate, pairs))

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns everything as arrays, for a file."""
        made = {f"vector.{k}": v.astype(np.float32) for k, v in self.seen.vectors.items()}
        made |= {f"away.{k}": v for k, v in self.seen.distances.items()}
        made |= {f"number.{k}": v for k, v in self.seen.numbers.items()}
        flags = {"label": self.labels.astype(np.uint8), "flagged": self.flagged.astype(np.uint8)}
        rest = {"unit": self.units.astype(np.int64), "digest": self.digests, "sha256": self.sha256}
        return made | flags | {"place": self.seen.place} | rest

    @classmethod
    def restored(
        cls, tensors: Mapping[str, np.ndarray], sizes: Mapping[str, int], numbers: Sequence[str]
    ) -> Learned:
        """Restores what `tensors` gave.

        Args:
            tensors: of a file whose numbers are finite.
            sizes: length of the vectors, by view of the model.
            numbers: the model's views that are one number.

        Raises:
            DataError: a tensor is missing, of another name, size or kind, or there are too many marks.
        """
        rows, most = len(tensors["place"]) if "place" in tensors else 0, MOST_MARKS
        _require(0 < rows <= most, f"it has no marks, or more than {most}")
        tensors = {"unit": np.arange(rows), **tensors}  # older files do not tell which are of one patient
        wanted: dict[str, Any] = {f"vector.{k}": (np.float32, (rows, size)) for k, size in sizes.items()}
        wanted |= {f"away.{k}": (np.float64, (rows,)) for k in sizes}
        wanted |= {f"number.{k}": (np.float64, (rows,)) for k in numbers}
        wanted |= {"label": (np.uint8, (rows,)), "flagged": (np.uint8, (rows,)),
                   "place": (np.float64, (rows,)), "unit": (np.int64, (rows,)),
                   "digest": (np.uint64, (rows,)), "sha256": (np.uint8, (rows, 32))}  # fmt: skip
        _fitting(tensors, wanted)
        _require(
            bool((tensors["label"] <= 1).all() and (tensors["flagged"] <= 1).all()),
            "its labels are not 0 or 1",
        )
        seen = Seen(
            {k: tensors[f"vector.{k}"] for k in sizes}, {k: tensors[f"away.{k}"] for k in sizes},
            {k: tensors[f"number.{k}"] for k in numbers}, tensors["place"],
        )  # fmt: skip
        labels, flagged = tensors["label"].astype(int), tensors["flagged"].astype(bool)
        units = np.unique(tensors["unit"], return_inverse=True)[1]
        return cls(seen, labels, flagged, units, tensors["digest"], tensors["sha256"])


class Taught(nn.Module):
    """z(score) + w · z(probe), and normals that were taken for anomalies.

    Args:
        slopes: `(D,)` of the probe, by view.
        offset: of the probe.
        scale: of the score median and spread, of the probe median and spread, and w, in [0, 1]: `(5,)`.
        calibration: `(n,)` scores that the model was calibrated on before, ascending.
        learned: the marks.
        entered: `(M,)` bool, which of them are further normals.
    """

    def __init__(
        self,
        slopes: Mapping[str, np.ndarray],
        offset: float,
        scale: np.ndarray,
        calibration: np.ndarray,
        learned: Learned,
        entered: np.ndarray,
    ):
        super().__init__()
        self.names, self.offset, self.scale = sorted(slopes), float(offset), [float(v) for v in scale]
        for name in self.names:
            self.register_buffer(f"slope_{name}", torch.from_numpy(np.asarray(slopes[name], np.float64)))
        self.calibration, self.learned, self.entered = np.asarray(calibration, np.float64), learned, entered

    @property
    def weight(self) -> float:
        """The probe's weight beside the score."""
        return self.scale[4]

    @property
    def n_added(self) -> int:
        """How many flagged normals are in the banks."""
        return int(self.entered.sum())

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
        added = {name: rows[self.entered] for name, rows in self.learned.seen.vectors.items()}
        rows = {name: np.concatenate([bank.bank.cpu().numpy(), added[name]]) for name, bank in banks.items()}
        return {name: Nearest(rows[name], bank.k) for name, bank in banks.items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns everything as arrays, for a file."""
        made = {f"slope.{n}": self.get_buffer(f"slope_{n}").cpu().numpy() for n in self.names}
        made |= {f"mark.{name}": array for name, array in self.learned.tensors().items()}
        made |= {
            "scale": np.array(self.scale),
            "offset": np.array([self.offset]),
            "calibration": self.calibration,
        }
        return made | {"entered": self.entered.astype(np.uint8)}

    @classmethod
    def restored(
        cls, tensors: Mapping[str, np.ndarray], banks: Mapping[str, Nearest], numbers: Sequence[str]
    ) -> Taught:
        """Restores what `tensors` gave.

        Args:
            tensors: of a file whose numbers are finite.
            banks: of the model, by view: their sizes are what the file must fit.
            numbers: the model's views that are one number.

        Raises:
            DataError: a tensor is missing, of another name, size or kind, or a number that cannot be.
        """
        sizes = {name: bank.bank.shape[1] for name, bank in banks.items()}
        probed = [name for name in PROBED if name in sizes]
        _require(bool(probed), "the model has no views that it could probe")
        marks = {k.removeprefix("mark."): v for k, v in tensors.items() if k.startswith("mark.")}
        learned = Learned.restored(marks, sizes, numbers)
        known = tensors["calibration"].shape if "calibration" in tensors else ()
        _require(len(known) == 1 and 0 < known[0] <= _MOST_NORMALS, "it has no calibration")
        _fitting(
            {k: v for k, v in tensors.items() if not k.startswith("mark.")},
            {f"slope.{name}": (np.float64, (sizes[name],)) for name in probed}
            | {"scale": (np.float64, (5,)), "offset": (np.float64, (1,)), "calibration": (np.float64, known),
               "entered": (np.uint8, (len(learned),))},
        )  # fmt: skip
        scale, offset, entered = tensors["scale"], float(tensors["offset"][0]), tensors["entered"]
        _require(bool((np.abs([*scale, offset]) <= _LARGEST).all()), "its scales are too large")
        _require(scale[1] > 0 and scale[3] > 0 and 0 <= scale[4] <= 1, "its scales cannot be")
        _require(
            bool((entered <= 1).all() and not learned.labels[entered == 1].any()),
            "an anomaly is among its normals",
        )
        slopes = {name: tensors[f"slope.{name}"] for name in probed}
        return cls(slopes, offset, scale, np.sort(tensors["calibration"]), learned, entered.astype(bool))

    def knows(self, found: np.ndarray) -> np.ndarray:
        """Returns which images were marked, `(N,)` bool.

        Args:
            found: `(N,)` uint64, digests of images.
        """
        own = self.learned.digests
        return np.isin(found, own[own != NO_DIGEST])


def said_of(taught: Mapping[str, Any]) -> str:
    """Returns what a model was taught, as a sentence for cards and reports.

    Args:
        taught: `facts_["taught"]`, of which parts may be missing.
    """
    count = {name: taught.get(name, "?") for name in ("marks", "anomalous", "normal", "at")}
    readers = ", ".join(taught.get("readers") or ()) or "readers without a name"
    before, after, p = (taught.get(name) for name in ("auc_before", "auc_after", "gain_p"))
    judged = ""
    if before is not None and after is not None:
        chance = "" if p is None else f" (one-sided p of the gain {p:.3f})"
        judged = f" Cross-validated AUROC on the marks: {before:.3f} before, {after:.3f} after{chance}."
    added = (
        f" {n} flagged images marked normal are among its normals."
        if (n := taught.get("normals_added"))
        else ""
    )
    return (
        f"It learned from {count['marks']} marked images ({count['anomalous']} anomalous, {count['normal']} "
        f"normal), marked by {readers}, on {count['at']}.{judged}{added} `dia update RUN --undo` brings back "
        "the model as it was fitted."
    )


def summary_of(taught: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns what a service tells of marks: readers are counted, not named, and no image is told of.

    Args:
        taught: `facts_["taught"]`; None where nothing was taught.
    """
    if not taught:
        return None
    told = ("marks", "anomalous", "normal", "at", "auc_before", "auc_after", "gain_p", "weight",
            "normals_added")  # fmt: skip
    return {name: taught.get(name) for name in told} | {"readers": len(taught.get("readers") or ())}


def _fitting(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Refuses tensors of other names, types or shapes than are wanted."""
    _require(set(tensors) == set(wanted), "its tensors are not those of `dia update`")
    for name, (dtype, shape) in wanted.items():
        fits = tensors[name].dtype == dtype and tensors[name].shape == shape
        _require(fits, f"{name} is of another size or kind")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise DataError(f"{FILE}: {what}; undo the update, or fetch the folder again")
