"""`dia ablate`: runs a grid of settings into the ledger and draws its page.

One cell that fails does not stop the others. What is in the ledger is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ..evaluate.ablation import CONTAMINATION, Ablation, markdown, plot, results
from ..evaluate.ledger import Ledger
from .grid import Task


def ablation_tasks(grid: Ablation) -> list[Task]:
    """Every cell on every data set with every seed."""
    tasks = []
    for dataset, seed, cell in product(grid.datasets, grid.seeds, grid.cells()):
        changes = grid.changes(cell)
        share = float(changes.pop(CONTAMINATION, 0))
        about = {"grid": grid.name, "cell": list(cell), "side": grid.side}
        about |= {CONTAMINATION: share} if share else {}
        more = {"ablation": about}
        tasks.append(Task(dataset, grid.method, seed, grid.preset, changes, grid.side, share, more))
    return tasks


def draw(grid: Ablation, out: Path, *, ledger: Ledger, scores: Path, datasets: Sequence[str]) -> Path:
    """The page and the plot from what the ledger holds: `out/NAME.md` and `out/NAME.png`."""
    made = results(grid, ledger.rows(), scores, datasets)
    out.mkdir(parents=True, exist_ok=True)
    picture = plot(out / f"{grid.name}.png", grid, made)
    page = out / f"{grid.name}.md"
    page.write_text(markdown(grid, made, picture.name), encoding="utf-8")
    return page
