"""Full disks, and outputs that another process writes: one line names file and remedy, nothing is lost."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from dia.cli import main as cli
from dia.core.errors import DataError, system_error
from dia.core.storage import Owner, replace_folder, reserve
from dia.dissolve import DissolverSettings, bank
from dia.dissolve.controls import Control


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_remedy(number):
    error = OSError(number, os.strerror(number))
    assert system_error(error, "runs/a") == (
        f"runs/a: {os.strerror(number)}; make room there: the same command goes on with a grid, and with "
        "--resume a fit or a score"
    )
    error.filename = "/x/bank.npy"
    assert system_error(error, "runs/a").startswith("/x/bank.npy: ")


def test_what_safetensors_and_torch_say_of_a_full_disk_is_understood():
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    torch = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 4160 vs 4054")
    for error in (
        rust,
        torch,
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ):
        assert system_error(error, "runs/a").startswith("runs/a: No space left on device; make room")


def test_a_read_only_folder_is_told_and_other_errors_are_not_swallowed():
    assert system_error(OSError(errno.EROFS, "x", "/ro/m")) == (
        "/ro/m: Read-only file system; choose a folder that can be written"
    )
    assert system_error(OSError("no number")) == "no number"
    assert system_error(ValueError("PyTorch is not at fault")) == ""


def test_the_command_says_one_line(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dia.data.readers.Listing.read", full)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "phantom", "--out", "runs/a"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("dia: runs/a: No space left on device; make room there")


def test_a_bank_for_which_there_is_no_room_is_an_error_and_no_crash(tmp_path, make_images, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "x")

    control = Control(DissolverSettings(kind="median"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*bank\.npy"):
        bank.DissolvedBank.build(make_images(4), control, (30,), tmp_path / "bank.npy")
    monkeypatch.undo()  # there is room now
    made = bank.DissolvedBank.build(make_images(4), control, (30,), tmp_path / "bank.npy")
    np.testing.assert_array_equal(made.array[:, 0], control.dissolve(make_images(4), (30,)))


def test_room_is_taken_before_it_is_written(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    before = path.stat().st_blocks
    reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20 > before * 512
    assert path.read_bytes() == bytes(1 << 20)


def test_a_limit_of_the_system_is_met_as_an_error(tmp_path):
    code = (
        "import numpy as np, sys; from dia.core.storage import replace_folder, reserve; "
        "np.lib.format.open_memmap(sys.argv[1], 'w+', np.uint8, (200, 100)).flush(); reserve(sys.argv[1])"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.npy"], capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr


class Killed(BaseException):
    """No error that anything expects."""


@pytest.mark.parametrize("stop", range(4))
def test_a_model_that_is_replaced_is_there_whole_whenever_the_process_ends(tmp_path, monkeypatch, stop):
    folder, new = tmp_path / "model", tmp_path / ".model-new"
    for where, text in ((folder, "old"), (new, "new")):
        where.mkdir()
        for name in "ab":
            (where / name).write_text(text)
    calls = []

    def dying(function):
        def inner(*args, **kwargs):
            calls.append(function)
            if len(calls) > stop:
                raise Killed
            return function(*args, **kwargs)

        return inner

    for place, name in ((Path, "rename"), (os, "unlink"), (shutil, "rmtree")):
        monkeypatch.setattr(place, name, dying(getattr(place, name)))
    with pytest.raises(Killed):
        replace_folder(new, folder)
    monkeypatch.undo()
    whole = [{p.read_text() for p in d.iterdir()} for d in tmp_path.iterdir() if len(list(d.iterdir())) == 2]
    if stop == 1:  # between the two renames
        assert not folder.exists()
        assert sorted(map(min, whole)) == ["new", "old"]
    else:
        assert {p.read_text() for p in folder.iterdir()} == {"old" if stop == 0 else "new"}
        assert len(list(folder.iterdir())) == 2


def test_a_model_that_cannot_be_replaced_stays(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", folder)
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# --- one owner ----------------------------------------------------------------------------------------

OWNING = """
import sys
from pathlib import Path
from dia.core.storage import Owner

with Owner(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""

COUNTING = """
import sys
from pathlib import Path
from dia.core.errors import DataError
from dia.core.storage import Owner

counter, counted = Path(sys.argv[1]), 0
while counted < 50:
    try:
        with Owner(counter) as owner:
            counter.write_text(str(int(counter.read_text()) + 1))
            owner.check()
        counted += 1
    except DataError as error:
        assert "is writing it" in str(error), error
"""


def test_an_output_has_its_owner_while_that_process_lives_even_stalled(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", OWNING, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(DataError, match=rf"out: `-c .*\(process {process.pid} on .* is writing it"):
            Owner(out)
        process.kill()
        process.wait()
        assert os.listdir(tmp_path) == [".out.lock"]  # it could not clear up
        with Owner(out) as owner:
            owner.check()
    assert not os.listdir(tmp_path)


def test_of_many_processes_one_at_a_time_owns_an_output(tmp_path):
    (tmp_path / "n").write_text("0")
    many = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path / "n")]) for _ in range(4)]
    assert [process.wait() for process in many] == [0] * 4
    assert (tmp_path / "n").read_text() == "200"
    assert os.listdir(tmp_path) == ["n"]


def test_without_locks_the_first_notices_that_it_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Owner(tmp_path / "out") as first, Owner(tmp_path / "out") as second:
        with pytest.raises(DataError, match=rf"taken over by .*process {os.getpid()}"):
            first.check()
        first.release()  # takes nothing from the second
        second.check()
    assert not os.listdir(tmp_path)
