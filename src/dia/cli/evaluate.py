"""`dia evaluate` and `dia report`: a model on labelled images, as numbers and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import DataError
from .options import Images, Model, Output, Rate, remark, result


def evaluate(
    model: Model,
    images: Images,
    *,
    ledger: str | None = None,
    normals: str | None = None,
    compare: bool = True,
    output: Output,
) -> None:
    """Measure a model on labelled images: AUROC with its interval, AP, FPR at 95 % TPR.

    And pixel AUROC and PRO, where there are masks and the method has heatmaps. All from raw scores: no
    threshold, no normalisation, no sign is chosen by the labels. Beside them: the best untrained row on the
    same images, near-duplicates within the test and of training images, class balance, which class is normal;
    and a warning where the scores rank the other way.

    Args:
        model: what to measure.
        images: what to measure it on.
        ledger: append a line to this file, e.g. results/runs.jsonl
        normals: the training normals, as a path or known set, to fit the untrained rows on and to look for
            copies; default: the ledger's rows of the same images, or else where the model was fitted
        compare: whether to show what stands beside: best untrained row, copies, balance, direction
        output: how to print the result.

    Examples:
        dia evaluate runs/mine scans
        dia evaluate runs/mine scans/labelled --normal healthy --split all --json
        dia evaluate runs/csi pneumoniamnist --data_root data --ledger results/runs.jsonl
    """
    from ..benchmark.ledger import Ledger
    from ..benchmark.runs import record, score_set
    from ..evaluate.volume_scores import volume_metrics
    from ..report.context import beside

    detector = model.load()
    test = images.read_for(detector)
    scored = score_set(detector, test)
    if scored.metrics is None:
        raise DataError(
            f"{images.data}: evaluation needs labels of both classes (normal and anomalous); "
            f"without labels use `dia score`, or name the normal class with --normal"
        )
    if ledger:
        Ledger(ledger).append(record(detector, scored, test, images.data))
    facts = {"dataset": images.data, "method": detector.method, "images": len(test), **scored.metrics,
             "images_per_second": round(scored.images_per_second, 1)}  # fmt: skip
    if test.volumes and test.labels is not None:
        facts |= volume_metrics(test.labels, scored.scores, test.volumes)
    lines: list[str] = []
    if compare:
        found = beside(
            detector, test, scored.metrics, dataset=images.data, normal=images.normal,
            data_root=images.data_root, given=normals, ledger=ledger, say=remark,
        )  # fmt: skip
        if output.json:
            facts["beside"] = found
        else:
            lines = found["sentences"]
    output.show(facts)
    for line in lines:
        result(f"- {line}")


def report(
    model: Model, images: Images, *, out: str = "report.html", compare: bool = True, rate: Rate
) -> None:
    """Write one self-contained HTML page about a model and the images it scored.

    Numbers with intervals, curves, calibration, pictures with heatmaps, and the untrained rows beside the
    model, where the images have labels; the highest scores where they have none. The page needs no network.

    `dia report benchmark` is another command: the table of a benchmark, drawn from the ledger; see
    `dia report benchmark --help`.

    Args:
        model: what the page is about.
        images: what the model scores.
        out: the page to write
        compare: fit the untrained rows on the model's normals, for comparison, where the images have labels
        rate: where the threshold is.

    Examples:
        dia report runs/mine scans
        dia report runs/mine scans/new --out new.html --false_alarm_rate 0.01
        dia report benchmark --ledger results/runs.jsonl --out results/benchmark
    """
    from ..core.modelfiles import STRESS
    from ..report.context import training_normals
    from ..report.gather import compare_trivial, write_run_report

    detector = model.load()
    test = images.read_for(detector)
    comparison: list[dict[str, Any]] = []
    normals = None
    if compare and test.labels is not None:
        normals = training_normals(detector, images.data_root)
        if normals is None:
            remark("the trivial rows are left out: this model does not say where its training images are")
        else:
            comparison = compare_trivial(normals, test, detector.seed)
    path = write_run_report(
        Path(out),
        detector,
        test,
        dataset=images.data,
        false_alarm_rate=rate.of(detector),
        comparison=comparison,
        stress=Path(model.run) / STRESS,
        normals=normals,
        normal=images.normal,
    )
    Output().show({"out": str(path)})
