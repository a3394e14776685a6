"""Images that a model was fitted on are known by their pixels; all others are judged, whatever the folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import smooth_images
from PIL import Image

from dia.cli.main import main
from dia.data.imageset import ImageSet, digests
from dia.detectors import Detector
from dia.detectors.registry import TRIVIAL
from dia.evaluate.unseen import unseen

METHOD = "trivial:std"


def write(folder, images, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, first):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A model of 40 normals; folders of 30 new normals and 20 anomalies, one with 10 it knows."""
    root = tmp_path_factory.mktemp("unseen")
    normals, new, sick = (
        smooth_images(40, 16, seed=1),
        smooth_images(30, 16, seed=2),
        smooth_images(20, 16, seed=3),
    )
    write(root / "normal", normals)
    write(root / "labelled" / "healthy", new)
    write(root / "labelled" / "sick", sick // 2)
    main(["fit", str(root / "normal"), "--method", METHOD, "--out", str(root / "run")])
    write(root / "mixed" / "healthy", np.concatenate([new, normals[:10]]))
    write(root / "mixed" / "sick", sick // 2)
    return root


def evaluated(capsys, *argv):
    main(["evaluate", *map(str, argv), "--compare", "false", "--json"])
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_a_folder_without_a_split_is_judged_whole_and_counted_by_class(labelled, capsys):
    facts, err = evaluated(capsys, labelled / "run", labelled / "labelled", "--normal", "healthy")
    assert list(facts)[2:5] == ["images", "normal", "anomalous"]
    assert (facts["images"], facts["normal"], facts["anomalous"]) == (50, 30, 20)
    assert "left out" not in err
    for split in ("train", "test", "all"):  # there is none to choose
        again, _ = evaluated(
            capsys, labelled / "run", labelled / "labelled", "--normal", "healthy", "--split", split
        )
        assert again["auroc"] == facts["auroc"]


def test_what_the_model_was_fitted_on_is_named_and_left_out_unless_it_is_kept(labelled, capsys):
    whole, _ = evaluated(capsys, labelled / "run", labelled / "labelled", "--normal", "healthy")
    facts, err = evaluated(capsys, labelled / "run", labelled / "mixed", "--normal", "healthy")
    assert facts["left_out_as_seen"] == 10
    assert facts["auroc"] == whole["auroc"]
    assert "left out: 10 images that the model was fitted on (healthy/030.png, " in err
    assert "--keep-seen keeps them" in err
    kept, err = evaluated(capsys, labelled / "run", labelled / "mixed", "--normal", "healthy", "--keep-seen")
    assert (kept["images"], kept["kept_though_seen"]) == (60, 10)
    assert "the numbers flatter" in err
    with pytest.raises(SystemExit):
        main(["report", str(labelled / "run"), str(labelled / "normal"), "--out", str(labelled / "no.html")])
    assert "fitted on all 40 images" in capsys.readouterr().err


def test_a_fit_that_sets_normals_aside_is_judged_on_them(labelled, capsys):
    main(
        [
            "fit",
            str(labelled / "labelled"),
            "--normal",
            "healthy",
            "--method",
            METHOD,
            "--out",
            str(labelled / "own"),
        ]
    )
    assert "6 normal images are set aside" in capsys.readouterr().err
    facts, _ = evaluated(capsys, labelled / "own", labelled / "labelled", "--normal", "healthy")
    assert (facts["normal"], facts["anomalous"], facts["left_out_as_seen"]) == (6, 20, 24)


def test_a_folder_is_scored_whole(labelled, tmp_path, capsys):
    argv = ["--normal", "healthy", "--out", str(tmp_path / "s.csv"), "--json"]
    main(["score", str(labelled / "run"), str(labelled / "mixed"), *argv])
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 60
    assert "the model was fitted on 10 of the images" in said.err


def test_a_ledger_line_is_of_the_whole_test_set(labelled, tmp_path, capsys):
    argv = [labelled / "run", labelled / "mixed", "--normal", "healthy", "--ledger", tmp_path / "l.jsonl"]
    assert evaluated(capsys, *argv)[0]["images"] == 60
    assert json.loads((tmp_path / "l.jsonl").read_text())["n_test"] == 60


def test_a_model_of_an_earlier_version_says_that_it_does_not_know(labelled, tmp_path, capsys):
    old = Detector.load(labelled / "run")
    old.digests_ = None
    facts, err = evaluated(capsys, old.save(tmp_path / "old"), labelled / "mixed", "--normal", "healthy")
    assert facts["images"] == 60
    assert "does not know which images it was fitted on" in err


def test_digests_are_of_pixels_and_shape_and_flat_images_have_none():
    images = smooth_images(3, 8)
    images[2] = 7  # an empty slice: alike in every volume
    found = digests(images)
    assert found.dtype == np.uint64
    assert found[2] == 0
    assert len({*found[:2].tolist()}) == 2
    assert np.array_equal(digests(images[::-1]), found[::-1])
    turned = images[:2].reshape(2, 4, 16, 1)
    assert not np.isin(digests(turned), found).any()


def test_slices_of_a_volume_that_was_fitted_on_go_with_it():
    images = smooth_images(60, 8)
    detector = TRIVIAL[METHOD]().fit(images[:40])
    given = ImageSet(images[38:44], names=list("abcdef"), volumes=[None, "v", "v", "w", "w", None])
    found = unseen(detector, given)
    assert found.seen == ("a", "b", "c")  # c is new, but of the volume of b
    assert tuple(found.images.names) == ("d", "e", "f")


def test_an_anomaly_that_was_fitted_on_is_said():
    images = smooth_images(60, 8)
    detector = TRIVIAL[METHOD]().fit(images[:40])
    found = unseen(detector, ImageSet(images[39:42], [1, 0, 1]))
    assert found.anomalous == 1
    assert "1 of them labelled anomalous" in found.remark()
    assert found.counts() == {"images": 2, "normal": 1, "anomalous": 1, "left_out_as_seen": 1}
