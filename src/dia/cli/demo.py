"""`dia demo`: the whole job on phantoms. Fits the default and its rivals, compares, draws, reports."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..benchmark.runs import Scored, run
from ..data import phantoms
from ..data.imageset import ImageSet
from ..detectors import Detector
from ..detectors.calibration import FALSE_ALARM_RATE
from ..detectors.registry import DEFAULT, TRIVIAL
from ..report.context import against_untrained, best_of
from ..report.gather import comparison_row, write_run_report
from ..report.pictures import colour, dissolved_columns, sheet
from .options import Device

PLACES = f"{DEFAULT} places"
ABOUT = f"{PLACES} is {DEFAULT} with the setting whole: false, as lesions are small here."
KEPT = ("auroc", "auroc_ci", "ap", "fpr95", "pixel_auroc", "pro", "fit_seconds")


def demo(*, out: str = "demo", seed: int = 0, device: Device) -> None:
    """Do the whole job on generated images: fit, compare, draw, report.

    About six minutes on two cores; nothing is downloaded. The same command goes on after an interruption.
    Open OUT/report.html at the end.

    Args:
        out: folder of model, report and pictures
        seed: decides every random draw
        device: where to train.

    Examples:
        dia demo
        dia demo --out elsewhere --seed 1
    """
    run_demo(Path(out), seed=seed, device=device.device)


def run_demo(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Runs the demo into `out`: `metrics.json`, `report.html`, `pictures.png`, and the model in `run/`.

    The lesions of phantoms are small, so the model that is kept looks for places alone; the default is beside
    it. Every method fits on the same 1000 generated normals; labels and masks are used for the numbers only.
    An interrupted demo goes on with the stages it finished.
    """
    say = Console(stderr=True, highlight=False)
    train, test = phantoms.load("train"), phantoms.load("test")
    say.print(f"{len(train)} normal phantoms to fit on; {len(test)} to score, half of them with a lesion")
    start = time.perf_counter()
    metrics: dict[str, Any] = {}
    kept: dict[str, tuple[Detector, Scored]] = {}

    def keep(detector: Detector, scored: Scored) -> None:
        kept[PLACES] = detector, scored

    for name in (PLACES, DEFAULT, "dia", "csi", *TRIVIAL):
        line = run(
            "phantom", train, test, DEFAULT if name == PLACES else name, seed=seed, device=device,
            workdir=out / "work", progress=sys.stderr.isatty(),
            changes={"whole": False} if name == PLACES else None,
            on_fitted=keep if name == PLACES else None,
        )  # fmt: skip
        metrics[name] = {k: line[k] for k in KEPT if k in line}
        say.print(f"{name}: AUROC {line['auroc']:.3f}, fit {line['fit_seconds']:.0f} s")
    detector, scored = kept[PLACES]
    detector.save(out / "run")
    rows = [comparison_row(m, v) for m, v in metrics.items()]
    report = write_run_report(
        out / "report.html", detector, test, dataset="phantom (generated)", false_alarm_rate=FALSE_ALARM_RATE,
        comparison=rows, scored=scored, normals=train, name=PLACES, notes=[ABOUT],
    )  # fmt: skip
    pictures(out / "pictures.png", detector, test, scored)
    # fits of an earlier, interrupted demo count too; the fit of dia counts the dissolver that all share
    fits = metrics["dia"]["fit_seconds"] + metrics["csi"]["fit_seconds"]
    seconds = max(time.perf_counter() - start, fits)
    result = metrics | {"default": DEFAULT, "kept": PLACES, "seconds": round(seconds, 1)}
    (out / "metrics.json").write_text(json.dumps(result, indent=2))

    table = Table("method", "image AUROC", "95 % interval", "pixel AUROC", "fit, s")
    for method, m in sorted(metrics.items(), key=lambda item: -item[1]["auroc"]):
        low, high = m["auroc_ci"]
        pixel = f"{m['pixel_auroc']:.3f}" if "pixel_auroc" in m else "–"
        style = "bold" if method == PLACES else ""
        table.add_row(
            method,
            f"{m['auroc']:.3f}",
            f"{low:.3f} – {high:.3f}",
            pixel,
            f"{m['fit_seconds']:.0f}",
            style=style,
        )
    plain = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    plain.print(table)
    best = best_of(rows, "fitted on the same normals")
    for method in (PLACES, DEFAULT):
        if best is not None:
            plain.print(against_untrained(method, metrics[method], best))
    plain.print(ABOUT)
    plain.print(f"report: {report}", soft_wrap=True)
    return result


def pictures(path: Path, detector: Detector, test: ImageSet, scored: Scored) -> Path:
    """One row per lesion kind and one of a normal image: dissolved at four t, heatmap, truth."""
    kinds = np.array([name.split("/")[0] for name in test.names])
    index = []
    for kind in ("normal", *phantoms.LESIONS):
        of_kind = np.flatnonzero(kinds == kind)
        order = of_kind[np.argsort(scored.scores[of_kind])]
        index.append(order[len(order) // 2 if kind == "normal" else -len(order) // 5])
    chosen = test.subset(np.array(index))
    columns = [("image", chosen.images)]
    if hasattr(detector, "dissolver_"):
        columns = dissolved_columns(detector.dissolver_, chosen.images)
    if scored.heatmaps is not None:
        columns.append(("heatmap", colour(scored.heatmaps)[index]))
    if chosen.masks is not None:
        columns.append(("truth", chosen.masks))
    return sheet(path, columns, [str(k).replace("_", " ") for k in kinds[index]])
