"""`Dissolver`: a diffusers U-Net trained on normal images, and the dissolving of images by it.

Knows of training and of diffusers; knows nothing of labels, contrast or scores.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024 (§ dissolving transformation); Ho et al.,
"Denoising Diffusion Probabilistic Models", NeurIPS 2020. Deviations from the published set-up: images
are given to the U-Net in [−1, 1] when dissolving as in training (the released code gives [0, 1], as
`input_range="released"` does); the EMA weights are used unless `ema_weights` is off; small presets fold
`patch` × `patch` pixels into channels, which makes the U-Net several times faster at the same image size.
"""

from __future__ import annotations

import copy
import hashlib
import json
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
from ..core.settings import from_dict, plain
from ..core.training import Timed, batch_indices, seed_step, train
from .base import T_MAX, DissolverSettings, Dissolving, fit_in, to_tensor
from .controls import Control, saved_facts
from .pretrained import check_network, load_pipeline, working_size
from .schedule import one_step, to_epsilon


class Dissolver(Dissolving):
    """Dissolves images: removes what a diffusion model of normal images does not expect.

    Example:
        >>> dissolver = Dissolver(DissolverSettings(steps=500)).fit(normals)  # doctest: +SKIP
        >>> dissolver.dissolve(images, t=100)  # doctest: +SKIP
    """

    unet_: Any  # diffusers' classes are untyped
    scheduler_: Any

    def __init__(self, settings: DissolverSettings | None = None, *, seed: int = 0, device: str = "auto"):
        self.settings = settings or DissolverSettings()
        if self.settings.kind != "diffusion":
            raise DataError(
                f"a Dissolver is a diffusion model; `make_dissolver` makes one of kind {self.settings.kind}"
            )
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
            return self._adopt(load_pipeline(self.settings.pretrained))
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
        check_network(pipeline.unet, pipeline.scheduler)
        self.unet_, self.scheduler_ = pipeline.unet.requires_grad_(False).eval(), pipeline.scheduler
        self._ready()
        return self

    def _ready(self) -> None:
        self.where_ = choose_device(self.device)
        self.unet_.to(self.where_, memory_format=torch.channels_last)  # faster convolutions
        self.alphas_cumprod_ = self.scheduler_.alphas_cumprod.to(self.where_)

    def _check_fitted(self) -> None:
        if not hasattr(self, "unet_"):
            raise DataError("this Dissolver is not fitted; call fit() or load() first")

    @property
    def t_max(self) -> int:
        """Diffusion steps of the model."""
        return len(self.alphas_cumprod_)

    def _working(self, channels: int) -> tuple[int, int]:
        patch, wanted = self._geometry(channels)
        return wanted, int(patch * 2 ** (len(self.unet_.config.block_out_channels) - 1))

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

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        patch, _ = self._geometry(int(z.shape[1]))
        released = self.settings.input_range == "released"
        if released:  # in [0, 1], out [−1, 1] of which an image in [0, 1] can hold the upper half
            z = (z + 1) / 2
        z = F.pixel_unshuffle(z, patch).contiguous(memory_format=torch.channels_last)
        a = self.alphas_cumprod_[t]
        # the network in its own type, the formula in that of the image: ᾱ needs more digits than 16 bits have
        output = self.unet_(z.to(self.unet_.dtype), t).sample.to(z.dtype)
        epsilon = to_epsilon(output, z, a, self.scheduler_.config.prediction_type)
        y = F.pixel_shuffle(one_step(z, epsilon, a), patch)
        return y.clamp(0, 1) * 2 - 1 if released else y

    def save(self, folder: Path) -> None:
        """Writes a diffusers `DDPMPipeline` folder (safetensors) with our settings beside it."""
        from diffusers import DDPMPipeline

        # a copy of its own for the file: safetensors wants contiguous tensors
        unet = copy.deepcopy(self.unet_).to("cpu", memory_format=torch.contiguous_format)
        pipeline: Any = DDPMPipeline(unet, self.scheduler_)
        pipeline.save_pretrained(folder)
        facts = {"settings": plain(self.settings), "seed": self.seed, "fit_seconds": self.fit_seconds_}
        (Path(folder) / "dissolver.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "auto") -> Dissolver:
        """A saved Dissolver, or any unconditional diffusers DDPM (a folder, or a name on the model hub)."""
        facts = saved_facts(folder)
        self = cls(device=device)
        if facts:
            settings = from_dict(DissolverSettings, facts["settings"])
            self = cls(settings, seed=facts["seed"], device=device)
            self.fit_seconds_ = facts["fit_seconds"]
        self._adopt(load_pipeline(str(folder)))
        if not facts:
            patch, _ = self._geometry(3)
            self.settings = DissolverSettings(size=working_size(self.unet_) * patch)
        return self

    def sha256(self) -> str:
        """Hash of weights and schedule: the same hash dissolves alike."""
        facts = f"{self.settings.size} {self.scheduler_.config.prediction_type}"
        facts += "" if self.settings.input_range == "right" else f" {self.settings.input_range}"
        h = hashlib.sha256(self.alphas_cumprod_.cpu().numpy().tobytes() + facts.encode())
        for name, value in sorted(self.unet_.state_dict().items()):
            h.update(name.encode() + value.cpu().numpy().tobytes())
        return h.hexdigest()


def make_dissolver(
    settings: DissolverSettings, *, seed: int = 0, device: str = "auto"
) -> Dissolver | Control:
    """What dissolves under these settings: a `Dissolver`, still to be fitted, or a control."""
    make: Any = Dissolver if settings.kind == "diffusion" else Control
    return make(settings, seed=seed, device=device)


def load_dissolver(folder: Path | str, *, device: str = "auto") -> Dissolver | Control:
    """What `save` of a Dissolver or a control wrote, or any unconditional diffusers DDPM."""
    kind = saved_facts(folder).get("settings", {}).get("kind", "diffusion")
    return (Dissolver if kind == "diffusion" else Control).load(folder, device=device)


_SCHEDULE = {
    "num_train_timesteps": T_MAX,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
}


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
        self.scheduler: Any = DDPMScheduler(**_SCHEDULE)

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
