"""A frozen EfficientNet-Lite in onnxruntime, which convolves on a CPU faster than torch does.

On accelerators, and where gradients or graphs are wanted, torch computes; the maps are the same but for
rounding. Sessions are found by the weights, so networks with equal weights share one. Knows convolutions.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..core.running.threads import onnxruntime_options

_KEPT = 8  # sessions, of several parts and numbers of threads; one of Lite0 holds 17 MB
_OPSET, _IR = 18, 9
_CLIP = {"zero": 0.0, "six": 6.0}  # constants of every graph
_sessions: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
_digests: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], bytes]] = WeakKeyDictionary()
_lock = threading.Lock()


def digest(network: nn.Module, weights: Sequence[nn.Parameter]) -> bytes:
    """Returns the hash of a network's weights, taken anew when a weight was written to or replaced since.

    Args:
        network: by which the hash is kept.
        weights: its parameters, which an architecture has in one order, however it is wrapped.
    """
    now = tuple((p.data_ptr(), p._version) for p in weights)
    known = _digests.get(network)
    if known is None or known[0] != now:
        hashed = blake2b(digest_size=16)
        for p in weights:
            hashed.update(p.detach().cpu().contiguous().numpy().tobytes())
        known = _digests[network] = now, hashed.digest()
    return known[1]


def learns(weights: Sequence[nn.Parameter], x: Tensor) -> bool:
    """Returns whether gradients are wanted of a network or of its input.

    Args:
        weights: parameters of the network.
        x: its input.
    """
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in weights))


class Graph:
    """A graph in the making: convolutions, ReLU6 and sums, as ONNX.

    Args:
        onnx: the module.

    Attributes:
        nodes: so far.
        constants: so far.
    """

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants = [onnx.numpy_helper.from_array(torch.tensor(v).numpy(), k) for k, v in _CLIP.items()]

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operator; returns the name of what it gives.

        Args:
            kind: of ONNX's.
            inputs: names.
            attributes: of the operator.
        """
        name = f"{kind}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, conv: nn.Conv2d, *, relu6: bool) -> str:
        """Adds a convolution with TensorFlow's padding, ONNX's SAME_UPPER.

        Args:
            x: name of its input.
            conv: with its bias.
            relu6: whether ReLU6 follows.
        """
        names = [f"{part}.{len(self.constants)}" for part in ("weight", "bias")]
        for name, values in zip(names, (conv.weight, conv.bias), strict=True):
            assert values is not None
            made = self.onnx.numpy_helper.from_array(values.detach().contiguous().numpy(), name)
            self.constants.append(made)
        y = self.add("Conv", x, *names, auto_pad="SAME_UPPER", group=conv.groups, strides=list(conv.stride))
        return self.add("Clip", y, *_CLIP) if relu6 else y

    def model(self, outputs: Sequence[str]) -> bytes:
        """Returns the graph, from `images` to some of what its operators give.

        Args:
            outputs: their names.
        """
        helper, number = self.onnx.helper, self.onnx.TensorProto.FLOAT
        values = [helper.make_tensor_value_info(name, number, None) for name in outputs]
        images = helper.make_tensor_value_info("images", number, ["n", 3, "height", "width"])
        graph = helper.make_graph(self.nodes, "network", [images], values, self.constants)
        opset = helper.make_opsetid("", _OPSET)
        made: bytes = helper.make_model(graph, ir_version=_IR, opset_imports=[opset]).SerializeToString()
        return made


def run(
    network: nn.Module, x: Tensor, what: str, build: Callable[[Graph], Sequence[str]]
) -> list[Tensor] | None:
    """Returns what onnxruntime gives for images; None where torch should compute.

    Args:
        network: whose weights decide; on the CPU, and not learning.
        x: `(N, 3, H, W)` float32.
        what: names the graph among those of the network.
        build: adds its operators, from `images`; returns the names of its outputs.
    """
    weights = [*network.parameters()]  # walked through once: that costs as much as a convolution
    if (
        x.device.type != "cpu" or x.dtype != torch.float32 or learns(weights, x)
        or torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu")
        or any(p.is_inference() for p in weights)  # which do not count when they are written to
    ):  # fmt: skip
        return None
    import onnx  # here, as half a second of every command
    import onnxruntime as ort

    # a forked process has none of the threads
    key = digest(network, weights), what, torch.get_num_threads(), os.getpid()
    with _lock:
        session = _sessions.get(key)
        if session is None:
            graph = Graph(onnx)
            data = graph.model(build(graph))
            options = onnxruntime_options(ort, torch.get_num_threads())
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            _sessions[key] = session
            while len(_sessions) > _KEPT:
                _sessions.popitem(last=False)
        _sessions.move_to_end(key)
    made = session.run(None, {"images": x.detach().contiguous().numpy()})
    return [torch.from_numpy(part) for part in made]
