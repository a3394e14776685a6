"""What strangers and other sites do to a running `dia serve`, and what it costs: memory, files, log, places.

One process with a token behind a proxy's name, which is asked in many ways and at the end stopped; and a real
Chromium, in which pages of a sibling and of a foreign host try to use a reader's session.
"""

import http.server
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from live_service import KIND, Live, app_of, form, live, picture, read, request
from test_every_route import routes

from dia.serve.attempts import OWN
from dia.serve.limits import Limits
from dia.serve.middleware import LOOPBACK

TOKEN = "b81f77-token-of-the-tests-0c2d"
MARK = "zqjxkvwqzj-patient"  # in every name that is sent
NAME = b"dia.hospital.example"
TLS = (b"X-Forwarded-Proto: https", b"X-Forwarded-For: 203.0.113.9", b"Origin: https://" + NAME)
FORM = b"Content-Type: application/x-www-form-urlencoded"
JSON = b"Content-Type: application/json"
HALF = 5  # seconds: half of those in which a login has to arrive, the shortest limit of a connection


class Process(Live):
    """`dia serve` as a process."""

    def __init__(self, process, port, folder, log):
        self.process, self.port, self.folder, self.log = process, port, folder, log

    def memory(self):
        """Bytes that it holds."""
        return (
            int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024
        )

    def left(self):
        """The files in its temporary folder, and what those without a name take, in bytes."""
        open_files = Path(f"/proc/{self.process.pid}/fd").iterdir()
        sizes = 0
        for file in open_files:
            with suppress(OSError):
                if str(self.folder / "tmp") in os.readlink(file):
                    sizes += file.stat().st_size
        return [p for p in (self.folder / "tmp").rglob("*") if p.is_file() and p.name != "lock"], sizes


@contextmanager
def served(run, folder, *options, token=TOKEN):
    """Starts it, and sees that a SIGTERM ends it in order."""
    (folder / "tmp").mkdir()
    log = folder / "log"
    secret = {"DIA_TOKEN": token} if token else {}
    options = ("--port", "0", "--device", "cpu", "--store", str(folder / "marks.sqlite"), *options)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dia", "serve", *([str(run)] if run else []), *options],
            stderr=file, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")} | secret,
        )  # fmt: skip
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
        one = Process(process, int(found[1]), folder, log)
        one.ask(
            request("GET", "/model", b"", b"Authorization: Bearer " + TOKEN.encode())
        )  # waits for the model
        yield one
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert log.read_text().endswith("stopped\n")
        assert not list((folder / "tmp").iterdir())
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def process(served_run, tmp_path_factory):
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    with served(
        served_run.run, tmp_path_factory.mktemp("served"), "--allowed-hosts", f"[{NAME.decode()}]"
    ) as one:
        post = request(
            "POST",
            "/score",
            form((b"files", b"a.png", picture())),
            KIND,
            b"Authorization: Bearer " + TOKEN.encode(),
        )
        assert one.ask(post)[0] == 200  # what is imported late is there
        yield one


@pytest.fixture
def cookie(process):
    """A reader's, who came through the proxy and logs out."""
    body = f"name=a&token={TOKEN}".encode()
    own = (*TLS[:1], b"X-Forwarded-For: 203.0.113.77", TLS[2])  # from which nobody guesses
    with process.connect(request("POST", "/login", body, FORM, *own, host=NAME)) as connection:
        head = b""
        while piece := connection.recv(1 << 16):
            head += piece
    cookie = b"Cookie: " + re.search(rb"set-cookie: ([^;]+)", head)[1]
    yield cookie
    assert process.ask(request("POST", "/logout", b"", cookie, *TLS, host=NAME))[0] == 303


# --- before the token -------------------------------------------------------------------------------------


def test_300_mb_before_the_token_cost_no_memory_and_no_file(process, tmp_path):
    """To every address that takes a body; at one it is sent until the service closes."""
    before, written = process.memory(), process.log.stat().st_size
    app = app_of(None, store=tmp_path / "marks.sqlite")
    paths = {p for m, p in routes(app) if m in ("POST", "PUT", "PATCH", "DELETE")}
    assert {"/score", "/login", "/room/drops/{drop}/files"} <= paths
    chunk = b"%x\r\n%b\r\n" % (1 << 20, b'{"path": "/etc/passwd"}'.ljust(1 << 20))
    for path in sorted(paths):
        for kind in (JSON, KIND):
            way = "PUT" if path == "/room/reader" else "PATCH" if path.endswith("mark") else "POST"
            where, how = re.sub("[{}]", "", path), b"Transfer-Encoding: chunked"
            head = request(way, where, b"", kind, how, *TLS, host=NAME, length=False)
            with process.connect(head) as connection, suppress(ConnectionError):
                for _ in range(300 if path in ("/login", "/score") else 3):
                    connection.sendall(chunk)
    process.until(active_requests=0)
    assert process.memory() < before + (48 << 20)
    assert process.left() == ([], 0)
    assert process.log.stat().st_size < written + 20_000


@pytest.fixture
def many():
    """Lets this process open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("too few files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    yield 1100
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("what", ["idle", "half a head", "slow login", "unread answer"])
def test_1100_connections_do_not_take_the_health_away(process, many, what):
    """Answered while they are held: none was closed before half of its time was over."""
    login = request("POST", "/login", b"", FORM, b"Content-Length: 2000", *TLS, host=NAME, length=False)
    sent = {
        "idle": b"",
        "half a head": b"GET /health HTTP/1.1\r\nHost: loc",
        "slow login": login + b"name=a&token=",
        "unread answer": b"GET /static/base.css HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8,
    }[what]
    with ExitStack() as held:
        connections = [(time.monotonic(), held.enter_context(process.connect(sent))) for _ in range(many)]
        assert process.health()["status"] == "ok"
        closed = 0
        for since, connection in connections[-400:]:  # a slow machine took longer for them than a login may
            connection.setblocking(False)
            try:
                ended = what != "unread answer" and connection.recv(1) == b""
            except BlockingIOError:
                ended = False
            except ConnectionError:
                ended = True
            closed += ended and time.monotonic() - since < HALF
        assert closed <= 10
        assert process.health()["status"] == "ok"
    status, _ = process.ask(request("GET", "/model", b"", b"Authorization: Bearer " + TOKEN.encode()))
    assert status == 200


def test_the_log_grows_slowly_whatever_is_sent(process):
    """Malformed, refused, guessed, upgraded and unknown requests, 3000 of them."""
    before = process.log.stat().st_size
    kinds = (
        b"hello\r\n\r\n",
        request("GET", "/" + "x" * 4000),
        request("GET", "/health", b"", b"Upgrade: websocket", b"Connection: Upgrade"),
        request("GET", "/health", host=b"evil.example"),
        request("GET", "/model", b"", b"Authorization: Bearer " + b"g" * 2000),
        request("POST", "/login", b"name=x&token=y", FORM, *TLS, host=NAME),
    )
    for i in range(3000):
        process.ask(kinds[i % len(kinds)])
    assert process.log.stat().st_size < before + 40_000
    assert process.health()


# --- with a session ---------------------------------------------------------------------------------------


def test_no_request_makes_the_service_read_a_file(process, cookie):
    """What gradio did with the first; the second held it for good."""
    for named in ("/etc/passwd", "/dev/zero"):
        for body in (
            {"path": named, "meta": {"_type": "gradio.FileData"}},
            {"data": [{"path": named, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0},
            {"drop": named}, {"data": named}, {"run": named}, {"name": named, "drop": named},
        ):  # fmt: skip
            for path in (
                "/room/drops", "/room/train/check", "/room/train/start", "/room/train/serve",
                "/room/train/resume", "/room/drops/1/read", "/gradio_api/queue/join", "/score",
            ):  # fmt: skip
                sent = request("POST", path, json.dumps(body).encode(), JSON, cookie, *TLS, host=NAME)
                status, answer = process.ask(sent)
                assert status < 500
                assert b"root:" not in answer
    opened = {os.readlink(f) for f in Path(f"/proc/{process.process.pid}/fd").iterdir() if f.exists()}
    assert "/dev/zero" not in opened
    assert process.health()


def test_names_of_patients_reach_neither_disk_nor_log(process, cookie):
    """In file names, folders, zips' members, addresses, and words of errors."""
    name = MARK.encode()
    bearer = b"Authorization: Bearer " + TOKEN.encode()
    files = form(
        (b"files", name + b"/" + name + b".png", picture()), (b"files", name + b".dcm", b"DICM" + name),
        (b"files", name + b".zip", b"PK\x03\x04" + name), (name, name),
    )  # fmt: skip
    for path in (
        "/score", "/dissolve", "/room/drops/1/files", f"/room/drops/{MARK}/files",
        f"/room/cases/{MARK}/mark", f"/{MARK}", f"/static/{MARK}",
    ):  # fmt: skip
        for shown in (bearer, cookie):
            for method in ("GET", "POST"):
                status, _ = process.ask(
                    request(method, path, files if method == "POST" else b"", KIND, shown, *TLS, host=NAME)
                )
                assert status < 500
    _, body = process.ask(request("POST", "/room/drops", b"{}", JSON, cookie, *TLS, host=NAME))
    drop = json.loads(body)["drop"]
    named = (name + b"/" + name + b".png", name + b".dcm")
    files = form((b"files", named[0], picture()), (b"files", named[1], b"DICM" + name))
    sent = request("POST", f"/room/drops/{drop}/files", files, KIND, cookie, *TLS, host=NAME)
    assert process.ask(sent)[0] == 200
    assert process.left()[0]
    assert not [p for p in process.folder.rglob("*") if MARK in str(p)]
    assert process.ask(request("POST", f"/room/drops/{drop}/read", b"", cookie, *TLS, host=NAME))[0] == 202
    answer = b""
    while b'"done":true' not in answer.replace(b" ", b""):
        _, answer = process.ask(request("GET", "/room/list", b"", cookie, *TLS, host=NAME))
    assert name in answer  # the reader's own list alone knows it
    for file in process.folder.rglob("*"):
        if file.is_file():
            assert name not in file.read_bytes(), file


@pytest.mark.parametrize("how", ["goes away", "too much"])
def test_an_upload_that_ends_early_leaves_no_file(process, cookie, how):
    """Nor one without a name that still takes place: 3 MB are above what is held in memory."""
    status, body = process.ask(request("POST", "/room/drops", b"{}", JSON, cookie, *TLS, host=NAME))
    assert status < 300, body
    drop = json.loads(body)["drop"]
    files = form((b"files", b"a.bin", bytes(3_000_000)))
    length = b"Content-Length: %d" % (len(files) if how == "goes away" else 10**9)
    head = request(
        "POST", f"/room/drops/{drop}/files", b"", KIND, length, cookie, *TLS, host=NAME, length=False
    )
    with process.connect(head + files[:-20]) as connection:
        if how == "too much":
            assert read(connection)[0] == 413
    process.until(active_requests=0)
    process.ask(request("DELETE", f"/room/drops/{drop}", b"", cookie, *TLS, host=NAME))
    for _ in range(1000):
        if process.left() == ([], 0):
            break
        process.health()
    assert process.left() == ([], 0)


# --- guesses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["page", "service"])
def test_guesses_are_slowed_and_logged_and_readers_go_on(inferencer, tmp_path, caplog, way):
    caplog.set_level("INFO", "dia.serve")
    files = form((b"files", b"a.png", picture()))
    kept = httpx.Limits(keepalive_expiry=None)
    with (
        live(inferencer, Limits(), TOKEN, alone=False, store=tmp_path / "marks.sqlite") as one,
        httpx.Client(base_url=one.url, timeout=60, trust_env=False, headers={"Origin": one.url}) as reader,
        httpx.Client(base_url=one.url, timeout=60, trust_env=False, limits=kept) as program,
    ):
        origin = f"Origin: {one.url}".encode()
        host = one.url.partition("//")[2].encode()
        program.headers["Authorization"] = f"Bearer {TOKEN}"
        assert reader.post("/login", data={"name": "a", "token": TOKEN}).status_code == 303
        assert program.get("/model").status_code == 200
        statuses = []
        for i in range(300):
            login = request("POST", "/login", f"name=b&token=guess-{i}".encode(), FORM, origin, host=host)
            bearer = request("POST", "/score", files, KIND, f"Authorization: Bearer guess-{i}".encode())
            statuses.append(one.ask({"page": login, "service": bearer}[way])[0])
        assert statuses[:OWN] == [401] * OWN
        assert statuses.count(429) > 200
        assert set(statuses) == {401, 429}
        assert reader.get("/room/state").status_code == 200  # who is logged in stays so
        assert program.get("/model").status_code == 200  # on a connection that showed the token
        assert one.health()["status"] == "ok"
    lines = [r.getMessage() for r in caplog.records if "wrong tokens" in r.getMessage()]
    counted = sum(int(n) for line in lines for n in re.findall(r"(?:tokens: |, )(\d+)", line))
    assert counted == 300
    assert "guess-" not in caplog.text


# --- in a browser -----------------------------------------------------------------------------------------


EVIL = """<!doctype html><title>evil</title><body><script>
const at = "AT", tried = {};
const note = (name, promise) => promise.then(
  (a) => tried[name] = `${a.type} ${a.status}`, () => tried[name] = "failed");
const image = (path) => new Promise((done, fail) => {
  const i = new Image(); i.onload = done; i.onerror = fail; i.src = at + path; });
const script = (path) => new Promise((done, fail) => {
  const s = document.createElement("script"); s.onload = done; s.onerror = fail; s.src = at + path;
  document.body.append(s); });
const shown = { method: "POST", credentials: "include" };
window.done = Promise.all([
  note("state", fetch(at + "/room/state", { credentials: "include" })),
  note("rename", fetch(at + "/room/reader", { ...shown, method: "PUT", body: '{"name": "evil"}',
    headers: { "Content-Type": "application/json" } })),
  note("plain", fetch(at + "/room/reader", { ...shown, mode: "no-cors", body: '{"name": "evil"}' })),
  note("logout", fetch(at + "/logout", { ...shown, mode: "no-cors" })),
  note("logout by get", fetch(at + "/logout", { mode: "no-cors", credentials: "include" })),
  note("login", fetch(at + "/login", { ...shown, mode: "no-cors",
    body: new URLSearchParams({ name: "evil", token: "TOKEN" }) })),
  note("score", fetch(at + "/score", { ...shown, mode: "no-cors", body: new FormData() })),
  image("/static/icon.svg").then(() => tried.image = "loaded", () => tried.image = "failed"),
  script("/static/base.js").then(() => tried.script = "loaded", () => tried.script = "failed"),
]).then(() => tried);
</script><iframe id="frame" src="AT/"></iframe><a id="link" href="AT/">link</a>
<form id="form" method="post" action="AT/logout"></form></body>"""


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium")
    root = os.name == "posix" and os.getuid() == 0
    args = ["--host-resolver-rules=MAP *.example 127.0.0.1", *["--no-sandbox"] * root]
    with (
        api.sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=found, args=args)) as one,
    ):
        yield one


@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "token"])
@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", "evil.example"),
        ("localhost", "localhost"),
        ("dia.hospital.example", "evil.example"),
        ("dia.hospital.example", "other.hospital.example"),
    ],
    ids=["foreign", "another port", "foreign to a name", "sibling of a name"],
)
def test_pages_of_other_hosts_do_nothing_with_a_session(inferencer, tmp_path, browser, host, where, token):
    """From a foreign host, a sibling, and the very host at another port, for which the cookie is sent, too.

    By a name and without TLS browsers do not say `Sec-Fetch-Site`.
    """
    store, hosts = tmp_path / "m.sqlite", [*LOOPBACK, "dia.hospital.example"]
    with live(inferencer, Limits(), token, alone=False, store=store, hosts=hosts) as one:
        at = f"http://{host}:{one.port}"
        evil = EVIL.replace("AT", at).replace("TOKEN", TOKEN)
        with attacker(evil) as port, closing(browser.new_context()) as context:
            page = context.new_page()
            page.goto(at)
            if token:
                page.get_by_label("Your name").fill("Dr. A")
                page.get_by_label("Token").fill(token)
                page.get_by_role("button", name="Log in").click()
                page.locator("nav").wait_for()
            else:
                if host.endswith("example"):
                    page.get_by_role("button", name="Open it").click()
                page.locator("input#reader").fill("Dr. A")
                with page.expect_response("**/room/reader"):
                    page.locator("input#reader").blur()
            (before,) = context.cookies(at)
            other = context.new_page()
            other.goto(f"http://{where}:{port}")
            tried = other.evaluate("window.done")
            assert len(tried) == 9
            assert tried["image"] == tried["script"] == "failed"
            for name, how in tried.items():  # an opaque answer tells nothing; what it was is seen below
                assert how in ("failed", "opaque 0"), (name, how)
            assert other.frame_locator("#frame").locator("header").count() == 0
            other.click("#link")  # it may lead here, and what session there is stays the reader's
            other.get_by_role("banner").wait_for()
            other.locator("meta[http-equiv=refresh]").wait_for(state="detached")  # it has led on from there
            assert context.cookies(at) == [before]
            other.goto(f"http://{where}:{port}")
            with other.expect_response(f"{at}/logout") as refused:
                other.evaluate("document.getElementById('form').submit()")
            assert refused.value.status == 403
            state = page.evaluate("fetch('/room/state').then((a) => a.json())")
            assert state["reader"] == "Dr. A"
            assert context.cookies(at) == [before]


def test_a_link_leads_into_the_session_that_the_reader_has(inferencer, tmp_path, browser):
    with (
        live(inferencer, Limits(), alone=False, store=tmp_path / "m.sqlite") as one,
        attacker(EVIL.replace("AT", one.url)) as port,
        closing(browser.new_context()) as context,
    ):
        page = context.new_page()
        page.goto(one.url)
        page.locator("input#reader").fill("Dr. A")
        with page.expect_response("**/room/reader"):
            page.locator("input#reader").blur()
        page.goto(f"http://evil.example:{port}")
        page.click("#link")
        page.wait_for_url("**entered")
        assert page.locator("input#reader").input_value() == "Dr. A"


@contextmanager
def attacker(page):
    """The port at which a page is served to whoever asks."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_documentation_loads_within_its_policy(inferencer, browser):
    with live(inferencer, Limits(), alone=False) as one, closing(browser.new_context()) as context:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{one.url}/docs")
        page.get_by_text("/dissolve", exact=False).first.wait_for()
    assert not said
