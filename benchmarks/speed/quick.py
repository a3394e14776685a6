"""The guard: the ratios of `train_step`, `dissolve` and `score` in under three minutes, against kept ones.

Fails where a ratio fell by more than a tenth below that of `results/quick.json`; `--keep` writes it anew.
"""

from __future__ import annotations

import json
import sys

from ..common import RESULTS, parser, publish
from . import dissolve, score, train_step

FALL = 0.9


def main() -> None:
    """Prints the ratios beside the kept ones; exit status 1 where one fell."""
    p = parser(__doc__)
    p.add_argument("--keep", action="store_true", help="write results/quick.json anew")
    a = p.parse_args()
    kept = json.loads((RESULTS / "quick.json").read_text())["ratios"] if not a.keep else {}
    row, _ = train_step.measure("cpu preset, 64 px grey", repeats=7)
    ratios = {
        "training step: whole / bare": row["whole / bare rate"],
        "training step: reference / whole": row["times faster than reference"],
        "dissolve / bare": dissolve.measure("cpu preset, 64 px", repeats=5)[0]["dissolve / bare"],
    }
    row, _ = score.measure("dia", n=256, repeats=3)  # so few rounds of dia+ differ by more than a tenth
    ratios |= {f"score, dia: {key}": row[key] for key in ("memory / bare", "files / limit")}
    rows = [
        {"ratio": k, "now": v, "kept": kept.get(k, float("nan")), "fell": v < FALL * kept.get(k, 0)}
        for k, v in ratios.items()
    ]
    if a.keep:
        publish("quick", [{k: r[k] for k in ("ratio", "now")} for r in rows], ratios)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=110).print(table)
    if fallen := [r["ratio"] for r in rows if r["fell"]]:
        sys.exit(f"slower than the kept ratios by more than a tenth: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
