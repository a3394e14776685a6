"""`Dissolver`: a diffusers U-Net trained on normal images, and the dissolving of images by it.

Knows of training and of diffusers; knows nothing of labels, contrast or scores.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024 (§ dissolving transformation); Ho et al.,
"Denoising Diffusion Probabilistic Models", NeurIPS 2020. Deviations from the published set-up: images
are given to the U-Net in [−1, 1] when dissolving as in training (the released code gives [0, 1]); the
EMA weights are used unless `ema_weights` is off; small presets fold `patch` × `patch` pixels into
channels, which makes the U-Net several times faster at the same image size.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.imageset import DataError
from ..training import Precision, batch_indices, choose_device, seed_step, share, train
from .schedule import one_step, to_epsilon

T_MAX = 1000


@dataclass(frozen=True)
class DissolverSettings:
    """How the diffusion model is built and trained.

    Args:
        size: images longer than this on a side are dissolved at this size and resized back bilinearly.
        patch: side of the pixel block folded into channels before the U-Net (1 = none).
        widths: channels of the U-Net's levels.
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


class Dissolver:
    """Dissolves images: removes what a diffusion model of normal images does not expect.

    Example:
        >>> dissolver = Dissolver(DissolverSettings(steps=500)).fit(normals)  # doctest: +SKIP
        >>> dissolver.dissolve(images, t=100)  # doctest: +SKIP
    """

    unet_: Any  # diffusers' classes are untyped
    scheduler_: Any

    def __init__(self, settings: DissolverSettings | None = None, *, seed: int = 0, device: str = "auto"):
        self.settings = settings or DissolverSettings()
        self.seed, self.device = seed, device
        self.fit_seconds_ = 0.0

    def fit(
        self,
        images: np.ndarray,
        *,
        workdir: Path,
        resume: bool = False,
        progress: bool = False,
    ) -> Dissolver:
        """Trains on normal images, or loads `settings.pretrained`.

        Args:
            images: `(N, H, W, C)` uint8, normal only.
            workdir: for checkpoints; with `resume` training goes on from the one found there.
            progress: show a progress bar with the time left.
        """
        if self.settings.pretrained:
            return self._adopt(_pipeline(self.settings.pretrained))
        from diffusers import DDPMScheduler

        start = time.perf_counter()
        module = _Training(images, self.settings, self.seed)
        train(
            module,
            steps=self.settings.steps,
            workdir=workdir,
            resume=resume,
            device=self.device,
            precision=self.settings.precision,
            progress=progress,
        )
        unet = module.average.module if self.settings.ema_weights else module.unet
        self.unet_ = unet.requires_grad_(False).eval()
        self.scheduler_ = DDPMScheduler(**_SCHEDULE)
        self._ready()
        # time of an interrupted run is kept in its checkpoint
        self.fit_seconds_ = module.seconds_before + time.perf_counter() - start
        return self

    def _adopt(self, pipeline: Any) -> Dissolver:
        self.unet_, self.scheduler_ = pipeline.unet.requires_grad_(False).eval(), pipeline.scheduler
        self._ready()
        return self

    def _ready(self) -> None:
        self.where_ = choose_device(self.device)
        self.unet_.to(self.where_, memory_format=torch.channels_last)  # faster convolutions
        self.alphas_cumprod_ = self.scheduler_.alphas_cumprod.to(self.where_)

    def dissolve(self, images: np.ndarray, t: int | Sequence[int], *, batch: int | None = None) -> np.ndarray:
        """Dissolves images at one or several t.

        Args:
            images: `(N, H, W, C)` uint8.
            t: diffusion step in 0–999, or a sequence of them.
            batch: images per forward pass, on which the result does not depend; by default 32 on a CPU,
                where larger ones fall out of its caches and take nearly twice as long, else 256.

        Returns:
            uint8, `(N, H, W, C)` for one t, `(len(t), N, H, W, C)` for a sequence.

        Raises:
            DataError: images of another type or shape, t out of range, or not fitted.
        """
        self._check_fitted()
        many = isinstance(t, Sequence | np.ndarray)
        ts = [int(v) for v in np.atleast_1d(t)]
        batch = batch or (32 if self.where_.type == "cpu" else 256)
        out = np.empty((len(ts), *images.shape), np.uint8)
        for start in range(0, len(images), batch):
            x = to_tensor(images[start : start + batch], self.where_)
            for j, v in enumerate(ts):
                out[j, start : start + batch] = to_uint8(self(x, v))
        return out if many else out[0]

    @torch.inference_mode()
    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Dissolves `(N, C, H, W)` float images in [−1, 1]; t a number or `(N,)`. Same shape and device."""
        self._check_fitted()
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise DataError(f"images must be (N, 1 or 3, H, W), not {tuple(x.shape)}")
        steps = torch.as_tensor(t, device=self.where_).expand(len(x))
        if len(x) and not (int(steps.min()) >= 0 and int(steps.max()) < len(self.alphas_cumprod_)):
            raise DataError(f"t must lie in 0–{len(self.alphas_cumprod_) - 1}, not {t}")
        patch, channels = self._geometry(x.shape[1])
        y, undo = fit_in(x.to(self.where_), self.settings.size, channels, self._multiple(patch))
        z = F.pixel_unshuffle(y, patch).contiguous(memory_format=torch.channels_last)
        a = self.alphas_cumprod_[steps]
        epsilon = to_epsilon(self.unet_(z, steps).sample, z, a, self.scheduler_.config.prediction_type)
        return undo(F.pixel_shuffle(one_step(z, epsilon, a), patch)).to(x.device)

    def _check_fitted(self) -> None:
        if not hasattr(self, "unet_"):
            raise DataError("this Dissolver is not fitted; call fit() or load() first")

    def _geometry(self, channels: int) -> tuple[int, int]:
        """(patch, channels) the U-Net works on; a loaded RGB model takes grey images repeated."""
        inputs = self.unet_.config.in_channels
        for c in (channels, 3, 1):
            patch = round((inputs / c) ** 0.5)
            if c * patch**2 == inputs:
                return patch, c
        raise DataError(
            f"this diffusion model takes {inputs} channels; it cannot dissolve grey or RGB images"
        )

    def _multiple(self, patch: int) -> int:
        return int(patch * 2 ** (len(self.unet_.config.block_out_channels) - 1))

    def save(self, folder: Path) -> None:
        """Writes a diffusers `DDPMPipeline` folder (safetensors) with our settings beside it."""
        from diffusers import DDPMPipeline

        # a copy of its own for the file: safetensors wants contiguous tensors
        unet = copy.deepcopy(self.unet_).to("cpu", memory_format=torch.contiguous_format)
        pipeline: Any = DDPMPipeline(unet, self.scheduler_)
        pipeline.save_pretrained(folder)
        facts = {"settings": asdict(self.settings), "seed": self.seed, "fit_seconds": self.fit_seconds_}
        (Path(folder) / "dissolver.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto") -> Dissolver:
        """A saved Dissolver, or any unconditional diffusers DDPM (a folder, or a name on the model hub)."""
        facts = Path(folder) / "dissolver.json"
        self = cls(device=device)
        if facts.exists():
            known = json.loads(facts.read_text())
            settings = known["settings"] | {"widths": tuple(known["settings"]["widths"])}
            self = cls(DissolverSettings(**settings), seed=known["seed"], device=device)
            self.fit_seconds_ = known["fit_seconds"]
        self._adopt(_pipeline(str(folder)))
        if not facts.exists():
            size = self.unet_.config.sample_size
            self.settings = DissolverSettings(size=max(size) if isinstance(size, list | tuple) else size)
        return self

    def sha256(self) -> str:
        """Hash of weights and schedule: the same hash dissolves alike."""
        facts = f"{self.settings.size} {self.scheduler_.config.prediction_type}"
        h = hashlib.sha256(self.alphas_cumprod_.cpu().numpy().tobytes() + facts.encode())
        for name, value in sorted(self.unet_.state_dict().items()):
            h.update(name.encode() + value.cpu().numpy().tobytes())
        return h.hexdigest()


_SCHEDULE = {
    "num_train_timesteps": T_MAX,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
}


def _pipeline(name: str) -> Any:
    from diffusers import DDPMPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        return DDPMPipeline.from_pretrained(name, low_cpu_mem_usage=False)
    except OSError as error:
        raise DataError(
            f"{name}: not a diffusers DDPM folder or hub name ({str(error).splitlines()[0]})"
        ) from error


def build_unet(channels: int, settings: DissolverSettings) -> Any:
    """The diffusers U-Net of these settings for images of 1 or 3 channels."""
    from diffusers import UNet2DModel

    s, levels, inputs = settings, len(settings.widths), channels * settings.patch**2
    return UNet2DModel(
        sample_size=s.size // s.patch,
        in_channels=inputs,
        out_channels=inputs,
        block_out_channels=tuple(s.widths),
        layers_per_block=s.layers,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=8,
        add_attention=s.attention,
    )


class _Training(L.LightningModule):
    """Noise estimation on random t: L = E‖ε − ε_θ(√ᾱ_t·x + √(1−ᾱ_t)·ε, t)‖."""

    def __init__(self, images: np.ndarray, settings: DissolverSettings, seed: int):
        super().__init__()
        from diffusers import DDPMScheduler

        with torch.random.fork_rng():
            seed_step(seed, -1 % 2**32)
            self.unet = build_unet(images.shape[-1], settings).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.unet, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.average.requires_grad_(False)
        self.images, self.s, self.seed = images, settings, seed
        self.scheduler: Any = DDPMScheduler(**_SCHEDULE)
        self.started, self.seconds_before = time.perf_counter(), 0.0

    def training_step(self, batch: int, _: int) -> Tensor:
        seed_step(self.seed, self.global_step)
        index = batch_indices(len(self.images), self.s.batch, self.seed, self.global_step)
        n, part = len(index), share(len(index))
        x = to_tensor(self.images[index[part]], self.device)
        if self.s.hflip:
            x = torch.where((torch.rand(n) < 0.5)[part].to(x.device)[:, None, None, None], x.flip(-1), x)
        multiple = self.s.patch * 2 ** (len(self.s.widths) - 1)
        x = F.pixel_unshuffle(fit_in(x, self.s.size, x.shape[1], multiple)[0], self.s.patch)
        x = x.contiguous(memory_format=torch.channels_last)
        # drawn for the whole batch, on the CPU: the same whatever the device or the number of processes
        t = torch.randint(0, T_MAX, (n,))[part].to(x.device)
        noise = torch.randn(n, *x.shape[1:])[part].to(x.device)
        estimate = self.unet(self.scheduler.add_noise(x, noise, t), t).sample
        estimate = estimate.float()
        return F.l1_loss(estimate, noise) if self.s.loss == "l1" else F.mse_loss(estimate, noise)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.unet)  # here, so that a checkpoint of this step holds it

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.unet.parameters(), self.s.lr, betas=(0.9, 0.99), fused=True)
        if not self.s.cosine:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.s.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = self.seconds_before + time.perf_counter() - self.started

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint["seconds"]


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """`(N, H, W, C)` uint8 to `(N, C, H, W)` float32 in [−1, 1]."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> np.ndarray:
    """`(N, C, H, W)` in [−1, 1] to `(N, H, W, C)` uint8, rounded."""
    return x.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def fit_in(x: Tensor, size: int, channels: int, multiple: int) -> tuple[Tensor, Any]:
    """Brings `(N, C, H, W)` to at most `size` a side, `channels`, and sides divisible by `multiple`.

    Larger images are resized bilinearly, then padded by reflection (28 px to 32 for three halvings).
    Returns the images and the function that takes a result back to the original shape.
    """
    n, c, h, w = x.shape
    if c != channels:
        x = x.mean(1, keepdim=True) if channels == 1 else x.expand(n, 3, h, w)
    scale = min(1.0, size / max(h, w))
    sh, sw = max(round(h * scale), 1), max(round(w * scale), 1)
    if scale < 1:
        x = F.interpolate(x, (sh, sw), mode="bilinear", antialias=True)
    ph, pw = -sh % multiple, -sw % multiple
    top, left = ph // 2, pw // 2
    mode = "reflect" if max(ph - top, top) < sh and max(pw - left, left) < sw else "replicate"
    x = F.pad(x, (left, pw - left, top, ph - top), mode=mode)

    def undo(y: Tensor) -> Tensor:
        y = y[..., top : top + sh, left : left + sw]
        if scale < 1:
            y = F.interpolate(y, (h, w), mode="bilinear")
        if c != channels:
            y = y.expand(n, 3, h, w) if channels == 1 else y.mean(1, keepdim=True)
        return y

    return x, undo
