"""DIA: Dissolving Is Amplifying. Subtle anomalies in medical images, learned from normal images only."""

import os
from typing import TYPE_CHECKING, Any

# diffusers imports onnxruntime where it is installed, which from 1.32 sends usage data unless told not to
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .dissolve.transform import Dissolve

__all__ = ["Dissolve"]


def __getattr__(name: str) -> Any:
    if name == "Dissolve":  # here, so that `import dia` does not import torch
        from .dissolve.transform import Dissolve

        return Dissolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
