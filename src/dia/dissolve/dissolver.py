"""`Dissolver`: trains a diffusers U-Net on normal images, and dissolves images with it.

Knows training and diffusers; knows no label, contrast or score.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024 (§ dissolving transformation); Ho et al.,
"Denoising Diffusion Probabilistic Models", NeurIPS 2020. Deviations from the published set-up: images
are given to the U-Net in [−1, 1] when dissolving as in training (the released code gives [0, 1], as
`input_range="released"` does); the EMA weights are used unless `ema_weights` is off; small presets fold
`patch` × `patch` pixels into channels, which makes the U-Net several times faster at the same image size.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..core.errors import DataError
from ..core.processes import choose_device, share
from ..core.settings import from_dict
from ..core.training import Timed, batch_indices, seed_step
from .base import T_MAX, DissolverSettings, Dissolving, fit_in, saved_facts, to_tensor
from .controls import Control
from .pretrained import check_network, load_pipeline, to_epsilon
from .schedule import one_step


class Dissolver(Dissolving):
    """Dissolves images: removes the features that a diffusion model of normal images lacks.

    Args:
        settings: of the diffusion model and its training; the defaults where None.
        seed: decides the weights and the draws of training.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DataError: settings of another kind.
    """

    unet_: Any  # diffusers' classes are untyped
    scheduler_: Any

    def __init__(self, settings: DissolverSettings | None = None, *, seed: int = 0, device: str = "auto"):
        super().__init__(settings or DissolverSettings(), seed=seed, device=device)
        if self.settings.kind != "diffusion":
            raise DataError(
                f"a Dissolver is a diffusion model; `make_dissolver` makes one of kind {self.settings.kind}"
            )

    def fit(
        self, images: np.ndarray, *, workdir: Path, resume: bool = False, progress: bool = False
    ) -> Dissolver:
        """Trains on normal images, or loads `settings.pretrained`.

        Args:
            images: `(N, H, W, C)` uint8, normal only.
            workdir: a folder for checkpoints.
            resume: whether training goes on from the checkpoint found there.
            progress: whether a progress bar shows the time left.
        """
        s = self.settings
        if s.pretrained:
            return self._adopt(*load_pipeline(s.pretrained))
        from ..core.running.loop import train

        start = time.perf_counter()
        module = _Training(images, s, self.seed)
        train(
            module, steps=s.steps, workdir=workdir, resume=resume, device=self.device,
            precision=s.precision, progress=progress,
        )  # fmt: skip
        self._adopt(module.average.module if s.ema_weights else module.unet, module.scheduler)
        # the time of an interrupted run is kept in its checkpoint
        self.fit_seconds_ = module.seconds_before + time.perf_counter() - start
        return self

    def _adopt(self, unet: Any, scheduler: Any) -> Dissolver:
        """Takes a diffusers U-Net on images and its scheduler."""
        check_network(unet, scheduler)
        self.where_ = choose_device(self.device)
        self.unet_, self.scheduler_ = unet.requires_grad_(False).eval(), scheduler
        self.unet_.to(self.where_, memory_format=torch.channels_last)  # faster convolutions
        self.alphas_cumprod_ = scheduler.alphas_cumprod.to(self.where_)
        self.t_max, inputs = len(self.alphas_cumprod_), unet.config.in_channels
        # grey or RGB by the number of inputs, which is channels · patch²; an RGB model takes grey repeated
        self._channels = 1 if math.isqrt(inputs) ** 2 == inputs else 3
        self._patch = math.isqrt(inputs // self._channels)
        if self._channels * self._patch**2 != inputs:
            raise DataError(
                f"this diffusion model takes {inputs} channels; it cannot dissolve grey or RGB images"
            )
        return self

    @classmethod
    def of_network(cls, unet: Any, scheduler: Any, *, device: str = "auto") -> Dissolver:
        """Makes a dissolver of an unconditional diffusers network, at the size that the network was made for.

        Args:
            unet: a U-Net on images.
            scheduler: a scheduler with `alphas_cumprod`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            DataError: one step cannot use the network or the scheduler.
        """
        made, size = cls(device=device)._adopt(unet, scheduler), unet.config.sample_size
        side = max(size) if isinstance(size, list | tuple) else size or 2**24  # without bound where not named
        made.settings = DissolverSettings(size=side * made._patch)
        return made

    def _working(self, channels: int) -> tuple[int, int]:
        return self._channels, self._patch * 2 ** (len(self.unet_.config.block_out_channels) - 1)

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        released = self.settings.input_range == "released"
        if released:  # in [0, 1], out [−1, 1] of which an image in [0, 1] can hold the upper half
            z = (z + 1) / 2
        z = F.pixel_unshuffle(z, self._patch).contiguous(memory_format=torch.channels_last)
        a = self.alphas_cumprod_[t]
        # the network in its own type, the formula in that of the image: ᾱ needs more digits than 16 bits have
        output = self.unet_(z.to(self.unet_.dtype), t).sample.to(z.dtype)
        epsilon = to_epsilon(output, z, a, self.scheduler_.config.prediction_type)
        y = F.pixel_shuffle(one_step(z, epsilon, a), self._patch)
        return y.clamp(0, 1) * 2 - 1 if released else y

    def save(self, folder: Path) -> None:
        """Writes a diffusers `DDPMPipeline` folder (safetensors) that holds our settings too."""
        from diffusers import DDPMPipeline

        # a copy for the file: safetensors wants contiguous tensors
        unet = copy.deepcopy(self.unet_).to("cpu", memory_format=torch.contiguous_format)
        pipeline: Any = DDPMPipeline(unet, self.scheduler_)
        pipeline.save_pretrained(folder)
        super().save(folder)

    def sha256(self) -> str:
        """Returns a hash of weights and schedule: equal hashes dissolve alike."""
        facts = f"{self.settings.size} {self.scheduler_.config.prediction_type}"
        facts += "" if self.settings.input_range == "right" else f" {self.settings.input_range}"
        h = hashlib.sha256(self.alphas_cumprod_.cpu().numpy().tobytes() + facts.encode())
        for name, value in sorted(self.unet_.state_dict().items()):
            h.update(name.encode() + value.cpu().numpy().tobytes())
        return h.hexdigest()


def make_dissolver(
    settings: DissolverSettings, *, seed: int = 0, device: str = "auto"
) -> Dissolver | Control:
    """Makes the dissolver of these settings.

    Args:
        settings: the kind, its strength and the working size.
        seed: decides the weights and the draws of training.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        A `Dissolver` that is still to be fitted, or a control.
    """
    kind = Dissolver if settings.kind == "diffusion" else Control
    return kind(settings, seed=seed, device=device)


def load_dissolver(folder: Path | str, *, device: str = "auto") -> Dissolver | Control:
    """Loads a saved dissolver or control, or any unconditional diffusers DDPM.

    Args:
        folder: a folder that `save` wrote, a diffusers folder, or a name on the model hub.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DataError: there is no such model, it is damaged, or one step cannot use it.
    """
    facts = saved_facts(folder)
    if not facts:
        return Dissolver.of_network(*load_pipeline(str(folder)), device=device)
    made = make_dissolver(from_dict(DissolverSettings, facts["settings"]), seed=facts["seed"], device=device)
    made.fit_seconds_ = facts["fit_seconds"]
    return made._adopt(*load_pipeline(str(folder))) if isinstance(made, Dissolver) else made


def build_unet(channels: int, settings: DissolverSettings) -> Any:
    """Builds an untrained diffusers U-Net.

    Args:
        channels: 1 or 3, of the images.
        settings: depth, width and folding of the network.
    """
    from diffusers import UNet2DModel

    s, levels, inputs = settings, len(settings.widths), channels * settings.patch**2
    return UNet2DModel(
        sample_size=s.size // s.patch, in_channels=inputs, out_channels=inputs,
        block_out_channels=tuple(s.widths), layers_per_block=s.layers,
        down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=8, add_attention=s.attention,
    )  # fmt: skip


class _Training(Timed):
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
        self.scheduler: Any = DDPMScheduler(
            num_train_timesteps=T_MAX, beta_schedule="squaredcos_cap_v2", clip_sample=True
        )

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

    def after_step(self) -> None:
        self.average.update_parameters(self.unet)  # here, so that a checkpoint of this step holds it

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.unet.parameters(), self.s.lr, betas=(0.9, 0.99), fused=True)
        if not self.s.cosine:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.s.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
