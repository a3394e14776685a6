"""Detectors: fit on normals, score new images, make heatmaps, carry their calibration."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Detector
    from .baselines.images import Blur
    from .dia import CSI, DIA
    from .diaplus import DIAPlus
    from .peers.kdad import KDAD
    from .peers.msc import MSC
    from .peers.transformaly import Transformaly
    from .peers.uniad import UniAD
    from .registry import (
        CONTROLS,
        DEFAULT,
        METHODS,
        PEERS,
        TRIVIAL,
        detector_class,
        register,
        wanted_settings,
    )

__all__ = [
    "CONTROLS", "CSI", "DEFAULT", "DIA", "KDAD", "METHODS", "MSC", "PEERS", "TRIVIAL", "Blur", "DIAPlus",
    "Detector", "Transformaly", "UniAD", "detector_class", "register", "wanted_settings",
]  # fmt: skip
_ELSEWHERE = {
    "Detector": "base", "CSI": "dia", "DIA": "dia", "DIAPlus": "diaplus", "KDAD": "peers.kdad",
    "MSC": "peers.msc", "Transformaly": "peers.transformaly", "UniAD": "peers.uniad",
    "Blur": "baselines.images",
}  # fmt: skip


def __getattr__(name: str) -> Any:  # on demand: scoring with an exported file takes no torch
    if name in __all__:
        return getattr(import_module(f".{_ELSEWHERE.get(name, 'registry')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
