"""What choosing the epoch on the test set is worth to each method of the fair table that trains.

A method is fitted with a quarter, a half, three quarters and all of its steps in `grids/table.yaml`, and each
fit is judged by the test set: four looks, one line each in results/epoch-choice.jsonl, as `dia benchmark`
writes it. The worth of choosing is the best of the looks less the last (`dia.benchmark.choice`). Code that
looks after every epoch looks far more often, so it is a lower bound; here the test set chooses nothing.

Batches and chance come from (seed, step), so a short fit is the beginning of a longer one, weight by weight.
One exception: EfficientAD lowers its learning rate after 95 % of a fit's own steps, so each of its looks is
at the end of a schedule, as it would be at no step of one training.

    python -m benchmarks.epoch_choice --data ../shared/data --work .work/choice
    python -m benchmarks.epoch_choice --data ../shared/data --work .work/choice --times 5

goes on where it was stopped. With `--times` each fit has so many times the table's steps and is judged at
its end alone: whether the table's short budget decides its order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import parser
from dia.benchmark.choice import CHOICE, LOOKS, choices
from dia.benchmark.grid import Job, benchmark_grid
from dia.benchmark.ledger import Ledger
from dia.benchmark.runs import run
from dia.core.yamlfile import read_yaml
from dia.data.datasets import load, load_training
from dia.features.shared import SharedMaps, sharing

ROOT = Path(__file__).parents[1]
TABLE, LEDGER = ROOT / "grids/table.yaml", ROOT / "results/epoch-choice.jsonl"
SETS = ("headct-128", "brainmri-128", "breastmnist-128")  # the smallest first
METHODS = (  # the cheapest first; of `csi` and `dia` earlier trainings tell, see `dia.benchmark.choice`
    *("ganomaly", "kdad", "transformaly", "cflow", "cfa", "fastflow", "uflow", "rd4ad", "uniad"),
    *("msc", "efficientad"),
)


def looks(steps: int) -> list[int]:
    """Returns the lengths to judge of a training of so many steps: its quarters."""
    return [steps * k // LOOKS for k in range(1, LOOKS + 1)]


def fits(
    grid: Mapping[str, Any], dataset: str, methods: tuple[str, ...], seeds: list[int], times: int = 1
) -> list[Job]:
    """Returns the fits of a data set, with what of it a line says in its field `choice`.

    One fit for each quarter of the table's steps; with `times` above 1, one fit of so many times the steps.
    """
    made, _ = benchmark_grid(
        [dataset], methods, seeds, grid["preset"], weights=grid["weights"], settings=grid["settings"],
        sizes=grid["sizes"],
    )  # fmt: skip
    return [
        replace(
            job,
            changes={**job.changes, "steps": n},
            about={CHOICE: {"steps": n, "of": times * job.changes["steps"]}},
        )
        for job in made.jobs()
        for n in (looks(job.changes["steps"]) if times == 1 else [times * job.changes["steps"]])
    ]


def judged(job: Job, data: str, work: Path, ledger: Path, say: Callable[[str], object] = print) -> None:
    """Fits and judges, unless the line is there; a fit that fails is said and left out."""
    normals = load_training(job.dataset, data, max_size=job.side)
    test = replace(load(job.dataset, "test", data, max_size=job.side), masks=None)  # no heatmaps are needed
    try:
        line = run(
            job.dataset, normals, test, job.method, preset=job.preset, changes=job.changes, seed=job.seed,
            workdir=work / job.dataset, ledger=Ledger(ledger), about=job.about, device="cpu",
        )  # fmt: skip
    except Exception as error:  # one method's defect must not stop the others
        say(f"{job}: {type(error).__name__}: {error}")
        return
    say(f"{job}, {job.changes['steps']} steps: {line['auroc']:.3f}, {line['run_seconds']:.0f} s")


def main() -> None:
    """Fits what is missing, and prints what choosing would have been worth."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", required=True, help="folder of the known data sets")
    arguments.add_argument("--work", default=".work/choice", help="finished stages and shared features")
    arguments.add_argument("--ledger", default=LEDGER, type=Path)
    arguments.add_argument("--sets", nargs="+", default=SETS)
    arguments.add_argument("--methods", nargs="+", default=METHODS)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--times", type=int, default=1, help="so many times the table's steps")
    given = arguments.parse_args()
    work = Path(given.work)
    with sharing(SharedMaps(work / "features", 8 * 2**30)):
        for name in given.sets:
            for job in fits(read_yaml(TABLE), name, tuple(given.methods), given.seeds, given.times):
                judged(job, given.data, work, given.ledger, lambda text: print(text, flush=True))
    for method, worth in choices(given.ledger).items():
        gained = f"{worth.mean:+.3f} on average, {worth.greatest:+.3f} at most"
        print(f"{method}: {gained}, {worth.trainings} trainings")


if __name__ == "__main__":
    main()
