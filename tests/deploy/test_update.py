"""`dia update`: folders that learn and forget, files of marks, what survives a kill, what is published."""

import csv
import json
import os
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from marking import fitted, marks, noisy, phantom, ramped
from medical_files import dicom_file, tiff_stack
from PIL import Image
from safetensors.numpy import load_file, save_file

import dia.cli.main as cli
from dia.core.errors import DataError
from dia.core.modelfiles import write_sums
from dia.core.storage import Owner, owned
from dia.data.imageset import pixels_sha256
from dia.data.options import ReadOptions
from dia.data.readers import listing
from dia.deploy import recalibrate
from dia.deploy.predictor import Inferencer
from dia.deploy.scoring import hash_of
from dia.deploy.update import folder as folders
from dia.deploy.update import undo_folder, update_folder
from dia.deploy.update.marks import find, read_marks
from dia.detectors import METHODS, Detector
from dia.detectors.teaching.lesson import LEVEL
from dia.detectors.teaching.taught import FILE
from dia.serve.room.mark import COLUMNS, Key, Mark, as_csv


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return fitted().save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def run(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "m"))


@pytest.fixture(scope="module")
def marked():
    return marks()


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- folders ------------------------------------------------------------------------------------------


def test_it_learns_and_says_so_and_forgets(run, marked):
    before, named = contents(run), hash_of(run)
    made = update_folder(run, *marked, {"readers": ["Bo", "Ann", "Bo"]})
    assert made.kept
    assert made.after > made.before
    assert made.marks == 24
    facts = Detector.load(run, device="cpu").facts_["taught"]
    assert (facts["marks"], facts["anomalous"], facts["normal"]) == (24, 12, 12)
    assert facts["readers"] == ["Ann", "Bo"]
    assert (facts["auc_before"], facts["auc_after"]) == (made.before, made.after)
    card = (run / "card.md").read_text()
    assert "24 marked images" in card
    assert "Ann, Bo" in card
    about = Inferencer(run).about()
    assert about["lineage"] == named != about["model"]
    assert about["taught"]["at"] == made.at
    assert about["taught"]["readers"] == 2  # counted, not named
    undo_folder(run)
    assert contents(run) == before
    assert Inferencer(run).about()["lineage"] == named


def test_a_second_update_adds_to_the_first_from_the_model_as_fitted(run, marked, tmp_path):
    images, labels = marked
    one = tmp_path / "one"
    assert update_folder(run, images[:18], labels[:18], {"readers": ["Ann"]}, out=one).kept
    both = update_folder(one, images[15:], labels[15:], {"readers": ["Bo"]})
    assert both.kept
    assert both.marks == 24
    assert Detector.load(one, device="cpu").facts_["taught"]["readers"] == ["Ann", "Bo"]
    update_folder(run, images, labels, out=(at_once := tmp_path / "both"))
    new = np.concatenate([ramped(phantom(3, "test", 40)), phantom(3, "test", 50)])
    one, at_once = (Detector.load(folder, device="cpu") for folder in (one, at_once))
    np.testing.assert_allclose(one.score(new), at_once.score(new), rtol=1e-4, atol=1e-5)
    assert one.facts_["lineage"] == at_once.facts_["lineage"]


def test_what_is_not_kept_changes_nothing(run, marked):
    before = contents(run)
    assert not update_folder(run, marked[0][10:15], marked[1][10:15]).kept
    assert not update_folder(run, marked[0][:0], marked[1][:0]).kept
    assert contents(run) == before
    update_folder(run, *marked)
    taught = contents(run)
    wrong = update_folder(run, marked[0], np.random.default_rng(0).permutation(marked[1]))
    assert not wrong.kept
    assert contents(run) == taught


def test_a_copy_is_taught_and_the_model_stays(run, marked, tmp_path):
    before = contents(run)
    assert update_folder(run, *marked, out=tmp_path / "copy").kept
    assert contents(run) == before
    with pytest.raises(DataError, match="exists already"):
        update_folder(run, *marked, out=tmp_path / "copy")
    undo_folder(tmp_path / "copy", out=tmp_path / "again")
    assert contents(tmp_path / "again") == before


def test_missed_anomalies_are_watched(run, marked):
    images, labels = marked
    flagged = np.ones(24, bool)
    flagged[[2, 5, 20]] = False  # two anomalies, and a normal
    update_folder(run, images, labels, flagged=flagged)
    detector = Detector.load(run, device="cpu")
    watch = detector.facts_["taught"]["watch"]
    assert {w["sha256"] for w in watch} == {pixels_sha256(images[i]) for i in (2, 5)}
    assert all(0 < w[key] <= 1 for w in watch for key in ("p_before", "p_after"))
    undo_folder(run)
    plain = Detector.load(run, device="cpu")
    by_sha = {pixels_sha256(x): x for x in images}
    for one in watch:  # the score after is by updates without the image, so it is not the taught model's own
        assert one["before"] == pytest.approx(plain.score(by_sha[one["sha256"]][None])[0], rel=1e-4)
        assert one["p_before"] == pytest.approx(plain.p_values(np.array([one["before"]]))[0])
        assert one["after"] != pytest.approx(detector.score(by_sha[one["sha256"]][None])[0])


def test_labels_and_images_that_do_not_fit(run, marked):
    images, labels = marked
    with pytest.raises(DataError, match="labels must be 24"):
        update_folder(run, images, labels[:5])
    with pytest.raises(DataError, match="labels must be"):
        update_folder(run, images, labels + 1)
    with pytest.raises(DataError, match="marked twice"):
        update_folder(run, images[[0, 0]], labels[[0, 0]])
    with pytest.raises(DataError, match="size="):
        update_folder(run, images[:, :16], labels)


def test_a_model_of_another_method_or_an_older_one_is_refused(run, marked, tmp_path):
    other = METHODS["trivial:brightness"]().fit(phantom(30)).save(tmp_path / "b")
    with pytest.raises(DataError, match=r"trivial:brightness cannot learn from marks; dia\+ can"):
        update_folder(other, *marked)
    tensors = {
        k: v for k, v in load_file(run / "weights.safetensors").items() if not k.startswith("normals.")
    }
    save_file(tensors, run / "weights.safetensors")
    write_sums(run)
    with pytest.raises(DataError, match="fit it again"):
        update_folder(run, *marked)
    with pytest.raises(DataError, match="nothing to undo"):
        undo_folder(run)


def test_a_sites_calibration_goes_first_and_last(run, marked):
    named, site = hash_of(run), noisy(phantom(40, "test", 100), seed=9)
    files = contents(run)

    def calibrate():
        detector = Detector.load(run, device="cpu")
        scores = detector.score(site)
        about = {"on": "site", "images": 40, "flagged_before": 0.5}
        with recalibrate.taken(run, run) as model:
            recalibrate.calibrate_folder(model, scores, detector.drift_, about, 0.05)
        return np.sort(scores)

    def restore():
        with recalibrate.taken(run, run) as model:
            recalibrate.restore_folder(model)

    calibrate()
    assert Inferencer(run).about()["lineage"] == named
    with pytest.raises(DataError, match="--original"):
        update_folder(run, *marked)
    restore()
    assert contents(run) == files
    update_folder(run, *marked)
    taught = contents(run)
    scores = calibrate()
    now = Detector.load(run, device="cpu")
    np.testing.assert_array_equal(now.calibration_.scores, scores)
    assert now.facts_["lineage"] == named
    with pytest.raises(DataError, match="--original"):
        undo_folder(run)
    Detector.load(run, device="cpu").save(run, (run / "card.md").read_text())  # as a copy would be made
    restore()
    assert contents(run) == taught
    undo_folder(run)
    assert contents(run) == files


def test_no_other_process_changes_a_model_between_its_reading_and_its_writing(
    run, marked, tmp_path, monkeypatch
):
    (site := tmp_path / "site").mkdir()
    for i, image in enumerate(phantom(20, "test", 100)):
        Image.fromarray(image[..., 0]).save(site / f"{i}.png")
    real, held = Detector.load, []

    def load(folder, **options):
        held.append(owned(Path(folder)))
        return real(folder, **options)

    monkeypatch.setattr(Detector, "load", staticmethod(load))
    update_folder(run, *marked)
    undo_folder(run)
    cli.main(["calibrate", str(run), str(site), "--device", "cpu"])
    cli.main(["calibrate", str(run), "--original", "--device", "cpu"])
    assert len(held) == 5
    assert all(held)
    with Owner(run), pytest.raises(DataError, match="is writing it"):
        update_folder(run, *marked)
    with pytest.raises(DataError):
        undo_folder(tmp_path / "none" / "m")
    assert not (tmp_path / "none").exists()  # a lock would have made it


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize(
    "step", ["copytree", "save_file", "_write", "write_sums", "_alike", "replace_folder"]
)
def test_a_kill_at_any_step_leaves_the_model_before_or_after(kept, run, marked, monkeypatch, step, undo):
    if undo:
        if step == "save_file":
            pytest.skip("an undo saves no tensors")
        update_folder(run, *marked)
    before = contents(run)
    from dia.core import modelfiles

    where = {"copytree": shutil, "save_file": folders, "_write": folders, "write_sums": recalibrate}
    module = where.get(step, modelfiles)
    real = getattr(module, step)

    def dies(*args, **kwargs):
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        setattr(module, step, dies)
        try:
            undo_folder(run) if undo else update_folder(run, *marked)
        finally:
            os._exit(9)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # it was killed, and did not end by itself
    after = contents(run)
    if step == "replace_folder":  # the last one
        assert (FILE in after) != undo
    else:
        assert after == before
    Detector.load(run, device="cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        undo_folder(run) if FILE in after else update_folder(run, *marked)  # what is left is no hindrance
    assert any("taken away" in str(one.message) for one in said)
    assert sorted(p.name for p in run.parent.iterdir()) == ["m"]


def test_what_is_published_names_no_reader(run, marked, tmp_path):
    from dia.deploy.hub import save_pretrained

    update_folder(run, *marked, {"readers": ["Dr. Anna Muster"]}, flagged=np.zeros(24, bool))
    out = save_pretrained(Detector.load(run, device="cpu"), tmp_path / "hub")
    assert not any(b"Muster" in data for data in contents(out).values())
    assert "24 marked images" in (out / "README.md").read_text()
    public = Detector.load(out, device="cpu")
    np.testing.assert_array_equal(public.score(marked[0]), Detector.load(run, device="cpu").score(marked[0]))


def test_names_of_readers_are_short_and_few(run, marked):
    names = [f"reader {i:02d}\n\x1b[31m" + "x" * 200 for i in range(30)]
    update_folder(run, *marked, {"readers": names})
    readers = Detector.load(run, device="cpu").facts_["taught"]["readers"]
    assert len(readers) == 20
    assert readers[-1] == "and 11 more"
    assert all(len(name) <= 80 and name.isprintable() for name in readers)


# --- files of marks -----------------------------------------------------------------------------------


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


OPTIONS = ReadOptions(size=(32, 32), channels=1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory, marked):
    folder = tmp_path_factory.mktemp("scans")
    for i, image in enumerate(marked[0]):
        (folder / f"ward{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"ward{i % 2}/s{i}.png")
    return folder


def exported(marked, index, **changes):
    for i in index:
        label = int(marked[1][i])
        yield {"name": f"s{i}.png", "sha256": pixels_sha256(marked[0][i]), "label": label, "flagged": 1,
               "reviewer": "Ann", **changes}  # fmt: skip


def test_images_are_found_by_their_pixels(tmp_path, marked, scans):
    rows = [row | {"name": "other.png"} for row in exported(marked, range(6))]
    rows += [{"sha256": "0" * 64, "name": "gone.png", "label": 1}, {"sha256": rows[0]["sha256"], "label": ""}]
    found = find(path := write(tmp_path / "m.csv", rows), read_marks(path), listing(scans, OPTIONS), OPTIONS)
    assert {pixels_sha256(x) for x in found.images} == {row["sha256"] for row in rows[:6]}
    assert sorted(found.labels) == sorted(marked[1][:6])
    assert found.flagged.all()
    assert found.missing == ("gone.png",)
    assert found.unsure == 1
    assert found.readers == ("Ann",)
    assert found.remarks() == [
        "1 marked images not found: gone.png",
        "1 marks say neither normal nor anomalous",
    ]


def test_the_export_of_the_reading_room_is_a_file_of_marks(tmp_path, marked, scans):
    shas = [pixels_sha256(image) for image in marked[0][:3]]
    verdicts = [("agree", True, 1), ("disagree", True, 0), ("unsure", True, None)]
    rows = []
    for i, (sha, (verdict, flagged, _)) in enumerate(zip(shas, verdicts, strict=True)):
        seen = (sha, 1, (32, 32), flagged, 0.05, 1.0, 0.1, "m", "2026-01-01T00:00:00+00:00", 1)
        rows.append((f"=s{i}.png", Mark(Key("l", sha, "Änne"), verdict, "a;b\n=c", (), 0, *seen)))
    (path := tmp_path / "m.csv").write_text(as_csv(rows), encoding="utf-8")
    said = read_marks(path)
    assert [row.label for row in said] == [label for *_, label in verdicts]
    assert [(row.sha256, row.flagged, row.reader, row.name) for row in said] == [
        (sha, True, "Änne", f"=s{i}.png") for i, sha in enumerate(shas)
    ]
    assert len(find(path, said, listing(scans, OPTIONS), OPTIONS).images) == 2


def test_the_report_has_a_sentence_and_leaves_out_what_was_marked(tmp_path, marked, run, capsys):
    update_folder(run, *marked, {"readers": ["Ann"]})
    for i, image in enumerate([*phantom(6, "test", 50), *marked[0][:2]]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    cli.main(["report", str(run), str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert "It learned from 24 marked images" in (tmp_path / "r.html").read_text()
    assert "left out: 2 images" in capsys.readouterr().err


def test_images_are_found_by_name_where_one_alone_has_it(tmp_path, marked, scans):
    rows = [{"name": "s3.png", "label": "anomalous"}, {"name": "ward0/s4.png", "label": "normal"}]
    found = find(path := write(tmp_path / "m.csv", rows), read_marks(path), listing(scans, OPTIONS), OPTIONS)
    assert {pixels_sha256(x) for x in found.images} == {pixels_sha256(marked[0][i]) for i in (3, 4)}
    assert found.flagged is None
    (scans / "more").mkdir(exist_ok=True)
    shutil.copy(scans / "ward1/s5.png", scans / "more/s3.png")
    found = find(path, read_marks(path), listing(scans, OPTIONS), OPTIONS)
    assert found.missing == ("s3.png",)  # two have that name
    shutil.rmtree(scans / "more")


def test_images_lie_beside_the_file(tmp_path, marked, scans):
    rows = [{"path": f"ward{i % 2}/s{i}.png", "label": int(marked[1][i])} for i in range(20)]
    path = write(scans / "m.csv", [*rows, {"path": "gone.png", "label": 0}], ["path", "label"])
    found = find(path, read_marks(path), None, OPTIONS)
    path.unlink()
    assert [pixels_sha256(x) for x in found.images] == [pixels_sha256(x) for x in marked[0][:20]]
    assert list(found.labels) == list(marked[1][:20])
    assert found.missing == ("gone.png",)


def test_readers_who_disagree(tmp_path, marked, scans):
    first, second, third = (list(exported(marked, range(2), reviewer=name)) for name in ("A", "B", "C"))
    second[0]["label"], third[1]["label"] = 0, 0  # of the first image A and C agree, of the second A and B
    rows = [*first, *second, *third, *exported(marked, [5]), *exported(marked, [5], label=0)]
    found = find(path := write(tmp_path / "m.csv", rows), read_marks(path), listing(scans, OPTIONS), OPTIONS)
    assert list(found.labels) == [1, 1]
    assert found.disputed == ("s5.png",)


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        cli.main([str(a) for a in argv])
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the header must be"), ("name,score\na,1\n", "label"),
        ("label,note\n1,x\n", "one of path, sha256, name must"),
        ("name,label\n", "no rows"), ("name,label\na,maybe\n", "line 2: unknown label 'maybe'"),
        ("name,label\n,1\n", "line 2: no name: which image"),
        ("name,label,flagged\na,1,perhaps\n", "line 2: flagged must be"),
        ("name,label,slice\na,1,-1\n", "line 2: slice must be"), ("name,label\n\"a,1\n", "m.csv"),
        ("name,label\nnot there,1\n", "none of its 1 marked images is among the images (as not there)"),
    ],
)  # fmt: skip
def test_files_that_are_no_marks_are_refused_in_one_line(tmp_path, scans, run, text, line, capsys):
    (tmp_path / "m.csv").write_text(text)
    said = refused(capsys, "update", run, scans, "--marks", tmp_path / "m.csv")
    assert line in said
    assert len([one for one in said.splitlines() if not one.startswith("warning")]) == 1


def test_files_of_several_images_need_a_slice(tmp_path, run):
    np.savez(tmp_path / "x.npz", test_images=phantom(3), test_labels=np.zeros(3))
    path = write(tmp_path / "m.csv", [{"path": "x.npz", "label": 1}], ["path", "label", "slice"])
    with pytest.raises(DataError, match="holds 3 images; say which in a column slice"):
        find(path, read_marks(path), None, OPTIONS)
    write(path, [{"path": "x.npz", "label": 1, "slice": 2}], ["path", "label", "slice"])
    assert pixels_sha256(find(path, read_marks(path), None, OPTIONS).images[0]) == pixels_sha256(
        phantom(3)[2]
    )
    write(path, [{"path": "x.npz", "label": 1, "slice": 3}], ["path", "label", "slice"])
    with pytest.raises(DataError, match="no slice 3"):
        find(path, read_marks(path), None, OPTIONS)


def test_slices_are_told_by_the_name_of_their_volume_and_their_number_there(tmp_path, marked):
    """As the reading room and the lists of findings write them; two slices of the series are missing."""
    for k in (0, 1, 4, 5, 6):
        dicom_file(
            tmp_path / "in" / "ct" / f"{(k * 3) % 7}.dcm", marked[0][k, ..., 0], SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, 2.0 * k], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
        )  # fmt: skip
    for rows in (
        [{"name": "scans/ct", "slice": k, "label": 1} for k in (4, 6)],
        [{"path": f"ct/{(k * 3) % 7}.dcm", "slice": k, "label": 1} for k in (4, 6)],
    ):
        path = write(tmp_path / "in" / "m.csv", rows, ["path", "name", "label", "slice"])
        for images in [listing(tmp_path / "in", OPTIONS)] + [None] * ("path" in rows[0]):
            found = find(path, read_marks(path), images, OPTIONS)
            assert [pixels_sha256(x) for x in found.images] == [pixels_sha256(marked[0][k]) for k in (4, 6)]
    rows = [{"name": "ct", "slice": k, "label": 1} for k in (2, 4)]
    path = write(tmp_path / "in" / "m.csv", rows, ["name", "label", "slice"])
    assert find(path, read_marks(path), listing(tmp_path / "in", OPTIONS), OPTIONS).missing == ("ct",)


def test_marks_know_the_patients_and_volumes_of_their_images(tmp_path, marked):
    for i, image in enumerate(marked[0][:6]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"p{i // 2}_{i}.png")
    for name, of in (("a/x.tif", marked[0][6:9]), ("b/x.tif", marked[0][9:12])):
        tiff_stack(tmp_path / name, of[..., 0])
    files = [{"path": f"p{i // 2}_{i}.png", "label": i % 2} for i in range(6)]
    slices = [
        {"path": f"{k}/x.tif", "slice": i, "label": 1, "sha256": pixels_sha256(marked[0][at + i])}
        for k, at in (("a", 6), ("b", 9))
        for i in (0, 2)
    ]
    columns = ["path", "sha256", "label", "slice", "patient"]

    def units(rows, images=None, **options):
        path = write(tmp_path / "m.csv", rows, columns)
        found = find(path, read_marks(path), images, replace(OPTIONS, **options))
        path.unlink()
        order = {pixels_sha256(x): u for x, u in zip(found.images, found.units, strict=True)}
        return [order[pixels_sha256(x)] for x in marked[0][:12] if pixels_sha256(x) in order]

    whole = listing(tmp_path, OPTIONS)
    for images in (None, whole):
        assert len(set(units(files, images))) == 6  # nobody knows their patients
        a, b, c, d = units(slices, images)
        assert a == b != c == d
    told = [row | {"patient": "Änne" if i < 3 else "Bo"} for i, row in enumerate([*files, *slices])]
    for images in (None, whole):
        first, *rest = units(told, images)
        assert [u == first for u in rest] == [True] * 2 + [False] * 7
    for images in (None, listing(tmp_path, replace(OPTIONS, group_by=r"p(\d)|(x)"))):
        one, two, *rest = units([*files, *slices], images, group_by=r"p(\d)|(x)")
        assert one == two
        assert len({one, *rest}) == 4
    with pytest.raises(DataError, match="leave out --group-by"):
        units(told, group_by="p")
    with pytest.raises(DataError, match="does not hold"):
        units(files, group_by="patient")


def test_an_update_knows_which_images_are_of_one_patient(run, marked):
    units = np.r_[np.arange(12) % 2, 2 + np.arange(12)]
    made = update_folder(run, *marked, units=units)
    assert not made.kept
    assert "12 marked anomalous, of 2 patients or volumes; 3 are needed" in made.words
    made = update_folder(run, *marked, units=np.arange(24) // 2)
    assert made.kept
    facts = Detector.load(run, device="cpu").facts_["taught"]
    assert facts["gain_p"] == made.p <= LEVEL
    assert f"(one-sided p of the gain {made.p:.3f})" in (run / "card.md").read_text()
    assert list(load_file(run / FILE)["mark.unit"]) == list(np.arange(24) // 2)  # numbers, no names
    new = np.concatenate([marked[0][:1], phantom(3, "test", 40)])
    update_folder(run, new, np.array([1, 0, 0, 0]), units=np.array([7, 8, 8, 9]))
    learned = Detector.load(run, device="cpu").taught_.learned
    of = dict(zip(learned.names, learned.units, strict=True))
    again, second = (of[pixels_sha256(x)] for x in marked[0][:2])
    assert (
        again == second
    )  # the first image was marked again, and its patient's other is still of one with it
    with pytest.raises(DataError, match="units must be 24"):
        update_folder(run, *marked, units=units[:5])


def test_marks_that_were_learned_before_patients_were_told_are_each_alone(run, marked):
    update_folder(run, *marked, units=np.arange(24) // 2)
    tensors = {k: v for k, v in load_file(run / FILE).items() if k != "mark.unit"}
    save_file(tensors, run / FILE)
    write_sums(run)
    assert len(set(Detector.load(run, device="cpu").taught_.learned.units)) == 24


def test_the_command(tmp_path, marked, scans, run, capsys):
    path = write(tmp_path / "m.csv", exported(marked, range(24)))
    files = contents(run)
    cli.main(["update", str(run), str(scans), "--marks", str(path), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["kept"]
    assert made["marks"] == 24
    cli.main(["info", str(run), "--json"])
    info = json.loads(capsys.readouterr().out)
    assert "24 marked images" in info["taught"]
    assert "by Ann" in info["taught"]
    for wrong in ([], ["--marks", path, "--undo"], [scans, "--undo"]):
        assert "and not both" in refused(capsys, "update", run, *wrong)
    cli.main(["update", str(run), "--undo"])
    assert contents(run) == files
    assert "nothing to undo" in refused(capsys, "update", run, "--undo")
    assert "name the images" in refused(capsys, "update", run, "--marks", path)
