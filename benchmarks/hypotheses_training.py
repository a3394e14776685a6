"""Two pretexts beside contrast, for `hypotheses.py`: which t dissolved an image, and which lesion is in it.

And a student, which learns the scores of `dia+`. The pretexts train the encoder of `dia` for as many steps,
on as many rows of the same augmentations, as `dia` does: three views of each image, each in all shifts; a
linear head on the penultimate features says what was done to the view. The head is thrown away. Knows images,
dissolved copies and the encoder; no label of disease.

The lesions are those of no other part of this project: patches of other normals faded in (foreign patch
interpolation, Tan et al., MELBA 2022), local gain, local warps, local sharpening, smooth fields. `dia.data.
lesions`, which judges, and the phantoms draw differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dia.amplify.augment import Augment
from dia.amplify.encoder import Encoder
from dia.amplify.learning import AmplifySettings, encoder_input, untrained_encoder
from dia.amplify.shifts import SHIFTS
from dia.dissolve.bank import DissolvedBank
from dia.training import batch_indices, bf16_is_fast, seed_step

VIEWS = 3  # of each image and shift in a step, as `dia` has them
NORMAL = 0.25  # share of the views that keep their image as it is
LESIONS = ("normal", "foreign", "gain", "warp", "sharp", "field")

# indices (B,) to rows (VIEWS·K·B, C, S, S) in [0, 1], augmented and in all K shifts, and their classes
Rows = Callable[[np.ndarray, Augment], tuple[Tensor, Tensor]]


def trained_to_tell(
    n: int, shape: tuple[int, int, int], classes: int, rows: Rows, s: AmplifySettings, seed: int
) -> tuple[Encoder, float]:
    """An encoder trained to tell the classes of rows of n images `shape` (H, W, C), in eval mode.

    Returns:
        It, and its accuracy over the last sixth of the training, before each step.
    """
    encoder = untrained_encoder(shape, s, seed).train()
    seed_step(seed, 2**32 - 4)
    head = nn.Linear(encoder.features, classes)
    augment = Augment(s.augment, 3 if s.rgb else shape[2])
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, s.lr, weight_decay=s.weight_decay, fused=True)
    fast = s.precision != "32" and bf16_is_fast(torch.device("cpu"))
    right = []
    for step in range(s.steps):
        for group in optimizer.param_groups:
            group["lr"] = s.lr * rate(step, s)
        seed_step(seed, step)
        x, y = rows(batch_indices(n, s.batch, seed, step), augment)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = head(encoder(x)[0]).float()
        right.append((logits.argmax(1) == y).float().mean().item())
        optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        optimizer.step()
    return encoder.eval().requires_grad_(False), float(np.mean(right[-max(s.steps // 6, 1) :]))


def rate(step: int, s: AmplifySettings) -> float:
    """Share of the peak learning rate: up linearly, down along a half cosine, as in `dia.amplify`."""
    warm = max(round(s.warmup * s.steps), 1)
    if step < warm:
        return 0.1 + 0.9 * step / warm
    return (1 + math.cos(math.pi * (step - warm) / max(s.steps - warm, 1))) / 2


def level_rows(images: np.ndarray, bank: DissolvedBank, s: AmplifySettings) -> Rows:
    """Views at a level drawn uniformly, then augmented: 0 is not dissolved, l the l-th t of the bank."""

    def rows(index: np.ndarray, augment: Augment) -> tuple[Tensor, Tensor]:
        made = [_level_view(images, bank, s, index) for _ in range(VIEWS)]
        count = SHIFTS[s.shift][0]
        x = augment(torch.cat([_shifted(v, s) for v, _ in made]))
        return x, torch.cat([level.repeat(count) for _, level in made])

    return rows


def _level_view(
    images: np.ndarray, bank: DissolvedBank, s: AmplifySettings, index: np.ndarray
) -> tuple[Tensor, Tensor]:
    level = torch.randint(0, len(bank.ts) + 1, (len(index),))
    flip = torch.randint(0, 2, (len(index),)).numpy().astype(bool)
    plain = np.where(flip[:, None, None, None], images[index][:, :, ::-1], images[index])
    gone = bank.take(index, flip, np.maximum(level.numpy() - 1, 0))
    return encoder_input(np.where((level == 0).numpy()[:, None, None, None], plain, gone), s), level


def lesion_rows(images: np.ndarray, s: AmplifySettings) -> Rows:
    """Views, augmented, then each with a lesion of a kind drawn uniformly; a quarter of them without.

    After the augmentation, as a crop could leave a lesion out and resizing it would blur it.
    """

    def rows(index: np.ndarray, augment: Augment) -> tuple[Tensor, Tensor]:
        x = encoder_input(images[index], s)
        flips = torch.randint(0, 2, (VIEWS, len(index), 1, 1, 1)).bool()
        x = augment(torch.cat([_shifted(torch.where(f, x.flip(-1), x), s) for f in flips]))
        kind = torch.randint(1, len(LESIONS), (len(x),))
        kind[torch.rand(len(x)) < NORMAL] = 0
        return with_lesions(x, x[torch.randperm(len(x))], kind), kind

    return rows


def _shifted(x: Tensor, s: AmplifySettings) -> Tensor:
    count, shift = SHIFTS[s.shift]
    return torch.cat([shift(x, k) for k in range(count)])


# --- lesions ----------------------------------------------------------------------------------------------


def with_lesions(x: Tensor, other: Tensor, kind: Tensor) -> Tensor:
    """`(N, C, S, S)` in [0, 1], each with one lesion of its kind `(N,)` of `LESIONS`; of `other`, patches."""
    out = x.clone()
    for k, change in enumerate((_foreign, _gain, _warp, _sharp, _field), 1):
        i = (kind == k).nonzero()[:, 0]
        if len(i):
            mask = blobs(len(i), x.shape[-1]) * torch.empty(len(i), 1, 1, 1).uniform_(0.7, 1)
            out[i] = x[i] + (change(x[i], other[i]) - x[i]) * mask
    return out.clamp(0, 1)


def blobs(n: int, side: int) -> Tensor:
    """`(n, 1, S, S)` in [0, 1]: ellipses with uneven soft edges, radii from 12 to 40 % of the side."""
    place = (torch.arange(side) + 0.5) / side
    centre = torch.empty(n, 2, 1, 1).uniform_(0.15, 0.85)
    radius = torch.empty(n, 2, 1, 1).uniform_(math.log(0.12), math.log(0.4)).exp()
    turn = torch.empty(n, 1, 1).uniform_(0, math.pi)
    dy, dx = place[None, :, None] - centre[:, 0], place[None, None] - centre[:, 1]
    u, v = turn.cos() * dx + turn.sin() * dy, turn.cos() * dy - turn.sin() * dx
    distance = ((u / radius[:, 0]) ** 2 + (v / radius[:, 1]) ** 2).sqrt()[:, None]
    distance = distance + 0.25 * smooth_noise(n, side, 6)
    return ((1 - distance) / torch.empty(n, 1, 1, 1).uniform_(0.05, 0.35) + 0.5).clamp(0, 1)


def smooth_noise(n: int, side: int, cells: int) -> Tensor:
    """`(n, 1, S, S)`: Gaussian noise on a grid of so many cells a side, between them bicubic."""
    return F.interpolate(torch.randn(n, 1, cells, cells), (side, side), mode="bicubic")


def _foreign(x: Tensor, other: Tensor) -> Tensor:
    """Another normal, half of them shifted so that another place of it comes here."""
    far = [o.roll(torch.randint(0, x.shape[-1], (2,)).tolist(), (-2, -1)) for o in other]
    here = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(here, other, torch.stack(far))


def _gain(x: Tensor, _: Tensor) -> Tensor:
    centre = x.mean((-2, -1), keepdim=True)
    return (x - centre) * _either(len(x), 0.7, 1.4).exp() + centre


def _warp(x: Tensor, _: Tensor) -> Tensor:
    n, side = len(x), x.shape[-1]
    strength = torch.empty(n, 1, 1, 1).uniform_(0.2, 0.5)  # of half the side
    field = torch.cat([smooth_noise(n, side, 4) for _ in range(2)], 1).permute(0, 2, 3, 1) * strength
    still = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, still + field, padding_mode="reflection", align_corners=False)


def _sharp(x: Tensor, _: Tensor) -> Tensor:
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x + (x - smooth) * torch.empty(len(x), 1, 1, 1).uniform_(2, 6)


def _field(x: Tensor, _: Tensor) -> Tensor:
    return x + smooth_noise(len(x), x.shape[-1], 3) * torch.empty(len(x), 1, 1, 1).uniform_(0.2, 0.5)


def _either(n: int, low: float, high: float) -> Tensor:
    """`(n, 1, 1, 1)`: sizes from low to high, half of them negative."""
    size = torch.empty(n, 1, 1, 1).uniform_(low, high)
    return torch.where(torch.rand(n, 1, 1, 1) < 0.5, size, -size)


# --- distillation -------------------------------------------------------------------------------------------


def altered(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`(count, H, W, C)` uint8 from normals: a quarter as they are, others with a lesion or changed whole."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        of = torch.randint(0, len(images), (2, count))
        x, other = (torch.from_numpy(images[i]).permute(0, 3, 1, 2).float() / 255 for i in of.numpy())
        kind = torch.randint(1, len(LESIONS), (count,))
        kind[torch.rand(count) < NORMAL] = 0
        local = with_lesions(x, other, kind)
        share = torch.rand(count, 1, 1, 1) * 0.6
        mixed = torch.stack([x * (1 - share) + other * share, _field(x, x), _gain(x, x), _sharp(x, x)])
        whole = mixed[torch.randint(0, len(mixed), (count,)), torch.arange(count)]
        y = torch.where((torch.rand(count, 1, 1, 1) < 0.5) | (kind == 0)[:, None, None, None], local, whole)
        return (y.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def student(images: np.ndarray, scores: np.ndarray, seed: int, steps: int = 600) -> nn.Module:
    """A small network that gives the scores `(N,)` of images `(N, H, W, C)` uint8, clipped at their ends."""
    low, high = np.quantile(scores, (0.01, 0.99))
    target = torch.from_numpy(np.clip(scores, low, high)).float()
    x = as_unit(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (x.shape[1], 16, 32, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, 1 + (i > 0), 1), nn.BatchNorm2d(b), nn.ReLU())
            for i, (a, b) in enumerate(pairwise(widths))
        ]
        head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 1), nn.Flatten(0))
        network = nn.Sequential(*blocks, *head)
        optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
        for _ in range(steps):
            i = torch.randint(0, len(x), (64,))
            loss = F.smooth_l1_loss(network(x[i]), target[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def as_unit(images: np.ndarray) -> Tensor:
    """`(N, H, W, C)` uint8 to `(N, C, H, W)` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
