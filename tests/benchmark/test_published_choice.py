"""A short fit is the beginning of a longer one, weight by weight: what the looks of `choice` rest on.

And the program that makes the ledger: it asks for the fair table's settings, and goes on where it was.
"""

import numpy as np
import pytest
import torch
from conftest import smooth_images

from benchmarks.epoch_choice import METHODS, SETS, TABLE, fits, judged, looks
from dia.benchmark.choice import choices
from dia.benchmark.ledger import Ledger
from dia.core.yamlfile import read_yaml
from dia.data.imageset import ImageSet
from dia.detectors.peers import pretrained
from dia.detectors.registry import detector_class, wanted_settings
from grids import two_sets

SMALL = {"kdad": {"size": 32, "batch": 4}, "fastflow": {"size": 32, "batch": 4}}


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def fitted(method, steps, folder):
    settings = wanted_settings(method, "cpu", SMALL[method] | {"steps": steps})
    detector = detector_class(method)(settings, seed=3, device="cpu")
    return detector.fit(ImageSet(smooth_images(24, 32, 32, 1, seed=0)), workdir=folder)


def test_a_short_fit_of_kdad_is_the_beginning_of_a_longer_one(tmp_path, monkeypatch):
    seen, step = {}, pretrained.Learner.training_step

    def looked(self, *given):
        seen[self.global_step] = weights(self.network)
        return step(self, *given)

    short = weights(fitted("kdad", 2, tmp_path / "short").trained_)
    monkeypatch.setattr(pretrained.Learner, "training_step", looked)
    long = weights(fitted("kdad", 4, tmp_path / "long").trained_)
    assert set(seen) == {0, 1, 2, 3}
    assert all(torch.equal(short[name], seen[2][name]) for name in short)
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_a_short_fit_of_anomalibs_fastflow_is_the_beginning_of_a_longer_one(tmp_path, monkeypatch):
    pytest.importorskip("anomalib")
    from dia.detectors.peers import anomalib

    seen, start = {}, anomalib._Steps.on_train_batch_start

    def looked(self, trainer, module, batch, batch_idx):
        start(self, trainer, module, batch, batch_idx)
        seen[self.step] = weights(module.model)

    short = weights(fitted("fastflow", 2, tmp_path / "short").model_)
    monkeypatch.setattr(anomalib._Steps, "on_train_batch_start", looked)
    long = weights(fitted("fastflow", 4, tmp_path / "long").model_)
    assert set(seen) == {0, 1, 2, 3}
    assert all(torch.equal(short[name], seen[2][name]) for name in short)
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_the_fits_have_the_settings_of_the_fair_table_and_its_length_last():
    table = read_yaml(TABLE)
    assert set(SETS) <= set(table["datasets"])
    assert looks(200) == [50, 100, 150, 200]
    jobs = fits(table, "headct-128", METHODS, [0, 1])
    assert len(jobs) == len(METHODS) * 2 * 4
    for job in jobs:
        own = table["settings"][job.method]
        changed = dict(job.changes)
        assert changed.pop("weights", "lite0") == "lite0"
        assert changed == own | {"steps": job.about["choice"]["steps"]}
        assert job.about["choice"]["of"] == own["steps"]
    last = [job for job in jobs if job.about["choice"]["steps"] == job.about["choice"]["of"]]
    assert {(job.method, job.seed) for job in last} == {(m, s) for m in METHODS for s in (0, 1)}


def test_a_longer_training_is_judged_once_at_its_end():
    jobs = fits(read_yaml(TABLE), "headct-128", ("msc", "rd4ad"), [0, 1], times=5)
    assert {(job.method, job.changes["steps"]) for job in jobs} == {("msc", 500), ("rd4ad", 1000)}
    assert all(job.about["choice"] == dict.fromkeys(("steps", "of"), job.changes["steps"]) for job in jobs)
    assert len(jobs) == 4


def test_the_ledger_goes_on_where_it_was(tmp_path):
    data, ledger, said = two_sets(tmp_path), tmp_path / "l.jsonl", []
    table = read_yaml(TABLE) | {"settings": {"kdad": SMALL["kdad"] | {"steps": 8}}, "weights": ["none"]}
    jobs = fits(table, "breastmnist", ("kdad",), [0])
    for job in jobs[:2]:
        judged(job, str(data), tmp_path / "work", ledger, said.append)
    assert choices(ledger) == {}  # half a training tells nothing
    before = ledger.read_bytes()
    for job in jobs:
        judged(job, str(data), tmp_path / "work", ledger, said.append)
    assert ledger.read_bytes().startswith(before)
    lines = Ledger(ledger).rows()
    assert [r["settings"]["steps"] for r in lines] == [2, 4, 6, 8]
    aurocs = [r["auroc"] for r in lines]
    assert choices(ledger)["kdad"].mean == pytest.approx(max(aurocs) - aurocs[-1])
    assert np.isfinite(aurocs).all()
    assert len(said) == 6
