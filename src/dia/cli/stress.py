"""`dia stress` and `dia select`: lesions are pasted to see how fine a model sees, or which method to take."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt
from rich.progress import Progress
from rich.table import Table

from ..core.errors import DataError
from ..core.modelfiles import STRESS
from ..data.lesions import CONTRASTS, KINDS, SIZES
from .options import Device, Model, Output, Preset, Rate, TrainingImages, err, remark, result
from .options import out as console


def stress(
    model: Model,
    data: TrainingImages,
    *,
    kinds: list[str] | None = None,
    sizes: Sequence[float] = SIZES,
    contrasts: Sequence[float] = CONTRASTS,
    localise: bool = False,
    images: NonNegativeInt = 200,
    seed: int = 0,
    out: str | None = None,
    format: Literal["png", "svg"] = "png",
    overwrite: bool = False,
    rate: Rate,
    output: Output,
) -> None:
    """Measure how fine a model sees: paste lesions into normal images, count those flagged.

    Lesions of eight kinds, in several sizes and contrasts, are pasted into normal images that the model did
    not train on. Give the images it was fitted on, of which the held-out part is used, or other normals of
    the same kind. The result is the share found at the calibrated threshold, with 95 % intervals, and the
    smallest lesion found in 80 % of the images. `dia report` shows it too.

    Results are kept: the same command continues an interrupted test, and adds more sizes or contrasts.

    The lesions are synthetic: this says what the model sees, not what disease looks like.

    Args:
        model: what to measure.
        data: the normal images.
        kinds: kinds of lesions, as [a,b] (default: {KINDS})
        sizes: diameters, as shares of the image's shorter side
        contrasts: strength of the lesions, as a share of the image's grey range, or of the tissue replaced
        localise: also measure whether heatmaps point at the lesions; takes twice the time
        images: greatest number of normals to paste into; 0 for all
        seed: decides the lesions' places and forms
        out: the file of results, with pictures in the same folder (default: stress.json in RUN, where
            `dia report` finds it)
        format: file format of the figure
        overwrite: replace a different test in --out
        rate: where the threshold is.
        output: how to print the result.

    Examples:
        dia stress runs/mine scans/normal
        dia stress runs/mine scans/other --false_alarm_rate 0.01 --localise
        dia stress runs/mine scans/normal --kinds [nodule,haze] --sizes [0.1,0.2,0.4]
    """
    from ..evaluate import stress as test
    from ..report import render
    from ..report.figures import detection_curves, sentences, smallest_table
    from ..report.pictures import sheet
    from ..report.style import save

    path = Path(out or Path(model.run) / STRESS)
    if path.suffix != ".json":
        raise DataError(f"--out {out}: the name must end in .json")
    detector = model.load()
    share = rate.of(detector)
    plan = test.Plan(tuple(kinds or KINDS), tuple(sizes), tuple(contrasts), seed)
    ground = test.untrained_normals(detector, data.read_for(detector), images)
    identity = test.identity_of(detector, ground, seed, share, localise)
    kept = test.load_same(path, identity) if path.exists() and not overwrite else None
    own = "held out for calibration" if ground.source == "calibration" else "not those it was fitted on"
    remark(f"{detector.method}: pasting lesions into {len(ground.images)} normal images, {own}")
    with Progress(console=err, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Kinds × sizes × contrasts", total=len(plan.cells()))

        def keep(made: dict[str, Any]) -> None:
            test.keep_stress(path, made)
            bar.update(task, advance=1)

        measured = test.stress(detector, ground, plan, share, localise=localise, kept=kept, on_cell=keep)
    figure = save(partial(detection_curves, measured), path.with_suffix(f".{format}"))
    lesions = sheet(
        path.with_name(f"{path.stem}-lesions.png"),
        test.pasted_examples(detector, ground.images, plan),
        [f"contrast {c:g}" for c in plan.contrasts],
    )
    if output.json:
        found = {
            kind: {f"{c:g}": {"size": s, "surely": sure} for c, (s, sure) in of.items()}
            for kind, of in test.smallest(measured).items()
        }
        facts = {"smallest": found, "figure": str(figure), "lesions": str(lesions)}
        return output.show(measured | facts)
    result("Smallest lesion found in 80 % of the images:")
    console.print(render.console(smallest_table(measured)))
    result(
        "As a share of the shorter side (and in pixels). –: none of those tested. ?: the 95 % interval "
        "reaches below 80 %."
    )
    for line in (*sentences(measured), path, figure, lesions):
        result(str(line))
    return None


def select(
    data: TrainingImages,
    *,
    methods: Sequence[str] = ("trivial:hog", "trivial:statistics", "trivial:blur", "csi", "dia+"),
    presets: Sequence[Preset] = ("cpu",),
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

    The normals are split: each candidate is fitted on one part and ranked by lesions pasted into another; the
    choice is judged on a third. The result is the lesion AUROC of each candidate with its interval over the
    splits, the candidates that cannot be distinguished from the first, and the AUROC to expect of the choice.

    Lesions are not disease. Within one family of methods this is a weak guide; across families it misleads.
    Results are kept in --work, and the same command continues.

    Args:
        data: the normal images.
        methods: names of `dia methods`, as [a,b]
        presets: presets to try of each method: cpu, gpu, paper
        vary: values of a method's settings, tried in all combinations, as '{csi: {amplify.steps: [60, 180]}}'
        fuse: also try fusions of up to this many candidates, by their conformal p-values; costs no fit
        splits: 1 to 5; each fits every candidate once
        seed: decides splits, detectors and lesions
        size: read images as squares of this side, as `dia fit`
        channels: 1 or 3 (default: as the images are)
        work: folder of finished stages; safe to delete
        out: file of results
        device: where to train.
        output: how to print the result.

    Examples:
        dia select scans/normal --methods [trivial:hog,trivial:blur,trivial:statistics] --fuse 2
        dia select scans/normal --methods [csi] --vary '{csi: {amplify.steps: [60, 180, 540]}}'
        dia select pneumoniamnist --data_root data --methods [csi,dia,dia+] --presets [cpu,gpu]
    """
    from ..detectors.presets import MAX_SIZE
    from ..evaluate.selection import candidates, fit_command, measure_all, warning

    wanted = {c.name: c for c in candidates(methods, presets, vary)}
    if fuse < 0 or fuse == 1:
        raise DataError(f"--fuse must be 0, or 2 and more, not {fuse}")
    sides: dict[str, int] = {preset: MAX_SIZE[preset] for preset in presets}
    by_side = {
        side: data.read(size=size, max_size=side, channels=channels).normals() for side in set(sides.values())
    }
    normals = {preset: by_side[side] for preset, side in sides.items()}
    count = len(normals[presets[0]])
    remark(f"{len(wanted)} candidates × {splits} splits of {count} normal images; labels are not looked at")
    found = measure_all(
        [*wanted.values()], normals, splits, seed=seed, fuse=fuse, device=device.device, workdir=Path(work),
        progress=sys.stderr.isatty(),
        on_run=lambda name, split: remark(f"{name}: split {split + 1} of {splits}"),
    )  # fmt: skip
    parts = found["members"].get(found["choice"], (found["choice"],))
    found |= {
        "data": data.data, "normals": count, "splits": splits, "seed": seed,
        "fit": [fit_command(data.data, wanted[name]) for name in parts], "warning": warning(found),
    }  # fmt: skip
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")
    if output.json:
        return output.show(found)
    _show_selection(found)
    return result(out)


def _show_selection(found: Mapping[str, Any]) -> None:
    """Prints the result of `choose` as a table, and the choice."""

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
        f"lesion AUROC of the choice, on normals that were not used to choose: {worth}",
    ]
    if like := found["like_it"]:
        said.append(f"not distinguishable from the first by these splits: {', '.join(like)}")
    for line in [*said, *found["fit"], f"warning: {found['warning']}"]:
        result(line)
