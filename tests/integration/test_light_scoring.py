"""Scoring with an exported file in processes of its own: it takes no torch, and no other large library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images
from PIL import Image

from benchmarks.robustness.fuzz_cases import small_onnx
from dia.cli.main import main

pytest.importorskip("onnx")
ROOT = Path(__file__).parents[2]
BLOCKED = (
    "torch", "lightning", "diffusers", "kornia", "sklearn", "scipy", "skimage", "safetensors", "jinja2",
    "onnx", "onnxscript", "docstring_parser",
)  # fmt: skip
WITHOUT = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from dia.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(small_onnx())
    return path


def test_scoring_with_the_file_takes_no_torch_and_writes_the_same(model, tmp_path):
    (tmp_path / "in").mkdir()
    for i, image in enumerate(smooth_images(5, 20, 31)):
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    words = f"score {model} {tmp_path}/in --skip-bad --batch 2 --json --out {tmp_path}".split()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words[:-1], f"{tmp_path}/a.csv"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 5
    main([*words[:-1], f"{tmp_path}/b.csv"])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
def test_a_fresh_environment_scores_with_the_light_libraries_alone(model, tmp_path):
    """As docs/howto/export.md says: the wheel without its dependencies, and those named there."""
    page = (ROOT / "docs/howto/export.md").read_text()
    light = page.split("pip install ")[2].splitlines()[0].split()
    python = tmp_path / "env/bin/python"
    for command in (
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            ROOT,
        ],
        [sys.executable, "-m", "venv", tmp_path / "env"],
        [python, "-m", "pip", "install", "-q", *light],
    ):
        subprocess.run(list(map(str, command)), check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    np.savez(tmp_path / "d.npz", test_images=smooth_images(6, 30, 30)[..., 0])
    done = subprocess.run(
        [tmp_path / "env/bin/dia", "score", model, "d.npz", "--json"],
        cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 6
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
