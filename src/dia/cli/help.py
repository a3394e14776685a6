"""How help is laid out: as pages to read, with examples. Knows argparse; knows no command.

Paragraphs of descriptions are filled, indented lines kept; usage is one line; types are left out, and of
defaults those that say nothing. The list of commands takes the first sentence of each description.
"""

from __future__ import annotations

import inspect
import textwrap
from argparse import Action, _SubParsersAction
from collections.abc import Generator
from typing import Any, NoReturn, get_args

import jsonargparse

from ..core.errors import DataError, printable
from ..core.settings import differences, from_dict

EXAMPLES = "examples:"
_LONGEST = 500  # characters of what is said of an argument, which it may repeat


def examples(*commands: str) -> str:
    """An epilog of command lines; a text after ` # ` in a line says what it is for."""
    lines = [textwrap.indent(command, "  ") for command in commands]
    return "\n".join([EXAMPLES, *lines])


class Help(jsonargparse.DefaultHelpFormatter):
    """The layout."""

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
        words = [self._prog.replace(" [options]", "")]
        for action in actions:
            if isinstance(action, _SubParsersAction):
                words.append("COMMAND")
            elif not action.option_strings:
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

    def _iter_indented_subactions(self, action: Action) -> Generator[Action, None, None]:
        for sub in super()._iter_indented_subactions(action):
            if sub.help is None and isinstance(action.choices, dict) and sub.dest in action.choices:
                sub.help = summary(action.choices[sub.dest])
            yield sub


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's, in our layout; descriptions are indented as docstrings are."""

    def __init__(self, *args: Any, description: str = "", **kwargs: Any):
        super().__init__(*args, description=inspect.cleandoc(description), formatter_class=Help, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line on stderr, and exit status 2; an error where the parser was asked for one."""
        if not self.exit_on_error:
            super().error(message, ex)
        where = getattr(ex, "subcommand_parser", None) or self
        words = printable(" ".join(message.split())).rstrip(".")
        words = words if len(words) < _LONGEST else f"{words[:_LONGEST]} …"
        self.exit(2, f"dia: {words}; see {where.prog.replace(' [options]', '')} --help\n")


def refuse_nulls(parser: jsonargparse.ArgumentParser, values: jsonargparse.Namespace) -> None:
    """A null of a configuration stands only where None is a value: jsonargparse lets it stand everywhere.

    Raises:
        DataError: it names the option.
    """
    for action in commands(parser)[values.command]._actions:
        kind = getattr(action, "_typehint", None)
        none = action.default is None or kind is None or type(None) in get_args(kind)
        if not none and action.dest in values[values.command] and values[values.command][action.dest] is None:
            raise DataError(f"{action.dest} cannot be null; give a value, or leave it out")


def summary(parser: jsonargparse.ArgumentParser) -> str:
    """The first sentence of a command's description."""
    return (parser.description or "").split(". ")[0].split(".\n")[0].rstrip(".")


def commands(parser: jsonargparse.ArgumentParser) -> dict[str, jsonargparse.ArgumentParser]:
    """The commands of a parser by name."""
    assert parser._subparsers is not None
    (action,) = parser._subparsers._group_actions
    return dict(action.choices)  # type: ignore[arg-type]


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
