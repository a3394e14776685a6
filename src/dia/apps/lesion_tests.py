"""The commands that paste lesions, `dia stress` and `dia select`: from arguments to files and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..data.imageset import DataError, ImageSet
from ..data.lesions import KINDS, paste
from ..detectors import Detector
from ..evaluate.pictures import sheet
from ..evaluate.stress import (
    Plan,
    identity_of,
    keep_stress,
    load_stress,
    smallest,
    stress,
    untrained_normals,
)
from ..evaluate.stress_figure import rows, save_figure, sentences
from .executors import STRESS


def run_stress(
    a: Namespace, detector: Detector, images: ImageSet, rate: float, out: Console, err: Console
) -> None:
    """`dia stress`."""
    if a.images < 0:
        raise DataError(f"--images must be at least 0, not {a.images}")
    plan = Plan(tuple(a.kinds or KINDS), tuple(a.sizes), tuple(a.contrasts), a.seed)
    ground = untrained_normals(detector, images, a.images)
    path = Path(a.out or Path(a.run) / STRESS)
    if path.suffix != ".json":
        raise DataError(f"--out {a.out}: the name must end in .json")
    kept = None
    if path.exists() and not a.overwrite:
        kept = load_stress(path)
        now = identity_of(detector, ground, plan.seed, rate, a.localise)
        if differing := [k for k in now if kept["identity"].get(k) != now[k]]:
            raise DataError(
                f"{path} holds another test (it differs in {', '.join(differing)}); choose another --out, or "
                "--overwrite it"
            )
    own = "held out for calibration" if ground.source == "calibration" else "not those it was fitted on"
    count = len(ground.images)
    err.print(f"{detector.method}: pasting lesions into {count} normal images, {own}", highlight=False)
    with Progress(console=err, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Kinds × sizes × contrasts", total=len(plan.cells()))

        def keep(made: dict[str, Any]) -> None:
            keep_stress(path, made)
            bar.update(task, advance=1)

        result = stress(detector, ground, plan, rate, localise=a.localise, kept=kept, on_cell=keep)
    figure = save_figure(path.with_suffix(f".{a.format}"), {"": result})
    shown = lesion_sheet(path.with_name(f"{path.stem}-lesions.png"), ground.images, detector, plan)
    if a.json:
        found = {
            kind: {f"{c:g}": {"size": s, "surely": sure} for c, (s, sure) in of.items()}
            for kind, of in smallest(result).items()
        }
        print(json.dumps({**result, "smallest": found, "figure": str(figure), "lesions": str(shown)}))
        return
    head, body = rows(result)
    table = Table(*head, title="Smallest lesion found in 80 % of the images")
    for row in body:
        table.add_row(*row)
    out.print(table)
    out.print(
        "As a share of the shorter side (and in pixels). –: none of those tested. ?: the 95 % interval "
        "reaches below 80 %.",
        highlight=False,
    )
    for sentence in sentences(result):
        out.print(sentence, highlight=False, markup=False)
    for file in (path, figure, shown):
        out.print(str(file), soft_wrap=True, highlight=False)


def _whose(source: str) -> str:
    return (
        "held out by the model for calibration" if source == "calibration" else "not those it was fitted on"
    )


def lesion_sheet(path: Path, normals: ImageSet, detector: Detector, plan: Plan) -> Path:
    """What was pasted, to look at: into the median normal by score, at the middle size."""
    order = np.argsort(detector.score(normals.images))
    x = normals.images[[order[len(order) // 2]] * len(plan.contrasts)]
    size = plan.sizes[len(plan.sizes) // 2]
    columns = [("as it is", x)]
    for kind in plan.kinds:
        pasted, _ = paste(x, kind, size, np.array(plan.contrasts), seed=plan.seed)
        columns.append((kind, pasted))
    return sheet(path, columns, [f"contrast {c:g}" for c in plan.contrasts])
