"""Reads a diffusers DDPM that somebody else trained, checks it first, and converts what it predicts to noise.

Knows diffusers and files; dissolves nothing. U-Net and scheduler are loaded one by one, as classes of
diffusers: a pipeline's index may name code to run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.allocation import AllocationLimit
from ..core.errors import DataError
from ..core.modelfiles import ModelFiles
from .base import T_MAX

_MOST_STEPS, _MOST_SIZE = 10_000, 8192  # steps of a schedule; pixels on a side
_PIPELINE = ["model_index.json", "unet/*.json", "unet/*.safetensors", "scheduler/*.json"]
_UNET = "unet/diffusion_pytorch_model.safetensors"


def load_pipeline(name: str) -> tuple[Any, Any]:
    """Loads a diffusers DDPM by its name: a folder, or a name on the model hub.

    Returns:
        The U-Net and the scheduler.

    Raises:
        DataError: there is no such model, or it is damaged, too large or of another kind.
    """
    from diffusers.utils import logging
    from huggingface_hub import snapshot_download

    logging.disable_progress_bar()
    try:
        local = Path(name).is_dir()
        files = ModelFiles(name if local else snapshot_download(name, allow_patterns=_PIPELINE))
        index, scheduler = files.json("model_index.json"), files.json("scheduler/scheduler_config.json")
        if (files.folder / f"{_UNET}.index.json").exists():
            raise DataError(f"{name}: its U-Net lies in several files; save it as one")
        files.weights(_UNET)
        _check_configs(name, files.json("unet/config.json"), scheduler)
        unet = _class_of(name, index, "unet", r"UNet\w*Model")
        options = {"low_cpu_mem_usage": False, "use_safetensors": True, "local_files_only": True}
        with AllocationLimit(name, files.nbytes):
            return (
                unet.from_pretrained(files.folder / "unet", **options),
                _class_of(name, index, "scheduler", r"\w+Scheduler").from_config(scheduler),
            )
    except DataError:
        raise
    except Exception as error:  # the hub's, or nothing can be built from the configuration
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: not a diffusers DDPM folder or hub name ({reason})") from error


def _class_of(name: str, index: dict[str, Any], part: str, pattern: str) -> Any:
    import diffusers

    match index.get(part):
        case ["diffusers", str(kind)] if re.fullmatch(pattern, kind) and hasattr(diffusers, kind):
            return getattr(diffusers, kind)
    raise DataError(f"{name}: the {part} is {str(index.get(part))[:80]}, not one of diffusers' own")


def _check_configs(name: str, unet: dict[str, Any], scheduler: dict[str, Any]) -> None:
    """Refuses configurations that take for ever to build, or that ask for other packages."""
    steps = scheduler.get("num_train_timesteps", T_MAX)
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        raise DataError(f"{name}: num_train_timesteps must lie in 1–{_MOST_STEPS}, not be {str(steps)[:20]}")
    size = unet.get("sample_size") or 1
    if not all(type(n) is int and 1 <= n <= _MOST_SIZE for n in (size if isinstance(size, list) else [size])):
        raise DataError(f"{name}: sample_size must lie in 1–{_MOST_SIZE}, not be {str(size)[:20]}")
    if unet.get("quantization_config") is not None:
        raise DataError(f"{name}: a quantized U-Net is not read; save it as plain floats")


def check_network(unet: Any, scheduler: Any) -> None:
    """Refuses a diffusers U-Net or scheduler that one step cannot use.

    Args:
        unet: a U-Net on images.
        scheduler: a scheduler of diffusers.

    Raises:
        DataError: a part does not fit; the message names it.
    """
    c = unet.config
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise DataError(f"{type(scheduler).__name__} has no alphas_cumprod; take a DDPM or DDIM scheduler")
    prediction = scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise DataError(f"prediction type must be epsilon, v_prediction or sample, not {prediction!r}")
    if c.out_channels != c.in_channels:
        raise DataError(
            f"a U-Net from {c.in_channels} to {c.out_channels} channels does not estimate the noise alone"
        )
    if getattr(c, "cross_attention_dim", None) is not None:
        raise DataError(f"{type(unet).__name__} asks for a prompt; kornia's RandomDissolving has such models")
    if c.class_embed_type is not None or c.num_class_embeds is not None:
        raise DataError("this U-Net asks for a class; take an unconditional one")


def to_epsilon(output: Tensor, x: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """Converts a network's output to its noise estimate ε.

    Args:
        output: the network's output, `(N, C, H, W)`.
        x: the images that the network was given, same shape.
        alpha_bar: ᾱ_t, `(N,)`, in (0, 1).
        prediction: `epsilon`, `v_prediction` or `sample`, as the scheduler names it.

    Returns:
        ε, `(N, C, H, W)`.

    Raises:
        ValueError: the prediction has another type.
    """
    a = alpha_bar.to(x).reshape(-1, *[1] * (x.ndim - 1))
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":  # v = √ᾱ·ε − √(1−ᾱ)·x0, so ε = √ᾱ·v + √(1−ᾱ)·x
        return a.sqrt() * output + (1 - a).sqrt() * x
    if prediction == "sample":
        return (x - a.sqrt() * output) / (1 - a).sqrt()
    raise ValueError(f"prediction type must be epsilon, v_prediction or sample, not {prediction!r}")
