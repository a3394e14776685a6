"""`Dissolve`: the dissolving transformation as a module for anyone's pipeline.

It is an augmentation of kornia, with kornia's `p`, `same_on_batch`, `keepdim` and saved parameters; this file
adds the model, the types of images, and torchvision's samples. Knows no training, label or score, and of
torchvision only the name of its image class.

Source: Shi et al., "Dissolving Is Amplifying", ECCV 2024: x̂ = √(1/ᾱ_t)·x − √(1/ᾱ_t − 1)·ε_θ(x, t).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # as torchvision's transforms do

from ..core.errors import DataError
from .base import Dissolving
from .dissolver import Dissolver, load_dissolver

_SLACK = 1e-3  # by which rounding may carry a value out of [0, 1]


class Dissolve(IntensityAugmentationBase2D):
    """Dissolves images: removes, in one step, the features that a diffusion model of normal images lacks.

    Takes `(C, H, W)` or `(N, C, H, W)`, grey or RGB, float in [0, 1] or uint8, on any device; gives the same
    shape, type and device. The result depends on (x, t) alone: no noise is drawn. No gradient passes through
    it, and its parameters ask for none. Its networks stay in `eval` mode, compute in their own type, and
    move with `.to`; autocast does not reach them.

    It can be called, put in an `nn.Sequential`, in kornia's `AugmentationSequential` (masks, boxes and
    keypoints pass through) or in torchvision's `v2.Compose`: there it takes a whole sample, dissolves its
    `tv_tensors.Image`s, or where there are none its first tensor, and passes on the rest.

    Args:
        model: a `Dissolver` or control; a folder of `dia fit` or `Dissolver.save`; an unconditional
            diffusers DDPM as folder, hub name or pipeline; or a `UNet2DModel`, with `scheduler`. Objects
            are copied, so that moving this module does not move them.
        t: diffusion step; or (low, high), both included, from which a t is drawn for each image.
        scheduler: the scheduler of a `UNet2DModel`.
        size: images longer than this on a side are dissolved at this size and resized back bilinearly; by
            default the size the model was made for. Smaller images are not enlarged.
        p: probability that an image is dissolved; the others come back as they are, and cost nothing.
        same_on_batch: one draw for the whole batch.
        keepdim: `(C, H, W)` gives `(C, H, W)`; otherwise `(1, C, H, W)`, as kornia has it.

    Raises:
        DataError: the model, t, p or an image cannot be used.

    Example:
        >>> from dia.dissolve import Control, DissolverSettings
        >>> dissolve = Dissolve(Control(DissolverSettings(kind="gaussian")), t=(50, 200))
        >>> dissolve(torch.rand(2, 1, 28, 28)).shape  # a model of your own: Dissolve("runs/mine", ...)
        torch.Size([2, 1, 28, 28])
    """

    # kornia would otherwise keep the last batch, to make an identity matrix from it when asked
    _compute_matrix_lazily = False

    def __init__(
        self,
        model: Any,
        t: int | Sequence[int],
        *,
        scheduler: Any = None,
        size: int | None = None,
        p: float = 1.0,
        same_on_batch: bool = False,
        keepdim: bool = True,
    ):
        if not 0 <= p <= 1:
            raise DataError(f"p must lie in [0, 1], not {p}")
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        self.dissolving = _dissolving(model, scheduler)
        if size is not None:
            self.dissolving.settings = replace(self.dissolving.settings, size=size)
        self.range, self.flags = _range(t, self.dissolving.t_max), {"t": t}  # flags: for kornia's repr
        self.disable_features = True  # kornia before 0.9 takes and keeps single images only
        # the same objects, where torch finds them: `to`, `state_dict` and `parameters` reach them
        self.networks = nn.ModuleDict(
            {k.strip("_"): v for k, v in vars(self.dissolving).items() if isinstance(v, nn.Module)}
        )
        self.train(self.training)

    # --- torch's --------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Dissolve:
        """Sets the mode of this module; its networks stay in `eval`, since dropout would draw."""
        super().train(mode)
        self.networks.eval()
        return self

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Dissolve:
        super()._apply(fn, *args, **kwargs)
        d = self.dissolving
        d.where_ = fn(torch.zeros((), device=d.where_)).device
        for name, value in list(vars(d).items()):
            if isinstance(value, Tensor):
                setattr(d, name, value.to(d.where_))  # not its type: ᾱ needs more digits than 16 bits have
        return self

    # --- kornia's -------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, *inputs: Any, params: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        """Dissolves images, or the images of a sample.

        Args:
            inputs: one tensor of images; or a sample, of any structure, as torchvision's transforms take.
            params: parameters that were drawn before (`._params`), to do the same again.
            kwargs: kornia's arguments; `t=` (a number or `(N,)`) takes the place of the t drawn.

        Returns:
            The input with its images dissolved.

        Raises:
            DataError: there is no image, or one that cannot be dissolved.
        """
        leaves, structure = tree_flatten(inputs if len(inputs) != 1 else inputs[0])
        images = [i for i, x in enumerate(leaves) if _tv_image(x)]
        images = images or [i for i, x in enumerate(leaves) if isinstance(x, Tensor)][:1]
        if not images:
            kinds = ", ".join(sorted({type(x).__name__ for x in leaves})) or "nothing"
            raise DataError(f"images must be tensors, not {kinds}; v2.ToImage() makes them of PIL and numpy")
        for i in images:
            y = super().forward(leaves[i].as_subclass(Tensor), params=params, **kwargs)
            leaves[i] = y.as_subclass(type(leaves[i])) if _tv_image(leaves[i]) else y
            params = self._params  # one draw for a whole sample
        return tree_unflatten(leaves, structure)

    def transform_tensor(
        self, input: Tensor, *, shape: Tensor | None = None, match_channel: bool = True
    ) -> Tensor:
        """Gives images or masks the dimensions that kornia wants; uint8 too.

        Args:
            input: the tensor.
            shape: as in kornia.
            match_channel: as in kornia.

        Raises:
            DataError: images of another type.
        """
        if not input.is_floating_point() and input.dtype != torch.uint8:
            raise DataError(f"images must be float in [0, 1] or uint8, not {input.dtype}")
        like = torch.empty(input.shape, device="meta")  # kornia takes floats; it only looks at the shape
        return input.reshape(super().transform_tensor(like, shape=shape, match_channel=match_channel).shape)

    def validate_tensor(self, input: Tensor) -> None:
        """Checks nothing: `transform_tensor` did; kornia would refuse uint8, and before 0.9 bfloat16."""

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draws the `t` of each image, `(N,)`."""
        n, (low, high) = batch_shape[0], self.range
        # on the CPU: the same whatever the device
        return {"t": torch.randint(low, high + 1, (1 if self.same_on_batch else n,)).expand(n)}

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Dissolves the chosen images and leaves the others as they are.

        Args:
            input: `(N, C, H, W)` images.
            params: `batch_prob` and `t` of each image.
            flags: not used.
            transform: not used.

        Returns:
            `(N, C, H, W)`.

        Raises:
            DataError: t is no whole number, or an image cannot be dissolved.
        """
        n, chosen = len(input), params["batch_prob"].to(input.device) > 0.5
        t = torch.as_tensor(params["t"], device=input.device)
        if t.is_floating_point() or t.shape not in ((), (1,), (n,)):
            raise DataError(f"t must be a whole number or one for each of {n} images, not {params['t']}")
        # kornia chooses afterwards, but the network takes nearly all of the time; kornia before 0.9 has
        # chosen already
        chosen = chosen if len(chosen) == n else chosen.new_ones(n)
        out = input.clone()
        if chosen.any():
            out[chosen] = self._dissolved(input[chosen], t.expand(n)[chosen])
        return out

    def _dissolved(self, x: Tensor, t: Tensor) -> Tensor:
        whole = x.dtype == torch.uint8
        if not whole:
            low, high = (float(v) for v in x.aminmax())
            if not (low >= -_SLACK and high <= 1 + _SLACK):
                got = f"[{low:.4g}, {high:.4g}]; put Dissolve before any normalisation, or clamp"
                raise DataError(f"float images must lie in [0, 1], not {got}")
        half = 127.5 if whole else 0.5
        y = x.to(torch.promote_types(x.dtype, torch.float32)).div(half).sub(1)
        with torch.autocast(self.dissolving.where_.type, enabled=False):
            parts = self.dissolving._chunks(len(y), None)  # no faster in one piece, and bounded
            y = torch.cat([self.dissolving(y[part], t[part]) for part in parts])
        y = y.add(1).mul(half)
        return (y.round() if whole else y).clamp(0, 2 * half).to(x.dtype)


def _tv_image(x: Any) -> bool:
    """Returns whether x is a `torchvision.tv_tensors.Image`; torchvision need not be installed."""
    return any(c.__name__ == "Image" and c.__module__.startswith("torchvision.") for c in type(x).__mro__)


def _range(t: int | Sequence[int], t_max: int) -> tuple[int, int]:
    try:
        low, high = (operator.index(v) for v in (t if isinstance(t, Sequence) else (t, t)))
    except (TypeError, ValueError):
        raise DataError(f"t must be a whole number or (low, high), not {t!r}") from None
    if not 0 <= low <= high < t_max:
        raise DataError(f"t must lie in 0–{t_max - 1}, the lower end first, not {t}")
    return low, high


def _dissolving(model: Any, scheduler: Any) -> Dissolving:
    """Returns a private copy of the dissolver that `model` stands for."""
    if isinstance(model, str | Path):
        folder = Path(model)
        if (folder / "dissolver").is_dir():
            return load_dissolver(folder / "dissolver", device="cpu")
        if (folder / "calibration.json").is_file():
            raise DataError(f"{folder}: no dissolver here; fit dia, or dia+ with dissolver.kind diffusion")
        return load_dissolver(model, device="cpu")
    if isinstance(model, Dissolving):
        model._check_fitted()
        return copy.deepcopy(model)
    if hasattr(model, "vae"):
        raise DataError(f"{type(model).__name__} works on latents; kornia's RandomDissolving does that")
    unet, scheduler = getattr(model, "unet", model), getattr(model, "scheduler", scheduler)
    if not isinstance(unet, nn.Module) or not hasattr(unet, "config"):
        raise DataError(f"cannot dissolve with {type(model).__name__}: name a folder, or a diffusers U-Net")
    if scheduler is None:
        raise DataError(f"a bare {type(unet).__name__} needs its scheduler: Dissolve(unet, t, scheduler=...)")
    return Dissolver.of_network(copy.deepcopy(unet), scheduler, device=str(unet.device))
