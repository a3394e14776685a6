"""A model's own calibration comes back, however the model was copied, and no mixture of two is written."""

import copy
import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_images

import dia
from dia.cli.main import main
from dia.core.errors import DataError
from dia.core.modelfiles import write_sums
from dia.core.storage import Owner, owned
from dia.data.imageset import ImageSet
from dia.data.readers import Listing, ReadOptions
from dia.deploy import recalibrate, scoring
from dia.deploy.hub import from_pretrained, save_pretrained
from dia.deploy.predictor import Inferencer
from dia.deploy.scoring import hash_of, unchanged
from dia.detectors import Detector
from dia.detectors.registry import METHODS
from dia.detectors.teaching.model import cannot_teach

SITE = smooth_images(30, seed=5) // 2  # of another scanner


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    detector = METHODS["trivial:pca"](device="cpu").fit(smooth_images(40))
    return detector.save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def run(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "m"))


def calibrated(run, out=None, images=SITE):
    """Calibrates as another process would, from reading to writing."""
    with recalibrate.taken(run, out or run) as model:
        detector = Detector.load(run, device="cpu")
        found = METHODS["trivial:pca"](device="cpu").fit(images)  # whose drift and maps are the site's
        about = {"on": "/site/of/mueller", "images": len(images), "flagged_before": 0.5}
        scores = detector.score(images)
        recalibrate.calibrate_folder(model, scores, found.drift_, about, 0.2, found.heat_)
    return out or run


def restored(run):
    with recalibrate.taken(run, run) as model:
        recalibrate.restore_folder(model)
    return run


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def judged(run):
    """What of a model is another site's once it is calibrated there."""
    d = Detector.load(run, device="cpu")
    heat = d.heat_ and d.heat_.to_json()
    return d.calibration_.scores.tolist(), heat, repr(d.drift_), d.false_alarm_rate, "calibrated" in d.facts_


# --- copies -------------------------------------------------------------------------------------------


def saved(run, new):
    return Detector.load(run, device="cpu").save(new)


def saved_by_the_api(run, new):
    return dia.load(run, device="cpu").save(new)


def saved_twice(run, new):
    return saved(saved(run, new.with_name("between")), new)


def pickled(run, new):
    return pickle.loads(pickle.dumps(Detector.load(run, device="cpu"))).save(new)


def deeply_copied(run, new):
    return copy.deepcopy(Detector.load(run, device="cpu")).save(new)


def as_a_copy(run, new):
    return Path(shutil.copytree(run, new))


def published(run, new):
    return save_pretrained(Detector.load(run, device="cpu"), new)


def published_and_fetched(run, new):
    return from_pretrained(published(run, new.with_name("hub")), device="cpu").save(new)


def in_a_checkpoint(run, new):
    pytest.importorskip("anomalib", reason="the extra `peers` is not installed")
    from dia.deploy.anomalib_model import DiaModel

    first, second = DiaModel(), DiaModel()
    first.keep(Detector.load(run, device="cpu"))
    second.load_state_dict(first.state_dict())
    return second.detector.save(new)


def calibrated_again(run, new):
    return calibrated(run, new, smooth_images(25, seed=8))


OURS = [saved, saved_by_the_api, saved_twice, pickled, deeply_copied, as_a_copy, calibrated_again]
OTHERS = [published, published_and_fetched, in_a_checkpoint]


@pytest.mark.parametrize("copied", [*OURS, *OTHERS])
def test_a_copy_of_a_recalibrated_model_is_brought_back(run, tmp_path, copied):
    before, named = judged(run), hash_of(run)
    there = judged(calibrated(run))
    assert all(a != b for a, b in zip(before, there, strict=True))
    new = copied(run, tmp_path / "new")
    assert "calibrated on a site's normals" in cannot_teach_as_if_it_could(new)
    if copied is not calibrated_again:
        assert judged(new) == there
    assert judged(restored(new)) == before
    assert cannot_teach_as_if_it_could(new) == ""
    assert not list(new.glob("*.fitted.json"))
    if copied in OURS:  # to the byte, so that marks know the model again
        assert hash_of(new) == named
        assert Inferencer(new).about()["lineage"] == named
    with pytest.raises(DataError, match="there is nothing to bring back"):
        restored(new)


def cannot_teach_as_if_it_could(run):
    """What teaching says to the calibration: of no trivial method it would come so far."""
    detector = Detector.load(run, device="cpu")
    detector.normals_, detector.banks_ = {"place": 0}, {"cells": 0}
    return cannot_teach(detector)


def test_a_published_copy_does_not_say_where_the_site_is(run, tmp_path):
    out = published(calibrated(run), tmp_path / "hub")
    assert not any(b"mueller" in data for data in contents(out).values())
    facts = Detector.load(out, device="cpu").facts_
    assert facts["calibrated"] == {"images": 30, "flagged_before": 0.5}


def test_a_model_that_is_published_where_another_was_is_not_mixed_with_it(run, tmp_path):
    out = published(calibrated(run), tmp_path / "hub")
    (out / "own.json").write_text("{}")  # of the user
    published(METHODS["trivial:std"](device="cpu").fit(smooth_images(40)).save(tmp_path / "n"), out)
    assert Detector.load(out, device="cpu").method == "trivial:std"
    assert {"own.json", "config.json"} <= {*contents(out)}
    with pytest.raises(DataError, match="there is nothing to bring back"):
        restored(out)


def test_a_copy_that_lost_its_first_calibration_says_so(run):
    calibrated(run)
    for file in run.glob("*.fitted.json"):  # as an earlier version copied it
        file.unlink()
    write_sums(run)
    with pytest.raises(DataError, match=r"is not in it: an earlier version .* or fit it again"):
        restored(run)


def test_damage_to_the_first_calibration_is_found_when_the_model_is_loaded(run):
    calibrated(run)
    file = run / "calibration.fitted.json"
    file.write_text("{")
    with pytest.raises(DataError, match="is not the file that was saved"):
        Detector.load(run)
    write_sums(run)
    with pytest.raises(DataError, match=r"calibration\.fitted\.json is no JSON that can be read"):
        Detector.load(run)


@pytest.mark.parametrize("missing", ["drift.json", "heatmaps.json"])
@pytest.mark.parametrize("copied", [None, saved, published])
def test_what_an_older_fit_did_not_write_is_absent_again(run, tmp_path, missing, copied):
    (run / missing).unlink()
    write_sums(run)
    before = judged(run)
    calibrated(run)
    assert (run / missing).exists()
    new = copied(run, tmp_path / "new") if copied else run
    restored(new)
    assert not (new / missing).exists()
    assert judged(new) == before


def test_a_new_fit_knows_nothing_of_the_calibration_before(run, tmp_path):
    detector = Detector.load(calibrated(run), device="cpu").fit(smooth_images(40, seed=3))
    new = detector.save(tmp_path / "new")
    assert judged(new)[-1] is False
    assert not list(new.glob("*.fitted.json"))


# --- two processes ------------------------------------------------------------------------------------


def test_a_model_that_changes_between_its_reading_and_its_copying_is_not_mixed(run, tmp_path):
    def slowly():
        with recalibrate.taken(run, tmp_path / "site") as model:
            scores = Detector.load(run, device="cpu").score(SITE)
            calibrated(run)  # meanwhile, by another
            about = {"on": "site", "images": 30, "flagged_before": 0.5}
            recalibrate.calibrate_folder(model, scores, {}, about, 0.05)

    with pytest.raises(DataError, match="m: another process changed it meanwhile; run this again"):
        slowly()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("first", range(8))
def test_a_model_that_changes_while_it_is_copied_is_not_mixed(run, tmp_path, monkeypatch, first):
    real, copied = shutil.copytree, []

    def meanwhile(source, target):
        if len(copied) == first:
            with monkeypatch.context() as patch:
                patch.setattr(shutil, "copytree", real)
                calibrated(run)
        copied.append(source)
        return shutil.copy2(source, target)

    monkeypatch.setattr(shutil, "copytree", partial(real, copy_function=meanwhile))
    with pytest.raises(DataError, match="m: another process changed it meanwhile"):
        calibrated(run, tmp_path / "site")
    assert len(copied) > first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_two_sites_are_calibrated_from_one_model_at_once(run, tmp_path):
    with recalibrate.taken(run, tmp_path / "a") as one, recalibrate.taken(run, tmp_path / "b") as two:
        assert not owned(run)
        about = {"on": "site", "images": 30, "flagged_before": 0.5}
        for model in (one, two):
            recalibrate.calibrate_folder(model, np.arange(30.0), {}, about, 0.05)
    assert judged(tmp_path / "a") == judged(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "m"]


def test_a_copy_in_the_model_itself_is_refused(run):
    before = contents(run)
    with pytest.raises(DataError, match=r"in the model folder .*; choose a place outside"):
        calibrated(run, run / "copies" / "site")
    assert contents(run) == before


def test_a_model_that_changes_while_it_is_loaded_is_not_called_by_another_hash(run, monkeypatch):
    real = Detector.load

    def load(folder, **options):
        found = real(folder, **options)
        with monkeypatch.context() as patch:
            patch.setattr(Detector, "load", staticmethod(real))
            calibrated(run)
        return found

    monkeypatch.setattr(Detector, "load", staticmethod(load))
    with pytest.raises(DataError, match="m: another process changed it while it was read; run this again"):
        Inferencer(run)


def test_an_actor_does_not_score_with_another_model_than_the_run_began_with(run):
    part = Listing(ReadOptions(), whole=ImageSet(SITE, names=tuple(map(str, range(30)))))
    with unchanged(run) as named:
        pass
    assert len(scoring._Scorer(os.getcwd(), str(run), "cpu", named).score(part, False).scores) == 30
    calibrated(run)
    line = scoring._Scorer(os.getcwd(), str(run), "cpu", named).score(part, False)
    assert line == f"{run}: another model than the one the run began with; begin anew"


# --- names of one folder ------------------------------------------------------------------------------


def test_a_link_to_a_model_stays_one_and_the_model_behind_it_changes(run, tmp_path):
    (link := tmp_path / "latest").symlink_to("m")
    before = judged(run)
    calibrated(link)
    assert link.is_symlink()
    assert judged(run) == judged(link) != before
    restored(link)
    assert judged(run) == before
    with Owner(link), pytest.raises(DataError, match="is writing it"):
        calibrated(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "m"]


def test_a_folder_is_named_from_outside(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    before = contents(run)
    for argv in (["calibrate", ".", "--original"], ["update", ".", "--undo"]):
        with pytest.raises(SystemExit, match="2"):
            main(argv)
        assert f"name it from outside, as {run.resolve()}" in capsys.readouterr().err
    main(["info", ".", "--json"])
    assert json.loads(capsys.readouterr().out)["method"] == "trivial:pca"
    assert contents(run) == before
