"""UniAD: a transformer rebuilds a frozen network's features from those beyond the neighbours of each token.

Knows `pretrained`.

Source: You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022. The maps of a frozen
network's stages 1–4, resized to 14×14 and concatenated, are tokens f of C channels:

    jitter, in training: f + ε, ε ~ N(0, σ²), σ = 20·‖f‖/C, each token's own
    encoder: 4 layers on the tokens, projected to 256 channels
    decoder: 4 layers; a learned query of each attends to the encoder's output, then to the layer before
    mask: in all attentions, a token sees none of the 7×7 tokens about itself, so that it cannot copy
    loss = mean (f̂ − f)², f̂ projected back to C channels, f without jitter
    heatmap = ‖f̂ − f‖ over the channels, bilinear ×16;   score = its greatest mean over 16×16 pixels

8 heads, feed-forward of 1024; AdamW 1e-4, weight decay 1e-4, gradients clipped at .1. Network and transformer
are both saved, so a model loads with no network and no hub.

Written from the facts above alone; the official code was neither used nor looked at, so where it differs is
not known. Ours: the number of epochs, the batch of 64, a learning rate that stays; a learned position per
token, added once before the encoder; the order of a decoder layer's attentions, the first layer having the
encoder's output before it; layer norm after each residual, no dropout, torch's initial values but for queries
and positions (σ = .02); the norm of all gradients together is what is clipped; stages are resized bilinearly
with antialiasing; a mean, not a maximum, pools 16×16 windows that lie side by side; images are resized to
squares; batches come from (seed, step), without augmentation, the last, incomplete one of an epoch dropped.
Which EfficientNet-B4 of timm's is nearest to the paper's is not verified (`backbones.TAGS`).

The grid has size/16 tokens a side (14 at 224) and must be larger than the neighbourhood, or its middle would
see nothing: small images take smaller `neighbours`. Presets other than `paper` take random weights, because
nothing is fetched unasked, and `cpu` a ResNet, a smaller transformer and a higher learning rate: the last
stage of a random EfficientNet is over a hundred times fainter than its first and counts for nothing, while a
random ResNet's stages are alike. In the minute of `cpu` the transformer learns hardly more than the mean
features of each place (either errs by about 2.7 on normal phantoms). `--settings.weights imagenet`, a file,
or (for ResNets) `dia:RUN`, and more time, are what the method is meant for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.settings import require
from ...core.training import Precision, seed_step
from ...features.networks import as_input
from ...features.untrained import Linear, resizing
from .pretrained import Distilled, Learner, Presets, PretrainedSettings

STRIDE = 16  # pixels per token
HEADS, FEEDFORWARD = 8, 4  # the latter in widths: 1024 of 256


@dataclass(frozen=True)
class UniADSettings(PretrainedSettings):
    """Features rebuilt by a transformer with masked neighbours.

    Args:
        backbone: timm's name of the network; `weights` of `dia:RUN` bring their own ResNet.
        weights: of the network: `imagenet`, `none` (random, by seed), a file, or `dia:RUN` for ResNets.
        size: images are resized to squares of this side, a multiple of 16 above 16 · `neighbours`.
        width: channels inside the transformer, a multiple of 8.
        layers: of the encoder, and as many of the decoder.
        neighbours: side of the square of tokens, odd, about each token that it may not attend to.
        jitter: σ of the features' noise in training, in ‖f‖/C; 0 is none.
        epochs: passes over the training normals.
        batch: images per step.
        lr: of AdamW.
        weight_decay: of AdamW.
        clip: greatest norm of the gradients.
        precision: `32`, `bf16` (mixed), or `auto`: bf16 where the hardware has it. Scoring is in 32 bits.
    """

    backbone: Literal["tf_efficientnet_b4", "efficientnet_b4", "resnet18", "resnet50"] = "tf_efficientnet_b4"
    weights: str = "none"
    size: int = 224
    width: int = 256
    layers: int = 4
    neighbours: int = 7
    jitter: float = 20.0
    epochs: int = 1000
    batch: int = 64
    lr: float = 1e-4
    weight_decay: float = 1e-4
    clip: float = 0.1
    precision: Precision = "auto"

    presets: ClassVar[Presets] = {
        "cpu": {
            "backbone": "resnet18", "size": 64, "width": 128, "layers": 2, "neighbours": 3, "epochs": 8,
            "batch": 16, "lr": 1e-3
        },
        "gpu": {"size": 128, "epochs": 100},
        "paper": {"precision": "32"},
    }  # fmt: skip
    least: ClassVar[dict[str, float]] = {"jitter": 0, "weight_decay": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width % HEADS == 0, "width", f"must be a multiple of {HEADS}, not {self.width}")
        require(self.neighbours % 2 == 1, "neighbours", f"must be odd, not {self.neighbours}")
        require(self.size % STRIDE == 0, "size", f"must be a multiple of {STRIDE}, not {self.size}")
        low = STRIDE * self.neighbours
        must = f"must be above 16 · neighbours = {low}, not {self.size}: a token in the middle sees no other"
        require(self.size > low, "size", must)


class _Learner(Learner):
    """AdamW, with the norm of all gradients together clipped."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.clip = self.s.clip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), self.s.lr, weight_decay=self.s.weight_decay)


class UniAD(Distilled):
    """A frozen network's features, rebuilt by a transformer that sees no neighbours."""

    method = "uniad"
    family = "reconstruction of features"
    paper = "You et al., A Unified Model for Multi-class Anomaly Detection (UniAD), NeurIPS 2022"
    pretrained = "tf_efficientnet_b4"
    maps = True
    Settings: ClassVar[type] = UniADSettings
    parts = ("network", "rebuilder")
    learner = _Learner

    def _options(self) -> dict[str, Any]:
        """A ResNet's first map is its stem's, an EfficientNet's is its first stage's."""
        first = int("resnet" in self.s.backbone and not self.s.lite)
        return {"features_only": True, "out_indices": tuple(range(first, first + 4))}

    def _untrained(self) -> nn.Module:
        s = self.s
        channels = _features(self.frozen_, torch.zeros(1, 3, s.size, s.size, device=self.where_)).shape[1]
        with torch.random.fork_rng(devices=[]):
            seed_step(self.seed, 2**32 - 6)
            return Rebuilder(channels, s.size // STRIDE, s.width, s.layers, s.neighbours)

    def _loss(self, trained: nn.Module, x: Tensor) -> Tensor:
        f = _features(self.frozen_, x)
        rebuilt = trained(_jittered(f, self.s.jitter) if self.s.jitter else f)
        return F.mse_loss(rebuilt.float(), f)

    def _module(self) -> nn.Module:
        return RebuildingError(self.frozen_, self.trained_, self.s.size, *self.shape_[:2])


@torch.no_grad()
def _features(network: Any, x: Tensor) -> Tensor:
    """Maps of four stages of `(N, 3, S, S)`, resized to a token per 16 pixels: `(N, C, S/16, S/16)`."""
    grid = (x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)
    return torch.cat([F.interpolate(m.float(), grid, mode="bilinear", antialias=True) for m in network(x)], 1)


def _neighbour_mask(grid: int, neighbours: int) -> Tensor:
    """`(T, T)` of T = grid² tokens, row by row: True where a token may not attend, near itself."""
    row, column = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    reach = neighbours // 2
    near_rows = (row[:, None] - row).abs() <= reach
    return near_rows & ((column[:, None] - column).abs() <= reach)


def _jittered(f: Tensor, scale: float) -> Tensor:
    """Tokens `(N, C, h, w)` with noise of σ = scale · ‖f‖/C, each token's own."""
    return f + torch.randn_like(f) * (scale / f.shape[1]) * f.norm(dim=1, keepdim=True)


def _anomaly_map(rebuilt: Tensor, f: Tensor) -> Tensor:
    """L2 distance over the channels of `(N, C, h, w)`, 16 times as large: `(N, 16h, 16w)`."""
    distance = (rebuilt - f).norm(dim=1, keepdim=True)
    return F.interpolate(distance, scale_factor=STRIDE, mode="bilinear", align_corners=False)[:, 0]


def _greatest_mean(maps: Tensor) -> Tensor:
    """The greatest of the means over 16×16 pixels of `(N, H, W)`: `(N,)`."""
    return F.avg_pool2d(maps[:, None], STRIDE).amax((1, 2, 3))


class RebuildingError(nn.Module):
    """The score and its map: how far rebuilt features are from those of the network.

    Args:
        network: frozen.
        rebuilder: trained.
        size: side that images are resized to.
        height: of the images, which is that of the maps.
        width: of the images.
    """

    outputs = ("heatmap",)

    def __init__(self, network: nn.Module, rebuilder: nn.Module, size: int, height: int, width: int):
        super().__init__()
        self.network, self.rebuilder, self.size = network, rebuilder, size
        down, across = (resizing(size, n, antialias=True) for n in (height, width))
        self.to_shape = Linear(down.float(), across.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scores `(N,)` and maps `(N, H, W)` of `(N, C, H, W)` uint8."""
        f = _features(self.network, as_input(x, self.size))
        maps = _anomaly_map(self.rebuilder(f), f)
        return _greatest_mean(maps).double(), self.to_shape(maps)


class _DecoderLayer(nn.Module):
    """A layer whose learned query attends to the encoder's output, then to the output of the layer before."""

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.of_memory = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.of_previous = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.feedforward = nn.Sequential(
            nn.Linear(width, FEEDFORWARD * width), nn.ReLU(), nn.Linear(FEEDFORWARD * width, width)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, memory: Tensor, previous: Tensor, mask: Tensor) -> Tensor:
        """The encoder's output and the previous layer's, `(N, T, D)` each, to `(N, T, D)`."""
        x = self.query.expand_as(memory)
        x = self.norm1(x + self.of_memory(x, memory, memory, attn_mask=mask, need_weights=False)[0])
        x = self.norm2(x + self.of_previous(x, previous, previous, attn_mask=mask, need_weights=False)[0])
        return self.norm3(x + self.feedforward(x))


class Rebuilder(nn.Module):
    """The transformer: features `(N, C, h, w)` to features, each token's made of those beyond its neighbours.

    Args:
        channels: C.
        grid: tokens a side.
        width: channels inside.
        layers: of the encoder and of the decoder.
        neighbours: side of the masked square.
    """

    mask: Tensor

    def __init__(self, channels: int, grid: int, width: int, layers: int, neighbours: int):
        super().__init__()
        self.into, self.out = nn.Linear(channels, width), nn.Linear(width, channels)
        self.position = nn.Parameter(0.02 * torch.randn(grid**2, width))
        encoder = (
            nn.TransformerEncoderLayer(width, HEADS, FEEDFORWARD * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(_DecoderLayer(width, grid**2) for _ in range(layers))
        self.register_buffer("mask", _neighbour_mask(grid, neighbours), persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        """Returns the rebuilt features `(N, C, h, w)` of `(N, C, h, w)`."""
        x = self.into(f.flatten(2).transpose(1, 2)) + self.position  # (N, T, D)
        for layer in self.encoder:
            x = layer(x, src_mask=self.mask)
        made = x
        for layer in self.decoder:
            made = layer(x, made, self.mask)
        return self.out(made).transpose(1, 2).reshape(f.shape)
