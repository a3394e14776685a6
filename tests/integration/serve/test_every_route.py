"""Every route that the application has, as strangers ask it: without a token, from another site, for a file.

The list is the application's own, so that a route that is added later is tested too. An audit hook sees every
look-up and connection of this process. `dia serve` has a second wall, tests/serve/test_alone.py; here it is
not there. Three services: open, with a token, and with one behind a proxy that ends TLS, under a name.
"""

import json
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from live_service import KIND, form, live, picture, read, request

import dia
from dia.serve.limits import Limits
from dia.serve.middleware import LOOPBACK

JSON = b"Content-Type: application/json"
TOKEN = "b81f77-token-of-the-tests-0c2d"
NAME = "dia.hospital.example"
NETWORK = ("socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo", "socket.connect", "socket.send")
HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy",
           "cross-origin-opener-policy", "cross-origin-resource-policy", "cache-control")  # fmt: skip
ASKED, OPENED = [], []


def hook(event, args, network=NETWORK):  # names of modules are gone when the interpreter ends
    if event.startswith(network):
        address = args[0] if event.startswith("socket.get") else args[1]
        if (address[0] if isinstance(address, tuple) else address) not in ("127.0.0.1", None):
            ASKED.append((event, address))
    elif event == "open" and str(args[0]) in ("/etc/passwd", "/dev/zero", "/etc", "/"):
        OPENED.append(args[0])


sys.addaudithook(hook)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("temporary"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before


@pytest.fixture(scope="module", params=["open", "token", "proxy"])
def site(request, inferencer, temporary, tmp_path_factory):
    """The service with its page; `sent` are the headers that a proxy adds."""
    store = tmp_path_factory.mktemp("marks") / "marks.sqlite"
    proxied, token = request.param == "proxy", None if request.param == "open" else TOKEN
    hosts = (*LOOPBACK, NAME) if proxied else LOOPBACK
    options = {"alone": False, "store": store, "hosts": hosts, "behind_proxy": proxied}
    with live(inferencer, Limits(), token, **options) as one:
        one.token, one.store = token, store
        one.sent = (
            {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": NAME} if proxied else {}
        )
        one.origin = f"https://{NAME}" if proxied else one.url
        yield one


@pytest.fixture
def client(site):
    """A reader's browser: logged in, where one must."""
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False, headers=site.sent) as client:
        client.headers["Origin"] = site.origin
        if site.token:
            answer = client.post("/login", data={"name": "a", "token": site.token})
        else:
            answer = client.get("/")
        assert answer.status_code in (200, 303)
        (cookie,) = answer.headers.get_list("set-cookie")
        client.cookies.clear()  # httpx keeps none that is for TLS alone
        client.headers["Cookie"] = cookie.partition(";")[0]
        client.set = cookie
        yield client


@pytest.fixture(autouse=True)
def nobody_asked():
    ASKED.clear()
    OPENED.clear()
    yield
    assert not ASKED
    assert not OPENED


@pytest.fixture
def places(site, served_run, temporary):
    """What no answer may tell: places of this machine, and what errors look like."""
    known = [temporary, served_run.run, site.store, Path(dia.__file__).parent, sys.prefix]
    return [*{str(p) for p in known}, str(Path.home()) + "/", "site-packages", "Traceback", 'File "', "/tmp/"]


def told(answer, places):
    """The places that an answer tells."""
    text = answer.text + str(answer.headers)
    return [place for place in places if place in text]


def routes(app):
    """(method, path) of every route, those of mounted applications and included routers too."""
    for route in getattr(app, "routes", None) or ():
        if path := getattr(route, "path", ""):
            yield from ((method, path) for method in getattr(route, "methods", None) or ("GET",))
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        yield from routes(inner if hasattr(inner, "routes") else getattr(inner, "app", None))


def all_routes(site, fill="1"):
    """(method, path) of every route, with a value in the place of each parameter."""
    found = {(m, p) for m, p in routes(site.app) if m in ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE")}
    gets = {"/", "/openapi.json", "/docs", "/static/{name}", "/room/state", "/room/list"}
    assert {*(("GET", p) for p in gets), *(("POST", p) for p in ("/score", "/login", "/logout"))} <= found
    return sorted((m, re.sub(r"\{[^}]*\}", fill, p)) for m, p in found)


def is_open(path):
    return path in ("/health", "/login") or path.startswith("/static/")


# --- who asks ---------------------------------------------------------------------------------------------


def test_without_token_or_session_no_route_answers(site):
    """But the health, the login, what it looks like, and pages, which lead to the login."""
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False, headers=site.sent) as stranger:
        stranger.headers["Origin"] = site.origin
        for method, path in [*all_routes(site), ("GET", "/nothing"), ("POST", "/room"), ("GET", "/room/x/y")]:
            answer = stranger.request(method, path)
            stranger.cookies.clear()
            if is_open(path):
                continue
            if method == "GET" and path in ("/", "/train"):
                assert answer.status_code == (303 if site.token else 200), path
                assert (answer.headers.get("location") == "/login") == bool(site.token)
            elif site.token or path.startswith("/room") or path == "/logout":
                assert answer.status_code == 401, (method, path)
    if site.token:
        for path in ("/room/state", "/room/list"):  # a program's token is no reader's session
            answer = httpx.get(
                site.url + path, timeout=60, headers={**site.sent, "Authorization": f"Bearer {TOKEN}"}
            )
            assert answer.status_code == 401


@pytest.mark.parametrize(
    "said",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "anything"},
    ],
    ids=["foreign", "null", "odd", "picture", "sibling", "frame", "unknown"],
)
def test_no_route_answers_another_site(site, client, said):
    """On any method, though the browser sent the session's cookie, or a page knew the token."""
    given = {k: v for k, v in client.headers.items() if k.lower() != "origin"} | said
    if site.token:
        given["Authorization"] = f"Bearer {site.token}"
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as browser:
        for method, path in all_routes(site):
            answer = browser.request(method, path, headers=given)
            assert answer.status_code == 403, (method, path)
            assert "set-cookie" not in answer.headers
            assert not [h for h in answer.headers if h.startswith("access-control")]
    assert client.get("/room/state").status_code == 200


def test_a_link_of_another_site_leads_to_the_page_without_a_cookie(site, client):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    with httpx.Client(
        base_url=site.url, timeout=60, trust_env=False, headers={**site.sent, **link}
    ) as browser:
        for path in ("/", "/train", "/login"):
            for sent in ({}, {"Cookie": client.headers["Cookie"]}):
                answer = browser.get(path, headers=sent)
                assert "set-cookie" not in answer.headers
                assert "your name" not in answer.text  # nothing of a session
        for method, path in (
            ("POST", "/login"),
            ("POST", "/logout"),
            ("GET", "/room/state"),
            ("GET", "/logout"),
        ):
            assert browser.request(method, path).status_code == 403
    assert client.get("/room/state").status_code == 200


def test_what_changes_something_says_where_it_comes_from(site, client):
    """As every browser does: a request with a session's cookie and neither header is none of a page."""
    bare = {k: v for k, v in client.headers.items() if k.lower() != "origin"}
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as browser:
        for method, path in all_routes(site):
            if method in ("POST", "PUT", "PATCH", "DELETE") and path not in ("/score", "/dissolve"):
                assert browser.request(method, path, headers=bare).status_code == 403, path
        if site.token:
            files = [("files", ("a.png", picture()))]
            assert browser.post("/score", files=files, headers=bare).status_code == 401


# --- what is answered -------------------------------------------------------------------------------------


def test_every_answer_has_the_headers_and_none_allows_another_site(site, client):
    for method, path in [*all_routes(site), ("GET", "/nothing")]:
        if path == "/logout" or method == "HEAD":
            continue
        bare = httpx.request(method, site.url + path, timeout=60, trust_env=False)
        for answer in (client.request(method, path), bare):
            assert [h for h in HEADERS if h not in answer.headers] == [], (method, path)
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            assert "default-src 'none'" in policy
            assert not [h for h in answer.headers if h.startswith("access-control")]
            if path.startswith("/room"):
                assert answer.headers["cache-control"] == "no-store"


FETCHED = ("http://dia.invalid/x.png", "https://198.51.100.7/x", "http://127.0.0.1:9/x", "//dia.invalid/x")
FILES = (
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "x",
    ".",
    "file:///etc/passwd",
    "%00",
    "é" * 300,
    "1",
)
BODIES = (
    b"", b"{}", b"[", b"[" * 50_000, b'{"data": [1], "name": 1e9}', b'{"path": 1}', b"\xff\xfe",
    b'{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}',
    b'{"name": "/dev/zero", "data": "/etc", "drop": "/dev/zero", "run": "../../../etc"}',
    b'{"drop": "http://dia.invalid/x.png", "name": "x", "run": "http://dia.invalid/"}',
)  # fmt: skip


def test_no_route_asks_another_host_opens_a_file_or_tells_a_place(site, client, places, caplog):
    """With addresses and files of all kinds in the path and the body."""
    known = [f"{k}: {v}".encode() for k, v in {**client.headers}.items() if k in ("cookie", "origin")]
    known += [f"{k}: {v}".encode() for k, v in site.sent.items() if k != "Host"]
    host = site.origin.partition("//")[2].encode()
    statuses = set()
    for method, path in sorted({(m, p) for m, p in routes(site.app) if m != "OPTIONS"}):
        if path in ("/logout", "/login"):
            continue
        for value in FETCHED + FILES if "{" in path else FILES[:1]:
            filled = raw(re.sub(r"\{[^}]*\}", lambda _, v=value: v, path)).decode()
            with_body = method in ("POST", "PUT", "PATCH") and value == FILES[0]
            for body in BODIES if with_body else (b"",):
                status, answer = site.ask(request(method, filled, body, JSON, *known, host=host))
                statuses.add(status)
                assert not [place for place in places if place.encode() in answer], (method, filled, answer)
                if status >= 400 and method != "HEAD":
                    assert b'{"detail":' in answer, answer
                assert status in (501, 503) or status < 500, (method, filled, body, answer)
    assert {200, 404} <= statuses
    assert "Traceback" not in caplog.text


def raw(path):
    return re.sub(rb"[^!-~]", lambda m: b"%%%02X" % m[0][0], path.encode())


# --- before the token -------------------------------------------------------------------------------------


def test_no_body_is_read_before_the_token(site):
    """Of 300 MB that were announced, some kilobytes are sent; the answer does not wait for more."""
    host = site.origin.partition("//")[2].encode()
    sent = [f"{k}: {v}".encode() for k, v in {**site.sent, "Origin": site.origin}.items() if k != "Host"]
    for method, path in all_routes(site):
        if method not in ("POST", "PUT", "PATCH", "DELETE") or (
            not site.token and path in ("/score", "/dissolve")
        ):
            continue
        for kind in (KIND, JSON, b"Content-Type: application/x-www-form-urlencoded"):
            for how in (b"Content-Length: 300000000", b"Transfer-Encoding: chunked"):
                head = request(method, path, b"", *sent, kind, how, host=host, length=False)
                head = head.replace(b"Connection: close\r\n", b"")
                with site.connect(head + b"7fffffff\r\n" * (how[:1] == b"T")) as connection:
                    with suppress(ConnectionError):
                        for _ in range(8):
                            connection.sendall(b" " * 9000)
                    status, _ = read(connection)
                expected = (413, 303) if path == "/login" else (401,)
                assert status in expected, (method, path)


@pytest.mark.parametrize("path", ["/room/reader", "/room/drops", "/room/cases/1/mark", "/room/train/start"])
def test_after_the_token_a_body_of_no_files_is_small(site, client, path):
    method = {"/room/reader": "PUT", "/room/cases/1/mark": "PATCH"}.get(path, "POST")
    large = json.dumps({"name": "x" * 100_000})
    answer = client.request(method, path, content=large, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.request(method, path, content=form((b"files", b"a.png", bytes(90_000))), headers=kind)
    assert answer.status_code == 413


# --- sessions ---------------------------------------------------------------------------------------------


def test_the_cookie_is_for_this_site_alone(site, client):
    words = {word.strip().lower() for word in client.set.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= words
    assert not [word for word in words if word.startswith("domain")]
    secure = site.origin.startswith("https")
    assert ("secure" in words) == secure
    assert client.set.startswith("__Host-dia_session=" if secure else "dia_session=")


def test_a_session_is_never_one_that_a_client_chose(site, client):
    name, _, own = client.headers["Cookie"].partition("=")
    with httpx.Client(
        base_url=site.url, timeout=60, trust_env=False, headers={**site.sent, "Origin": site.origin}
    ) as other:
        for chosen in (f"{name}=chosen", f"{name}=", f"{name}={own}; {name}=chosen", f"x{name}={own}", own):
            assert other.get("/room/state", headers={"Cookie": chosen}).status_code == 401
        if site.token:
            answer = other.post(
                "/login", data={"name": "b", "token": TOKEN}, headers={"Cookie": client.headers["Cookie"]}
            )
            assert own not in answer.headers["set-cookie"]  # a new one,
            assert client.get("/room/state").status_code == 401  # and the old one is over
        else:
            answer = other.get("/", headers={"Cookie": f"{name}=chosen"})
            assert "chosen" not in answer.headers["set-cookie"]


def test_only_post_logs_out(site, client):
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert client.request(method, "/logout").status_code in (404, 405)
    assert client.get("/room/state").status_code == 200
    answer = client.post("/logout")
    assert answer.status_code == 303
    assert 'dia_session=""' in answer.headers["set-cookie"]
    assert client.get("/room/state").status_code == 401
