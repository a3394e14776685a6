"""Prepares images for the encoder, and builds the untrained encoder that the settings ask for.

Knows settings and the encoder; knows no loss and no data.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.training import seed_step
from .encoder import Encoder
from .settings import AmplifySettings
from .shifts import SHIFTS


def encoder_input(
    images: np.ndarray, settings: AmplifySettings, device: torch.device | str = "cpu"
) -> Tensor:
    """Converts uint8 arrays to the tensors that the encoder takes.

    Args:
        images: `(N, H, W, C)` uint8.
        settings: only `size` counts.
        device: where the result lies.

    Returns:
        `(N, C, S, S)` float32 in [0, 1], S = min(size, longer side).
    """
    return as_input(torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2), settings)


def as_input(x: Tensor, settings: AmplifySettings) -> Tensor:
    """Converts uint8 tensors to the tensors that the encoder takes.

    Args:
        x: `(N, C, H, W)` uint8.
        settings: only `size` counts.

    Returns:
        `(N, C, S, S)` float32 in [0, 1], S = min(size, longer side).
    """
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    side = min(settings.size, max(x.shape[-2:]))
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
    return x


def build_encoder(shape: tuple[int, int, int], settings: AmplifySettings) -> Encoder:
    """Builds an untrained encoder, with weights from torch's generator as it stands.

    Args:
        shape: (H, W, C) of the images.
        settings: stem, width and shifts of the encoder.

    Raises:
        SettingsError: the stem does not fit the size, as in `AmplifySettings.stem_of`.
    """
    side, stem = settings.stem_of(shape)
    channels = 3 if settings.rgb else shape[2]
    return Encoder(channels, SHIFTS[settings.shift][0], settings.width, stem, side)


def untrained_encoder(shape: tuple[int, int, int], settings: AmplifySettings, seed: int) -> Encoder:
    """Builds the encoder with the weights from which training starts.

    Args:
        shape: (H, W, C) of the images.
        settings: stem, width and shifts of the encoder.
        seed: decides the weights.
    """
    with torch.random.fork_rng():
        seed_step(seed, 2**32 - 2)
        return build_encoder(shape, settings)
