"""The commands that paste lesions, `dia stress` and `dia select`: from arguments to files and tables."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..core.errors import DataError
from ..core.modelfiles import STRESS
from ..data.imageset import ImageSet
from ..data.lesions import KINDS, paste
from ..detectors import Detector
from ..detectors.presets import MAX_SIZE, PRESETS
from ..evaluate.selection import Candidate, measure_all
from ..evaluate.stress import (
    Plan,
    identity_of,
    keep_stress,
    load_stress,
    smallest,
    stress,
    untrained_normals,
)
from ..report.figures import rows, save_figure, sentences
from ..report.pictures import sheet


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


def candidates(
    methods: Sequence[str], presets: Sequence[str], vary: Mapping[str, Mapping[str, Sequence[Any]]]
) -> list[Candidate]:
    """Methods × presets × all combinations of the values to try.

    Raises:
        DataError: an unknown method, preset or setting, or values of a method that is not asked for.
    """
    if unknown := [p for p in presets if p not in PRESETS]:
        raise DataError(f"--presets: no preset {unknown[0]}; there are: {', '.join(PRESETS)}")
    if unasked := [m for m in vary if m not in methods]:
        raise DataError(f"--vary: {unasked[0]} is not among --methods; add it there")
    made = []
    for method, preset in product(dict.fromkeys(methods), dict.fromkeys(presets)):
        settings = vary.get(method, {})
        for values in product(*settings.values()):
            made.append(Candidate(method, preset, dict(zip(settings, values, strict=True))))
            made[-1].settings()  # refuses what cannot be before anything is fitted
    if not made:
        raise DataError("--methods: name at least one; `dia methods` lists them")
    return made


def run_select(a: Namespace, read: Callable[[int], ImageSet], out: Console, err: Console) -> None:
    """`dia select`."""
    wanted = candidates(a.methods, a.presets, a.vary)
    if a.fuse < 0 or a.fuse == 1:
        raise DataError(f"--fuse must be 0, or 2 and more, not {a.fuse}")
    by_side: dict[int, ImageSet] = {}
    for preset in {c.preset for c in wanted}:
        side = MAX_SIZE[preset]
        by_side[side] = by_side.get(side) or read(side).normals()
    normals = {preset: by_side[MAX_SIZE[preset]] for preset in {c.preset for c in wanted}}
    count = len(next(iter(normals.values())))
    err.print(
        f"{len(wanted)} candidates × {a.splits} splits of {count} normal images; labels are not looked at",
        highlight=False,
    )

    def say(name: str, split: int) -> None:
        err.print(f"{name}: split {split + 1} of {a.splits}", markup=False, highlight=False)

    result = measure_all(
        wanted, normals, a.splits, seed=a.seed, fuse=a.fuse, device=a.device, workdir=Path(a.work),
        progress=sys.stderr.isatty(), on_run=say,
    )  # fmt: skip
    by_name = {c.name: c for c in wanted}
    parts = result["members"].get(result["choice"], (result["choice"],))
    result |= {
        "data": a.data,
        "normals": count,
        "splits": a.splits,
        "seed": a.seed,
        "fit": [fit_command(a.data, by_name[name]) for name in parts],
        "warning": warning(result),
    }
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    Path(a.out).write_text(json.dumps(result, indent=1), encoding="utf-8")
    if a.json:
        print(json.dumps(result))
        return
    _show_selection(result, out, err)
    out.print(a.out, soft_wrap=True, highlight=False)


def fit_command(data: str, candidate: Candidate) -> str:
    """How the choice is fitted on all normals."""
    words = ["dia", "fit", data, "--method", candidate.method]
    words += ["--preset", candidate.preset] if candidate.preset != "cpu" else []
    for name, value in candidate.changes.items():
        words += [f"--settings.{name}", json.dumps(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def warning(result: Mapping[str, Any]) -> str:
    """What the reader must know of the choice, in plain words."""
    families = result["best_of"]
    said = "Pasted lesions are not disease: this ranks candidates by what they see of generated changes. "
    if len(families) == 1:
        return said + (
            "All candidates are of one family. Even there it agreed only weakly with the truth where labels "
            "are known (docs/howto/choose.md): it is better than nothing, and no measure of how many "
            "anomalies are found."
        )
    listed = "; ".join(f"{family}: {name}" for family, name in families.items())
    return said + (
        f"The candidates are of {len(families)} families, and across families this ranking misleads: a "
        "method that sees pasted lesions best can be at chance on real anomalies. Do not take the first for "
        f"the best method; at most for the best of its family ({listed}), and decide between families on a "
        "few labelled images. How often it went wrong where labels are known: docs/howto/choose.md."
    )


def _show_selection(result: Mapping[str, Any], out: Console, err: Console) -> None:
    def number(value: float, ends: Sequence[float] | None) -> str:
        return f"{value:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")

    table = Table(
        "candidate", "family", "lesion AUROC [95 %]", "behind the first [95 %]", "worst kind", "s a split"
    )
    for row in result["rows"]:
        kind, worst = min(row["by_kind"].items(), key=lambda item: item[1])
        behind = "–" if row["name"] == result["choice"] else number(row["behind"], row["behind_ci"])
        own = number(row["inner"], row["inner_ci"])
        table.add_row(row["name"], row["family"], own, behind, f"{kind} {worst:.2f}", f"{row['seconds']:.1f}")
    out.print(table)
    for name, reason in result["failed"].items():
        err.print(f"left out: {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    worth = number(result["estimate"], result["estimate_ci"])
    said = [
        f"choice: {result['choice']}",
        f"lesion AUROC of what is so chosen, on normals that had no part in it: {worth}",
    ]
    if like := result["like_it"]:
        said.append(f"cannot be told from the first by these splits: {', '.join(like)}")
    for line in [*said, *result["fit"], f"warning: {result['warning']}"]:
        out.print(line, markup=False, highlight=False)
