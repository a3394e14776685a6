"""The settings of what dissolves: a diffusion model, or one of its controls. Knows no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..core.settings import chosen, require
from ..core.training import Precision

T_MAX = 1000


Kind = Literal["diffusion", "gaussian", "median", "noise", "shrink", "bottleneck", "identity", "none"]


# the setting that says how much a control removes
STRENGTHS = {
    "gaussian": "sigma",
    "median": "kernel",
    "noise": "noise",
    "shrink": "threshold",
    "bottleneck": "bottleneck",
}


@dataclass(frozen=True)
class DissolverSettings:
    """What dissolves, and how a diffusion model for it is built and trained.

    Args:
        size: images longer than this on a side are dissolved at this size and resized back bilinearly.
        patch: side of the pixel block folded into channels before the U-Net (1 = none).
        widths: channels of the U-Net's levels, multiples of 8.
        layers: residual blocks per level.
        attention: self-attention in the middle block.
        loss: `l1` (as published) or `l2` between true and estimated noise.
        steps: optimiser steps.
        batch: images per step.
        lr: learning rate of Adam, constant unless `cosine`.
        cosine: lower the learning rate to 0 along a half cosine.
        ema: decay of the weight average.
        ema_weights: dissolve with the averaged weights; the official code uses the raw ones.
        hflip: flip half of the training images.
        precision: of training: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it.
            Dissolving is in 32 bits.
        pretrained: folder or hub name of an unconditional diffusers DDPM to use instead of training.
        kind: what dissolves: `diffusion`; or a control that trains nothing: `gaussian` or
            `median` with `kernel`, `noise` of diffusion step t, `shrink` (small cosine coefficients go, by
            `threshold`), `bottleneck` (to fewer pixels and back), `identity` (a third view that is not
            dissolved); or `none`: no dissolved views, which makes `dia` what `csi` is.
        kernel: side in pixels (odd) of the Gaussian or median window, at the working size.
        input_range: `right`: the U-Net dissolves images in [−1, 1], as it was trained; `released`: in
            [0, 1], the defect of the official code.
        sigma: width in pixels of `gaussian`, whose window then reaches 4σ and not `kernel`; None: what
            follows from `kernel` by OpenCV's rule.
        noise: standard deviation of `noise` in grey levels of 0–255, at every t; None: that of t.
        threshold: of `shrink`, in grey levels of 0–255: every coefficient of the orthonormal cosine
            transform moves so far towards 0, but for the mean's.
        bottleneck: longer side in pixels to which `bottleneck` brings the image and back; it does nothing to
            images that are no longer, or where `size` is no larger and has done it.
        matched: the control's strength (`sigma`, `kernel`, `noise`, `threshold` or `bottleneck`) is found at
            fitting: a diffusion model of the other settings is trained, and the control removes as much.
    """

    size: int = 64
    patch: int = 2
    widths: tuple[int, ...] = (24, 48)
    layers: int = 1
    attention: bool = False
    loss: Literal["l1", "l2"] = "l1"
    steps: int = 500
    batch: int = 32
    lr: float = 2e-3
    cosine: bool = True
    ema: float = 0.99
    ema_weights: bool = True
    hflip: bool = True
    precision: Precision = "auto"
    pretrained: str | None = None
    kind: Kind = "diffusion"
    kernel: int = 7
    input_range: Literal["right", "released"] = "right"
    sigma: float | None = None
    noise: float | None = None
    threshold: float = 10.0
    bottleneck: int = 32
    matched: bool = False

    def __post_init__(self) -> None:
        for name in ("loss", "precision", "kind", "input_range"):
            chosen(self, name)
        for name in ("patch", "layers", "steps", "batch"):
            require(
                getattr(self, name) >= 1,
                f"dissolver.{name}",
                f"must be at least 1, not {getattr(self, name)}",
            )
        require(self.size >= 8, "dissolver.size", f"must be at least 8 pixels, not {self.size}")
        require(
            bool(self.widths) and all(w > 0 and w % 8 == 0 for w in self.widths),
            "dissolver.widths", f"must be multiples of 8, not {list(self.widths)}",
        )  # fmt: skip
        require(self.lr > 0, "dissolver.lr", f"must be above 0, not {self.lr}")
        require(0 <= self.ema < 1, "dissolver.ema", f"must lie in [0, 1), not {self.ema}")
        require(
            self.kernel >= 3 and self.kernel % 2 == 1,
            "dissolver.kernel",
            f"must be odd, from 3, not {self.kernel}",
        )
        for name, unit in (("sigma", "pixels"), ("noise", "grey levels")):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"dissolver.{name}",
                f"must be above 0 {unit}, not {value}",
            )
        require(
            0 <= self.threshold < math.inf,
            "dissolver.threshold", f"must be at least 0 grey levels, not {self.threshold}",
        )  # fmt: skip
        require(
            self.bottleneck >= 1, "dissolver.bottleneck", f"must be at least 1 pixel, not {self.bottleneck}"
        )
        require(
            not self.matched or self.kind in STRENGTHS,
            "dissolver.matched", f"is for kinds {', '.join(STRENGTHS)}; leave it out with kind {self.kind}",
        )  # fmt: skip
        for name, plain in (("pretrained", None), ("input_range", "right")):
            require(
                self.kind == "diffusion" or self.matched or getattr(self, name) == plain,
                f"dissolver.{name}", f"is for kind diffusion; leave it out with kind {self.kind}",
            )  # fmt: skip
