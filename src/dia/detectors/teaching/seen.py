"""What a model sees of images: vectors, distances and numbers by view, and the most unusual place.

Knows arrays; knows no images and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

PROBED = ("cells", "coarse", "pooled")  # the views of the probe


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model sees of N images.

    Args:
        vectors: `(N, D)` float32, by view.
        distances: `(N,)` to the nearest normals, by view; of the model's own normals, to the nearest others.
        numbers: `(N,)` by view that is one number.
        place: `(N,)`, the most unusual place.
    """

    vectors: Mapping[str, np.ndarray]
    distances: Mapping[str, np.ndarray]
    numbers: Mapping[str, np.ndarray]
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    def take(self, index: np.ndarray | Sequence[int]) -> Seen:
        """Returns some of the images.

        Args:
            index: `(K,)` whole numbers, or `(N,)` bool.
        """
        made = [{k: v[index] for k, v in t.items()} for t in (self.vectors, self.distances, self.numbers)]
        return Seen(made[0], made[1], made[2], self.place[index])

    def then(self, others: Seen) -> Seen:
        """Returns these images and others after them.

        Args:
            others: seen by the same model.
        """
        mine, theirs = ((seen.vectors, seen.distances, seen.numbers) for seen in (self, others))
        made = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(mine, theirs, strict=True)]
        return Seen(made[0], made[1], made[2], np.concatenate([self.place, others.place]))

    def away(self, others: Seen) -> dict[str, np.ndarray]:
        """Returns the distances to other images, `(N, K)` by view, each measured alone: none cancels.

        Args:
            others: K images.
        """
        made = {}
        for name, vectors in self.vectors.items():
            own, bank = (torch.from_numpy(rows).double() for rows in (vectors, others.vectors[name]))
            made[name] = torch.cdist(own, bank, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        return made

    def beside(self, away: Mapping[str, np.ndarray]) -> Seen:
        """Returns the same images with further normals among those compared with.

        Args:
            away: the distances to the normals, `(N, K)` by view, of which no image is one itself; K may be 0.
        """
        made = {name: np.minimum(d, away[name].min(1, initial=np.inf)) for name, d in self.distances.items()}
        return Seen(self.vectors, made, self.numbers, self.place)

    def probed(self) -> np.ndarray:
        """Returns the vectors of the probe side by side, `(N, D)` float32."""
        return np.concatenate([self.vectors[n] for n in PROBED if n in self.vectors], 1)
