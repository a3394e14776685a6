"""YAML that a user gives, which may come from a stranger: read as plain values, within limits.

PyYAML is slow, and aliases let a few lines stand for a billion values: the length of a file and the number of
its values are limited. Knows YAML; knows no setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import DataError

MAX_BYTES = 64 * 2**10
MAX_VALUES = 100_000  # with aliases written out


def read_yaml(path: Path | str) -> Any:
    """Reads the values in a file.

    Raises:
        DataError: no such file, no YAML, or more than the limits allow.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise DataError(f"{path}: more than {MAX_BYTES >> 10} KiB of YAML; a configuration is shorter")
        values = yaml.safe_load(text.decode())
        if _count(values, {}) > MAX_VALUES:
            raise DataError(f"{path}: it stands for more than {MAX_VALUES} values, aliases written out")
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    except Exception as error:  # PyYAML's own, and what Python says of odd text, numbers and dates
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())[:150]})") from error
    return values


def _count(value: Any, known: dict[int, int]) -> int:
    """Counts the values in `value`, once for each place; too many where a value holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = MAX_VALUES + 1  # if it is met within itself
        known[id(value)] = 1 + sum(_count(v, known) for v in inner)
    return known[id(value)]
