"""The arguments of every command. Parses; does nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile

from ..data.imageset import DataError
from ..data.windows import AXES
from ..data.windows import PRESETS as WINDOWS
from ..drift import RATE, SHARE
from ..settings import differences, from_dict
from .helptext import ArgumentParser, examples
from .lesion_arguments import select_parser, stress_parser
from .limits import Limits
from .recipe_arguments import RECIPE_PLACES, recipe_parsers


def _data_arguments(parser: ArgumentParser, split: str) -> None:
    parser.add_argument(
        "data", type=str, help="a folder, .npz, .csv or image, or the name of a set of `dia data list`"
    )
    group = parser.add_argument_group("images")
    group.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                       help="folder in which sets of `dia data list` lie (default: $DIA_DATA)")  # fmt: skip
    group.add_argument(
        "--split", type=str, default=split, help="train, val, test or all, where the data have splits"
    )
    group.add_argument(
        "--normal", type=str | None,
        help="class folders or label values that are normal, comma separated; all others are anomalous",
    )  # fmt: skip
    group.add_argument("--skip_bad", action="store_true", help="leave unreadable files out, and list them")
    group.add_argument(
        "--workers", type=int | None, help="threads that decode images (default: one for each core)"
    )
    _view_arguments(group, "each file's own (voi)" if split == "train" else "as the model was fitted")


def _view_arguments(parser: Any, default: str) -> None:
    parser.add_argument(
        "--window", type=str | None,
        help=f"grey values of DICOM, NIfTI and float images: {', '.join(WINDOWS)} (Hounsfield units), "
        f"CENTER,WIDTH, voi (each file's own) or full (all that its bits allow); default: {default}",
    )  # fmt: skip
    parser.add_argument("--axis", type=str | None, help=f"of NIfTI slices: {', '.join(AXES)}; default: axial")
    parser.add_argument("--slices", type=str | None, help="of each volume, as 10:-10; default: all")


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a folder written by `dia fit`")
    _device_argument(parser)


def _device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")


def _json_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _grid_arguments(parser: ArgumentParser, ledger: str, scores: str = "results/scores") -> None:
    parser.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="folder in which the data sets lie (default: $DIA_DATA)")  # fmt: skip
    parser.add_argument("--ledger", type=str, default=ledger, help="file of a JSON line for each run")
    parser.add_argument(
        "--scores", type=str, default=scores, help="raw scores, for paired intervals and curves"
    )
    parser.add_argument("--work", type=str, default=".work", help="keeps finished stages; safe to delete")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--workers", type=int | None,
        help="runs at a time, each in a process of its own with its share of the cores; default: one, in "
        "this process; with ray one for each GPU, or else CPU core",
    )  # fmt: skip
    parser.add_argument(
        "--memory_gb", type=float | None,
        help="of all workers together; default: with several, four fifths of the machine's",
    )  # fmt: skip
    _executor_arguments(
        parser, "over a cluster, whose machines must see data, ledger, scores and work under one path each"
    )


def _executor_arguments(parser: ArgumentParser, on_ray: str) -> None:
    parser.add_argument("--executor", type=Literal["local", "ray"], default="local", help=f"ray: {on_ray}")
    parser.add_argument(
        "--ray_address", type=str | None,
        help="HOST:PORT of a Ray cluster that runs; default: start Ray on this machine",
    )  # fmt: skip


def _serve() -> ArgumentParser:
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
    _run_arguments(serve)
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


def _model_report() -> ArgumentParser:
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
    _run_arguments(report)
    _data_arguments(report, "test")
    report.add_argument("--out", type=str, default="report.html", help="the page to write")
    report.add_argument(
        "--compare", type=bool, default=True,
        help="fit the untrained rows on the model's normals, for comparison, where the images have labels",
    )  # fmt: skip
    report.add_argument(
        "--false_alarm_rate", type=float | None,
        help="share of normal images to flag at most, on average (default: the one given to `dia fit`)",
    )  # fmt: skip
    return report


def _benchmark_report() -> ArgumentParser:
    from ..presets import PRESETS

    report = ArgumentParser(
        description="""The table of a benchmark, drawn from the ledger: HTML, Markdown, CSV, LaTeX, figures.

            With intervals, ranks and tests over data sets, paired differences, curves, weights, costs and
            failures. Only lines count that `dia benchmark` would make today: those of other settings stay
            in the ledger as history.""",
        epilog=examples(
            "dia report benchmark",
            "dia report benchmark --datasets [breastmnist,pneumoniamnist] --out two-sets",
            "dia report benchmark --config grid.yaml  # the same file as of `dia benchmark`",
        ),
    )
    report.add_argument("what", type=Literal["benchmark"], help="the word `benchmark`")
    report.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    report.add_argument("--ledger", type=str, default="results/runs.jsonl", help="what `dia benchmark` wrote")
    report.add_argument("--scores", type=str, default="results/scores", help="the raw scores it kept")
    report.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="where data sets lie, to count duplicates (default: $DIA_DATA)")  # fmt: skip
    report.add_argument("--preset", type=str, default="cpu", help=f"of the runs: {', '.join(PRESETS)}")
    report.add_argument("--datasets", type=list[str] | None, help="the columns (default: all in the ledger)")
    report.add_argument("--methods", type=list[str] | None, help="the rows (default: all in the ledger)")
    report.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={}, help="as they were given to `dia benchmark`"
    )
    report.add_argument("--out", type=str, default="results/benchmark", help="folder")
    return report


def _score_parser() -> ArgumentParser:
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
    _device_argument(score)
    _data_arguments(score, "test")
    score.add_argument("--out", type=str, default="scores.csv", help="file of the rows: .csv or .jsonl")
    score.add_argument(
        "--heatmaps", type=str | None,
        help="folder for a heatmap PNG per image, in the images' own folders and names, all in one scale of "
        "colours, which the first batch sets",
    )  # fmt: skip
    score.add_argument(
        "--false_alarm_rate", type=float | None,
        help="share of normal images to flag at most, on average (default: the one given to `dia fit`)",
    )  # fmt: skip
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
    _executor_arguments(
        score,
        "a model on each CPU core, or GPU, of a machine or cluster; each of its machines must be able to "
        "read the model folder and the images, under the same paths",
    )
    _json_argument(score)
    return score


def _export_parser() -> ArgumentParser:
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
    _json_argument(export)
    return export


def build_parser(argv: Sequence[str]) -> ArgumentParser:
    """The whole parser. The settings of `dia fit` depend on its method and preset, found in `argv` first.

    To score with an exported file it is that command's alone, which needs no torch.
    """
    parser = ArgumentParser(
        prog="dia",
        version=version("dia-anomaly"),
        description="""Finds subtle anomalies in medical images after training on normal images only.

            Train on normals, score new images, look at the report:

              dia fit scans/normal --out runs/mine
              dia score runs/mine scans/new --out scores.csv --heatmaps maps
              dia report runs/mine scans/labelled

            Nothing at hand yet? `dia demo` does it all on generated images. For research; not a medical
            device.

            Flags may be written --false_alarm_rate or --false-alarm-rate; lists are written [a,b].
            Results go to stdout, as one JSON object with --json where a command has it; progress and
            remarks go to stderr. Exit status: 0; 1 if training or runs failed; 2 for bad usage or data,
            with one line that says what to do; 130 after Ctrl-C.""",
    )
    commands = parser.add_subcommands(
        dest="command", title="commands", description="`dia COMMAND --help` explains each, with examples."
    )
    score = _score_parser()
    if argv[:1] == ["score"] and any(word.endswith(".onnx") for word in argv[1:]):
        commands.add_subcommand("score", score)
        return parser
    from ..detectors import DEFAULT, METHODS, detector_class
    from ..presets import PRESETS, settings

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
    _data_arguments(fit, "train")
    fit.add_argument("--out", type=str, default="runs/model", help="folder of the fitted model")
    method, preset = _peek(argv, "method", DEFAULT), _peek(argv, "preset", "cpu")
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
    fit.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
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
    _json_argument(fit)
    commands.add_subcommand("fit", fit)

    commands.add_subcommand("score", score)
    commands.add_subcommand("export", _export_parser())

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
    _run_arguments(evaluate)
    _data_arguments(evaluate, "test")
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
    _json_argument(evaluate)
    commands.add_subcommand("evaluate", evaluate)
    commands.add_subcommand("stress", stress_parser(_run_arguments, _data_arguments, _json_argument))
    commands.add_subcommand("select", select_parser(_data_arguments, _json_argument))

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
    commands.add_subcommand("push", push)

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
    dissolve.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    _data_arguments(dissolve, "test")
    dissolve.add_argument(
        "--t", type=list[int], default=[50, 100, 200, 400], help="diffusion steps, as [50,100]"
    )
    dissolve.add_argument("--count", type=int, default=8, help="how many images, evenly chosen")
    dissolve.add_argument("--out", type=str, default="dissolved.png", help="the picture to write")
    commands.add_subcommand("dissolve", dissolve)

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
    _run_arguments(illustrate)
    _data_arguments(illustrate, "test")
    illustrate.add_argument("--out", type=str, default="pictures", help="folder")
    illustrate.add_argument(
        "--t", type=list[int], default=[50, 100, 200, 400], help="diffusion steps, as [50,100]"
    )
    illustrate.add_argument("--count", type=int, default=4, help="images of each kind in the strips")
    illustrate.add_argument("--seed", type=int, default=0, help="of the choice of images")
    illustrate.add_argument("--format", type=Literal["png", "svg"], default="png", help="of the figures")
    commands.add_subcommand("illustrate", illustrate)

    of_benchmark = list(argv[:2]) == ["report", "benchmark"]
    commands.add_subcommand("report", _benchmark_report() if of_benchmark else _model_report())

    grid = ArgumentParser(
        description="""Run data sets × methods × seeds into the ledger.

            A run that is there already is not made again, so a grid that was stopped goes on with the
            same command; one failure does not stop the rest. `dia report benchmark` draws the table.""",
        epilog=examples(
            "dia benchmark --datasets [pneumoniamnist,breastmnist] --methods [dia,msc,trivial:hog] \\\n"
            "    --weights [none,dia] --data_root data --workers 2",
            "dia benchmark --config grid.yaml --dry_run",
            "dia benchmark --methods [patchcore] --settings '{patchcore: {size: 96}}'",
        ),
    )
    grid.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    grid.add_argument(
        "--datasets", type=list[str], default=["phantom"], help="names of `dia data list`, as [a,b]"
    )
    grid.add_argument(
        "--methods", type=list[str],
        default=[m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra],
        help="names of `dia methods`, or anomalib:NAME for any model of anomalib (default: all but those "
        "that are published with pretrained weights, or need an extra package)",
    )  # fmt: skip
    grid.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="a run for each")
    grid.add_argument("--preset", type=str, default="cpu", help=f"of all runs: {', '.join(PRESETS)}")
    grid.add_argument(
        "--weights", type=list[str], default=[],
        help="of methods that start from a pretrained network, a row of runs for each: none, imagenet, a "
        "file, dia:RUN, or dia: the encoder of dia fitted on the same normals; default: the preset's",
    )  # fmt: skip
    grid.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={},
        help="changes of a method's settings, as '{patchcore: {size: 96}}'",
    )  # fmt: skip
    grid.add_argument(
        "--max_size", type=int | None, help="read images at this side at most; default: the preset's"
    )
    _grid_arguments(grid, ledger="results/runs.jsonl")
    grid.add_argument("--readme", type=str | None, help="write the table between this file's RESULTS marks")
    grid.add_argument("--dry_run", action="store_true", help="show which runs are missing, and their cost")
    commands.add_subcommand("benchmark", grid)

    for name, parser_of in recipe_parsers().items():
        _grid_arguments(parser_of, **RECIPE_PLACES[name])
        commands.add_subcommand(name, parser_of)

    methods = ArgumentParser(
        description="""List the methods: family, paper, published weights, sizes, heatmaps, settings.

            Those of anomalib need `pip install 'dia-anomaly[peers]'`, those with a timm backbone
            `dia-anomaly[backbones]`; `trivial:` rows train nothing.""",
        epilog=examples("dia methods", "dia methods --preset paper --json"),
    )
    methods.add_argument("--preset", type=str, default="cpu", help=f"of the settings: {', '.join(PRESETS)}")
    _json_argument(methods)
    commands.add_subcommand("methods", methods)

    ablate = ArgumentParser(
        description="""Run a grid of settings × data sets × seeds, and draw what each choice is worth.

            Into a ledger of its own, from which a page with tables, a plot and paired intervals is drawn.
            What is there already is not run again. A grid of your own is a few lines of YAML.""",
        epilog=examples(
            "dia ablate --list",
            "dia ablate dissolver-masking --data_root data --dry_run",
            "dia ablate dissolver-masking --datasets [breastmnist] --seeds [0,1,2] --data_root data",
            "dia ablate dissolver-masking --draw --reference [none,excluded]",
        ),
    )
    ablate.add_argument("grid", type=str | None, nargs="?", help="a shipped grid's name, or a YAML file")
    ablate.add_argument("--list", action="store_true", help="what grids are shipped")
    ablate.add_argument("--datasets", type=list[str] | None, help="as [a,b] (default: the grid's own)")
    ablate.add_argument("--seeds", type=list[int] | None, help="as [0,1,2] (default: the grid's own)")
    ablate.add_argument("--preset", type=str | None, help="cpu, gpu or paper (default: the grid's own)")
    ablate.add_argument(
        "--reference", type=list[str] | None, help="levels of the cell to compare with, as [none,excluded]"
    )
    ablate.add_argument(
        "--out", type=str, default="results/ablations", help="folder of the page and the plot"
    )
    _grid_arguments(ablate, ledger="results/ablations.jsonl")
    ablate.add_argument("--draw", action="store_true", help="run nothing; draw what the ledger holds")
    ablate.add_argument("--dry_run", action="store_true", help="list the cells and what each changes")
    commands.add_subcommand("ablate", ablate)

    data = ArgumentParser(
        description="""List the known data sets, or check what is in one of them or in a path.

            Nothing is downloaded: the list says where to get a set, and under which licence. The check
            counts images and classes by split and finds duplicates and near-duplicates, also across splits,
            where they are leaks; with --run, --scores or --row it says what copies of training images among
            the test images change in an AUROC.""",
        epilog=examples(
            "dia data list",
            "dia data check breastmnist --data_root data",
            "dia data check scans --normal healthy --json",
            "dia data check breastmnist --data_root data --row trivial:pixels",
            "dia data check scans --normal healthy --run runs/mine",
        ),
    )
    data.add_argument(
        "action", type=Literal["list", "check"], help="list: what is known; check: counts, duplicates, leaks"
    )
    data.add_argument("name", type=str | None, nargs="?", help="for check: a known set's name, or a path")
    data.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                      help="folder in which the known sets lie (default: $DIA_DATA)")  # fmt: skip
    data.add_argument(
        "--normal", type=str | None,
        help="class folders or label values that are normal, comma separated; all others are anomalous",
    )  # fmt: skip
    data.add_argument("--skip_bad", action="store_true", help="leave unreadable files out, and list them")
    data.add_argument(
        "--size", type=int | None, help="read images as squares of this side, where sizes differ"
    )
    data.add_argument(
        "--run", type=str | None, help="a folder written by `dia fit`: what copies change in its AUROC"
    )
    data.add_argument(
        "--scores", type=str | None, help="the same of scores of the test split, by `dia score`"
    )
    data.add_argument("--row", type=str | None, help="the same of an untrained row, e.g. trivial:pixels")
    _view_arguments(data, "each file's own (voi)")
    _json_argument(data)
    commands.add_subcommand("data", data)

    commands.add_subcommand("serve", _serve())

    demo = ArgumentParser(
        description="""Do the whole job on generated images: fit, compare, draw, report.

            About six minutes on two cores; nothing is downloaded. The same command goes on after an
            interruption. Open OUT/report.html at the end.""",
        epilog=examples("dia demo", "dia demo --out elsewhere --seed 1"),
    )
    demo.add_argument("--out", type=str, default="demo", help="folder of model, report and pictures")
    demo.add_argument("--seed", type=int, default=0, help="of every random draw")
    demo.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    commands.add_subcommand("demo", demo)
    return parser


class MarkedParser(ArgumentParser):
    """Prints its configuration with the paper's value beside each setting that differs from it."""

    def dump(self, *args: Any, **kwargs: Any) -> str:  # what --print_config prints
        """The configuration as YAML."""
        import yaml

        from ..detectors import detector_class
        from ..presets import settings

        config = yaml.safe_load(super().dump(*args, **kwargs))
        method = config.get("method")
        if "settings" not in config:
            return marked(config, {})
        cls = detector_class(str(method)).Settings
        differ = differences(from_dict(cls, config["settings"]), settings(cls, "paper"))
        count = f"{len(differ)} settings differ from the paper's configuration" if differ else "as published"
        return f"# {method}: {count}\n" + marked(config, {f"settings.{k}": v[1] for k, v in differ.items()})


def marked(config: dict[str, Any], paper: dict[str, Any], path: str = "") -> str:
    """YAML with `# paper: VALUE` beside the dotted names of `paper`; lists in one line."""
    lines = []
    for key, value in config.items():
        indent = "  " * path.count(".")
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:\n{marked(value, paper, f'{path}{key}.')}")
            continue
        mark = f"  # paper: {shortened(paper[path + key])}" if path + key in paper else ""
        lines.append(f"{indent}{key}: {in_line(value)}{mark}\n")
    return "".join(lines)


def shortened(value: Any) -> str:
    """As `in_line`, but a long run of whole numbers by its ends."""
    if isinstance(value, tuple) and len(value) > 8 and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]} to {value[-1]}"
    return in_line(value)


def in_line(value: Any) -> str:
    """A value as YAML in one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=1e9)
        .removesuffix("\n")
        .removesuffix("...")
        .strip()
    )


def _peek(argv: Sequence[str], name: str, default: str) -> str:
    """The value of an option in `argv`, or in the YAML of its `--config`, before the parser exists."""
    from ..configfile import read_yaml

    found = default
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        value = value or (argv[i + 1] if i + 1 < len(argv) else "")
        if flag == "--config" and Path(value).is_file():
            loaded = read_yaml(value)
            if not isinstance(loaded, dict):
                raise DataError(f"{value}: no options in it; write them as NAME: VALUE")
            found = str(loaded.get(name, found))
        elif flag == f"--{name}":
            return value
    return found


def with_signs(argv: Sequence[str]) -> list[str]:
    """`--window -600,1500` as one word: a value that begins with a minus would be taken for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in ("--window", "--slices") and re.match(r"-\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def underscored(word: str) -> str:
    """One spelling for both: --false-alarm-rate and --false_alarm_rate."""
    if not word.startswith("--"):
        return word
    flag, eq, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + eq + value
