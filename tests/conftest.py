"""What several test files share: small smooth images, one tiny trained dissolver, no network."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing model must fail at once, not look for a hub

if "PYTEST_XDIST_WORKER" in os.environ:  # beside another: what is started takes one core, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from scipy import ndimage

SEED = int(os.environ.get("DIA_TEST_SEED", 0))  # others draw other images, and first weights in test_fourteen
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # the models here are tiny: more threads only wait for each other
settings.register_profile("dia", deadline=None, derandomize=True)
settings.load_profile("dia")


def smooth_images(n=24, h=16, w=None, c=1, seed=0):
    """`(n, h, w, c)` uint8: blurred noise stretched to 0–255, so neighbouring pixels agree."""
    noise = np.random.default_rng([seed, SEED] if SEED else seed).normal(size=(n, h, w or h, c))
    soft = ndimage.gaussian_filter(noise, (0, 2, 2, 0), mode="wrap")
    low, high = soft.min((1, 2, 3), keepdims=True), soft.max((1, 2, 3), keepdims=True)
    return np.rint((soft - low) / (high - low) * 255).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def key_of_the_tests(tmp_path_factory):
    """The key that seals one's own models lies in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def make_images():
    return smooth_images


@pytest.fixture(scope="session")
def tiny_settings():
    from dia.dissolve import DissolverSettings

    return DissolverSettings(size=16, patch=2, widths=(8, 16), steps=8, batch=4)


@pytest.fixture(scope="session")
def tiny_dissolver(tiny_settings, tmp_path_factory):
    """A dissolver after 8 steps on 24 grey images of 16 px: its output is poor, its arithmetic is real."""
    from dia.dissolve import Dissolver

    dissolver = Dissolver(tiny_settings, seed=1, device="cpu")
    return dissolver.fit(smooth_images(), workdir=tmp_path_factory.mktemp("tiny"))


class Served(NamedTuple):
    """A model as `dia fit` leaves it, and the files it was fitted on."""

    run: Path  # dia+ on 32 px grey phantoms, after a few steps
    data: Path  # train/good, test/good and test/LESION, of PNGs


@pytest.fixture(scope="session")
def served_run(tmp_path_factory):
    """What can be served: the model's scores are poor, everything about it is real."""
    from dia.cli.main import main
    from dia.data import phantoms

    root = tmp_path_factory.mktemp("served")
    for split, n in (("train", 40), ("test", 12)):
        images = phantoms.load(split, size=32, n=n)
        for image, label, name in zip(images.images, images.labels, images.names, strict=True):
            kind, number = name.split("/")
            file = root / "data" / split / (kind if label else "good") / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(file)
    tiny = [
        "--settings.dissolver.kind", "diffusion", "--settings.dissolver.steps", "4",
        "--settings.dissolver.widths", "[8,16]", "--false_alarm_rate", "0.2",
    ]  # fmt: skip
    main(["fit", str(root / "data"), "--out", str(root / "run"), "--device", "cpu", *tiny])
    return Served(root / "run", root / "data")


@pytest.fixture(scope="session")
def inferencer(served_run):
    from dia.deploy.predictor import Inferencer

    return Inferencer(served_run.run, device="cpu", normals=str(served_run.data))


@pytest.fixture(scope="session")
def files(served_run):
    return sorted((served_run.data / "test").rglob("*.png"))


@pytest.fixture(scope="session")
def images(inferencer, files):
    return inferencer.read(files).images(inferencer.shape)


@pytest.fixture(scope="module")
def no_network():
    """Whatever opens a connection or asks for a name fails: nothing is fetched that nobody asked for."""

    def refused(*_, **__):
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("getaddrinfo", "create_connection"):
            patch.setattr(socket, name, refused)
        patch.setattr(socket.socket, "connect", refused)
        yield


@pytest.fixture
def page(inferencer, served_run, tmp_path):
    """A reading room with a small model, and a file of marks of its own."""
    from reading_room import make_page

    made = make_page(inferencer, served_run.run, tmp_path / "marks.sqlite")
    yield made
    made.room.sessions.close()
    made.room.current.close()
