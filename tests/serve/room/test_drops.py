"""Uploads in pieces: numbered files in a closed folder, bounded, and gone when nobody wants them."""

import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest

from dia.serve.limits import Deadline, Limits, Refused
from dia.serve.room import drops as module
from dia.serve.room.drops import IDLE, Drops
from dia.serve.sessions import Sessions


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Drops of each test lie in a folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_HELD", [])


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def late(seconds=60.0):
    return Deadline(seconds)


def sent(*files):
    return [(name, io.BytesIO(data)) for name, data in files]


def zipped(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in members:
            packed.writestr(name, data)
    return buffer.getvalue()


def on_disk(tmp_path):
    return [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"]


def test_files_lie_under_numbers_in_one_folder_for_each_of_the_clients(tmp_path):
    drops = Drops(Limits())
    id = drops.new()
    drops.add(id, sent(("Meyer^Anna/CT/1.dcm", b"a"), ("loose.png", b"b")), late())
    drops.add(id, sent(("Meyer^Anna/CT/2.dcm", b"c"), ("Meyer^Anna/MR/1.nii.gz", b"d")), late())
    drop = drops.take(id)
    assert drop.names == {
        "00000/00000.dcm": "Meyer^Anna/CT/1.dcm", "00001/00001.png": "loose.png",
        "00000/00002.dcm": "Meyer^Anna/CT/2.dcm", "00002/00003.nii.gz": "Meyer^Anna/MR/1.nii.gz",
    }  # fmt: skip
    assert {n: (drop.folder / n).read_bytes() for n in drop.names} == dict(
        zip(drop.names, (b"a", b"b", b"c", b"d"), strict=True)
    )
    assert drop.client_folder("00000") == "Meyer^Anna/CT"
    assert drop.client_folder("00001") == ""
    every = list(tmp_path.rglob("*"))
    assert not any("Meyer" in str(p) or "loose" in str(p) for p in every)
    folders = [p for p in every if p.is_dir()]
    assert {p.stat().st_mode & 0o077 for p in folders} == {0}
    drop.close()
    assert on_disk(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b.png",
        "..\\..\\b.png",
        "C:\\Windows\\a.png",
        "\x00\na.png",
        "",
    ],
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    drops = Drops(Limits())
    id = drops.new()
    drops.add(id, sent((name, b"x")), late())
    drop = drops.take(id)
    (number,) = drop.names
    assert number.startswith("00000/00000")
    assert [p.read_bytes() for p in on_disk(tmp_path)] == [b"x"]
    assert ".." not in drop.names[number]
    assert drop.names[number].isprintable()


def test_a_zip_is_unpacked_with_its_folders_and_its_links_are_no_links(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    data = zipped(("s1/1.dcm", b"a"), ("../../s2/1.dcm", b"b"), (link, b"/etc/passwd"), (".hidden", b"c"))
    drops = Drops(Limits())
    id = drops.new()
    drops.add(id, sent(("case 7/all.zip", data)), late())
    drop = drops.take(id)
    assert list(drop.names.values()) == ["case 7/s1/1.dcm", "case 7/s2/1.dcm", "case 7/link.png"]
    assert not any(p.is_symlink() for p in drop.folder.rglob("*"))
    assert (drop.folder / list(drop.names)[2]).read_bytes() == b"/etc/passwd"


def test_what_dia_wrote_is_left_out_with_a_word(tmp_path):
    drops = Drops(Limits())
    id = drops.new()
    packed = zipped(("b/2.FINDINGS.dcm", b"x"), ("b/2.dcm", b"x"))
    ours = ("a/1.png.heatmap.npy", b"x"), ("a/1.findings.nii.gz", b"x")
    drops.add(id, sent(*ours, ("a/heatmap.npy", b"x"), ("c.zip", packed)), late())
    drop = drops.take(id)
    assert list(drop.names.values()) == ["a/heatmap.npy", "b/2.dcm"]
    names = ("1.png.heatmap.npy", "1.findings.nii.gz", "b/2.FINDINGS.dcm")
    assert drop.problems == [(name, "written by dia, no scan") for name in names]
    assert len(on_disk(tmp_path)) == 2
    drops.close()


def test_hidden_files_are_left_out_without_a_word(tmp_path):
    drops = Drops(Limits())
    id = drops.new()
    kept = drops.add(id, sent((".DS_Store", b"x"), ("a/.git/config", b"y"), ("a/b.png", b"z")), late())
    assert (list(kept.names.values()), kept.problems) == (["a/b.png"], [])


def test_a_drop_is_known_to_its_session_alone():
    sessions = Sessions()
    mine, theirs = (Drops.of(sessions.open()) for _ in range(2))
    id = mine.new()
    for ask in (lambda: theirs.add(id, [], late()), lambda: theirs.take(id)):
        with pytest.raises(Refused) as refused:
            ask()
        assert refused.value.status == 404
    theirs.cancel(id)
    mine.take(id).close()


def test_what_is_left_alone_is_deleted_by_any_request_and_by_the_watch(tmp_path):
    clock = Clock()
    drops = Drops(Limits(), clock)
    first, second = drops.new(), drops.new()
    drops.add(first, sent(("a", b"x")), late())
    clock.now = IDLE - 1
    drops.add(second, sent(("b", b"y")), late())
    clock.now = IDLE + 1
    drops.sweep()
    assert [p.read_bytes() for p in on_disk(tmp_path)] == [b"y"]
    with pytest.raises(Refused):
        drops.take(first)
    drops.take(second).close()
    assert on_disk(tmp_path) == []


def test_an_upload_that_is_cancelled_meanwhile_leaves_nothing(tmp_path):
    drops = Drops(Limits())
    id = drops.new()

    def uploads():
        yield from sent(("a", b"x"))
        drops.cancel(id)
        yield from sent(("b", b"y"), ("c", b"z"))

    with pytest.raises(Refused) as refused:
        drops.add(id, uploads(), late())
    assert refused.value.status == 404
    assert on_disk(tmp_path) == []


def test_a_session_that_ends_takes_its_drops_along(tmp_path):
    sessions = Sessions()
    session = sessions.open()
    drops = Drops.of(session)
    drops.add(drops.new(), sent(("a", b"x")), late())
    session.close()
    assert on_disk(tmp_path) == []


def test_bytes_of_a_session_and_of_all_are_bounded_and_given_back(tmp_path):
    limits = Limits(max_dropped_mb=2, max_all_dropped_mb=3)
    before = module._ON_DISK.used
    one, other = Drops(limits), Drops(limits)
    id = one.new()
    one.add(id, sent(("a", bytes(1_500_000))), late())
    with pytest.raises(Refused) as refused:
        one.add(id, sent(("b", bytes(600_000))), late())
    assert refused.value.status == 413
    theirs = other.new()
    with pytest.raises(Refused):
        other.add(theirs, sent(("b", bytes(1_600_000))), late())
    assert sum(p.stat().st_size for p in on_disk(tmp_path)) == 1_500_000, "refused bytes do not stay"
    one.cancel(id)
    other.add(theirs, sent(("b", bytes(1_600_000))), late())
    other.close()
    one.close()
    assert module._ON_DISK.used == before


def test_drops_are_bounded_and_so_is_the_time_of_a_request():
    drops = Drops(Limits())
    ids = [drops.new() for _ in range(8)]
    with pytest.raises(Refused) as refused:
        drops.new()
    assert refused.value.status == 429
    with pytest.raises(Refused) as refused:
        drops.add(ids[0], sent(("a", b"x")), late(0))
    assert refused.value.status == 504
    drops.close()


def test_two_requests_to_one_drop_at_once_keep_all_files():
    drops = Drops(Limits())
    id = drops.new()
    threads = [
        threading.Thread(
            target=lambda i=i: drops.add(id, sent(*((f"{i}-{j}", b"x") for j in range(20))), late())
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drop = drops.take(id)
    assert set(drop.names.values()) == {f"{i}-{j}" for i in range(4) for j in range(20)}
    assert drop.bytes == 80
    drop.close()


KILLED = """
import io, sys, time
from dia.serve.limits import Deadline, Limits
from dia.serve.room.drops import Drops
drops = Drops(Limits())
drops.add(drops.new(), [("a.png", io.BytesIO(b"x"))], Deadline(60))
print("kept", flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
"""


def start(tmp_path, what):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    return subprocess.Popen([sys.executable, "-c", KILLED, what], stdout=subprocess.PIPE, text=True, env=env)


def test_what_a_killed_process_left_goes_when_the_next_begins_and_a_living_ones_stays(tmp_path):
    killed, living = start(tmp_path, "wait"), start(tmp_path, "wait")
    assert {p.stdout.readline() for p in (killed, living)} == {"kept\n"}
    killed.kill()
    killed.wait()
    assert len(on_disk(tmp_path)) == 2
    drops = Drops(Limits())
    drops.new()
    assert len(on_disk(tmp_path)) == 1
    living.kill()
    living.wait()


def test_a_process_that_ends_leaves_nothing(tmp_path):
    assert start(tmp_path, "end").wait(60) == 0
    assert [*Path(tmp_path).glob("dia-dropped-*")] == []
