"""Seals: an account knows its own texts, and nobody else's."""

import stat
from pathlib import Path

import pytest

from dia.core import seal as seals
from dia.core.seal import seal, sealed


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_seal_holds_for_its_texts_and_its_account_alone(home, monkeypatch, tmp_path):
    mark = seal("scans", None, "a")
    assert len(mark) == 64
    assert sealed(mark, "scans", None, "a")
    for texts in (("scans", "", "a"), ("scans", None), ("/", None, "a"), ("scans", None, "a", None)):
        assert not sealed(mark, *texts)
    for other in (None, 3, "", mark[:-1], ["x"]):
        assert not sealed(other, "scans", None, "a")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another's"))
    assert not sealed(mark, "scans", None, "a")
    assert seal("scans", None, "a") != mark


def test_the_key_is_for_its_owner_alone(home):
    seal("x")
    assert stat.S_IMODE((home / "dia" / "key").stat().st_mode) == 0o600
    assert [f.name for f in (home / "dia").iterdir()] == ["key"]


def test_the_first_key_stays(home, monkeypatch):
    """Two processes that make one at a time: the one that comes second takes the first one's."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path) and path.name != "key")
    assert seal("x") == seal("x")
    assert [f.name for f in (home / "dia").iterdir()] == ["key"]


def test_without_a_place_for_a_key_nothing_is_sealed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert seal("x") is None
    assert not sealed("0" * 64, "x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "dia").mkdir()
    (tmp_path / "dia" / "key").write_bytes(b"short")
    assert not sealed("0" * 64, "x")
    assert len(seals._key(make=True)) == 32  # what a full disk left is made anew
