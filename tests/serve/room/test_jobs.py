"""Trainings as processes and files: one at a time, stopped, killed with their server, and gone on with."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from quick_drop import HELPERS, QUICK, Drop, until

from dia.core.running import stopping
from dia.core.storage import owned
from dia.serve.limits import Refused
from dia.serve.room.train.child import Child
from dia.serve.room.train.jobs import Checked, Jobs
from dia.serve.room.train.normals import Source


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The file that holds quick trainings up while it is there."""
    file = tmp_path / "gate"
    monkeypatch.setenv("QUICK_GATE", str(file))
    monkeypatch.setattr(Child, "command", QUICK)
    return file


@pytest.fixture
def jobs(gate, tmp_path):
    made = Jobs(tmp_path / "runs")
    yield made
    made.close()


def checked(jobs, tmp_path, name="drop", **source):
    made = Checked(Drop(tmp_path / name))
    jobs.check(made, Source("drop", **source), "dia+", 0.05)
    until(lambda: jobs.child is None)
    return made


def test_a_drop_is_trained_on_under_numbers_and_its_names_never_reach_the_disk(jobs, tmp_path):
    one = checked(jobs, tmp_path, leave_out=("00001",))
    assert one.result["images"] == 3
    jobs.start(one, "first")
    until(lambda: jobs.child is None)
    assert jobs.state("first", jobs.facts("first")) == "done"
    kept = sorted(
        str(p.relative_to(jobs.normals_of("first"))) for p in jobs.normals_of("first").rglob("*.png")
    )
    assert kept == ["00000-00000.png", "00000-00002.png", "00000-00004.png"]
    assert jobs.normals_of("first").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "drop").exists()
    for path in (tmp_path / "runs").rglob("*"):
        assert "Jane" not in str(path)
        assert path.is_dir() or b"Jane" not in path.read_bytes()
    stage, curve = jobs.curve("first")
    assert stage == "encoder"
    assert [curve[0], curve[-1]] == [[1, 1], [20, 1 / 20]]


def test_one_at_a_time_and_no_name_twice(jobs, gate, tmp_path):
    one, two = checked(jobs, tmp_path, "a"), checked(jobs, tmp_path, "b")
    gate.touch()
    jobs.start(one, "first")
    with pytest.raises(Refused, match="under way") as refused:
        jobs.start(two, "second")
    assert refused.value.status == 409
    with pytest.raises(Refused, match="under way"):
        jobs.check(two, two.source, "dia+", 0.05)
    with pytest.raises(Refused, match="under way"):
        jobs.delete("first")
    gate.unlink()
    until(lambda: jobs.child is None)
    with pytest.raises(Refused, match="already"):
        jobs.start(two, "first")
    jobs.start(two, "second")  # what was refused before has lost nothing
    until(lambda: jobs.child is None)
    assert [*jobs.names()] == ["first", "second"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "x.normals", "-x", "a b", "<b>", "ä", "a\n", "a\0", "x" * 61],
)
def test_no_name_of_a_run_is_a_path(jobs, tmp_path, name):
    one = checked(jobs, tmp_path)
    with pytest.raises(Refused) as refused:
        jobs.start(one, name)
    assert refused.value.status == 422
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "drop" / "00000" / "00000.png").exists()


def test_a_training_that_is_stopped_goes_on_where_it_was(jobs, gate, tmp_path):
    one = checked(jobs, tmp_path)
    gate.touch()
    jobs.start(one, "first")
    until(lambda: owned(jobs.runs / "first"))
    jobs.stop()
    until(lambda: jobs.child is None)
    facts = jobs.facts("first")
    assert (jobs.state("first", facts), facts["problem"]) == ("stopped", None)
    gate.unlink()
    jobs.resume("first")
    until(lambda: jobs.child is None)
    assert jobs.state("first", jobs.facts("first")) == "done"
    with pytest.raises(Refused, match="nothing to go on with"):
        jobs.resume("first")


def test_a_failure_is_kept_with_its_reason_and_can_be_tried_again(jobs, tmp_path, monkeypatch):
    one = checked(jobs, tmp_path)
    monkeypatch.setenv("QUICK_FAILS", "1")
    jobs.start(one, "first")
    until(lambda: jobs.child is None)
    again = Jobs(jobs.runs)  # a server that starts anew
    facts = again.facts("first")
    assert again.state("first", facts) == "failed"
    assert "lower the learning rate" in facts["problem"]
    monkeypatch.delenv("QUICK_FAILS")
    again.resume("first")
    until(lambda: again.child is None)
    assert again.state("first", again.facts("first")) == "done"


def test_a_process_that_dies_is_a_failure_and_one_that_was_stopped_is_none(jobs, gate, tmp_path):
    one = checked(jobs, tmp_path)
    gate.touch()
    jobs.start(one, "first")
    until(lambda: owned(jobs.runs / "first"))
    os.killpg(jobs.child.process.pid, signal.SIGKILL)
    until(lambda: jobs.child is None)
    facts = jobs.facts("first")
    assert (jobs.state("first", facts), "memory" in facts["problem"]) == ("failed", True)


def test_the_child_has_no_token_and_no_socket_of_the_server(jobs, gate, tmp_path, monkeypatch):
    import socket

    monkeypatch.setenv("DIA_TOKEN", "secret")
    one = checked(jobs, tmp_path)
    gate.touch()
    with socket.create_server(("127.0.0.1", 0)):
        jobs.start(one, "first")
        pid = jobs.child.process.pid
        until(lambda: owned(jobs.runs / "first"))
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [name for name in opened if name.startswith("socket:")]
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert os.getpgid(pid) == pid != os.getpgid(0)


def test_what_is_stopped_while_it_is_checked_leaves_the_drop_with_its_session(jobs, tmp_path):
    one = Checked(Drop(tmp_path / "drop"))
    jobs.check(one, Source("drop"), "dia+", 0.05)
    one.close()
    assert jobs.child is None
    assert not (tmp_path / "drop").exists()
    assert one.result is None


def test_damaged_facts_and_strange_files_among_the_runs_harm_nothing(jobs, tmp_path):
    jobs.runs.mkdir()
    for name, data in {"a.job.json": b"{", "b.job.json": b"[]", "c d.job.json": b"{}", ".x": b""}.items():
        (jobs.runs / name).write_bytes(data)
    (jobs.runs / "folder").mkdir()
    assert [*jobs.names()] == ["a", "b"]
    assert jobs.facts("a") is None
    assert jobs.state("b", jobs.facts("b")) == ""
    with pytest.raises(Refused):
        jobs.resume("a")
    jobs.delete("a")
    assert not (jobs.runs / "a.job.json").exists()


SERVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {helpers!r})
from quick_drop import Drop, QUICK
from dia.serve.room.train.child import Child
from dia.serve.room.train.jobs import Checked, Jobs
from dia.serve.room.train.normals import Source
Child.command = QUICK
jobs, drop = Jobs(Path(sys.argv[1])), Drop(Path(sys.argv[2]))
one = Checked(drop)
jobs.check(one, Source("drop"), "dia+", 0.05)
while jobs.child: time.sleep(0.001)
print("checked", flush=True)
jobs.start(one, sys.argv[3])
print("answered", flush=True)
time.sleep(100)
"""


def test_eight_kills_lose_nothing_that_was_answered(gate, tmp_path):
    draw, runs = random.Random(3), tmp_path / "runs"
    script = SERVER.format(helpers=str(HELPERS))
    for turn in range(8):
        name = f"run{turn}"
        server = subprocess.Popen(
            [sys.executable, "-c", script, str(runs), str(tmp_path / f"drop{turn}"), name],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout.readline() == b"checked\n"
        answered = b""
        if turn % 4:  # the others are killed while they start
            answered = server.stdout.readline()
            seen = until(lambda: (runs / f".{name}.work" / "step").exists() or (runs / name).exists())  # noqa: B023
            assert seen
            for _ in range(draw.randrange(3000)):
                pass
        server.kill()
        answered += server.stdout.read()
        server.wait()
        until(lambda: not owned(runs / name))  # its training hears that it is gone  # noqa: B023
        jobs = Jobs(runs)
        facts = jobs.facts(name)
        if answered:
            assert facts is not None
            assert len([*jobs.normals_of(name).rglob("*.png")]) == 6
        if facts is None or not jobs.normals_of(name).exists():
            continue
        state = jobs.state(name, facts)
        assert state in ("stopped", "done")
        if state == "stopped":
            jobs.resume(name)
            until(lambda: jobs.child is None)  # noqa: B023
        assert jobs.state(name, jobs.facts(name)) == "done"
        assert json.loads((runs / name / "config.json").read_text())["n_train"] == 6


def test_bars_hear_the_wish_to_stop_and_are_watched():
    from dia.core.running.progress import Bar, watched

    moves = []
    with watched(lambda bar, done: moves.append((bar.title, done, bar.total))), Bar("Work", 3) as bar:
        bar.update(1)
        stopping.ask()
        try:
            with pytest.raises(stopping.Stopped):
                bar.update(2)
        finally:
            stopping._wish.clear()
    assert moves == [("Work", 0, 3), ("Work", 1, 3)]
