"""What is done with a fitted model: `dia info`, `calibrate`, `export`, `push` and `serve`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.running.progress import Bar
from ..data.imageset import middle_slices
from ..detectors.calibration import LOOKED, Calibration, HeatScale, effective, fewest_for, one_of_each
from ..serve.limits import Limits
from .options import DataRoot, Device, Images, Model, Output, Rate, Reading, finite, remark, result

if TYPE_CHECKING:
    from ..deploy.recalibrate import Taken  # which imports torch


def info(run: str, *, output: Output) -> None:
    """Say what a model is: trained on what, how many, threshold, curves, versions, size.

    Args:
        run: a folder written by `dia fit`, or an .onnx file by `dia export`
        output: how to print the result.

    Examples:
        dia info runs/mine
        dia info mine.onnx --json
    """
    found = _of_file(Path(run)) if run.endswith(".onnx") else _of_folder(Path(run))
    output.show({n: v for n, v in found.items() if n == "threshold" or v not in (None, "")})


def _of_file(path: Path) -> dict[str, Any]:
    from ..deploy.onnx_model import OnnxModel

    model = OnnxModel(path, device="cpu")
    return {
        "model": str(path), "method": model.method, "calibration_normals": len(model.calibration_.scores),
        "image_shape": "×".join(map(str, model.shape_)), "false_alarm_rate": model.false_alarm_rate,
        "threshold": finite(model.threshold()), "outputs": ", ".join(model.outputs),
        "dia_version": model.facts_.get("version"), "megabytes": round(path.stat().st_size / 2**20, 2),
    }  # fmt: skip


def _of_folder(folder: Path) -> dict[str, Any]:
    from ..core.modelfiles import STRESS, ModelFiles
    from ..detectors import saving
    from ..detectors.calibration import Calibration
    from ..detectors.teaching.taught import said_of

    with saving.naming(folder):
        config, scores = saving.read(ModelFiles(folder))
    facts, rate = config.facts, config.false_alarm_rate
    read, calibration = facts.get("read") or {}, Calibration.of(scores)
    files = [p for p in folder.rglob("*") if p.is_file()]
    if why := calibration.too_few_for(rate):
        remark(why, "yellow")
    versions = facts.get("versions") or {}
    return {
        "model": str(folder), "method": config.method, "preset": facts.get("preset"), "seed": config.seed,
        "fitted_on": facts.get("dataset"), "split": read.get("split"), "normal": read.get("normal"),
        **{name: read.get(name) for name in ("window", "levels", "axis", "slices", "channel", "group_by")},
        "patients": facts.get("patients"),
        "training_normals": config.n_train, "calibration_normals": config.n_calibration,
        "calibrated_on": (facts.get("calibrated") or {}).get("on"),
        "taught": said_of(facts["taught"]) if facts.get("taught") else None,
        "missed_anomalies": _watched(facts.get("taught") or {}),
        "image_shape": "×".join(map(str, config.shape)), "weights": facts.get("weights"),
        "false_alarm_rate": rate, "threshold": finite(calibration.threshold(rate)),
        "fit_seconds": round(config.fit_seconds, 1), "curves": _curves(folder),
        "stress_test": STRESS if (folder / STRESS).exists() else None,
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "commit": facts.get("commit"), "device": facts.get("device"),
        "megabytes": round(sum(p.stat().st_size for p in files) / 2**20, 2),
    }  # fmt: skip


def _watched(taught: Mapping[str, Any]) -> str | None:
    """Returns the p-values of missed anomalies before and after, the most anomalous first."""
    watch = [w for w in taught.get("watch") or () if {"sha256", "p_before", "p_after"} <= set(w)]
    shown = [f"{str(w['sha256'])[:12]} p {w['p_before']:.3g} → {w['p_after']:.3g}" for w in watch[:5]]
    more = [f"and {len(watch) - 5} more"] if len(watch) > 5 else []
    return "; ".join([*shown, *more]) or None


def _curves(folder: Path) -> str | None:
    """Returns the first and last loss of each stage that `dia fit --logger csv` logged beside the model."""
    stages: dict[str, str] = {}
    folder = folder.resolve()  # `.` has no name
    for file in sorted(folder.with_name(f"{folder.name}.logs").glob("*/version_*/metrics.csv")):
        with file.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("loss")]
        if rows:
            ends = f"loss {float(rows[0]['loss']):.3g} to {float(rows[-1]['loss']):.3g}"
            stages[file.parent.parent.name] = f"{ends} in {rows[-1]['step']} steps"
    return "; ".join(f"{stage}: {words}" for stage, words in stages.items()) or None


def calibrate(
    run: str,
    normals: str | None = None,
    *,
    out: str | None = None,
    original: bool = False,
    reading: Reading,
    split: str = "all",
    rate: Rate,
    device: Device,
    output: Output,
) -> None:
    """Give a model the threshold and p-values of a site's own normals, without training.

    Every normal is scored, and these scores replace those that the model was calibrated on; the test for
    drift, the colours of heatmaps and the level of findings are those of these normals too. The earlier ones
    stay in the folder, and --original brings them back. The normals must be such as the model will see, and
    none that it was fitted on. A file of `dia export` keeps the old threshold: export again.

    Args:
        run: a folder written by `dia fit`
        normals: normal images of the site: a folder, .npz, .csv, or the name of a set of `dia data list`
        out: folder of a copy to calibrate, instead of RUN itself
        original: bring back what the fit found
        reading: how images are read.
        split: train, val, test or all, if the data have splits
        rate: the threshold.
        device: where to score.
        output: how to print the result.

    Examples:
        dia calibrate runs/mine site/normal
        dia calibrate runs/mine site/normal --out runs/site --false-alarm-rate 1%
        dia calibrate runs/mine --original
    """
    from ..deploy.recalibrate import taken

    folder, target = Path(run), Path(out or run)
    if original == (normals is not None):
        raise DataError("dia calibrate: give the site's normals, or --original to undo it, and not both")
    with taken(folder, target) as model:  # what changed the model while its normals are scored would be lost
        made = _calibrated(model, normals, reading, split, rate, device)
    output.show(made)


def _calibrated(
    model: Taken, normals: str | None, reading: Reading, split: str, rate: Rate, device: Device
) -> dict[str, Any]:
    """Calibrates a model folder, or brings back what its fit found where there are no normals."""
    from ..deploy.recalibrate import calibrate_folder, restore_folder
    from ..detectors import Detector
    from ..detectors.drift import references
    from ..evaluate.unseen import unseen

    target = model.target
    detector = Detector.load(model.folder, device=device.device)
    share = float(rate.false_alarm_rate or detector.false_alarm_rate)
    before = detector.threshold(share)
    if normals is None:
        restore_folder(model)
        now = Detector.load(target, device=device.device)
        return {
            "run": str(target), "calibration_normals": now.n_calibration_,
            "threshold_before": finite(before), "threshold": finite(now.threshold(share)),
            "false_alarm_rate": now.false_alarm_rate,
        }  # fmt: skip
    given = Images(data=normals, split=split, **{f.name: getattr(reading, f.name) for f in fields(reading)})
    found = unseen(detector, given.read_for(detector))
    if line := found.remark():
        remark(line, "yellow")
    images = found.images.normals()
    if not len(found.images):
        raise DataError(f"{normals}: the model was fitted on these images; give others, that it has not seen")
    if any(images.patients) and not any(images.volumes):
        many = len(images)
        images = images.subset(one_of_each(images.units, many, detector.seed))
        remark(f"{len(images)} of {many} images set the threshold: one of each patient")
    if any(images.volumes) and len(set(images.units)) == 1:
        raise DataError(
            f"{normals}: slices of one volume tell nothing of how much volumes differ; give more volumes"
        )
    if len(images) < (needed := fewest_for(share)):
        remedy = f"or take a --false-alarm-rate of {1 / (len(images) + 1):.2g} or more"
        raise DataError(
            f"{normals}: {len(images)} normal images; a rate of {share:g} needs {needed}: give more, {remedy}"
        )
    scores = detector.score(images)
    heat = None
    if detector.has_heatmaps():
        few = (detector.heatmap(images.images[i : i + LOOKED]) for i in range(0, len(images), LOOKED))
        heat = HeatScale.of_parts(maps for maps in few if maps is not None)
    about = {"on": normals, "images": len(images), "flagged_before": float((scores > before).mean())}
    known = references(images.images, middle_slices(images.units, len(images)))
    worth = effective(images.units, len(images))
    calibrate_folder(model, scores, known, about, share, heat, worth)
    return {
        "run": str(target), "normals": len(images), "false_alarm_rate": share,
        "threshold_before": finite(before), "threshold": finite(Calibration.of(scores).threshold(share)),
        "flagged_by_the_threshold_before": about["flagged_before"],
    }  # fmt: skip


def update(
    run: str,
    images: str | None = None,
    *,
    marks: str | None = None,
    out: str | None = None,
    undo: bool = False,
    reading: Reading,
    split: str = "all",
    device: Device,
    output: Output,
) -> None:
    """Let a model learn from what readers marked, where cross-validation says that it ranks better for it.

    A small probe on the model's features is added to its score, and flagged images that were marked normal
    join its normals. Threshold and p-values come from the normals of the fit alone. Each update begins from
    the model as it was fitted, with the marks that it has learned from before and the new ones; of an image
    that is marked again the later mark counts. With five marks or fewer nothing changes. An update is kept
    where the gain in AUROC has a one-sided p-value of at most 0.25; images of a patient or volume are judged
    together, by an update that knows none of them.

    Args:
        run: a folder written by `dia fit`
        images: the marked images, where the file of marks does not say their paths: a folder, .npz, .csv, or
            the name of a set of `dia data list`; they are found by their pixels, or else by name
        marks: CSV of the reading room, or any with the column label (1 anomalous, 0 normal, empty) and
            path, sha256 or name; a column patient tells which images are of one patient
        out: folder of a copy to teach, instead of RUN itself
        undo: bring back the model as it was fitted
        reading: how images are read.
        split: train, val, test or all, if the data have splits
        device: where images are seen.
        output: how to print the result.

    Examples:
        dia update runs/mine scans/new --marks marks.csv
        dia update runs/mine --marks labelled.csv --out runs/taught
        dia update runs/mine --undo
    """
    from ..deploy.update import undo_folder, update_folder
    from ..deploy.update.marks import find, read_marks
    from ..detectors import Detector

    if undo == (marks is not None) or (undo and images):
        raise DataError("dia update: give --marks, or --undo to bring back the model as fitted, and not both")
    if undo:
        undo_folder(run, out=out)
        now = Detector.load(out or run, device=device.device)
        threshold = finite(now.threshold())
        return output.show(
            {"run": out or run, "taught": "nothing: it is as it was fitted", "threshold": threshold}
        )
    rows = read_marks(file := Path(str(marks)))
    detector = Detector.load(run, device=device.device)
    options = replace(reading.options(), divide=False).as_fitted(detector.facts_, detector.shape_)
    listed = None
    if images is not None:
        given = {f.name: getattr(reading, f.name) for f in fields(reading)}
        listed = Images(data=images, split=split, **given).listing_for(detector)
    found = find(file, rows, listed, options)
    for line in found.remarks():
        remark(line, "yellow")
    about = {"readers": found.readers}
    with Bar("Learning from the marks"):
        made = update_folder(
            run, found.images, found.labels, about, flagged=found.flagged, units=found.units, out=out,
            device=device.device,
        )  # fmt: skip
    return output.show({
        "run": str(out or run) if made.kept else run, "kept": made.kept, "result": made.words,
        "marks": made.marks, "given": len(found.labels), "not_found": len(found.missing),
        "auc_before": made.before, "auc_after": made.after, "gain_p": made.p,
        "missed_anomalies_watched": len(made.watch),
    })  # fmt: skip


def export(
    run: str,
    *,
    format: str = "onnx",
    out: str | None = None,
    opset: int = 20,
    check: str | None = None,
    split: str = "test",
    normal: str | None = None,
    root: DataRoot,
    output: Output,
) -> None:
    """Export all of scoring as one file that does not need this package.

    The file takes uint8 images of any size and gives score, p-value and heatmap, including resizing, shifts,
    bank and calibration. It is compared with the model before it is kept.

    Args:
        run: a folder written by `dia fit`
        format: onnx, for onnxruntime in any language; there is no other
        out: the file to write; default: the run's name with .onnx
        opset: version of the ONNX operators, from 18
        check: further images on which the file must agree with the model, besides generated ones: a folder,
            .npz, .csv or image, or a known set's name
        split: which images of --check: train, val, test or all
        normal: which classes of --check are normal, as for `dia score`
        root: where the images of --check are.
        output: how to print the result.

    Examples:
        dia export runs/mine --out mine.onnx
        dia export runs/mine --check scans/labelled
        dia score mine.onnx scans/new --out scores.csv
    """
    if format != "onnx":
        raise DataError(f"--format {format}: not known; models are exported as ONNX alone (--format onnx)")
    with Bar("Loading the model"):
        from ..deploy.export import export as write

        detector = Model(run=run, device="cpu").load()
    target = Path(out or f"{Path(run).resolve().name}.onnx")
    checked = Images(data=check, split=split, normal=normal, data_root=root.data_root) if check else None
    images = checked.listing_for(detector) if checked else None
    output.show(write(detector, target, opset=opset, images=images))


def push(
    run: str,
    name: str,
    *,
    public: bool = False,
    license: str | None = None,
    results: str | None = None,
    about_data: str = "",
    out: str | None = None,
) -> None:
    """Publish a model on the Hugging Face hub, with a model card and without local paths.

    A model holds features of its training images: publish it only if you may. With --out nothing leaves this
    machine.

    Args:
        run: a folder written by `dia fit`
        name: user/name on the hub; made if it does not exist
        public: make the model public; a new one is private otherwise
        license: licence of the model, as the hub names it, e.g. cc-by-4.0
        results: file with the output of `dia evaluate --json`, for the card
        about_data: description of the training data, for the card
        out: push nothing; write the files into this folder

    Examples:
        dia push runs/mine user/name --license cc-by-4.0
        dia push runs/mine user/name --out to-be-pushed  # to look at it first
    """
    from ..deploy.hub import push_to_hub, save_pretrained
    from ..detectors import Detector

    try:
        numbers = dict(json.loads(Path(results).read_text())) if results else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{results}: not a JSON object; `dia evaluate --json` prints one") from error
    detector = Detector.load(run, device="cpu")
    card: dict[str, Any] = {"license": license, "results": numbers, "data": about_data}
    if out:
        save_pretrained(detector, out, **card)
        return result(f"{out}: what would be pushed to {name}")
    try:
        return result(str(push_to_hub(detector, name, private=not public, **card)))
    except (OSError, ValueError) as error:  # huggingface_hub's own are among these
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: could not be pushed ({reason}); log in with `hf auth login`") from error


def serve(
    run: str | None = None,
    *,
    device: Device,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    allow_open: bool = False,
    allowed_hosts: list[str] | None = None,
    page: bool = True,
    store: str = "marks.sqlite",
    runs: str = "runs",
    normals: str | None = None,
    root: DataRoot,
    limits: Limits,
) -> None:
    """Open the reading room and the HTTP service of a fitted model, until Ctrl-C.

    The page is at http://HOST:PORT/; without a model it opens where you train one. The documentation of the
    service is at /docs. Nothing is loaded from the network, and only this machine can reach it unless --host
    says otherwise. Marks and notes of the page go to one SQLite file (--store).

    Args:
        run: a folder written by `dia fit`; default: none, to train one on the page
        device: where to compute.
        host: address to listen at; default: this machine alone
        port: 0 for any that is free
        token: password of page and service; better set DIA_TOKEN, as all users of the machine can see
            arguments; default: $DIA_TOKEN, or else none
        allow_open: listen beyond this machine without a token
        allowed_hosts: further host names by which clients may call the service, such as a proxy's
        page: whether to open the page; false leaves the HTTP service alone
        store: file of the page's marks
        runs: folder for the models that are trained on the page
        normals: the training images, for neighbours and the colour scale, as a path or known set; default:
            where you fitted it, or the known set that it names
        root: where the training images are; the page offers what lies there for a training.
        limits: limits above which requests are refused.

    Examples:
        dia serve runs/mine
        dia serve
        dia serve runs/mine --port 8080 --store marks.sqlite --normals scans/normal
        DIA_TOKEN=secret dia serve runs/mine --host 0.0.0.0 --page false
    """
    from ..serve.server import serve as open_service

    open_service(
        run, host=host, port=port, device=device.device,
        token=os.environ.get("DIA_TOKEN") if token is None else token, allow_open=allow_open,
        hosts=allowed_hosts, page=page, store=store, runs=runs, normals=normals, data_root=root.data_root,
        limits=limits, say=remark,
    )  # fmt: skip
