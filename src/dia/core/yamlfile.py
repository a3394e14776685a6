"""YAML that a user gives, which may come from a stranger: read as plain values, checked first.

PyYAML is slow, and aliases let a few lines stand for a billion values: a file may be so long, and stand for
so many values, whatever it says. Knows YAML; knows no setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import DataError

MAX_BYTES = 64 * 2**10
MAX_VALUES = 100_000  # with aliases written out


def read_yaml(path: Path | str) -> Any:
    """The values in a file.

    Raises:
        DataError: no such file, no YAML, or more of it than is read.
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
    """Values in `value`, one at several places counted at each; too many where one holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = MAX_VALUES + 1  # if it is met within itself
        known[id(value)] = 1 + sum(_count(v, known) for v in inner)
    return known[id(value)]
