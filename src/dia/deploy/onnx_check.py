"""What an .onnx file may hold before onnxruntime is given it: files of `dia export`, and those like them.

A graph from a stranger can take all memory in a few bytes, or never end. So it is read here first, field by
field: operators of our exports alone, none of which holds another graph; no code, no other file; no NaN. And
the shape of every tensor in it hangs on the images' shape alone, never on their pixels. Then a process of its
own, with limits of memory and time, runs it once: what it takes there, it takes for any images of that shape.

Reads protobuf's wire format itself, as scoring does without the package `onnx`. Knows graphs and limits;
knows no model, no file and no image. Run as a program it is that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import DataError, first_line
from ..core.running.threads import onnxruntime_options

MAX_BYTES = 2**31 - 1  # of a file, which is protobuf's limit
MAX_FIELDS = 2_000_000  # in a file: some 20,000 operators
OPSETS = range(18, 27)
_NAMES = (
    "Abs Add And Attention AveragePool Cast Clip Concat ConstantOfShape Conv Cos CumSum DepthToSpace Div "
    "Equal Erf Expand EyeLike Floor Gather GatherND Gelu Gemm Greater GreaterOrEqual GridSample "
    "InstanceNormalization IsInf IsNaN LayerNormalization Less Log MatMul Max MaxPool Min Mod Mul Neg Not "
    "Or Pad Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize "
    "Round ScatterElements Shape Sigmoid Sign Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile TopK "
    "Transpose Unsqueeze Where"
)
OPERATORS = frozenset(_NAMES.split())  # of the exports of every method, at every version of ONNX's operators
# inputs whose values, and not only shapes, decide the shape of what the operator gives
_SHAPING = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,),
    "Unsqueeze": (1,), **{f"Reduce{kind}": (1,) for kind in ("L2", "Max", "Mean", "Min", "Sum")},
}  # fmt: skip
_OF_SHAPE = ("Shape", "EyeLike")  # what they give hangs on the shape of their input alone
_FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 11: np.dtype("<f8")}  # by ONNX's number of a type
_WHOLE = (2, 6, 7, 9)  # uint8, int32, int64, bool


@dataclass(frozen=True)
class Graph:
    """What was read of a file.

    Args:
        metadata: texts by name.
        outputs: the names of what it gives.
        model: all fields, by name.
    """

    metadata: Mapping[str, str]
    outputs: tuple[str, ...]
    model: Mapping[str, Any]


# --- protobuf -----------------------------------------------------------------------------------------------
# Each message: by the number of a field its name, what it holds (`int`, `float`, `bytes` or another message),
# and whether it may occur several times. Fields that are not here stand in no file of ours.

_Form = dict[int, tuple[str, Any, bool]]
_PAIR: _Form = {1: ("key", bytes, False), 2: ("value", bytes, False)}
_TENSOR: _Form = {
    1: ("dims", int, True), 2: ("data_type", int, False), 4: ("float_data", bytes, True),
    5: ("int32_data", bytes, True), 7: ("int64_data", bytes, True), 8: ("name", bytes, False),
    9: ("raw_data", bytes, False), 10: ("double_data", bytes, True), 12: ("doc_string", bytes, False),
    13: ("external_data", _PAIR, True), 14: ("data_location", int, False),
}  # fmt: skip
_ATTRIBUTE: _Form = {
    1: ("name", bytes, False), 2: ("f", float, False), 3: ("i", int, False), 4: ("s", bytes, False),
    5: ("t", _TENSOR, False), 7: ("floats", float, True), 8: ("ints", int, True),
    13: ("doc_string", bytes, False), 20: ("type", int, False),
}  # fmt: skip
_NODE: _Form = {
    1: ("input", bytes, True), 2: ("output", bytes, True), 3: ("name", bytes, False),
    4: ("op_type", bytes, False), 5: ("attribute", _ATTRIBUTE, True), 6: ("doc_string", bytes, False),
    7: ("domain", bytes, False),
}  # fmt: skip
_VALUE: _Form = {1: ("name", bytes, False), 2: ("type", bytes, False), 3: ("doc_string", bytes, False)}
_GRAPH: _Form = {
    1: ("node", _NODE, True), 2: ("name", bytes, False), 5: ("initializer", _TENSOR, True),
    10: ("doc_string", bytes, False), 11: ("input", _VALUE, True), 12: ("output", _VALUE, True),
}  # fmt: skip
_OPSET: _Form = {1: ("domain", bytes, False), 2: ("version", int, False)}
_MODEL: _Form = {
    1: ("ir_version", int, False), 2: ("producer_name", bytes, False), 3: ("producer_version", bytes, False),
    4: ("domain", bytes, False), 5: ("model_version", int, False), 6: ("doc_string", bytes, False),
    7: ("graph", _GRAPH, False), 8: ("opset_import", _OPSET, True), 14: ("metadata_props", _PAIR, True),
}  # fmt: skip
_WIRES = {int: (0, 2), float: (5, 2), bytes: (2,)}
_STRANGE = {  # for people: by message and number, what others' files hold
    (id(_ATTRIBUTE), 6): "a graph within an operator", (id(_ATTRIBUTE), 11): "graphs within an operator",
    (id(_MODEL), 20): "a graph of training", (id(_MODEL), 25): "functions of its own",
    (id(_GRAPH), 15): "sparse weights", (id(_GRAPH), 13): "shapes of values within",
}  # fmt: skip


class _Reader:
    """Reads messages, counting their fields."""

    def __init__(self) -> None:
        self.count = 0

    def message(self, data: memoryview, form: _Form) -> dict[str, Any]:
        found: dict[str, Any] = {name: [] for name, _, many in form.values() if many}
        at = 0
        while at < len(data):
            self.count += 1
            if self.count > MAX_FIELDS:
                raise DataError(f"it has more than {MAX_FIELDS} fields")
            key, at = _varint(data, at)
            number, wire = key >> 3, key & 7
            if number not in form:
                raise DataError(f"it holds {_STRANGE.get((id(form), number), 'fields that are not known')}")
            name, kind, many = form[number]
            if wire not in _WIRES.get(kind if isinstance(kind, type) else bytes, ()):
                raise DataError("it is damaged")
            value: Any
            if wire == 0:
                value, at = _varint(data, at)
                value -= 2**64 * (value >= 2**63)
            else:
                size, at = (4, at) if wire == 5 else _varint(data, at)
                value, at = data[at : at + size], at + size
                if at > len(data):
                    raise DataError("it is cut short")
                value = self.message(value, kind) if isinstance(kind, dict) else value
            if many:
                found[name] += _unpacked(value) if kind is int and wire == 2 else [value]
            elif name in found or (kind is not int and wire == 0) or (kind is int and wire != 0):
                raise DataError("it is damaged")
            else:
                found[name] = value
        return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value & (2**64 - 1), at + i + 1
    raise DataError("it is cut short")


def _unpacked(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value - 2**64 * (value >= 2**63))
    return values


def _text(data: Any) -> str:
    try:
        return str(data, "utf-8") if data is not None else ""
    except UnicodeDecodeError as error:
        raise DataError("it holds text that is none") from error


def read(data: bytes) -> Graph:
    """Reads a file, and nothing but its fields.

    Args:
        data: its bytes.

    Raises:
        DataError: it is no ONNX file, cut short, or holds what no file of `dia export` does; why, without
            the file's name.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"it is larger than {MAX_BYTES / 2**30:.0f} GiB")
    model = _Reader().message(memoryview(data), _MODEL)
    if "graph" not in model:
        raise DataError("it is no ONNX file")
    metadata = {_text(p.get("key")): _text(p.get("value")) for p in model["metadata_props"]}
    return Graph(metadata, tuple(_text(v.get("name")) for v in model["graph"]["output"]), model)


# --- the graph ----------------------------------------------------------------------------------------------


def check(graph: Graph) -> None:
    """Refuses a graph that can do what no export does, whatever the images are.

    Args:
        graph: what `read` gave.

    Raises:
        DataError: why, without the file's name.
    """
    model, inner = graph.model, graph.model["graph"]
    for opset in model["opset_import"]:
        domain, version = _text(opset.get("domain")), opset.get("version", 0)
        if domain not in ("", "ai.onnx") or version not in OPSETS:
            there = f"there are ONNX's versions {OPSETS[0]} to {OPSETS[-1]}"
            raise DataError(f"it wants operators of {domain or 'ONNX'} version {version}; {there}")
    for tensor in inner["initializer"]:
        _check_tensor(tensor)
    inputs = [_text(value.get("name")) for value in inner["input"]]
    if inputs != ["images"]:
        raise DataError(f"its inputs are {', '.join(inputs)[:100] or 'none'}, and must be `images` alone")
    fixed = {"", *(_text(t.get("name")) for t in inner["initializer"])}  # whose values no pixel decides
    known = fixed | {"images"}
    for node in inner["node"]:
        kind, of = _text(node.get("op_type")), [_text(name) for name in node["input"]]
        gives = [_text(name) for name in node["output"] if len(name)]
        if kind not in OPERATORS or _text(node.get("domain")) not in ("", "ai.onnx"):
            raise DataError(f"it holds the operator {_text(node.get('domain'))} {kind}".replace("  ", " "))
        for attribute in node["attribute"]:
            if "t" in attribute:
                _check_tensor(attribute["t"])
            numbers = [*([attribute["f"]] if "f" in attribute else []), *attribute["floats"]]
            if not np.isfinite(np.frombuffer(b"".join(numbers), "<f4")).all():
                raise DataError(f"a number of its {kind} is not finite")
        if not known.issuperset(of) or known.intersection(gives):
            raise DataError("its operators are in no order in which they could run")
        if shaping := [of[i] for i in _SHAPING.get(kind, ()) if i < len(of) and of[i] not in fixed]:
            raise DataError(f"pixels decide the size of what its {kind} makes ({shaping[0][:50]})")
        if kind in _OF_SHAPE or fixed.issuperset(of):
            fixed.update(gives)
        known.update(gives)


def _check_tensor(tensor: Mapping[str, Any]) -> None:
    """Refuses weights that lie in another file or are not finite.

    Masks hold infinities beside zeros, and a number alone may be anything, as exports compare with such.
    """
    if tensor["external_data"] or tensor.get("data_location", 0):
        places = [_text(p.get("value")) for p in tensor["external_data"] if _text(p.get("key")) == "location"]
        raise DataError(
            f"its weights lie in another file ({', '.join(places)[:100] or 'not named'}), which is not read: "
            "make one file of both with onnx.save(onnx.load(FILE), NEW)"
        )
    kind = tensor.get("data_type", 0)
    if kind in _FLOATS:
        parts = [*tensor["float_data"], *tensor["double_data"]]
        data = b"".join([*parts, *([tensor["raw_data"]] if "raw_data" in tensor else [])])
        if len(data) % _FLOATS[kind].itemsize:
            raise DataError("it is damaged")
        x = np.frombuffer(data, _FLOATS[kind])
        finite = np.isfinite(x)
        if len(x) > 1 and not finite.all() and (np.isnan(x).any() or (x[finite] != 0).any()):
            raise DataError(f"its weights hold NaN or infinity ({_text(tensor.get('name'))[:50]})")
    elif kind not in _WHOLE:
        raise DataError(f"its weights are numbers of a type that no export has ({kind})")


# --- the process --------------------------------------------------------------------------------------------


def probe(data: bytes, shape: tuple[int, int, int], batches: Sequence[int], threads: int) -> None:
    """Runs a graph once for each size of batch, in a process with limits of memory and time.

    Where the system has no such limits (Windows, and that of memory on macOS), the process has none but a
    time after which it is ended.

    Args:
        data: bytes of a file that `check` let pass.
        shape: (H, W, C) of the images.
        batches: numbers of images.
        threads: of onnxruntime.

    Raises:
        DataError: it takes more than such a graph may, fails, or gives no finite scores; why, without the
            file's name.
    """
    pixels = max(batches) * shape[0] * shape[1]
    memory = 2**30 + 4 * len(data) + min(2**10 * pixels, 2**34)
    seconds = int(20 + min(1e-5 * pixels, 100))
    asked = {"shape": shape, "batches": batches, "threads": threads, "memory": memory, "seconds": seconds}
    command = [sys.executable, "-P", "-m", __name__, json.dumps(asked)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(command, input=data, capture_output=True, env=env, timeout=30 * seconds)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"it takes longer than {30 * seconds} s") from error
    except OSError as error:
        raise DataError(f"it cannot be tried out: no process can be started ({first_line(error)})") from error
    if done.returncode or done.stdout.strip() != b"ok":
        said = done.stdout.decode(errors="replace").strip()[:120] or f"exit status {done.returncode}"
        raise DataError(
            f"scoring {max(batches)} images of {shape[0]}×{shape[1]} takes more than {memory >> 20} MiB or "
            f"{seconds} s, or fails ({said})"
        )


def _main() -> None:
    """Reads the graph from standard input, runs it, and prints `ok` or a line of what went wrong."""
    asked = json.loads(sys.argv[1])
    import onnxruntime as ort

    data = sys.stdin.buffer.read()
    with contextlib.suppress(ImportError):  # of POSIX
        import resource

        used = 0
        with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:  # of Linux
            used = int(next(line for line in status if line.startswith("VmData")).split()[1]) << 10
        for what, most in (
            (resource.RLIMIT_DATA, used + asked["memory"]),
            (resource.RLIMIT_CPU, asked["seconds"] * max(asked["threads"], 1)),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(ValueError, OSError):  # lower already
                resource.setrlimit(what, (most, most))
    try:
        options = onnxruntime_options(ort, asked["threads"])
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for n in asked["batches"]:
            images = np.resize(np.arange(256, dtype=np.uint8), (n, *asked["shape"]))
            outputs = session.run(None, {"images": images})
            score = outputs[[output.name for output in session.get_outputs()].index("score")]
            if score.shape != (n,) or score.dtype.kind != "f" or not np.isfinite(score).all():
                print("it gives no finite score for each image")
                return
    except Exception as error:  # onnxruntime's exceptions have no common class
        print(first_line(error))
    else:
        print("ok")


if __name__ == "__main__":
    _main()
