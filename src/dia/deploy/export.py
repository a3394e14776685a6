"""Export: writes a detector's scoring as one ONNX file, and keeps it only if it agrees with the detector.

Both score generated images of several sizes, and images that the user names. Scores and heatmaps must agree
to the tolerance on every image, and a p-value must be that of its score. Dissolved images are rounded to
whole grey values, so a pixel near the middle between two values may become either. Knows graphs and files;
knows no method.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from ..core.errors import DataError
from ..core.running.progress import Bar
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..data.readers import Listing
from ..detectors import Detector
from . import onnx_check
from .graph import ScoringGraph, scoring_graph
from .onnx_model import FORMAT, OnnxModel

_NOTICE = "For research; not a medical device."
TOLERANCE = 1e-4  # absolute up to a score or heatmap of 1, relative above
_BATCH = 64
_EDGE = 0.02  # grey values: a pixel that lies as near to the middle between two values may become either
_OLDEST_OPSET = 18
_AXES = ("N", "H", "W", "C")
_LARGEST = (
    onnx_check.MAX_BYTES - 2**26
)  # bytes of the weights of a file, beside which its operators have room


def export(
    detector: Detector, target: Path, *, opset: int = 20, images: Listing | None = None
) -> dict[str, Any]:
    """Writes the detector's scoring as an ONNX file and compares the file with the detector.

    Args:
        detector: a fitted detector, on the CPU.
        target: the file to write, NAME.onnx; it appears complete and checked, or not at all.
        opset: version of the ONNX operators, from 18.
        images: images to compare on, in addition to generated ones.

    Returns:
        The file's size, the seconds taken and the greatest differences.

    Raises:
        DataError: the method cannot be exported, a library is missing, or the file differs too much.
    """
    if target.suffix != ".onnx":
        raise DataError(f"--out {target}: the name must end in .onnx")
    if opset < _OLDEST_OPSET:
        raise DataError(f"--opset must be at least {_OLDEST_OPSET}, not {opset}")
    graph = scoring_graph(detector)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        new = Path(folder, target.name)
        start = time.perf_counter()
        with Bar("Writing the graph"), _quiet():
            write_onnx(graph, _facts(detector), new, opset)
        seconds = time.perf_counter() - start
        try:
            onnx_check.check(onnx_check.read(new.read_bytes()))
        except DataError as error:  # of a method from outside the package
            reason = f"{error}, which scoring with an .onnx file refuses"
            raise DataError(
                f"{target}: not written; {detector.method} cannot be exported: {reason}"
            ) from error
        comparison = Comparison(detector, OnnxModel(new, device="cpu").run)
        with Bar("Comparing the file with the model", unit="image") as bar:
            for batch in _generated(detector):
                comparison.add(batch)
                bar.update(comparison.facts["images"])
            for part in images.stream(_BATCH) if images is not None else ():
                if len(part):
                    comparison.add(part.images)
                    bar.update(comparison.facts["images"])
        if comparison.beyond:
            raise DataError(f"{target}: not written; it differs from the model in {comparison.beyond}")
        new.replace(target)
    return {
        "out": str(target), "format": "onnx", "method": detector.method, "outputs": list(graph.outputs),
        "megabytes": round(target.stat().st_size / 2**20, 2), "seconds": round(seconds, 1),
        **comparison.facts,
    }  # fmt: skip


def _facts(detector: Detector) -> dict[str, Any]:
    """The file's metadata, which says neither where the file was made nor from which images."""
    threshold = detector.threshold()
    read = ReadOptions().as_fitted(getattr(detector, "facts_", {})).kept()
    return {
        "format": FORMAT, "version": metadata.version("dia-anomaly"), "notice": _NOTICE,
        "method": detector.method, "settings_hash": detector.settings_hash(),
        "shape": list(detector.shape_), "false_alarm_rate": detector.false_alarm_rate,
        "threshold": threshold if np.isfinite(threshold) else None,
        "held_out_normals": detector.n_calibration_,
        "held_out_normal_scores": detector.calibration_.scores.tolist(),
        "heatmaps": None if detector.heat_ is None else detector.heat_.to_json(),
        "read": {name: value for name, value in read.items() if value is not None},
    }  # fmt: skip


def write_onnx(graph: ScoringGraph, facts: dict[str, Any], path: Path, opset: int) -> None:
    """Writes one ONNX file of standard operators, with all weights inside.

    Args:
        graph: what to write.
        facts: the file's metadata; `version` is needed, and each value is stored as JSON.
        path: the file to write.
        opset: version of the ONNX operators.

    Raises:
        DataError: onnxscript is not installed, the weights are more than one file holds, or torch's exporter
            does not know the opset.
    """
    import onnx

    try:
        import onnxscript  # noqa: F401  # torch's exporter imports it only when it is needed
    except ImportError as error:
        raise DataError("exporting needs onnxscript: pip install 'dia-anomaly[export]'") from error
    weights = sum(x.nbytes for x in graph.state_dict().values())
    if weights > _LARGEST:
        most = f"{weights / 2**30:.1f} GiB of weights and normals; one ONNX file holds {_LARGEST / 2**30:.1f}"
        raise DataError(f"{path.name}: {most}: fit with smaller banks (--settings.bank_size)")
    # no side or channel of the example is 1 or equals another, as either may be taken for a constant
    example = torch.randint(0, 256, (2, 37, 45, 3), dtype=torch.uint8)
    shapes = ({i: torch.export.Dim.DYNAMIC for i in range(4)},)
    program = torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    made: Any = torch.onnx.export(
        program, (), dynamo=True, opset_version=opset, input_names=["images"],
        output_names=list(graph.outputs), external_data=False, verbose=False,
    )  # fmt: skip
    model = made.model_proto
    written = next(o.version for o in model.opset_import if o.domain == "")
    if written != opset:
        raise DataError(f"--opset {opset}: not known to the installed exporter, which writes {written}")
    onnx_graph = model.graph
    dims = [dim.dim_param for dim in onnx_graph.input[0].type.tensor_type.shape.dim]
    names = dict(zip(dims, _AXES, strict=True))
    for value in (*onnx_graph.input, *onnx_graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = names.get(dim.dim_param, "")
    del onnx_graph.value_info[:]
    model.ClearField("doc_string")
    parts = (*onnx_graph.node, *onnx_graph.input, *onnx_graph.output, *onnx_graph.initializer)
    for item in (model, onnx_graph, *parts):
        del item.metadata_props[:]  # torch notes the source files there, with their folders
        item.ClearField("doc_string")
    model.producer_name, model.producer_version = "dia-anomaly", str(facts["version"])
    onnx.helper.set_model_props(model, {f"dia.{k}": json.dumps(v) for k, v in facts.items()})
    onnx.checker.check_model(model)
    onnx.save(model, path)


class Comparison:
    """The greatest differences between an exported file and its detector.

    Args:
        detector: the fitted detector.
        run: gives the file's outputs by name for `(N, H, W, 1 or 3)` uint8 images.

    Attributes:
        facts: the number of images, the number of scores beyond the tolerance, and the greatest absolute and
            relative differences of score, p-value and heatmap.
        beyond: the first output that differs by more than is allowed; empty if none does.
    """

    def __init__(self, detector: Detector, run: Callable[[np.ndarray], dict[str, np.ndarray]]):
        self.detector, self.run = detector, run
        self.facts: dict[str, Any] = {"images": 0, "scores beyond tolerance": 0}
        self.beyond = ""

    def add(self, batch: np.ndarray) -> None:
        """Compares at most 256 images, `(N, H, W, 1 or 3)` uint8 of any size."""
        got = self.run(batch)
        h, w, c = self.detector.shape_
        x = ReadOptions(size=(h, w), channels=c).conform(ImageSet(batch)).images
        known = self.detector.detect(x, heatmaps="heatmap" in got)
        self.facts["images"] += len(x)
        self.facts["scores beyond tolerance"] += int((~_near(got["score"], known.score)).sum())
        for name, want in (("score", known.score), ("heatmap", known.heatmap)):
            if want is not None:
                self._keep(name, off := np.abs(got[name] - want))
                self._keep(f"{name}, relative", off / np.maximum(np.abs(want), 1))
                self._require(_near(got[name], want).all(), f"{name} by {off.max():.2g}")
        if not np.isfinite(got["score"]).all():  # which has no p-value
            return
        self._keep("p_value", np.abs(got["p_value"] - self.detector.p_values(known.score)))
        of_score = self.detector.p_values(got["score"])
        self._require(np.allclose(got["p_value"], of_score, rtol=0, atol=1e-9), "the p-value of its score")
        if "dissolved" in got:
            d: Any = self.detector
            exact = d.dissolver_.dissolve(x, d.s.ts, rounded=False).swapaxes(0, 1)
            off = np.abs(exact - got["dissolved"]).max() - 0.5
            self._require(off <= _EDGE, f"dissolved images by {off:.2g} grey values")

    def _keep(self, name: str, values: np.ndarray) -> None:
        self.facts[name] = max(self.facts.get(name, 0.0), float(values.max()))

    def _require(self, holds: bool | np.bool_, what: str) -> None:
        if not holds:
            self.beyond = self.beyond or what


def _near(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    near: np.ndarray = np.abs(got - want) <= TOLERANCE * np.maximum(np.abs(want), 1)
    return near


def _generated(detector: Detector) -> Iterator[np.ndarray]:
    """Yields noise and soft shapes, in the model's size and in others, in grey and in colour."""
    h, w, c = detector.shape_
    random = np.random.default_rng(0)
    wide, small = (2, 2 * w + 1, 3 * h, c), (2, h // 2 + 1, w // 3 + 1, 3)
    for n, height, width, channels in ((8, h, w, c), (1, h, w, c), (3, h + 13, w, 4 - c), wide, small):
        x = random.normal(size=(n, height, width, channels))
        soft = ndimage.gaussian_filter(x, (0, 3, 3, 0))
        yield np.rint(127.5 + 50 * x).clip(0, 255).astype(np.uint8)
        yield np.rint(127.5 + 60 * soft / soft.std()).clip(0, 255).astype(np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of torch's exporter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
