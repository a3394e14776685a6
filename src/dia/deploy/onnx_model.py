"""`OnnxModel`: a file of `dia export` on onnxruntime, with the methods that scoring asks of a detector.

Needs no torch, nor anything that does. Knows files of ours; knows no method.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..data.imageset import ImageSet
from ..detectors.calibration import Calibration, Prediction

FORMAT = 1
MAX_SIDE = 8192  # pixels, of the images that a file may ask for
_PIXELS = 2**17  # of one pass, on which scores do not depend


class OnnxModel:
    """A detector that was exported.

    Args:
        path: the .onnx file.
        device: `auto`, `cpu`, or `cuda` (with onnxruntime-gpu).

    Attributes:
        facts_: what the file says of itself: method, settings' hash, version, how images were read, ...
        shape_: (H, W, C) at which images are scored; it takes those of any size.
        outputs: what it gives.

    Raises:
        DataError: no such file, not one of ours, of another format, or no onnxruntime.
    """

    def __init__(self, path: Path | str, *, device: str = "auto"):
        ort = _onnxruntime()
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; it has remarks on every graph
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        try:
            self.session = ort.InferenceSession(str(path), options, providers=_providers(ort, device))
        except Exception as error:  # onnxruntime's own have no common class
            reason = (str(error).splitlines() or [""])[0][:200]
            raise DataError(f"{path}: onnxruntime cannot read it ({reason})") from error
        try:
            metadata = self.session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not made by `dia export`; its metadata is no text") from error
        self.facts_ = facts_of(path, metadata)
        self.outputs = tuple(output.name for output in self.session.get_outputs())
        try:
            self.method = str(self.facts_["method"])
            h, w, c = map(int, self.facts_["shape"])
            self.shape_ = h, w, c
            self.false_alarm_rate = float(self.facts_["false_alarm_rate"])
            self.calibration_ = Calibration(np.array(self.facts_["held_out_normal_scores"], np.float64))
            sound = 0 < min(h, w) <= max(h, w) <= MAX_SIDE and c in (1, 3) and "score" in self.outputs
            sound &= 0 < self.false_alarm_rate < 1 and self.calibration_.scores.ndim == 1
            if not sound or not len(self.calibration_.scores):
                raise ValueError
            if self.score(np.zeros((2, h, w, c), np.uint8)).shape != (2,):
                raise ValueError
        except Exception as error:  # of onnxruntime too, where the graph takes or gives other things
            raise DataError(f"{path}: not as `dia export` makes them; export it anew") from error

    def run(self, images: np.ndarray | ImageSet, outputs: Sequence[str]) -> list[np.ndarray]:
        """Some of `outputs` for `(N, H, W, 1 or 3)` uint8, any H and W."""
        x = images.images if isinstance(images, ImageSet) else images
        if not len(x):
            return [np.empty(0) for _ in outputs]
        step = min(max(_PIXELS // (self.shape_[0] * self.shape_[1]), 1), 32)
        parts = [
            self.session.run(list(outputs), {"images": np.ascontiguousarray(x[i : i + step])})
            for i in range(0, len(x), step)
        ]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def detect(self, images: np.ndarray | ImageSet, *, heatmaps: bool = True) -> Prediction:
        """As `Detector.detect`, of scores and heatmaps.

        Args:
            images: `(N, H, W, 1 or 3)` uint8, any H and W.
            heatmaps: give them where the file has them.
        """
        wanted = [name for name in ("score", "heatmap") if name in self.outputs]
        return Prediction(*self.run(images, wanted if heatmaps else ["score"]))

    def score(self, images: np.ndarray | ImageSet) -> np.ndarray:
        """As `Detector.score`."""
        return self.run(images, ["score"])[0]

    def heatmap(self, images: np.ndarray | ImageSet) -> np.ndarray | None:
        """As `Detector.heatmap`."""
        return self.run(images, ["heatmap"])[0] if "heatmap" in self.outputs else None

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """As `Detector.p_values`."""
        return self.calibration_.p_values(scores)

    def threshold(self, false_alarm_rate: float | None = None) -> float:
        """As `Detector.threshold`."""
        return self.calibration_.threshold(false_alarm_rate or self.false_alarm_rate)


def facts_of(path: Path | str, metadata: dict[str, str]) -> dict[str, Any]:
    """What an exported file says of itself, from its metadata.

    Raises:
        DataError: it is not of ours, or of another format.
    """
    try:
        facts = {
            name.removeprefix("dia."): json.loads(v) for name, v in metadata.items() if name[:4] == "dia."
        }
        version = facts["format"]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: not made by `dia export`; make it anew from the run's folder") from error
    if version != FORMAT:
        raise DataError(f"{path}: format {version} is not known here; there is {FORMAT}; export it anew")
    return facts


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError("an .onnx model needs onnxruntime: pip install 'dia-anomaly[export]'") from error
    return onnxruntime


def _providers(ort: Any, device: str) -> list[str]:
    cuda = "CUDAExecutionProvider"
    there = cuda in ort.get_available_providers()
    if device.startswith("cuda") and not there:
        raise DataError(f"--device {device}: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    return [cuda] * (there and device != "cpu") + ["CPUExecutionProvider"]
