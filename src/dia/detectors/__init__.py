"""Detectors: fit on normals, score new images, say where, carry their calibration."""

from .base import Detector
from .blur import Blur
from .csi import CSI
from .dia import DIA
from .diaplus import DIAPlus
from .msc import MSC
from .transformaly import Transformaly
from .trivial import TRIVIAL

TRIVIAL = TRIVIAL | {Blur.method: Blur}
METHODS: dict[str, type[Detector]] = {c.method: c for c in (DIAPlus, DIA, CSI, MSC, Transformaly)} | TRIVIAL
DEFAULT = DIAPlus.method

__all__ = [
    "CSI",
    "DEFAULT",
    "DIA",
    "METHODS",
    "MSC",
    "TRIVIAL",
    "Blur",
    "DIAPlus",
    "Detector",
    "Transformaly",
]
