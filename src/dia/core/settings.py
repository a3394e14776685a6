"""Functions of every settings dataclass: checks, differences, and conversion to plain values.

Settings are frozen dataclasses, nested. One definition is the constructor's argument, the command line's
flags, the saved JSON, and the ledger's record of a run. This file knows no particular settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from math import inf
from operator import le, lt
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from .errors import DataError


class SettingsError(DataError):
    """Settings that are impossible, alone or together. The message names the setting and the remedy."""


def require(holds: bool, setting: str, must: str) -> None:
    """Checks one condition on a setting.

    Args:
        holds: whether the setting is as it must be.
        setting: its name, for the message.
        must: the rest of the message, as "must be at least 1".

    Raises:
        SettingsError: it does not hold.
    """
    if not holds:
        raise SettingsError(f"{setting} {must}")


def chosen(settings: Any, name: str) -> None:
    """Checks a field against the words that its `Literal` type allows.

    Args:
        settings: a settings dataclass.
        name: of the field.

    Raises:
        SettingsError: the value is none of them.
    """
    words = get_args(get_type_hints(type(settings))[name])
    if (value := getattr(settings, name)) not in words:
        _refuse_word(name, words, value)


def plain(settings: Any) -> dict[str, Any]:
    """Returns all values, nested settings as dicts, as they are saved and as YAML shows them."""
    return {f.name: plain(v) if is_dataclass(v := getattr(settings, f.name)) else v for f in fields(settings)}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values by dotted name: {"amplify.width": 24, ...}.

    Args:
        settings: a settings dataclass.
        prefix: put before each name.

    Returns:
        The values that are no settings dataclasses themselves.
    """
    made: dict[str, Any] = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        made |= flat(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: value}
    return made


def differences(settings: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Compares two settings.

    Args:
        settings: a settings dataclass.
        other: another one of the same class.

    Returns:
        (value, value in `other`) by dotted name, where they differ.
    """
    a, b = flat(settings), flat(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def changes_from(settings: Any, base: Any) -> dict[str, Any]:
    """Returns the settings that differ from `base`, by dotted name, in the form that JSON gives back.

    A setting that is added later, at a default that changes nothing, differs in neither: records written
    before and after stay equal.

    Args:
        settings: a settings dataclass.
        base: another one of the same class, such as a preset's.

    Returns:
        Values for `replaced(base, ...)`, with tuples as lists; empty where nothing differs.
    """
    made = {name: value for name, (value, _) in differences(settings, base).items()}
    return dict(json.loads(json.dumps(made)))


def replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    """Makes a copy with other values; all are set before any is checked against the others.

    Args:
        settings: a settings dataclass.
        values: the new values by dotted name.

    Returns:
        The copy.

    Raises:
        SettingsError: no such setting, a value of another type, or values that contradict each other.
    """
    known = flat(settings)
    if unknown := [name for name in values if name not in known]:
        raise SettingsError(f"no setting {unknown[0]}; there are: {', '.join(sorted(known))}")
    changes: dict[str, Any] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            changes.setdefault(head, {})[rest] = value
        else:
            changes[head] = _typed(type(settings), head, value)
    for head, value in changes.items():
        if is_dataclass(nested := getattr(settings, head)):
            changes[head] = replaced(nested, value)
    return replace(settings, **changes)


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Makes settings from their `plain` form, as JSON or YAML give it back.

    Args:
        cls: the settings dataclass.
        values: its values by name, nested ones as dicts; defaults stand for those that are missing.

    Returns:
        An instance of `cls`.

    Raises:
        SettingsError: an unknown name, or a value of another type.
    """
    hints = get_type_hints(cls)
    if unknown := set(values) - set(hints):
        raise SettingsError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}")
    return cls(**{name: _typed(cls, name, value) for name, value in values.items()})


def fits(hint: Any, value: Any) -> bool:
    """Returns whether a value has the type of its field; floats must be finite.

    Args:
        hint: the type.
        value: a value, after JSON's lists became tuples.

    Returns:
        True where it has.
    """
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


def _typed(cls: type, name: str, value: Any) -> Any:
    """Returns a field's value as its type wants it, or raises SettingsError."""
    hint = get_type_hints(cls)[name]
    if not fits(hint, made := _as_typed(hint, value)):
        if get_origin(hint) is Literal:
            _refuse_word(name, get_args(hint), value)
        raise SettingsError(f"{cls.__name__}.{name} cannot be {str(value)[:50]!r}")
    return made


def _refuse_word(name: str, words: tuple[Any, ...], value: Any) -> NoReturn:
    raise SettingsError(f"{name} must be one of {', '.join(map(str, words))}, not {str(value)[:50]!r}")


def _as_typed(hint: Any, value: Any) -> Any:
    """Converts lists to tuples, dicts to nested settings and whole numbers to floats, as the field wants."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)  # type: ignore[arg-type]
    if isinstance(value, list) and tuple in (get_origin(hint), *map(get_origin, get_args(hint))):
        return tuple(value)
    kinds = get_args(hint) or (hint,)
    return float(value) if type(value) is int and float in kinds and int not in kinds else value


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
