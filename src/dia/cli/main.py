"""The entry point of the command `dia`: which commands there are, errors, exit statuses.

Knows where the function of each command is; only the module of the command in use is imported, and only its
parser is made. Bad usage or data is one line on stderr and exit status 2. Results go to stdout, progress and
remarks to stderr.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import DataError, TrainingError, system_error
from .help import ArgumentParser, arguments_of, did_you_mean, extras_of, parser_of, refuse_nulls


class Command(NamedTuple):
    """Where a command is.

    Args:
        module: of this package; its function has the command's name, with an underscore for a space.
        summary: what it does; the first sentence of the function's docstring.
    """

    module: str
    summary: str


COMMANDS = {
    "fit": Command("fit", "Train a detector on normal images and calibrate it"),
    "score": Command("score", "Score images: one row each of path, score, p_value, flagged"),
    "export": Command("deploy", "Export the whole of scoring as one file that needs none of this package"),
    "evaluate": Command(
        "score", "Measure a model on labelled images: AUROC with its interval, AP, FPR at 95 % TPR"
    ),
    "stress": Command(
        "stress", "Measure how fine a model sees: paste lesions into normal images, count those flagged"
    ),
    "select": Command(
        "stress", "Choose method, preset, settings and fusion without labels, by pasted lesions"
    ),
    "push": Command(
        "deploy", "Publish a model on the Hugging Face hub, with a model card and without local paths"
    ),
    "dissolve": Command("dissolve", "Draw images dissolved at several t, side by side"),
    "illustrate": Command("dissolve", "Draw pictures of the method on your images"),
    "report": Command("score", "Write one self-contained HTML page about a model and the images it scored"),
    "report benchmark": Command(
        "benchmark", "Draw the table of a benchmark from the ledger: HTML, Markdown, CSV, LaTeX, figures"
    ),
    "benchmark": Command("benchmark", "Run data sets × methods × seeds into the ledger"),
    "explore": Command("grids", "Judge recipes on development data: no test set is read"),
    "confirm": Command("grids", "Let a frozen recipe meet its test sets: once, with all its seeds"),
    "methods": Command(
        "data", "List the methods: family, paper, published weights, sizes, heatmaps, settings"
    ),
    "ablate": Command(
        "grids", "Run a grid of settings × data sets × seeds, and draw what each choice is worth"
    ),
    "data": Command("data", "List the known data sets, or check what is in one of them or in a path"),
    "serve": Command("deploy", "Open the review page and the HTTP service of a fitted model, until Ctrl-C"),
    "demo": Command("demo", "Do the whole job on generated images: fit, compare, draw, report"),
}

ABOUT = """Finds subtle anomalies in medical images after training on normal images only.

Train on normals, score new images, look at the report:

  dia fit scans/normal --out runs/mine
  dia score runs/mine scans/new --out scores.csv --heatmaps maps
  dia report runs/mine scans/labelled

Nothing at hand yet? `dia demo` does it all on generated images. For research; not a medical device.

Flags may be written --false_alarm_rate or --false-alarm-rate; lists are written [a,b]. Results go to stdout,
as one JSON object with --json where a command has it; progress and remarks go to stderr. Before or after a
command, --plugin FILE.py adds a detector of your own (docs/howto/own-method.md). Exit status: 0; 1 if
training or runs failed; 2 for bad usage or data, with one line that says what to do; 130 after Ctrl-C."""


def top_parser() -> ArgumentParser:
    """The parser of `dia` alone: its help, which lists the commands, and its version."""
    lines = ["commands:", "  `dia COMMAND --help` explains each, with examples.", ""]
    for name, command in COMMANDS.items():
        first, *others = textwrap.wrap(command.summary, 55)
        lines += [f"  {name:<18}{first}", *(f"{'':20}{line}" for line in others)]
    return ArgumentParser(
        prog="dia", usage="dia COMMAND", version=version("dia-anomaly"), description=ABOUT,
        epilog="\n".join(lines),
    )  # fmt: skip


def command_parser(name: str, argv: Sequence[str] = ()) -> ArgumentParser:
    """The parser of one command.

    Args:
        name: a key of `COMMANDS`.
        argv: the words after the name, on which the settings of `dia fit` depend.

    Returns:
        The parser of these words.
    """
    return parser_of(function_of(name), f"dia {name}", argv)


def function_of(name: str) -> Callable[..., None]:
    """The function of a command, whose module is imported."""
    module = import_module(f".{COMMANDS[name].module}", __package__)
    function: Callable[..., None] = getattr(module, name.replace(" ", "_"))
    return function


def command_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command and the words after it.

    Args:
        argv: a command line without the program's name, which begins with a command.

    Raises:
        DataError: it begins with no command.
    """
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in COMMANDS:
            return name, list(argv[count:])
    raise DataError(f"there is no command {argv[0]}{did_you_mean(argv[0], COMMANDS)}; see dia --help")


def values_of(argv: Sequence[str]) -> tuple[Callable[..., None], dict[str, Any]]:
    """The function that a command line calls, and what it is called with.

    Args:
        argv: a command line without the program's name, which begins with a command.

    Raises:
        DataError: there is no such command, or a configuration gives an option what it cannot be.
        SystemExit: the words ask for help (status 0) or do not parse (status 2).
    """
    name, words = command_of(argv)
    function = function_of(name)
    if extras_of(function).config:
        configured(words)  # checks every file before another reader takes it
    parser = parser_of(function, f"dia {name}", words)
    given = parser.parse_args(words)
    refuse_nulls(parser, given)
    try:
        values = parser.instantiate_classes(given)
    except TypeError as error:  # a nested setting that is a plain value
        raise DataError(f"settings: a value of another kind than its setting's ({error})") from error
    return function, dict(values.items(branches=True))


def call(function: Callable[..., None], values: Mapping[str, Any]) -> None:
    """Runs a command.

    Args:
        function: the command.
        values: of its arguments, by name, those of shared options among them.

    Raises:
        DataError: values that cannot be.
        TrainingError: training cannot go on, or runs failed.
    """
    function(**arguments_of(function, values))


def configured(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Options as text, before there is a parser.

    Args:
        argv: the words after the command's name.

    Returns:
        The entries of the YAML files of `--config`, and all flags with the words after them.

    Raises:
        DataError: a file is no YAML, or holds no options.
    """
    from ..core.yamlfile import read_yaml

    files: dict[str, str] = {}
    flags: dict[str, str] = {}
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        flag, eq, value = word.partition("=")
        value = value if eq else after
        if flag == "--config" and Path(value).is_file():
            loaded = read_yaml(value)
            if not isinstance(loaded, dict):
                raise DataError(f"{value}: no options in it; write them as NAME: VALUE")
            files |= {str(k): str(v) for k, v in loaded.items()}
        elif flag.startswith("--"):
            flags[flag[2:]] = value
    return files, flags


def with_plugins(argv: Sequence[str]) -> list[str]:
    """Loads the files of `--plugin FILE`, wherever it stands, and leaves it out: parsers need its methods.

    Raises:
        DataError: a file is missing or fails.
    """
    left, words = [], iter(argv)
    for word in words:
        flag, eq, value = word.partition("=")
        if flag == "--plugin":
            from ..detectors.registry import load_plugin

            load_plugin(value if eq else next(words, ""))
        else:
            left.append(word)
    return left


def normalised(argv: Sequence[str]) -> list[str]:
    """A command line in one spelling: --false_alarm_rate for --false-alarm-rate, `--window=-600,1500`.

    The latter is one word, as a value that begins with a minus would be taken for a flag.
    """
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            flag, eq, value = word.partition("=")
            words.append("--" + flag[2:].replace("-", "_") + eq + value)
        elif words and words[-1] in ("--window", "--slices") and re.match(r"-\d", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command `dia`.

    Args:
        argv: the command line without the program's name; that of the process where None.

    Raises:
        SystemExit: with the status, unless it is 0 after a command that ran.
    """
    argv = normalised(sys.argv[1:] if argv is None else argv)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", "yellow")
    target = ""
    try:
        argv = with_plugins(argv)
        if not argv or argv[0].startswith("-"):
            top_parser().parse_args(argv)
            raise DataError("a command must be named; see dia --help")
        function, values = values_of(argv)
        target = values.get("out") or values.get("work") or ""  # where it writes
        call(function, values)
    except (DataError, TrainingError) as error:
        say(f"dia: {error}", "red")
        sys.exit(2 if isinstance(error, DataError) else 1)
    except KeyboardInterrupt:
        say("dia: stopped; the same command goes on with a grid, and with --resume a fit or a score")
        sys.exit(130)
    except Exception as error:
        if not (words := system_error(error, str(target))):
            raise
        say(f"dia: {words}", "red")
        sys.exit(2)


def say(line: str, style: str | None = None) -> None:
    """Prints a line on stderr."""
    from .options import remark  # here, as `dia --help` needs no console

    remark(line, style)
