"""anomalib's PatchCore on EfficientNet-Lite0's weights, fitted and scored from files through its `Engine`."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Subset

BATCH = 32  # anomalib's own
SAMPLING = 0.01  # of the patches: the smallest share of PatchCore's paper, and its fastest


def patchcore(data: Path, weights: Path, side: int, warmup: int) -> dict[str, Any]:
    """Returns the facts of one fit and of scoring the test images.

    Args:
        data: `train/good`, `test/good` and `test/bad`, of PNG files.
        weights: Lite0's, under timm's names.
        side: of the images in pixels.
        warmup: images scored before the clock starts.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import anomalib
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from lightning import seed_everything

    seed_everything(0, verbose=False)  # its random projection is numpy's
    images = Folder(
        name="images", root=data, normal_dir="train/good", normal_test_dir="test/good",
        abnormal_dir="test/bad", train_batch_size=BATCH, eval_batch_size=BATCH, num_workers=0,
        test_split_mode="from_dir", val_split_mode="none", seed=0,
    )  # fmt: skip
    model = _on_lite0(weights, side)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, logger=False,
        )  # fmt: skip
        start = time.perf_counter()
        engine.fit(model, datamodule=images)
        fitted = time.perf_counter() - start
        test = images.test_data
        few = DataLoader(Subset(test, range(warmup)), batch_size=warmup, collate_fn=test.collate_fn)
        engine.predict(model, dataloaders=few)
        start = time.perf_counter()
        batches = engine.predict(model, datamodule=images)
        seconds = time.perf_counter() - start
    scores, labels = (
        torch.cat([getattr(b, name).flatten() for b in batches]) for name in ("pred_score", "gt_label")
    )
    return {
        "version": anomalib.__version__, "n_train": len(images.train_data), "fit_seconds": fitted,
        "images_per_second": len(scores) / seconds,
        "auroc": float(roc_auc_score(labels.numpy(), scores.double().numpy())),
        "distinct_scores": len(np.unique(scores.numpy())),
    }  # fmt: skip


def _on_lite0(weights: Path, side: int) -> Any:
    """Makes PatchCore on Lite0's maps at strides 8 and 16, with its weights; raw scores."""
    from anomalib.models import Patchcore
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    made = Patchcore(
        backbone="tf_efficientnet_lite0", layers=["blocks.2", "blocks.4"], pre_trained=False,
        coreset_sampling_ratio=SAMPLING, evaluator=False, visualizer=False,
        pre_processor=PreProcessor(Compose([Resize((side, side)), Normalize([0.5] * 3, [0.5] * 3)])),
        post_processor=PostProcessor(enable_normalization=False, enable_thresholding=False),
    )  # fmt: skip
    network, state = made.model.feature_extractor.feature_extractor, torch.load(weights, weights_only=True)
    wanted = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    if missing := wanted - {k.replace("blocks.", "blocks_") for k in state} - set(state):
        raise ValueError(f"no weights for {min(missing)}")
    network.load_state_dict(state, strict=False)
    return made
