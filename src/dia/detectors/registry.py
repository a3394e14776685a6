"""The methods by name: of this package, of installed packages, and of a user's own file.

A method is known by its name before its class is imported: methods of this package and entry points of the
group `dia.detectors` stand here as "module:Class", and importing this file imports neither torch nor a
detector. A name never becomes a path or a module of its own: what a model folder calls itself can only select
a method that this package, the user's environment or the user's own code has registered.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import DataError
from ..core.settings import replaced

if TYPE_CHECKING:
    from .base import Detector

D = TypeVar("D", bound="type[Detector]")

DEFAULT = "dia+"
PREFIX = "anomalib:"  # before the name of any image model of anomalib
GROUP = "dia.detectors"  # of entry points
PLUGINS = "DIA_PLUGINS"  # environment variable: files to load, separated as in PATH; processes inherit it

_OWN = {
    "dia+": "diaplus:DIAPlus",
    "dia": "dia:DIA",
    "csi": "dia:CSI",
    "msc": "peers.msc:MSC",
    "transformaly": "peers.transformaly:Transformaly",
    "kdad": "peers.kdad:KDAD",
    "uniad": "peers.uniad:UniAD",
}
_PEERS = {
    name: f"peers.anomalib_models:{name.capitalize()}"
    for name in ("ganomaly", "cflow", "uflow", "fastflow", "rd4ad", "efficientad", "cfa", "patchcore")
}
_TRIVIAL = {
    f"trivial:{name}": f"baselines.images:{cls}"
    for name, cls in {
        "brightness": "Brightness", "std": "Std", "gradient": "Gradient", "statistics": "Statistics",
        "spectrum": "Spectrum", "hog": "Hog", "lbp": "Lbp", "pixels": "Pixels",
        "pixels-normalised": "NormalisedPixels", "pca": "Pca", "blur": "Blur",
    }.items()
}  # fmt: skip
_CONTROLS = {
    f"control:{name.lower()}": f"baselines.controls:{name}" for name in ("Detail", "Length", "Centre")
}
_BUILT_IN = _OWN | _PEERS | _TRIVIAL | _CONTROLS

_registered: dict[str, type[Detector]] = {}  # by the decorator, in this process
_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*(:[a-z0-9][a-z0-9_.+-]*)?")


class Methods(Mapping[str, "type[Detector]"]):
    """Maps the names of methods to classes; only looking one up imports its module.

    Args:
        names: returns the names in their order.
    """

    def __init__(self, names: Callable[[], Collection[str]]):
        self._names = names

    def __getitem__(self, name: str) -> type[Detector]:
        if name not in self._names():
            raise KeyError(name)
        return _imported(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()


def register(name: str) -> Callable[[D], D]:
    """Makes a detector known by a name to the commands and to `Detector.load`.

    Args:
        name: lower-case letters, digits and `_ . + -`, with at most one colon inside; it becomes the class's
            `method`, is written into the model folder and the ledger, and must not be taken.

    Returns:
        A decorator of a subclass of `Detector`, which returns the class.

    Raises:
        DataError: the name is malformed or taken, or the settings are no frozen dataclass.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"method {name!r}: a name consists of lower-case letters, digits and _ . + -")
    if name in _BUILT_IN or name.startswith(PREFIX):
        raise DataError(f"method {name} is one of this package's own; choose another name")

    def decorate(cls: D) -> D:
        made_by = getattr(getattr(cls, "Settings", None), "__dataclass_params__", None)
        if not getattr(made_by, "frozen", False):
            raise DataError(f"method {name}: {cls.__name__}.Settings must be a frozen dataclass")
        if (there := _registered.get(name)) and _origin(there) != _origin(cls):
            raise DataError(f"method {name} is registered already, by {'.'.join(_origin(there))}")
        cls.method = name
        _registered[name] = cls
        return cls

    return decorate


def load_plugin(file: str | Path) -> None:
    """Runs a user's Python file, whose `@register` makes its detectors known, here and in child processes.

    Args:
        file: a path that the user gave; never one out of a model folder.

    Raises:
        DataError: there is no such file, it fails, or it registers no method.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise DataError(f"plugin {file}: there is no such file")
    module_name = f"dia_plugin_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return
    loader = SourceFileLoader(module_name, str(path))
    module = module_from_spec(spec_from_loader(module_name, loader))  # type: ignore[arg-type]
    sys.modules[module_name] = module  # dataclasses and type hints look for it there
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        if isinstance(error, DataError):
            raise
        raise DataError(f"plugin {file}: {type(error).__name__}: {error}") from error
    if not any(cls.__module__ == module_name for cls in _registered.values()):
        raise DataError(f"plugin {file}: it registers no method; decorate its detector with @register(NAME)")
    known = [file for file in os.environ.get(PLUGINS, "").split(os.pathsep) if file]
    os.environ[PLUGINS] = os.pathsep.join(dict.fromkeys([*known, str(path)]))


def detector_class(method: str) -> type[Detector]:
    """Returns the class of a method.

    Args:
        method: one of `METHODS`, or `anomalib:NAME` for any of anomalib's image models.

    Returns:
        The class, whose module is imported now if it was not before.

    Raises:
        DataError: there is no such method, or a package that it needs is missing.
    """
    if method.startswith(PREFIX):
        return import_module(".peers.anomalib", __package__).anomalib_class(method)
    if method in METHODS:
        return METHODS[method]
    near = get_close_matches(method, METHODS, n=3)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    others = (
        f"{PREFIX}NAME for any other image model of anomalib; a method of your own file needs --plugin FILE"
    )
    raise DataError(f"method {method} is not known{hint}; there are: {', '.join(METHODS)}, and {others}")


def wanted_settings(method: str, preset: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Returns a preset's settings of a method, with changes.

    Args:
        method: as for `detector_class`.
        preset: `cpu`, `gpu` or `paper`.
        changes: values by dotted name, such as `{"dissolver.steps": 100}`.

    Returns:
        An instance of the method's `Settings`.

    Raises:
        DataError: there is no such method.
        SettingsError: there is no such setting, or it cannot have that value.
    """
    from .presets import settings

    wanted = settings(detector_class(method).Settings, preset)
    return replaced(wanted, changes) if changes else wanted


def _names() -> list[str]:
    """Returns all names, this package's first; files of the environment variable are loaded before."""
    for file in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
        load_plugin(file)
    return list(dict.fromkeys([*_BUILT_IN, *_installed(), *_registered]))


@cache
def _installed() -> dict[str, EntryPoint]:
    """Returns the entry points of installed packages by name, but for names of this package's methods."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    return {name: found[name] for name in sorted(found) if name not in _BUILT_IN}


def _imported(name: str) -> type[Detector]:
    if name in _BUILT_IN:
        module, _, cls = _BUILT_IN[name].partition(":")
        return getattr(import_module(f".{module}", __package__), cls)
    if name not in _registered:
        point = _installed()[name]
        try:
            cls = point.load()
        except Exception as error:
            raise DataError(f"method {name}: {point.value}: {type(error).__name__}: {error}") from error
        if _registered.get(name) is not cls:
            raise DataError(f"method {name}: {point.value} is not decorated with @register({name!r})")
    return _registered[name]


def _origin(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


METHODS: Mapping[str, type[Detector]] = Methods(_names)
TRIVIAL: Mapping[str, type[Detector]] = Methods(lambda: _TRIVIAL)
CONTROLS: Mapping[str, type[Detector]] = Methods(lambda: _CONTROLS)
PEERS: Mapping[str, type[Detector]] = Methods(lambda: _PEERS)
