"""Model folders as files: facts are text, numbers are finite, and a folder is whole or is none."""

import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dia.core import modelfiles
from dia.core.errors import DataError
from dia.core.modelfiles import ModelFiles, check_facts, written

FACTS = {
    "dataset": "scans/normal", "preset": "cpu", "train_sha256": "0" * 64, "weights": "none", "commit": None,
    "device": "cpu", "cpu_count": 2, "versions": {"torch": "2.11", "timm": None}, "range": [0, 255.0],
    "read": {"split": "train", "normal": None, "window": "40,400", "data_root": None, "contamination": 0},
    "calibrated": {"on": "site", "images": 40, "flagged_before": 0.1}, "adapted": {"batch": [32, 8]},
}  # fmt: skip


def test_facts_as_they_are_written_are_kept_and_others_beside_them():
    assert check_facts(FACTS) == FACTS
    assert check_facts({"of the site": [1, "x", {"a": None}]}) == {"of the site": [1, "x", {"a": None}]}
    assert check_facts({"dataset": "a\x1b[2J\nb\ud800"}) == {"dataset": r"a\x1b[2J\nb\ud800"}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"dataset": ["/"]}, "facts.dataset"), ({"dataset": 3}, "facts.dataset"),
        ({"read": []}, "facts.read"),
        ({"read": {"window": {}}}, "facts.read.window"), ({"read": {"split": 1}}, "facts.read.split"),
        ({"read": {"contamination": "0"}}, "facts.read.contamination"), ({"range": [0]}, "facts.range"),
        ({"versions": "2.11"}, "facts.versions"), ({"calibrated": {"on": None}}, "facts.calibrated.on"),
        ({"train_sha256": 10**30}, "facts.train_sha256"), ({"range": [0, 10**30]}, "facts.range"),
        ({"more": "x" * 5000}, "short text"), ({"more": [[[[["deep"]]]]]}, "short text"),
        ({"more": 2**70}, "short text"), ({"more": float("nan")}, "short text"),
    ],
)  # fmt: skip
def test_facts_of_another_type_are_one_line(facts, named):
    with pytest.raises(DataError, match=named) as error:
        check_facts(facts)
    assert str(error.value).isprintable()


def tensors(folder, kind, data):
    """A safetensors file of one tensor of bytes, as no library would write it."""
    size = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I32": 4, "F8_E5M2": 1}[kind]
    header = json.dumps(
        {"x": {"dtype": kind, "shape": [len(data) // size], "data_offsets": [0, len(data)]}}
    ).encode()
    (folder / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return ModelFiles(folder)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch, kind, wrong):
    monkeypatch.setattr(modelfiles, "_AT_ONCE", 4)  # so that there are several parts
    x = np.linspace(-3e4, 3e4, 11)

    def as_bytes(values):
        if kind == "BF16":  # the upper half of 32 bits
            return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind]).tobytes()

    assert tensors(tmp_path, kind, as_bytes(x)).weights("weights.safetensors")
    for place in (0, 5, 10):
        other = x.copy()
        other[place] = wrong
        with pytest.raises(DataError, match=r"weights\.safetensors: x holds NaN or infinity"):
            tensors(tmp_path, kind, as_bytes(other)).weights("weights.safetensors")


def test_whole_numbers_are_finite_and_too_short_ones_are_refused(tmp_path):
    assert tensors(tmp_path, "I32", b"\xff" * 16).weights("weights.safetensors")
    with pytest.raises(DataError, match="of a type that no fit has"):
        tensors(tmp_path, "F8_E5M2", b"\x7f" * 4).weights("weights.safetensors")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' + "1" * 5000 + "}", '{"a": NaN}', "{", "\xff"])
def test_json_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.json is no JSON that can be read"):
        ModelFiles(tmp_path).json("a.json")


def test_a_folder_of_many_files_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(modelfiles, "MAX_ENTRIES", 3)
    for i in range(4):
        (tmp_path / str(i)).touch()
    with pytest.raises(DataError, match="more than 3 files"):
        ModelFiles(tmp_path)


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def fill(new):
    (new / "config.json").write_text("{}")
    (new / "part").mkdir()
    save_file({"x": np.zeros(3)}, new / "part" / "weights.safetensors")  # which makes it 0600


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_who_may_read_a_folder_may_read_all_in_it_as_the_umask_says(tmp_path, mask):
    with umask(mask), written(tmp_path / "run") as new:
        fill(new)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_a_folder_that_fails_leaves_the_one_before(tmp_path):
    with written(tmp_path / "run") as new:
        fill(new)

    def fails():
        with written(tmp_path / "run") as new:
            (new / "config.json").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "config.json").read_text() == "{}"


def test_what_a_killed_save_left_is_no_model_and_is_taken_away_by_the_next(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom dia.core.modelfiles import written\n"
        "with written(Path(sys.argv[1])) as new:\n"
        "    (new / 'weights.safetensors').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")])
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    (left,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert left.name.startswith(".run-")
    assert not (left / "config.json").exists()  # by which every command knows a model
    (tmp_path / ".run-kept").mkdir()  # a name of someone's own
    (tmp_path / ".run-0123abcd").mkdir()  # without the lock of a process that ended
    killed = "a save that was killed had left it"
    with pytest.warns(UserWarning, match=killed), written(tmp_path / "run") as new:
        fill(new)
    assert {p.name for p in tmp_path.iterdir()} == {"run", ".run-kept", ".run-0123abcd"}


def test_a_save_that_goes_on_elsewhere_is_left_alone(tmp_path):
    with written(tmp_path / "run") as first:
        fill(first)
        with written(tmp_path / "run") as second:
            fill(second)
        assert first.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_link_to_a_folder_stays_and_the_folder_behind_it_is_replaced(tmp_path):
    (tmp_path / "models" / "old").mkdir(parents=True)
    (link := tmp_path / "latest").symlink_to("models/old")
    with written(link) as new:
        fill(new)
    assert link.is_symlink()
    assert (tmp_path / "models" / "old" / "config.json").exists()
    assert sorted(p.name for p in (*tmp_path.iterdir(), *(tmp_path / "models").iterdir())) == [
        "latest", "models", "old",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_a_folder_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, name):
    (inner := tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(inner)
    whole = (inner / name).resolve()
    with pytest.raises(DataError, match=f"name it from outside, as {whole}$"), written(Path(name)):
        raise AssertionError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", inner]


def test_names_as_long_as_they_may_be(tmp_path):
    run = tmp_path / ("é" * 127)  # 254 bytes
    with written(run) as new:
        fill(new)
    assert (run / "config.json").exists()
