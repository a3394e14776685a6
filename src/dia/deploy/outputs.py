"""What a command writes is none of what it reads: asked before any work begins, for every command.

Knows paths, model folders and the mark of the package's own pictures; knows no command.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..core.errors import DataError
from ..core.modelfiles import STRESS
from ..data.formats.mark import is_marked
from ..data.layouts import ImageFile

_MODEL = "config.json"  # a folder with this file is a model


def check_outputs(outputs: Mapping[str, str | None], inputs: Iterable[str | None]) -> None:
    """Refuses outputs by which a command would write over what it reads.

    Refused are an output that is an input, by whatever name or link; one within a model folder that is read,
    but for the result of `dia stress`; a model folder, replaced as a whole, in which an input lies; and a
    file that exists and is an image, or an `.npz`, which this package did not draw: it may be listed in an
    input, or be that of another command.

    Args:
        outputs: where the command writes, by flag; None for nowhere.
        inputs: files and folders that it reads; None and names of known data sets count for nothing.

    Raises:
        DataError: the line names the flag, and what it would have written over.
    """
    read = [Path(path) for path in inputs if path and os.path.exists(path)]
    models = [path for path in read if (path / _MODEL).is_file()]
    for flag, given in outputs.items():
        if not given:
            continue
        path = Path(given)
        told, real = f"{flag} {given}", Path(os.path.realpath(path))
        if any(path.exists() and path.samefile(other) for other in read):
            raise DataError(f"{told}: the command reads this and would write over it; choose another {flag}")
        for model in models:
            if Path(os.path.realpath(model)) in real.parents and path.name != STRESS:
                beside = path.with_name(f"{model.resolve().name}-{path.name}").name
                raise DataError(f"{told}: in the model folder {model}; choose a place outside, as {beside}")
        if (path / _MODEL).is_file():
            for other in read:
                if real in Path(os.path.realpath(other)).parents:
                    raise DataError(f"{told}: {other}, which is read, lies in it; choose another {flag}")
        if path.is_file() and _is_foreign(path):
            raise DataError(f"{told}: there is an image that dia did not draw; choose another {flag}")


def _is_foreign(path: Path) -> bool:
    image = ImageFile.of(path) or path.suffix.lower() == ".npz"
    return bool(image) and not is_marked(path)
