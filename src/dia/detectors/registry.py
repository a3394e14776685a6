"""Which methods there are, by name, and a preset's settings of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import DataError
from ..core.settings import replaced
from .base import Detector
from .baselines import TRIVIAL, Blur
from .dia import CSI, DIA
from .diaplus import DIAPlus
from .peers.anomalib import PREFIX, anomalib_class
from .peers.anomalib_models import PEERS
from .peers.kdad import KDAD
from .peers.msc import MSC
from .peers.transformaly import Transformaly
from .peers.uniad import UniAD
from .presets import settings

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


def wanted_settings(method: str, preset: str, changes: Mapping[str, Any] | None = None) -> Any:
    """A preset's settings of a method, with changes by dotted name.

    Raises:
        DataError: no such method.
        SettingsError: no such setting, or a value it cannot have.
    """
    wanted = settings(detector_class(method).Settings, preset)
    return replaced(wanted, changes) if changes else wanted
