"""The routes of the reading page: what a client gets, and what it cannot."""

import gzip
import io
import json
import threading

import numpy as np
import pytest
from medical_files import dicom_file
from PIL import Image
from reading_room import drop, listed, make_page, png

from dia.serve.room.store import Marks


@pytest.fixture
def client(page):
    return page.client("ann")


@pytest.fixture
def dropped(client, files):
    """The list of twelve phantoms."""
    return drop(client, [(f"batch/{f.name}", f.read_bytes()) for f in files])


def volume(n=6, h=20, w=24):
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(1).integers(0, 4000, (n, h, w)).astype(np.uint16))
    return buffer.getvalue()


# --- what is told -----------------------------------------------------------------------------------------


def test_the_state_has_what_a_page_draws_with(client, page, inferencer):
    state = client.get("/room/state").json()
    assert state["reader"] == "ann"
    assert state["model"]["number"] == page.room.current.get().number
    assert state["calibration"] == sorted(inferencer.detector.calibration_.scores)
    assert state["heat_scale"] == list(inferencer.heat_scale)
    assert state["heat_level"] == inferencer.detector.heat_.level(inferencer.rate)
    assert len(state["colours"]) == 256
    assert state["dissolve"] == {"t_max": inferencer.t_max - 1}
    assert state["neighbours"] is True
    assert {"name": "lung", "low": -1350, "high": 150} in state["presets"]


def test_without_a_model_the_state_says_so_and_nothing_is_read(page, client):
    page.room.current._served = None
    assert client.get("/room/state").json()["model"] is None
    id = client.post("/room/drops").json()["drop"]
    assert client.post(f"/room/drops/{id}/read").status_code == 409
    assert client.get("/room/threshold?rate=0.1").status_code == 409


def test_the_threshold_is_the_models_or_null_with_words(client, inferencer):
    found = client.get("/room/threshold?rate=0.2").json()
    assert found["threshold"] == inferencer.threshold(0.2)
    assert found["n"] == 40
    none = client.get("/room/threshold?rate=0.001").json()
    assert none["threshold"] is None
    assert none["heat_level"] is None
    assert "smallest" in none["words"]
    assert none["smallest"] == 0.025
    assert [client.get(f"/room/threshold?rate={bad}").status_code for bad in ("0", "1", "nan", "x")] == [
        422
    ] * 4


def test_the_list_has_scores_ranks_and_progress_and_is_sent_when_it_changed(
    client, dropped, inferencer, files
):
    cases = dropped["cases"]
    assert [case["name"] for case in cases] == [f"batch/{f.name}" for f in files]
    expected = inferencer.score(inferencer.read(files).images(inferencer.shape)).scores
    assert np.allclose([case["score"] for case in cases], expected, atol=1e-4)
    assert sorted(case["next"] for case in cases) == list(range(1, 13))
    assert next(c for c in cases if c["next"] == 1)["score"] == max(c["score"] for c in cases)
    assert dropped["progress"] | {"problems": []} == {
        "files": 12, "read": 12, "images": 12, "scored": 12, "done": True, "problems": []
    }  # fmt: skip
    version = dropped["version"]
    while (same := client.get("/room/list", params={"since": version})).status_code == 200:
        version = same.json()["version"]  # the end of the work is a change too
    assert (same.status_code, same.content) == (204, b"")
    client.patch(f"/room/cases/{cases[0]['id']}/mark", json={"verdict": "unsure", "rate": 0.2})
    after = client.get("/room/list", params={"since": version}).json()
    assert after["cases"][0]["mark"]["verdict"] == "unsure"
    assert after["cases"][0]["next"] is None


def test_a_volume_is_one_case_with_slices_pixels_and_heat(client, page):
    (case,) = drop(client, [("v.npy", volume())])["cases"]
    found = client.get(f"/room/cases/{case['id']}").json()
    scores = [one["score"] for one in found["slices"]]
    assert (found["images"], found["shape"], found["dtype"], found["channels"]) == (6, [20, 24], "uint16", 1)
    assert (found["score"], found["worst"]) == (max(scores), int(np.argmax(scores)))
    assert found["p_value"] == pytest.approx(min(1, 6 * min(s["p_value"] for s in found["slices"])), abs=1e-5)
    stored = np.load(io.BytesIO(volume()))
    for k in (0, 5):
        sent = client.get(f"/room/cases/{case['id']}/slices/{k}/pixels")
        assert np.array_equal(np.frombuffer(sent.content, "<u2").reshape(20, 24), stored[k])
        heat = client.get(f"/room/cases/{case['id']}/slices/{k}/heat")
        assert len(heat.content) == 4 * np.prod(found["model_shape"])
    assert found["range"] == [stored.min(), stored.max()]
    assert client.get(f"/room/cases/{case['id']}/slices/6/pixels").status_code == 404


def test_pixels_are_packed_where_the_client_takes_it(client, dropped):
    path = f"/room/cases/{dropped['cases'][0]['id']}/slices/0/pixels"
    with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed) == plain.content


def test_pictures_of_a_slice(client, dropped, inferencer, files):
    at = f"/room/cases/{dropped['cases'][0]['id']}"
    image = inferencer.read(files[:1]).images(inferencer.shape)

    def picture(path):
        answer = client.get(at + path)
        assert answer.status_code == 200, answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    assert picture("/thumb").shape == (32, 32)
    nearest = client.get(f"{at}/slices/0/nearest").json()
    found = inferencer.nearest(image)
    assert [n["distance"] for n in nearest["normals"]] == [round(d, 4) for d in found.distances[0].tolist()]
    assert np.array_equal(picture("/slices/0/nearest/2"), found.images[0, 2, ..., 0])
    copy = picture("/slices/0/dissolved?t=50")
    assert np.array_equal(copy, inferencer.dissolve(image, [50])[0, 0, ..., 0])
    difference = picture("/slices/0/dissolved?t=50&what=difference").astype(int)
    assert np.abs(difference - 128 - 2 * (image[0, ..., 0].astype(int) - copy)).max() <= 127
    for bad in ("dissolved?t=1000", "dissolved?t=-1", "dissolved?t=x", "dissolved", "dissolved?t=1&what=x"):
        assert client.get(f"{at}/slices/0/{bad}").status_code == 422
    assert client.get(f"{at}/slices/0/nearest/4").status_code == 404


def test_findings_are_in_native_pixels_and_say_why_there_are_none(client):
    pixels = np.full((64, 48), 90, np.uint8)
    pixels[10:20, 30:40] = 255
    (case,) = drop(client, [("a.png", png(pixels))])["cases"]
    found = client.get(f"/room/cases/{case['id']}/findings", params={"rate": 0.9}).json()
    assert found["level"] is not None
    for one in found["findings"]:
        x, y, w, h = one["box"]
        assert 0 <= x < x + w <= 48
        assert 0 <= y < y + h <= 64
        assert one["lesion"] > 0
    none = client.get(f"/room/cases/{case['id']}/findings", params={"rate": 0.001}).json()
    assert (none["findings"], none["level"]) == ([], None)
    assert none["words"]


# --- sessions ---------------------------------------------------------------------------------------------


def test_every_route_needs_a_session(page):
    found = {}
    client = page.client()
    client.headers.pop("x-session")
    for route, methods in page.app.openapi()["paths"].items():
        for method in methods:
            sent = {"params": {"rate": 0.1, "t": 1}}
            if method in ("put", "patch"):
                sent["json"] = {"name": "x"} if method == "put" else {"rate": 0.1}
            if route.endswith("/files"):
                sent["files"] = {"files": b"x"}
            path = route.format(drop="d", id="i", k=0, j=0)
            found[method, route] = client.request(method.upper(), path, **sent).status_code
    assert len(found) > 20
    assert set(found.values()) == {401}, found


def test_another_session_finds_nothing_of_mine(page, client, dropped):
    other = page.client("ben")
    id = dropped["cases"][0]["id"]
    mine = client.post("/room/drops").json()["drop"]
    gets = [
        "", "/thumb", "/slices/0/pixels", "/slices/0/heat", "/findings?rate=0.2", "/slices/0/nearest",
        "/slices/0/nearest/0", "/slices/0/dissolved?t=5",
    ]  # fmt: skip
    answers = [other.get(f"/room/cases/{id}{path}") for path in gets]
    answers += [
        other.patch(f"/room/cases/{id}/mark", json={"verdict": "agree", "rate": 0.2}),
        other.post(f"/room/cases/{id}/undo"), other.post(f"/room/drops/{mine}/read"),
        other.post(f"/room/drops/{mine}/files", files={"files": ("a.png", b"x")}),
    ]  # fmt: skip
    assert [a.status_code for a in answers] == [404] * len(answers)
    assert other.get("/room/list").json()["cases"] == []
    other.delete(f"/room/drops/{mine}")
    other.delete("/room/cases")
    assert client.post(f"/room/drops/{mine}/files", files={"files": ("a.png", b"x")}).status_code == 200
    assert len(client.get("/room/list").json()["cases"]) == 12


def test_a_reload_in_the_same_session_keeps_the_list(page, client, dropped):
    again = page.client()
    again.headers["x-session"] = client.headers["x-session"]
    assert again.get("/room/list").json() == client.get("/room/list").json()


def test_the_readers_name_is_set_where_no_login_gave_it(page, client):
    assert client.put("/room/reader", json={"name": "else"}).status_code == 409
    nobody = page.client()
    assert nobody.put("/room/reader", json={"name": " Dr.\n B\x00 "}).json() == {"reader": "Dr. B"}
    assert nobody.get("/room/state").json()["reader"] == "Dr. B"
    assert len(nobody.put("/room/reader", json={"name": "x" * 300}).json()["reader"]) == 100


# --- marks ------------------------------------------------------------------------------------------------


def test_marks_of_readers_stand_side_by_side_and_one_undoes_ones_own(page, client, dropped, files):
    other = page.client("ben")
    theirs = drop(other, [("renamed.png", files[0].read_bytes())])["cases"][0]["id"]
    id = dropped["cases"][0]["id"]
    client.patch(f"/room/cases/{id}/mark", json={"verdict": "agree", "rate": 0.2})
    box = {"slice": 0, "x": 1, "y": 2, "w": 3, "h": 4}
    client.patch(f"/room/cases/{id}/mark", json={"note": "edge", "boxes": [box], "rate": 0.2})
    other.patch(f"/room/cases/{theirs}/mark", json={"verdict": "disagree", "rate": 0.2})
    found = client.get(f"/room/cases/{id}").json()
    assert [(m["reader"], m["verdict"], m["mine"]) for m in found["marks"]] == [
        ("ann", "agree", True), ("ben", "disagree", False),
    ]  # fmt: skip
    assert found["marks"][0]["boxes"] == [box]
    assert (found["history"], found["others"]) == (2, 1)
    back = client.post(f"/room/cases/{id}/undo").json()
    assert (back["mark"]["note"], back["mark"]["boxes"], back["history"]) == ("", [], 1)
    client.post(f"/room/cases/{id}/undo")
    assert client.post(f"/room/cases/{id}/undo").status_code == 409
    assert [m["reader"] for m in client.get(f"/room/cases/{id}").json()["marks"]] == ["ben"]
    assert client.get("/room/list").json()["cases"][0]["mark"] is None


def test_two_servers_on_one_file_show_each_others_marks(page, client, dropped, inferencer, served_run, files):
    other = make_page(inferencer, served_run.run, page.room.marks.path)
    browser = other.client("ann")
    (theirs,) = drop(browser, [("again.png", files[0].read_bytes())])["cases"]
    before = browser.get("/room/list").json()["version"]
    client.patch(f"/room/cases/{dropped['cases'][0]['id']}/mark", json={"verdict": "agree", "rate": 0.2})
    after = browser.get("/room/list", params={"since": before})
    assert after.json()["cases"][0]["mark"]["verdict"] == "agree"
    assert browser.get(f"/room/cases/{theirs['id']}").json()["history"] == 1
    other.room.sessions.close()


def test_a_verdict_and_a_note_at_once_are_both_kept(client, dropped):
    for case in dropped["cases"][:5]:
        start = threading.Barrier(2)

        def change(sent, path=f"/room/cases/{case['id']}/mark", start=start):
            start.wait()
            assert client.patch(path, json=sent | {"rate": 0.2}).status_code == 200

        threads = [threading.Thread(target=change, args=(w,)) for w in ({"verdict": "agree"}, {"note": "n"})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mark = client.get(f"/room/cases/{case['id']}").json()["marks"][0]
        assert (mark["verdict"], mark["note"]) == ("agree", "n")


@pytest.mark.parametrize(
    "sent",
    [
        {}, {"rate": 0}, {"rate": 1}, {"rate": "NaN"}, {"rate": 0.2, "verdict": "yes"},
        {"rate": 0.2, "name": "x"},
        {"rate": 0.2, "note": "x" * 2001}, {"rate": 0.2, "note": "a\x00"}, {"rate": 0.2, "note": "a\ud800"},
        {"rate": 0.2, "boxes": [{"slice": 1, "x": 0, "y": 0, "w": 1, "h": 1}]},
        {"rate": 0.2, "boxes": [{"x": 99, "y": 0, "w": 1, "h": 1}]},
        {"rate": 0.2, "boxes": [{"x": 0, "y": 0, "w": 0, "h": 1}]},
        {"rate": 0.2, "boxes": [{"x": 0, "y": 0, "w": 1, "h": 1, "path": "/etc/passwd"}]},
        {"rate": 0.2, "boxes": [{"x": 0, "y": 0, "w": 1, "h": 1}] * 101},
        {"rate": 0.2, "boxes": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}},
        [], "x", None,
    ],
    ids=str,
)  # fmt: skip
def test_a_mark_that_cannot_be_is_refused(client, dropped, sent):
    path = f"/room/cases/{dropped['cases'][0]['id']}/mark"
    answer = client.patch(path, content=json.dumps(sent), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert client.get("/room/list").json()["cases"][0]["mark"] is None


def test_a_box_is_cut_to_its_image(client, dropped):
    sent = {"rate": 0.2, "boxes": [{"x": -2, "y": 30, "w": 10, "h": 10}]}
    mark = client.patch(f"/room/cases/{dropped['cases'][0]['id']}/mark", json=sent).json()["mark"]
    assert mark["boxes"] == [{"slice": 0, "x": 0, "y": 30, "w": 8, "h": 2}]


def test_a_file_of_marks_that_is_gone_or_broken_is_no_path_on_the_page(page, client, dropped):
    path = f"/room/cases/{dropped['cases'][0]['id']}/mark"
    page.room.marks.path.unlink()
    assert client.patch(path, json={"verdict": "agree", "rate": 0.2}).status_code == 200
    assert page.room.marks.path.stat().st_mode & 0o077 == 0
    page.room.marks.path.write_bytes(b"no database" * 200)
    answer = client.patch(path, json={"verdict": "unsure", "rate": 0.2})
    assert answer.status_code == 500
    assert str(page.room.marks.path.parent) not in answer.text


# --- what a client may not --------------------------------------------------------------------------------


def test_no_request_makes_the_server_open_a_file_that_was_not_sent(page, client, tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(np.full((9, 9), 77, np.uint8)))
    opened = []
    import builtins

    real = builtins.open

    def spy(file, *more, **named):
        opened.append(str(file))
        return real(file, *more, **named)

    monkeypatch.setattr(builtins, "open", spy)
    claim = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    names = [str(secret), f"../../../..{secret}", f"a/../../{secret}", secret.as_uri()]
    found = drop(client, [
        *((name, b"not an image") for name in names), ("x.json", json.dumps(claim).encode()),
        ("list.csv", f"path\n{secret}\n".encode()),
        ("far.nhdr", f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 9 9\nencoding: raw\n"
                     f"data file: {secret}\n".encode()),
        ("far.mhd", f"ObjectType = Image\nNDims = 2\nDimSize = 9 9\nElementType = MET_UCHAR\n"
                    f"ElementDataFile = {secret}\n".encode()),
    ])  # fmt: skip
    assert found["cases"] == []
    client.post("/room/drops", json=claim)
    client.put("/room/reader", json={"name": claim})
    for path in (str(secret), f"../{secret.name}", "%2e%2e%2f%2e%2e", claim["path"].replace("/", "%2f")):
        assert client.get(f"/room/cases/{path}/thumb").status_code in (404, 422)
        assert client.post(f"/room/drops/{path}/read").status_code in (404, 405, 422)
    assert str(secret) not in opened


def test_names_with_patient_data_reach_neither_disk_nor_log(page, client, files, tmp_path, caplog):
    caplog.set_level(0)
    name = "Meyer^Anna 1970-01-01"
    found = drop(client, [(f"{name}/{f.name}", f.read_bytes()) for f in files[:2]] + [(f"{name}.txt", b"x")])
    assert len(found["cases"]) == 2
    for case in found["cases"]:
        client.patch(f"/room/cases/{case['id']}/mark", json={"verdict": "agree", "note": "n", "rate": 0.2})
    assert "Meyer" not in caplog.text
    for file in tmp_path.rglob("*"):
        assert "Meyer" not in file.name
        if file.is_file():
            assert b"Meyer" not in file.read_bytes()


def test_a_dicom_series_of_a_zip_is_a_case(client, tmp_path):
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for k in range(4):
            file = dicom_file(
                tmp_path / f"{k}.dcm", np.random.default_rng(k).integers(0, 99, (9, 9)).astype(np.uint8),
                SeriesInstanceUID="1.2", InstanceNumber=4 - k,
            )  # fmt: skip
            zipped.write(file, f"study/{k}.dcm")
    (case,) = drop(client, [("all.zip", packed.getvalue())])["cases"]
    assert (case["name"], case["images"]) == ("study", 4)


def test_marks_made_before_a_restart_are_there_after_it(page, client, dropped, inferencer, served_run, files):
    id = dropped["cases"][0]["id"]
    client.patch(f"/room/cases/{id}/mark", json={"verdict": "agree", "note": "n", "rate": 0.2})
    again = make_page(inferencer, served_run.run, page.room.marks.path)
    browser = again.client("ann")
    (case,) = drop(browser, [("other name.png", files[0].read_bytes())])["cases"]
    assert case["mark"]["note"] == "n"
    assert len(Marks(page.room.marks.path).of_lineage(inferencer.about()["lineage"])) == 1
    assert listed(browser)["cases"] == [case]
    again.room.sessions.close()


def test_a_box_that_has_no_size_once_it_is_rounded_is_refused(client, dropped):
    case = dropped["cases"][0]
    width = case["shape"][1]
    for box in ({"x": width - 0.001, "w": 1}, {"x": 0, "w": 1e-9}, {"x": 1e9, "w": 1}):
        sent = {"rate": 0.05, "boxes": [{"slice": 0, "y": 0, "h": 1} | box]}
        answer = client.patch(f"/room/cases/{case['id']}/mark", json=sent)
        assert (answer.status_code, answer.json()["detail"]) == (422, "a box lies outside its image")


def test_a_volume_is_flagged_by_its_p_value_and_an_image_by_its_score(client, page, dropped):
    case = drop(client, [("v.npy", volume())])["cases"][-1]
    assert case["images"] == 6
    for rate in (case["p_value"] - 1e-3, case["p_value"]):
        if 0 < rate < 1:
            sent = {"verdict": "agree", "rate": rate}
            mark = client.patch(f"/room/cases/{case['id']}/mark", json=sent).json()["mark"]
            assert mark["flagged"] == (case["p_value"] <= rate)
