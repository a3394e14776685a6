"""`dia ablate`: runs a grid of settings into the ledger, with the time left, and draws its page.

One cell that fails does not stop the others. What is in the ledger is not run again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.console import Console

from ..data.catalog import load, load_training
from ..data.imageset import DataError, ImageSet
from ..evaluate.ablation import CONTAMINATION, Ablation, Cell, label, markdown, plot, results
from ..evaluate.benchmark import run
from ..evaluate.ledger import Ledger
from ..training import TrainingError


def ablate(
    grid: Ablation,
    out: Path,
    *,
    datasets: Sequence[str],
    seeds: Sequence[int],
    data_root: str | None,
    ledger: Ledger,
    scores: Path,
    workdir: Path,
    device: str = "auto",
) -> list[str]:
    """Runs what is missing and writes `out/NAME.md` and `out/NAME.png`.

    Returns:
        One line for each run that failed.
    """
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    todo = list(product(datasets, seeds, grid.cells()))
    failed: list[str] = []
    spent: list[float] = []  # seconds of each run that was not in the ledger
    known = len(ledger.rows())
    sets: dict[tuple[str, float, int], ImageSet] = {}
    for number, (dataset, seed, cell) in enumerate(todo, 1):
        start = time.perf_counter()
        try:
            line = _one(grid, cell, dataset, seed, sets, data_root, ledger, scores, workdir, device)
        except (DataError, TrainingError) as error:
            failed.append(f"{dataset} seed {seed} {label(cell)}: {error}")
            say.print(failed[-1], style="red", markup=False)
            continue
        if (now := len(ledger.rows())) > known:
            known = now
            spent.append(time.perf_counter() - start)
            left = f", about {len(todo[number:]) * sum(spent) / len(spent) / 60:.0f} min left"
        else:
            left = ", in the ledger"
        say.print(
            f"{number} of {len(todo)}{left}: {dataset} seed {seed} {label(cell)}: AUROC {line['auroc']:.3f}",
            markup=False,
        )
    draw(grid, out, ledger=ledger, scores=scores, datasets=datasets)
    return failed


def draw(grid: Ablation, out: Path, *, ledger: Ledger, scores: Path, datasets: Sequence[str]) -> Path:
    """The page and the plot from what the ledger holds."""
    made = results(grid, ledger.rows(), scores, datasets)
    out.mkdir(parents=True, exist_ok=True)
    picture = plot(out / f"{grid.name}.png", grid, made)
    page = out / f"{grid.name}.md"
    page.write_text(markdown(grid, made, picture.name), encoding="utf-8")
    return page


def _one(
    grid: Ablation,
    cell: Cell,
    dataset: str,
    seed: int,
    sets: dict[tuple[str, float, int], ImageSet],
    data_root: str | None,
    ledger: Ledger,
    scores: Path,
    workdir: Path,
    device: str,
) -> dict[str, float]:
    changes = grid.changes(cell)
    share = float(changes.pop(CONTAMINATION, 0))
    key, of_test = (dataset, share, seed if share else 0), (dataset, -1.0, 0)
    if of_test not in sets:
        sets.clear()  # one data set at a time in memory
        sets[of_test] = load(dataset, "test", data_root, max_size=grid.side)
    if key not in sets:
        sets[key] = load_training(dataset, data_root, contamination=share, seed=seed, max_size=grid.side)
    about = {"grid": grid.name, "cell": list(cell), "side": grid.side} | (
        {CONTAMINATION: share} if share else {}
    )
    made = run(
        dataset, sets[key], sets[of_test], grid.method, preset=grid.preset, changes=changes, seed=seed,
        device=device, workdir=workdir / dataset, ledger=ledger, scores=scores, about={"ablation": about},
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    return dict(made)
