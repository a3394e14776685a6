"""From a fitted detector and labelled images to a folder of pictures of the method. Chooses which images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..core.errors import DataError
from ..data.imageset import ANOMALOUS, NORMAL, ImageSet
from ..detectors import Detector
from ..report.method_figures import (
    dissolve_strips,
    residual_energy,
    similarity_before_after,
    target_matrices,
    target_matrix,
    with_dissolver,
)
from ..report.pictures import DISSOLVE_TS

BATCH = 4  # images of the similarity matrix, at most: more cannot be read
MEASURED = 200  # images of each kind in the residuals' curves, at most


def illustrate(
    out: Path,
    detector: Detector,
    images: ImageSet,
    *,
    ts: Sequence[int] = DISSOLVE_TS,
    count: int = 4,
    seed: int = 0,
    form: Literal["png", "svg"] = "png",
) -> list[Path]:
    """Writes every picture of the method into a folder.

    Args:
        out: the folder.
        detector: a fitted `dia` or `dia+`; without an encoder there are fewer pictures.
        images: labelled; the normal ones are needed, anomalous ones are shown beside them.
        ts: diffusion steps of the strips and the curves.
        count: images of each kind in the strips, and (up to 4) in the similarity matrix.
        seed: of the choice of images, and of the views in the similarity matrix.
        form: of all but the strips, which are always PNG.

    Returns:
        The files: strips, residuals; and with an encoder target matrix, both maskings, similarities before
        and after.

    Raises:
        DataError: a detector without dissolver, images it was not fitted for or without labels,
            none of them normal, or `count` or `ts` out of range.
    """
    both = with_dissolver(detector)
    if images.labels is None:
        raise DataError("pictures of the method need to know which images are normal; name their class")
    if images.shape != tuple(both.shape_):
        raise DataError(f"images are {images.shape}, the model was fitted on {tuple(both.shape_)}")
    if count < 1:
        raise DataError(f"count must be at least 1, not {count}")
    if not (images.labels == NORMAL).any():
        raise DataError("pictures of the method need at least one normal image; there is none")

    def some(label: int, most: int) -> np.ndarray:
        # of a kind, few are the first of many: the strips show images that the curves count
        index = np.flatnonzero(images.labels == label)
        return images.images[np.sort(np.random.default_rng([seed, label]).permutation(index)[:most])]

    normals, anomalous = some(NORMAL, count), some(ANOMALOUS, count)
    files = {
        name: out / f"{name}.{form}"
        for name in ("target_matrix", "target_matrices", "similarity", "residual_energy")
    }
    strips = dissolve_strips(out / "strips.png", both.dissolver_, normals, anomalous, ts)
    residual_energy(
        files["residual_energy"], both.dissolver_, some(NORMAL, MEASURED), some(ANOMALOUS, MEASURED), ts
    )
    if not hasattr(both, "encoder_"):
        return [strips, files["residual_energy"]]
    similarity_before_after(files["similarity"], both, normals[:BATCH], seed=seed)
    target_matrix(files["target_matrix"], exclude_own=both.s.amplify.exclude_own)
    target_matrices(files["target_matrices"])
    return [
        files["target_matrix"],
        files["target_matrices"],
        files["similarity"],
        strips,
        files["residual_energy"],
    ]
