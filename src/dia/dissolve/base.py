"""What everything that dissolves shares: settings, working size, uint8 and float images, chunks.

Knows tensors of images; knows no network. Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import DataError
from .settings import T_MAX, DissolverSettings


class Dissolving:
    """Dissolves images of any size and depth; `Dissolver` and the controls say how.

    Attributes:
        settings: of which this class takes `size`.
        where_: the device that works.
    """

    settings: DissolverSettings
    where_: torch.device

    def _working(self, channels: int) -> tuple[int, int]:
        """(channels, divisor of the sides) of the images that `_remove` takes, of those with `channels`."""
        return channels, 1

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        """Dissolves `(N, C, h, w)` in [−1, 1] at `(N,)` diffusion steps."""
        raise NotImplementedError

    def _check_fitted(self) -> None:
        """Complains where there is nothing to dissolve with yet."""

    def save(self, folder: Path) -> None:
        """Writes what `load_dissolver` reads."""
        raise NotImplementedError

    def sha256(self) -> str:
        """Hash of everything that decides the result: the same hash dissolves alike."""
        raise NotImplementedError

    def dissolve(
        self,
        images: np.ndarray,
        t: int | Sequence[int],
        *,
        batch: int | None = None,
        rounded: bool = True,
    ) -> np.ndarray:
        """Dissolves images at one or several t.

        Args:
            images: `(N, H, W, C)` uint8.
            t: diffusion step in 0–999, or a sequence of them.
            batch: images per forward pass, on which the result does not depend; by default 32 on a CPU,
                where larger ones fall out of its caches and take nearly twice as long, else 256.
            rounded: to whole grey values.

        Returns:
            uint8 (float32 in [0, 255] if not `rounded`), `(N, H, W, C)` for one t, `(len(t), N, H, W, C)` for
            a sequence.

        Raises:
            DataError: images of another type or shape, t out of range, or not fitted.
        """
        many = isinstance(t, Sequence | np.ndarray)
        ts = [int(v) for v in np.atleast_1d(t)]
        out = np.empty((len(ts), *images.shape), np.uint8 if rounded else np.float32)
        for part in self._chunks(len(images), batch):
            x = to_tensor(images[part], self.where_)
            for j, v in enumerate(ts):
                out[j, part] = to_uint8(self(x, v)) if rounded else to_grey(self(x, v))
        return out if many else out[0]

    def dissolve_each(self, images: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Dissolves each of `(N, H, W, C)` uint8 images at its own t, `(N,)`. Same shape."""
        out = np.empty_like(images)
        for part in self._chunks(len(images), None):
            x = to_tensor(images[part], self.where_)
            out[part] = to_uint8(self(x, torch.from_numpy(np.asarray(t[part], np.int64))))
        return out

    def _chunks(self, n: int, batch: int | None) -> list[slice]:
        self._check_fitted()
        batch = batch or (32 if self.where_.type == "cpu" else 256)
        return [slice(i, i + batch) for i in range(0, n, batch)]

    @torch.inference_mode()
    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Dissolves `(N, C, H, W)` float images in [−1, 1]; t a number or `(N,)`. Same shape and device."""
        self._check_fitted()
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise DataError(f"images must be (N, 1 or 3, H, W), not {tuple(x.shape)}")
        steps = torch.as_tensor(t, device=self.where_).expand(len(x))
        if len(x) and not (int(steps.min()) >= 0 and int(steps.max()) < self.t_max):
            raise DataError(f"t must lie in 0–{self.t_max - 1}, not {t}")
        channels, multiple = self._working(x.shape[1])
        z, undo = fit_in(x.to(self.where_), self.settings.size, channels, multiple)
        return undo(self._remove(z, steps)).to(x.device)

    @property
    def t_max(self) -> int:
        """Diffusion steps there are."""
        return T_MAX


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """`(N, H, W, C)` uint8 to `(N, C, H, W)` float32 in [−1, 1]."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_grey(x: Tensor) -> np.ndarray:
    """`(N, C, H, W)` in [−1, 1] to `(N, H, W, C)` float32 in [0, 255]."""
    return x.add(1).mul(127.5).clamp(0, 255).permute(0, 2, 3, 1).cpu().numpy()


def to_uint8(x: Tensor) -> np.ndarray:
    """The same, rounded, as uint8."""
    return x.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def fit_in(x: Tensor, size: int, channels: int, multiple: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Brings `(N, C, H, W)` to at most `size` a side, `channels`, and sides divisible by `multiple`.

    Larger images are resized bilinearly, then padded by reflection (28 px to 32 for three halvings).
    Returns the images and the function that takes a result back to the original shape.
    """
    n, (c, h, w) = x.shape[0], map(int, x.shape[1:])  # numbers to a trace too, but for n
    if c != channels:
        x = x.mean(1, keepdim=True) if channels == 1 else x.expand(n, 3, h, w)
    scale = min(1.0, size / max(h, w))
    sh, sw = max(round(h * scale), 1), max(round(w * scale), 1)
    if scale < 1:
        x = F.interpolate(x, (sh, sw), mode="bilinear", antialias=True)
    ph, pw = -sh % multiple, -sw % multiple
    top, left = ph // 2, pw // 2
    mode = "reflect" if max(ph - top, top) < sh and max(pw - left, left) < sw else "replicate"
    x = F.pad(x, (left, pw - left, top, ph - top), mode=mode)

    def undo(y: Tensor) -> Tensor:
        y = y[..., top : top + sh, left : left + sw]
        if scale < 1:
            y = F.interpolate(y, (h, w), mode="bilinear")
        if c != channels:
            y = y.expand(n, 3, h, w) if channels == 1 else y.mean(1, keepdim=True)
        return y

    return x, undo
