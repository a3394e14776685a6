"""The parser of all commands, and what is done to a command line before it. Parses; does nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ..core.errors import DataError
from .grid_arguments import (
    ablate_parser,
    benchmark_parser,
    benchmark_report_parser,
    confirm_parser,
    data_parser,
    explore_parser,
    methods_parser,
)
from .help import ArgumentParser, examples
from .lesion_arguments import select_parser, stress_parser
from .model_arguments import (
    dissolve_parser,
    evaluate_parser,
    export_parser,
    fit_parser,
    illustrate_parser,
    push_parser,
    report_parser,
    score_parser,
    serve_parser,
)
from .shared_arguments import device_argument


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
    parser.add_argument(
        "--plugin", type=str | None,
        help="Python file with a detector of your own (docs/howto/own-method.md), before or after a command",
    )  # fmt: skip
    commands = parser.add_subcommands(
        dest="command", title="commands", description="`dia COMMAND --help` explains each, with examples."
    )
    score = score_parser()
    if argv[:1] == ["score"] and any(word.endswith(".onnx") for word in argv[1:]):
        commands.add_subcommand("score", score)
        return parser
    from ..detectors.registry import DEFAULT

    of_benchmark = list(argv[:2]) == ["report", "benchmark"]
    for name, made in {
        "fit": fit_parser(peek(argv, "method", DEFAULT), peek(argv, "preset", "cpu")),
        "score": score,
        "export": export_parser(),
        "evaluate": evaluate_parser(),
        "stress": stress_parser(),
        "select": select_parser(),
        "push": push_parser(),
        "dissolve": dissolve_parser(),
        "illustrate": illustrate_parser(),
        "report": benchmark_report_parser() if of_benchmark else report_parser(),
        "benchmark": benchmark_parser(),
        "explore": explore_parser(),
        "confirm": confirm_parser(),
        "methods": methods_parser(),
        "ablate": ablate_parser(),
        "data": data_parser(),
        "serve": serve_parser(),
        "demo": demo_parser(),
    }.items():
        commands.add_subcommand(name, made)
    return parser


def demo_parser() -> ArgumentParser:
    """Of `dia demo`."""
    demo = ArgumentParser(
        description="""Do the whole job on generated images: fit, compare, draw, report.

            About six minutes on two cores; nothing is downloaded. The same command goes on after an
            interruption. Open OUT/report.html at the end.""",
        epilog=examples("dia demo", "dia demo --out elsewhere --seed 1"),
    )
    demo.add_argument("--out", type=str, default="demo", help="folder of model, report and pictures")
    demo.add_argument("--seed", type=int, default=0, help="of every random draw")
    device_argument(demo)
    return demo


def peek(argv: Sequence[str], name: str, default: str) -> str:
    """The value of an option in `argv`, or in the YAML of its `--config`, before the parser exists."""
    from ..core.yamlfile import read_yaml

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


def with_plugins(argv: Sequence[str]) -> list[str]:
    """Loads the files of `--plugin FILE`, wherever it stands, and leaves it out: parsers need its methods.

    Raises:
        DataError: a file is missing or fails.
    """
    from ..detectors.registry import load_plugin

    left, words = [], iter(argv)
    for word in words:
        flag, eq, value = word.partition("=")
        if flag == "--plugin":
            load_plugin(value if eq else next(words, ""))
        else:
            left.append(word)
    return left


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
