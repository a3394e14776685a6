"""Detectors: fit on normals, score new images, say where, carry their calibration."""

from ..data.imageset import DataError
from .base import Detector
from .blur import Blur
from .csi import CSI
from .dia import DIA
from .diaplus import DIAPlus
from .kdad import KDAD
from .msc import MSC
from .transformaly import Transformaly
from .trivial import TRIVIAL
from .uniad import UniAD

TRIVIAL = TRIVIAL | {Blur.method: Blur}
_TRAINED: tuple[type[Detector], ...] = (DIAPlus, DIA, CSI, MSC, Transformaly, KDAD, UniAD)
METHODS: dict[str, type[Detector]] = {c.method: c for c in _TRAINED} | TRIVIAL
DEFAULT = DIAPlus.method


def detector_class(method: str) -> type[Detector]:
    """The class of a method by its name.

    Raises:
        DataError: no such method.
    """
    if method not in METHODS:
        raise DataError(f"method {method} is not known; there are: {', '.join(METHODS)}")
    return METHODS[method]


__all__ = [
    "CSI",
    "DEFAULT",
    "DIA",
    "KDAD",
    "METHODS",
    "MSC",
    "TRIVIAL",
    "Blur",
    "DIAPlus",
    "Detector",
    "Transformaly",
    "UniAD",
    "detector_class",
]
