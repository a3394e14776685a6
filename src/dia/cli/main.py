"""The entry point of the command `dia`: the list of commands, errors and exit statuses.

Only the module of the command in use is imported, and only its parser is made. Bad usage or data is one line
on stderr and exit status 2. Results go to stdout, progress and remarks to stderr.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from ..core.errors import DataError, TrainingError, system_error
from .help import ArgumentParser, arguments_of, did_you_mean, parser_of, values_of

_MODULES = {  # a command's function has its name, with an underscore for a space
    "fit": ["fit"],
    "score": ["score", "evaluate", "report"],
    "stress": ["stress", "select"],
    "dissolve": ["dissolve", "illustrate"],
    "deploy": ["export", "serve", "push"],
    "benchmark": ["benchmark", "report benchmark"],
    "grids": ["ablate", "explore", "confirm"],
    "data": ["data", "methods"],
    "demo": ["demo"],
}
COMMANDS = {name: module for module, names in _MODULES.items() for name in names}

ABOUT = """Finds subtle anomalies in medical images after training on normal images only.

Train on normals, score new images, look at the report:

  dia fit scans/normal --out runs/mine
  dia score runs/mine scans/new --out scores.csv --heatmaps maps
  dia report runs/mine scans/labelled

Without data, `dia demo` does it all on generated images. For research; not a medical device.

Flags may be written --false_alarm_rate or --false-alarm-rate; lists are written [a,b]. Results go to stdout,
as one JSON object with --json where a command has it; progress and remarks go to stderr. Before or after a
command, --plugin FILE.py adds a detector of your own (docs/howto/own-method.md). Exit status: 0; 1 if
training or runs failed; 2 for bad usage or data, with one line that says what to do; 130 after Ctrl-C."""


def top_parser() -> ArgumentParser:
    """Returns the parser of `dia` without a command: its help, which lists the commands, and its version."""
    lines = ["commands:", "  `dia COMMAND --help` explains each, with examples.", ""]
    for name in COMMANDS:
        lines += textwrap.wrap(summary(name), 78, initial_indent=f"  {name:<18}", subsequent_indent=" " * 20)
    return ArgumentParser(
        prog="dia", usage="dia COMMAND [options]", version=version("dia-anomaly"), description=ABOUT,
        epilog="\n".join(lines),
    )  # fmt: skip


def summary(name: str) -> str:
    """Returns the first line of a command's docstring, read from its source: to import all takes seconds."""
    tree = ast.parse(Path(__file__).with_name(f"{COMMANDS[name]}.py").read_bytes())
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    text = ast.get_docstring(functions[name.replace(" ", "_")]) or ""
    return text.partition("\n")[0].rstrip(".")


def command_parser(name: str, argv: Sequence[str] = ()) -> ArgumentParser:
    """Makes the parser of one command.

    Args:
        name: a key of `COMMANDS`.
        argv: the words after the name, on which the settings of `dia fit` depend.

    Returns:
        The parser for these words.
    """
    return parser_of(_function_of(name), f"dia {name}", argv)


def _function_of(name: str) -> Callable[..., None]:
    module = import_module(f".{COMMANDS[name]}", __package__)
    function: Callable[..., None] = getattr(module, name.replace(" ", "_"))
    return function


def command_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the name of the command and the words after it.

    Args:
        argv: a command line without the program's name.

    Raises:
        DataError: it does not begin with a command.
    """
    for count in (2, 1):
        if (name := " ".join(argv[:count])) in COMMANDS:
            return name, list(argv[count:])
    raise DataError(f"there is no command {argv[0]}{did_you_mean(argv[0], COMMANDS)}; see dia --help")


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Returns a command line with flags such as --false-alarm-rate spelt --false_alarm_rate."""
    return [re.sub(r"^--[\w.-]+", lambda m: f"--{m[0][2:].replace('-', '_')}", word) for word in argv]


def _with_plugins(argv: Sequence[str]) -> list[str]:
    """Loads the files of `--plugin FILE` and returns the other words: parsers need the files' methods."""
    plugins = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    plugins.add_argument("--plugin", action="append", default=[], nargs="?", const="")
    found, words = plugins.parse_known_args(argv)
    if found.plugin:
        from ..detectors.registry import load_plugin

        for file in found.plugin:
            load_plugin(file)
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command `dia`.

    Args:
        argv: the command line without the program's name; that of the process where None.

    Raises:
        SystemExit: with the status, unless it is 0 after a command that ran.
    """
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}", "yellow")
    target = ""  # where the command writes
    try:
        words = _with_plugins(with_underscores(sys.argv[1:] if argv is None else argv))
        if not words or words[0].startswith("-"):
            top_parser().parse_args(words)
            raise DataError("a command must be named; see dia --help")
        name, words = command_of(words)
        values = values_of(command_parser(name, words), words)
        target = str(values.get("out") or values.get("work") or "")
        function = _function_of(name)
        function(**arguments_of(function, values))
    except (DataError, TrainingError) as error:
        _say(f"dia: {error}", "red")
        sys.exit(2 if isinstance(error, DataError) else 1)
    except KeyboardInterrupt:
        _say("dia: stopped; the same command goes on with a grid, and with --resume a fit or a score")
        sys.exit(130)
    except Exception as error:
        if not (line := system_error(error, target)):
            raise
        _say(f"dia: {line}", "red")
        sys.exit(2)


def _say(line: str, style: str | None = None) -> None:
    from .options import remark  # here, as `dia --help` needs no console

    remark(line, style)
