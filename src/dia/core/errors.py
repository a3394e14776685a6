"""The errors that the command line prints as one line: of data, of training, of the system.

Imports no torch, so that programs without it can know them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer finite, or processes cannot share the work.

    Attributes:
        batch: indices of the training images in the batch at fault; empty where no batch is at fault.
        of: the number of training images.
    """

    def __init__(self, message: str, batch: Sequence[int] = (), of: int = 0):
        super().__init__(message)
        self.batch, self.of = batch, of


def printable(text: str) -> str:
    """Escapes line ends, control characters and lone surrogates, so that a terminal shows one plain line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text; the name of its class where it has none."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def system_error(error: BaseException, target: str = "") -> str:
    """Describes an error of the system, with the remedy, in one line.

    Args:
        error: an `OSError`, or what safetensors and torch make of one.
        target: where the command writes; named where the error names no file.

    Returns:
        The line; empty where the error is none of the system's.
    """
    if isinstance(error, OSError):
        number, words, target = error.errno or 0, str(error), str(error.filename or target)
    elif found := re.search(r"os error (\d+)\)", str(error)):  # safetensors, in Rust
        number, words = int(found[1]), str(error)
    elif "PytorchStreamWriter" in str(error) or "inline_container" in str(error):  # torch says no more
        number, words = errno.ENOSPC, str(error)
    else:
        return ""
    again = "the same command goes on with a grid, and with --resume a fit or a score"
    if number in NO_ROOM:
        return f"{target or 'a file'}: {os.strerror(number)}; make room there: {again}"
    if number == errno.EROFS:
        return f"{target or 'a file'}: {os.strerror(number)}; choose a folder that can be written"
    return words


class DataError(ValueError):
    """Input that cannot be used. The message is one printable line: what, where, and the remedy."""

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))
