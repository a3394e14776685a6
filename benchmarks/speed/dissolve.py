"""Images dissolved per second, uint8 to uint8, against the bare U-Net on ready tensors of equal batches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dia.data.phantoms import load
from dia.dissolve import Dissolver, DissolverSettings
from dia.dissolve.dissolver import fit_in, to_tensor

from ..common import Rounds, parser, publish, rounds

# U-Net, side of the images, number of images
CASES: dict[str, tuple[DissolverSettings, int, int]] = {
    "cpu preset, 64 px": (DissolverSettings(steps=1), 64, 256),
    "cpu preset, 28 px": (DissolverSettings(steps=1), 28, 512),
    "paper U-Net, 32 px": (
        DissolverSettings(size=32, patch=1, widths=(64, 128, 256, 512), attention=True, steps=1),
        32,
        64,
    ),
}


def measure(case: str, *, repeats: int = 7, batch: int = 32) -> tuple[dict[str, Any], Rounds]:
    """A row of the table, and the seconds of each round."""
    s, side, n = CASES[case]
    images = load("train", size=side, n=n).images
    with tempfile.TemporaryDirectory() as folder:
        dissolver = Dissolver(s).fit(images[:32], workdir=Path(folder))
    levels = 2 ** (len(s.widths) - 1)
    x = fit_in(to_tensor(images, dissolver.where_), s.size, 1, s.patch * levels)[0]
    ready = F.pixel_unshuffle(x, s.patch).contiguous(memory_format=torch.channels_last).split(batch)
    steps = torch.full((batch,), 50, device=dissolver.where_)

    @torch.inference_mode()
    def bare() -> None:
        for z in ready:
            dissolver.unet_(z, steps[: len(z)])

    work = {"bare": bare, "dissolve": lambda: dissolver.dissolve(images, 50, batch=batch)}
    measured = rounds(work, repeats=repeats)
    row = {
        "case": case,
        "bare images/s": n / measured.seconds("bare"),
        "dissolve images/s": n / measured.seconds("dissolve"),
        "dissolve / bare": measured.ratio("bare", "dissolve"),
    }
    return row, measured


def main() -> None:
    """Prints and writes `results/dissolve.json`."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, default=7)
    a = p.parse_args()
    measured = {case: measure(case, repeats=a.repeats) for case in CASES}
    publish(
        "dissolve",
        [row for row, _ in measured.values()],
        {f"{case}: dissolve / bare": row["dissolve / bare"] for case, (row, _) in measured.items()},
        seconds={case: m.all for case, (_, m) in measured.items()},
    )


if __name__ == "__main__":
    main()
