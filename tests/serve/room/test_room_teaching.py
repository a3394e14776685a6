"""Teaching on the page: marks make a better model, one update at a time, and are taken back again."""

import shutil
import threading
import time

import numpy as np
import pytest
from marking import fitted, marks, phantom
from medical_files import dicom_file
from reading_room import drop, listed, make_page, png

from dia.core.errors import DataError
from dia.deploy.predictor import Inferencer
from dia.deploy.update import Updated
from dia.detectors import METHODS
from dia.serve.limits import Refused
from dia.serve.room import teaching
from dia.serve.room.cases import Cases
from dia.serve.room.images.case import Marked


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return fitted().save(tmp_path_factory.mktemp("model") / "secret-place")


@pytest.fixture
def page(kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "secret-place")
    yield from paged(run, tmp_path)


def paged(run, tmp_path):
    made = make_page(Inferencer(run, device="cpu"), run, tmp_path / "marks.sqlite")
    made.app.include_router(teaching.routes(made.room))
    yield made
    for close in made.room.at_end:
        close()
    made.room.sessions.close()
    made.room.current.close()


@pytest.fixture(scope="module")
def marked():
    return marks()


def say(client, marked, index):
    """Drops the images and marks them as they are."""
    images, labels = marked
    found = drop(client, [(f"s{i}.png", png(images[i, ..., 0])) for i in index])
    threshold = client.get("/room/threshold?rate=0.05").json()["threshold"] or np.inf
    for case in found["cases"]:
        anomalous = bool(labels[int(case["name"][1:-4])])
        verdict = "agree" if anomalous == (case["score"] > threshold) else "disagree"
        answer = client.patch(f"/room/cases/{case['id']}/mark", json={"verdict": verdict, "rate": 0.05})
        assert answer.status_code == 200
    return found


def done(client):
    late = time.monotonic() + 120
    while time.monotonic() < late:
        if not (found := client.get("/room/teach").json())["running"]:
            return found
    raise AssertionError("the update never ends")


def test_marks_teach_the_model_in_use_and_are_taken_back(page, marked):
    client = page.client("Ann")
    before = say(client, marked, range(24))
    state = client.get("/room/teach").json()
    assert state["marks"] == {"usable": 24, "anomalous": 12, "normal": 12, "unsure": 0}
    assert state["taught"] is None
    assert state["last"] is None
    assert "kept only if it ranks better, not likely by chance (p ≤ 0.25)" in state["advice"]
    about = client.get("/room/state").json()["model"]
    assert client.post("/room/teach", json={}).status_code == 202
    now = done(client)
    assert now["last"]["kept"]
    assert now["last"]["after"] > now["last"]["before"]
    assert "(p = 0.0" in now["last"]["words"] or "(p < 0.001)" in now["last"]["words"]
    assert (now["taught"]["marks"], now["taught"]["readers"]) == (24, 1)
    missed = {case["name"] for case in before["cases"] if case["score"] <= about["threshold"]
              and int(case["name"][1:-4]) < 12}  # fmt: skip
    assert {w["name"] for w in now["watch"]} == missed
    taught = client.get("/room/state").json()["model"]
    assert taught["number"] == about["number"] + 1
    assert taught["lineage"] == about["lineage"] == about["model"] != taught["model"]
    after = listed(client)
    assert [case["score"] for case in after["cases"]] != [case["score"] for case in before["cases"]]
    assert all(case["mark"]["verdict"] for case in after["cases"])  # marks outlive the update
    assert client.post("/room/teach/undo").status_code == 202
    now = done(client)
    assert now["taught"] is None
    assert now["watch"] == []
    assert client.get("/room/state").json()["model"]["model"] == about["model"]
    again = listed(client)
    np.testing.assert_allclose(
        [case["score"] for case in again["cases"]], [case["score"] for case in before["cases"]], rtol=1e-4
    )
    assert client.post("/room/teach/undo").status_code == 409


def test_another_session_adds_its_marks(page, marked):
    first, second = page.client("Ann"), page.client("Bo")
    say(first, marked, range(18))
    first.post("/room/teach", json={})
    assert done(first)["taught"]["marks"] == 18
    assert second.get("/room/teach").json()["marks"]["usable"] == 0
    say(second, marked, range(18, 24))
    second.post("/room/teach", json={})
    now = done(second)
    assert now["last"]["kept"]
    assert (now["taught"]["marks"], now["taught"]["readers"]) == (24, 2)


def test_few_marks_leave_the_model_as_it_is(page, marked):
    client = page.client()
    say(client, marked, [0, 1, 12])
    assert "change nothing" in client.get("/room/teach").json()["advice"]
    client.post("/room/teach", json={})
    now = done(client)
    assert not now["last"]["kept"]
    assert "stays as it is" in now["last"]["words"]
    assert client.get("/room/state").json()["model"]["number"] == 1


def test_what_cannot_be_begun_is_refused_in_a_line(page):
    client = page.client()
    assert "mark some first" in client.post("/room/teach", json={}).json()["detail"]
    assert "nothing to undo" in client.post("/room/teach/undo").json()["detail"]
    assert client.post("/room/teach", json={"path": "/etc/passwd"}).status_code == 422
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/undo")):
        answer = client.request(method, f"/room/teach{path}", headers={"X-Session": "none"}, json={})
        assert answer.status_code == 401


def test_one_update_at_a_time_and_the_end_waits_for_it(page, marked, monkeypatch):
    begun, goes_on, runs = threading.Event(), threading.Event(), []

    def slow(run, *_, **__):
        begun.set()
        assert goes_on.wait(60)
        runs.append(run)
        return Updated(False, "no better")

    monkeypatch.setattr(teaching, "update_folder", slow)
    first, second = page.client("Ann"), page.client("Bo")
    say(first, marked, range(2))
    assert first.post("/room/teach", json={}).status_code == 202
    assert begun.wait(60)
    assert second.get("/room/teach").json()["running"]
    say(second, marked, range(2))
    assert second.post("/room/teach", json={}).status_code == 409
    assert len(listed(second)["cases"]) == 2  # others are answered meanwhile
    close = page.room.at_end[-1]
    ending = threading.Thread(target=close)
    ending.start()
    goes_on.set()
    ending.join(60)
    assert len(runs) == 1
    assert done(first)["last"] == {"kept": False, "words": "no better", "before": None, "after": None}
    assert first.post("/room/teach", json={}).status_code == 503  # it has ended


@pytest.mark.parametrize("error", [DataError, RuntimeError])
def test_a_failure_is_told_without_a_place(page, marked, monkeypatch, error):
    def fails(run, *_, **__):
        raise error(f"{run}: cannot be written ({run}/config.json)")

    monkeypatch.setattr(teaching, "update_folder", fails)
    client = page.client()
    say(client, marked, range(2))
    client.post("/room/teach", json={})
    words = done(client)["last"]["words"]
    assert words.startswith("cannot be written" if error is DataError else "the update failed")
    assert "/tmp" not in words
    assert str(page.room.current.get().run) not in words


def test_a_model_that_is_served_meanwhile_stays(page, marked, monkeypatch):
    goes_on = threading.Event()

    def slow(*_, **__):
        assert goes_on.wait(60)
        return Updated(True, "kept")

    monkeypatch.setattr(teaching, "update_folder", slow)
    client = page.client()
    say(client, marked, range(2))
    client.post("/room/teach", json={})
    other = page.room.current.serve(page.room.current.get().run)
    goes_on.set()
    done(client)
    assert page.room.current.served is other


def test_readers_who_disagree_teach_nothing_of_that_image():
    image, other = phantom(2)
    said = [Marked("a", image, 1, True, "Ann", "a"), Marked("a", image, 0, True, "Bo", "a")]
    said += [
        Marked("b", other, label, not label, name, "b") for name, label in (("Ann", 1), ("Bo", 1), ("Cy", 0))
    ]
    said.append(Marked("c", other[:8], 1, True, "", "c"))
    images, labels, flagged, _ = teaching.agreed(said, (32, 32, 1))
    assert len(images) == 1
    np.testing.assert_array_equal(images[0], other)
    assert list(labels) == [1]
    assert list(flagged) == [True]
    images, labels, *_ = teaching.agreed([], (32, 32, 1))
    assert images.shape == (0, 32, 32, 1)
    assert len(labels) == 0


def test_slices_of_a_case_are_of_one_unit():
    slices = phantom(4)
    said = [Marked(str(i), x, 1, True, "Ann", "xyy"[min(i, 2)]) for i, x in enumerate(slices)]
    *_, units = teaching.agreed(said, (32, 32, 1))
    assert list(units) == [0, 1, 1, 1]


@pytest.mark.parametrize("patients", [2, 1])
def test_cases_of_a_patient_are_of_one_unit_where_dicom_files_tell(page, marked, tmp_path, patients):
    """Files that all name one patient may hold a word for all, and are then each alone."""
    files = []
    for i in range(4):
        path = dicom_file(tmp_path / f"{i}.dcm", marked[0][i, ..., 0], PatientID=f"secret {i % patients}")
        files.append((f"{i}.dcm", path.read_bytes()))
    client = page.client("Ann")
    for case in drop(client, files)["cases"]:
        client.patch(f"/room/cases/{case['id']}/mark", json={"verdict": "agree", "rate": 0.05})
    session = page.room.sessions.find(client.headers["X-Session"])
    units = [one.unit for one in Cases.of(session, page.room).marked(page.room.marks)]
    assert len(units) == 4
    assert len(set(units)) == (2 if patients == 2 else 4)
    assert not any("secret" in unit for unit in units)


def test_a_method_that_cannot_be_taught_says_so(tmp_path, marked):
    run = METHODS["trivial:brightness"]().fit(phantom(30)).save(tmp_path / "b")
    for made in paged(run, tmp_path):
        client = made.client()
        say(client, marked, range(2))
        assert "dia+ can" in client.get("/room/teach").json()["advice"]
        answer = client.post("/room/teach", json={})
        assert answer.status_code == 409
        assert "dia+ can" in answer.json()["detail"]


def test_without_a_model(page):
    page.room.current._served = None
    state = page.client().get("/room/teach").json()
    assert state["advice"] == "no model is served"
    with pytest.raises(Refused):
        teaching.Teaching(page.room).begin([])
