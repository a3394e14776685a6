"""Our own encoder, out of a fitted `csi` or `dia`, in the place of a ResNet.

Knows model folders and timm's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..amplify.encoder import Encoder, Stem
from ..amplify.inputs import build_encoder
from ..amplify.settings import AmplifySettings
from ..core.allocation import AllocationLimit
from ..core.errors import DataError
from ..core.modelfiles import ModelFiles
from ..core.settings import from_dict

OWN = "dia:"  # before the folder of a fitted csi or dia, whose encoder is meant
Channels = tuple[float, float, float]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
_STEMS: tuple[Stem, ...] = ("cifar", "patch", "imagenet")


def own_encoder(weights: str) -> OwnResNet:
    """Returns the encoder of a fitted `csi` or `dia`.

    Args:
        weights: `dia:RUN`, with RUN a model folder.

    Raises:
        DataError: there is no such folder, it is damaged, or its method has no encoder.
    """
    folder = Path(weights.removeprefix(OWN))
    try:
        files = ModelFiles(folder)
        files.verify()
        config = files.json("config.json")
        if (method := config["method"]) not in ("csi", "dia"):
            raise DataError(f"weights {weights}: this {method} has no encoder; name a fitted csi or dia")
        a, shape = from_dict(AmplifySettings, config["settings"]["amplify"]), tuple(map(int, config["shape"]))
        with AllocationLimit(folder, files.nbytes):
            encoder = build_encoder((shape[0], shape[1], shape[2]), a)
            state = load_file(files.weights("weights.safetensors"))
            encoder.load_state_dict(
                {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
            )
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"weights {weights}: not a model folder made by `dia fit` ({reason})") from error
    side, stem = a.stem_of((shape[0], shape[1], shape[2]))
    own = OwnResNet(encoder.channels, a.width, _STEMS.index(stem), side)
    own.stem.load_state_dict(encoder.stem.state_dict())
    for i in range(4):
        getattr(own, f"layer{i + 1}").load_state_dict(encoder.stages[2 * i : 2 * i + 2].state_dict())
    return own


def check_timm() -> None:
    """Raises DataError where timm is missing."""
    if find_spec("timm") is None:
        raise DataError("a pretrained backbone needs timm: pip install 'dia-anomaly[backbones]'")


class OwnResNet(nn.Module):
    """Our encoder without its heads, with the names of timm's ResNets: `layer1` to `layer4`, `num_features`.

    It takes the output of `to_input` and undoes the normalisation; an encoder of grey images sees the mean of
    the channels. The buffer `plan` keeps the architecture in saved tensors.

    Args:
        channels: 1 or 3, that the encoder was fitted on.
        width: of the first stage.
        stem: index into `cifar`, `patch`, `imagenet`.
        side: of the images it was fitted on.
    """

    plan: Tensor

    def __init__(self, channels: int, width: int, stem: int, side: int):
        super().__init__()
        encoder = Encoder(channels, 1, width, _STEMS[stem], side)
        self.stem, stages = encoder.stem, encoder.stages
        self.layer1, self.layer2, self.layer3, self.layer4 = (stages[i : i + 2] for i in range(0, 8, 2))
        self.num_features, self.side, self.channels = encoder.features, side, channels
        self.register_buffer("plan", torch.tensor([channels, width, stem, side]))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Returns the maps `(N, C, h, w)` of the stem and of each layer, of `(N, 3, H, W)` normalised."""
        x = x * x.new_tensor(STD).view(3, 1, 1) + x.new_tensor(MEAN).view(3, 1, 1)
        x = x.mean(1, keepdim=True) if self.channels == 1 else x
        made = [self.stem(((x - 0.5) / 0.5).contiguous(memory_format=torch.channels_last))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            made.append(layer(made[-1]))
        return made

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last feature map `(N, num_features, h, w)` of `(N, 3, H, W)` normalised."""
        return self.maps(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Returns features `(N, num_features)` of `(N, 3, H, W)` normalised."""
        return self.forward_features(x).mean((-2, -1))


class OwnFeatures(nn.Module):
    """`OwnResNet` as timm's `features_only`: some of its maps, and `feature_info` about them.

    Args:
        own: the encoder.
        out_indices: which maps: 0 is the stem's, 1 to 4 are those of `layer1` to `layer4`.
    """

    def __init__(self, own: OwnResNet, out_indices: Sequence[int]):
        super().__init__()
        check_timm()
        from timm.models import FeatureInfo

        self.own, self.out_indices = own, tuple(out_indices)
        _, width, stem, side = (int(v) for v in own.plan)
        stride = {"cifar": 1, "patch": max(round(side / 16), 1), "imagenet": 4}[_STEMS[stem]]
        names = ("stem", "layer1", "layer2", "layer3", "layer4")
        maps: list[dict[str, Any]] = [
            {"module": name, "num_chs": width * factor, "reduction": stride * factor}
            for name, factor in zip(names, (1, 1, 2, 4, 8), strict=True)
        ]
        self.feature_info = FeatureInfo(maps, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns a map `(N, C, h, w)` for each of `out_indices`, of `(N, 3, H, W)` normalised."""
        maps = self.own.maps(x)
        return [maps[i] for i in self.out_indices]
