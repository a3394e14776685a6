"""The arguments of every command. Parses; does nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from ..data.imageset import DataError
from ..settings import differences, from_dict


def _data_arguments(parser: ArgumentParser, split: str) -> None:
    parser.add_argument("data", type=str, help="a folder, .npz, .csv or image, or a known set's name")
    parser.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"),
                        help="where known data sets lie (default: $DIA_DATA)")  # fmt: skip
    parser.add_argument("--split", type=str, default=split, help="train, val, test or all")
    parser.add_argument("--normal", type=str | None, help="normal class folders or label, comma separated")
    parser.add_argument("--skip_bad", action="store_true", help="leave unreadable files out, and list them")
    parser.add_argument("--workers", type=int | None, help="threads that decode images")


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a folder written by `dia fit`")
    _device_argument(parser)


def _device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")


def _json_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _grid_arguments(parser: ArgumentParser, ledger: str) -> None:
    parser.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"))
    parser.add_argument("--ledger", type=str, default=ledger, help="file of a JSON line for each run")
    parser.add_argument(
        "--scores", type=str, default="results/scores", help="raw scores, for paired intervals and curves"
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


def _model_report() -> ArgumentParser:
    report = ArgumentParser(
        description="One self-contained HTML page about a model and the images it scored. "
        "`dia report benchmark` is another command: the table of a benchmark; see its --help."
    )
    _run_arguments(report)
    _data_arguments(report, "test")
    report.add_argument("--out", type=str, default="report.html")
    report.add_argument("--compare", type=bool, default=True, help="fit the trivial rows beside it")
    report.add_argument("--false_alarm_rate", type=float | None, help="default: the one given to `dia fit`")
    return report


def _benchmark_report() -> ArgumentParser:
    from ..presets import PRESETS

    report = ArgumentParser(
        description="The table of a benchmark from the ledger's lines, with statistics and curves, as HTML "
        "page, Markdown, CSV and LaTeX. Example: dia report benchmark --ledger results/runs.jsonl"
    )
    report.add_argument("what", type=Literal["benchmark"])
    report.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    report.add_argument("--ledger", type=str, default="results/runs.jsonl", help="what `dia benchmark` wrote")
    report.add_argument("--scores", type=str, default="results/scores", help="the raw scores it kept")
    report.add_argument("--preset", type=str, default="cpu", help=", ".join(PRESETS))
    report.add_argument("--datasets", type=list[str] | None, help="default: all in the ledger")
    report.add_argument("--methods", type=list[str] | None, help="default: all in the ledger")
    report.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={}, help="as they were given to `dia benchmark`"
    )
    report.add_argument("--out", type=str, default="results/benchmark", help="folder")
    return report


def _score_parser() -> ArgumentParser:
    score = ArgumentParser(
        description="Score images: path, score, p-value, flagged. A model exported as .onnx needs no torch."
    )
    score.add_argument("run", type=str, help="a folder written by `dia fit`, or an .onnx by `dia export`")
    _device_argument(score)
    _data_arguments(score, "test")
    score.add_argument("--out", type=str, default="scores.csv", help=".csv or .jsonl")
    score.add_argument(
        "--heatmaps", type=str | None,
        help="folder for a heatmap PNG per image, all in one scale of colours, which the first batch sets",
    )  # fmt: skip
    score.add_argument("--false_alarm_rate", type=float | None, help="default: the one given to `dia fit`")
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
        description="The whole of scoring, from uint8 images of any size to score, p-value and heatmap, as "
        "one file that needs none of this package; checked against the model before it is kept. "
        "Example: dia export runs/mine --format onnx --out mine.onnx --check scans/labelled"
    )
    export.add_argument("run", type=str, help="a folder written by `dia fit`")
    export.add_argument("--format", type=Literal["onnx", "torchscript"], default="onnx")
    export.add_argument("--out", type=str | None, help="default: the run's name with .onnx or .pt")
    export.add_argument("--opset", type=int, default=20, help="of ONNX, from 18")
    export.add_argument(
        "--check", type=str | None,
        help="images on which the file must agree with the model too, beside generated ones: a folder, .npz, "
        ".csv or image, or a known set's name",
    )  # fmt: skip
    export.add_argument("--split", type=str, default="test", help="of --check: train, val, test or all")
    export.add_argument("--normal", type=str | None, help="of --check, as for `dia score`")
    export.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"))
    _json_argument(export)
    return export


def build_parser(argv: Sequence[str]) -> ArgumentParser:
    """The whole parser. The settings of `dia fit` depend on its method and preset, found in `argv` first.

    To score with an exported file it is that command's alone, which needs no torch.
    """
    parser = ArgumentParser(
        prog="dia", description="Finds subtle anomalies after training on normal images only."
    )
    commands = parser.add_subcommands(dest="command")
    score = _score_parser()
    if argv[:1] == ["score"] and any(word.endswith(".onnx") for word in argv[1:]):
        commands.add_subcommand("score", score)
        return parser
    from ..detectors import DEFAULT, METHODS, detector_class
    from ..presets import PRESETS, settings

    fit = MarkedParser(
        description="Train a detector on normal images and calibrate it. --print_config shows every setting, "
        "with the paper's value beside each that differs."
    )
    fit.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    _data_arguments(fit, "train")
    fit.add_argument("--out", type=str, default="runs/model", help="folder of the fitted model")
    method, preset = _peek(argv, "method", DEFAULT), _peek(argv, "preset", "cpu")
    fit.add_argument("--method", type=str, default=DEFAULT, help=f"{', '.join(METHODS)}, or anomalib:NAME")
    fit.add_argument("--preset", type=str, default="cpu", help=", ".join(PRESETS))
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--size", type=int | None, help="read images at this side; default: at most the preset's"
    )
    fit.add_argument("--channels", type=int | None, help="1 or 3; default: as the images are")
    fit.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    fit.add_argument("--holdout", type=float, default=0.2, help="share of the normals kept for calibration")
    fit.add_argument("--false_alarm_rate", type=float, default=0.05, help="of the default threshold")
    fit.add_argument(
        "--contamination", type=float, default=0.0,
        help="share of anomalies mixed, unmarked, among the normals: to see what they cost",
    )  # fmt: skip
    fit.add_argument(
        "--weights", type=str | None,
        help="of a method that starts from a pretrained network: imagenet (fetched by timm from the Hugging "
        "Face hub, then cached), a file, none (random), or dia:RUN; short for --settings.weights",
    )  # fmt: skip
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
        description="AUROC, AP, FPR at 95 % TPR; pixel AUROC and PRO where masks exist."
    )
    _run_arguments(evaluate)
    _data_arguments(evaluate, "test")
    evaluate.add_argument(
        "--ledger", type=str | None, help="append a line to this file, e.g. results/runs.jsonl"
    )
    _json_argument(evaluate)
    commands.add_subcommand("evaluate", evaluate)

    dissolve = ArgumentParser(description="The strip of pictures: images dissolved at several t.")
    dissolve.add_argument("run", type=str, help="a `dia fit` folder, or any diffusers DDPM folder")
    dissolve.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    _data_arguments(dissolve, "test")
    dissolve.add_argument(
        "--t", type=list[int], default=[50, 100, 200, 400], help="diffusion steps, as [50,100]"
    )
    dissolve.add_argument("--count", type=int, default=8, help="how many images, evenly chosen")
    dissolve.add_argument("--out", type=str, default="dissolved.png")
    commands.add_subcommand("dissolve", dissolve)

    illustrate = ArgumentParser(
        description="Pictures of the method: the target matrix of the loss, similarities before and after "
        "training, images dissolved at several t, what is lost over t. "
        "Example: dia illustrate runs/mine scans/labelled --normal good --out pictures"
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
        description="Data sets × methods × seeds into the ledger. What is there already is not run again, so "
        "a grid that was stopped goes on with the same command; one failure does not stop the rest. "
        "Example: dia benchmark --datasets [pneumoniamnist,breastmnist] --methods [dia,msc,trivial:hog] "
        "--weights [none,dia] --data-root data --workers 2"
    )
    grid.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options")
    grid.add_argument("--datasets", type=list[str], default=["phantom"])
    grid.add_argument(
        "--methods", type=list[str],
        default=[m for m, cls in METHODS.items() if not cls.pretrained and not cls.extra],
        help="default: all but those that are published with pretrained weights, or need an extra package; "
        "anomalib:NAME is any of anomalib's",
    )  # fmt: skip
    grid.add_argument("--seeds", type=list[int], default=[0, 1, 2])
    grid.add_argument("--preset", type=str, default="cpu", help=", ".join(PRESETS))
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

    methods = ArgumentParser(description="What methods there are, what they want, and their settings.")
    methods.add_argument("--preset", type=str, default="cpu", help=f"of the settings: {', '.join(PRESETS)}")
    _json_argument(methods)
    commands.add_subcommand("methods", methods)

    ablate = ArgumentParser(
        description="A grid of settings × data sets × seeds into the ledger; a page with tables and a plot. "
        "Example: dia ablate dissolver-masking --data-root data"
    )
    ablate.add_argument("grid", type=str | None, nargs="?", help="a shipped grid's name, or a YAML file")
    ablate.add_argument("--list", action="store_true", help="what grids are shipped")
    ablate.add_argument("--datasets", type=list[str] | None, help="default: the grid's own")
    ablate.add_argument("--seeds", type=list[int] | None, help="default: the grid's own")
    ablate.add_argument("--preset", type=str | None, help="default: the grid's own")
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

    data = ArgumentParser(description="The known data sets, and what is in one of them or in a path.")
    data.add_argument(
        "action", type=Literal["list", "check"], help="list: what is known; check: counts, leaks"
    )
    data.add_argument("name", type=str | None, nargs="?", help="for check: a known set's name, or a path")
    data.add_argument("--data_root", type=str | None, default=os.environ.get("DIA_DATA"))
    data.add_argument("--normal", type=str | None, help="normal class folders or label, comma separated")
    data.add_argument("--skip_bad", action="store_true", help="leave unreadable files out, and list them")
    _json_argument(data)
    commands.add_subcommand("data", data)

    demo = ArgumentParser(description="Everything on generated images: fit, compare, report. No download.")
    demo.add_argument("--out", type=str, default="demo")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--device", type=str, default="auto")
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
    import yaml

    found = default
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        value = value or (argv[i + 1] if i + 1 < len(argv) else "")
        if flag == "--config" and Path(value).is_file():
            loaded = yaml.safe_load(Path(value).read_text())
            found = loaded.get(name, found) if isinstance(loaded, dict) else found
        elif flag == f"--{name}":
            return value
    return found


def underscored(word: str) -> str:
    """One spelling for both: --false-alarm-rate and --false_alarm_rate."""
    if not word.startswith("--"):
        return word
    flag, eq, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + eq + value
