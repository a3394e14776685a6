"""EfficientNet-Lite 0 to 2, with batch normalisation folded into the convolutions. Knows tensors,
and that their maps may be shared.

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variants (no squeeze-and-excitation, ReLU6, stem and
head of one size) are TensorFlow's, whose padding is kept: `SAME`, which pads more at the end than before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .runtime import Graph, run
from .shared import shared

HEAD = 1280  # pooled features
DEPTHS, WIDTHS = (1.0, 1.1, 1.2), (1.0, 1.0, 1.1)  # by variant
_EPS = 1e-3  # of batch normalisation
_STAGES = (  # expansion, kernel, stride, channels, blocks
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
_TAKEN = (2, 4, 6)  # stages whose last maps are taken: at strides 8, 16 and 32


class _Conv(nn.Conv2d):
    """A convolution with bias and TensorFlow's padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        before, lack = kernel // 2, [int(stride == 2 and n % 2 == 0) for n in map(int, x.shape[-2:])]
        # a row less before the first pixel than after the last: a kernel with a first row of zeros does that
        # (in a graph the image is padded: onnxruntime takes no computed kernel as well)
        weight = self.weight
        if any(lack) and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            down, across = ((before - missing, before) for missing in lack)
            x, before = F.pad(x, (*across, *down)), 0
        elif any(lack):
            weight = F.pad(weight, (lack[1], 0, lack[0], 0))
        return F.conv2d(x, weight, self.bias, stride, before, 1, self.groups)


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)  # a new tensor would cost as much as a convolution


class _Block(nn.Module):
    """An inverted residual block: 1×1 up, depthwise, 1×1 down without a nonlinearity."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner, self.residual = inputs * expansion, stride == 1 and inputs == outputs
        self.up = _Conv(inputs, inner, 1) if expansion > 1 else None
        self.deep = _Conv(inner, inner, kernel, stride, groups=inner)
        self.down = _Conv(inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.up is None else _relu6(self.up(x))
        y = self.down(_relu6(self.deep(y)))
        return x + y if self.residual else y


def _added(graph: Graph, x: str, stage: nn.Module) -> str:
    """Adds the blocks of a stage to a graph, as `_Block.forward` computes them."""
    for block in stage.children():
        assert isinstance(block, _Block)
        y = x if block.up is None else graph.conv(x, block.up, relu6=True)
        y = graph.conv(graph.conv(y, block.deep, relu6=True), block.down, relu6=False)
        x = graph.add("Add", x, y) if block.residual else y
    return x


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite with random weights, until `load_published` or `load_state_dict` brings others.

    Args:
        variant: 0, 1 or 2.
    """

    def __init__(self, variant: int = 0):
        super().__init__()
        depth, width = DEPTHS[variant], WIDTHS[variant]
        self.stem, inputs, self.stages = _Conv(3, 32, 3, 2), 32, nn.ModuleList()
        for i, (expansion, kernel, stride, channels, blocks) in enumerate(_STAGES):
            outputs = _rounded(channels * width)
            count = blocks if i in (0, len(_STAGES) - 1) else math.ceil(blocks * depth)
            made = [_Block(inputs, outputs, expansion, kernel, stride)]
            made += [_Block(outputs, outputs, expansion, kernel, 1) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*made))
            inputs = outputs
        self.head = _Conv(inputs, HEAD, 1)
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the last maps at strides 8, 16 and 32, `(N, C, h, w)` each, and features `(N, 1280)`.

        Args:
            x: `(N, 3, H, W)` in [−1, 1].
        """
        *_, fine, middle, coarse, pooled = shared(self, x, self.all_maps)
        return fine, middle, coarse, pooled

    def all_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the last maps at strides 2, 4, 8, 16 and 32, and features `(N, 1280)`.

        Args:
            x: `(N, 3, H, W)` in [−1, 1].
        """
        if (found := run(self, x, "maps", self._graph_of_maps)) is not None:
            return found
        made, after = [_relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))], -1
        for to in (0, 1, *_TAKEN):
            made.append(self._through(made[-1], after, to))
            after = to
        return [*made[1:], _relu6(self.head(made[-1])).mean((2, 3))]

    def fine(self, x: Tensor) -> Tensor:
        """Returns the map at stride 8 of `(N, 3, H, W)` in [−1, 1], and runs no later stage."""
        if (found := run(self, x, "fine", self._graph_of_fine)) is not None:
            return found[0]
        x = _relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self._through(x, -1, _TAKEN[0])

    def _through(self, x: Tensor, after: int, to: int) -> Tensor:
        for stage in self.stages[after + 1 : to + 1]:
            x = stage(x)
        return x

    def _graph_of_maps(self, graph: Graph) -> list[str]:
        made = [graph.conv("images", self.stem, relu6=True)]
        for stage in self.stages:
            made.append(_added(graph, made[-1], stage))
        head = graph.conv(made[-1], self.head, relu6=True)
        pooled = graph.add("Flatten", graph.add("GlobalAveragePool", head))
        return [*(made[1 + i] for i in (0, 1, *_TAKEN)), pooled]

    def _graph_of_fine(self, graph: Graph) -> list[str]:
        x = graph.conv("images", self.stem, relu6=True)
        for stage in self.stages[: _TAKEN[0] + 1]:
            x = _added(graph, x, stage)
        return [x]

    @torch.no_grad()
    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state dict as published: each convolution's weight, then its batch normalisation; by order.

        Args:
            state: with the tensors of the classifier, which is left out.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        tensors = iter([t for name, t in state.items() if not name.endswith("num_batches_tracked")])
        for conv in (m for m in self.modules() if isinstance(m, _Conv)):
            try:
                weight, gamma, beta, mean, variance = (next(tensors).double() for _ in range(5))
            except (StopIteration, RuntimeError):
                raise ValueError("too few tensors") from None
            shapes = [tuple(t.shape) for t in (weight, gamma, beta, mean, variance)]
            wanted = [tuple(conv.weight.shape)] + [(conv.out_channels,)] * 4
            for got, should in zip(shapes, wanted, strict=True):
                if got != should:
                    raise ValueError(f"a tensor of {got} where {should} is wanted")
            scale = gamma / (variance + _EPS).sqrt()
            conv.weight.copy_(weight * scale[:, None, None, None])
            conv.bias.copy_(beta - mean * scale)  # type: ignore[union-attr]


def _rounded(channels: float) -> int:
    """Rounds channels to a multiple of 8, never down by more than a tenth."""
    whole = max(8, int(channels + 4) // 8 * 8)
    return whole + 8 if whole < 0.9 * channels else whole
