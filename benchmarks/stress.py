"""Stress tests of untrained detectors and `dia+` on three sets: how small and faint a lesion each finds.

    python benchmarks/stress.py --data ../shared/data

writes `results/stress.json`, the figure and the table of `docs/howto/stress.md`. Labels only leave anomalous
images out. Rows that are there are kept: delete the file to measure all. With --page it only draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, RESULTS, parser
from matplotlib.figure import Figure

from dia.apps.lesion_tests import lesion_sheet
from dia.data.catalog import load_training
from dia.detectors import detector_class
from dia.evaluate.benchmark import wanted_settings
from dia.evaluate.ledger import update_section
from dia.evaluate.stress import FOUND, Plan, stress, untrained_normals
from dia.presets import MAX_SIZE

PAGE = HERE.parent / "docs/howto/stress.md"
FIGURES = HERE.parent / "docs/figures"
SETS = ("pneumoniamnist", "sarscov2ct", "kvasirseg_patches")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "trivial:hog": ("trivial:hog", {}), "trivial:statistics": ("trivial:statistics", {}),
    "trivial:blur": ("trivial:blur", {}), "dia+": ("dia+", {}),
    "dia+, whole: false": ("dia+", {"whole": False}),
}  # fmt: skip
RATE = 0.05


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: how much each finds, and which kinds it finds at all."""
    lines = [
        "| images | detector | normals | flagged as they are | found | greatest share found, by kind |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        r = row["result"]
        kinds = dict.fromkeys(c["kind"] for c in r["cells"])
        best = ", ".join(
            f"{k} {max(c['share'] for c in r['cells'] if c['kind'] == k):.0%}" for k in kinds
        )  # fmt: skip
        found = sum(c["share"] >= FOUND for c in r["cells"])
        lines.append(
            f"| {row['set']} | {row['method']} | {r['normals']['images']} | {r['false_alarms']['share']:.1%} "
            f"| {found} of {len(r['cells'])} | {best} |"
        )
    return "\n".join(
        [*lines, "", "![Share of lesions found by five detectors on three sets](../figures/stress.png)"]
    )


def overview(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
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
        ax = panels[SETS.index(row["set"]), list(METHODS).index(row["method"])]
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
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Measures, and draws."""
    p = parser(__doc__)
    p.add_argument("--data", default="../shared/data", help="folder of the sample sets")
    p.add_argument("--work", type=Path, default=Path(".work"), help="keeps stages of a fit")
    p.add_argument("--page", action="store_true", help="draw from the results there are")
    a = p.parse_args()
    path = RESULTS / "stress.json"
    if not a.page:
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        for name in SETS:
            normals = load_training(name, a.data, max_size=MAX_SIZE["cpu"])
            for label, (method, changes) in METHODS.items():
                if any((r["set"], r["method"]) == (name, label) for r in rows):
                    continue
                wanted = wanted_settings(method, "cpu", changes)
                detector = detector_class(method)(wanted).fit(normals, workdir=a.work, resume=True)
                detector.facts_ = {"train_sha256": normals.sha256()}
                ground = untrained_normals(detector, normals)
                rows.append({"set": name, "method": label, "result": stress(detector, ground, Plan(), RATE)})
                print(name, label, rows[-1]["result"]["false_alarms"], flush=True)
                if (name, label) == ("sarscov2ct", "trivial:hog"):
                    lesion_sheet(FIGURES / "stress-lesions.png", ground.images, detector, Plan())
                path.write_text(
                    json.dumps({"benchmark": "stress", "ratios": {}, "rows": rows}, indent=1) + "\n"
                )
    rows = json.loads(path.read_text())["rows"]
    overview(FIGURES / "stress.png", rows)
    update_section(PAGE, "STRESS", table(rows))


if __name__ == "__main__":
    main()
