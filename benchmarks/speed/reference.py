"""The official order of work, written plainly, to measure against. Not a method of the package.

From published descriptions alone: images come one by one through a loader in the main process; the U-Net
dissolves the batch anew for each of the four shifts, at 32×32; the augmentation jitters each image in HSV;
everything is in 32 bits. Plain SGD stands for LARS. Loss, mask and encoder are the package's own: the same
mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dia.amplify.augment import Augment, AugmentSettings
from dia.amplify.loss import contrastive_loss, targets
from dia.amplify.shifts import rotate
from dia.detectors.dia import DIASettings
from dia.detectors.presets import settings
from dia.dissolve.dissolver import build_unet
from dia.dissolve.schedule import cosine_alphas_cumprod, one_step

SHIFTS = 4
SIDE = 32  # of the diffusion model
PAPER = settings(DIASettings, "paper")


class OneByOne(Dataset):
    """Images as a folder data set gives them: each to a float tensor `(3, H, W)` in [0, 1] by itself."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        x = torch.from_numpy(self.images[i].copy()).permute(2, 0, 1).float() / 255
        return x.expand(3, -1, -1)


class ReferenceStep:
    """One training step of the encoder.

    Args:
        images: `(N, H, W, C)` uint8.
        encoder: copied; takes three channels.
        batch: images per step.
        seed: of loader and augmentation.
        device: of encoder, U-Net and augmentation.
    """

    def __init__(
        self,
        images: np.ndarray,
        encoder: nn.Module,
        batch: int = 32,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        torch.manual_seed(seed)
        self.device = device
        self.encoder = copy.deepcopy(encoder).to(device).train()
        self.unet = build_unet(3, PAPER.dissolver).to(device).eval().requires_grad_(False)
        self.alphas = cosine_alphas_cumprod(1000).float().to(device)
        self.augment = Augment(AugmentSettings(), 3)
        self.optimizer = torch.optim.SGD(self.encoder.parameters(), 0.1, momentum=0.9, weight_decay=1e-6)
        self.loader = DataLoader(OneByOne(images), batch, shuffle=True, drop_last=True, num_workers=0)
        self.batches = self._forever()

    def _forever(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader

    @torch.no_grad()
    def dissolve(self, x: Tensor, t: int) -> Tensor:
        """`(N, 3, H, W)` in [0, 1], dissolved at 32×32: padded if smaller, resized and back if larger."""
        h, w = x.shape[-2:]
        pad = max(SIDE - w, 0), max(SIDE - h, 0)
        small = F.pad(x, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
        if max(h, w) > SIDE:
            small = F.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)
        steps = torch.full((len(x),), t, device=x.device)
        y = small * 2 - 1
        y = one_step(y, self.unet(y, steps).sample, self.alphas[steps]) / 2 + 0.5
        if max(h, w) > SIDE:
            return F.interpolate(y, (h, w), mode="bilinear")
        top, left = pad[1] // 2, pad[0] // 2
        return y[..., top : top + h, left : left + w]

    def __call__(self) -> float:
        """Takes a step; its loss."""
        x = next(self.batches).to(self.device)
        rows = [rotate(v, k) for v in (x, x.flip(-1)) for k in range(SHIFTS)]
        for k in range(SHIFTS):
            mirrored = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
            t = int(100 * (0.3 + 0.7 * float(torch.rand(()))))
            rows.append(rotate(self.dissolve(mirrored, t), k))
        with torch.no_grad():
            views = self.augment(torch.cat(rows))
        _, z, logits = self.encoder(views)
        loss = contrastive_loss(z, *(v.to(x.device) for v in targets(len(x), SHIFTS)))
        shift = torch.arange(SHIFTS, device=x.device).repeat_interleave(len(x)).repeat(3)
        loss = loss + F.cross_entropy(logits, shift)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class ReferenceDissolverStep:
    """One training step of the diffusion model at 32×32, batch 32, in 32 bits."""

    def __init__(self, images: np.ndarray, batch: int = 32):
        self.unet = build_unet(3, PAPER.dissolver)
        self.alphas = cosine_alphas_cumprod(1000).float()
        self.optimizer = torch.optim.Adam(self.unet.parameters(), 8e-5, betas=(0.9, 0.99))
        self.loader = iter(DataLoader(OneByOne(images), batch, shuffle=True, drop_last=True))

    def __call__(self) -> float:
        """Takes a step; its loss."""
        x = F.interpolate(next(self.loader), (SIDE, SIDE), mode="bilinear", antialias=True) * 2 - 1
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        t = torch.randint(0, 1000, (len(x),))
        a = self.alphas[t][:, None, None, None]
        noise = torch.randn_like(x)
        estimate = self.unet(a.sqrt() * x + (1 - a).sqrt() * noise, t).sample
        loss = F.l1_loss(estimate, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
