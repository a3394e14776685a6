"""The container image: its packages are those that are needed, and it is built of files that are there."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXTRAS = re.search(r'ARG EXTRAS="(.*)"', DOCKERFILE)[1].split()
CUDA = {"torch", "triton", "cuda-bindings", "cuda-toolkit"}


def runtime(*arguments):
    command = [sys.executable, ".ci/runtime.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def packages(*arguments):
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", runtime(*arguments), re.M)}


def asked_by(name):
    for line in metadata.requires(name) or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            yield canonicalize_name(wanted.name)


@pytest.mark.parametrize(
    "arguments", [EXTRAS, [*EXTRAS, "--without-cuda"], ["--packages", "hatchling"]], ids=str
)
def test_every_package_has_what_it_needs(arguments):
    found = packages(*arguments)
    left_out = CUDA if "--without-cuda" in arguments else set()
    assert not found & left_out
    for name in found:
        try:
            missing = {*asked_by(name)} - found - left_out
        except metadata.PackageNotFoundError:  # of another system or Python
            continue
        assert not missing, name
    if "--packages" not in arguments:
        assert "pytest" not in found
        assert "ray" not in found


def test_every_line_has_its_hashes():
    lines = runtime(*EXTRAS)
    assert len(re.findall(r"^[\w.-]+==.*\\\n +--hash=sha256:", lines, re.M)) == len(
        re.findall(r"^\S+==", lines, re.M)
    )
    assert runtime("--version-of", "torch").strip() in (ROOT / "requirements.lock").read_text()


def test_the_image_is_built_of_files_that_are_there_and_runs_without_root():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])
    let_in = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"
    }
    copied = {
        name for words in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for name in words.split()
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert int(re.search(r"^USER (\d+):", last, re.M)[1]) > 0
    assert last.index("USER") < last.index("ENTRYPOINT")
