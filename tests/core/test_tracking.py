"""Curves of training: the same numbers by every logger, true ones, and the same weights with and without."""

import csv
import json
import os
import socket
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dia.amplify import contrast
from dia.amplify.contrast import AmplifySettings
from dia.cli.main import main
from dia.core import tracking as tracking_module
from dia.core.errors import DataError
from dia.core.running import loop
from dia.core.tracking import tracking
from dia.data import phantoms
from dia.detectors import DIA
from dia.detectors.dia import DIASettings
from dia.dissolve import DissolverSettings

STEPS = [1, 10, 12]  # the first, every tenth, the last
SETTINGS = DIASettings(
    DissolverSettings(size=16, patch=2, widths=(8, 16), steps=STEPS[-1], batch=4),
    AmplifySettings(size=16, width=4, steps=STEPS[-1], batch=4, simsiam_weight=0.5),
    ts=(30, 60),
    samples=1,
)


@pytest.fixture(scope="module")
def images(request):
    return request.getfixturevalue("make_images")(30, 16)


def fit(images, s=SETTINGS, **options):
    return DIA(s, seed=2, device="cpu").fit(images, **options)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    """A fit that logs nothing, though another logger is around it."""
    folder = tmp_path_factory.mktemp("nothing")
    with pytest.MonkeyPatch.context() as patch, tracking("csv", folder / "a"), tracking("none", folder / "b"):
        patch.chdir(folder)
        made = fit(images)
    assert not os.listdir(folder)
    return made


def rows(folder):
    with (folder / "metrics.csv").open() as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def by_csv(images, tmp_path_factory):
    """(detector, log folder, losses of every encoder step as the training returned them)."""
    folder, losses, real = tmp_path_factory.mktemp("logs"), [], contrast.ContrastiveTraining.training_step

    def training_step(self, batch, index):
        loss = real(self, batch, index)
        losses.append((self.global_step + 1, float(loss)))
        return loss

    with pytest.MonkeyPatch.context() as patch, tracking("csv", folder, about={"method": "dia"}):
        patch.setattr(contrast.ContrastiveTraining, "training_step", training_step)
        return fit(images), folder, dict(losses)


def same_weights(a, b):
    for name, value in a._tensors().items():
        assert np.array_equal(b._tensors()[name], value), name
    assert a.dissolver_.sha256() == b.dissolver_.sha256()


def test_the_losses_are_those_of_the_training(by_csv, plain):
    detector, folder, losses = by_csv
    encoder = rows(folder / "encoder" / "version_0")
    assert [row["step"] for row in encoder] == STEPS
    for row in encoder:
        assert row["loss"] == losses[row["step"]]
        a = SETTINGS.amplify
        whole = (
            row["loss_contrastive"]
            + a.shift_weight * row["loss_shift"]
            + a.simsiam_weight * row["loss_simsiam"]
        )
        assert row["loss"] == pytest.approx(whole, rel=1e-6)
    dissolver = rows(folder / "dissolver" / "version_0")
    assert [row["step"] for row in dissolver] == STEPS
    assert set(dissolver[0]) == {"step", "loss", "learning_rate"}
    same_weights(detector, plain)


def test_the_learning_rate_is_that_of_the_step(by_csv):
    _, folder, _ = by_csv
    rate = SETTINGS.dissolver.lr
    for row in rows(folder / "dissolver" / "version_0"):  # cosine from the first step on
        expected = rate * (1 + np.cos(np.pi * (row["step"] - 1) / STEPS[-1])) / 2
        assert row["learning_rate"] == pytest.approx(expected)
    first, *_ = rows(folder / "encoder" / "version_0")
    assert first["learning_rate"] == pytest.approx(SETTINGS.amplify.lr / 10)  # it warms up


def test_settings_stand_beside_the_curves(by_csv):
    yaml = pytest.importorskip("yaml")
    _, folder, _ = by_csv
    known = yaml.safe_load((folder / "encoder" / "version_0" / "hparams.yaml").read_text())
    assert known["width"] == 4
    assert known["augment.crop"] == "(0.08, 1.0)"
    assert (known["stage"], known["seed"], known["method"]) == ("encoder", 2, "dia")


def test_tensorboard_has_the_same(by_csv, images, plain, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with tracking("tensorboard", tmp_path):
        same_weights(fit(images), plain)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    for stage in ("dissolver", "encoder"):
        events = accumulator.EventAccumulator(str(tmp_path / stage / "version_0")).Reload()
        expected = rows(by_csv[1] / stage / "version_0")
        assert {k for k in events.Tags()["scalars"]} == set(expected[0]) - {"step"}
        for name in events.Tags()["scalars"]:
            got = [(e.step, e.value) for e in events.Scalars(name)]
            assert got == [(row["step"], float(np.float32(row[name]))) for row in expected]


def test_mlflow_has_the_same_and_asks_nobody(by_csv, images, plain, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail(f"connects to {a[1]}"))
    with tracking("mlflow", tmp_path / "logs", run="mine"):
        same_weights(fit(images), plain)
    client = mlflow.MlflowClient((tmp_path / "logs").as_uri())
    found = client.search_runs([client.get_experiment_by_name("dia").experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert set(runs) == {"mine/dissolver", "mine/encoder"}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        expected = rows(by_csv[1] / name.split("/")[1] / "version_0")
        for metric in set(expected[0]) - {"step"}:
            got = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric)]
            assert got == [(row["step"], row[metric]) for row in expected]
    assert runs["mine/encoder"].data.params["width"] == "4"


def test_mlflows_own_variable_says_where(images, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "elsewhere").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)

    def dies(self, batch, index):
        raise RuntimeError("killed")

    monkeypatch.setattr(contrast.ContrastiveTraining, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"), tracking("mlflow", tmp_path / "logs"):
        fit(images, replace(SETTINGS, dissolver=replace(SETTINGS.dissolver, steps=2)))
    assert not (tmp_path / "logs").exists()
    client = mlflow.MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name("dia").experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == {
        "dissolver": "FINISHED",
        "encoder": "FAILED",
    }


def test_a_resumed_fit_goes_on_in_a_new_version(images, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", partial(loop.train, checkpoint_every=10))
    real, armed = contrast.ContrastiveTraining.training_step, [True]

    def training_step(self, batch, index):
        if self.global_step == 11 and armed:
            armed.clear()
            raise RuntimeError("killed")
        return real(self, batch, index)

    monkeypatch.setattr(contrast.ContrastiveTraining, "training_step", training_step)
    with tracking("csv", tmp_path / "logs"):
        with pytest.raises(RuntimeError, match="killed"):
            fit(images, workdir=tmp_path / "work")
        same_weights(fit(images, workdir=tmp_path / "work", resume=True), plain)
    encoder = tmp_path / "logs" / "encoder"
    assert [row["step"] for row in rows(encoder / "version_0")] == [1, 10]
    assert [row["step"] for row in rows(encoder / "version_1")] == [12]
    assert [p.name for p in (tmp_path / "logs" / "dissolver").iterdir()] == ["version_0"]  # was finished


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "mlflow"])
def test_two_that_log_into_one_folder_at_once_have_each_their_own(images, tmp_path, logger):
    """The second begins when the first has, and before that has written anything."""
    if logger != "csv":
        pytest.importorskip(logger)
    with tracking(logger, tmp_path / "logs"):
        first, second = (loop.curves("encoder", SETTINGS.amplify, seed)[0].logger for seed in (1, 2))
        assert first is not None
        assert second is not None
        for one, value in ((first, 1.0), (second, 2.0)):
            one.log_metrics({"loss": value}, 1)
        for one in (first, second):
            one.finalize("success")
    if logger == "mlflow":
        assert first.run_id != second.run_id
        assert first.experiment_id == second.experiment_id
    else:
        assert first.log_dir != second.log_dir
    if logger == "csv":
        assert [rows(tmp_path / "logs" / "encoder" / f"version_{i}")[0]["loss"] for i in (0, 1)] == [1, 2]


@pytest.mark.parametrize("fails", ["log_hyperparams", "log_metrics", "finalize", "folder"])
def test_a_logger_that_fails_costs_one_line_and_no_training(images, plain, tmp_path, monkeypatch, fails):
    from lightning.pytorch.loggers import CSVLogger

    def full(*_, **__):
        raise OSError(28, "No space left on device\nand more")

    if fails == "folder":
        (tmp_path / "logs").write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(CSVLogger, fails, full)
    with warnings.catch_warnings(record=True) as said, tracking("csv", tmp_path / "logs"):
        same_weights(fit(images), plain)
    lines = [str(w.message) for w in said if "logged no more" in str(w.message)]
    assert [line.split(" are ")[0].split()[-1] for line in lines] == ["dissolver", "encoder"]
    assert not any("\n" in line for line in lines)


def test_models_of_anomalib_too(images, tmp_path):
    pytest.importorskip("anomalib")
    from dia.detectors.registry import METHODS

    cls = METHODS["ganomaly"]  # which has two optimisers, and returns no loss
    small = cls.Settings(size=32, batch=8, epochs=2, n_features=4, latent_vec_size=4)
    with tracking("csv", tmp_path):
        cls(small, device="cpu").fit(np.repeat(np.repeat(images, 2, 1), 2, 2))
    found = rows(tmp_path / "ganomaly" / "version_0")
    assert found[0]["step"] == 1
    assert any("loss" in name for name in found[0])
    assert all(np.isfinite(value) for row in found for value in row.values())


# --- the command --------------------------------------------------------------------------------------

FIT = ["--method", "csi", "--settings.amplify.steps", "2", "--settings.amplify.width", "4"]


def test_one_flag(tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "mueller"
    folder.mkdir()
    for i, image in enumerate(phantoms.load("train", size=24, n=24).normals().images):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    out = tmp_path / "run"
    main(["fit", str(folder), "--out", str(out), *FIT, "--device", "cpu", "--logger", "csv", "--json"])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["n_train"] > 0
    version = tmp_path / "run.logs" / "encoder" / "version_0"
    assert [row["step"] for row in rows(version)] == [1, 2]
    text = (version / "hparams.yaml").read_text()
    assert json.loads((out / "config.json").read_text())["settings_hash"] in text
    assert "mueller" not in text


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_a_missing_library_is_one_line_before_anything_is_read(logger, monkeypatch, capsys):
    monkeypatch.setattr(tracking_module, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "no-such-folder", "--logger", logger])
    said = capsys.readouterr().err
    assert said == f"dia: logger {logger} needs {logger}: pip install 'dia-anomaly[tracking]'\n"


def test_a_logger_that_is_not_known():
    with (
        pytest.raises(DataError, match="logger wandb is not known; there are: none, csv"),
        tracking("wandb", "x"),
    ):
        pass
