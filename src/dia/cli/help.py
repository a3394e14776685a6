"""The parser of a command, made from its typed function and docstring, and the layout of help.

A parameter of a function is a positional argument of its command, or a flag if it is keyword-only. One whose
type is a dataclass stands for the fields of that dataclass: a field without a default is a positional
argument, any other a flag. A parameter annotated with a function (`Annotated[Any, add]`) is added by that
function. The docstring's text is the description, `Args:` the help of each argument, and `Examples:` the end
of the page; `{NAME}` in `Args:` stands for the names in a variable of the function's module. This file knows
no command.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse

from ..core.errors import DataError, printable
from ..core.running.progress import begun
from ..core.yamlfile import read_yaml

EXAMPLES = "examples:"
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Examples?):\n", re.M)
_LONGEST = 500  # characters of an error message, which may repeat a long argument


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """The layout: filled paragraphs, no types, and no defaults that say nothing."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part  # indented lines stay as they are
            if re.search("^ ", part, re.M)
            else textwrap.fill(" ".join(part.split()), width, break_on_hyphens=False)
            for part in text.split("\n\n")
        )

    def _get_type_str(self, action: argparse.Action) -> None:
        return None

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action).removesuffix(" (required)")
        if "default:" in (action.help or "") or action.default is None or action.default is False:
            return text.removesuffix(" (default: %(default)s)")
        if isinstance(action.default, tuple | list):
            return text.replace("%(default)s", f"[{','.join(map(str, action.default))}]")
        return text

    def _format_usage(self, *args: Any, **kwargs: Any) -> str:
        return with_dashes(super()._format_usage(*args, **kwargs))

    def _format_text(self, text: str) -> str:
        return with_dashes(super()._format_text(text))

    def _expand_help(self, action: argparse.Action) -> str:
        return with_dashes(super()._expand_help(action)).replace("%%", "%")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return with_dashes(self._invocation(action))

    def _invocation(self, action: argparse.Action) -> str:
        text, width = super()._format_action_invocation(action), self._width - self._current_indent
        if len(text) <= width:
            return text
        return textwrap.fill(text.replace(",", ", "), width, subsequent_indent=" " * 6)


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser in this package's layout, which takes no abbreviated flags.

    Attributes:
        printed: changes the YAML that `--print-config` prints.
    """

    printed: Callable[[str], str] = staticmethod(str)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, formatter_class=_Formatter, allow_abbrev=False, **kwargs)
        self._negative_number_matcher = re.compile(r"-\d")  # as of Python 3.14: takes `--window -600,1500`

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line on stderr and exits with status 2; raises where the parser was asked to.

        Args:
            message: what is wrong with the words.
            ex: the exception behind it.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        words = printable(" ".join(message.split())).rstrip(".")
        words = words if len(words) < _LONGEST else f"{words[:_LONGEST]} …"
        words = re.sub(r'^Parser key "([\w.]+)":', r"--\1:", words)
        words = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", words)
        words = re.sub(r"Unable to deserialize.*?: |Not of type \w+: ", "", words)
        either = r"Does not validate .*<class 'NoneType'> - (.*?) Given value type.*value: "
        words = re.sub(either, r"\1, not ", words)
        if share := re.match(r"(--[\w.]+): .*must be a share .*, not (\S+)", words):
            words = f"{share[1]} must be a share above 0 and below 1, as 0.05 or 5%, not {share[2]}"
        if wrong := re.search(r"Expected one of (.*)\. Got value: (\S+)$", words):
            words += did_you_mean(wrong[2], re.findall(r"'(.*?)'", wrong[1]))
        if words.startswith("Unrecognized arguments") and (unknown := re.search(r"--[\w.]+", words)):
            words += did_you_mean(unknown[0], self._option_string_actions)
        words = with_dashes(words)
        self.exit(2, f"dia: {words}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        begun()
        super()._print_message(message, file)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Returns a configuration as YAML, as `--print-config` prints it."""
        return self.printed(super().dump(*args, **kwargs))


def with_dashes(text: str) -> str:
    """Returns a text with its flags spelt with dashes, as --false-alarm-rate."""
    return re.sub(r"(?<![\w/-])--[a-z][\w.]*_[\w.]*", lambda flag: flag[0].replace("_", "-"), text)


def candidates(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """Returns the words that may stand last, as a shell's completion offers them.

    Args:
        parser: of the command.
        words: those after the command's name; the last is being typed.

    Returns:
        Flags, or the values of a flag or argument that has but a few; empty where files come next.
    """
    before = words[-2] if len(words) > 1 else ""
    typed = words[-1] if words else ""
    if action := parser._option_string_actions.get(before):
        return [v for v in get_args(getattr(action, "_typehint", None)) if isinstance(v, str)]
    if typed.startswith("-"):
        return [with_dashes(flag) for flag in parser._option_string_actions]
    first = next((a for a in parser._actions if not a.option_strings), None)
    known = get_args(getattr(first, "_typehint", None)) if len(words) < 2 else ()
    return [value for value in known if isinstance(value, str)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a question that names the known word nearest to a misspelt one.

    Args:
        word: the misspelt or abbreviated word.
        known: the words that would have been right.

    Returns:
        The question, to end an error message with; empty where no known word is near.
    """
    near = difflib.get_close_matches(word, known := list(known), n=1, cutoff=0.75)
    found = [k for k in known if k.startswith(word)] or near
    return f"; did you mean {found[0]}?" if found else ""


def _documented(thing: Any) -> tuple[str, dict[str, str], str]:
    """Returns the text, the help of each argument and the examples of a Google-style docstring.

    A dataclass has the arguments of its bases, too.
    """
    args: dict[str, str] = {}
    for each in reversed(inspect.getmro(thing)) if isinstance(thing, type) else [thing]:
        text, *rest = _SECTION.split(inspect.cleandoc(each.__doc__ or ""))
        sections = {name: textwrap.dedent(body) for name, body in zip(rest[::2], rest[1::2], strict=True)}
        entries = re.findall(r"^(\w+): (.*(?:\n .*)*)", sections.get("Args", ""), re.M)
        args |= {name: " ".join(entry.split()) for name, entry in entries}
    return text.strip(), args, sections.get("Examples", "")


def parser_of(function: Callable[..., None], prog: str, argv: Sequence[str] = ()) -> ArgumentParser:
    """Makes the parser of a command.

    Args:
        function: the command.
        prog: how the command is called, such as `dia fit`.
        argv: the words after the command's name, on which annotated parameters depend.

    Returns:
        The parser for these words.
    """
    text, _, examples = _documented(function)
    parser = ArgumentParser(
        prog=prog, description=text, epilog=f"{EXAMPLES}\n{textwrap.indent(examples, '  ')}"
    )
    parser.add_argument(
        "--config", action=jsonargparse.ActionConfigFile, help="YAML with any of these options"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say results and errors alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="say each part of the work and its time")
    parser.add_argument("--log_file", type=str | None, help="append what is said, with times, to this file")
    _add_arguments(parser, parser, function, argv)
    parser._option_string_actions["--print_config"].help = "print all options as YAML, and exit"
    positional = [a for a in parser._actions if not a.option_strings]
    names = [f"[{a.metavar}]" if a.nargs == "?" else f"{a.metavar}" for a in positional]
    parser.usage = " ".join([prog, *names, "[options]"])
    return parser


def _add_arguments(parser: ArgumentParser, group: Any, thing: Any, argv: Sequence[str]) -> None:
    """Adds the parameters of a function or dataclass, and after them those of its dataclasses."""
    hints, helps = get_type_hints(thing, include_extras=True), _documented(thing)[1]
    variables = vars(sys.modules[thing.__module__])
    groups: list[Any] = []
    adders = []
    for name, p in inspect.signature(thing).parameters.items():
        kind, required = hints[name], p.default is p.empty
        text = re.sub(r"\{([A-Z_]+)\}", lambda m: ", ".join(variables[m[1]]), helps.get(name, ""))
        words: dict[str, Any] = {"help": text.replace("%", "%%")}
        if is_dataclass(kind):
            groups.append(kind)
        elif metadata := getattr(kind, "__metadata__", None):
            adders.append(metadata[0])
        elif required or (inspect.isfunction(thing) and p.kind is not p.KEYWORD_ONLY):
            if get_origin(kind) is list:
                kind, words["nargs"] = get_args(kind)[0], "+"
            elif not required:
                words["nargs"] = "?"
            parser.add_argument(name, type=kind, metavar=name.upper(), **words)
        elif kind is bool and not p.default:
            group.add_argument(f"--{name}", action="store_true", **words)
        else:
            default = list(p.default) if isinstance(p.default, tuple) else p.default
            group.add_argument(f"--{name}", type=kind, default=default, **words)
    for kind in groups:
        title = _documented(kind)[0].partition("\n")[0].rstrip(".")
        few = len(inspect.signature(kind).parameters) < 3
        _add_arguments(parser, parser if few else parser.add_argument_group(title), kind, argv)
    for add in adders:
        add(parser, argv)


def listed(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """Returns the words with lists that are written a,b in brackets, as [a,b].

    Args:
        parser: of the command.
        words: those after the command's name.
    """
    made = list(words)
    for i, word in enumerate(made):
        flag, equals, value = word.partition("=")
        action = parser._option_string_actions.get(flag)
        kind = str(getattr(action, "_typehint", ""))
        if not re.match(
            r"(typing\.|collections\.abc\.)?(Optional\[)?(typing\.|collections\.abc\.)?(Sequence|[Ll]ist)\[",
            kind,
        ):
            continue
        place = i if equals else i + 1
        value = value if equals else made[place] if place < len(made) else "["
        if value and value[0] not in "[-" and value != "null":
            made[place] = f"{flag}=[{value}]" if equals else f"[{value}]"
    return made


def values_of(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """Parses the words after a command's name.

    Args:
        parser: the parser of the command.
        words: the words.

    Returns:
        The values of all arguments by name, nested settings as dataclasses.

    Raises:
        DataError: a configuration gives an option a value that it cannot have.
        SystemExit: the words ask for help (status 0) or do not parse (status 2).
    """
    configured(words)  # refuses hostile YAML before jsonargparse reads it
    given = parser.parse_args([*map(str, listed(parser, words))])
    for action in parser._actions:  # jsonargparse lets null stand everywhere
        kind = getattr(action, "_typehint", None)
        may = action.default in (None, argparse.SUPPRESS) or kind is None or type(None) in get_args(kind)
        if not may and action.dest in given and given[action.dest] is None:
            raise DataError(f"{action.dest} cannot be null; give a value, or leave it out")
    try:
        return dict(parser.instantiate_classes(given).items(branches=True))
    except TypeError as error:  # a plain value in place of nested settings
        raise DataError(f"settings: a value of another kind than its setting's ({error})") from error


def arguments_of(thing: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments with which a command is called.

    Args:
        thing: the command, or a dataclass among its parameters.
        values: values by the name of the argument, those of dataclasses in one level with all others.

    Returns:
        A value for each parameter.

    Raises:
        DataError: a dataclass refuses its values.
    """
    made: dict[str, Any] = {}
    for name, kind in get_type_hints(thing).items():
        if isinstance(kind, type) and is_dataclass(kind):
            made[name] = kind(**arguments_of(kind, values))
        elif name != "return":
            made[name] = values.get(name)
    return made


def configured(argv: Sequence[str], *names: str) -> dict[str, str]:
    """Reads options before there is a parser.

    Args:
        argv: the words after the command's name.
        names: the options to look for.

    Returns:
        The values of these options as text: of the YAML files of `--config`, then of the flags.

    Raises:
        DataError: a file is no YAML, or holds no options.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", action="append", default=[], nargs="?")
    for name in names:
        early.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS)
    flags = vars(early.parse_known_args(argv)[0])
    found: dict[str, Any] = {}
    for file in flags.pop("config"):
        if file and Path(file).is_file():
            loaded = read_yaml(file)
            if not isinstance(loaded, dict):
                raise DataError(f"{file}: no options in it; write them as NAME: VALUE")
            found |= loaded
    made = {name: value for name, value in (found | flags).items() if name in names}
    return {name: str(value) for name, value in made.items() if value is not None}
