"""`dia stress`: lesions are pasted into normal images, to see how fine a model sees."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt
from rich.progress import Progress

from ..core.errors import DataError
from ..core.modelfiles import STRESS
from ..core.storage import Owner
from ..data.lesions import CONTRASTS, KINDS, SIZES
from ..deploy.outputs import check_outputs
from .options import Model, Normals, Output, Rate, err, remark, result
from .options import out as console


def stress(
    model: Model,
    data: Normals,
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
    keep_seen: bool = False,
    rate: Rate,
    output: Output,
) -> None:
    """Measure how fine a model sees: paste lesions into normal images, count those flagged.

    Lesions of eight kinds, in several sizes and contrasts, are pasted into normal images that the model did
    not train on. Give the images it was fitted on, of which the held-out part is used, or other normals of
    the same kind: those it was fitted on are found by their pixels and left out. Where a model holds none
    out, as dia+ does, a second one is fitted on four fifths of them and tested. The result is the share
    found at the calibrated threshold, with 95 % intervals, and the smallest lesion found in 80 % of the
    images. `dia report` shows it too.

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
        keep_seen: paste into images that the model was fitted on, too
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
    drawn = path.with_suffix(f".{format}"), path.with_name(f"{path.stem}-lesions.png")
    for picture in drawn:
        check_outputs({"--out": str(picture)}, [])
    detector = model.load()
    share = rate.of(detector)
    plan = test.Plan(tuple(kinds or KINDS), tuple(sizes), tuple(contrasts), seed)
    ground = test.untrained_normals(detector, data.read_for(detector), images, keep_seen=keep_seen)
    identity = test.identity_of(detector, ground, seed, share, localise)
    own = {
        "calibration": "held out for calibration",
        "fifth": "a fifth, without which it was fitted anew",
    }.get(ground.source, "not those it was fitted on")
    remark(f"{detector.method}: pasting lesions into {len(ground.images)} normal images, {own}")
    with Owner(path) as owner, Progress(console=err, disable=not sys.stderr.isatty()) as bar:
        # read by its owner alone: another may just have ended
        kept = test.load_same(path, identity) if path.exists() and not overwrite else None
        task = bar.add_task("Kinds × sizes × contrasts", total=len(plan.cells()))

        def keep(made: dict[str, Any]) -> None:
            owner.check()
            test.keep_stress(path, made)
            bar.update(task, advance=1)

        measured = test.stress(detector, ground, plan, share, localise=localise, kept=kept, on_cell=keep)
    figure = save(partial(detection_curves, measured), drawn[0])
    lesions = sheet(
        drawn[1],
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
