"""What a stranger sends to the service and its page: nothing is asked of another host, and no place is told.

An audit hook sees every look-up and connection of this process while every route, of ours and of gradio,
is asked in many ways. `dia serve` has a second wall, tests/serve/test_alone.py; here it is not there.
"""

import logging
import os
import re
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from live_service import KIND, form, live, picture, read, request

import dia
from dia.core.errors import DataError
from dia.serve.attempts import OWN
from dia.serve.limits import Limits
from dia.serve.review.worklist import Worklist

JSON = b"Content-Type: application/json"
FORM = b"Content-Type: application/x-www-form-urlencoded"
TOKEN = "b81f77-token-of-the-tests-0c2d"
NETWORK = ("socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo", "socket.connect", "socket.send")
ASKED = []


def hook(event, args):
    if event.startswith(NETWORK):
        address = args[0] if event.startswith("socket.get") else args[1]
        if (address[0] if isinstance(address, tuple) else address) not in ("127.0.0.1", None):
            ASKED.append((event, address))


sys.addaudithook(hook)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "token"])
def site(request, inferencer, temporary, tmp_path_factory):
    """The service with its page, without a token and with one."""
    pytest.importorskip("gradio")
    store = tmp_path_factory.mktemp("marks") / "marks.sqlite"
    with live(inferencer, Limits(), request.param, alone=False, store=store) as one:
        one.token, one.store = request.param, store
        yield one


@pytest.fixture
def client(site):
    """A reader who has logged in, where one must."""
    with httpx.Client(base_url=site.url, timeout=30, trust_env=False) as client:
        if site.token:
            answer = client.post("/login", data={"username": "a", "password": site.token})
            assert answer.json() == {"success": True}
            client.headers["Authorization"] = f"Bearer {site.token}"
        yield client


@pytest.fixture(autouse=True)
def nobody_asked():
    ASKED.clear()
    yield
    assert not ASKED


@pytest.fixture
def places(site, served_run, temporary):
    """What no answer may tell: places of this machine, and what errors look like."""
    known = [temporary, served_run.run, site.store, Path(dia.__file__).parent, sys.prefix, os.getcwd()]
    return [*{str(p) for p in known}, str(Path.home()), "site-packages", "Traceback", 'File "', "/tmp/"]


def told(answer, places):
    """The places that an answer tells."""
    text = answer.text + str(answer.headers)
    return [place for place in places if place in text]


FETCHED = ("http://dia.invalid/x.png", "https://198.51.100.7/x", "http://127.0.0.1:9/x", "//dia.invalid/x")
FILES = ("../../../etc/passwd", "/etc/passwd", "x", ".", "file:///etc/passwd", "%00", "é" * 300, "1")
BODIES = (b"", b"{}", b"[", b"[" * 50_000, b'{"data": [1], "fn_index": 1e9}', b'{"path": 1}', b"\xff\xfe")


def routes(app):
    """(method, path) of every route, those of mounted applications and included routers too."""
    for route in getattr(app, "routes", None) or ():
        if path := getattr(route, "path", ""):
            yield from ((method, path) for method in getattr(route, "methods", None) or ("GET",))
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        yield from routes(inner if hasattr(inner, "routes") else getattr(inner, "app", None))


def test_no_route_asks_another_host_or_tells_a_place(site, client, places, caplog):
    """Ours and gradio's, with addresses and files of all kinds in the path and the body."""
    found = sorted({(m, p) for m, p in routes(site.app) if m in ("GET", "POST", "HEAD", "PUT", "DELETE")})
    assert len(found) > 50  # gradio's are among them
    assert ("GET", "/gradio_api/file={path_or_url:path}") in found
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    known = [f"Cookie: {cookies}".encode(), f"Authorization: Bearer {site.token}".encode()]
    statuses = set()
    for method, path in found:
        if re.search("queue/data|upload_progress|logout", path):  # these wait for their event; and this
            continue
        for value in FETCHED + FILES if "{" in path else FILES[:1]:
            filled = raw(re.sub(r"\{[^}]*\}", lambda _, v=value: v, path)).decode()
            for body in BODIES if method == "POST" and value == FILES[0] else (b"",):
                status, answer = site.ask(request(method, filled, body, JSON, *known))
                statuses.add(status)
                assert not [place for place in places if place.encode() in answer], (method, filled, answer)
                if status >= 400 and method != "HEAD":
                    assert b'{"detail":' in answer, answer
    assert {200, 404} <= statuses
    assert not any(500 <= status < 600 for status in statuses)
    assert "Traceback" not in caplog.text


def raw(path):
    return re.sub(rb"[^!-~]", lambda m: b"%%%02X" % m[0][0], path.encode())


def events(named):
    """Bodies of an event of the page that hands in a file by such a name, for each of its first functions."""
    file = {"path": named, "meta": {"_type": "gradio.FileData"}, "url": named, "orig_name": "x.png"}
    for number in range(4):
        rest = {"fn_index": number, "session_hash": "strangers", "event_data": None, "trigger_id": 1}
        yield {"data": [[file], "", 10, "score down", "all"], **rest}
        yield {"data": [{"x": [file]}, file, 10, "score down", "all"], **rest}
        yield {"data": ["", 10, "score down", "all"], **rest, "event_data": file}


@pytest.mark.parametrize("named", [*FETCHED, *FILES, "uploads/" + "0" * 64 + "/../x", "uploads/x", None, 1])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict"])
def test_a_file_that_was_not_uploaded_is_refused(client, places, named, path):
    for body in events(named):
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert "as its upload was answered" in answer.json()["detail"]
        assert not told(answer, places)


@pytest.mark.parametrize(
    "name", ["a.png", "é" * 125 + ".png", "../../a.png", "C:\\a.png", "a" * 5000, "a\nb", "\u202e"]
)
def test_an_upload_is_known_by_a_name_that_tells_no_place(client, places, files, name):
    data = files[0].read_bytes()
    answer = client.post("/gradio_api/upload", files=[("files", (name, data))])
    assert not told(answer, places)
    if answer.status_code == 200:
        (named,) = answer.json()
        assert re.fullmatch(r"uploads/[0-9a-f]{64}/[^/]+", named)
        file = {"path": named, "meta": {"_type": "gradio.FileData"}}
        given = {"data": [[file], "", 10, "score down", "all"], "fn_index": 0, "session_hash": "an upload"}
        answer = client.post("/gradio_api/queue/join", json=given)
        assert answer.status_code == 200
        said = client.get("/gradio_api/queue/data", params={"session_hash": "an upload"}).text
        assert '"success":true' in said
        assert not [place for place in places if place in said]
    else:
        assert answer.status_code in (400, 413)


def test_failures_of_the_page_are_told_in_the_log_alone(client, places, inferencer, monkeypatch):
    """A reader learns that there was an error, and not which file of the machine it was about."""

    def fails(*_, **__):
        raise DataError("/srv/secret/place: a failure")

    monkeypatch.setattr(inferencer, "threshold", fails)
    monkeypatch.setattr(Worklist, "mark", fails)
    said = ""
    for number in range(20):  # every function of the page
        given = {"data": ["", 10, "score down", "all"], "fn_index": number, "session_hash": "x"}
        for more in ([], ["a note"]):
            answer = client.post("/gradio_api/run/predict", json={**given, "data": given["data"] + more})
            assert not told(answer, [*places, "/srv/secret"])
            said += answer.text
    assert "Not saved" in said


def test_a_stream_of_no_window_is_one_line_of_the_log(client, places, caplog):
    answer = client.get("/gradio_api/queue/data", params={"session_hash": "none"})
    assert not told(answer, places)
    assert "broke off" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/login", "/gradio_api/queue/join"])
def test_a_body_that_fills_the_memory_is_refused(site, path):
    head = request("POST", path, b"", FORM, b"Content-Length: 9999999999", length=False)
    with site.connect(head) as connection:
        assert read(connection)[0] == 413
    status, _ = site.ask(request("POST", path, b"x" * 1_100_000))
    assert status == 413


# --- guesses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["page", "service"])
def test_guesses_are_slowed_and_logged_and_readers_go_on(inferencer, tmp_path, caplog, way):
    pytest.importorskip("gradio")
    caplog.set_level(logging.INFO, "dia.serve")
    files = form((b"files", b"a.png", picture()))
    kept = httpx.Limits(keepalive_expiry=None)
    with (
        live(inferencer, Limits(), TOKEN, alone=False, store=tmp_path / "marks.sqlite") as one,
        httpx.Client(base_url=one.url, trust_env=False) as reader,
        httpx.Client(base_url=one.url, trust_env=False, limits=kept) as program,
    ):
        program.headers["Authorization"] = f"Bearer {TOKEN}"
        assert reader.post("/login", data={"username": "a", "password": TOKEN}).status_code == 200
        assert program.get("/model").status_code == 200
        statuses = []
        for i in range(300):
            login = request("POST", "/login", f"username=b&password=guess-{i}".encode(), FORM)
            bearer = request("POST", "/score", files, KIND, f"Authorization: Bearer guess-{i}".encode())
            statuses.append(one.ask({"page": login, "service": bearer}[way])[0])
        wrong = {"page": 400, "service": 401}[way]
        assert statuses[:OWN] == [wrong] * OWN
        assert statuses.count(429) > 200
        assert set(statuses) == {wrong, 429}
        assert reader.get("/config").status_code == 200  # who is logged in stays so
        assert program.get("/model").status_code == 200  # on a connection that showed the token
        assert one.health()["status"] == "ok"
    lines = [r.getMessage() for r in caplog.records if "wrong tokens" in r.getMessage()]
    counted = sum(int(n) for line in lines for n in re.findall(r"(?:tokens: |, )(\d+)", line))
    assert counted == 300
    assert len(caplog.records) < 100 + len(lines)
    assert "guess-" not in caplog.text


def test_json_stays_what_it_was_on_its_way_through_the_door(client):
    """Words like addresses may stand in a note."""
    note = {"data": ["", 10, "score down", "all", "see http://example.org/é"], "fn_index": 8}
    answer = client.post("/gradio_api/run/predict", json={**note, "session_hash": "y"})
    assert answer.status_code == 200
