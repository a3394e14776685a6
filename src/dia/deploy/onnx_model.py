"""`OnnxModel`: runs a file of `dia export` in onnxruntime, with the methods of a detector that scoring calls.

The file may come from a stranger: `onnx_check` looks at it first. Imports neither torch nor a package that
imports it. Knows the files of `dia export`; knows no method.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.modelfiles import check_facts
from ..core.running.threads import chosen, onnxruntime_options
from ..core.settings import fits
from ..data.imageset import ImageSet
from ..data.options import ReadOptions
from ..detectors.calibration import Calibration, HeatScale, Prediction, finite
from . import onnx_check

FORMAT = 1
_LONG = ("held_out_normal_scores", "heatmaps")  # of the facts: lists of numbers
_MAX_SIDE = 8192  # pixels: the largest side that a file may have
_PIXELS = 2**17  # in one pass; scores do not depend on it
_TRIED: set[bytes] = set()  # hashes of files and batches that ran within their limits in this process


class OnnxModel:
    """An exported detector.

    Args:
        path: the .onnx file.
        device: `auto`, `cpu`, or `cuda` (with onnxruntime-gpu).

    Attributes:
        facts_: the file's metadata: method, hash of the settings, version, how images were read, and more.
        shape_: (H, W, C) at which images are scored; images of other sizes are resized.
        heat_: what heatmaps of normals are like, as `Detector.heat_`.
        outputs: the names of the file's outputs.

    Raises:
        DataError: there is no such file, `dia export` did not make it in this format, or onnxruntime is
            missing.
    """

    def __init__(self, path: Path | str, *, device: str = "auto"):
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise DataError("an .onnx model needs onnxruntime: pip install onnxruntime") from error
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        data = path.read_bytes() if path.stat().st_size <= onnx_check.MAX_BYTES else b""
        if not data:
            raise DataError(f"{path}: an .onnx file has 1 byte to 2 GiB; export the model anew")
        threads = chosen()
        try:
            graph = onnx_check.read(data)
            self.facts_, self.outputs = _facts(graph.metadata), graph.outputs
            self._take(self.facts_)
            if "score" not in self.outputs:
                raise DataError("it gives no score")
            onnx_check.check(graph)
            key = hashlib.sha256(data).digest()
            if key not in _TRIED:
                onnx_check.probe(data, self.shape_, sorted({self._step(), 1}), threads)
                _TRIED.add(key)
        except DataError as error:
            raise DataError(f"{path}: {error}; `dia export RUN` writes a file that can be read") from error
        try:
            options = onnxruntime_options(ort, threads)
            self.session = ort.InferenceSession(data, options, providers=_providers(ort, device))
        except DataError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common class
            reason = (str(error).splitlines() or [""])[0][:200]
            raise DataError(f"{path}: onnxruntime cannot read it ({reason})") from error

    def _take(self, facts: Mapping[str, Any]) -> None:
        """Keeps what scoring needs of the facts; all have the types that `dia export` writes, or none is."""
        shape, scores = facts.get("shape"), facts.get("held_out_normal_scores")
        rate, heat = facts.get("false_alarm_rate"), facts.get("heatmaps")  # no heatmaps in older files
        try:
            if not isinstance(shape, list) or not fits(tuple[int, int, int], tuple(shape)):
                raise ValueError("shape")
            self.shape_: tuple[int, int, int] = (shape[0], shape[1], shape[2])
            if not all(0 < side <= _MAX_SIDE for side in shape[:2]) or shape[2] not in (1, 3):
                raise ValueError("shape")
            if not isinstance(rate, float) or not 0 < rate < 1:
                raise ValueError("false_alarm_rate")
            if not isinstance(scores, list) or not scores or {type(s) for s in scores} - {int, float}:
                raise ValueError("held_out_normal_scores")
            if not isinstance(facts.get("method"), str):
                raise ValueError("method")
            self.method, self.false_alarm_rate = facts["method"], rate
            self.calibration_ = Calibration.of(np.array(scores, np.float64))
            self.heat_ = HeatScale.from_json(heat) if heat else None
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise DataError(f"its facts are not as `dia export` writes them ({error})") from error

    def _step(self) -> int:
        """Returns how many images go through the graph in one pass, at most."""
        return min(max(_PIXELS // (self.shape_[0] * self.shape_[1]), 1), 32)

    def run(
        self, images: np.ndarray | ImageSet, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the graph as it is; `detect` gives it images of its own size alone, for which it was tried.

        Args:
            images: `(N, H, W, 1 or 3)` uint8 of any H and W.
            outputs: the names of the outputs wanted; all where None.

        Returns:
            Each output by name, with N in its first axis.
        """
        x = images.images if isinstance(images, ImageSet) else images
        outputs = list(self.outputs if outputs is None else outputs)
        if not len(x):
            return dict.fromkeys(outputs, np.empty(0))
        step = self._step()  # batches of no other size than this and 1, both of which were tried
        whole = len(x) - len(x) % step
        starts = [(i, i + step) for i in range(0, whole, step)] + [(i, i + 1) for i in range(whole, len(x))]
        parts = [self.session.run(outputs, {"images": np.ascontiguousarray(x[i:end])}) for i, end in starts]
        return {
            name: np.concatenate(part) for name, part in zip(outputs, zip(*parts, strict=True), strict=True)
        }

    def detect(self, images: np.ndarray | ImageSet, *, heatmaps: bool = True) -> Prediction:
        """Returns scores, and heatmaps where the file has them, as `Detector.detect` does.

        Args:
            images: `(N, H, W, 1 or 3)` uint8 of any H and W.
            heatmaps: whether to make heatmaps.

        Returns:
            The scores `(N,)` and heatmaps `(N, H', W')` in the model's size, or None.
        """
        h, w, c = self.shape_
        given = images if isinstance(images, ImageSet) else ImageSet(images)
        of_size = ReadOptions(size=(h, w), channels=c).conform(given) if len(given) else given
        names = [name for name in ("score", "heatmap")[: 1 + heatmaps] if name in self.outputs]
        found = self.run(of_size, names)
        finite(found["score"], given.names)
        return Prediction(found["score"], found.get("heatmap"))

    def score(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """Returns `(N,)` scores, as `Detector.score` does."""
        return self.detect(images, heatmaps=False).score

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Returns the p-values of `(N,)` scores, as `Detector.p_values` does."""
        return self.calibration_.p_values(scores)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """Returns the score above which an image is flagged, as `Detector.threshold` does."""
        return self.calibration_.threshold(false_alarm_rate or self.false_alarm_rate)


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a file says of itself.

    Raises:
        DataError: nothing, nothing that can be read, or in another format.
    """
    try:
        facts = {
            k.removeprefix("dia."): json.loads(v, parse_constant=_number, parse_float=_number)
            for k, v in metadata.items()
            if k.startswith("dia.")
        }
        version = facts["format"]
    except (ValueError, KeyError, RecursionError) as error:
        raise DataError("not made by `dia export`, or what it says of itself is damaged") from error
    if type(version) is not int or version != FORMAT:
        raise DataError(f"format {str(version)[:20]} is not known here; there is {FORMAT}")
    shown = {k: v for k, v in facts.items() if k not in _LONG}
    return facts | check_facts(shown)


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _providers(ort: Any, device: str) -> list[str]:
    cuda = "CUDAExecutionProvider"
    there = cuda in ort.get_available_providers()
    if device.startswith("cuda") and not there:
        raise DataError(f"--device {device}: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    return [cuda] * (there and device != "cpu") + ["CPUExecutionProvider"]
