"""What came of it: `docs/findings.md`'s section on recipes, and all its figures, from the ledgers alone.

    python benchmarks/findings.py

draws recipes (`results/runs.jsonl`, `results/explore.jsonl`, `results/ablations.jsonl`, and
`benchmarks/results/recipe_time.json`), then the sections of
`curves.py` and `hypotheses.py`. Nothing is trained, and no number is typed in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common import HERE, RESULTS
from matplotlib.figure import Figure

from dia.apps.recipes import difference
from dia.evaluate.ablation import label, load_ablation, results
from dia.evaluate.bias import best_in_ledger
from dia.evaluate.ledger import Ledger, update_section
from dia.evaluate.paper import paper_table
from dia.evaluate.protocol import confirmations
from dia.presets import MAX_SIZE

ROOT = HERE.parent
PAGE, FIGURE = ROOT / "docs/findings.md", ROOT / "docs/figures/recipes.png"
SETS = {"pneumoniamnist": "Pneumonia", "breastmnist": "Breast", "sarscov2ct": "SARS-CoV-2",
        "kvasirseg_patches": "Kvasir patches"}  # fmt: skip
AIMS = {"pneumoniamnist": 0.93, "breastmnist": 0.83, "sarscov2ct": 0.94, "kvasirseg_patches": 0.82}
BEFORE = "de6a5ef09532646e"  # settings hash of revision 2 of dia+ under the cpu preset
BLUES = ("#6a51a3", "#1b4f82", "#08306b")
ROWS = ("trivial:hog", "trivial:statistics", "trivial:pixels")

Lines = Sequence[Mapping[str, Any]]


def spread(lines: Lines) -> str:
    """Mean and standard deviation over seeds."""
    values = [r["auroc"] for r in lines]
    if not values:
        return "–"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def of_seeds(lines: Lines) -> list[Mapping[str, Any]]:
    """One line of each seed, the latest."""
    return list({r["seed"]: r for r in lines}.values())


def confirmed(rows: Lines, scores: Path) -> list[str]:
    """Every confirmed recipe on each set, beside the best untrained row there."""
    head = ["recipe", "data set", "AUROC", "seeds", "interval by images", "best untrained row",
            "above it by [95 %]", "aim", "paper's DIA"]  # fmt: skip
    text = [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2))]
    benchmark = [r for r in rows if "recipe" not in r and "ablation" not in r]
    names = dict.fromkeys(r["recipe"]["name"] for r in confirmations(rows))
    for name in names:
        for dataset, title in SETS.items():
            own = of_seeds([
                r for r in confirmations(rows) if (r["recipe"]["name"], r["dataset"]) == (name, dataset)
            ])  # fmt: skip
            if not own:
                continue
            low, high = (fmean(r["auroc_ci"][i] for r in own) for i in (0, 1))
            best = best_in_ledger(benchmark, own[0]["data_sha256"])
            assert best is not None
            of_row = {
                r["seed"]: r
                for r in benchmark
                if (r["method"], r["data_sha256"]) == (best["method"], own[0]["data_sha256"])
            }
            d = difference([r for r in own if r["seed"] in of_row], of_row, scores)
            above = "–" if d is None else f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
            published = paper_table()["dia"].aurocs.get(dataset)
            text.append(_row([
                name, title, spread(own), str(len(own)), f"{low:.3f}–{high:.3f}",
                f"{best['method']} {best['auroc']:.3f}", above, f"{AIMS[dataset]:.2f}",
                f"{published[0]:.3f}" if published else "–",
            ]))  # fmt: skip
    return text


def timed() -> list[str]:
    """Fit and scoring of the recipe, as `recipe_time.py` measured them."""
    made = json.loads((RESULTS / "recipe_time.json").read_text())
    head = ["data set", "pixels", "training normals", "fit, s", "copies compared", "images/s",
            "peak memory, MB"]  # fmt: skip
    text = [
        f"Time of `{made['recipe']}` on {made['threads']} CPU cores with nothing beside it, no stage found",
        "ready; images are scored from memory, compared with the normals in each of their normal copies:", "",
        _row(head), _row(["---", *["---:"] * (len(head) - 1)]),
    ]  # fmt: skip
    for r in made["rows"]:
        text.append(_row([
            SETS[r["set"]], r["pixels"], str(r["normals"]), f"{r['fit s']:.0f}", str(r["copies"]),
            f"{r['images/s']:.0f}", f"{r['peak_memory_mb']:.0f}",
        ]))  # fmt: skip
    return text


def explored(rows: Lines) -> list[str]:
    """Every explored recipe on each development set."""
    columns = sorted({r["dataset"] for r in rows})
    last = {r["recipe"]["name"]: r["recipe"]["identity"] for r in rows}  # of a changed recipe the last
    text = [_row(["recipe", *columns]), _row(["---", *["---:"] * len(columns)])]
    for name, identity in last.items():
        cells = []
        for column in columns:
            own = [r for r in rows if (r["recipe"]["identity"], r["dataset"]) == (identity, column)]
            cells.append(spread(of_seeds(own)))
        text.append(_row([name, *cells]))
    return text


def ablated(rows: Lines, scores: Path) -> list[str]:
    """The views of dia+, one removed at a time: differences from the whole."""
    grid = load_ablation("views")
    made = results(grid, rows, scores, list(SETS))
    text = [_row(["recipe", *SETS.values()]), _row(["---", *["---:"] * len(SETS)])]
    for i, cell in enumerate(grid.cells()):
        cells = []
        for dataset in SETS:
            r = made[dataset][i]
            values = list(r.aurocs.values())
            shown = f"{fmean(values):.3f}" if values else "–"
            if r.difference is not None:
                d = r.difference
                clear = "**" if d.low > 0 or d.high < 0 else ""
                shown = f"{clear}{d.value:+.3f}{clear} [{d.low:+.3f}, {d.high:+.3f}]"
            cells.append(shown)
        text.append(_row([label(cell), *cells]))
    return text


def figure(rows: Lines) -> Figure:
    """One row of dots for each set: confirmed recipes, dia+ before them, untrained rows, the paper."""
    made = Figure(figsize=(8.5, 3.6), layout="constrained")
    ax = made.subplots()
    for y, dataset in enumerate(SETS):
        here = [r for r in rows if r["dataset"] == dataset and "ablation" not in r]
        groups = {"dia+, revision 2": ("#9db7d0", "o", 7, [r for r in here if r["settings_hash"] == BEFORE])}
        for row, colour, marker in zip(ROWS, ("#c45a11", "#7a7a7a", "#b5a642"), ("s", "D", "^"), strict=True):
            groups[row] = (colour, marker, 7, [r for r in here if r["method"] == row])
        names = dict.fromkeys(r["recipe"]["name"] for r in confirmations(rows))
        for name, colour in zip(names, BLUES, strict=False):
            own = of_seeds([r for r in confirmations(here) if r["recipe"]["name"] == name])
            groups[f"recipe {name}"] = (colour, "o", 9, own)
            if own:  # the interval by images, of the last one lowest
                ends = [fmean(r["auroc_ci"][i] for r in own) for i in (0, 1)]
                height = y + 0.12 * (1 + list(names).index(name))
                ax.plot(ends, [height, height], color=colour, linewidth=2, zorder=0)
        for name, (colour, marker, size, lines) in groups.items():
            if lines:
                mean = fmean(r["auroc"] for r in of_seeds(lines))
                ax.plot(mean, y, marker, color=colour, markersize=size, label=name if y == 0 else None)
        published = paper_table()["dia"].aurocs.get(dataset)
        if published:
            ax.plot(
                published[0], y, "*", color="#2e7d32", markersize=11, fillstyle="none",
                label="DIA as published" if y == 0 else None,
            )  # fmt: skip
    ax.set(yticks=range(len(SETS)), yticklabels=list(SETS.values()), xlabel="test AUROC")
    ax.invert_yaxis()
    ax.margins(y=0.18)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    made.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return made


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Draws the page."""
    results_ = ROOT / "results"
    rows = Ledger(results_ / "runs.jsonl").rows()
    ablations = [r for r in Ledger(results_ / "ablations.jsonl").rows() if r["method"] == "dia+"]
    text = [
        "Confirmed, once each, on test sets:", "", *confirmed(rows, results_ / "scores"), "",
        f"![Test AUROC of dia+, of untrained rows, and as published]({FIGURE.relative_to(PAGE.parent)})", "",
        *timed(), "",
        "Explored, on development data:", "", *explored(Ledger(results_ / "explore.jsonl").rows()), "",
    ]  # fmt: skip
    if ablations:
        assert MAX_SIZE["cpu"] == load_ablation("views").side
        text += [
            "Removed from `dia+`, one at a time, on the test sets (difference from the whole, paired by seed",
            "and image, 95 %; bold where it excludes 0):", "", *ablated(ablations, results_ / "scores"),
        ]  # fmt: skip
    update_section(PAGE, "RECIPES", "\n".join(text).rstrip())
    figure(rows).savefig(FIGURE, dpi=130, metadata={"Software": None})
    for script in ("curves", "hypotheses"):
        subprocess.run([sys.executable, str(HERE / f"{script}.py"), "--page"], cwd=HERE, check=True)


if __name__ == "__main__":
    main()
