"""`dia demo`: the whole job on generated images: fit the default and its rivals, compare, draw, report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..detectors.calibration import FALSE_ALARM_RATE
from ..detectors.registry import DEFAULT, TRIVIAL
from .options import Device, remark, result
from .options import out as console

if TYPE_CHECKING:
    from ..benchmark.runs import Scored
    from ..data.imageset import ImageSet
    from ..detectors import Detector

PLACES = f"{DEFAULT} places"
SHORT = {"amplify.steps": 60}  # of dia, which takes most of the time
ABOUT = (
    f"{PLACES} is {DEFAULT} with the setting whole: false, as lesions are small here; dia trains for "
    "fewer steps than by default."
)
KEPT = ("auroc", "auroc_ci", "ap", "fpr95", "pixel_auroc", "pro", "fit_seconds")


def demo(*, out: str = "demo", seed: int = 0, device: Device) -> None:
    """Do the whole job on generated images: fit, compare, draw, report.

    Every method fits on the same 1000 generated normals; labels and masks are used for the numbers only. The
    lesions are small, so the model that is kept looks at single places; the default is compared with it. This
    takes under three minutes on two cores, and nothing is downloaded. The same command goes on after an
    interruption. Open OUT/report.html at the end.

    Args:
        out: folder of model, report and pictures
        seed: decides every random draw
        device: where to train.

    Examples:
        dia demo
        dia demo --out elsewhere --seed 1
    """
    from ..benchmark.runs import run
    from ..data import phantoms
    from ..report.context import against_untrained, best_of
    from ..report.gather import comparison_row, write_run_report

    folder = Path(out)
    train, test = phantoms.load("train"), phantoms.load("test")
    remark(f"{len(train)} normal phantoms to fit on; {len(test)} to score, half of them with a lesion")
    start = time.perf_counter()
    metrics: dict[str, Any] = {}
    kept: list[tuple[Detector, Scored]] = []
    for name in (PLACES, DEFAULT, "dia", *TRIVIAL):
        own: dict[str, Any] = {"method": name}
        if name == PLACES:
            own = {"method": DEFAULT, "changes": {"whole": False}}
        if name == "dia":
            own["changes"] = SHORT
        if name in (PLACES, "dia"):
            own["on_fitted"] = lambda *made: kept.append(made)
        line = run(
            "phantom", train, test, seed=seed, device=device.device, workdir=folder / "work",
            progress=True, **own,
        )  # fmt: skip
        metrics[name] = {k: line[k] for k in KEPT if k in line}
        remark(f"{name}: AUROC {line['auroc']:.3f}, fit {line['fit_seconds']:.0f} s")
    (detector, scored), (dissolving, _) = kept
    detector.save(folder / "run")
    rows = [comparison_row(m, v) for m, v in metrics.items()]
    report = write_run_report(
        folder / "report.html", detector, test, dataset="phantom (generated)",
        false_alarm_rate=FALSE_ALARM_RATE, comparison=rows, scored=scored, normals=train, name=PLACES,
        notes=[ABOUT],
    )  # fmt: skip
    _draw(folder / "pictures.png", dissolving, test, scored)
    # fits of an earlier, interrupted demo count too
    seconds = round(max(time.perf_counter() - start, metrics["dia"]["fit_seconds"]), 1)
    facts = metrics | {"default": DEFAULT, "kept": PLACES, "seconds": seconds}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=2))

    table = Table("method", "image AUROC", "95 % interval", "pixel AUROC", "fit, s")
    for method, m in sorted(metrics.items(), key=lambda item: -item[1]["auroc"]):
        interval = " – ".join(f"{end:.3f}" for end in m["auroc_ci"])
        pixel = f"{m['pixel_auroc']:.3f}" if "pixel_auroc" in m else "–"
        style = "bold" if method == PLACES else ""
        table.add_row(method, f"{m['auroc']:.3f}", interval, pixel, f"{m['fit_seconds']:.0f}", style=style)
    console.print(table)
    best = best_of(rows, "fitted on the same normals")
    if best is not None:
        for method in (PLACES, DEFAULT):
            result(against_untrained(method, metrics[method], best))
    for text in (ABOUT, f"report: {report}"):
        result(text)


def _draw(path: Path, dissolving: Any, test: ImageSet, scored: Scored) -> None:
    """Draws a normal image and one of each kind of lesion, dissolved at four t, with heatmap and truth."""
    from ..data import phantoms
    from ..report.pictures import colour, dissolved_columns, sheet

    kinds = np.array([name.split("/")[0] for name in test.names])
    index = []
    for kind in ("normal", *phantoms.LESIONS):
        of_kind = np.flatnonzero(kinds == kind)
        order = of_kind[np.argsort(scored.scores[of_kind])]
        index.append(order[len(order) // 2 if kind == "normal" else -len(order) // 5])
    chosen = test.subset(np.array(index))
    columns = dissolved_columns(dissolving.dissolver_, chosen.images)
    if scored.heatmaps is not None:
        columns.append(("heatmap", colour(scored.heatmaps)[index]))
    if chosen.masks is not None:
        columns.append(("truth", chosen.masks))
    sheet(path, columns, [str(k).replace("_", " ") for k in kinds[index]])
