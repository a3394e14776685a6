"""The settings of a dissolver: a diffusion model, or one of its controls. Knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.settings import SettingsError, check
from ..core.training import Precision

T_MAX = 1000
_NETWORK = (
    "patch", "widths", "layers", "attention", "loss", "steps", "batch", "lr", "cosine", "ema", "ema_weights",
    "hflip", "precision",
)  # fmt: skip
Kind = Literal["diffusion", "gaussian", "median", "noise", "shrink", "bottleneck", "identity", "none"]
# the setting that says how much a control removes
STRENGTHS = {
    "gaussian": "sigma", "median": "kernel", "noise": "noise", "shrink": "threshold",
    "bottleneck": "bottleneck",
}  # fmt: skip


@dataclass(frozen=True)
class DissolverSettings:
    """The kind of a dissolver, and how a diffusion model is built and trained.

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
        kind: the kind of dissolver: `diffusion`; or a control that trains nothing: `gaussian` or
            `median` with `kernel`, `noise` of diffusion step t, `shrink` (small cosine coefficients go, by
            `threshold`), `bottleneck` (to fewer pixels and back), `identity` (a third view that is not
            dissolved); or `none`: no dissolved views, as in `csi`.
        kernel: side in pixels (odd) of the Gaussian or median window, at the working size.
        input_range: `right`: the U-Net dissolves images in [−1, 1], as it was trained; `released`: in
            [0, 1], the defect of the official code.
        sigma: width in pixels of `gaussian`, whose window then reaches 4σ and not `kernel`; None: the
            width that follows from `kernel` by OpenCV's rule.
        noise: standard deviation of `noise` in grey levels of 0–255, at every t; None: the noise of t.
        threshold: of `shrink`, in grey levels of 0–255: every coefficient of the orthonormal cosine
            transform but the mean's moves so far towards 0.
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
        check(
            self, "dissolver.", size="[8, inf)", patch="[1, inf)", layers="[1, inf)", steps="[1, inf)",
            batch="[1, inf)", lr="(0, inf)", ema="[0, 1)", sigma="(0, inf)", noise="(0, inf)",
            threshold="[0, inf)", bottleneck="[1, inf)",
        )  # fmt: skip
        if not self.widths or any(w < 1 or w % 8 for w in self.widths):
            raise SettingsError(f"dissolver.widths must be multiples of 8, not {list(self.widths)}")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise SettingsError(f"dissolver.kernel must be odd, from 3, not {self.kernel}")
        if self.matched and self.kind not in STRENGTHS:
            kinds = ", ".join(STRENGTHS)
            raise SettingsError(f"dissolver.matched is for kinds {kinds}; leave it out with kind {self.kind}")
        for name, default in (("pretrained", None), ("input_range", "right")):
            if self.kind != "diffusion" and not self.matched and getattr(self, name) != default:
                raise SettingsError(
                    f"dissolver.{name} is for kind diffusion; leave it out with kind {self.kind}"
                )

    def idle(self) -> tuple[str, ...]:
        """Returns the settings that do nothing with this kind of dissolver."""
        used = {STRENGTHS.get(self.kind)}
        if self.kind == "gaussian" and self.sigma is None:
            used = {"kernel", "sigma"}
        other = [name for name in STRENGTHS.values() if name not in used]
        trained = self.kind == "diffusion" or self.matched
        return (*other, *(() if trained and not self.pretrained else _NETWORK))
