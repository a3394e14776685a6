"""Stress tests: counted by hand, on normals that trained nothing, kept when stopped, shown in the report."""

import json

import numpy as np
import pytest

from dia.cli.main import main
from dia.core.errors import DataError
from dia.data import lesions
from dia.data.imageset import ImageSet
from dia.data.phantoms import load
from dia.detectors import Detector
from dia.detectors.calibration import Calibration, Prediction, held_out
from dia.detectors.diaplus import DIAPlus, DIAPlusSettings
from dia.detectors.registry import TRIVIAL
from dia.evaluate.stress import Ground, Plan, counted, is_of, load_stress, smallest, stress, untrained_normals
from dia.report.figures import sentences, smallest_table

PLAN = Plan(("nodule", "haze"), (0.3, 0.15), (0.2, 0.8))


class Brightest(Detector):
    """Score: the brightest pixel. A nodule that brightens is found, one that darkens is not."""

    method = "brightest"
    Settings = TRIVIAL["trivial:std"].Settings

    def _fit(self, images, reference, stages):
        pass

    maps = True

    def _predict(self, images, heatmaps, dissolved):
        maps = images[..., 0].astype(np.float32) if heatmaps else None
        return Prediction(images.max((1, 2, 3)).astype(float), maps)


@pytest.fixture(scope="module")
def detector():
    images = np.random.default_rng(0).integers(90, 110, (200, 24, 24, 1), dtype=np.uint8)
    return Brightest(false_alarm_rate=0.1).fit(images)


@pytest.fixture(scope="module")
def ground():
    images = np.random.default_rng(1).integers(90, 108, (40, 24, 24, 1), dtype=np.uint8)
    return Ground(ImageSet(images), "given")


def test_shares_are_those_counted_by_hand(detector, ground):
    detector.calibration_ = Calibration.of(np.arange(100.0, 119.0))  # 5 %: the highest of 19, 118
    made = stress(detector, ground, PLAN, 0.05)
    assert made["threshold"] == 118
    assert made["false_alarms"]["found"] == 0
    assert len(made["cells"]) == 8
    for cell in made["cells"]:
        pasted, _ = lesions.paste(ground.images.images, cell["kind"], cell["size"], cell["contrast"])
        assert cell["found"] == (pasted.max((1, 2, 3)) > 118).sum()
        assert cell["ci"][0] <= cell["share"] <= cell["ci"][1]


def test_wilson_interval_of_a_textbook():
    made = counted(np.r_[np.ones(8, bool), np.zeros(2, bool)])
    assert made["share"] == 0.8
    assert made["ci"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson score, n = 10, 8 hits


def result(shares):
    return {
        "cells": [
            {"kind": "nodule", "size": s, "contrast": c, "share": v, "ci": [v - 0.1, min(v + 0.1, 1)]}
            for (s, c), v in shares.items()
        ]
    }


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.9, 0.95, 1.0], (0.1, 0.1)),
        ([0.2, 0.85, 0.95], (0.2, 0.4)),
        ([0.9, 0.5, 0.85], (0.4, None)),  # larger ones must be found too
        ([0.1, 0.2, 0.79], (None, None)),
    ],
)
def test_the_smallest_size_is_found_with_all_larger_ones(shares, expected):
    cells = dict(zip(((0.1, 0.5), (0.2, 0.5), (0.4, 0.5)), shares, strict=True))
    assert smallest(result(cells)) == {"nodule": {0.5: expected}}


def test_kept_cells_are_not_measured_again_and_stay(detector, ground, monkeypatch):
    steps = []
    first = stress(detector, ground, PLAN, 0.1, on_cell=lambda r: steps.append(json.loads(json.dumps(r))))
    assert [len(s["cells"]) for s in steps] == list(range(1, 9))
    calls = []
    paste = lesions.paste
    monkeypatch.setattr("dia.evaluate.stress.paste", lambda *a, **k: calls.append(a[1:]) or paste(*a, **k))
    again = stress(detector, ground, PLAN, 0.1, kept=steps[4])
    assert len(calls) == 3
    assert again == first
    more = stress(detector, ground, Plan(("streak",), (0.3,), (0.8,)), 0.1, kept=first)
    assert len(calls) == 4
    assert len(more["cells"]) == 9
    other = stress(detector, ground, PLAN, 0.2, kept=first)  # another threshold: nothing can be kept
    assert len(calls) == 12
    assert other["threshold"] < first["threshold"]


def test_a_detector_that_holds_nothing_out_is_fitted_anew_without_a_fifth():
    normals = load("train", n=30, size=24)
    model = DIAPlus(DIAPlusSettings(size=32, map_size=32), device="cpu").fit(normals)
    model.facts_ = {"train_sha256": normals.sha256()}
    ground = untrained_normals(model, normals)
    assert (ground.source, len(ground.images)) == ("fifth", 6)
    assert ground.stand_in.n_train_ == 24
    plan = Plan(kinds=("nodule",), sizes=(0.3,), contrasts=(0.8,))
    made = stress(model, ground, plan, 0.2)
    assert is_of(made, model)
    # an image whose own copy is among the normals would not be flagged at all
    assert made["false_alarms"] == counted(
        ground.stand_in.score(ground.images) > ground.stand_in.threshold(0.2)
    )
    other = untrained_normals(model, load("val", n=30, size=24))
    assert (other.source, other.stand_in) == ("given", None)


def test_no_patient_is_on_both_sides_of_a_detector_that_is_fitted_anew():
    patients = ["much"] * 30 + [f"p{i}" for i in range(30)]
    normals = ImageSet(load("train", n=60, size=24).images, patients=patients)
    model = DIAPlus(DIAPlusSettings(size=32, map_size=32), device="cpu").fit(normals)
    model.facts_ = {"train_sha256": normals.sha256()}
    ground = untrained_normals(model, normals)
    pasted = set(ground.images.patients)
    assert pasted
    assert ground.stand_in.n_train_ == sum(p not in pasted for p in patients)


def test_the_very_training_images_give_their_calibration_part():
    images = load("train", n=60, size=24)
    model = TRIVIAL["trivial:std"](seed=3).fit(images)
    model.facts_ = {"train_sha256": images.sha256()}
    expected = np.sort(held_out(60, 0.2, 3)[0])
    for same in (images, ImageSet(images.images)):  # read with labels, or as a folder without
        found = untrained_normals(model, same)
        assert found.source == "calibration"
        assert np.array_equal(found.images.images, images.images[expected])
    assert np.array_equal(np.sort(model.score(found.images)), model.calibration_.scores)
    others = untrained_normals(model, load("val", n=30, size=24))
    assert others.source == "given"
    assert len(others.images) == 15  # its anomalous half is left out
    assert others.remark == ""
    some = untrained_normals(model, ImageSet(np.concatenate([images.images[:20], others.images.images])))
    assert np.array_equal(some.images.images, others.images.images)  # what it was fitted on is left out
    assert some.remark == "20 images that the model was fitted on are left out."
    with pytest.raises(DataError, match="fitted on all 20 normals given, and on others"):
        untrained_normals(model, ImageSet(images.images[:20]))
    every = ImageSet(np.concatenate([images.images, others.images.images]))
    assert np.array_equal(untrained_normals(model, every).images.images, others.images.images)  # more than 6
    few = ImageSet(np.concatenate([images.images, others.images.images[:2]]))
    assert untrained_normals(model, few).source == "calibration"
    assert len(untrained_normals(model, ImageSet(images.images[:20]), keep_seen=True).images) == 20
    model.digests_ = None
    assert "not, as a whole" in untrained_normals(model, load("val", n=30, size=24)).remark
    assert len(untrained_normals(model, load("val", n=30, size=24), most=7).images) == 7


def test_localisation_points_at_what_is_hottest(detector, ground):
    made = stress(detector, ground, Plan(("nodule",), (0.3,), (1.0,)), 0.1, localise=True)
    (cell,) = made["cells"]
    assert cell["pointed"] == pytest.approx(0.5, abs=0.25)  # the brightened ones
    assert 0.05 < cell["by_chance"] < 0.1
    with pytest.raises(DataError, match="no heatmaps"):
        stress(TRIVIAL["trivial:std"]().fit(ground.images), ground, PLAN, 0.3, localise=True)


def test_what_cannot_be_flagged_is_said(detector, ground):
    with pytest.raises(DataError, match=r"20 normals to calibrate on.*--false_alarm_rate 0.048"):
        stress(TRIVIAL["trivial:std"](seed=0).fit(load("train", n=200, size=24)), ground, PLAN, 0.01)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kinds": ("tumour",)}, "no lesion 'tumour'"),
        ({"sizes": (0.0,)}, "sizes must lie in"),
        ({"contrasts": ()}, "needs contrasts"),
    ],
)
def test_plans_that_cannot_be(arguments, match):
    with pytest.raises(DataError, match=match):
        Plan(**arguments)


def test_words_and_table_say_what_was_measured(detector, ground):
    made = stress(detector, ground, PLAN, 0.1)
    made_table = smallest_table(made)
    assert list(made_table.head) == ["lesion", "contrast 0.2", "contrast 0.8"]
    assert [row[0] for row in made_table.rows] == ["nodule", "haze"]
    text = " ".join(sentences(made))
    assert "40 normal images of 24×24 pixels" in text
    assert f"{made['false_alarms']['found']} of them" in text


@pytest.fixture
def run(tmp_path):
    train = load("train", n=120, size=24)
    np.savez(tmp_path / "set.npz", train_images=train.images[..., 0], train_labels=train.labels)
    main(["fit", str(tmp_path / "set.npz"), "--method", "trivial:blur", "--out", str(tmp_path / "run")])
    return tmp_path


SMALL = [
    "--kinds",
    "[nodule,texture]",
    "--sizes",
    "[0.3]",
    "--contrasts",
    "[0.8]",
    "--false_alarm_rate",
    "0.1",
]


def report(run):
    """Writes the report of the images that the model was fitted on."""
    main(
        [
            "report",
            str(run / "run"),
            str(run / "set.npz"),
            "--split",
            "train",
            "--keep-seen",
            "--out",
            str(run / "r.html"),
        ]
    )


def test_from_the_command_line_to_the_report(run, capsys):
    from dia.deploy.scoring import hash_of

    before = hash_of(run / "run")
    main(["stress", str(run / "run"), str(run / "set.npz"), *SMALL, "--localise"])
    text = capsys.readouterr()
    assert "Smallest lesion" in text.out
    assert "held out for calibration" in text.err
    made = load_stress(run / "run/stress.json")
    assert [c["kind"] for c in made["cells"]] == ["nodule", "texture"]
    assert made["normals"] == {"images": 12, "shape": [24, 24, 1], "source": "calibration"}
    for name in ("stress.png", "stress-lesions.png"):
        assert (run / "run" / name).stat().st_size > 1000
    assert hash_of(run / "run") == before  # a test of a model is no part of it
    assert is_of(made, Detector.load(run / "run"))

    report(run)
    page = (run / "r.html").read_text()
    assert "Smallest lesions found" in page
    assert '<th scope="row">texture</th>' in page

    with pytest.raises(SystemExit) as stopped:  # another rate is another test
        main(["stress", str(run / "run"), str(run / "set.npz"), *SMALL[:-1], "0.2", "--localise"])
    assert stopped.value.code == 2
    assert "differs in false_alarm_rate" in capsys.readouterr().err
    main(["stress", str(run / "run"), str(run / "set.npz"), *SMALL[:-1], "0.2", "--overwrite", "--json"])
    assert json.loads(capsys.readouterr().out)["false_alarm_rate"] == 0.2


def test_a_test_of_another_model_is_left_out_of_the_report(run, capsys):
    main(["stress", str(run / "run"), str(run / "set.npz"), *SMALL])
    kept = (run / "run/stress.json").read_text()
    main(["fit", str(run / "set.npz"), "--method", "trivial:std", "--out", str(run / "run"), "--overwrite"])
    (run / "run/stress.json").write_text(kept)
    report(run)
    assert "Smallest lesions found" not in (run / "r.html").read_text()
    assert "of another model" in capsys.readouterr().err


def test_a_file_that_is_no_test_is_not_overwritten(run, capsys):
    (run / "run/stress.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["stress", str(run / "run"), str(run / "set.npz"), *SMALL])
    assert "not a file of `dia stress`" in capsys.readouterr().err
    assert (run / "run/stress.json").read_text() == "{}"


def test_the_command_asks_for_the_usual_plan_and_names_all_its_kinds():
    from dia.cli.main import command_parser

    parser = command_parser("stress")
    a = parser.parse_args(["run", "data"])
    assert (tuple(a.sizes), tuple(a.contrasts), a.seed) == (Plan().sizes, Plan().contrasts, Plan().seed)
    assert ", ".join(lesions.KINDS) in " ".join(parser.format_help().split())
    assert Plan().kinds == tuple(lesions.KINDS)
