"""One method of anomalib 2.7.0, fitted and scored in a process of its own; prints one line of JSON.

Run by `peers.py`, in whatever environment has the anomalib to be measured, so it imports neither `dia` nor
`common`. Needs no network: backbones get random weights, and EfficientAD a random teacher of the true shape
and stand-ins for Imagenette. Work of many equal steps is measured for some of them and extrapolated to its
published length, and the answer says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}  # before anomalib is imported
warnings.filterwarnings("ignore")

BATCH = {"patchcore": 32, "efficientad": 1, "rd4ad": 16}  # anomalib's own; its only one; the paper's
EFFICIENTAD_STEPS = 70_000  # paper and anomalib's examples
RD4AD_EPOCHS = 200  # paper
WARMUP_IMAGES = 8  # scored before the clock starts, as in `peers.py`
VALIDATION = 0.1  # of EfficientAD's training normals, for its quantiles, as in the paper


class Timer:
    """When each of a long row of equal steps ended."""

    def __init__(self) -> None:
        self.start = 0.0
        self.ends: list[float] = []

    def begin(self) -> None:
        """The first step starts now."""
        self.start = time.perf_counter()

    def step(self) -> float:
        """A step ended now; returns the seconds since the first started."""
        self.ends.append(time.perf_counter())
        return self.ends[-1] - self.start

    def per_step(self, warmup: int) -> float:
        """Median seconds of a step, those of the warm-up left out."""
        at = [self.start, *self.ends][warmup:]
        return median(b - a for a, b in pairwise(at))

    def extrapolate(self, seconds: float, warmup: int, published: int) -> dict[str, Any]:
        """What a fit of `seconds`, these steps among them, takes with `published` steps; measured if run."""
        if len(self.ends) >= published:
            return {
                "fit_seconds": seconds, "extrapolated": False, "measured_steps": published,
                "seconds_per_step": self.per_step(warmup), "published_steps": published,
            }  # fmt: skip
        rest = seconds - (self.ends[-1] - self.start)  # before the first step and after the last
        per_step = self.per_step(warmup)
        return {
            "fit_seconds": rest + per_step * published, "extrapolated": True, "run_seconds": seconds,
            "measured_steps": len(self.ends) - warmup, "seconds_per_step": per_step,
            "published_steps": published,
        }  # fmt: skip


def datamodule(data: Path, model: str) -> Any:
    """The folder as anomalib reads it; the test images are used for scoring alone."""
    from anomalib.data import Folder

    kinds = sorted(f.name for f in (data / "test").iterdir() if f.is_dir() and f.name != "good")
    return Folder(
        name="phantom", root=data, normal_dir="train/good", normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds], train_batch_size=BATCH[model], eval_batch_size=32,
        num_workers=0, test_split_mode="from_dir", seed=0,
        val_split_mode="from_train" if model == "efficientad" else "none", val_split_ratio=VALIDATION,
    )  # fmt: skip


def with_lite0(shared: dict[str, Any], size: int, sampling: float, weights: Path) -> Any:
    """PatchCore on EfficientNet-Lite0's maps at strides 8 and 16, with its weights and range of pixels."""
    import torch
    from anomalib.models import Patchcore
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    seen = Compose([Resize((size, size)), Normalize([0.5] * 3, [0.5] * 3)])
    shared |= {"pre_processor": PreProcessor(seen)}
    made = Patchcore(
        backbone="tf_efficientnet_lite0", layers=["blocks.2", "blocks.4"], pre_trained=False,
        coreset_sampling_ratio=sampling, **shared,
    )  # fmt: skip
    network, state = made.model.feature_extractor.feature_extractor, torch.load(weights, weights_only=True)
    wanted = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    if missing := wanted - {k.replace("blocks.", "blocks_") for k in state} - set(state):
        raise ValueError(f"no weights for {min(missing)}")
    network.load_state_dict(state, strict=False)
    return made


def build(model: str, size: int, imagenet: Path, cache: Path, sampling: float, lite0: Path | None) -> Any:
    """The Lightning module at this image size: no downloads, raw scores, nothing drawn."""
    import torch
    from anomalib.models import EfficientAd, Patchcore, ReverseDistillation
    from anomalib.models.image.efficient_ad import lightning_model
    from anomalib.post_processing import PostProcessor

    classes = {"patchcore": Patchcore, "efficientad": EfficientAd, "rd4ad": ReverseDistillation}
    shared = {
        "pre_processor": classes[model].configure_pre_processor(image_size=(size, size)),
        "post_processor": PostProcessor(enable_normalization=False, enable_thresholding=False),
        "evaluator": False,
        "visualizer": False,
    }
    if lite0 is not None:
        return with_lite0(shared, size, sampling, lite0)
    if model == "patchcore":
        return Patchcore(pre_trained=False, coreset_sampling_ratio=sampling, **shared)
    if model == "rd4ad":
        return ReverseDistillation(pre_trained=False, **shared)
    made = EfficientAd(imagenet_dir=imagenet, model_size="small", **shared)
    weights = cache / "efficientad_pretrained_weights" / "pretrained_teacher_small.pth"
    weights.parent.mkdir()
    torch.save(made.model.teacher.state_dict(), weights)
    lightning_model.get_pretrained_weights_dir = lambda: cache  # instead of the user's, for this process
    return made


class _Enough(Exception):
    """The coreset's time is up."""


def limit_coreset(timer: Timer, seconds: float) -> dict[str, int]:
    """Lets PatchCore pick its coreset for so long; the rest of its size is then drawn at random.

    Every pick looks at all patches, so all take the same time, and a bank of the true size is scored
    against in the true time. Returns a dictionary that will hold the coreset's `size`.
    """
    import torch
    from anomalib.models.components import KCenterGreedy
    from anomalib.models.image.patchcore import torch_model

    facts: dict[str, int] = {}

    class Limited(KCenterGreedy):
        def select_coreset_idxs(self) -> list[int]:
            facts["size"] = self.coreset_size
            self.picked: list[int] = []
            with contextlib.suppress(_Enough):
                return super().select_coreset_idxs()
            chosen = set(self.picked)
            rest = (i for i in torch.randperm(self.n_observations).tolist() if i not in chosen)
            return self.picked + [i for i, _ in zip(rest, range(self.coreset_size - len(chosen)))]  # noqa: B905

        def reset_distances(self) -> None:
            super().reset_distances()
            timer.begin()  # after the projection

        def get_new_idx(self) -> Any:
            new = super().get_new_idx()
            self.picked.append(int(new))
            if timer.step() > seconds and len(self.picked) < self.coreset_size - 1:
                raise _Enough
            return new

    torch_model.KCenterGreedy = Limited
    return facts


def fit(model: Any, data: Any, timer: Timer, options: argparse.Namespace, folder: Path) -> tuple[Any, dict]:
    """Fits through `Engine.fit`; returns the engine and the facts of the fit."""
    from anomalib.engine import Engine
    from lightning.pytorch import Callback

    class Steps(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if not timer.ends:
                timer.begin()

        def on_train_batch_end(self, *_: Any) -> None:
            timer.step()

    name, steps, run = options.model, {}, 0
    if name == "patchcore":
        steps = limit_coreset(timer, options.coreset_seconds)
    else:
        data.setup()
        run = min(options.warmup + options.steps, len(data.train_data) // BATCH[name])  # full batches alone
        if run <= options.warmup:
            raise ValueError(f"{len(data.train_data)} images make no step of {BATCH[name]} after the warm-up")
    engine = Engine(
        callbacks=[] if name == "patchcore" else [Steps()], default_root_dir=folder, accelerator="cpu",
        devices=1, max_epochs=1, enable_progress_bar=False, enable_model_summary=False, logger=False,
        limit_train_batches=1.0 if name == "patchcore" else run,
        limit_val_batches=1.0 if name == "efficientad" else 0,
    )  # fmt: skip
    start = time.perf_counter()
    engine.fit(model, datamodule=data)
    seconds = time.perf_counter() - start
    warmup = 1 if name == "patchcore" else options.warmup
    if name == "patchcore":
        facts = {"unit": "coreset picks", "sampling": options.sampling, "epochs": 1}
        published = steps["size"] - 1  # the first is drawn at random
    elif name == "efficientad":
        facts, published = {"unit": "optimiser steps of 1 image"}, EFFICIENTAD_STEPS
    else:
        published = RD4AD_EPOCHS * len(data.train_dataloader())
        facts = {"unit": f"optimiser steps of {BATCH[name]} images, {RD4AD_EPOCHS} epochs"}
    return engine, facts | timer.extrapolate(seconds, warmup, published)


def score(engine: Any, model: Any, data: Any) -> dict[str, Any]:
    """Scores the test images from their files through `Engine.predict`, after a small warm-up."""
    import torch
    from sklearn.metrics import roc_auc_score
    from torch.utils.data import DataLoader, Subset

    few = Subset(data.test_data, range(min(WARMUP_IMAGES, len(data.test_data))))
    engine.predict(
        model, dataloaders=DataLoader(few, batch_size=len(few), collate_fn=data.test_data.collate_fn)
    )
    start = time.perf_counter()
    batches = engine.predict(model, datamodule=data)
    seconds = time.perf_counter() - start
    scores = torch.cat([b.pred_score.flatten() for b in batches]).double().numpy()
    labels = torch.cat([b.gt_label.flatten() for b in batches]).numpy()
    return {
        "score_seconds": seconds,
        "images_per_second": len(scores) / seconds,
        "auroc": float(roc_auc_score(labels, scores)),
        "distinct_scores": len(set(scores.tolist())),
        "n_test": len(scores),
        "n_test_anomalous": int(labels.sum()),
    }


def peak_memory_mb() -> float:
    """Highest resident memory of this process in MiB, as `dia.core.environment.peak_memory_mb`."""
    lines = Path("/proc/self/status").read_text().splitlines()  # Linux
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def main() -> None:
    """Prints the facts of one method as the last line, or under `error` why there are none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=list(BATCH))
    parser.add_argument("--data", type=Path, required=True, help="train/good, test/good, test/KIND")
    parser.add_argument("--imagenet", type=Path, help="EfficientAD: folder with one folder of images")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="optimiser steps to measure")
    parser.add_argument("--warmup", type=int, default=2, help="optimiser steps before those")
    parser.add_argument("--sampling", type=float, default=0.1, help="PatchCore: share of patches to keep")
    parser.add_argument("--coreset-seconds", type=float, default=60, help="PatchCore: picking is cut here")
    parser.add_argument("--lite0", type=Path, help="PatchCore: Lite0's weights, as timm has them")
    options = parser.parse_args()

    import anomalib
    import numpy as np
    import torch

    logging.disable(logging.WARNING)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    facts: dict[str, Any] = {
        "method": options.model, "version": anomalib.__version__, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "weights": "lite0" if options.lite0 else "random: no network",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary)
        try:
            data, timer = datamodule(options.data, options.model), Timer()
            model = build(
                options.model,
                options.size,
                options.imagenet,
                cache,
                options.sampling,
                options.lite0,
            )
            engine, fitted = fit(model, data, timer, options, cache / "engine")
            facts |= {"n_train": len(data.train_data), **fitted, **score(engine, model, data)}
            facts["parameters"] = sum(p.numel() for p in model.model.parameters())
            bank = getattr(model.model, "memory_bank", None)
            facts["memory_bank"] = 0 if bank is None else bank.numel()
        except Exception as error:  # whatever it is, it is the result
            facts["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    print(json.dumps({**facts, "peak_memory_mb": round(peak_memory_mb(), 1)}))


if __name__ == "__main__":
    main()
