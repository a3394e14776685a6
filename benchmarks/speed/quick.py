"""The guard: three ratios of our own speed to a bare network's, in under three minutes, against kept ones.

Only ratios are kept whose two sides are bound by the same resource: the same network, at the same precision,
on the same cores. Such a ratio travels between machines. Two others do not: the speed-up over the reference
depends on how much faster a processor is in 16 bits than in 32, and the speed of scoring files on how fast it
decodes relative to how fast it multiplies. `make bench` still measures both.

Fails where a ratio fell by more than a tenth below that of `results/quick.json`; `--keep` writes it anew.
"""

from __future__ import annotations

import json
import sys

from ..common import RESULTS, parser, publish
from . import dissolve, score, train_step

FALL = 0.9


def main() -> None:
    """Prints the ratios next to the kept ones; exit status 1 if one fell."""
    p = parser(__doc__)
    p.add_argument("--keep", action="store_true", help="write results/quick.json anew")
    a = p.parse_args()
    step, _ = train_step.measure("cpu preset, 64 px grey", repeats=7, reference=False)
    dissolved, _ = dissolve.measure("cpu preset, 64 px", repeats=5)
    scored, _ = score.measure("dia", n=256, repeats=3)  # so few rounds of dia+ differ by more than a tenth
    ratios = {
        "training step: whole / bare": step["whole / bare rate"],
        "dissolve / bare": dissolved["dissolve / bare"],
        "score, dia: memory / bare": scored["memory / bare"],
    }
    if a.keep:
        publish("quick", [{"ratio": name, "now": now} for name, now in ratios.items()], ratios)
        return
    kept = json.loads((RESULTS / "quick.json").read_text())["ratios"]
    for name, now in ratios.items():
        print(f"{name}: {now:.3f}, kept {kept.get(name, float('nan')):.3f}")
    if fallen := [name for name, now in ratios.items() if now < FALL * kept.get(name, 0)]:
        sys.exit(f"slower than the kept ratios by more than a tenth: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
