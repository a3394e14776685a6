"""The entry point of the command `dia`: the list of commands, errors and exit statuses.

Only the module of the command in use is imported, and only its parser is made. Bad usage or data is one line
on stderr and exit status 2. Results go to stdout, progress and remarks to stderr.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ..core.errors import DataError, TrainingError, system_error
from .help import (
    ArgumentParser,
    arguments_of,
    candidates,
    configured,
    did_you_mean,
    parser_of,
    values_of,
    with_dashes,
)  # fmt: skip

_MODULES = {  # a command's function has its name, with an underscore for a space
    "fit": ["fit"],
    "score": ["score", "evaluate", "report"],
    "stress": ["stress"],
    "dissolve": ["dissolve", "illustrate"],
    "model": ["info", "update", "calibrate", "export", "serve", "push"],
    "benchmark": ["benchmark", "report benchmark"],
    "grids": ["ablate", "explore", "confirm"],
    "data": ["data", "methods"],
    "demo": ["demo"],
    "main": ["completion"],
}
# the arguments that name what is written
_WRITTEN = ("out", "heatmaps", "findings", "masks", "ledger", "store", "log_dir")
_READ = ("data", "run", "normals", "check", "results", "weights")  # and what is read
COMMANDS = {name: module for module, names in _MODULES.items() for name in names}

ABOUT = """Finds subtle anomalies in medical images after training on normal images only.

Train on normals, score new images, look at the report:

  dia fit scans/normal --out runs/mine
  dia score runs/mine scans/new --out scores.csv --heatmaps maps
  dia report runs/mine scans/labelled

Without data, `dia demo` does it all on generated images. For research; not a medical device.

Lists are written [a,b], shares 0.05 or 5%. Results go to stdout, as one JSON object with --json where a
command has it; progress and remarks go to stderr. With every command, --config FILE reads options from YAML,
-q says less, -v says more, --log-file FILE keeps what was said, and --plugin FILE.py adds a detector of your
own (docs/howto/own-method.md). Exit status: 0; 1 if training or runs failed; 2 for bad usage or data, with
one line that says what to do; 130 after Ctrl-C."""


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
    own = argv is None  # this process is the command's alone
    with contextlib.ExitStack() as stack:
        status = _run(sys.argv[1:] if argv is None else argv, stack, own)
    if own and int(os.environ.get("WORLD_SIZE", 1)) > 1 and "torch" in sys.modules:
        from ..core.processes import end_process

        end_process(status)
    if status:
        sys.exit(status)


def _run(argv: Sequence[str], stack: contextlib.ExitStack, own: bool) -> int:
    """Runs a command line and returns the exit status; what it opens is closed with the stack."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.showwarning = _warner()
    target = ""  # where the command writes
    try:
        words = _with_plugins(with_underscores(argv))
        if words[:1] and words[0] in ("-q", "-v", "--quiet", "--verbose", "--log_file"):
            raise DataError(
                f"{words[0]} stands after the command, as in dia score {words[0]} …; see dia --help"
            )
        if not words or words[0].startswith("-"):
            top = top_parser()
            top.parse_args(words)
            top.print_help()
            return 0
        name, words = command_of(words)
        if name == "completion" and words[:1] == ["words"]:
            print("\n".join(completed(words[1:])))
            return 0
        if not {"-h", "--help"} & {*words}:
            _begin(name, words, stack, own)
        values = values_of(command_parser(name, words), words)
        target = str(values.get("out") or values.get("work") or "")
        from ..deploy.outputs import check_outputs  # here, as `dia --help` needs no numpy

        written = {f"--{flag}": values.get(flag) for flag in _WRITTEN}
        check_outputs(written, [str(values[name]) for name in _READ if values.get(name)])
        function = _function_of(name)
        function(**arguments_of(function, values))
        return 0
    except (DataError, TrainingError) as error:
        _fail(with_dashes(str(error)))
        return 2 if isinstance(error, DataError) else 1
    except BrokenPipeError:  # as `| head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on with a grid, and with --resume a fit or a score")
        return 130
    except Exception as error:
        if not (line := system_error(error, target)):
            logging.getLogger("dia").exception("dia %s failed", " ".join(argv))
            raise
        _fail(line)
        return 2


def _begin(name: str, words: Sequence[str], stack: contextlib.ExitStack, own: bool) -> None:
    """Opens the log, shows that the command has begun, and looks how many cores are free."""
    from ..core.running import progress, threads
    from .options import speaking

    given = configured(words, "log_file", "quiet", "verbose")
    stack.enter_context(
        speaking(
            quiet=bool({"-q", "--quiet"} & {*words}) or given.get("quiet") == "True",
            verbose=bool({"-v", "--verbose"} & {*words}) or given.get("verbose") == "True",
            log_file=given.get("log_file"),
        )
    )
    progress.log.info("dia %s %s (version %s)", name, with_dashes(" ".join(words)), version("dia-anomaly"))
    progress.begin(f"Starting dia {name}")
    if own:
        threads.govern()


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print what lets a shell complete commands and options.

    It belongs into your shell's start file.

    Args:
        shell: bash or zsh

    Examples:
        dia completion bash >> ~/.bashrc
        dia completion zsh >> ~/.zshrc
    """
    print(SHELLS[shell] + _COMPLETES)


def completed(typed: Sequence[str]) -> list[str]:
    """Returns the words that may stand last in a command line, as the shell asks for them.

    Args:
        typed: the words after the program's name; the last is being typed.
    """
    if len(typed) < 2:
        return list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    name, words = command_of(with_underscores(typed))
    return candidates(command_parser(name, words[:-1]), words)


SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
_COMPLETES = """_dia() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(dia completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" \\
    -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _dia dia"""


def _warner() -> Callable[..., None]:
    """Returns what prints warnings, each text once in a command: splits of one source have them in common."""
    told: set[str] = set()

    def warn(message: Warning | str, *_: object, **__: object) -> None:
        from .options import remark  # here, as `dia --help` needs no console

        if str(message) not in told:
            told.add(str(message))
            remark(f"warning: {message}", "yellow")

    return warn


def _fail(line: str) -> None:
    from .options import failure

    failure(line)
