"""EfficientNet-Lite in the place of a ResNet, where a method wants one: four layers, maps at five strides.

Methods differ in what they do with features, and the comparison gives all of them the same ones. Knows
tensors, and timm's form of feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .lite import HEAD, EfficientNetLite
from .own import MEAN, STD, check_timm
from .shared import shared

_LAYERS = {"layer1": (1, 2), "layer2": (2, 3), "layer3": (3, 5), "layer4": (5, 7)}  # stages; 0 is the stem's
_STRIDES = (2, 4, 8, 16, 32)


class LiteResNet(nn.Module):
    """An EfficientNet-Lite with the names of timm's ResNets: `layer1` to `layer4`, `num_features`.

    It takes images normalised as ImageNet's are and undoes that, as it was trained on [−1, 1]. The buffer
    `variant` keeps the architecture in saved tensors.

    Args:
        lite: the network; its modules become part of this one.
        variant: 0, 1 or 2.
    """

    variant: Tensor

    def __init__(self, lite: EfficientNetLite, variant: int):
        super().__init__()
        self.stem = nn.Sequential(lite.stem, nn.ReLU6(), lite.stages[0])
        for name, (first, last) in _LAYERS.items():
            setattr(self, name, nn.Sequential(*lite.stages[first:last]))
        self.head, self.num_features = lite.head, HEAD
        self.register_buffer("variant", torch.tensor([variant]))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Returns the maps `(N, C, h, w)` at strides 2 to 32, of `(N, 3, H, W)` normalised."""
        x = x * x.new_tensor(STD).view(3, 1, 1) + x.new_tensor(MEAN).view(3, 1, 1)
        return shared(self, (x - 0.5) / 0.5, self._all_maps)[:-1]

    def _all_maps(self, x: Tensor) -> list[Tensor]:
        """As `EfficientNetLite.all_maps`."""
        made = [self.stem(x.contiguous(memory_format=torch.channels_last))]
        for name in _LAYERS:
            made.append(getattr(self, name)(made[-1]))
        return [*made, self.headed(made[-1]).mean((2, 3))]

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last feature map `(N, num_features, h, w)` of `(N, 3, H, W)` normalised."""
        return self.headed(self.maps(x)[-1])

    def headed(self, last: Tensor) -> Tensor:
        """Returns the features `(N, num_features, h, w)` of the last map."""
        made: Tensor = nn.functional.relu6(self.head(last))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Returns features `(N, num_features)` of `(N, 3, H, W)` normalised."""
        return self.forward_features(x).mean((-2, -1))


class LiteFeatures(nn.Module):
    """`LiteResNet` as timm's `features_only`: some of its maps, and `feature_info` about them.

    Args:
        lite: the network.
        out_indices: which maps: 0 is the stem's, 1 to 4 are those of `layer1` to `layer4`.
    """

    def __init__(self, lite: LiteResNet, out_indices: Sequence[int]):
        super().__init__()
        check_timm()
        from timm.models import FeatureInfo

        self.lite, self.out_indices = lite, tuple(out_indices)
        layers: list[Any] = [getattr(lite, name) for name in _LAYERS]
        blocks: list[Any] = [lite.stem[2][-1], *(layer[-1][-1] for layer in layers)]  # type: ignore[index]
        maps: list[dict[str, Any]] = [
            {"module": name, "num_chs": block.down.out_channels, "reduction": stride}
            for name, block, stride in zip(("stem", *_LAYERS), blocks, _STRIDES, strict=True)
        ]
        self.feature_info = FeatureInfo(maps, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns a map `(N, C, h, w)` for each of `out_indices`, of `(N, 3, H, W)` normalised."""
        maps = self.lite.maps(x)
        return [maps[i].contiguous() for i in self.out_indices]

    def pooled(self, last: Tensor) -> Tensor:
        """Returns features `(N, 1280)` of the map of `layer4`."""
        return self.lite.headed(last).mean((-2, -1))
