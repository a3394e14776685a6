"""The backbone: from uint8 images to feature maps at three strides, as one module that exports.

Knows networks and their weights; knows no normals. Images of any size are brought to squares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import DataError
from ..core.training import seed_step
from .lite import EfficientNetLite
from .networks import backbone, describe, one_line, read_state, restored
from .own import MEAN, OWN, STD, Channels
from .package import LITE, published, take
from .untrained import resizer

_HALF: Channels = (0.5, 0.5, 0.5)  # mean and deviation with which EfficientNet-Lite was trained
_STRIDES = (8, 16, 32)
_AT_ONCE = 16 * 128**2  # pixels in one pass on a CPU
_TILE = 1024  # px: larger images are seen in tiles of this side, where only the fine map is wanted
_OVERLAP = 64  # px on each side of a tile; a place of EfficientNet-Lite2's fine map sees 53 px to each side


class Maps(NamedTuple):
    """Feature maps of N images.

    Attributes:
        fine: `(N, C, h, w)` at stride 8.
        middle: at stride 16.
        coarse: at stride 32.
        pooled: `(N, D)`, the last features.
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """A frozen network with the preparation of its input.

    Args:
        network: takes `(N, 3, S, S)`, and returns the four parts of `Maps`.
        mean: of each channel, in [0, 1], with which the network was trained.
        std: of each channel.
    """

    def __init__(self, network: nn.Module, mean: Channels = _HALF, std: Channels = _HALF):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Maps:
        """Takes `(N, 1 or 3, S, S)` in [0, 1]; grey images are repeated."""
        return Maps(*_by_part(self.network, self._normalised(x)))

    def fine(self, x: Tensor) -> Tensor:
        """Returns the map at stride 8 alone, which costs a third; of EfficientNet-Lite in bounded memory.

        Args:
            x: `(N, 1 or 3, S, S)` in [0, 1], S a multiple of 8.
        """
        network, side = self.network, int(x.shape[-1])
        if not isinstance(network, EfficientNetLite):
            return _by_part(lambda part: network(part)[:1], self._normalised(x))[0]
        rows, starts = [], range(0, side, _TILE)  # one start where the image is no larger than a tile
        for top in starts:
            row = []
            for left in starts:
                part, inner = _tile(x, top, left)
                made = _by_part(lambda seen: (network.fine(seen),), self._normalised(part))[0]
                row.append(made[inner])
            rows.append(torch.cat(row, 3) if len(row) > 1 else row[0])
        return torch.cat(rows, 2) if len(rows) > 1 else rows[0]

    def _normalised(self, x: Tensor) -> Tensor:
        return (x.expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")


def _tile(x: Tensor, top: int, left: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Returns a tile of `(N, C, S, S)` with its overlap, and where in its fine map the tile itself lies."""
    across, within = [slice(None)] * 2, [slice(None)] * 2
    for start in (top, left):
        first, fine = max(start - _OVERLAP, 0), _STRIDES[0]
        across.append(slice(first, start + _TILE + _OVERLAP))
        within.append(slice((start - first) // fine, (start - first + _TILE) // fine))
    return x[tuple(across)], tuple(within)


def _by_part(network: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Runs a network on few images at a time on a CPU, whose caches they then fit; a graph takes all."""
    if x.device.type != "cpu" or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return network(x)
    rows = max(_AT_ONCE // (x.shape[-2] * x.shape[-1]), 1)
    made = [network(part) for part in x.split(rows)]
    return made[0] if len(made) == 1 else tuple(torch.cat(parts) for parts in zip(*made, strict=True))


class Squares(nn.Module):
    """Brings images of one shape to squares, bilinearly with antialiasing, as products with matrices.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        side: of the squares, in pixels.
    """

    def __init__(self, height: int, width: int, side: int):
        super().__init__()
        self.resize = resizer((height, width), (side, side), antialias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` uint8 to `(N, C, S, S)` float32 in [0, 1]."""
        made: Tensor = self.resize(x.float() / 255)
        return made.clamp(0, 1)


class _Timm(nn.Module):
    """A network of timm's, or our own encoder, with the four outputs of `Maps`.

    Args:
        network: made with `features_only`.
        taken: which three of its maps.
    """

    def __init__(self, network: nn.Module, taken: tuple[int, int, int]):
        super().__init__()
        self.network, self.taken = network, taken
        self.channels = [int(c) for c in network.feature_info.channels()]  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        try:
            made = self.network(x)
        except AssertionError as error:  # timm's, of an image of another size than the network's only one
            raise DataError(
                f"the backbone takes no images of {x.shape[2]} pixels: {one_line(error)}"
            ) from error
        # some of timm's have the channels last
        maps = [
            m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(made, self.channels, strict=True)
        ]
        fine, middle, coarse = (maps[i].contiguous() for i in self.taken)
        return fine, middle, coarse, coarse.mean((2, 3))


@torch.inference_mode(False)  # weights made in that mode do not count when they are written to
def load_backbone(name: str, weights: str, *, seed: int = 0) -> Backbone:
    """Returns a frozen backbone in eval mode.

    Args:
        name: `lite0`, `lite1` or `lite2`, or an architecture of timm's; weights of a package or a run bring
            their own.
        weights: `lite0`, `lite1` or `lite2`: those of the installed package; `imagenet`: of `name`, for
            others than EfficientNet-Lite from timm's hub; `none`: random; a file; `dia:RUN`.
        seed: of random weights.

    Raises:
        DataError: the weights cannot be had or do not fit, or timm is missing.

    Example:
        >>> maps = load_backbone("lite0", "none")(torch.rand(2, 1, 64, 64))
        >>> [tuple(part.shape) for part in maps]
        [(2, 40, 8, 8), (2, 112, 4, 4), (2, 320, 2, 2), (2, 1280)]
    """
    name, weights = _named(name, weights)
    if name not in LITE:
        return _of_timm(backbone(name, weights, seed=seed, features_only=True))
    with torch.random.fork_rng(devices=[]):
        seed_step(seed, 2**32 - 4)
        network = EfficientNetLite(LITE[name])
    if weights == "imagenet":
        network = published(name)
    elif weights != "none":
        take(network, read_state(weights), weights)
    return _frozen(Backbone(network))


@torch.inference_mode(False)
def restore_backbone(name: str, weights: str, tensors: Mapping[str, np.ndarray], prefix: str) -> Backbone:
    """Returns the backbone whose state `module_tensors(backbone.network, prefix)` gave; nothing is fetched.

    Args:
        name: as for `load_backbone`.
        weights: as for `load_backbone`.
        tensors: arrays by name, others among them.
        prefix: of the names of the network's arrays.
    """
    name, weights = _named(name, weights)
    if name not in LITE:
        return _of_timm(restored(name, dict(tensors), f"{prefix}network.", features_only=True))
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
    network = EfficientNetLite(LITE[name])
    network.load_state_dict(state)
    return _frozen(Backbone(network))


def weights_of(name: str, weights: str, *, seed: int = 0) -> str:
    """Returns where weights come from, as the ledger says it.

    Args:
        name: as for `load_backbone`.
        weights: as for `load_backbone`.
        seed: of random weights.
    """
    name, weights = _named(name, weights)
    if name in LITE and weights == "imagenet":
        weights = name
    return describe(name, weights, seed=seed)


def _named(name: str, weights: str) -> tuple[str, str]:
    """Returns the architecture and where its weights are from: `lite1` is both, our own encoder a ResNet."""
    if weights in LITE:
        return weights, "imagenet"
    return ("resnet18" if weights.startswith(OWN) else name), weights


def _of_timm(network: Any) -> Backbone:
    """Takes the maps nearest to strides 8, 16 and 32; of one stride alone an early, a middle, the last."""
    strides = [int(s) for s in network.feature_info.reduction()]
    if len(set(strides)) == 1:
        last = len(strides) - 1
        taken = (last // 3, 2 * last // 3, last)
    else:
        order = range(len(strides))
        found = [min(order, key=lambda i: abs(np.log2(strides[i] / stride))) for stride in _STRIDES]
        taken = (found[0], found[1], found[2])
    return _frozen(Backbone(_Timm(network, taken), MEAN, STD))


def _frozen(made: Backbone) -> Backbone:
    return made.eval().requires_grad_(False)
