"""DIA inside anomalib: each of our detectors is a model for its `Engine` and command line. Knows detectors.

    from anomalib.data import Folder
    from anomalib.engine import Engine
    from dia.deploy.anomalib_model import DiaLightning

    engine = Engine()
    engine.fit(DiaLightning("dia+"), datamodule=Folder(...))

or in YAML, `model: {class_path: dia.deploy.anomalib_model.DiaLightning, init_args: {method: csi, seed: 1}}`.

As with anomalib's memory banks, one epoch gathers the normals, and its end fits the detector: hold-out,
training and calibration are those of `Detector.fit`. `pred_score` is the raw score in 32 bits and
`anomaly_map` the heatmap; anomalib's post-processor then normalises and thresholds both by the validation
images, unless it is False. The fitted model folder, zipped, is a buffer of the network, so that checkpoints
and exported files hold it, and what is loaded from them is our own format without pickles. `ExportType.TORCH`
works; ONNX and OpenVINO do not, because a detector here is a model folder and not one network (`dia export`
writes ONNX).
"""

from __future__ import annotations

import shutil
import tempfile
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
    """A fitted detector as a network; the buffer `folder` is its model folder, zipped, `(bytes,)` uint8."""

    folder: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("folder", torch.empty(0, dtype=torch.uint8))
        self._live: Detector | None = None

    def keep(self, detector: Detector) -> None:
        """Makes a fitted detector the network's own."""
        with tempfile.TemporaryDirectory() as temporary:
            saved = detector.save(Path(temporary, "model"))
            data = bytearray(Path(shutil.make_archive(f"{temporary}/zipped", "zip", saved)).read_bytes())
        self.folder = torch.frombuffer(data, dtype=torch.uint8).to(self.folder.device)
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
                file = Path(temporary, "zipped.zip")
                file.write_bytes(self.folder.cpu().numpy().tobytes())
                shutil.unpack_archive(file, f"{temporary}/model")
                self._live = Detector.load(f"{temporary}/model", device=str(self.folder.device))
        return self._live

    def forward(self, images: Tensor) -> InferenceBatch:
        """Maps `(N, 3, H, W)` in [0, 1] to raw scores `(N,)` and heatmaps `(N, 1, H, W)`, both float32."""
        detector = self.detector
        x = _pixels(images, grey=detector.shape_[2] == 1)
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
    """One of our detectors as a model of anomalib.

    Args:
        method: the detector's name, as `dia methods` lists it.
        preset: `cpu`, `gpu` or `paper`.
        seed: the seed of the hold-out, the first weights and every random draw.
        settings: values that differ from the preset's, by dotted name, as {"amplify.steps": 90}.
        image_size: images are resized to squares of this side, in pixels; the preset's greatest where None. A
            `pre_processor` takes its place.
        pre_processor: a pre-processor of anomalib that does not normalise, or True for ours.
        components: `post_processor` (False for raw scores), `evaluator` and `visualizer`, as of any model of
            anomalib.

    Raises:
        DataError: the method, preset or setting is not known.
    """

    def __init__(
        self,
        method: str = DEFAULT,
        preset: str = "cpu",
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        image_size: int | None = None,
        pre_processor: Any = True,
        **components: Any,
    ):
        if pre_processor is True:
            side = image_size or MAX_SIZE.get(preset, 64)
            pre_processor = self.configure_pre_processor((side, side))
        super().__init__(pre_processor=pre_processor, **components)
        cls = detector_class(method)
        self.fresh = cls(replaced(preset_settings(cls.Settings, preset), settings or {}), seed=seed)
        self.model: DiaModel = DiaModel()
        self.gathered: list[tuple[str, np.ndarray]] = []

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Returns a pre-processor that resizes with antialiasing and does nothing else."""
        side = MAX_SIZE["cpu"]
        return PreProcessor(Compose([Resize(image_size or (side, side), antialias=True)]))

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Gathers the normal images of a batch."""
        x = _pixels(batch.image)
        paths = batch.image_path or [""] * len(x)
        labels = [0] * len(x) if batch.gt_label is None else batch.gt_label.tolist()
        self.gathered += [(str(p), image) for p, image, y in zip(paths, x, labels, strict=True) if not y]
        return torch.zeros((), requires_grad=True, device=self.device)

    def fit(self) -> None:
        """Fits the detector on the gathered images, in the order of their file names."""
        images = np.stack([image for _, image in sorted(self.gathered, key=lambda pair: pair[0])])
        self.gathered.clear()
        if (images == images[..., :1]).all():
            images = images[..., :1]
        detector: Detector = clone(self.fresh).set_params(device=str(self.device))
        # Lightning may call this inside validation, which turns gradients off
        with torch.inference_mode(False), torch.enable_grad():
            self.model.keep(detector.fit(images))

    def validation_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds scores and heatmaps to a batch."""
        return batch.update(**self.model(batch.image)._asdict())

    @staticmethod
    def configure_optimizers() -> None:
        """Returns no optimiser: the detector trains itself."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The trainer's settings: one epoch on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """One-class: the detector learns from normal images alone."""
        return LearningType.ONE_CLASS

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Raises NotImplementedError; `to_openvino` is the same function."""
        raise NotImplementedError("ONNX holds one network, and a detector is more; export with TORCH")

    to_openvino = to_onnx


def _pixels(images: Tensor, grey: bool = False) -> np.ndarray:
    """Maps `(N, 3, H, W)` in [0, 1] to uint8 `(N, H, W, 3)`, or to the channels' mean, `(N, H, W, 1)`."""
    x = images.detach().float().mul(255)
    x = x.mean(1, keepdim=True) if grey else x
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
