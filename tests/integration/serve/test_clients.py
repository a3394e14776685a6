"""Clients that are broken, large or many, at the service on a real socket, and what stops each.

Everybody else is answered meanwhile, and nothing is left of them: no place, connection, thread or file.
Reading from a socket waits, and gives up after a minute; nothing here sleeps or takes time.
"""

import json
import logging
import socket
import struct
import tempfile
import threading

import pytest
from h11 import LocalProtocolError
from live_service import KIND, MULTIPART, form, live, picture, post, read, request, zipped
from PIL import Image

from dia.serve.limits import Limits

IMAGE = post((b"files", b"a.png", picture()))
BODY = form((b"files", b"a.png", picture()))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder of its own for temporary files, empty again after every test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def service(inferencer):
    pixels = Image.MAX_IMAGE_PIXELS
    with live(inferencer, Limits(max_mb=2), alone=False) as service:
        service.ask(IMAGE)  # its threads are there
        yield service
    Image.MAX_IMAGE_PIXELS = pixels


def ended(connection):
    """What came before the service ended the connection."""
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionError:
        pass
    return found


def answered(service):
    """As to anybody else."""
    status, body = service.ask(IMAGE)
    assert status == 200
    assert json.loads(body)["images"]


# --- slow -------------------------------------------------------------------------------------------------


def test_a_body_that_stops_is_refused_when_its_time_is_over(inferencer):
    head = request("POST", "/score", b"", KIND, b"Content-Length: %d" % len(BODY), length=False)
    with live(inferencer, Limits(max_seconds=0.3)) as service, service.connect(head + BODY[:-9]) as slow:
        status, body = read(slow)
        assert status == 408
        assert "0.3 seconds" in json.loads(body)["detail"]
        answered(service)


# --- large ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (request("POST", "/score", b"", KIND, b"Content-Length: 2000001", length=False), 413, "2 MB"),
        (request("POST", "/score", b"", KIND, b"Content-Length: " + b"9" * 19, length=False), 413, "2 MB"),
        (post((b"files", b"a.png", picture() + bytes(2_000_001))), 413, "2 MB"),
        (post(*[(b"files", b"%d.png" % i, b"x") for i in range(1001)]), 400, "Too many files"),
        (post(*[(b"a", b"b")] * 1001), 400, "Too many fields"),
        (post((b"heatmaps", b"a" * 1_100_000)), 400, "1024KB"),
        (post((b"a" * 3000, b"x"), (b"files", b"a.png", picture())), 422, "aaa"),
        (post((b"a" * 100_000, b"x")), 400, "Invalid multipart"),
        (post((b"files", b"a" * 100_000 + b".png", b"x")), 400, "Invalid multipart"),
        (post((b"files", b"a.png", b"x"), path="/dissolve", headers=(b"X: " + b"a" * 60_000,)), 422, "a.png"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_in_one_line(service, sent, status, words):
    found, body = service.ask(sent)
    assert (found, words in json.loads(body)["detail"]) == (status, True), body
    assert len(body) < 1000
    answered(service)


def test_a_body_without_a_length_is_cut_off(service):
    """In chunks, for ever: the service answers after 2 MB, and takes no more than it can hold."""
    head = request("POST", "/score", b"", KIND, b"Transfer-Encoding: chunked", length=False)
    with service.connect(head) as connection:
        piece = b"%x\r\n%b\r\n" % (100_000, bytes(100_000))
        try:
            for _ in range(1000):
                connection.sendall(piece)
        except ConnectionError:
            pass
        else:
            pytest.fail("100 MB were taken")
    answered(service)


def test_a_multipart_within_a_multipart_is_a_file_like_others(service):
    inner = form((b"files", b"a.png", picture())).replace(b"--x", b"--y")
    for _ in range(50):
        inner = b"Content-Type: multipart/mixed; boundary=y\r\n\r\n" + inner
    status, body = service.ask(post((b"files", b"a.png", inner)))
    assert status == 422
    assert b"a.png" in body


# --- malformed --------------------------------------------------------------------------------------------


BAD = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190) + b"\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": request("GET", "/health", b"", b"Host: localhost"),
    "NUL in the target": request("GET", "/hea\0lth"),
    "NUL in a header": request("GET", "/health", b"", b"X: a\0b"),
    "a space before the colon": request("GET", "/health", b"", b"X : a"),
    "a folded header": request("GET", "/health", b"", b"X: a\r\n b\r\n\tc", host=b"evil.example"),
    "a large head": request("GET", "/health", b"", b"X: " + b"a" * 10**6),
    "many headers": request("GET", "/health", b"", *[b"X: a"] * 10**5),
    "two lengths": request("POST", "/score", BODY, KIND, b"Content-Length: 4"),
    "a list of lengths": request("POST", "/score", b"", KIND, b"Content-Length: 4, 5", length=False),
    "a signed length": request("POST", "/score", b"", KIND, b"Content-Length: +4", length=False),
    "a negative length": request("POST", "/score", b"", KIND, b"Content-Length: -1", length=False),
    "a hexadecimal length": request("POST", "/score", b"", KIND, b"Content-Length: 0x4", length=False),
    "a long length": request("POST", "/score", b"", KIND, b"Content-Length: " + b"9" * 5000, length=False),
    "length and chunks": request("POST", "/score", BODY, KIND, b"Transfer-Encoding: chunked"),
    "chunks and length": request("POST", "/score", b"0\r\n\r\n" + request("GET", "/model"), KIND,
                                 b"Transfer-Encoding: chunked"),
    "an unknown coding": request("POST", "/score", b"", KIND, b"Transfer-Encoding: gzip, chunked",
                                 length=False),
    "two codings": request("POST", "/score", b"", KIND, b"Transfer-Encoding: chunked",
                           b"Transfer-Encoding: identity", length=False),
    "a bad chunk after a refusal": request("POST", "/score", b"zz\r\nabc\r\n0\r\n\r\n", KIND,
                                           b"Transfer-Encoding: chunked", host=b"evil", length=False),
    "a bad chunk": request("POST", "/score", b"zz\r\nabc\r\n0\r\n\r\n", KIND, b"Transfer-Encoding: chunked",
                           length=False),
    "no boundary": request("POST", "/score", BODY, MULTIPART),
    "an empty boundary": request("POST", "/score", BODY, MULTIPART + b"; boundary="),
    "another boundary": request("POST", "/score", BODY, MULTIPART + b"; boundary=y"),
    "a long boundary": request("POST", "/score", BODY, KIND + b"x" * 9000),
    "a boundary of no text": request("POST", "/score", BODY, MULTIPART + b"; boundary=\xff"),
    "no end": request("POST", "/score", BODY[:-9], KIND),
    "no name": request("POST", "/score", BODY.replace(b'name="files"; ', b""), KIND),
    "no disposition": request("POST", "/score", b"--x\r\n\r\nabc\r\n--x--\r\n", KIND),
    "no form": request("POST", "/score", b"{}", b"Content-Type: application/json"),
    "no kind": request("POST", "/score", BODY),
    "names of no text": post((b"\xff\xfe\0\x01", b"x"), (b"files", b"a.png", picture())),
    "half a character": request("POST", "/score", form((b"+2AA-", b"x"), (b"files", b"a.png", picture())),
                                KIND + b"; charset=utf-7"),
    "escapes": request("POST", "/score", form((b"\\ud800", b"x"), (b"files", b"a.png", picture())),
                       KIND + b"; charset=unicode_escape"),
    "no charset": request("POST", "/score", form((b"a", b"x")), KIND + b"; charset=undefined"),
    "a charset of no text": request("POST", "/score", form((b"a", b"x")), KIND + b"; charset=hex"),
    "an option twice": post((b"heatmaps", b"raw"), (b"heatmaps", b"none"), (b"files", b"a.png", picture())),
    "a file as an option": post((b"heatmaps", b"a.png", b"none"), (b"files", b"a.png", picture())),
    "text as a file": post((b"files", b"a.png")),
    "a large number": post((b"t", b"9" * 5000), (b"files", b"a.png", picture()), path="/dissolve"),
    "no number": post((b"false_alarm_rate", b"nan"), (b"files", b"a.png", picture())),
    "an infinite number": post((b"false_alarm_rate", b"-inf"), (b"files", b"a.png", picture())),
    "a zip of bad names": post((b"files", b"z", zipped(("a.png", b"x")).replace(b"a.png", b"\xff\0\x1b/."))),
    "an unknown method": request("BREW", "/score", BODY, KIND),
    "a whole address": request("GET", "http://evil.example/model", host=b"evil.example"),
    "a websocket": request("GET", "/score", b"", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
                           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_malformed_is_refused_and_no_error_of_the_service(service, what, caplog):
    """One answer each: what a client put behind its first request to be taken for a second one is not."""
    with service.connect(BAD[what]) as connection:
        found = ended(connection)
    assert found[:10] == b"HTTP/1.1 4", found
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"Traceback" not in found
    # uvicorn logs that it could not answer twice, where bad bytes follow a request that was refused already
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not [r for r in errors if not (r.exc_info and r.exc_info[0] is LocalProtocolError)]
    answered(service)


def test_old_http_is_answered_and_new_is_not(service):
    assert service.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] == 400
    body = IMAGE.replace(b"HTTP/1.1", b"HTTP/1.0")
    assert service.ask(body)[0] == 200
    assert service.ask(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")[0] == 200


def test_who_asks_whether_to_send_is_told_before(service):
    """No token, or too much: no `100 Continue` invites the body."""
    expects = b"Expect: 100-continue"
    head = request("POST", "/score", b"", KIND, expects, b"Content-Length: %d" % len(BODY), length=False)
    with service.connect(head) as connection:
        assert connection.recv(25).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert b"HTTP/1.1 200" in ended(connection)
    large = request("POST", "/score", b"", KIND, expects, b"Content-Length: 2000001", length=False)
    with service.connect(large) as connection:
        assert connection.recv(25).startswith(b"HTTP/1.1 413")


# --- many -------------------------------------------------------------------------------------------------


def test_clients_that_go_away_leave_nothing(service):
    """At every tenth of a request, closed or reset."""
    for end in range(0, len(IMAGE) + 1, len(IMAGE) // 10):
        for reset in (False, True):
            connection = service.connect(IMAGE[:end])
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
    service.until(active_requests=0, waiting_images=0)
    answered(service)


def test_more_clients_than_places_all_get_their_own_answer_in_the_end(inferencer):
    """With others among them that break off or send what is broken; threads are as many as places."""
    limits = Limits(max_concurrent=3)
    sizes = {i: 1 + i % 5 for i in range(24)}
    refused, answers = [], {}
    before = set(threading.enumerate())
    with live(inferencer, limits) as service:

        def ask(i):
            service.connect(IMAGE[: 40 * i]).close()
            parts = [(b"files", b"%d-%d.png" % (i, j), picture((8 + i, 8))) for j in range(sizes[i])]
            parts.append((b"files", b"bad.png", b"x"))
            while (answer := service.ask(post(*parts)))[0] == 503:
                refused.append(i)
            answers[i] = answer

        threads = [threading.Thread(target=ask, args=(i,)) for i in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        new = set(threading.enumerate()) - before
        workers = [t for t in new if t.name.startswith("dia-request")]
        assert len(workers) <= limits.max_concurrent
    for i, n in sizes.items():
        status, body = answers[i]
        assert status == 200
        assert [p["name"] for p in json.loads(body)["images"]] == [f"{i}-{j}.png" for j in range(n)]
        assert [e["name"] for e in json.loads(body)["errors"]] == ["bad.png"]
