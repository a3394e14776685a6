"""Ray: grids and scores of its actors are those of this process."""

import csv
import json
import os
from pathlib import Path

import pytest
from conftest import smooth_images
from PIL import Image
from scoring import refused, score

from dia.cli.main import main
from dia.detectors import METHODS
from grids import benchmark, compared, two_sets

FEW = {"datasets": ["breastmnist"], "methods": ["csi", "trivial:hog"]}

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """40 images of which 2 and 10 to 19 are no images."""
    root = tmp_path_factory.mktemp("damaged")
    for i, image in enumerate(smooth_images(40, seed=1)):
        Image.fromarray(image[..., 0]).save(root / f"{i:03}.png")
        if i in (2, *range(10, 20)):
            (root / f"{i:03}.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models that need no training."""
    root = tmp_path_factory.mktemp("models")
    for name in ("gradient", "blur"):
        METHODS[f"trivial:{name}"]().fit(smooth_images(40)).save(root / name)
    return root


def test_ray_makes_the_lines_of_the_local_executor(root, tmp_path):
    ray.init(
        address="local", num_cpus=len(os.sched_getaffinity(0)), log_to_driver=False, logging_level="ERROR",
        include_dashboard=False,
    )  # fmt: skip
    try:
        main(benchmark(root, tmp_path, workers=2, executor="ray", **FEW))
    finally:
        ray.shutdown()
    main(benchmark(root, tmp_path / "here", **FEW))
    assert compared(tmp_path) == compared(tmp_path / "here")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_ray_scores_as_this_process_does(models, damaged, tmp_path, capsys, monkeypatch):
    """Relative paths, heatmaps, unreadable files, more batches than are in flight at once."""
    monkeypatch.chdir(damaged.parent)
    for executor in ("local", "ray"):
        score(
            models / "blur", Path(damaged.name), tmp_path / f"{executor}.csv", "--executor", executor,
            "--heatmaps", tmp_path / executor, "--skip-bad", "--batch", 5, "--json",
        )  # fmt: skip
    assert not ray.is_initialized()
    said = capsys.readouterr()
    first, second = (json.loads(line) for line in said.out.splitlines())
    assert first | {"out": ""} == second | {"out": ""}
    lines = said.err.splitlines()
    assert any(line.startswith("skipped: ") for line in lines)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    local, on_ray = rows(tmp_path / "local.csv"), rows(tmp_path / "ray.csv")
    assert [r[0] for r in local] == [r[0] for r in on_ray]
    for a, b in zip(local[1:], on_ray[1:], strict=True):
        assert float(a[1]) == pytest.approx(float(b[1]), rel=1e-6, abs=1e-6)
    assert sorted(os.listdir(tmp_path / "local")) == sorted(os.listdir(tmp_path / "ray"))


def test_ray_names_a_bad_file_and_leaves_a_running_ray_alone(models, damaged, tmp_path, capsys):
    ray.init(address="local", num_cpus=1, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        argv = (models / "gradient", damaged, tmp_path / "s.csv", "--batch", 2)
        assert refused(capsys, *argv, "--executor", "ray") == refused(capsys, *argv)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
