"""From a typed function with a docstring to its parser, and how help is laid out. Knows no command.

Positional parameters of a function are the positional arguments of its command, keyword-only ones its flags.
A parameter whose type is a dataclass stands for the fields of that dataclass: fields without a default are
positional arguments, all others flags. The text of the docstring is the description, `Args:` is the help of
each argument and `Examples:` the end of the page; `{NAME}` in `Args:` stands for the names in a variable of
the function's module.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse

from ..core.errors import DataError, printable
from ..core.settings import differences, from_dict

EXAMPLES = "examples:"
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Examples):\n", re.M)
_LONGEST = 500  # characters of an error message, which may repeat a long argument
_FEW = 2  # flags of a dataclass that get no heading of their own


class Help(jsonargparse.DefaultHelpFormatter):
    """The layout: filled paragraphs, usage in one line, no types, no defaults that say nothing."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for part in text.split("\n\n"):
            lines = [indent + line for line in part.splitlines()]
            if not any(line.startswith(f"{indent} ") for line in lines):
                filled = textwrap.wrap(" ".join(part.split()), width - len(indent), break_on_hyphens=False)
                lines = [indent + line for line in filled]
            paragraphs.append("\n".join(lines))
        return "\n\n".join(paragraphs)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None) -> str:
        words = [usage or self._prog.replace(" [options]", "")]
        for action in actions:
            if not action.option_strings:
                words.append(self._format_args(action, self._get_default_metavar_for_positional(action)))
        return f"{'usage: ' if prefix is None else prefix}{' '.join(words)} [options]\n\n"

    def _get_default_metavar_for_positional(self, action: Action) -> str:
        return action.dest.upper()

    def _get_type_str(self, action: Action) -> None:
        return None

    def _get_help_string(self, action: Action) -> str:
        written = "default:" in (action.help or "")
        text = super()._get_help_string(action).removesuffix(" (required)")
        if written or action.default is None or action.default is False:
            return text.removesuffix(" (default: %(default)s)")
        if isinstance(action.default, tuple | list):
            return text.replace("%(default)s", f"[{','.join(map(str, action.default))}]")
        return text

    def _format_action_invocation(self, action: Action) -> str:
        text, room = super()._format_action_invocation(action), self._width - self._current_indent
        if len(text) <= room or "{" not in text:
            return text
        name, _, words = text.rpartition("{")  # words too many for the line go on in the next
        lines = textwrap.wrap(words.replace(",", ", "), room - len(name) - 1)
        return f"{name}{{" + f"\n{' ' * (len(name) + 1 + self._current_indent)}".join(
            line.replace(", ", ",") for line in lines
        )


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser in our layout. Flags must be written in full; a misspelt one is named."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, formatter_class=Help, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line on stderr and exits with status 2; raises where the parser was asked to."""
        if not self.exit_on_error:
            super().error(message, ex)
        words = printable(" ".join(message.split())).rstrip(".")
        words = words if len(words) < _LONGEST else f"{words[:_LONGEST]} …"
        if words.startswith("Unrecognized arguments"):
            unknown = re.findall(r"(--[\w.]+)", words)
            words += did_you_mean(unknown[0], self._option_string_actions) if unknown else ""
        self.exit(2, f"dia: {words}; see {self.prog.replace(' [options]', '')} --help\n")


def did_you_mean(word: str, known: Iterator[str] | Mapping[str, Any]) -> str:
    """A question that names the nearest of the known words; empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    longer = [k for k in known if k.startswith(word)]  # as an abbreviation
    found = longer or near
    return f"; did you mean {found[0]}?" if found else ""


class Docstring(NamedTuple):
    """The parts of a Google-style docstring.

    Args:
        text: what stands before the first section.
        args: the help of each argument, in one line.
        examples: command lines.
    """

    text: str
    args: dict[str, str]
    examples: str


def docstring_of(thing: Any) -> Docstring:
    """Splits the docstring of a function, or that of a dataclass and of its bases."""
    args: dict[str, str] = {}
    text = examples = ""
    for each in reversed(
        [c for c in thing.__mro__ if is_dataclass(c)] if isinstance(thing, type) else [thing]
    ):
        text, *rest = _SECTION.split(inspect.cleandoc(each.__doc__ or ""))
        sections = {name: inspect.cleandoc(body) for name, body in zip(rest[::2], rest[1::2], strict=True)}
        name = ""
        for line in sections.get("Args", "").splitlines():
            if begins := re.match(r"(\w+): (.*)", line):
                name, args[begins[1]] = begins[1], begins[2]
            elif line.strip():
                args[name] += f" {line.strip()}"
        examples = sections.get("Examples", "")
    return Docstring(text.strip(), args, examples)


@dataclass(frozen=True)
class Extras:
    """What the parser of a command has that its function's signature does not say.

    Args:
        config: whether there is `--config`, and with it `--print_config`.
        parser: the parser's class.
        complete: adds the arguments whose types depend on the command line, given the parser and the words.
    """

    config: bool = False
    parser: type[ArgumentParser] = ArgumentParser
    complete: Callable[[ArgumentParser, Sequence[str]], None] | None = None


def parsed(
    *,
    config: bool = False,
    parser: type[ArgumentParser] = ArgumentParser,
    complete: Callable[[ArgumentParser, Sequence[str]], None] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command whose parser has extras; see `Extras` for the arguments."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        vars(function)["extras"] = Extras(config, parser, complete)
        return function

    return decorate


def extras_of(function: Callable[..., None]) -> Extras:
    """The extras of a command's parser."""
    found: Extras = vars(function).get("extras", Extras())
    return found


def parser_of(function: Callable[..., None], prog: str, argv: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a command.

    Args:
        function: the command. A parameter of type `Any` is left to the `complete` of its extras.
        prog: how the command is called, as `dia fit`.
        argv: the words after the command's name, on which some arguments depend.

    Returns:
        The parser of these words.
    """
    doc, extras = docstring_of(function), extras_of(function)
    epilog = f"{EXAMPLES}\n{textwrap.indent(doc.examples, '  ')}"
    parser = extras.parser(prog=prog, description=doc.text, epilog=epilog)
    if extras.config:
        parser.add_argument(
            "--config", action=jsonargparse.ActionConfigFile, help="YAML with any of these options"
        )
    _add_positional(parser, function)
    _add_flags(parser, parser, function)
    if extras.complete is not None:
        extras.complete(parser, argv)
    return parser


class _Parameter(NamedTuple):
    name: str
    kind: Any  # its type
    default: Any  # MISSING where there is none
    positional: bool
    help: str


def _parameters(thing: Any) -> Iterator[_Parameter]:
    """The parameters of a function or the fields of a dataclass, in order."""
    hints, helps = get_type_hints(thing), docstring_of(thing).args

    def described(name: str) -> str:
        names = vars(sys.modules[thing.__module__])
        text = re.sub(r"\{([A-Z_]+)\}", lambda m: ", ".join(names[m[1]]), helps.get(name, ""))
        return text.replace("%", "%%")

    if is_dataclass(thing):
        for f in fields(thing):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            yield _Parameter(f.name, hints[f.name], default, default is MISSING, described(f.name))
        return
    for p in inspect.signature(thing).parameters.values():
        default = MISSING if p.default is p.empty else p.default
        yield _Parameter(p.name, hints[p.name], default, p.kind is not p.KEYWORD_ONLY, described(p.name))


def _add_positional(parser: ArgumentParser, thing: Any) -> None:
    for p in _parameters(thing):
        if is_dataclass(p.kind):
            _add_positional(parser, p.kind)
        elif p.positional and get_origin(p.kind) is list:
            parser.add_argument(p.name, type=get_args(p.kind)[0], nargs="+", help=p.help)
        elif p.positional and p.default is MISSING:
            parser.add_argument(p.name, type=p.kind, help=p.help)
        elif p.positional:
            parser.add_argument(p.name, type=p.kind, nargs="?", help=p.help)  # jsonargparse: None, if absent


def _add_flags(parser: ArgumentParser, where: Any, thing: Any) -> None:
    """The flags of a function or dataclass, and after them those of the dataclasses among its parameters."""
    own = [p for p in _parameters(thing) if not is_dataclass(p.kind)]
    for p in own:
        if p.positional or p.kind is Any:
            continue
        if p.kind is bool and p.default is False:
            where.add_argument(f"--{p.name}", action="store_true", help=p.help)
        else:
            default = list(p.default) if isinstance(p.default, tuple) else p.default
            where.add_argument(f"--{p.name}", type=p.kind, default=default, help=p.help)
    for p in _parameters(thing):
        if is_dataclass(p.kind):
            title = docstring_of(p.kind).text.partition("\n")[0].rstrip(".")
            many = sum(not q.positional for q in _parameters(p.kind)) > _FEW
            _add_flags(parser, parser.add_argument_group(title) if many else parser, p.kind)


def arguments_of(function: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a command is called with, from the values that its parser found.

    Args:
        function: the command.
        values: by the name of the argument, those of dataclasses in one level with all others.

    Returns:
        A value for each parameter of the function.

    Raises:
        DataError: a dataclass refuses its values.
    """

    def made(p: _Parameter) -> Any:
        if is_dataclass(p.kind):
            assert isinstance(p.kind, type)
            return p.kind(**{q.name: made(q) for q in _parameters(p.kind)})
        return values.get(p.name)

    return {p.name: made(p) for p in _parameters(function)}


def refuse_nulls(parser: ArgumentParser, values: jsonargparse.Namespace) -> None:
    """Refuses a null of a configuration where None is no value: jsonargparse lets it stand everywhere.

    Args:
        parser: of the command.
        values: what it parsed.

    Raises:
        DataError: it names the option.
    """
    for action in parser._actions:
        kind = getattr(action, "_typehint", None)
        none = action.default in (None, SUPPRESS) or kind is None or type(None) in get_args(kind)
        if not none and action.dest in values and values[action.dest] is None:
            raise DataError(f"{action.dest} cannot be null; give a value, or leave it out")


class MarkedParser(ArgumentParser):
    """Prints its configuration with the paper's value beside each setting that differs from it."""

    def dump(self, *args: Any, **kwargs: Any) -> str:  # what --print_config prints
        """The configuration as YAML."""
        import yaml

        from ..detectors.presets import settings
        from ..detectors.registry import detector_class

        config = yaml.safe_load(super().dump(*args, **kwargs))
        method = config.get("method")
        if "settings" not in config:
            return marked(config, {})
        cls = detector_class(str(method)).Settings
        shown = from_dict(cls, config["settings"])
        idle = shown.idle() if hasattr(shown, "idle") else ()  # do nothing, so they are not printed
        for name in idle:
            config["settings"].pop(name, None)
        differ = differences(shown, settings(cls, "paper"))
        differ = {name: v for name, v in differ.items() if name.split(".")[0] not in idle}
        count = f"{len(differ)} settings differ from the paper's configuration" if differ else "as published"
        return f"# {method}: {count}\n" + marked(config, {f"settings.{k}": v[1] for k, v in differ.items()})


def marked(config: Mapping[str, Any], paper: Mapping[str, Any], path: str = "") -> str:
    """YAML with the paper's values as comments, lists in one line.

    Args:
        config: nested plain values.
        paper: values by dotted name; `# paper: VALUE` stands beside each of these names.
        path: the dotted name of `config` itself, with a dot at its end.

    Returns:
        The text.
    """
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
