"""Processes that are killed: a grid, a fit and a score go on to what an undisturbed one would have made."""

import os
import random
import signal
import subprocess
import sys

import pytest
from conftest import smooth_images
from PIL import Image
from scoring import score

from dia.benchmark.grid import Job
from dia.benchmark.runner import Paths, _result
from dia.benchmark.workers import Process
from dia.cli.main import main
from dia.detectors import METHODS
from grids import benchmark, compared, lines_of, two_sets

WITH_ENCODER = [
    "--method", "dia", "--settings.dissolver.steps", "8", "--settings.dissolver.widths", "[8,16]",
    "--settings.amplify.steps", "5", "--settings.amplify.width", "4", "--settings.amplify.batch", "4",
    "--settings.samples", "1",
]  # fmt: skip
KILLED_GRID = """
import os, signal, sys
from dia.benchmark import runner
from dia.cli.main import main

wait, left = runner.wait, [int(sys.argv[1])]

def dies(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)  # its workers are not told
    return wait(*args)

runner.wait = dies
main(sys.argv[2:])
"""
KILLED_FIT = """
import os, signal, sys
from dia.amplify import contrast
from dia.cli.main import main
from dia.dissolve import dissolver
from dia.core.running.loop import train

train.__kwdefaults__["checkpoint_every"] = 2
stages = {"dissolver": (dissolver._Training, 5), "encoder": (contrast.ContrastiveTraining, 3)}
module, at = stages[sys.argv[1]]
step = module.training_step

def dies(self, batch, index):
    if self.global_step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)

module.training_step = dies
main(sys.argv[2:])
"""
KILLED_SCORE = """
import os, signal, sys
from dia.cli.main import main
from dia.detectors import Detector

detect, calls = Detector.detect, []

def dies(self, images, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return detect(self, images, **kwargs)

Detector.detect = dies
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


def test_a_grid_killed_at_a_random_moment_loses_nothing_and_runs_nothing_twice(root, tmp_path, capsys):
    alone = tmp_path / "alone"
    main(benchmark(root, alone))
    waits = random.randrange(2, 7)  # with two jobs at work, after some or no lines
    command = [sys.executable, "-c", KILLED_GRID, str(waits), *benchmark(root, tmp_path, workers=2)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    seen = lines_of(tmp_path)
    main(benchmark(root, tmp_path))
    lines = lines_of(tmp_path)
    assert lines[: len(seen)] == seen
    assert len({(line["dataset"], line["method"], line["seed"]) for line in lines}) == len(lines) == 12
    assert compared(tmp_path) == compared(alone)
    before = (tmp_path / "l.jsonl").read_bytes()
    capsys.readouterr()
    main(benchmark(root, tmp_path))
    assert (tmp_path / "l.jsonl").read_bytes() == before
    assert capsys.readouterr().err.count("in the ledger") == 12


def test_two_grids_at_once_share_the_work(root, tmp_path):
    command = [sys.executable, "-m", "dia", *benchmark(root, tmp_path, datasets=["breastmnist"])]
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in both] == [0, 0]
    assert len(lines_of(tmp_path)) == 6


def test_a_worker_that_dies_is_a_reason_and_the_next_job_has_a_new_one(root, tmp_path):
    worker = Process(1)
    paths = Paths(str(tmp_path / "l"), str(tmp_path / "s"), str(tmp_path / "w"), str(root), "cpu")
    job = Job("breastmnist", "trivial:std", 0, "cpu")
    try:
        broken = worker.submit(Job("breastmnist", "dia+", 0, "cpu"), paths)
        assert worker.memory_mb() > 50
        os.kill(worker.pid, signal.SIGKILL)
        assert "died" in _result(broken).reason
        assert worker.submit(job, paths).result().line["method"] == "trivial:std"
    finally:
        worker.kill()


@pytest.fixture(scope="module")
def whole(served_run, tmp_path_factory):
    """The weights of a fit that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    main(["fit", str(served_run.data), "--out", str(out), *WITH_ENCODER])
    return (out / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("stage", ["dissolver", "encoder"])
def test_a_fit_killed_at_once_resumes_to_the_same_weights(served_run, whole, tmp_path, stage):
    out = tmp_path / "killed"
    fit = ["fit", str(served_run.data), "--out", str(out), *WITH_ENCODER]
    command, environment = (
        [sys.executable, "-c", KILLED_FIT, stage, *fit],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists()
    assert list(tmp_path.rglob("last.ckpt"))
    main([*fit, "--resume"])
    assert (out / "weights.safetensors").read_bytes() == whole


def test_a_score_killed_at_once_goes_on_to_the_same_file(tmp_path):
    model, scans = (
        METHODS["trivial:gradient"]().fit(smooth_images(40)).save(tmp_path / "model"),
        tmp_path / "scans",
    )
    scans.mkdir()
    for i, image in enumerate(smooth_images(30, seed=2)):
        Image.fromarray(image[..., 0]).save(scans / f"{i:02}.png")
    argv = ["score", model, scans, "--out", tmp_path / "s.csv", "--batch", 8, "--workers", 1]
    command = [sys.executable, "-c", KILLED_SCORE, *map(str, argv)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "s.csv").exists()
    assert len((tmp_path / ".s.csv.part").read_text().splitlines()) == 1 + 2 * 8
    score(model, scans, tmp_path / "s.csv", "--resume")
    score(model, scans, tmp_path / "whole.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
