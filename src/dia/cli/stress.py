"""`dia stress` and `dia select`: lesions are pasted to see how fine a model sees, or which method to take."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.progress import Progress
from rich.table import Table

from ..core.errors import DataError
from ..core.modelfiles import STRESS
from ..data.lesions import CONTRASTS, KINDS, SIZES, paste
from .help import parsed
from .options import Device, Model, Output, Rate, TrainingImages, err, remark, result
from .options import out as console

if TYPE_CHECKING:
    from ..data.imageset import ImageSet
    from ..detectors import Detector
    from ..evaluate.selection import Candidate
    from ..evaluate.stress import Plan


def stress(
    model: Model,
    data: TrainingImages,
    *,
    kinds: list[str] | None = None,
    sizes: Sequence[float] = SIZES,
    contrasts: Sequence[float] = CONTRASTS,
    localise: bool = False,
    images: int = 200,
    seed: int = 0,
    out: str | None = None,
    format: Literal["png", "svg"] = "png",
    overwrite: bool = False,
    rate: Rate,
    output: Output,
) -> None:
    """Measure how fine a model sees: paste lesions into normal images, count those flagged.

    Lesions of eight kinds, in several sizes and contrasts, go into normal images the model did not train on.
    Give the images it was fitted on, and its held-out part is taken; or any other normals of the same kind.
    Shown are the share found at the calibrated threshold, with 95 % intervals, and the smallest lesion found
    in 80 % of the images. `dia report` shows it too.

    What was measured is kept: the same command goes on where it was stopped, and more sizes or contrasts are
    added to what is there.

    The lesions are synthetic: this says what the model sees, not what disease looks like.

    Args:
        model: what to measure.
        data: the normal images.
        kinds: kinds of lesions, as [a,b] (default: {KINDS})
        sizes: diameters, as shares of the image's shorter side
        contrasts: strength of what is added, as a share of the image's grey range; of what is replaced, how
            much of it
        localise: measure too whether heatmaps point at the lesions; twice the time
        images: normals to paste into at most; 0 for all
        seed: decides the lesions' places and forms
        out: the file of results; pictures go beside it (default: stress.json in RUN, where `dia report` finds
            it)
        format: file format of the figure
        overwrite: replace a different test in --out
        rate: where the threshold is.
        output: how to print the result.

    Examples:
        dia stress runs/mine scans/normal
        dia stress runs/mine scans/other --false_alarm_rate 0.01 --localise
        dia stress runs/mine scans/normal --kinds [nodule,haze] --sizes [0.1,0.2,0.4]
    """
    from ..evaluate.stress import (
        Plan,
        identity_of,
        keep_stress,
        load_stress,
        smallest,
        untrained_normals,
    )
    from ..evaluate.stress import stress as measure
    from ..report import render
    from ..report.figures import detection_curves, sentences, smallest_table
    from ..report.style import save

    detector = model.load()
    read = data.read_for(detector)
    share = rate.of(detector)
    if images < 0:
        raise DataError(f"--images must be at least 0, not {images}")
    plan = Plan(tuple(kinds or KINDS), tuple(sizes), tuple(contrasts), seed)
    ground = untrained_normals(detector, read, images)
    path = Path(out or Path(model.run) / STRESS)
    if path.suffix != ".json":
        raise DataError(f"--out {out}: the name must end in .json")
    kept = None
    if path.exists() and not overwrite:
        kept = load_stress(path)
        now = identity_of(detector, ground, plan.seed, share, localise)
        if differing := [k for k in now if kept["identity"].get(k) != now[k]]:
            raise DataError(
                f"{path} holds another test (it differs in {', '.join(differing)}); choose another --out, or "
                "--overwrite it"
            )
    own = "held out for calibration" if ground.source == "calibration" else "not those it was fitted on"
    count = len(ground.images)
    remark(f"{detector.method}: pasting lesions into {count} normal images, {own}")
    with Progress(console=err, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Kinds × sizes × contrasts", total=len(plan.cells()))

        def keep(made: dict[str, Any]) -> None:
            keep_stress(path, made)
            bar.update(task, advance=1)

        measured = measure(detector, ground, plan, share, localise=localise, kept=kept, on_cell=keep)
    figure = save(partial(detection_curves, measured), path.with_suffix(f".{format}"))
    shown = lesion_sheet(path.with_name(f"{path.stem}-lesions.png"), ground.images, detector, plan)
    if output.json:
        found = {
            kind: {f"{c:g}": {"size": s, "surely": sure} for c, (s, sure) in of.items()}
            for kind, of in smallest(measured).items()
        }
        print(json.dumps({**measured, "smallest": found, "figure": str(figure), "lesions": str(shown)}))
        return
    result("Smallest lesion found in 80 % of the images:")
    console.print(render.console(smallest_table(measured)))
    result(
        "As a share of the shorter side (and in pixels). –: none of those tested. ?: the 95 % interval "
        "reaches below 80 %."
    )
    for sentence in sentences(measured):
        result(sentence)
    for file in (path, figure, shown):
        result(str(file))


def lesion_sheet(path: Path, normals: ImageSet, detector: Detector, plan: Plan) -> Path:
    """What was pasted, to look at: into the median normal by score, at the middle size."""
    from ..report.pictures import sheet

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
    from ..detectors.presets import PRESETS
    from ..evaluate.selection import Candidate

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


@parsed(config=True)
def select(
    data: TrainingImages,
    *,
    methods: Sequence[str] = ("trivial:hog", "trivial:statistics", "trivial:blur", "csi", "dia+"),
    presets: Sequence[str] = ("cpu",),
    vary: dict[str, dict[str, list[Any]]] = {},  # noqa: B006 - never changed
    fuse: int = 0,
    splits: int = 3,
    seed: int = 0,
    size: int | None = None,
    channels: int | None = None,
    work: str = ".work",
    out: str = "selection.json",
    device: Device,
    output: Output,
) -> None:
    """Choose method, preset, settings and fusion without labels, by pasted lesions.

    The normals are split: each candidate is fitted on a part, told apart by lesions pasted into another, and
    the choice is judged on a third that had no part in it. Shown are the lesion AUROC of each candidate with
    its interval over the splits, which of them cannot be told from the first, and what the choice is worth.

    Lesions are no disease. Within one family of methods this is a weak guide; across families it misleads.
    What was measured is kept in --work; the same command goes on.

    Args:
        data: the normal images.
        methods: names of `dia methods`, as [a,b]
        presets: presets to try of each method: cpu, gpu, paper
        vary: values of a method's settings to try, all combinations, as '{csi: {amplify.steps: [60, 180]}}'
        fuse: also try fusions of up to so many candidates, by their conformal p-values; costs no fit
        splits: 1 to 5; each fits every candidate once
        seed: decides splits, detectors and lesions
        size: read images as squares of this side, as `dia fit`
        channels: 1 or 3 (default: as the images are)
        work: keeps what is finished; safe to delete
        out: file of results
        device: where to train.
        output: how to print the result.

    Examples:
        dia select scans/normal --methods [trivial:hog,trivial:blur,trivial:statistics] --fuse 2
        dia select scans/normal --methods [csi] --vary '{csi: {amplify.steps: [60, 180, 540]}}'
        dia select pneumoniamnist --data_root data --methods [csi,dia,dia+] --presets [cpu,gpu]
    """
    from ..detectors.presets import MAX_SIZE
    from ..evaluate.selection import measure_all

    wanted = candidates(methods, presets, vary)
    if fuse < 0 or fuse == 1:
        raise DataError(f"--fuse must be 0, or 2 and more, not {fuse}")
    by_side: dict[int, ImageSet] = {}
    for preset in {c.preset for c in wanted}:
        side = MAX_SIZE[preset]
        if side not in by_side:
            by_side[side] = data.read(size=size, max_size=side, channels=channels).normals()
    normals = {preset: by_side[MAX_SIZE[preset]] for preset in {c.preset for c in wanted}}
    count = len(next(iter(normals.values())))
    remark(f"{len(wanted)} candidates × {splits} splits of {count} normal images; labels are not looked at")

    def say(name: str, split: int) -> None:
        remark(f"{name}: split {split + 1} of {splits}")

    found = measure_all(
        wanted, normals, splits, seed=seed, fuse=fuse, device=device.device, workdir=Path(work),
        progress=sys.stderr.isatty(), on_run=say,
    )  # fmt: skip
    by_name = {c.name: c for c in wanted}
    parts = found["members"].get(found["choice"], (found["choice"],))
    found |= {
        "data": data.data,
        "normals": count,
        "splits": splits,
        "seed": seed,
        "fit": [fit_command(data.data, by_name[name]) for name in parts],
        "warning": warning(found),
    }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")
    if output.json:
        print(json.dumps(found))
        return
    _show_selection(found)
    result(out)


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


def _show_selection(found: Mapping[str, Any]) -> None:
    """Prints the candidates as a table, and the choice."""

    def number(value: float, ends: Sequence[float] | None) -> str:
        return f"{value:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")

    table = Table(
        "candidate", "family", "lesion AUROC [95 %]", "behind the first [95 %]", "worst kind", "s a split"
    )
    for row in found["rows"]:
        kind, worst = min(row["by_kind"].items(), key=lambda item: item[1])
        behind = "–" if row["name"] == found["choice"] else number(row["behind"], row["behind_ci"])
        own = number(row["inner"], row["inner_ci"])
        table.add_row(row["name"], row["family"], own, behind, f"{kind} {worst:.2f}", f"{row['seconds']:.1f}")
    console.print(table)
    for name, reason in found["failed"].items():
        remark(f"left out: {name}: {reason}", "yellow")
    worth = number(found["estimate"], found["estimate_ci"])
    said = [
        f"choice: {found['choice']}",
        f"lesion AUROC of what is so chosen, on normals that had no part in it: {worth}",
    ]
    if like := found["like_it"]:
        said.append(f"cannot be told from the first by these splits: {', '.join(like)}")
    for line in [*said, *found["fit"], f"warning: {found['warning']}"]:
        result(line)
