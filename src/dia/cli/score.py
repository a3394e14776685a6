"""`dia score`, `dia evaluate` and `dia report`: a model on images, as rows, as numbers and as a page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from ..core.errors import DataError
from ..core.running.progress import Bar
from ..deploy.findings.run import Findings, forget
from ..deploy.heatmaps import Form, HeatmapFiles, MaskForm
from ..deploy.scorefile import FIELDS, ScoreFile
from ..deploy.scoring import BATCH, EXECUTORS, Job, load_model, stamp_of, unchanged
from ..detectors.drift import RATE, SHARE
from ..evaluate.drift_monitor import DriftMonitor
from ..evaluate.volume_scores import TOP_K
from .options import (
    Cluster,
    Device,
    Images,
    Judged,
    Model,
    Output,
    Rate,
    finite,
    remark,
    remark_skipped,
    result,
)  # fmt: skip


def score(
    run: str,
    images: Images,
    *,
    out: str = "scores.csv",
    only_flagged: bool = False,
    max: PositiveInt | None = None,
    heatmaps: str | None = None,
    heatmaps_as: Sequence[Form] = ("overlay",),
    findings: str | None = None,
    masks: str | None = None,
    masks_as: Sequence[MaskForm] = ("png",),
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
    """Score images: one row each of path, score, p_value, flagged, and the further columns of a manifest.

    A higher score is more anomalous, on the method's own scale. The p-value is the share of held-out normals,
    including the image itself, that score at least as high; an image is flagged if its p-value is at most the
    false-alarm rate. Files are read, scored and written batch by batch, so memory does not grow with their
    number. If the images differ as a whole from the training normals (scanner, window, size), a warning says
    so; scores are written all the same.

    Args:
        run: a folder written by `dia fit`, or an .onnx file by `dia export`
        images: what to score.
        out: file of the rows: .csv or .jsonl
        only_flagged: keep the rows of flagged images alone; all images count for drift and volumes
        max: score at most so many images, the first ones
        heatmaps: folder for a heatmap of each image, under the image's own path and name; all have one colour
            scale, and a contour around what is higher than nearly all normal images are anywhere
        heatmaps_as: what to write there, as [overlay,npy]: overlay (PNG: the image at its own size under the
            heatmap, with the scale), beside (PNG: the plain image, then the overlay), npy or tiff (float32:
            the heatmap itself, at the image's own size)
        findings: file of the places that are higher in a heatmap than nearly all normal images are anywhere
            (the false-alarm rate says how many), each with box, contour, area (mm² where known) and p-value,
            joined across the slices of a volume: .json (as COCO) or .csv
        masks: folder for masks of these findings, under the image's own path and name
        masks_as: what to write there, as [png,nifti,seg]: png (white on black, at the image's own size),
            nifti (for volumes and DICOM series, in the geometry of the source, with the lesions' numbers) or
            seg (DICOM SEG, for DICOM files; it names the patient, as they do)
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
        dia score runs/mine scans/new --heatmaps maps --heatmaps_as [beside,tiff] --only_flagged
        dia score runs/mine scans/new --findings findings.json --masks masks --masks_as [png,nifti]
        dia score runs/mine archive --out scores.jsonl --skip_bad --resume
        dia score runs/mine archive --executor ray --ray_address HOST:PORT
        dia score mine.onnx scans/new  # a model exported by `dia export`: needs no torch
    """
    if not out.endswith((".csv", ".jsonl")):
        raise DataError(f"--out {out}: the name must end in .csv or .jsonl")
    if not 0 <= anomalous_up_to < 1:
        raise DataError(f"--anomalous_up_to must lie in [0, 1), not {anomalous_up_to}")
    with unchanged(Path(run)) as named:
        detector = load_model(run, device=device.device if cluster.executor == "local" else "cpu")
    share = rate.of(detector)
    threshold = detector.threshold(share)
    listing = images.listing_for(detector)
    if max is not None:
        listing = listing.part(0, max)
    about = {
        "model": named, "data": images.data, "split": images.split,
        "list of images": f"{len(listing)}, {hashlib.sha256(repr(listing.names).encode()).hexdigest()[:16]}",
        "content of the images (size or time of a file)": stamp_of(listing),
        "false-alarm rate": share, "threshold": finite(threshold), "--heatmaps": heatmaps,
        "--heatmaps_as": [*heatmaps_as],
        **({"--findings or --masks": True} if findings or masks else {}),
        "--window": (options := images.options().as_fitted(detector.facts_)).window,
        "--axis": options.view.axis, "--slices": options.slices, "--channel": options.channel,
    }  # fmt: skip
    from ..report.pictures import scale_of

    wanted = Findings.of(findings, masks, masks_as, detector, share)
    if wanted and wanted.why_none:
        remark(wanted.why_none, "yellow")
    first_bad, extra = "", _copied(listing.extra)
    with (
        wanted or nullcontext(),
        ScoreFile(
            Path(out), about, listing.names, batch, resume=resume, gaps=images.skip_bad, extra=extra
        ) as rows,
    ):
        monitor = DriftMonitor(
            detector, listing.names, listing.volumes, units=listing.units, rate=drift_rate,
            share=anomalous_up_to, before=rows.noted, resumed=rows.start > 0,
        )  # fmt: skip
        job = Job(
            run, detector, listing, rows.start, batch, bool(heatmaps or wanted), device.device,
            images.workers, cluster.ray_address, named,
        )  # fmt: skip
        done, fitted_on = rows.start, 0
        if resume:
            remark(f"going on after {done} of {len(listing)} images")
        files = HeatmapFiles(Path(heatmaps), heatmaps_as, listing, done) if heatmaps else None
        if wanted:
            wanted.begin(Path(out), listing, done, rows.rows)
        colours = detector.heat_
        level = None if colours is None else finite(colours.level(share))
        with (
            Bar("Scoring", len(listing), "image") as bar,
            closing(EXECUTORS[cluster.executor](job)) as batches,
        ):
            bar.update(done)
            for names, scores, maps, skipped, acquisition, seen, sizes in batches:
                remark_skipped(skipped)
                fitted_on += 0 if seen is None else int(seen.sum())
                first_bad = first_bad or (skipped[0] if skipped else "")
                if (files or wanted) and len(names) and maps is None:
                    raise DataError(f"{detector.method} has no heatmaps; fit dia+ for them")
                if wanted and maps is not None:
                    rows.check()
                    wanted.add(names, maps, sizes)
                if files and maps is not None and len(names):
                    if (scale := rows.scale) is None:
                        scale = rows.keep_scale(scale_of(maps) if colours is None else colours.scale)
                    rows.check()
                    files.write(names, maps, scale, level)
                p = detector.p_values(scores)
                done += len(names) + len(skipped)
                monitor.add(names, scores, acquisition)
                rows.note(done, monitor.state())
                rows.append([
                    (name, float(s), round(float(q), 6), bool(s > threshold))
                    for name, s, q in zip(names, scores, p, strict=True)
                ])  # fmt: skip
                bar.update(done)
        if not rows.rows:
            raise DataError(f"none of {len(listing)} images could be read; the first: {first_bad}")
        of_volumes = rows.write_volumes(listing.names, listing.volumes, top_k, detector.p_values)
        found, left = dict[str, Any](), list[str]()
        if wanted:
            found, left = wanted.write({"model": about["model"], "method": detector.method})
        rows.finish(only_flagged=only_flagged)
        forget(Path(out))
    facts = {"out": out, "images": rows.rows, "flagged": rows.flagged, "skipped": len(listing) - rows.rows,
             "threshold": finite(threshold), "false_alarm_rate": share}  # fmt: skip
    if listing.unread:
        facts["not_read"] = sum(kind.files for kind in listing.unread)
    facts |= found
    for line in left:
        remark(line, "yellow")
    if of_volumes:
        facts |= {"volumes": of_volumes, "volumes_out": str(rows.volumes)}
    if fitted_on:
        remark(f"the model was fitted on {fitted_on} of the images: their p-values say little", "yellow")
    drift = monitor.verdict()
    if drift["alarm"] is not False:
        remark(drift["words"], "bold red" if drift["alarm"] else "yellow")
    output.show(facts | {"drift": drift if output.json else drift["words"].partition(":")[0]})


def _copied(extra: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Says which further columns of a manifest are copied: those that have no name of ours."""
    columns = list(next(iter(extra.values()), ()))
    ours = [name for name in columns if name.casefold() in FIELDS]
    if copied := [name for name in columns if name not in ours]:
        remark(f"copied from the manifest: {', '.join(copied)}")
    if ours:
        remark(f"not copied, as dia writes columns of these names: {', '.join(ours)}", "yellow")
        extra = {n: {k: v for k, v in of.items() if k not in ours} for n, of in extra.items()}
    return extra


def evaluate(
    model: Model,
    images: Judged,
    *,
    ledger: str | None = None,
    normals: str | None = None,
    compare: bool = True,
    output: Output,
) -> None:
    """Measure a model on labelled images: AUROC with its interval, AP, FPR at 95 % TPR.

    With masks and a method that has heatmaps, also pixel AUROC and PRO. All numbers come from raw scores: the
    labels choose no threshold, no normalisation and no sign. All images given are judged, but for those that
    the model was fitted on, which are found by their pixels. The context of the numbers follows: the best
    untrained row on the same images, near-duplicates within the test and of training images, class balance,
    which class is normal, and a warning where the scores rank the other way.

    Args:
        model: the model to measure.
        images: the labelled images to measure it on.
        ledger: append a line to this file, e.g. results/runs.jsonl; the line is of all images of the test
            split, so that it can be compared with others
        normals: the training normals, as a path or known set, to fit the untrained rows on and to look for
            copies; default: the ledger's rows of the same images, or else where you fitted the model, or the
            known set that it names
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
    found, listing = images.unseen(detector, keep=ledger is not None, labelled=True)
    test = found.images
    if test.labels is None or not 0 < test.labels.sum() < len(test):
        raise DataError(
            f"{images.data}: a class is empty without the images that the model was fitted on; give others, "
            "or keep them with --keep-seen"
        )
    scored = score_set(detector, test)
    if ledger:
        Ledger(ledger).append(record(detector, scored, test, images.data))
    facts = {"dataset": images.data, "method": detector.method, **found.counts(), **(scored.metrics or {}),
             "images_per_second": round(scored.images_per_second, 1)}  # fmt: skip
    if test.volumes and test.labels is not None:
        facts |= volume_metrics(test.labels, scored.scores, test.volumes, patients=test.patients)
    lines: list[str] = []
    if compare:
        beside = evaluation_context(
            detector, test, scored, dataset=images.data, normal=images.normal,
            data_root=images.data_root, given=normals, ledger=ledger, say=remark, files=listing.files,
        )  # fmt: skip
        if output.json:
            facts["beside"] = beside
        else:
            judged = beside["verdict"]
            lines = [*(f["words"] for f in judged["findings"]), *beside["sentences"]]
    output.show(facts)
    if lines:
        result(judged["headline"])
    for line in lines:
        result(f"- {line}")


def report(
    model: Model,
    images: Judged,
    *,
    out: str = "report.html",
    normals: str | None = None,
    compare: bool = True,
    curve: bool = False,
    rate: Rate,
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
        normals: the training normals, as a path or known set, for the untrained rows and the curve; default:
            where you fitted the model, or the known set that it names
        compare: fit the untrained rows on the model's normals, for comparison, where the images have labels
        curve: fit on fewer and fewer of the model's normals too, and draw whether more would help; with dia+
            alone, some two dozen fits
        rate: the threshold.

    Examples:
        dia report runs/mine scans
        dia report runs/mine scans/new --out new.html --false_alarm_rate 0.01
        dia report benchmark --ledger results/runs.jsonl --out results/benchmark
    """
    from ..core.modelfiles import STRESS
    from ..report.gather import compare_trivial, curve_of, training_normals, write_run_report

    detector = model.load()
    if curve and not detector.leaves_one_out:
        raise DataError(f"--curve is for dia+: each of its fits of {detector.method} would train anew")
    found, listing = images.unseen(detector)
    test = found.images
    comparison: list[dict[str, Any]] = []
    training = None
    points: list[Any] = []
    if (compare or curve) and test.labels is not None:
        training = training_normals(detector, images.data_root, normals, images.normal, judged=images.data)
        if training is None:
            what = " and the curve" if curve else ""
            remark(f"the trivial rows{what} are left out: name the training images with --normals")
    if training is not None and compare:
        comparison = compare_trivial(training, test, detector.seed)
    if training is not None and curve:
        points = curve_of(detector, training, test)
    path = write_run_report(
        Path(out),
        detector,
        test,
        dataset=images.data,
        false_alarm_rate=rate.of(detector),
        comparison=comparison,
        stress=Path(model.run) / STRESS,
        normals=training,
        curve=points,
        normal=images.normal,
        notes=[found.remark()] if found.remark() else [],
        files=listing.files,
    )
    Output().show({"out": str(path)})
