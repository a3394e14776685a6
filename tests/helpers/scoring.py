"""`dia score` as a user calls it, refused and interrupted."""

from pathlib import Path

import pytest

from dia.cli.main import main
from dia.detectors import Detector


def score(model: Path, data: Path, out: Path, *more: object) -> None:
    argv = ["score", model, data, "--out", out, "--batch", 8, "--workers", 1, "--device", "cpu", *more]
    main([str(a) for a in argv])


def refused(capsys, *argv) -> str:
    """Runs a score that must end with status 2 and one line on stderr; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        score(*argv)
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dia: ")]
    assert len(said) == 1
    return said[0]


def interrupted(monkeypatch, model: Path, data: Path, out: Path, *more: object, after: int = 2) -> None:
    """A run stopped when `after` batches are done."""
    whole, calls = Detector.detect, []

    def stops(self, images, **kwargs):
        calls.append(len(images))
        if len(calls) > after:
            raise KeyboardInterrupt
        return whole(self, images, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "detect", stops)
        with pytest.raises(SystemExit) as stop:
            score(model, data, out, *more)
    assert stop.value.code == 130
    assert not out.exists()
