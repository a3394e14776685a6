"""`dia score`, `dia evaluate` and `dia report`: a model on images, as rows, as numbers and as a page."""

from __future__ import annotations

import hashlib
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from jsonargparse.typing import OpenUnitInterval, PositiveInt
from rich.progress import Progress

from ..core.errors import DataError
from ..deploy.drift_monitor import DriftMonitor
from ..deploy.scorefile import ScoreFile, write_heatmaps
from ..deploy.scoring import BATCH, EXECUTORS, Job, hash_of, load_model
from ..detectors.drift import RATE, SHARE
from ..evaluate.volume_scores import TOP_K
from .options import Cluster, Device, Images, Model, Output, Rate, err, finite, remark, remark_skipped, result


def score(
    run: str,
    images: Images,
    *,
    out: str = "scores.csv",
    heatmaps: str | None = None,
    top_k: PositiveInt = TOP_K,
    drift_rate: OpenUnitInterval = RATE,
    anomalous_up_to: float = SHARE,
    batch: PositiveInt = BATCH,
    resume: bool = False,
    rate: Rate,
    device: Device,
    cluster: Cluster,
    output: Output,
) -> None:
    """Score images: one row each of path, score, p_value, flagged.

    A higher score is more anomalous, on the method's own scale. The p-value is the share of held-out normals,
    including the image itself, that score at least as high; an image is flagged if its p-value is at most the
    false-alarm rate. Files are read, scored and written batch by batch, so memory does not grow with their
    number. If the images differ as a whole from the training normals (scanner, window, size), a warning says
    so; scores are written all the same.

    Args:
        run: a folder written by `dia fit`, or an .onnx file by `dia export`
        images: what to score.
        out: file of the rows: .csv or .jsonl
        heatmaps: folder for a heatmap PNG of each image, under the image's own path; all have one colour
            scale, which the first batch sets
        top_k: number of slices whose mean is a volume's second score, in NAME.volumes.csv for --out NAME.csv
        drift_rate: false-alarm rate of the drift alarm: the share of runs with images like the training
            normals that raise it
        anomalous_up_to: share of the images that may be anomalous, in any way, without raising that alarm; a
            smaller share makes it more sensitive, 0 is for batches of normals
        batch: images read and scored at a time
        resume: continue an interrupted run of the same --out
        rate: where the threshold is.
        device: where to score.
        cluster: on which machines to score.
        output: how to print the result.

    Examples:
        dia score runs/mine scans/new --out scores.csv
        dia score runs/mine scans/new --heatmaps maps --false_alarm_rate 0.01
        dia score runs/mine archive --out scores.jsonl --skip_bad --resume
        dia score runs/mine archive --executor ray --ray_address HOST:PORT
        dia score mine.onnx scans/new  # a model exported by `dia export`: needs no torch
    """
    if not out.endswith((".csv", ".jsonl")):
        raise DataError(f"--out {out}: the name must end in .csv or .jsonl")
    if not 0 <= anomalous_up_to < 1:
        raise DataError(f"--anomalous_up_to must lie in [0, 1), not {anomalous_up_to}")
    detector = load_model(run, device=device.device if cluster.executor == "local" else "cpu")
    share = rate.of(detector)
    threshold = detector.threshold(share)
    listing = images.listing_for(detector)
    about = {
        "model": hash_of(Path(run)), "data": images.data, "split": images.split,
        "list of images": f"{len(listing)}, {hashlib.sha256(repr(listing.names).encode()).hexdigest()[:16]}",
        "false-alarm rate": share, "threshold": finite(threshold), "--heatmaps": heatmaps,
        "--window": images.options().as_fitted(detector.facts_).window,
    }  # fmt: skip
    rows = ScoreFile(Path(out), about, listing.names, batch, resume=resume, gaps=images.skip_bad)
    monitor = DriftMonitor(
        detector, listing.names, listing.volumes, rate=drift_rate, share=anomalous_up_to,
        before=rows.noted, resumed=rows.start > 0,
    )  # fmt: skip
    job = Job(
        run, detector, listing, rows.start, batch, heatmaps is not None, device.device, images.workers,
        cluster.ray_address,
    )  # fmt: skip
    first_bad = ""
    done = rows.start
    if resume:
        remark(f"going on after {done} of {len(listing)} images")
    with (
        rows,
        Progress(console=err, disable=not sys.stderr.isatty()) as bar,
        closing(EXECUTORS[cluster.executor](job)) as batches,
    ):
        shown = bar.add_task("Scoring", total=len(listing), completed=done)
        for names, scores, maps, skipped, acquisition in batches:
            remark_skipped(skipped)
            first_bad = first_bad or (skipped[0] if skipped else "")
            if heatmaps and len(names):
                if maps is None:
                    raise DataError(f"{detector.method} has no heatmaps; fit dia+ for them")
                write_heatmaps(maps, names, Path(heatmaps), rows)
            p = detector.p_values(scores)
            done += len(names) + len(skipped)
            monitor.add(names, scores, acquisition)
            rows.note(done, monitor.state())
            rows.append([
                (name, float(s), round(float(q), 6), bool(s > threshold))
                for name, s, q in zip(names, scores, p, strict=True)
            ])  # fmt: skip
            bar.update(shown, completed=done)
        if not rows.rows:
            raise DataError(f"none of {len(listing)} images could be read; the first: {first_bad}")
        of_volumes = rows.write_volumes(listing.names, listing.volumes, top_k, detector.p_values)
        rows.finish()
    facts = {"out": out, "images": rows.rows, "flagged": rows.flagged, "skipped": len(listing) - rows.rows,
             "threshold": finite(threshold), "false_alarm_rate": share}  # fmt: skip
    if of_volumes:
        facts |= {"volumes": of_volumes, "volumes_out": str(rows.volumes)}
    drift = monitor.verdict()
    if drift["alarm"] is not False:
        remark(drift["words"], "bold red" if drift["alarm"] else "yellow")
    output.show(facts | {"drift": drift if output.json else drift["words"].partition(":")[0]})


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

    With masks and a method that has heatmaps, also pixel AUROC and PRO. All numbers come from raw scores: the
    labels choose no threshold, no normalisation and no sign. Their context follows: the best untrained row on
    the same images, near-duplicates within the test and of training images, class balance, which class is
    normal, and a warning where the scores rank the other way.

    Args:
        model: the model to measure.
        images: the labelled images to measure it on.
        ledger: append a line to this file, e.g. results/runs.jsonl
        normals: the training normals, as a path or known set, to fit the untrained rows on and to look for
            copies; default: the ledger's rows of the same images, or else where the model was fitted
        compare: show the context: best untrained row, copies, balance, direction
        output: how to print the result.

    Examples:
        dia evaluate runs/mine scans
        dia evaluate runs/mine scans/labelled --normal healthy --split all --json
        dia evaluate runs/csi pneumoniamnist --data_root data --ledger results/runs.jsonl
    """
    from ..benchmark.ledger import Ledger
    from ..benchmark.runs import record, score_set
    from ..evaluate.volume_scores import volume_metrics
    from ..report.gather import evaluation_context

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
        found = evaluation_context(
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

    Where the images have labels, the page shows numbers with intervals, curves, calibration, pictures with
    heatmaps, and a comparison with the untrained rows; else it shows the highest scores. It needs no network.

    `dia report benchmark` is another command: the table of a benchmark, drawn from the ledger; see
    `dia report benchmark --help`.

    Args:
        model: the model that the page is about.
        images: the images that the model scores.
        out: the page to write
        compare: fit the untrained rows on the model's normals, for comparison, where the images have labels
        rate: the threshold.

    Examples:
        dia report runs/mine scans
        dia report runs/mine scans/new --out new.html --false_alarm_rate 0.01
        dia report benchmark --ledger results/runs.jsonl --out results/benchmark
    """
    from ..core.modelfiles import STRESS
    from ..report.gather import compare_trivial, training_normals, write_run_report

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
