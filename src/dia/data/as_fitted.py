"""How images were looked at when a model was fitted, and so how they are looked at now.

Knows the facts that `dia fit` keeps; knows nothing of files and pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .formats.windowing import View

OPTIONS = ("window", "axis", "slices")  # of `data.windows.View.of`


def as_fitted(facts: Mapping[str, Any], **given: str | None) -> dict[str, str | None]:
    """`window`, `axis` and `slices` for `readers.listing`: as given, else as the model was fitted.

    Args:
        facts: of the detector (`facts_`).
        given: any of the three; None where it is not.

    Raises:
        DataError: what is given is not known.
    """
    read = facts.get("read") or {}
    for option in OPTIONS:
        now, then = given.get(option), read.get(option)
        if option in read and now is not None and View.of(**{option: now}) != View.of(**{option: then}):
            fitted = f"the model was fitted with {then or 'the default'}"
            warnings.warn(
                f"--{option} {now}: {fitted}; its p-values and threshold do not hold",
                stacklevel=2,
            )
    return {option: given.get(option) or read.get(option) for option in OPTIONS}
