"""DIA inside anomalib: any of our detectors as a model for its `Engine` and command line. Knows detectors.

    from anomalib.data import Folder
    from anomalib.engine import Engine
    from dia.deploy.anomalib_model import DiaLightning

    engine = Engine()
    engine.fit(DiaLightning("dia+"), datamodule=Folder(...))

or in YAML, `model: {class_path: dia.deploy.anomalib_model.DiaLightning, init_args: {method: csi, seed: 1}}`.

As with anomalib's memory banks, one epoch gathers the normals and its end fits on them: the hold-out,
training and calibration are those of `Detector.fit`. The network's `pred_score` is the raw score in 32 bits,
its `anomaly_map` the heatmap; anomalib's post-processor then normalises and thresholds them by the validation
images, unless it is given as False. The fitted model folder, zipped, is a buffer: so it is in checkpoints and
in exported files, where our own format, without pickles, stays what is loaded. `ExportType.TORCH` works; ONNX
and OpenVINO cannot, because a detector is more than one network: it looks up banks, dissolves and calibrates
in NumPy too.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ..core.settings import replaced
from ..detectors import Detector
from ..detectors.presets import MAX_SIZE
from ..detectors.presets import settings as preset_settings
from ..detectors.registry import DEFAULT, detector_class

try:
    from anomalib import LearningType
    from anomalib.data import InferenceBatch
    from anomalib.models.components import AnomalibModule, DynamicBufferMixin, MemoryBankMixin
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Resize
except ImportError as error:
    raise ImportError("dia.deploy.anomalib_model needs anomalib: pip install 'dia-anomaly[peers]'") from error


class DiaModel(DynamicBufferMixin):
    """A fitted detector as a network; `folder` is its saved form, zipped, uint8 `(bytes,)`."""

    folder: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("folder", torch.empty(0, dtype=torch.uint8))
        self._live: Detector | None = None

    def keep(self, detector: Detector) -> None:
        """Takes a fitted detector in."""
        stream = io.BytesIO()
        with tempfile.TemporaryDirectory() as temporary:
            saved = detector.save(Path(temporary, "model"))
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
                for path in sorted(p for p in saved.rglob("*") if p.is_file()):
                    file.write(path, path.relative_to(saved))
        self.folder = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8).to(self.folder.device)
        self._live = detector

    @property
    def detector(self) -> Detector:
        """The fitted detector.

        Raises:
            ValueError: nothing was fitted or loaded.
        """
        if self._live is None:
            if not len(self.folder):
                raise ValueError("the model is not fitted; run Engine.fit, or give a checkpoint")
            with tempfile.TemporaryDirectory() as temporary:
                with zipfile.ZipFile(io.BytesIO(self.folder.cpu().numpy().tobytes())) as file:
                    file.extractall(temporary)
                self._live = Detector.load(temporary, device=str(self.folder.device))
        return self._live

    def forward(self, images: Tensor) -> InferenceBatch:
        """`(N, 3, H, W)` in [0, 1] to raw scores `(N,)` and maps `(N, 1, H, W)`, both float32."""
        detector = self.detector
        x = pixels(images, grey=detector.shape_[2] == 1)
        with torch.inference_mode(False), torch.no_grad():
            scores, maps, _ = detector.detect(x)
        return InferenceBatch(
            pred_score=torch.from_numpy(scores).float().to(images.device),
            anomaly_map=None if maps is None else torch.from_numpy(maps)[:, None].to(images.device),
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._live = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_live": None}  # which `folder` holds


class DiaLightning(MemoryBankMixin, AnomalibModule):
    """One of our detectors as anomalib's model.

    Args:
        method: its name, as `dia methods` lists them.
        preset: `cpu`, `gpu` or `paper`.
        seed: of the hold-out, the first weights and every draw.
        settings: values by dotted name that differ from the preset's, as {"amplify.steps": 90}.
        image_size: side of the squares that images are resized to; default: the preset's greatest. A
            pre-processor of one's own takes its place; it must not normalise.
        pre_processor: anomalib's, or True for ours.
        post_processor: anomalib's; True for its default, False for raw scores.
        evaluator: anomalib's; True for its default.
        visualizer: anomalib's; True for its default.

    Raises:
        DataError: no such method, preset or setting.
    """

    def __init__(
        self,
        method: str = DEFAULT,
        preset: str = "cpu",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        image_size: int | None = None,
        pre_processor: Any = True,
        post_processor: Any = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ):
        if pre_processor is True:
            side = image_size or MAX_SIZE.get(preset, 64)
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        cls = detector_class(method)
        self.fresh = cls(replaced(preset_settings(cls.Settings, preset), settings or {}), seed=seed)
        self.model: DiaModel = DiaModel()
        self.gathered: list[tuple[str, np.ndarray]] = []

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Resizes, antialiased, and does nothing else."""
        side = MAX_SIZE["cpu"]
        return PreProcessor(Compose([Resize(image_size or (side, side), antialias=True)]))

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Gathers the normal images of a batch."""
        x = pixels(batch.image)
        paths = batch.image_path or [""] * len(x)
        labels = [0] * len(x) if batch.gt_label is None else batch.gt_label.tolist()
        self.gathered += [(str(p), image) for p, image, y in zip(paths, x, labels, strict=True) if not y]
        return torch.zeros((), requires_grad=True, device=self.device)

    def fit(self) -> None:
        """Fits the detector on what was gathered, in the order of its file names."""
        images = np.stack([image for _, image in sorted(self.gathered, key=lambda pair: pair[0])])
        self.gathered.clear()
        if (images == images[..., :1]).all():
            images = images[..., :1]
        detector: Detector = clone(self.fresh).set_params(device=str(self.device))
        # validation may come first, where no gradients are kept
        with torch.inference_mode(False), torch.enable_grad():
            self.model.keep(detector.fit(images))

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds scores and maps to a batch."""
        return batch.update(**self.model(batch.image)._asdict())

    @staticmethod
    def configure_optimizers() -> None:
        """None: the detector trains itself."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One epoch on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """From normal images alone."""
        return LearningType.ONE_CLASS

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Raises NotImplementedError, as does OpenVINO's export."""
        raise NotImplementedError("ONNX holds one network, and a detector is more; export with TORCH")

    to_openvino = to_onnx


def pixels(images: Tensor, grey: bool = False) -> np.ndarray:
    """`(N, 3, H, W)` in [0, 1] to uint8 `(N, H, W, 3)`, or the mean of the channels, `(N, H, W, 1)`."""
    x = images.detach().float().mul(255)
    x = x.mean(1, keepdim=True) if grey else x
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
