"""A configuration as YAML, with the paper's value beside each setting that differs. Prints nothing."""

from __future__ import annotations

from typing import Any

from ..settings import differences, from_dict
from .helptext import ArgumentParser


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
