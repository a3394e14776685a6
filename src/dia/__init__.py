"""DIA: Dissolving Is Amplifying. Subtle anomalies in medical images, learned from normal images only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dissolve.module import Dissolve

__all__ = ["Dissolve"]


def __getattr__(name: str) -> Any:
    if name == "Dissolve":  # here, so that `import dia` does not import torch
        from .dissolve.module import Dissolve

        return Dissolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
