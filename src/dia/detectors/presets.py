"""Presets: named settings of every method. `paper` is the published configuration in every detail.

Knows the settings dataclasses only.

- `cpu`: minutes on two cores. A small U-Net on folded pixels, a narrow encoder, a bank of four t.
- `gpu`: for one accelerator: larger networks, longer training.
- `paper`: T = 1000, cosine schedule, L1, Adam 8e-5, raw weights, 32×32; t ∈ [30, 100) drawn anew for
  each batch and shift; ResNet-18 from scratch, LARS, 1000 epochs of ⌈N/32⌉ batches, at most 200, of which
  10 epochs warm up; crop (.08, 1), jitter .4/.4/.4/.1, τ .5; 10 samples at crop .54, drawn for each image.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from ..amplify.augment import AugmentSettings
from ..amplify.contrast import AmplifySettings
from ..dissolve import DissolverSettings

PRESETS = ("cpu", "gpu", "paper")

# Larger images are read at this longer side at most (`--size` overrides it).
MAX_SIZE = {"cpu": 64, "gpu": 128, "paper": 224}

_DISSOLVER = {
    "cpu": DissolverSettings(),
    "gpu": DissolverSettings(
        widths=(64, 128, 256), layers=2, patch=2, steps=8000, batch=128, lr=1e-3, ema=0.999
    ),
    "paper": DissolverSettings(
        size=32,
        patch=1,
        widths=(64, 128, 256, 512),
        layers=1,
        attention=True,
        steps=100_000,
        lr=8e-5,
        cosine=False,
        ema=0.995,
        ema_weights=False,
        precision="32",
    ),
}

_AMPLIFY = {
    "cpu": AmplifySettings(
        width=24,
        stem="patch",
        steps=180,
        augment=AugmentSettings(jitter=(0.2, 0.2, 0.2, 0.05), crop=(0.3, 1.0)),
    ),
    "gpu": AmplifySettings(
        width=64,
        stem="auto",
        steps=4000,
        batch=64,
        augment=AugmentSettings(jitter=(0.2, 0.2, 0.2, 0.05), crop=(0.3, 1.0)),
    ),
    "paper": AmplifySettings(
        size=224,
        rgb=True,
        steps=None,
        optimizer="lars",
        lr=1.0,
        warmup=0.01,
        weight_decay=1e-6,
        precision="32",
    ),
}

_OTHER: dict[str, dict[str, Any]] = {
    "cpu": {"samples": 4},
    "gpu": {"ts": tuple(range(30, 100, 10))},
    "paper": {"ts": tuple(range(30, 100)), "live": True, "score_draws": "own"},
}


def settings(settings_class: type, preset: str = "cpu") -> Any:
    """The settings of a method under a preset; methods take of it what their settings have.

    Raises:
        ValueError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if hasattr(settings_class, "preset"):
        return settings_class.preset(preset)
    if not {"dissolver", "amplify"} & {f.name for f in fields(settings_class)}:
        return settings_class()  # a method from outside: its `samples` or `ts` would be others than these
    known = {"dissolver": _DISSOLVER[preset], "amplify": _AMPLIFY[preset], **_OTHER[preset]}
    hints, values = get_type_hints(settings_class), {}
    for f in fields(settings_class):
        if f.name in known:
            values[f.name] = known[f.name]
        elif is_dataclass(hints[f.name]):
            values[f.name] = settings(hints[f.name], preset)
    return settings_class(**values)
