"""Export: a detector's whole scoring as an ONNX or TorchScript file, kept only if it agrees with it.

Knows graphs and files. The check scores generated images of many sizes, and those the user names, with both.

Scores and heatmaps must agree to the tolerance on every image, and a p-value must be that of its score.
Dissolved images are shown in whole grey values: a pixel on the edge of two may be either.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ..core.errors import DataError
from ..data.as_fitted import OPTIONS
from ..data.formats.decode import conform
from ..data.imageset import ImageSet
from ..data.readers import Listing
from ..detectors import Detector
from .graph import Whole, graph_of
from .onnx_model import FORMAT, OnnxModel

SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}
NOTICE = "For research; not a medical device."
TOLERANCE = 1e-4  # absolute up to a score or heatmap of 1, relative above
_BATCH = 64
_EDGE = 0.02  # grey values about the edge of two, within which a pixel may be rounded either way
_OPSET = 18
_NAMES = ("N", "H", "W", "C")

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def export(
    detector: Detector, target: Path, form: str, *, opset: int = 20, images: Listing | None = None
) -> dict[str, Any]:
    """Writes `target` and says how far it is from the detector.

    Args:
        detector: fitted, on the CPU.
        target: the file; it appears complete and checked, or not at all.
        form: `onnx` or `torchscript`.
        opset: of ONNX.
        images: on which to check too.

    Returns:
        The file's size and the greatest differences.

    Raises:
        DataError: a method without a graph, a library that is absent, or a file that differs too much.
    """
    if target.suffix != SUFFIX[form]:
        raise DataError(f"--out {target}: the name must end in {SUFFIX[form]}")
    if form == "onnx" and opset < _OPSET:
        raise DataError(f"--opset must be at least {_OPSET}, not {opset}")
    whole = graph_of(detector)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", suffix=SUFFIX[form], dir=target.parent)
    os.close(handle)
    new = Path(name)
    start = time.perf_counter()
    try:
        with _quiet():
            if form == "onnx":
                write_onnx(whole, facts_of(detector), new, opset)
            else:
                write_torchscript(whole, facts_of(detector), new)
            run = runner(new, whole)
        seconds = time.perf_counter() - start
        comparison = Comparison(detector, run)
        for batch in _checks(detector, images):
            comparison.add(batch)
        if comparison.beyond:
            raise DataError(f"{target}: not written; it differs from the model in {comparison.beyond}")
        new.chmod(0o644)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
    return {
        "out": str(target), "format": form, "method": detector.method, "outputs": list(whole.outputs),
        "megabytes": round(target.stat().st_size / 2**20, 2), "seconds": round(seconds, 1),
        **comparison.facts,
    }  # fmt: skip


def facts_of(detector: Detector) -> dict[str, Any]:
    """What the file says of itself; nothing of where it was made, or from what images."""
    threshold = detector.threshold()
    read = getattr(detector, "facts_", {}).get("read") or {}
    return {
        "format": FORMAT,
        "version": metadata.version("dia-anomaly"),
        "method": detector.method,
        "settings_hash": detector.settings_hash(),
        "shape": list(detector.shape_),
        "false_alarm_rate": detector.false_alarm_rate,
        "threshold": threshold if np.isfinite(threshold) else None,
        "held_out_normals": detector.n_calibration_,
        "held_out_normal_scores": detector.calibration_.scores.tolist(),
        "read": {option: read[option] for option in OPTIONS if read.get(option)},
        "notice": NOTICE,
    }


def write_onnx(whole: Whole, facts: dict[str, Any], path: Path, opset: int) -> None:
    """One file of standard operators, without data beside it."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter asks for it late
    except ImportError as error:
        raise DataError("--format onnx needs onnx: pip install 'dia-anomaly[export]'") from error
    shapes = ({i: torch.export.Dim.DYNAMIC for i in range(4)},)
    program = torch.export.export(whole, (_example(),), dynamic_shapes=shapes, strict=False)
    made: Any = torch.onnx.export(
        program, (), dynamo=True, opset_version=opset, input_names=["images"],
        output_names=list(whole.outputs), external_data=False, verbose=False,
    )  # fmt: skip
    model = made.model_proto
    written = next(o.version for o in model.opset_import if o.domain == "")
    if written != opset:
        raise DataError(f"--opset {opset}: not known to the installed exporter, which writes {written}")
    graph = model.graph
    names = dict(zip([d.dim_param for d in graph.input[0].type.tensor_type.shape.dim], _NAMES, strict=True))
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = names.get(dim.dim_param, "")
    del graph.value_info[:]
    model.ClearField("doc_string")
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]  # torch notes the source files there, with their folders
        item.ClearField("doc_string")
    model.producer_name, model.producer_version = "dia-anomaly", str(facts["version"])
    onnx.helper.set_model_props(model, {f"dia.{k}": json.dumps(v) for k, v in facts.items()})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_torchscript(whole: Whole, facts: dict[str, Any], path: Path) -> None:
    """One archive, loaded by `torch.jit.load` or libtorch."""
    traced = torch.jit.trace(whole, _example(), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"dia.json": json.dumps(facts)})
    with zipfile.ZipFile(buffer) as made, zipfile.ZipFile(path, "w") as kept:
        for item in made.infolist():
            if not item.filename.endswith(".debug_pkl"):  # the source files there, with their folders
                kept.writestr(item, made.read(item))


def runner(path: Path, whole: Whole) -> Run:
    """What calls the file written."""
    if path.suffix == ".onnx":
        model = OnnxModel(path, device="cpu")
        return lambda x: dict(zip(whole.outputs, model.run(x, whole.outputs), strict=True))
    script = torch.jit.load(path)

    @torch.inference_mode()
    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        made = script(torch.from_numpy(np.ascontiguousarray(x)))
        return dict(zip(whole.outputs, (output.numpy() for output in made), strict=True))

    return run


class Comparison:
    """Greatest differences between a file and its detector, over batches of images of any size.

    Attributes:
        facts: numbers of images and of those whose score is beyond the tolerance; greatest absolute and
            relative differences of score, p-value and heatmap.
        beyond: what differs by more than is allowed; empty where nothing does.
    """

    def __init__(self, detector: Detector, run: Run):
        self.detector, self.run = detector, run
        self.facts: dict[str, Any] = {"images": 0, "scores beyond tolerance": 0}
        self.beyond = ""

    def add(self, batch: np.ndarray) -> None:
        """Compares `(N, H, W, 1 or 3)` uint8, at most 256 of them."""
        got = self.run(batch)
        h, w, c = self.detector.shape_
        x = conform(ImageSet(batch), (h, w), None, c).images
        known = self.detector.detect(x, heatmaps="heatmap" in got)
        want = {"score": known.score} | ({"heatmap": known.heatmap} if known.heatmap is not None else {})
        self.facts["images"] += len(x)
        self.facts["scores beyond tolerance"] += int((~_near(got["score"], want["score"])).sum())
        for name, values in want.items():
            self._keep(name, np.abs(got[name] - values))
            self._keep(f"{name}, relative", np.abs(got[name] - values) / np.maximum(np.abs(values), 1))
            if not _near(got[name], values).all():
                self._complain(f"{name} by {np.abs(got[name] - values).max():.2g}")
        self._keep("p_value", np.abs(got["p_value"] - self.detector.p_values(want["score"])))
        if not np.allclose(got["p_value"], self.detector.p_values(got["score"]), rtol=0, atol=1e-9):
            self._complain("the p-value of its score")
        if "dissolved" in got:
            d: Any = self.detector
            exact = d.dissolver_.dissolve(x, d.s.residual_ts, rounded=False).swapaxes(0, 1)
            if (off := np.abs(exact - got["dissolved"]).max()) > 0.5 + _EDGE:
                self._complain(f"dissolved images by {off - 0.5:.2g} grey values")

    def _keep(self, name: str, values: np.ndarray) -> None:
        self.facts[name] = max(self.facts.get(name, 0.0), float(values.max()))

    def _complain(self, what: str) -> None:
        self.beyond = self.beyond or what


def _near(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    near: np.ndarray = np.abs(got - want) <= TOLERANCE * np.maximum(np.abs(want), 1)
    return near


def _generated(detector: Detector) -> Iterator[np.ndarray]:
    """Noise and soft shapes, in the model's size and others, one and several, grey and colour."""
    h, w, c = detector.shape_
    random = np.random.default_rng(0)
    wide, small = (2, 2 * w + 1, 3 * h, c), (2, h // 2 + 1, w // 3 + 1, 3)
    for n, height, width, channels in ((8, h, w, c), (1, h, w, c), (3, h + 13, w, 4 - c), wide, small):
        x = random.normal(size=(n, height, width, channels))
        soft = ndimage.gaussian_filter(x, (0, 3, 3, 0))
        yield np.rint(127.5 + 50 * x).clip(0, 255).astype(np.uint8)
        yield np.rint(127.5 + 60 * soft / soft.std()).clip(0, 255).astype(np.uint8)


def _checks(detector: Detector, images: Listing | None) -> Iterator[np.ndarray]:
    yield from _generated(detector)
    if images is not None:
        for batch in images.stream(_BATCH):
            if len(batch):
                yield batch.images


def _example() -> torch.Tensor:
    """Sides and channels of their own, none of them 1: what is equal, or 1, may be taken for a constant."""
    return torch.randint(0, 256, (2, 37, 45, 3), dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on tracing and on its exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
