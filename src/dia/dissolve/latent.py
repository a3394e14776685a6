"""`LatentDissolver`: dissolving in the latents of a Stable Diffusion model instead of in pixels.

Knows diffusers' parts of Stable Diffusion (VAE, conditional U-Net, text encoder); trains nothing.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024, for the step; Rombach et al., "High-Resolution
Image Synthesis with Latent Diffusion Models", CVPR 2022, for the latents. Nothing is drawn: the VAE's mode
stands for the image, and the latents, which have no bounds, are not clamped.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from .base import DissolverSettings, Dissolving
from .dissolver import check_network, working_size
from .schedule import one_step, to_epsilon

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class LatentDissolver(Dissolving):
    """Encodes an image, takes one reverse step on its latents, and decodes them.

    Args:
        vae: diffusers `AutoencoderKL`. Shared, not copied, and frozen, as is `unet`.
        unet: `UNet2DConditionModel` on its latents. Stable Diffusion 1 and 2 and what has their form; not
            XL, whose U-Net asks for more than a prompt.
        scheduler: has `alphas_cumprod` and a `prediction_type`.
        prompt_embeds: `(L, D)` or `(1, L, D)`, the text encoder's states for the prompt.
        size: larger images are dissolved at this size and resized back; the model's own by default.

    Raises:
        DataError: parts that do not fit together.
    """

    def __init__(
        self, vae: Any, unet: Any, scheduler: Any, prompt_embeds: Tensor, *, size: int | None = None
    ):
        check_network(unet, scheduler, vae.config.latent_channels)
        embeds = prompt_embeds[None] if prompt_embeds.ndim == 2 else prompt_embeds
        wanted = unet.config.cross_attention_dim
        if embeds.ndim != 3 or len(embeds) != 1 or embeds.shape[-1] != wanted:
            shape = tuple(prompt_embeds.shape)
            raise DataError(f"prompt_embeds must be (L, {wanted}) or (1, L, {wanted}), not {shape}")
        self.vae_, self.unet_ = (part.requires_grad_(False).eval() for part in (vae, unet))
        self.scheduler_ = scheduler
        self.where_ = unet.device
        self.prompt_embeds_ = embeds.detach().to(self.where_)
        self.alphas_cumprod_ = scheduler.alphas_cumprod.to(self.where_)
        own = working_size(unet) * _halvings(vae)
        self.settings = DissolverSettings(size=own if size is None else size)

    @classmethod
    def load(
        cls,
        source: Any,
        *,
        prompt: str = "",
        prompt_embeds: Tensor | None = None,
        size: int | None = None,
        **loading: Any,
    ) -> LatentDissolver:
        """From a Stable Diffusion folder, hub name or pipeline.

        Args:
            source: of a folder or name, only the parts that are used are read.
            prompt: what the text encoder is told.
            prompt_embeds: instead of `prompt`; the text encoder, and with it transformers, is not needed.
            size: as for the class.
            loading: for `from_pretrained`, such as `revision`, `variant`, `torch_dtype`, `local_files_only`.

        Raises:
            DataError: no such model, parts that do not fit together, or transformers is absent.
        """
        if isinstance(source, str | Path):
            vae, unet, scheduler, text = _load(str(source), loading, with_text=prompt_embeds is None)
        else:
            try:
                vae, unet, scheduler = source.vae, source.unet, source.scheduler
                text = source.tokenizer, source.text_encoder
            except AttributeError as error:
                raise DataError(f"not a Stable Diffusion pipeline: {error}") from None
        embeds = _embed(prompt, *text) if prompt_embeds is None else prompt_embeds
        return cls(vae, unet, scheduler, embeds, size=size)

    @property
    def t_max(self) -> int:
        """Diffusion steps of the model."""
        return len(self.alphas_cumprod_)

    def _working(self, channels: int) -> tuple[int, int]:
        return self.vae_.config.in_channels, _halvings(self.vae_) * _halvings(self.unet_)

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        vae, unet, a = self.vae_, self.unet_, self.alphas_cumprod_[t]
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        # networks in their own type, the formula in that of the image: ᾱ needs more digits than 16 bits have
        latents = (vae.encode(z.to(vae.dtype)).latent_dist.mode().to(z.dtype) - shift) * scale
        context = self.prompt_embeds_.to(unet.dtype).expand(len(z), -1, -1)
        output = unet(latents.to(unet.dtype), t, encoder_hidden_states=context).sample.to(z.dtype)
        epsilon = to_epsilon(output, latents, a, self.scheduler_.config.prediction_type)
        latents = one_step(latents, epsilon, a, clamp=False)
        return vae.decode((latents / scale + shift).to(vae.dtype)).sample.to(z.dtype).clamp(-1, 1)


def _halvings(network: Any) -> int:
    """The factor by which a VAE or U-Net of diffusers shrinks the sides."""
    return int(2 ** (len(network.config.block_out_channels) - 1))


def _load(name: str, loading: dict[str, Any], *, with_text: bool) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    import diffusers

    if with_text and find_spec("transformers") is None:
        raise DataError(
            "a prompt needs transformers: pip install 'dia-anomaly[latents]'; or give prompt_embeds"
        )
    hub = {k: v for k, v in loading.items() if k in _HUB}
    weights = {"low_cpu_mem_usage": False} | loading
    try:
        config: Any = diffusers.DDPMScheduler.load_config(name, subfolder="scheduler", **hub)
        kind = getattr(diffusers, config.get("_class_name", ""), diffusers.DDPMScheduler)
        scheduler = kind.from_config(config)
        vae = diffusers.AutoencoderKL.from_pretrained(name, subfolder="vae", **weights)
        unet = diffusers.UNet2DConditionModel.from_pretrained(name, subfolder="unet", **weights)
        text: tuple[Any, ...] = ()
        if with_text:
            from transformers import CLIPTextModel, CLIPTokenizer

            variant = {"variant": loading["variant"]} if "variant" in loading else {}
            text = (
                CLIPTokenizer.from_pretrained(name, subfolder="tokenizer", **hub),
                CLIPTextModel.from_pretrained(name, subfolder="text_encoder", **hub, **variant),
            )
    except OSError as error:
        raise DataError(
            f"{name}: not a Stable Diffusion folder or hub name ({str(error).splitlines()[0]})"
        ) from error
    return vae, unet, scheduler, text


@torch.no_grad()
def _embed(prompt: str, tokenizer: Any, encoder: Any) -> Tensor:
    """`(1, L, D)` states of the text encoder for a prompt, padded and cut to its length."""
    tokens = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).to(encoder.device)
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    return encoder.eval()(tokens.input_ids, attention_mask=mask)[0]
