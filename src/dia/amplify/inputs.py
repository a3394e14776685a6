"""What the encoder takes: images at its size in [0, 1]; and the encoder that its settings ask for, untrained.

Knows settings and the encoder; knows nothing of losses or data.
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
    """`(N, H, W, C)` uint8 to square `(N, C, S, S)` float32 in [0, 1], S = min(size, longer side)."""
    return as_input(torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2), settings)


def as_input(x: Tensor, settings: AmplifySettings) -> Tensor:
    """The same of a tensor `(N, C, H, W)` uint8."""
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    side = min(settings.size, max(x.shape[-2:]))
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
    return x


def build_encoder(shape: tuple[int, int, int], settings: AmplifySettings) -> Encoder:
    """The untrained encoder for images of `shape` (H, W, C); raises as `AmplifySettings.stem_of`."""
    side, stem = settings.stem_of(shape)
    channels = 3 if settings.rgb else shape[2]
    return Encoder(channels, SHIFTS[settings.shift][0], settings.width, stem, side)


def untrained_encoder(shape: tuple[int, int, int], settings: AmplifySettings, seed: int) -> Encoder:
    """The encoder with the weights from which `learn` starts."""
    with torch.random.fork_rng():
        seed_step(seed, 2**32 - 2)
        return build_encoder(shape, settings)
