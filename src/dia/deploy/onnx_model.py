"""`OnnxModel`: runs a file of `dia export` in onnxruntime, with the methods of a detector that scoring calls.

Imports neither torch nor a package that imports it. Knows the files of `dia export`; knows no method.
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
_MAX_SIDE = 8192  # pixels: the largest side that a file may have
_PIXELS = 2**17  # in one pass; scores do not depend on it


class OnnxModel:
    """An exported detector.

    Args:
        path: the .onnx file.
        device: `auto`, `cpu`, or `cuda` (with onnxruntime-gpu).

    Attributes:
        facts_: the file's metadata: method, hash of the settings, version, how images were read, and more.
        shape_: (H, W, C) at which images are scored; images of other sizes are resized.
        outputs: the names of the file's outputs.

    Raises:
        DataError: there is no such file, `dia export` did not make it in this format, or onnxruntime is
            missing.
    """

    def __init__(self, path: Path | str, *, device: str = "auto"):
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise DataError("an .onnx model needs onnxruntime: pip install 'dia-anomaly[export]'") from error
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors alone; onnxruntime warns of every graph
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        try:
            self.session = ort.InferenceSession(str(path), options, providers=_providers(ort, device))
        except Exception as error:  # onnxruntime's exceptions have no common class
            reason = (str(error).splitlines() or [""])[0][:200]
            raise DataError(f"{path}: onnxruntime cannot read it ({reason})") from error
        self.facts_ = self._metadata(path)
        self.outputs = tuple(output.name for output in self.session.get_outputs())
        try:
            self.method = str(self.facts_["method"])
            h, w, c = map(int, self.facts_["shape"])
            self.shape_ = h, w, c
            self.false_alarm_rate = float(self.facts_["false_alarm_rate"])
            self.calibration_ = Calibration(np.array(self.facts_["held_out_normal_scores"], np.float64))
            sound = 0 < min(h, w) <= max(h, w) <= _MAX_SIDE and c in (1, 3) and "score" in self.outputs
            sound &= 0 < self.false_alarm_rate < 1 and self.calibration_.scores.ndim == 1
            sound &= len(self.calibration_.scores) > 0
            if not sound or self.score(np.zeros((2, h, w, c), np.uint8)).shape != (2,):
                raise ValueError
        except Exception as error:  # onnxruntime's too, where the graph takes or gives something else
            raise DataError(f"{path}: not as `dia export` makes them; export it anew") from error

    def _metadata(self, path: Path | str) -> dict[str, Any]:
        try:
            kept = self.session.get_modelmeta().custom_metadata_map
            facts = {k.removeprefix("dia."): json.loads(v) for k, v in kept.items() if k.startswith("dia.")}
            version = facts["format"]
        except (ValueError, KeyError) as error:  # UnicodeDecodeError is a ValueError
            raise DataError(
                f"{path}: not made by `dia export`; make it anew from the run's folder"
            ) from error
        if version != FORMAT:
            raise DataError(f"{path}: format {version} is not known here; there is {FORMAT}; export it anew")
        return facts

    def run(
        self, images: np.ndarray | ImageSet, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the graph.

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
        step = min(max(_PIXELS // (self.shape_[0] * self.shape_[1]), 1), 32)
        parts = [
            self.session.run(outputs, {"images": np.ascontiguousarray(x[i : i + step])})
            for i in range(0, len(x), step)
        ]
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
        found = self.run(
            images, [name for name in ("score", "heatmap")[: 1 + heatmaps] if name in self.outputs]
        )
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


def _providers(ort: Any, device: str) -> list[str]:
    cuda = "CUDAExecutionProvider"
    there = cuda in ort.get_available_providers()
    if device.startswith("cuda") and not there:
        raise DataError(f"--device {device}: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    return [cuda] * (there and device != "cpu") + ["CPUExecutionProvider"]
