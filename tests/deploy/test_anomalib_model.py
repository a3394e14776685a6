"""DIA inside anomalib: its Engine fits, tests, predicts and exports our detectors, with our scores."""

import numpy as np
import pytest
import torch
from PIL import Image

from dia.core.settings import SettingsError
from dia.data import phantoms
from dia.detectors import Detector

pytest.importorskip("anomalib", reason="the extra `peers` is not installed")

from anomalib.data import Folder
from anomalib.deploy import ExportType
from anomalib.engine import Engine

from dia.deploy.anomalib_model import DiaLightning, DiaModel

SIDE = 24
TINY = {
    "dissolver.size": 16, "dissolver.widths": (8, 16), "dissolver.steps": 2, "dissolver.batch": 4,
}  # fmt: skip
RAW = {"post_processor": False, "evaluator": False, "visualizer": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/good, test/good and test/bad of small PNG files."""
    root = tmp_path_factory.mktemp("data")
    train = phantoms.load("train", size=SIDE, n=24).normals().images
    test = phantoms.load("test", size=SIDE, n=12)
    parts = {"train/good": train, "test/good": test.images[test.labels == 0],
             "test/bad": test.images[test.labels == 1]}  # fmt: skip
    for name, images in parts.items():
        (root / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(root / name / f"{i:03}.png")
    return root


def data(folder):
    return Folder(
        name="phantom", root=folder, normal_dir="train/good", normal_test_dir="test/good",
        abnormal_dir="test/bad", test_split_mode="from_dir", val_split_mode="same_as_test",
        train_batch_size=5, eval_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip


def engine(root, **kwargs):
    return Engine(
        default_root_dir=root, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **kwargs,
    )  # fmt: skip


def read(paths):
    return np.stack([np.asarray(Image.open(p).convert("L"))[..., None] for p in paths])


@pytest.fixture(scope="module")
def fitted(folder, tmp_path_factory):
    """dia+ after `Engine.fit`, with the engine and its folder."""
    root = tmp_path_factory.mktemp("fit")
    model = DiaLightning("dia+", seed=3, settings=TINY, image_size=SIDE, **RAW)
    runner = engine(root)
    runner.fit(model, datamodule=data(folder))
    return model, runner, root


def predicted(runner, folder, **kwargs):
    batches = runner.predict(datamodule=data(folder), **kwargs)
    scores = torch.cat([b.pred_score.flatten() for b in batches]).numpy()
    maps = torch.cat([b.anomaly_map.reshape(-1, SIDE, SIDE) for b in batches]).numpy()
    return [p for b in batches for p in b.image_path], scores, maps


def test_scores_and_maps_are_those_of_the_detector_fitted_on_the_same_files(fitted, folder):
    model, runner, _ = fitted
    paths, scores, maps = predicted(runner, folder, model=model)
    train = read(sorted((folder / "train/good").iterdir()))
    ours = type(model.fresh)(model.fresh.settings, seed=3, device="cpu").fit(train)
    np.testing.assert_allclose(scores, ours.score(read(paths)), rtol=1e-5)
    np.testing.assert_allclose(maps, ours.heatmap(read(paths)), rtol=1e-5, atol=1e-6)
    assert len(set(scores.tolist())) == len(scores) == 12
    assert model.model.detector.shape_ == (SIDE, SIDE, 1)  # grey files stay grey
    assert not hasattr(model.fresh, "shape_")  # what is fitted is in the network alone


def test_a_checkpoint_alone_predicts_alike(fitted, folder, tmp_path):
    model, runner, root = fitted
    _, scores, _ = predicted(runner, folder, model=model)
    checkpoint = next(root.rglob("*.ckpt"))
    other = DiaLightning("dia+", settings=TINY, image_size=SIDE, **RAW)
    _, again, _ = predicted(engine(tmp_path), folder, model=other, ckpt_path=checkpoint)
    assert np.array_equal(again, scores)
    loaded = DiaLightning.load_from_checkpoint(checkpoint, map_location="cpu")
    assert loaded.model.detector.settings_hash() == model.model.detector.settings_hash()
    assert loaded.post_processor is None


def test_the_engine_measures_a_detector_of_any_method(folder, tmp_path):
    model = DiaLightning("trivial:statistics", image_size=SIDE, visualizer=False)
    runner = engine(tmp_path)
    runner.fit(model, datamodule=data(folder))
    result = runner.test(model, datamodule=data(folder))[0]
    assert 0 <= result["image_AUROC"] <= 1
    batches = runner.predict(model, datamodule=data(folder))
    assert all(0 <= float(b.pred_score.min()) <= float(b.pred_score.max()) <= 1 for b in batches)
    assert model.model.detector.n_train_ + model.model.detector.n_calibration_ <= 24


def test_an_exported_model_scores_pixels_alike(fitted, folder, tmp_path):
    model, runner, _ = fitted
    paths, scores, _ = predicted(runner, folder, model=model)
    file = runner.export(model, ExportType.TORCH, export_root=tmp_path)
    loaded = torch.load(file, weights_only=False)["model"].eval()
    x = torch.from_numpy(read(paths)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
    out = loaded(x)
    np.testing.assert_allclose(out.pred_score.numpy(), scores, rtol=1e-6)
    assert out.anomaly_map.shape == (len(x), 1, SIDE, SIDE)
    with pytest.raises(NotImplementedError, match="TORCH"):
        runner.export(model, ExportType.ONNX, export_root=tmp_path)


def test_its_state_is_our_model_folder_without_pickles(fitted):
    model, _, _ = fitted
    copy = DiaModel()
    copy.load_state_dict(model.model.state_dict())
    assert set(model.model.state_dict()) == {"folder"}
    x = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(copy(x).pred_score, model.model(x).pred_score)
    assert isinstance(copy.detector, Detector)


def test_an_unfitted_model_says_so():
    with pytest.raises(ValueError, match="not fitted"):
        DiaModel()(torch.zeros(1, 3, 8, 8))


def test_settings_are_checked_when_it_is_made():
    with pytest.raises(SettingsError, match="no setting amplify"):
        DiaLightning("dia", settings={"amplify.colour": 1})


def test_anomalibs_configuration_names_it_by_class_path(tmp_path):
    config = tmp_path / "dia.yaml"
    config.write_text(
        "model:\n  class_path: dia.deploy.anomalib_model.DiaLightning\n"
        "  init_args: {method: csi, seed: 4, image_size: 32, settings: {amplify.steps: 3}}\n"
    )
    model = DiaLightning.from_config(config)
    assert (model.fresh.method, model.fresh.seed, model.fresh.s.amplify.steps) == ("csi", 4, 3)
    assert model.input_size == (32, 32)
