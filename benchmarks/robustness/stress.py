"""How small and faint a lesion untrained rows and `dia+` find, for docs/howto/stress.md.

    DIA_DATA=../shared/data python -m benchmarks.robustness.stress

writes `results/stress.json`, the figure and the table. Labels only leave anomalous images out. Rows that are
there are kept: delete the file to measure all. Some twenty minutes on two cores; with --page it only draws.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dia.benchmark.ledger import update_section
from dia.benchmark.runs import facts_of
from dia.data.datasets import load_training
from dia.detectors.presets import settings
from dia.detectors.registry import detector_class
from dia.evaluate.stress import FOUND, Plan, stress, untrained_normals

from ..common import HERE, RESULTS, parser

PAGE, FIGURE = HERE.parent / "docs/howto/stress.md", HERE.parent / "docs/figures/stress.png"
SETS = ("pneumoniamnist", "sarscov2ct-128", "kvasirseg_patches-128")
WHOLE_FALSE = "dia+, whole: false"
METHODS = ("trivial:hog", "trivial:statistics", "trivial:blur", "dia+", WHOLE_FALSE)
RATE = 0.05


def measured(name: str, label: str) -> dict[str, Any]:
    """Fits a detector to the training normals of a set, and tests it."""
    cls = detector_class(label.split(",")[0])
    chosen = settings(cls.Settings, "cpu")
    normals = load_training(name, os.environ.get("DIA_DATA"))
    detector = cls(replace(chosen, whole=False) if label == WHOLE_FALSE else chosen).fit(normals)
    detector.facts_ = facts_of(detector, name, "cpu", normals)
    ground = untrained_normals(detector, normals)
    return {"set": name, "method": label, "result": stress(detector, ground, Plan(), RATE)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: how much each finds, and which kinds it finds at all."""
    lines = [
        "| images | detector | normals | flagged as they are | found | greatest share found, by kind |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        r = row["result"]
        kinds = dict.fromkeys(c["kind"] for c in r["cells"])
        best = [f"{k} {max(c['share'] for c in r['cells'] if c['kind'] == k):.0%}" for k in kinds]
        found = sum(c["share"] >= FOUND for c in r["cells"])
        cells = [row["set"], row["method"], str(r["normals"]["images"]), f"{r['false_alarms']['share']:.1%}",
                 f"{found} of {len(r['cells'])}", ", ".join(best)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", "![Share of lesions found by five detectors on three sets](../figures/stress.png)"]
    )


def overview(rows: Sequence[Mapping[str, Any]]) -> None:
    """Share found as a map of kind over size and contrast; detectors across, sets down."""
    figure = Figure(figsize=(15.5, 7.6), layout="constrained")
    panels = figure.subplots(len(SETS), len(METHODS), sharex=True, sharey=True)
    for row in rows:
        cells = row["result"]["cells"]
        kinds = list(dict.fromkeys(c["kind"] for c in cells))
        columns = sorted({(c["size"], c["contrast"]) for c in cells})
        share = np.zeros((len(kinds), len(columns)))
        for c in cells:
            share[kinds.index(c["kind"]), columns.index((c["size"], c["contrast"]))] = c["share"]
        ax = panels[SETS.index(row["set"]), METHODS.index(row["method"])]
        drawn = ax.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for i, j in np.argwhere(share >= FOUND):
            ax.plot(j, i, "k*", markersize=7)
        ax.set_yticks(range(len(kinds)), kinds, fontsize=8)
        ax.set_xticks(range(len(columns)), [f"{c:g}" for _, c in columns], fontsize=7)
        sizes = sorted({s for s, _ in columns})
        step = len(columns) / len(sizes)
        for k, size in enumerate(sizes):
            ax.text((k + 0.5) * step - 0.5, -0.65, f"size {size:g}", ha="center", fontsize=7.5)
            ax.axvline(k * step - 0.5, color="white", linewidth=1.5)
        ax.set_title(f"{row['set']}: {row['method']}", fontsize=9, pad=14)
        ax.tick_params(length=0)
    for ax in panels[-1]:
        ax.set_xlabel("contrast", fontsize=8)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.5, pad=0.01)
    bar.set_label(f"share found (star: at least {FOUND:.0%})", fontsize=8)
    figure.savefig(FIGURE, dpi=90, metadata={"Software": None})


def main() -> None:
    """Measures, and draws."""
    p = parser(__doc__)
    p.add_argument("--page", action="store_true", help="draw from the results there are")
    a, out = p.parse_args(), RESULTS / "stress.json"
    rows = json.loads(out.read_text()) if out.exists() else []
    there = {(r["set"], r["method"]) for r in rows}
    for wanted in () if a.page else [(s, m) for s in SETS for m in METHODS if (s, m) not in there]:
        rows.append(measured(*wanted))
        print(*wanted, rows[-1]["result"]["false_alarms"], flush=True)
        out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    overview(rows)
    update_section(PAGE, "STRESS", table(rows))


if __name__ == "__main__":
    main()
