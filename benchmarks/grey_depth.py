"""What 8 bits cost: image AUROC of `dia+` on 12-bit phantoms, given as floats and as 8 bits by two ranges.

    python -m benchmarks.grey_depth

The lesions are discs of 1, 5 and 10 % of the range. The package takes 8 bits alone, so its checks are taken
away here and floats of 0–255 go through the same network. `learned` is the 0.1st to the 99.9th percentile of
the training normals, `of 16 bits` all that the file's type allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy import ndimage

from dia.data import phantoms
from dia.data.formats.windowing import LEARNED
from dia.data.imageset import ImageSet
from dia.detectors import METHODS, base
from dia.evaluate.metrics import image_metrics

from .common import parser, publish

TOP, SIDE, CONTRASTS = 4095, 128, (0.01, 0.05, 0.1)
TRAIN, TEST = 200, 100
Bytes = Callable[[np.ndarray], np.ndarray]


def drawn(n: int, seed: int, *, smooth: bool, contrast: float = 0) -> np.ndarray:
    """`(n, 128, 128, 1)` whole numbers of 0–4095, float."""
    made = []
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(n):
        rng = np.random.default_rng([seed, i, int(contrast > 0)])
        image = phantoms.phantom(rng, SIDE)[0] / 255 * TOP
        if smooth:
            image = ndimage.gaussian_filter(image, 1.5) + rng.normal(0, 6, image.shape)
        if contrast:
            radius = rng.uniform(0.05, 0.09) * SIDE
            centre = SIDE / 2 + rng.uniform(-0.2, 0.2, 2) * SIDE
            away = np.hypot(y - centre[0], x - centre[1]) - radius
            image = image + contrast * TOP / (1 + np.exp(np.clip(1.5 * away, -50, 50)))
        made.append(np.rint(image))
    return np.stack(made)[..., None]


@contextmanager
def floats() -> Iterator[None]:
    """Lets detectors take floats of 0–255, and keep nothing that only bytes have."""

    def named(self: ImageSet) -> None:
        object.__setattr__(self, "names", tuple(map(str, range(len(self.images)))))

    with ExitStack() as stack:
        stack.enter_context(patch.object(ImageSet, "__post_init__", named))
        stack.enter_context(patch.object(base, "_as_images", lambda x: x))
        stack.enter_context(patch.object(base, "digests", lambda x: np.arange(len(x), dtype=np.uint64)))
        stack.enter_context(patch.object(base.drift, "references", lambda *_: {}))
        yield


def ways(train: np.ndarray) -> dict[str, Bytes]:
    """By name, from 12 bits to what the network is given."""
    low, high = np.percentile(train, (LEARNED.low, LEARNED.high))

    def learned(x: np.ndarray) -> np.ndarray:
        return np.clip((x - low) / (high - low), 0, 1) * 255

    return {
        "floats, learned": lambda x: learned(x).astype(np.float32),
        "8 bits, learned": lambda x: np.rint(learned(x)).astype(np.uint8),
        "floats, of 16 bits": lambda x: (x / 257).astype(np.float32),
        "8 bits, of 16 bits": lambda x: np.rint(x / 257).astype(np.uint8),
    }


def main() -> None:
    """Prints and writes `results/grey_depth.json`."""
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=3)
    a = p.parse_args()
    rows: list[dict[str, Any]] = []
    labels = np.repeat([0, 1], TEST)
    for smooth in (False, True):
        found: dict[tuple[float, str], list[float]] = {}
        for seed in range(a.seeds):
            train, normal = (drawn(n, seed + k, smooth=smooth) for n, k in ((TRAIN, 100), (TEST, 200)))
            ill = {c: drawn(TEST, 300 + seed, smooth=smooth, contrast=c) for c in CONTRASTS}
            for name, given in ways(train).items():
                with floats():
                    detector = METHODS["dia+"](seed=0).fit(given(train))
                    well = detector.score(given(normal))
                    scores = {c: np.concatenate([well, detector.score(given(x))]) for c, x in ill.items()}
                for c, s in scores.items():
                    found.setdefault((c, name), []).append(image_metrics(labels, s, n_boot=0)["auroc"])
        kind = "smooth" if smooth else "textured"
        for (c, name), aurocs in sorted(found.items()):
            shown = " ".join(f"{v:.3f}" for v in aurocs)
            rows.append(
                {"phantoms": kind, "contrast": c, "given as": name, "mean": mean(aurocs), "by seed": shown}
            )
            print(rows[-1], flush=True)
    of = {(row["phantoms"], row["contrast"], row["given as"]): row["mean"] for row in rows}
    costs = {
        f"8 bits less floats, {kind}, {c:.0%}": of[kind, c, "8 bits, learned"]
        - of[kind, c, "floats, learned"]
        for kind in ("textured", "smooth")
        for c in CONTRASTS
    }
    publish("grey_depth", rows, costs)


if __name__ == "__main__":
    main()
