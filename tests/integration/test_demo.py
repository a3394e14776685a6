"""`dia demo`: what it keeps is what its page is about. The whole of it runs in `make demo`."""

import json
import re

import pytest
from pages import Page

from dia.benchmark.runs import score_set
from dia.cli import demo as module
from dia.cli.demo import DEFAULT, PLACES
from dia.cli.options import Device
from dia.data import phantoms
from dia.detectors import Detector
from dia.detectors.registry import TRIVIAL


@pytest.fixture
def briefly(monkeypatch, tiny_dissolver):
    """A few phantoms, and an untrained row in place of each method that trains: blur for the one kept."""

    def run(dataset, train, test, method, *, seed, changes=None, on_fitted=None, **_):
        row = method if method in TRIVIAL else "trivial:blur" if changes else "trivial:brightness"
        detector = TRIVIAL[row](seed=seed).fit(train)
        scored = score_set(detector, test)
        if method == "dia":
            detector.dissolver_ = tiny_dissolver
        if on_fitted:
            on_fitted(detector, scored)
        return {**scored.metrics, "fit_seconds": 1.0}

    sets = {s: phantoms.load(s).subset(range(0, 400, 7)) for s in ("train", "test")}
    monkeypatch.setattr(phantoms, "load", sets.get)
    monkeypatch.setattr("dia.benchmark.runs.run", run)


def test_the_page_is_about_the_model_that_is_kept(briefly, tmp_path, capsys):
    module.demo(out=str(tmp_path), device=Device())
    found = json.loads((tmp_path / "metrics.json").read_text())
    own, default = (f"{found[name]['auroc']:.3f}" for name in (PLACES, DEFAULT))
    assert own != default
    page = Page((tmp_path / "report.html").read_text())
    assert page.text.count(f"{PLACES} on phantom") == 2  # title and heading
    assert re.search(rf"AUROC {own} 95 % interval", page.text)  # the headline
    (result,) = re.findall(r"(\S+ \S+) (0\.\d{3}) 0\.\d{3}–0\.\d{3} this result", page.text)
    assert result == (PLACES, own)
    assert re.search(rf"{re.escape(DEFAULT)} {default} 0\.\d{{3}}–0\.\d{{3}} control", page.text)
    assert module.ABOUT in page.text
    assert module.ABOUT in capsys.readouterr().out
    assert Detector.load(tmp_path / "run").method == "trivial:blur"
    assert (tmp_path / "pictures.png").stat().st_size > 10_000
