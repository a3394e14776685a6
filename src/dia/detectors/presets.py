"""Settings of `csi` and `dia`, and presets: named settings of every method. Knows settings only.

`paper` is the published configuration in every detail.

- `cpu`: minutes on two cores. A small U-Net on folded pixels, a narrow encoder, a bank of four t.
- `gpu`: for one accelerator: larger networks, longer training.
- `paper`: T = 1000, cosine schedule, L1, Adam 8e-5, raw weights, 32×32; t ∈ [30, 100) drawn anew for
  each batch and shift; ResNet-18 from scratch, LARS, 1000 epochs of ⌈N/32⌉ batches, at most 200, of which
  10 epochs warm up; crop (.08, 1), jitter .4/.4/.4/.1, τ .5; 10 samples at crop .54, drawn for each image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from typing import Any, Literal, get_args, get_type_hints

from ..amplify.augment import AugmentSettings
from ..amplify.settings import AmplifySettings
from ..core.settings import SettingsError, check, require
from ..dissolve.settings import T_MAX, DissolverSettings

Part = Literal["cosine", "norm", "shift"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class CSISettings:
    """CSI: contrastive learning on shifted instances, without dissolved views.

    Args:
        amplify: encoder and training.
        samples: seeded augmentations averaged per shift when scoring.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        score_parts: which of `cosine`, `norm` and `shift` make the score; all three as published.
        score_draws: whether a seeded augmentation is one draw `shared` by all images and shifts, or each
            image's and shift's `own`, flipped at random, as published.
    """

    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    samples: int = 10
    bank_size: int = 16384
    score_parts: tuple[Part, ...] = PARTS
    score_draws: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        _check_scoring(self)


def _check_scoring(s: Any) -> None:
    """Checks settings with CSI's score."""
    check(s, samples="[1, inf)", bank_size="[1, inf)")
    known = set(s.score_parts) <= set(PARTS) and len(set(s.score_parts)) == len(s.score_parts)
    require(known and bool(s.score_parts), "score_parts", f"must be some of {', '.join(PARTS)}, once each")
    if s.amplify.shift == "none" and set(s.score_parts) == {"shift"}:
        raise SettingsError("score_parts of shift alone needs shifts: choose another amplify.shift than none")


@dataclass(frozen=True)
class DIASettings:
    """The settings of DIA.

    Args:
        dissolver: the diffusion model, or a control that stands in for it.
        amplify: encoder and contrastive training.
        ts: diffusion steps from which t is drawn, ascending; `amplify.t_per` and `t_sampler` say how.
        live: dissolve during training instead of once before it; the same views, slower.
        samples: seeded augmentations averaged per shift when scoring.
        bank_size: training normals kept to compare with; of more, this many evenly spaced ones.
        bank_gb: space on disk for the dissolved copies; where it is too small for all images that training
            asks for, the encoder trains on fewer images, evenly spaced.
        score_parts: which of `cosine`, `norm` and `shift` make the score; all three as published.
        score_draws: whether seeded augmentations are `shared` by all images or each image's `own`.
    """

    dissolver: DissolverSettings = field(default_factory=DissolverSettings)
    amplify: AmplifySettings = field(default_factory=AmplifySettings)
    ts: tuple[int, ...] = (30, 53, 76, 99)
    live: bool = False
    samples: int = 10
    bank_size: int = 16384
    bank_gb: float = 16.0
    score_parts: tuple[Part, ...] = PARTS
    score_draws: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        _check_scoring(self)
        check_dissolved(self)

    def idle(self) -> tuple[str, ...]:
        """Returns the settings that do nothing, as the others stand."""
        return tuple(f"dissolver.{name}" for name in self.dissolver.idle())


def check_dissolved(s: Any) -> None:
    """Checks settings of training against dissolved copies; raises SettingsError."""
    check(s, bank_gb="(0, inf)")
    holds = bool(s.ts) and list(s.ts) == sorted(set(s.ts)) and s.ts[0] >= 0 and s.ts[-1] < T_MAX
    require(holds, "ts", f"must be ascending diffusion steps in 0–{T_MAX - 1}, not {list(s.ts)}")


PRESETS = ("cpu", "gpu", "paper")

# Larger images are read at this longer side at most (`--size` overrides it).
MAX_SIZE = {"cpu": 128, "gpu": 128, "paper": 224}


def longest_side(settings_class: type, preset: str) -> int:
    """Returns the longer side in pixels at which larger images are read.

    Args:
        settings_class: of the method, which may have a `longest` of its own.
        preset: `cpu`, `gpu` or `paper`.
    """
    return int(getattr(settings_class, "longest", 0) or MAX_SIZE[preset])


_GENTLE = AugmentSettings(jitter=(0.2, 0.2, 0.2, 0.05), crop=(0.3, 1.0))
_DISSOLVER = {
    "cpu": DissolverSettings(),
    "gpu": DissolverSettings(widths=(64, 128, 256), layers=2, steps=8000, batch=128, lr=1e-3, ema=0.999),
    "paper": DissolverSettings(
        size=32, patch=1, widths=(64, 128, 256, 512), attention=True, steps=100_000, lr=8e-5,
        cosine=False, ema=0.995, ema_weights=False, precision="32",
    ),
}  # fmt: skip
_AMPLIFY = {
    "cpu": AmplifySettings(width=24, stem="patch", steps=180, augment=_GENTLE),
    "gpu": AmplifySettings(steps=4000, batch=64, augment=_GENTLE),
    "paper": AmplifySettings(
        size=224, rgb=True, steps=None, optimizer="lars", lr=1.0, warmup=0.01, precision="32"
    ),
}

_OTHER: dict[str, dict[str, Any]] = {
    "cpu": {"samples": 4},
    "gpu": {"ts": tuple(range(30, 100, 10))},
    "paper": {"ts": tuple(range(30, 100)), "live": True, "score_draws": "own"},
}


def settings(settings_class: type, preset: str = "cpu") -> Any:
    """Returns the settings of a method under a preset; a preset changes the settings that the method has.

    Args:
        settings_class: the method's frozen dataclass.
        preset: `cpu`, `gpu` or `paper`.

    Raises:
        ValueError: the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    return _made(settings_class, preset)


@lru_cache(maxsize=64)  # they are frozen
def _made(settings_class: Any, preset: str) -> Any:
    if hasattr(settings_class, "preset"):
        return settings_class.preset(preset)
    known = {"dissolver": _DISSOLVER[preset], "amplify": _AMPLIFY[preset], **_OTHER[preset]}
    hints = get_type_hints(settings_class)
    if not hints.keys() & {"dissolver", "amplify", "contrast"}:
        return settings_class()  # a method from outside: its `samples` or `ts` would mean something else
    values = {name: known[name] for name in hints if name in known}
    for name in hints.keys() - known.keys():
        if is_dataclass(hints[name]):
            values[name] = settings(hints[name], preset)
    return settings_class(**values)
