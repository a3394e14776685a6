"""The arguments of the commands that make a model or take one. Parses only.

Scoring with an exported file needs no torch, so nothing here imports a detector before a parser asks for it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Literal

from jsonargparse import ActionConfigFile

from ..core.errors import DataError
from ..detectors.drift import RATE, SHARE
from ..serve.limits import Limits
from .help import ArgumentParser, MarkedParser, examples
from .shared_arguments import (
    data_arguments,
    device_argument,
    executor_arguments,
    json_argument,
    rate_argument,
    run_arguments,
)


def fit_parser(method: str, preset: str) -> ArgumentParser:
    """Of `dia fit`, whose settings are those of a method in a preset."""
    from ..detectors.presets import PRESETS, settings
    from ..detectors.registry import DEFAULT, METHODS, detector_class

    fit = MarkedParser(
        description="""Train a detector on normal images and calibrate it.

            Of data with labels only the normal images are used. A share of them is held out of training
            (--holdout), so that scores get p-values and a threshold without any anomaly. The model is a
            folder of JSON and safetensors, which says where it comes from.

            The settings listed last are those of --method in --preset; --print_config shows all, with the
            paper's value beside each that differs.""",
        epilog=examples(
            "dia fit scans/normal --out runs/mine",
            "dia fit scans --normal healthy --size 64 --out runs/mine --resume",
            "dia fit pneumoniamnist --data_root data --method csi --seed 1 --out runs/csi",
            "dia fit scans/normal --settings.dissolver.steps 2000 --print_config",
            "torchrun --nproc_per_node 4 $(which dia) fit scans/normal --out runs/mine",
        ),
    )
    fit.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    data_arguments(fit, "train")
    fit.add_argument("--out", type=str, default="runs/model", help="folder of the fitted model")
    fit.add_argument("--method", type=str, default=DEFAULT, help=f"{', '.join(METHODS)}, or anomalib:NAME")
    fit.add_argument(
        "--preset", type=str, default="cpu",
        help="named settings: cpu (minutes on two cores), gpu (for one accelerator), paper (as published)",
    )  # fmt: skip
    fit.add_argument(
        "--seed", type=int, default=0, help="of the hold-out, the first weights and every random draw"
    )
    fit.add_argument(
        "--size", type=int | None,
        help="read images as squares of this side (default: as they are, shrunk to the preset's side)",
    )  # fmt: skip
    fit.add_argument("--channels", type=int | None, help="1 or 3 (default: as the images are)")
    device_argument(fit)
    fit.add_argument("--holdout", type=float, default=0.2, help="share of the normals kept for calibration")
    fit.add_argument(
        "--false_alarm_rate", type=float, default=0.05,
        help="share of normal images that the model's threshold flags at most, on average",
    )  # fmt: skip
    fit.add_argument(
        "--contamination", type=float, default=0.0,
        help="share of anomalies mixed, unmarked, among the normals: to see what they cost",
    )  # fmt: skip
    fit.add_argument(
        "--weights", type=str | None,
        help="of a method that starts from a pretrained network: imagenet (fetched by timm from the Hugging "
        "Face hub, then cached), a file, none (random), or dia:RUN; short for --settings.weights",
    )  # fmt: skip
    fit.add_argument(
        "--logger", type=Literal["none", "csv", "tensorboard", "mlflow"], default="none",
        help="of losses and learning rates during training; the last two need the extra `tracking`",
    )  # fmt: skip
    fit.add_argument("--log_dir", type=str | None, help="where the logger writes; default: OUT.logs")
    fit.add_argument("--resume", action="store_true", help="go on with an interrupted fit of the same --out")
    fit.add_argument("--overwrite", action="store_true", help="replace a model that is already there")
    with contextlib.suppress(DataError):  # of an unknown method the command itself complains
        cls = detector_class(method).Settings
        if preset in PRESETS:
            fit.add_argument("--settings", type=cls, default=settings(cls, preset), help="the method's own")
    json_argument(fit)
    return fit


def score_parser() -> ArgumentParser:
    """Of `dia score`."""
    score = ArgumentParser(
        description="""Score images: one row each of path, score, p_value, flagged.

            A higher score is more anomalous, on the method's own scale. The p-value is the share of
            held-out normals, the image itself counted among them, that score at least as high; an image is
            flagged where it is at most the false-alarm rate. Files are read, scored and written batch by
            batch, so memory does not grow with their number. If the images differ as a whole from the
            normals of training (scanner, window, size), a line says so; scores are written all the same.""",
        epilog=examples(
            "dia score runs/mine scans/new --out scores.csv",
            "dia score runs/mine scans/new --heatmaps maps --false_alarm_rate 0.01",
            "dia score runs/mine archive --out scores.jsonl --skip_bad --resume",
            "dia score runs/mine archive --executor ray --ray_address HOST:PORT",
            "dia score mine.onnx scans/new  # a model exported by `dia export`: needs no torch",
        ),
    )
    score.add_argument("run", type=str, help="a folder written by `dia fit`, or an .onnx by `dia export`")
    device_argument(score)
    data_arguments(score, "test")
    score.add_argument("--out", type=str, default="scores.csv", help="file of the rows: .csv or .jsonl")
    score.add_argument(
        "--heatmaps", type=str | None,
        help="folder for a heatmap PNG per image, in the images' own folders and names, all in one scale of "
        "colours, which the first batch sets",
    )  # fmt: skip
    rate_argument(score)
    score.add_argument(
        "--top_k", type=int, default=5,
        help="slices whose mean is a volume's second score, in NAME.volumes.csv beside --out NAME.csv",
    )  # fmt: skip
    score.add_argument(
        "--drift_rate", type=float, default=RATE,
        help="share of runs, at most, that ring the alarm for drift though their images are like the normals "
        "of training",
    )  # fmt: skip
    score.add_argument(
        "--anomalous_up_to", type=float, default=SHARE,
        help="share of the images that may be anomalous, in any way, without ringing that alarm; less makes "
        "it finer, 0 is for batches of normals",
    )  # fmt: skip
    score.add_argument("--batch", type=int, default=512, help="images read and scored at a time")
    score.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run of the same --out"
    )
    executor_arguments(
        score,
        "a model on each CPU core, or GPU, of a machine or cluster; each of its machines must be able to "
        "read the model folder and the images, under the same paths",
    )
    json_argument(score)
    return score


def export_parser() -> ArgumentParser:
    """Of `dia export`."""
    export = ArgumentParser(
        description="""Export the whole of scoring as one file that needs none of this package.

            From uint8 images of any size to score, p-value and heatmap: resizing, shifts, bank and
            calibration included. The file is checked against the model before it is kept.""",
        epilog=examples(
            "dia export runs/mine --format onnx --out mine.onnx",
            "dia export runs/mine --format torchscript --check scans/labelled",
            "dia score mine.onnx scans/new --out scores.csv",
        ),
    )
    export.add_argument("run", type=str, help="a folder written by `dia fit`")
    export.add_argument("--format", type=Literal["onnx", "torchscript"], default="onnx",
                        help="for onnxruntime in any language, or for libtorch")  # fmt: skip
    export.add_argument("--out", type=str | None, help="default: the run's name with .onnx or .pt")
    export.add_argument("--opset", type=int, default=20, help="of ONNX, from 18")
    export.add_argument(
        "--check", type=str | None,
        help="images on which the file must agree with the model too, beside generated ones: a folder, .npz, "
        ".csv or image, or a known set's name",
    )  # fmt: skip
    export.add_argument("--split", type=str, default="test", help="of --check: train, val, test or all")
    export.add_argument("--normal", type=str | None, help="of --check, as for `dia score`")
    export.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="folder in which known sets lie (default: $DIA_DATA)")  # fmt: skip
    json_argument(export)
    return export


def evaluate_parser() -> ArgumentParser:
    """Of `dia evaluate`."""
    evaluate = ArgumentParser(
        description="""Measure a model on labelled images: AUROC with its interval, AP, FPR at 95 % TPR.

            And pixel AUROC and PRO, where there are masks and the method has heatmaps. All from raw
            scores: no threshold, no normalisation, no sign is chosen by the labels. Beside them: the best
            untrained row on the same images, near-duplicates within the test and of training images, class
            balance, which class is normal; and a warning where the scores rank the other way.""",
        epilog=examples(
            "dia evaluate runs/mine scans",
            "dia evaluate runs/mine scans/labelled --normal healthy --split all --json",
            "dia evaluate runs/csi pneumoniamnist --data_root data --ledger results/runs.jsonl",
        ),
    )
    run_arguments(evaluate)
    data_arguments(evaluate, "test")
    evaluate.add_argument(
        "--ledger", type=str | None, help="append a line to this file, e.g. results/runs.jsonl"
    )
    evaluate.add_argument(
        "--normals", type=str | None,
        help="the training normals, as a path or known set, to fit the untrained rows on and to look for "
        "copies; default: the ledger's rows of the same images, or else where the model was fitted",
    )  # fmt: skip
    evaluate.add_argument(
        "--compare", type=bool, default=True,
        help="false: leave out what stands beside: best untrained row, copies, balance, direction",
    )  # fmt: skip
    json_argument(evaluate)
    return evaluate


def report_parser() -> ArgumentParser:
    """Of `dia report RUN`."""
    report = ArgumentParser(
        description="""One self-contained HTML page about a model and the images it scored.

            Numbers with intervals, curves, calibration, pictures with heatmaps, and the untrained rows
            beside the model, where the images have labels; the highest scores where they have none. The
            page needs no network.

            `dia report benchmark` is another command: the table of a benchmark, drawn from the ledger;
            see `dia report benchmark --help`.""",
        epilog=examples(
            "dia report runs/mine scans",
            "dia report runs/mine scans/new --out new.html --false_alarm_rate 0.01",
            "dia report benchmark --ledger results/runs.jsonl --out results/benchmark",
        ),
    )
    run_arguments(report)
    data_arguments(report, "test")
    report.add_argument("--out", type=str, default="report.html", help="the page to write")
    report.add_argument(
        "--compare", type=bool, default=True,
        help="fit the untrained rows on the model's normals, for comparison, where the images have labels",
    )  # fmt: skip
    rate_argument(report)
    return report


def dissolve_parser() -> ArgumentParser:
    """Of `dia dissolve`."""
    dissolve = ArgumentParser(
        description="""Draw images dissolved at several t, side by side.

            Dissolving is one reverse step of the diffusion model from the clean image: what the model
            does not expect of a normal image goes first, and more of it with larger t.""",
        epilog=examples(
            "dia dissolve runs/mine scans/new --out strip.png",
            "dia dissolve runs/mine scans/new --t [30,99,300] --count 4",
            "dia dissolve models/ddpm phantom  # any unconditional DDPM in the form of diffusers",
        ),
    )
    dissolve.add_argument("run", type=str, help="a `dia fit` folder, or any diffusers DDPM folder")
    device_argument(dissolve)
    data_arguments(dissolve, "test")
    dissolve.add_argument(
        "--t", type=list[int], default=[50, 100, 200, 400], help="diffusion steps, as [50,100]"
    )
    dissolve.add_argument("--count", type=int, default=8, help="how many images, evenly chosen")
    dissolve.add_argument("--out", type=str, default="dissolved.png", help="the picture to write")
    return dissolve


def illustrate_parser() -> ArgumentParser:
    """Of `dia illustrate`."""
    illustrate = ArgumentParser(
        description="""Draw pictures of the method on your images.

            Images dissolved at several t, what is lost over t; and with an encoder (dia) the target matrix
            of the loss, and similarities before and after training. Needs a model with a dissolver (dia,
            dia+) and labelled images.""",
        epilog=examples(
            "dia illustrate runs/mine scans",
            "dia illustrate runs/mine scans/labelled --normal good --split all --out pictures --format svg",
        ),
    )
    run_arguments(illustrate)
    data_arguments(illustrate, "test")
    illustrate.add_argument("--out", type=str, default="pictures", help="folder")
    illustrate.add_argument(
        "--t", type=list[int], default=[50, 100, 200, 400], help="diffusion steps, as [50,100]"
    )
    illustrate.add_argument("--count", type=int, default=4, help="images of each kind in the strips")
    illustrate.add_argument("--seed", type=int, default=0, help="of the choice of images")
    illustrate.add_argument("--format", type=Literal["png", "svg"], default="png", help="of the figures")
    return illustrate


def push_parser() -> ArgumentParser:
    """Of `dia push`."""
    push = ArgumentParser(
        description="""Publish a model on the Hugging Face hub, with a model card and without local paths.

            A model holds no image, but what was learnt from images: publish only where you may. With
            --out nothing leaves this machine.""",
        epilog=examples(
            "dia push runs/mine user/name --license cc-by-4.0",
            "dia push runs/mine user/name --out to-be-pushed  # to look at it first",
        ),
    )
    push.add_argument("run", type=str, help="a folder written by `dia fit`")
    push.add_argument("name", type=str, help="user/name on the hub; made if it is not there")
    push.add_argument("--public", action="store_true", help="for all to see; a new one is private otherwise")
    push.add_argument("--license", type=str | None, help="of the model, as the hub names it, e.g. cc-by-4.0")
    push.add_argument("--results", type=str | None, help="what `dia evaluate --json` printed, for the card")
    push.add_argument("--about_data", type=str, default="", help="what it was trained on, for the card")
    push.add_argument("--out", type=str | None, help="push nothing: write into this folder what would be")
    return push


def serve_parser() -> ArgumentParser:
    """Of `dia serve`."""
    serve = ArgumentParser(
        description="""Open the review page and the HTTP service of a fitted model, until Ctrl-C.

            The page is at http://HOST:PORT/, the service beside it; the service's documentation is at
            /docs. Nothing is asked of the network, and only this machine can reach it unless --host says
            otherwise. Marks and notes of the page go to one SQLite file (--store).""",
        epilog=examples(
            "dia serve runs/mine",
            "dia serve runs/mine --port 8080 --store marks.sqlite --normals scans/normal",
            "DIA_TOKEN=secret dia serve runs/mine --host 0.0.0.0 --page false",
        ),
    )
    serve.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    run_arguments(serve)
    serve.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; default: this "
                       "machine alone")  # fmt: skip
    serve.add_argument("--port", type=int, default=7860, help="0 for any that is free")
    serve.add_argument(
        "--token", type=str | None,
        help="asked for by page and service; better set DIA_TOKEN, as arguments are seen by all users of the "
        "machine; default: $DIA_TOKEN, or else none",
    )  # fmt: skip
    serve.add_argument("--allow_open", action="store_true", help="listen beyond this machine without a token")
    serve.add_argument(
        "--allowed_hosts", type=list[str] | None,
        help="names by which browsers and clients may call the service, as of a proxy before it",
    )  # fmt: skip
    serve.add_argument("--page", type=bool, default=True, help="false: the HTTP service alone")
    serve.add_argument("--store", type=str, default="reviews.sqlite", help="file of the page's reviews")
    serve.add_argument(
        "--normals", type=str | None,
        help="the training images, for neighbours and the scale of colours, as a path or known set; default: "
        "where the model was fitted",
    )  # fmt: skip
    serve.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                       help="where known data sets lie (default: $DIA_DATA)")  # fmt: skip
    serve.add_class_arguments(Limits, None)
    return serve
