"""What every settings dataclass shares: checks, differences, and its form as plain values.

Settings are frozen dataclasses, nested. One definition is the constructor's argument, the command line's
flags, the saved JSON, and what the ledger says of a run. This file knows no particular settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from math import inf
from operator import le, lt
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import DataError


class SettingsError(DataError):
    """Settings that cannot be, or not together. Names the setting and says what to do."""


def require(holds: bool, setting: str, must: str) -> None:
    """Raises `SettingsError` "setting MUST" unless it holds."""
    if not holds:
        raise SettingsError(f"{setting} {must}")


def chosen(settings: Any, name: str) -> None:
    """Checks a field against the words its `Literal` type allows."""
    words = get_args(get_type_hints(type(settings))[name])
    value = getattr(settings, name)
    require(value in words, name, f"must be one of {', '.join(map(str, words))}, not {value!r}")


def plain(settings: Any) -> dict[str, Any]:
    """All values, nested settings as dicts: what is saved and what YAML shows."""
    return {f.name: plain(v) if is_dataclass(v := getattr(settings, f.name)) else v for f in fields(settings)}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted name: {"amplify.width": 24, ...}."""
    made: dict[str, Any] = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        made |= flat(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: value}
    return made


def differences(settings: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """(value, value in `other`) of each dotted name in which two settings of one class differ."""
    a, b = flat(settings), flat(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def changes_from(settings: Any, base: Any) -> dict[str, Any]:
    """The settings that differ from `base`, by dotted name, in the form that JSON gives back.

    A setting that is added later, at a default that does what was done before, differs in neither: what was
    written before it was added stays equal to what is written after.

    Args:
        settings: a settings dataclass.
        base: another one of the same class, such as a preset's.

    Returns:
        Values for `replaced(base, ...)`, with tuples as lists; empty where nothing differs.
    """
    made = {name: value for name, (value, _) in differences(settings, base).items()}
    return dict(json.loads(json.dumps(made)))


def replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values by dotted name; all are set before any is checked against the others.

    Raises:
        SettingsError: no such setting, or values that cannot be together.
    """
    known = flat(settings)
    if unknown := [name for name in values if name not in known]:
        raise SettingsError(f"no setting {unknown[0]}; there are: {', '.join(sorted(known))}")
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changes[head] = as_typed(get_type_hints(type(settings))[head], value)
    for head, nested in inner.items():
        changes[head] = replaced(getattr(settings, head), nested)
    return replace(settings, **changes)


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Settings from their `plain` form, as JSON or YAML give it back; unknown names are refused."""
    hints = get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise SettingsError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}")
    typed = {name: as_typed(hints[name], value) for name, value in values.items()}
    if wrong := [name for name, value in typed.items() if not fits(hints[name], value)]:
        raise SettingsError(f"{cls.__name__}.{wrong[0]} cannot be {str(values[wrong[0]])[:50]!r}")
    return cls(**typed)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the type its field has; a number stands for a float only if it is finite."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(a, value) for a in args)
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [args[0]] * len(value) if args[-1:] == (Ellipsis,) else list(args)
        return len(value) == len(kinds) and all(map(fits, kinds, value))
    if isinstance(hint, type) and issubclass(hint, int | float):
        return type(value) is hint and (hint is bool or abs(value) < 2**63)
    return hint is Any or isinstance(value, origin or hint)


def as_typed(hint: Any, value: Any) -> Any:
    """A value as its field wants it: lists as tuples, dicts as nested settings, whole numbers as floats."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)  # type: ignore[arg-type]
    if isinstance(value, list) and tuple in (get_origin(hint), *map(get_origin, get_args(hint))):
        return tuple(value)
    return float(value) if hint is float and type(value) is int else value


def check(settings: Any, prefix: str = "", **intervals: str) -> None:
    """Checks the words of every `Literal` field, and numbers against intervals.

    Args:
        settings: a settings dataclass.
        prefix: stands before a field's name in messages, such as `dissolver.`.
        intervals: by field, such as `"[0, 1)"` or `"(0, inf)"`; None passes, a tuple passes where all of its
            values do.

    Raises:
        SettingsError: a field has another word or lies outside its interval.
    """
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            chosen(settings, name)
    for name, interval in intervals.items():
        low, high = map(float, interval[1:-1].split(","))
        left = le if interval[0] == "[" else lt
        right = le if interval[-1] == "]" else lt
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        must = f"lie in {interval}"
        if high == inf:
            must = f"be at least {low:g}" if left is le else f"be above {low:g}"
        holds = all(v is None or (left(low, v) and right(v, high)) for v in values)
        require(holds, prefix + name, f"must {must}, not {value}")
