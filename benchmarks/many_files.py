"""Growth with the number of files: seconds and peak memory of `dia data check` and `dia score` on small PNG.

    python -m benchmarks.many_files            # 1,000, 10,000 and 100,000 files of 32 x 32 px

Each command is a process of its own, with default threads. The files are phantoms, moved and brightened a
little each; scoring is by an untrained row, so that reading is what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from .common import parser, publish
from .speed.scale import generated, slope

SIDE = 32


def write(folder: Path, n: int) -> None:
    """Writes n images, a thousand to a folder."""
    for k, part in enumerate(generated(n, SIDE)):
        below = folder / f"{k:03d}"
        below.mkdir(parents=True)
        for i, image in enumerate(part):
            Image.fromarray(image[..., 0]).save(below / f"{i:03d}.png", compress_level=1)


def timed(*arguments: object) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of one command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dia", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"dia {' '.join(map(str, arguments))}: status {status}")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def main() -> None:
    """Prints and writes `results/many_files.json`."""
    p = parser(__doc__)
    p.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    a = p.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        write(home / "normal", 500)
        timed("fit", home / "normal", "--method", "trivial:pixels", "--out", home / "run")
        for n in a.sizes:
            write(home / str(n), n)
            check, check_mb = timed("data", "check", home / str(n), "--json")
            score, score_mb = timed("score", home / "run", home / str(n), "--out", home / f"{n}.csv")
            rows.append({
                "files": n, "images": n, "check s": check, "check MB": check_mb, "score s": score,
                "score MB": score_mb,
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    facts = {f"log-log slope of {k}": slope(rows[-2:], f"{k} s") for k in ("check", "score")}
    publish("many_files", rows, facts)


if __name__ == "__main__":
    main()
