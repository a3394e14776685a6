"""The HTTP service: what it answers is what the command line says, and what it refuses costs it nothing."""

import asyncio
import base64
import copy
import csv
import gzip
import hmac
import io
import json
import os
import re
import socket
import sys
import tempfile
import threading
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from live_service import app_of
from medical_files import nifti_file
from PIL import Image

from dia.cli.main import main
from dia.deploy.predictor import Inferencer, Picture, Verdict
from dia.report.pictures import colour
from dia.serve.answers import volumes
from dia.serve.batching import Batcher
from dia.serve.limits import Deadline, Limits, Refused
from dia.serve.uploads import Unpacking

TOKEN = "a token of thirty-two characters!".replace(" ", "-")
TIGHT = Limits(batch=5)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of its own for temporary files, empty again after every test; Pillow's limit as it was."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    yield folder
    assert not list(folder.iterdir())


@contextmanager
def serving(inferencer, limits=TIGHT, token=None, **options):
    app = app_of(inferencer, limits, token, **options)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


@pytest.fixture(scope="module")
def client(inferencer):
    before = Image.MAX_IMAGE_PIXELS
    with serving(inferencer) as client:
        yield client
    Image.MAX_IMAGE_PIXELS = before


def parts(files):
    """Files, or (name, bytes) pairs, as a multipart body."""
    pairs = [f if isinstance(f, tuple) else (f.name, f.read_bytes()) for f in files]
    return [("files", pair) for pair in pairs]


def zipped(members, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data, **options)
    return buffer.getvalue()


def png(width=8, height=8):
    buffer = io.BytesIO()
    Image.new("L", (width, height), 90).save(buffer, "PNG")
    return buffer.getvalue()


def refused(response, status, *words):
    """One line of JSON without a traceback or a place of this machine."""
    assert response.status_code == status, response.text
    (line,) = response.json().values()
    assert "\n" not in line
    for word in words:
        assert word in line
    for place in (tempfile.gettempdir(), os.getcwd(), "Traceback", "site-packages"):
        assert place not in response.text
    return line


# --- answers ----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_command_line(served_run, client, files, tmp_path):
    main(["score", str(served_run.run), str(served_run.data), "--out", str(tmp_path / "s.csv")])
    with (tmp_path / "s.csv").open() as file:
        rows = {r["path"]: r for r in csv.DictReader(file)}
    answer = client.post("/score", files=parts(files)).json()
    assert answer["errors"] == []
    assert answer["volumes"] == []
    assert [i["name"] for i in answer["images"]] == [f.name for f in files]
    for file, image in zip(files, answer["images"], strict=True):
        row = rows[file.relative_to(served_run.data).as_posix()]
        assert image["score"] == pytest.approx(float(row["score"]), rel=1e-4)
        assert image["p_value"] == float(row["p_value"])
        assert image["flagged"] == (row["flagged"] == "1")
        assert image["heatmap"] is None
    assert answer["false_alarm_rate"] == 0.2
    assert answer["model"]["method"] == "dia+"
    assert any(i["flagged"] for i in answer["images"]) == any(
        i["score"] > answer["threshold"] for i in answer["images"]
    )


def test_heatmaps_are_raw_numbers_or_pictures_on_one_scale(client, inferencer, files, images):
    own = inferencer.score(images[:3]).heatmaps
    raw = client.post("/score", files=parts(files[:3]), data={"heatmaps": "raw"}).json()
    drawn = client.post("/score", files=parts(files[:3]), data={"heatmaps": "png"}).json()
    maps = np.stack([np.frombuffer(base64.b64decode(i["heatmap"]), "<f4") for i in raw["images"]])
    np.testing.assert_allclose(maps.reshape(own.shape), own, rtol=1e-3, atol=1e-3)
    shown = [Image.open(io.BytesIO(base64.b64decode(i["heatmap"]))) for i in drawn["images"]]
    expected = colour(maps.reshape(own.shape), tuple(drawn["heat_scale"]))
    assert np.abs(np.stack(shown).astype(int) - expected).max() <= 2


def test_another_false_alarm_rate_is_another_threshold(client, inferencer, files):
    strict = client.post("/score", files=parts(files), data={"false_alarm_rate": "0.01"}).json()
    assert strict["threshold"] is None  # the held-out normals are too few for it
    assert not any(i["flagged"] for i in strict["images"])
    loose = client.post("/score", files=parts(files), data={"false_alarm_rate": "0.9"}).json()
    assert loose["threshold"] == inferencer.threshold(0.9)
    for text in ("0", "1.5"):
        answer = client.post("/score", files=parts(files[:1]), data={"false_alarm_rate": text})
        refused(answer, 422, "between 0 and 1")


def test_a_zip_is_told_by_its_content_and_its_names_are_no_paths(client, files, temporary):
    one, two = (f.read_bytes() for f in files[:2])
    packed = zipped([
        ("good/a.png", one), ("../../../b.png", two), ("/etc/c.png", one), ("good/.hidden.png", one),
        ("__MACOSX/good/a.png", one), ("inner.zip", zipped([("d.png", two)])), ("empty/", b""),
        ("notes.txt", b"hello"),
    ])  # fmt: skip
    answer = client.post("/score", files=parts([("scans", packed), files[2]])).json()
    assert [i["name"] for i in answer["images"]] == ["good/a.png", "b.png", "etc/c.png", files[2].name]
    assert [e["name"] for e in answer["errors"]] == ["inner.zip", "notes.txt"]
    alone = client.post("/score", files=parts(files[:2])).json()
    for packed_one, plain in zip(answer["images"][:2], alone["images"], strict=True):
        assert packed_one["score"] == pytest.approx(plain["score"], rel=1e-4)


def test_a_bad_file_does_not_fail_the_others(client, files):
    broken = files[0].read_bytes()[:60]
    sent = [files[0], ("broken.png", broken), ("cut.zip", zipped([("a.png", b"x" * 99)])[:-30]), files[1]]
    sent += [("list.csv", b"path,label\n/etc/passwd,0\n"), ("C:\\scans\\x.png", b"")]
    answer = client.post("/score", files=parts(sent))
    assert [i["name"] for i in answer.json()["images"]] == [files[0].name, files[1].name]
    errors = {e["name"]: e["error"] for e in answer.json()["errors"]}
    assert set(errors) == {"broken.png", "cut.zip", "list.csv", "x.png"}
    assert "root:" not in answer.text
    assert tempfile.gettempdir() not in answer.text
    line = refused(client.post("/score", files=parts(sent[1:2])), 422, "broken.png")
    assert "0000" not in line  # the number it was stored under


def test_encrypted_and_oddly_packed_members_are_errors(client, files):
    data = bytearray(zipped([("secret.png", files[0].read_bytes())]))
    data[6] |= 1  # the flag, in the member and in the directory
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    odd = zipped([("odd.png", files[0].read_bytes())], compress_type=zipfile.ZIP_LZMA)
    answer = client.post("/score", files=parts([("e.zip", bytes(data)), ("o.zip", odd), files[0]])).json()
    errors = {e["name"]: e["error"] for e in answer["errors"]}
    assert "encrypted" in errors["secret.png"]
    assert "deflate" in errors["odd.png"]
    assert len(answer["images"]) == 1


def test_dissolved_copies_are_the_dissolver_s(client, inferencer, files, images):
    answer = client.post("/dissolve", files=parts(files[:2]), data={"t": ["50", "400"]}).json()
    own = inferencer.dissolve(images[:2], [50, 400])
    for i, image in enumerate(answer["images"]):
        assert [d["t"] for d in image["dissolved"]] == [50, 400]
        for j, d in enumerate(image["dissolved"]):
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(d["png"]))))
            assert np.abs(shown.astype(int) - own[j, i, ..., 0]).max() <= 1
    accepts = {"Accept": "application/zip"}
    sent = parts([*files[:2], ("bad one.png", b"x")])
    packed = client.post("/dissolve", files=sent, data={"t": "50"}, headers=accepts)
    assert packed.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(packed.content)) as found:
        stem = [f.name for f in files[:2]]
        assert found.namelist() == [f"0000_{stem[0]}_t050.png", f"0001_{stem[1]}_t050.png", "errors.json"]
        assert json.loads(found.read("errors.json"))[0]["name"] == "bad one.png"
    refused(client.post("/dissolve", files=parts(files[:1]), data={"t": "1000"}), 422, "0–999")


def test_a_model_without_dissolver_or_heatmaps_says_so(served_run, files, tmp_path):
    run = tmp_path / "hog"
    main(["fit", str(served_run.data), "--method", "trivial:hog", "--out", str(run)])
    with serving(Inferencer(run, device="cpu")) as plain:
        assert plain.post("/score", files=parts(files)).status_code == 200
        refused(plain.post("/score", files=parts(files), data={"heatmaps": "png"}), 422, "no heatmaps")
        refused(plain.post("/dissolve", files=parts(files)), 422, "no dissolver")


def test_a_file_of_several_images_has_its_greatest_scores():
    scores = np.array([7.0, 1.0, 4.0, 2.0, 3.0, 0.0, 5.0, 9.0])
    verdict = Verdict(scores, np.array([0.1, 0.9, 0.3, 0.6, 0.5, 1.0, 0.12, 0.1]), None)
    own = [(0, None), *[(1, "ct.nii")] * 6, (3, None)]
    pictures = [Picture("", np.zeros((1, 1, 1), np.uint8), file, volume=name) for file, name in own]
    (volume,) = volumes(pictures, verdict, 2.5)
    assert (volume.name, volume.images, volume.flagged) == ("ct.nii", 6, 3)
    assert volume.max_score == 5
    assert volume.top_mean == pytest.approx((5 + 4 + 3 + 2 + 1) / 5)
    assert volume.p_value == pytest.approx(6 * 0.12)


def test_a_file_of_several_volumes_has_them_one_by_one_as_the_command_line(served_run, client, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (20, 20, 3, 2)).astype(np.int16)
    file = nifti_file(tmp_path / "a.nii.gz", voxels)
    main(["score", str(served_run.run), str(file), "--out", str(tmp_path / "s.csv")])
    with (tmp_path / "s.csv").open() as rows, (tmp_path / "s.volumes.csv").open() as of_volumes:
        names = [row["path"] for row in csv.DictReader(rows)]
        whole = {row["volume"]: float(row["p_value"]) for row in csv.DictReader(of_volumes)}
    assert len(set(names)) == 6
    answer = client.post("/score", files=parts([file, file])).json()
    assert [image["name"] for image in answer["images"]] == names * 2
    assert [(v["name"], v["images"]) for v in answer["volumes"]] == [(name, 3) for name in whole] * 2
    assert [v["p_value"] for v in answer["volumes"][:2]] == pytest.approx([*whole.values()])
    found = client.post("/score", files=parts([file]), data={"findings": "list"}).json()["images"]
    assert {f["slice"] for image in found for f in image["findings"]} <= {0, 1, 2}


def test_the_documentation_asks_nothing_of_the_network(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text)
    for local in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(local).status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/score", "/dissolve", "/health", "/model"} <= set(paths)


def test_values_that_cannot_be_are_refused_in_one_line(client, files):
    one = parts(files[:1])
    refused(client.post("/score", files=one, data={"heatmaps": "gif"}), 422, "heatmaps")
    refused(client.post("/score", files=one, data={"heatmap": "png"}), 422, "heatmap", "not permitted")
    refused(client.post("/score?heatmaps=png", files=one), 422, "form fields")
    refused(client.post("/dissolve", files=one, data={"t": "often"}), 422, "t.0")
    refused(client.post("/score"), 422, "files")
    refused(
        client.post("/score", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data"}), 400
    )
    refused(client.get("/score"), 405)
    refused(client.get("/nothing"), 404)


# --- limits -----------------------------------------------------------------------------------------------


def test_a_body_is_counted_while_it_arrives(inferencer):
    """As one without a Content-Length is; no more of it is taken than tells that it is too much."""
    app = app_of(inferencer, Limits(max_mb=0.5))
    taken, sent = [], []
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": start + bytes(2**17) if len(taken) == 1 else bytes(2**17),
                "more_body": True}  # fmt: skip

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/score", "raw_path": b"/score", "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80),
             "client": ("127.0.0.1", 9), "root_path": ""}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [413]
    assert b"0.5 MB" in sent[-1]["body"]
    assert len(taken) == 4  # 4 × 128 KiB are more than 0.5 MB
    asyncio.run(app(scope | {"headers": [*headers, (b"content-length", b"500001")]}, receive, send))
    assert sent[-2]["status"] == 413
    assert len(taken) == 4  # its header was enough


@pytest.mark.parametrize(
    ("limits", "sent", "word"),
    [
        (Limits(max_files=3), [("a.png", png())] * 4, "3 files"),
        (Limits(max_files=3), [("z", zipped([(f"{i}.png", png()) for i in range(4)]))], "3 files"),
        (Limits(max_images=3), [("a.png", png())] * 4, "3 images"),
        (Limits(max_unpacked_mb=0.1), [("z", zipped([("a.png", bytes(10**6))]))], "0.1 MB"),
        (Limits(max_unpacked_mb=0.1), [("a.nii.gz", gzip.compress(bytes(10**6)))], "0.1 MB"),
        (Limits(max_unpacked_mb=0.1), [("a", gzip.compress(b"") + gzip.compress(bytes(10**6)))], "0.1 MB"),
        (Limits(max_files=9), [("z", zipped([(f"{i:0200d}/", b"") for i in range(5000)]))], "9 files"),
    ],
)  # fmt: skip
def test_what_is_above_a_limit_is_refused(inferencer, limits, sent, word):
    with serving(inferencer, limits) as client:
        refused(client.post("/score", files=parts(sent)), 413, word)
        assert client.post("/score", files=parts([("a.png", png())])).status_code == 200


def test_a_zip_s_directory_is_not_believed(inferencer):
    """The size it states is small; the bytes that come out are counted."""
    data = bytearray(zipped([("a.png", bytes(10**6))]))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.rindex(signature) + offset
        data[at : at + 4] = (99).to_bytes(4, "little")
    with serving(inferencer, Limits(max_unpacked_mb=0.1)) as client:
        answer = client.post("/score", files=parts([("z", bytes(data))]))
    assert answer.status_code in (413, 422)  # too much, or at odds with its checksum: never all of it


def test_pixels_are_counted_before_they_are_decoded(inferencer):
    small, large = png(100, 100), png(101, 100)
    with serving(inferencer, Limits(max_pixels=10_000)) as client:
        answer = client.post("/score", files=parts([("s.png", small), ("l.png", large)])).json()
    assert [i["name"] for i in answer["images"]] == ["s.png"]
    assert "10100 pixels" in answer["errors"][0]["error"]


def test_deflated_dicom_files_are_not_opened(client):
    """pydicom inflates them whole before anything of them is known."""
    bomb = bytes(128) + b"DICM" + bytes(2**20 - 140) + b"1.2.840.10008.1.2.1.99" + bytes(100)  # cut in two
    refused(client.post("/score", files=parts([("x.dcm", bomb)])), 422, "x.dcm", "deflated")


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_no_damage_to_a_zip_is_more_than_an_error(changes, cut):
    data = bytearray(
        zipped([("a/b.png", png()), ("c.nii.gz", gzip.compress(bytes(500))), ("d.txt", b"hello")])
    )
    for at, value in changes:
        data[at % len(data)] = value
    limits = Limits(max_unpacked_mb=0.01, max_files=5)
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "inside"
        inside.mkdir()
        with tempfile.TemporaryFile() as file:  # a real file fails otherwise than one in memory
            file.write(data[: len(data) - cut])
            file.seek(0)
            found = Unpacking(inside, limits, Deadline(60))
            with suppress(Refused):
                found.add("x.zip", file)
            assert len(found.files) == len(found.names) <= 5
            assert len(found.files) + len(found.errors) <= 5
        for file in [p for p in Path(folder).rglob("*") if p != inside]:
            assert file.parent == inside


class Slow:
    """Scores when it is told to."""

    def __init__(self, inferencer):
        self.model, self.go, self.began = copy.copy(inferencer), threading.Event(), threading.Event()
        self.model.score = self.score

    def score(self, images, heatmaps=True):
        self.began.set()
        assert self.go.wait(30)
        n = len(images)
        return Verdict(images.reshape(n, -1).mean(1), np.full(n, 0.5), None)


def idle(client):
    """Until no request is worked on."""
    for _ in range(2000):
        if not client.get("/health").json()["active_requests"]:
            return
    pytest.fail("a request was worked on for ever")


def test_a_request_that_takes_too_long_is_answered_and_still_counts(inferencer):
    slow = Slow(inferencer)
    with serving(slow.model, Limits(max_seconds=0.3, max_concurrent=1)) as client:
        one = parts([("a.png", png())])
        refused(client.post("/score", files=one), 504, "0.3 seconds")
        # the first one's thread may just have ended too, by the same deadline
        slow.go.set()
        idle(client)


def test_more_requests_than_may_be_worked_on_are_told_to_come_again(inferencer):
    slow = Slow(inferencer)
    with serving(slow.model, Limits(max_concurrent=1)) as client:
        one, answers = parts([("a.png", png())]), []
        thread = threading.Thread(target=lambda: answers.append(client.post("/score", files=one)))
        thread.start()
        assert slow.began.wait(30)
        busy = client.post("/score", files=one)
        refused(busy, 503, "1 requests")
        assert int(busy.headers["Retry-After"]) > 0
        assert client.get("/health").json()["active_requests"] == 1  # which is answered all the same
        slow.go.set()
        thread.join()
        assert answers[0].status_code == 200
        idle(client)


def test_more_images_than_may_wait_are_told_to_come_again(inferencer):
    slow = Slow(inferencer)
    with serving(slow.model, Limits(max_waiting=3, batch=1, batch_wait_ms=0)) as client:
        three, answers = parts([("a.png", png())] * 3), []
        thread = threading.Thread(target=lambda: answers.append(client.post("/score", files=three)))
        thread.start()
        assert slow.began.wait(30)
        assert client.get("/health").json()["waiting_images"] == 2  # one is being scored
        refused(client.post("/score", files=parts([("a.png", png())] * 2)), 503, "waiting")
        slow.go.set()
        thread.join()
        assert answers[0].status_code == 200


def test_an_error_of_the_model_is_one_line_and_the_next_request_is_answered(inferencer, images, files):
    flaky = copy.copy(inferencer)
    failures = [RuntimeError(f"no memory at {tempfile.gettempdir()}")]

    def score(images, heatmaps=True):
        if failures:
            raise failures.pop()
        return inferencer.score(images, heatmaps)

    flaky.score = score
    with serving(flaky) as client:
        assert "memory" not in refused(client.post("/score", files=parts(files[:1])), 500)
        assert client.post("/score", files=parts(files[:1])).status_code == 200


def test_each_of_many_threads_gets_the_answers_to_its_own_images(inferencer, files, images):
    """In batches of five, which cut requests of one to four images in pieces and join them."""
    counted = copy.copy(inferencer)
    batches = []

    def score(images, heatmaps=True):
        batches.append(len(images))
        return inferencer.score(images, heatmaps)

    counted.score = score
    expected = dict(zip([f.name for f in files], inferencer.score(images).scores, strict=True))
    mine = [[files[(3 * i + j) % len(files)] for j in range(1 + i % 4)] for i in range(8)]
    answers = {}
    with serving(counted, Limits(batch=5, batch_wait_ms=200)) as client:

        def ask(i):
            answers[i] = client.post("/score", files=parts(mine[i])).json()["images"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, own in enumerate(mine):
        assert [a["name"] for a in answers[i]] == [f.name for f in own]
        for a in answers[i]:
            assert a["score"] == pytest.approx(expected[a["name"]], rel=1e-4)
    assert max(batches) <= 5
    assert sum(batches) == sum(map(len, mine))
    assert len(batches) < len(mine)  # requests shared them


def test_a_large_request_does_not_hold_up_a_small_one(inferencer):
    slow = Slow(inferencer)
    batches = []

    def score(images, heatmaps):
        verdict = slow.score(images)
        batches.append(verdict.scores.tolist())
        return verdict

    batcher, deadline = Batcher(score, Limits(batch=2, batch_wait_ms=0)), Deadline(60)
    large = np.zeros((8, 4, 4, 1), np.uint8)
    thread = threading.Thread(target=batcher.score, args=(large, False, deadline))
    thread.start()
    assert slow.began.wait(30)
    small = threading.Thread(target=batcher.score, args=(large[:1] + 9, False, deadline))
    small.start()
    while batcher.waiting < 7:  # six of the large one are left, until the small one comes
        pass
    slow.go.set()
    thread.join()
    small.join()
    assert batches == [[0, 0], [0, 0], [9, 0], [0, 0], [0]]
    with pytest.raises(Refused, match="0 seconds"):
        batcher.score(large, False, Deadline(0))
    batcher.close()
    with pytest.raises(Refused, match="stopping"):
        batcher.score(large, False, deadline)


# --- who may ask ------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_compared_in_constant_time(inferencer, files, monkeypatch):
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    with serving(inferencer, token=TOKEN) as client:
        one = parts(files[:1])
        for given in (
            None,
            "Bearer",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            "Bearer ä",
        ):
            headers = {} if given is None else {b"Authorization": given.encode("latin-1")}
            answer = client.post("/score", files=one, headers=headers)
            refused(answer, 401, "Bearer")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        refused(client.get("/model"), 401)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/score", files=one, headers=right).status_code == 200
        assert client.get("/model", headers=right).json()["method"] == "dia+"
        assert client.get("/health").json() == {
            "status": "ok", "model_loaded": True, "active_requests": 0, "waiting_images": 0
        }  # fmt: skip
        refused(client.get("/openapi.json"), 401)
        refused(client.get("/docs"), 401)
        schemes = client.get("/openapi.json", headers=right).json()["components"]["securitySchemes"]
        assert [s["scheme"] for s in schemes.values()] == ["bearer"]
    assert (TOKEN.encode(), TOKEN.encode()) in compared


def test_without_a_right_token_no_body_is_read(inferencer):
    app = app_of(inferencer, TIGHT, TOKEN)
    sent = []

    async def receive():
        raise AssertionError("read")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [(b"host", b"localhost")]}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_the_token_holds_where_the_service_is_part_of_another(inferencer, files):
    whole = FastAPI()
    whole.mount("/dia", app_of(inferencer, TIGHT, TOKEN))
    with TestClient(whole, base_url="http://127.0.0.1") as client:
        refused(client.get("/dia/model"), 401)
        refused(client.post("/dia/score", files=parts(files[:1])), 401)
        assert client.get("/dia/health").status_code == 200


def test_pages_of_other_sites_neither_send_nor_read(client, files):
    one = parts(files[:1])
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        refused(client.post("/score", files=one, headers={"Origin": origin}), 403, "other sites")
    own = client.post("/score", files=one, headers={"Origin": "http://127.0.0.1:7860"})
    assert own.status_code == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        refused(client.get("/model", headers={"Host": host}), 400, "host")
    for host in ("localhost:7860", "LOCALHOST", "[::1]:7860"):
        assert client.get("/model", headers={"Host": host}).status_code == 200
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/score", headers=preflight)
    refused(answer, 403, "other sites")
    assert not [h for h in answer.headers if h.startswith("access-control")]


def test_the_service_says_nothing_of_this_machine(client, served_run, files):
    told = client.get("/model").text + client.get("/health").text + client.get("/openapi.json").text
    told += client.post("/score", files=parts(files[:1])).text
    for place in (str(served_run.run.parent), os.path.expanduser("~"), sys.prefix, socket.gethostname()):
        assert place not in told


# --- the command ------------------------------------------------------------------------------------------


def test_what_cannot_be_served_is_one_line(served_run, capsys, monkeypatch):
    monkeypatch.delenv("DIA_TOKEN", raising=False)

    def line(*options):
        with pytest.raises(SystemExit) as stop:
            main(["serve", str(served_run.run), "--page", "false", "--device", "cpu", *options])
        assert stop.value.code == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        return said

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}" in line("--port", port)
    assert "--allow-open" in line("--host", "0.0.0.0", "--port", "0")
    assert "--max-files" in line("--max-files", "0")
    assert "--port" in line("--port", "70000")
    assert "token" in line("--port", "0", "--token", "two words")
    assert "nowhere" in line("--port", "0", "--normals", "nowhere")
