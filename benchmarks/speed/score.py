"""Images scored per second, from memory and from PNG files, against the bare networks and the bare decoder.

`bare` is the forward pass of the networks on as many ready tensors as the score needs of each image: the
encoder's views, and for `dia+` those of the U-Net at each t instead. `decode` reads the files and does
nothing. From files, decoding and scoring share the cores, so the limit is the smaller rate of the two.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dia.amplify.shifts import SHIFTS
from dia.data.phantoms import load
from dia.data.readers import listing
from dia.deploy.scoring import Job, local
from dia.detectors.base import Detector
from dia.detectors.presets import settings
from dia.detectors.registry import METHODS

from ..common import Rounds, parser, publish, rounds

SIDE = 64
METHOD_NAMES = ("dia", "dia+")


def fitted(method: str, workdir: Path) -> Detector:
    """A detector of the `cpu` preset, hardly trained: its speed does not depend on its weights."""
    s = settings(METHODS[method].Settings, "cpu")
    if method == "dia":
        s = replace(s, dissolver=replace(s.dissolver, steps=2), amplify=replace(s.amplify, steps=4))
    return METHODS[method](s).fit(load("train", size=SIDE, n=400), workdir=workdir)


def bare_networks(detector: Any, n: int) -> Any:
    """The forward passes that n images need, on ready tensors, as a function."""
    s, where = detector.s, detector.where_
    if detector.method == "dia+":  # the whole image, and fine features of its blurred copy
        ready, step = torch.rand(64, 1, s.size, s.size, device=where), n // 64

        def work() -> None:
            detector.backbone_(ready)
            detector.backbone_.fine(ready)
    else:
        ready = torch.rand(256, 1, SIDE, SIDE, device=where)
        step = n * SHIFTS[s.amplify.shift][0] * s.samples // 256

        def work() -> None:
            detector.encoder_(ready)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(step):
            work()

    return bare


def measure(method: str, *, n: int = 512, repeats: int = 5) -> tuple[dict[str, Any], Rounds]:
    """A row of the table, and the seconds of each round."""
    images = load("train", size=SIDE, seed=1, n=n).images
    with tempfile.TemporaryDirectory() as folder:
        detector = fitted(method, Path(folder, "work"))
        run = detector.save(Path(folder, "run"))
        files = Path(folder, "images")
        files.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(files / f"{i:05d}.png")

        def found() -> Any:
            return listing(files, size=SIDE, channels=1)

        def from_files() -> None:
            for _ in local(Job(str(run), detector, found(), batch=256)):
                pass

        def decode() -> None:
            for _ in found().stream(batch=256):
                pass

        work = {
            "bare": bare_networks(detector, n),
            "memory": lambda: detector.score(images),
            "decode": decode,
            "files": from_files,
        }
        measured = rounds(work, repeats=repeats)
    limit = ["bare", "decode"][measured.seconds("decode") > measured.seconds("bare")]
    row = {
        "method": method,
        **{f"{name} images/s": n / measured.seconds(name) for name in work},
        "memory / bare": measured.ratio("bare", "memory"),
        "files / limit": measured.ratio(limit, "files"),
    }
    return row, measured


def main() -> None:
    """Prints and writes `results/score.json`."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--n", type=int, default=1024)
    a = p.parse_args()
    measured = {m: measure(m, n=a.n, repeats=a.repeats) for m in METHOD_NAMES}
    ratios = {}
    for m, (row, _) in measured.items():
        ratios |= {f"{m}: {key}": row[key] for key in ("memory / bare", "files / limit")}
    rows = [row for row, _ in measured.values()]
    publish("score", rows, ratios, seconds={m: r.all for m, (_, r) in measured.items()})


if __name__ == "__main__":
    main()
