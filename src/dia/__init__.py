"""DIA: Dissolving Is Amplifying. Subtle anomalies in medical images, learned from normal images only."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.running.threads import wait_passively

# diffusers imports onnxruntime where it is installed, which from 1.32 sends usage data unless told not to
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
wait_passively()  # OpenMP looks when torch is loaded

if TYPE_CHECKING:
    from .api.model import fit, load
    from .dissolve.transform import Dissolve

    __version__: str

__all__ = ["Dissolve", "__version__", "fit", "load"]
_ELSEWHERE = {"Dissolve": "dissolve.transform", "fit": "api.model", "load": "api.model"}


def __getattr__(name: str) -> Any:  # on demand, so that `import dia` does not import torch
    if name in _ELSEWHERE:
        return getattr(import_module(f".{_ELSEWHERE[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("dia-anomaly")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
