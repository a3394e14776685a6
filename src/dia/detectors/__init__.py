"""Detectors: fit on normals, score new images, say where, carry their calibration."""

from ..data.imageset import DataError
from .anomalib import PREFIX, anomalib_class
from .base import Detector
from .blur import Blur
from .csi import CSI
from .dia import DIA
from .diaplus import DIAPlus
from .kdad import KDAD
from .msc import MSC
from .peers import PEERS
from .transformaly import Transformaly
from .trivial import TRIVIAL
from .uniad import UniAD

TRIVIAL = TRIVIAL | {Blur.method: Blur}
_OWN: tuple[type[Detector], ...] = (DIAPlus, DIA, CSI, MSC, Transformaly, KDAD, UniAD)
METHODS: dict[str, type[Detector]] = {c.method: c for c in _OWN} | PEERS | TRIVIAL
DEFAULT = DIAPlus.method


def detector_class(method: str) -> type[Detector]:
    """The class of a method by its name: one of `METHODS`, or `anomalib:NAME` for any of anomalib's models.

    Raises:
        DataError: no such method, or anomalib is missing.
    """
    if method.startswith(PREFIX):
        return anomalib_class(method)
    if method not in METHODS:
        raise DataError(
            f"method {method} is not known; there are: {', '.join(METHODS)}, and {PREFIX}NAME for any other "
            "image model of anomalib"
        )
    return METHODS[method]


__all__ = [
    "CSI",
    "DEFAULT",
    "DIA",
    "KDAD",
    "METHODS",
    "MSC",
    "PEERS",
    "TRIVIAL",
    "Blur",
    "DIAPlus",
    "Detector",
    "Transformaly",
    "UniAD",
    "detector_class",
]
