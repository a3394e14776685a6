"""A volume is the same to the command line, to Python, to the service and to the reading room."""

import csv
import io
import sqlite3

import numpy as np
import pytest
from fastapi.testclient import TestClient
from live_service import app_of
from medical_files import dicom_file, tiff_stack
from reading_room import drop, make_page

import dia
from dia.cli.main import main
from dia.data import phantoms
from dia.data.options import ReadOptions
from dia.data.readers import listing, read
from dia.deploy.predictor import Inferencer
from dia.deploy.update.marks import find, read_marks
from dia.evaluate.findings import joined

LEFT_OUT = 3  # of six pages
RATE = 0.9  # at which something is found in every page


def series(folder, pixels, uid):
    for k, x in enumerate(pixels):
        dicom_file(
            folder / f"{(k * 7) % len(pixels)}.dcm", x, SeriesInstanceUID=uid, InstanceNumber=k + 1,
            ImagePositionPatient=[0, 0, 2.0 * k], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
        )  # fmt: skip
    return folder


def scans(n, start, scale):
    """`(n, 32, 32)` uint16 of phantoms, in a scale of their own."""
    x = phantoms.load("train", size=32, n=start + n).images[start:, ..., 0]
    return (x.astype(np.uint16) + 40) * scale


@pytest.fixture(scope="module")
def by_volume(tmp_path_factory):
    """A model of five series, each of which has a scale of its own."""
    root = tmp_path_factory.mktemp("mr")
    for i in range(5):
        series(root / "normal" / f"p{i}", scans(6, 6 * i, i + 2), f"1.2.{i}")
    main([
        "fit", str(root / "normal"), "--method", "trivial:pixels", "--window", "volume", "--all",
        "--out", str(root / "run"),
    ])  # fmt: skip
    return root / "run"


@pytest.fixture
def stack(tmp_path):
    """Six pages with a bright square at one place, one page of which cannot be read."""
    pages = phantoms.load("train", size=32, n=6).images[..., 0].copy()
    pages[:, 10:20, 10:20] = 255
    return tiff_stack(tmp_path / "stack.tif", pages, damaged=LEFT_OUT), pages


def test_a_series_has_black_and_white_of_its_own_however_it_comes_in(by_volume, tmp_path):
    folder = series(tmp_path / "new", scans(5, 40, 9), "1.2.9")
    files = sorted(folder.iterdir())
    inferencer = Inferencer(by_volume, device="cpu")
    options = ReadOptions().as_fitted(inferencer.detector.facts_, inferencer.shape)
    assert options.window == "volume"
    whole = read(folder, options)
    image = dict(zip(whole.names, whole.images, strict=True))
    assert len({x.tobytes() for x in image.values()}) == 5

    main(["score", str(by_volume), str(folder), "--out", str(tmp_path / "s.csv")])
    with (tmp_path / "s.csv").open() as rows:
        score = {row["path"]: float(row["score"]) for row in csv.DictReader(rows)}
    assert len(score) == 5

    model = dia.load(by_volume, device="cpu")
    for given in (str(folder), [str(file) for file in files]):
        found = model.predict(given)
        of = {path.rpartition("/")[2]: value for path, value in zip(found.path, found.score, strict=True)}
        assert of == pytest.approx(score)

    for picture in inferencer.read(files).pictures:
        np.testing.assert_array_equal(picture.image, image[picture.name])
    with TestClient(app_of(inferencer), base_url="http://127.0.0.1:7860") as client:

        def ask(some):
            return client.post("/score", files=[("files", (f.name, f.read_bytes())) for f in some])

        assert {one["name"]: one["score"] for one in ask(files).json()["images"]} == pytest.approx(score)
        alone = ask(files[:1])
        assert alone.status_code == 422
        assert "give all files of its series together" in alone.json()["detail"]

    page = make_page(inferencer, by_volume, tmp_path / "marks.sqlite")
    client = page.client("ann")
    listed = drop(client, [(f"mr/{f.name}", f.read_bytes()) for f in files])
    assert listed["progress"]["problems"] == []
    (case,) = listed["cases"]
    told = client.get(f"/room/cases/{case['id']}").json()
    assert [one["score"] for one in told["slices"]] == pytest.approx([score[n] for n in whole.names])
    black, white = np.percentile(scans(5, 40, 9), (0.5, 99.5))
    assert told["levels"] == pytest.approx([black, white])
    (problem,) = drop(page.client("ben"), [(files[0].name, files[0].read_bytes())])["progress"]["problems"]
    assert problem["error"].endswith("give all files of its series together")


def found_by_command(run, file, tmp_path):
    """(path, slice, lesion) of the findings of `dia score`."""
    out = tmp_path / "findings.csv"
    main([
        "score", str(run), str(file), "--out", str(tmp_path / "s.csv"), "--findings", str(out), "--skip-bad",
        "--false-alarm-rate", str(RATE),
    ])  # fmt: skip
    with out.open() as rows:
        return [(r["path"], int(r["slice"]), int(r["lesion"])) for r in csv.DictReader(rows)]


def test_slices_have_the_numbers_of_their_file_everywhere_where_one_is_left_out(
    stack, served_run, inferencer, page, tmp_path
):
    file, pages = stack
    told = found_by_command(served_run.run, file, tmp_path)
    assert {(path, number) for path, number, _ in told} == {
        (f"stack.tif#{k}", k) for k in range(6) if k != LEFT_OUT
    }
    of = {lesion: {k for _, k, own in told if own == lesion} for *_, lesion in told}
    assert not any({LEFT_OUT - 1, LEFT_OUT + 1} <= slices for slices in of.values())
    assert any(len(slices) > 1 for slices in of.values())

    table = dia.load(served_run.run, device="cpu").predict(str(file), heatmaps=True, skip_bad=True)
    slices, _ = joined(table.findings(RATE))
    by_python = [(p, f.slice, f.lesion) for p, own in zip(table.path, slices, strict=True) for f in own]
    assert sorted(by_python) == sorted(told)

    with TestClient(app_of(inferencer), base_url="http://127.0.0.1:7860") as client:
        sent = {"findings": "list", "false_alarm_rate": str(RATE)}
        answer = client.post("/score", files=[("files", (file.name, file.read_bytes()))], data=sent).json()
    assert [e["name"] for e in answer["errors"]] == ["stack.tif"]
    by_service = [(i["name"], f["slice"], f["lesion"]) for i in answer["images"] for f in i["findings"]]
    assert sorted(by_service) == sorted(told)

    client = page.client("ann")
    (case,) = drop(client, [(file.name, file.read_bytes())])["cases"]
    at = f"/room/cases/{case['id']}"
    shown = client.get(at).json()
    assert [one["number"] for one in shown["slices"]] == [0, 1, 2, 4, 5]
    highest = max(shown["slices"], key=lambda one: one["score"])
    assert case["worst"] == shown["worst"] == highest["number"]
    answer = client.get(f"{at}/findings", params={"rate": RATE}).json()
    by_room = [(f"stack.tif#{f['slice']}", f["slice"], f["lesion"]) for f in answer["findings"]]
    assert sorted(by_room) == sorted(told)
    assert all(LEFT_OUT not in lesion["slices"] for lesion in answer["lesions"])
    for k in (2, 4, 5):
        pixels = client.get(f"{at}/slices/{k}/pixels").content
        assert np.array_equal(np.frombuffer(pixels, np.uint8).reshape(32, 32), pages[k])
    for what in ("pixels", "heat", "nearest", "dissolved?t=5"):
        assert client.get(f"{at}/slices/{LEFT_OUT}/{what}").status_code == 404


def test_a_mark_names_the_slice_of_the_file_and_teaches_with_it(stack, page, tmp_path):
    file, pages = stack
    client = page.client("ann")
    (case,) = drop(client, [(file.name, file.read_bytes())])["cases"]
    at = f"/room/cases/{case['id']}"
    box = {"slice": 4, "x": 10, "y": 10, "w": 10, "h": 10}
    refused = client.patch(f"{at}/mark", json={"boxes": [box | {"slice": LEFT_OUT}], "rate": 0.2})
    assert (refused.status_code, refused.json()["detail"]) == (422, "a box lies outside its image")
    sent = {"boxes": [box], "verdict": "agree", "rate": 0.2}
    assert client.patch(f"{at}/mark", json=sent).json()["mark"]["boxes"] == [box]

    def rows(what):
        text = client.get("/room/export.csv", params={"what": what}).text
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def as_now():
        (mark,) = client.get(at).json()["marks"]
        assert mark["boxes"] == client.get("/room/list").json()["cases"][0]["mark"]["boxes"] == [box]
        for (row,) in (rows("list"), rows("all")):
            assert (row["slice"], '"slice": 4,' in row["boxes"]) == ("4", True)
        coco = client.get("/room/export.json").json()
        assert [(i["file_name"], i["slice"]) for i in coco["images"]] == [("stack.tif#4", 4)]

    as_now()
    with sqlite3.connect(page.room.marks.path) as db:  # as versions before kept it
        db.execute("UPDATE changes SET numbers = ''")
    as_now()
    assert client.post(f"{at}/undo").json()["mark"]["boxes"] == []
    client.patch(f"{at}/mark", json=sent)
    (row,) = rows("list")

    options = ReadOptions(size=(32, 32), channels=1, skip_bad=True)
    for given, beside in (({"name": file.name}, False), ({"path": file.name}, True)):
        named = {**given, "slice": row["slice"], "label": 1}
        marks = tmp_path / "m.csv"
        marks.write_text(",".join(named) + "\n" + ",".join(map(str, named.values())) + "\n")
        found = find(marks, read_marks(marks), None if beside else listing(file, options), options)
        assert np.array_equal(found.images[0, ..., 0], pages[4])
    client.delete("/room/cases")
    (kept,) = rows("all")
    assert (kept["name"], kept["slice"]) == ("", "4")
