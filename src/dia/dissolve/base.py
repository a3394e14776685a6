"""The base of all dissolvers: working size, uint8 and float images, batches, and the facts that are saved.

Knows images, tensors and files; knows no network. Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import DataError
from ..core.modelfiles import ModelFiles
from ..core.settings import plain
from .settings import T_MAX, DissolverSettings


class Dissolving:
    """Dissolves images of any size, grey or RGB; `Dissolver` and `Control` say how.

    Args:
        settings: the kind, its strength and the working size.
        seed: decides the weights and the draws of training.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Attributes:
        where_: the device in use; it is set by fitting or loading.
        t_max: the number of diffusion steps.
        fit_seconds_: the time of training in seconds.
    """

    where_: torch.device
    t_max: int = T_MAX

    def __init__(self, settings: DissolverSettings, *, seed: int = 0, device: str = "auto"):
        self.settings, self.seed, self.device, self.fit_seconds_ = settings, seed, device, 0.0

    def _working(self, channels: int) -> tuple[int, int]:
        """Returns the channels and the divisor of the sides that `_remove` needs for images of `channels`."""
        return channels, 1

    def _remove(self, z: Tensor, t: Tensor) -> Tensor:
        """Dissolves `(N, C, h, w)` in [−1, 1] at `(N,)` diffusion steps."""
        raise NotImplementedError

    def sha256(self) -> str:
        """Returns a hash of everything that decides the result: equal hashes dissolve alike."""
        raise NotImplementedError

    def _check_fitted(self) -> None:
        if not hasattr(self, "where_"):
            raise DataError("this Dissolver is not fitted; call fit() or load_dissolver() first")

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_dissolver` reads."""
        facts = {"settings": plain(self.settings), "seed": self.seed, "fit_seconds": self.fit_seconds_}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "dissolver.json").write_text(json.dumps(facts, indent=2))

    def dissolve(
        self, images: np.ndarray, t: int | Sequence[int], *, batch: int | None = None, rounded: bool = True
    ) -> np.ndarray:
        """Dissolves images at one or several t.

        Args:
            images: `(N, H, W, C)` uint8.
            t: diffusion step in 0–999, or a sequence of steps.
            batch: images per forward pass, on which the result does not depend; by default 32 on a CPU,
                where larger batches fall out of its caches and take nearly twice as long, else 256.
            rounded: whether the result is rounded to whole grey values.

        Returns:
            uint8 (float32 in [0, 255] if not `rounded`), `(N, H, W, C)` for one t, `(len(t), N, H, W, C)` for
            a sequence.

        Raises:
            DataError: the images have another type or shape, t is out of range, or nothing is fitted.
        """
        many = isinstance(t, Sequence | np.ndarray)
        ts = [int(v) for v in np.atleast_1d(t)]
        out = np.empty((len(ts), *images.shape), np.uint8 if rounded else np.float32)
        for part in self._chunks(len(images), batch):
            x = to_tensor(images[part], self.where_)
            for j, v in enumerate(ts):
                out[j, part] = to_images(self(x, v), rounded=rounded)
        return out if many else out[0]

    def dissolve_each(self, images: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Dissolves each image at a t of its own.

        Args:
            images: `(N, H, W, C)` uint8.
            t: `(N,)` diffusion steps in 0–999.

        Returns:
            `(N, H, W, C)` uint8.
        """
        out = np.empty_like(images)
        for part in self._chunks(len(images), None):
            x = to_tensor(images[part], self.where_)
            out[part] = to_images(self(x, torch.from_numpy(np.asarray(t[part], np.int64))))
        return out

    def _chunks(self, n: int, batch: int | None) -> list[slice]:
        self._check_fitted()
        batch = batch or (32 if self.where_.type == "cpu" else 256)
        return [slice(i, i + batch) for i in range(0, n, batch)]

    @torch.inference_mode()
    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Dissolves `(N, C, H, W)` float images in [−1, 1] at a number t or `(N,)`; shape and device stay."""
        self._check_fitted()
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise DataError(f"images must be (N, 1 or 3, H, W), not {tuple(x.shape)}")
        steps = torch.as_tensor(t, device=self.where_).expand(len(x))
        if len(x) and not (int(steps.min()) >= 0 and int(steps.max()) < self.t_max):
            raise DataError(f"t must lie in 0–{self.t_max - 1}, not {t}")
        channels, multiple = self._working(x.shape[1])
        z, undo = fit_in(x.to(self.where_), self.settings.size, channels, multiple)
        return undo(self._remove(z, steps)).to(x.device)


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Converts uint8 images to the tensors that a dissolver takes.

    Args:
        images: `(N, H, W, C)` uint8, C 1 or 3.
        device: where the result lies.

    Returns:
        `(N, C, H, W)` float32 in [−1, 1].

    Raises:
        DataError: the images have another type or shape.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise DataError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_images(x: Tensor, *, rounded: bool = True) -> np.ndarray:
    """Converts tensors back to images.

    Args:
        x: `(N, C, H, W)` in [−1, 1].
        rounded: whether the result is rounded to whole grey values.

    Returns:
        `(N, H, W, C)` uint8, or float32 in [0, 255] where not rounded.
    """
    grey = x.add(1).mul(127.5).clamp(0, 255).permute(0, 2, 3, 1)
    return (grey.round().byte() if rounded else grey).cpu().numpy()


def fit_in(x: Tensor, size: int, channels: int, multiple: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Brings images to a working size: larger ones are resized bilinearly, then all are padded by reflection.

    Args:
        x: `(N, C, H, W)`.
        size: longest side in pixels before padding.
        channels: 1 or 3, the channels of the result.
        multiple: both sides become divisible by it (28 px become 32 for three halvings).

    Returns:
        The images, and the function that brings a result back to the original shape.
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


def saved_facts(folder: Path | str) -> dict[str, Any]:
    """Reads the `dissolver.json` of a folder; the result is empty where there is none.

    Raises:
        DataError: the file is not one that `Dissolving.save` writes.
    """
    if not (Path(folder) / "dissolver.json").exists():
        return {}
    facts = ModelFiles(folder).json("dissolver.json")
    types = {"settings": (dict,), "seed": (int,), "fit_seconds": (int, float)}
    if not all(type(facts.get(name)) in kinds for name, kinds in types.items()):
        raise DataError(f"{folder}: dissolver.json must hold settings, seed and fit_seconds")
    return facts
