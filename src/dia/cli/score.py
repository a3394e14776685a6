"""`dia score`: from images to rows of scores, batch by batch.

Scoring with an exported file needs no torch.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import closing
from pathlib import Path

from rich.progress import Progress

from ..core.errors import DataError
from ..deploy.drift_monitor import Watch
from ..deploy.scorefile import ScoreFile, write_heatmaps
from ..deploy.scoring import BATCH, EXECUTORS, Job, hash_of, load_model
from ..detectors.drift import RATE, SHARE
from ..evaluate.volume_scores import TOP_K
from .options import Cluster, Device, Images, Output, Rate, err, finite, remark, remark_skipped


def score(
    run: str,
    images: Images,
    *,
    out: str = "scores.csv",
    heatmaps: str | None = None,
    top_k: int = TOP_K,
    drift_rate: float = RATE,
    anomalous_up_to: float = SHARE,
    batch: int = BATCH,
    resume: bool = False,
    rate: Rate,
    device: Device,
    cluster: Cluster,
    output: Output,
) -> None:
    """Score images: one row each of path, score, p_value, flagged.

    A higher score is more anomalous, on the method's own scale. The p-value is the share of held-out normals,
    the image itself counted among them, that score at least as high; an image is flagged where it is at most
    the false-alarm rate. Files are read, scored and written batch by batch, so memory does not grow with
    their number. If the images differ as a whole from the normals of training (scanner, window, size), a line
    says so; scores are written all the same.

    Args:
        run: a folder written by `dia fit`, or an .onnx by `dia export`
        images: what to score.
        out: file of the rows: .csv or .jsonl
        heatmaps: folder for a heatmap PNG per image, in the images' own folders and names, all in one scale
            of colours, which the first batch sets
        top_k: slices whose mean is a volume's second score, in NAME.volumes.csv beside --out NAME.csv
        drift_rate: share of runs, at most, that ring the alarm for drift though their images are like the
            normals of training
        anomalous_up_to: share of the images that may be anomalous, in any way, without ringing that alarm;
            less makes it finer, 0 is for batches of normals
        batch: images read and scored at a time
        resume: go on with an interrupted run of the same --out
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
    for flag, value in (("batch", batch), ("top_k", top_k)):
        if value < 1:
            raise DataError(f"--{flag} must be at least 1, not {value}")
    if not 0 < drift_rate < 1:
        raise DataError(f"--drift_rate must lie between 0 and 1, not {drift_rate}")
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
    bad: list[str] = []
    rows = ScoreFile(Path(out), about, listing.names, batch, resume=resume, gaps=images.skip_bad)
    bar = Progress(console=err, disable=not sys.stderr.isatty())
    watch = Watch(
        detector, listing.names, listing.volumes, rate=drift_rate, share=anomalous_up_to,
        before=rows.noted, resumed=rows.start > 0,
    )  # fmt: skip
    done = rows.start
    with rows, bar:
        if resume:
            err.print(f"going on after {rows.start} of {len(listing)} images", highlight=False)
        shown = bar.add_task("Scoring", total=len(listing), completed=rows.start)
        job = Job(
            run, detector, listing, rows.start, batch, heatmaps is not None, device.device, images.workers,
            cluster.ray_address,
        )  # fmt: skip
        with closing(EXECUTORS[cluster.executor](job)) as batches:
            for names, scores, maps, skipped, whole in batches:
                remark_skipped(skipped)
                bad += skipped[: not bad]  # the first is enough
                if heatmaps and len(names):
                    if maps is None:
                        raise DataError(f"{detector.method} has no heatmaps; fit dia+ for them")
                    write_heatmaps(maps, names, Path(heatmaps), rows)
                p = detector.p_values(scores)
                done += len(names) + len(skipped)
                watch.add(names, scores, whole)
                rows.note(done, watch.state())
                rows.append([
                    (name, float(s), round(float(q), 6), bool(s > threshold))
                    for name, s, q in zip(names, scores, p, strict=True)
                ])  # fmt: skip
                bar.update(shown, advance=len(names) + len(skipped))
        if not rows.rows:
            raise DataError(f"none of {len(listing)} images could be read; the first: {bad[0]}")
        of_volumes = rows.write_volumes(listing.names, listing.volumes, top_k, detector.p_values)
        rows.finish()
    facts = {"out": out, "images": rows.rows, "flagged": rows.flagged, "skipped": len(listing) - rows.rows,
             "threshold": finite(threshold), "false_alarm_rate": share}  # fmt: skip
    if of_volumes:
        facts |= {"volumes": of_volumes, "volumes_out": str(rows.volumes)}
    drift = watch.verdict()
    if drift["alarm"] is not False:
        remark(drift["words"], "bold red" if drift["alarm"] else "yellow")
    output.show(facts | {"drift": drift if output.json else drift["words"].partition(":")[0]})
