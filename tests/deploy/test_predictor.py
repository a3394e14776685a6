"""The core of serving: files in, what `dia score` says out, and nothing of this machine in any message."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dia.cli.main import main
from dia.core.errors import DataError
from dia.deploy.predictor import Inferencer


def test_scores_are_those_of_dia_score(served_run, inferencer, files, images, tmp_path):
    main(["score", str(served_run.run), str(served_run.data), "--out", str(tmp_path / "s.jsonl")])
    rows = {r["path"]: r for r in map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())}
    verdict = inferencer.score(images)
    names = [f.relative_to(served_run.data).as_posix() for f in files]
    assert set(names) == set(rows)
    np.testing.assert_allclose(verdict.scores, [rows[n]["score"] for n in names], rtol=1e-4)
    np.testing.assert_allclose(verdict.p_values, [rows[n]["p_value"] for n in names], atol=1e-6)
    flagged = verdict.scores > inferencer.threshold(inferencer.rate)
    assert flagged.tolist() == [rows[n]["flagged"] for n in names]
    assert verdict.heatmaps.shape == images.shape[:3]
    assert verdict.heatmaps.dtype == np.float32


def test_pictures_have_the_model_s_size_and_the_files_names(inferencer, tmp_path):
    Image.new("RGB", (70, 50), (200, 10, 10)).save(tmp_path / "large colour.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "list.csv").write_text("path,label\n/etc/passwd,0\n")
    names = ["large colour.png", "bad.png", "list.csv", "absent.png", "."]
    reading = inferencer.read([tmp_path / n for n in names])
    assert [p.name for p in reading.pictures] == ["large colour.png"]
    assert reading.pictures[0].image.shape == inferencer.shape
    assert [name for name, _ in reading.errors][:3] == ["bad.png", "list.csv", "absent.png"]
    for _, line in reading.errors:
        assert str(tmp_path) not in line
        assert "\n" not in line


def test_files_may_be_called_otherwise_than_their_owner_calls_them(inferencer, files, tmp_path):
    (tmp_path / "0001.png").write_bytes(b"broken")
    reading = inferencer.read([files[0], tmp_path / "0001.png"], names=["liver.png", "spleen.png"])
    assert [p.name for p in reading.pictures] == ["liver.png"]
    ((name, line),) = reading.errors
    assert name == "spleen.png"
    assert "0001" not in line


def test_more_pictures_than_accepted_are_errors_and_the_first_are_read(inferencer, files):
    reading = inferencer.read(files[:5], most=3)
    assert [p.name for p in reading.pictures] == [f.name for f in files[:3]]
    assert [name for name, _ in reading.errors] == [f.name for f in files[3:5]]


def test_threads_get_the_answers_to_their_own_images(inferencer, images):
    whole = inferencer.score(images)
    got = {}
    parts = [slice(0, 3), slice(3, 4), slice(4, 9), slice(9, 12)]
    threads = [
        threading.Thread(target=lambda i=i, p=p: got.__setitem__(i, inferencer.score(images[p])))
        for i, p in enumerate(parts)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, part in enumerate(parts):
        np.testing.assert_allclose(got[i].scores, whole.scores[part], rtol=1e-4)
        np.testing.assert_allclose(got[i].heatmaps, whole.heatmaps[part], rtol=1e-2, atol=1e-2)


def test_dissolving_is_the_dissolver_s(inferencer, images):
    ts = [50, 400]
    dissolved = inferencer.dissolve(images[:2], ts)
    assert dissolved.shape == (2, 2, *inferencer.shape)
    np.testing.assert_array_equal(dissolved, inferencer.detector.dissolver_.dissolve(images[:2], ts))
    with pytest.raises(DataError, match="0–999"):
        inferencer.dissolve(images[:1], [1000])


def older(run: Path, place: Path, **facts: object) -> Path:
    """A copy of a model folder as fitted before the normals' heatmaps were looked at, with other facts."""
    shutil.copytree(run, place)
    config = json.loads((place / "config.json").read_text())
    config["facts"] |= facts
    (place / "config.json").write_text(json.dumps(config))
    for file in ("checksums.json", "heatmaps.json"):
        (place / file).unlink()
    return place


def test_the_colour_scale_is_that_of_the_model(served_run, images):
    inferencer = Inferencer(served_run.run, device="cpu")
    assert inferencer.heat_scale == inferencer.detector.heat_.scale
    low, high = inferencer.heat_scale
    assert low < high
    inferencer.score(255 - images)
    assert inferencer.heat_scale == (low, high)


def test_the_colour_scale_of_an_older_model_is_set_once(served_run, images, tmp_path):
    run = older(served_run.run, tmp_path / "run")
    first = Inferencer(run, device="cpu", normals=str(served_run.data))
    scale = first.heat_scale  # of normals: no image was scored yet
    assert scale is not None
    assert scale[0] < scale[1]
    first.score(255 - images)
    assert first.heat_scale == scale


def test_a_normal_is_nearest_to_itself(served_run, inferencer):
    own = sorted((served_run.data / "train").rglob("*.png"))[::9]
    images = np.stack([p.image for p in inferencer.read(own).pictures])
    nearest = inferencer.nearest(images, k=3)
    assert nearest.images.shape == (len(own), 3, *inferencer.shape)
    assert [names[0] for names in nearest.names] == [f.name for f in own]
    np.testing.assert_array_equal(nearest.images[:, 0], images)
    np.testing.assert_allclose(nearest.distances[:, 0], 0, atol=1e-5)
    assert (np.diff(nearest.distances, axis=1) >= 0).all()
    features = inferencer.detector.features(images)
    other = np.stack([inferencer.detector.features(x[None])[0] for x in nearest.images[:, 2]])
    cosine = (features * other).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(other, axis=1)
    np.testing.assert_allclose(nearest.distances[:, 2], 1 - cosine, atol=1e-5)


def test_without_the_training_images_there_is_a_reason(served_run, images, tmp_path):
    run = older(served_run.run, tmp_path / "run", dataset=str(tmp_path / "gone"))
    alone = Inferencer(run, device="cpu")
    assert alone.nearest(images[:1]) is None
    assert "--normals" in alone.why_no_normals
    assert str(tmp_path) not in alone.why_no_normals
    assert alone.heat_scale is None
    alone.score(images)
    assert alone.heat_scale is not None
    moved = Inferencer(run, device="cpu", normals=str(served_run.data))
    assert moved.nearest(images[:1]) is not None
    flat = Inferencer(run, device="cpu", normals=str(served_run.data / "train" / "good"))
    assert flat.nearest(images[:1]).names == moved.nearest(images[:1]).names
    with pytest.raises(DataError, match="nowhere"):
        Inferencer(run, device="cpu", normals=str(tmp_path / "nowhere"))


def test_what_is_told_of_the_model_has_no_places(served_run, inferencer):
    told = json.dumps(inferencer.about())
    assert str(served_run.run.parent) not in told
    about = inferencer.about()
    assert about["method"] == "dia+"
    assert about["shape"] == [32, 32, 1]
    assert about["n_train"] == about["n_calibration"] == 40  # each is judged without itself
    assert about["t_max"] == 1000
