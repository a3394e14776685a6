"""Connections: who waits too long is closed; who holds many keeps nobody out; who reads nothing is cut."""

import json
import re
import socket
import threading
from contextlib import ExitStack, suppress

import pytest
from live_service import KIND, live, read, request

from dia.serve.connections import PIECE, Connections, most_connections
from dia.serve.limits import Limits

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOGIN = request("POST", "/login", b"", b"Content-Length: 2000", b"Origin: http://127.0.0.1", length=False)


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def service(inferencer, tmp_path, clock):
    held = {"most": 20, "clock": clock}
    with live(inferencer, Limits(), "token", alone=False, store=tmp_path / "m.sqlite", held=held) as one:
        one.health()
        yield one


def ended(connection):
    """Whether the other side ended it; waits for that, or for an answer."""
    with suppress(ConnectionError):
        return connection.recv(1 << 16) == b""
    return True


def answered(connection):
    """The status line of one answer, which is read whole, to a request that was sent."""
    found = b""
    while not (whole := re.match(rb"(?s)(HTTP[^\r]*).*?content-length: (\d+).*?\r\n\r\n(.*)", found)) or len(
        whole[3]
    ) < int(whole[2]):
        piece = connection.recv(1 << 16)
        assert piece
        found += piece
    return whole[1]


def sent_in_pieces(service, data):
    connection = service.connect()
    for i in range(len(data)):
        connection.sendall(data[i : i + 1])
    return connection


def swept(service):
    """Looks now for those who waited too long, as is done each second."""
    held, done = service.running.config.http.__self__, threading.Event()
    held._timer._loop.call_soon_threadsafe(lambda: (held._timer.cancel(), held.sweep(), done.set()))
    assert done.wait(60)


def count(service):
    return len(service.running.server_state.connections)


@pytest.mark.parametrize(
    "how",
    [lambda s: s.connect(), lambda s: s.connect(HEALTH[:-2]), lambda s: sent_in_pieces(s, HEALTH[:-2])],
    ids=["silent", "half a head", "byte by byte"],
)
def test_who_does_not_send_a_whole_head_in_time_is_closed(service, clock, how):
    """And not before: the clock is the service's own."""
    with how(service) as connection:
        service.health()
        clock.now += 19
        swept(service)
        assert count(service) >= 1
        clock.now += 21  # a head's time may begin with its first byte
        swept(service)
        assert ended(connection)
    assert count(service) == 0


def test_after_an_answer_the_time_begins_anew(service, clock):
    with service.connect() as connection:
        for _ in range(4):
            connection.sendall(HEALTH)
            assert answered(connection) == b"HTTP/1.1 200 OK"
            clock.now += 15
            swept(service)
        clock.now += 15
        swept(service)
        assert ended(connection)


@pytest.mark.parametrize(
    "sent", [b"", HEALTH[:-2], LOGIN + b"name=", HEALTH], ids=["silent", "head", "login", "idle"]
)
def test_who_holds_all_places_keeps_nobody_out(service, sent):
    """A new connection takes the place of the one that waits longest."""
    with ExitStack() as all_:
        connections = [all_.enter_context(service.connect(sent)) for _ in range(60)]
        assert service.health()["status"] == "ok"
        assert ended(connections[0]) or sent == HEALTH
        connections[-1].sendall(HEALTH[-2:] if sent == HEALTH[:-2] else b"x")  # still open
        assert len(service.running.server_state.connections) <= 20


def test_who_has_shown_the_token_stays_longest(service):
    shown = b"GET /model HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer token\r\n\r\n"
    with ExitStack() as all_, service.connect(shown) as trusted:
        assert answered(trusted) == b"HTTP/1.1 200 OK"
        for _ in range(60):
            all_.enter_context(service.connect())
        assert service.health()
        trusted.sendall(shown)
        assert answered(trusted) == b"HTTP/1.1 200 OK"


def test_one_address_gets_a_quarter_but_of_this_machine():
    all_ = Connections(40, clock=Clock())

    class One:
        def __init__(self, address, since):
            self.address, self.since, self.state, self.trusted, self.aborted = (
                address,
                since,
                "head",
                False,
                False,
            )

        def abort(self):
            self.aborted = True
            all_.remove(self)

    all_._timer = object()  # nothing sweeps
    strangers = [One("203.0.113.9", i) for i in range(15)]
    others = [One("198.51.100.7", i) for i in range(5)]
    near = [One("127.0.0.1", i) for i in range(30)]
    for one in strangers + others:
        assert all_.add(one)
    assert [one.aborted for one in strangers] == [True] * 5 + [False] * 10
    for one in near:
        assert all_.add(one)
    assert len(all_._held) == 40
    assert not any(one.aborted for one in others)
    for one in all_._held:
        one.state = "work"
    assert not all_.add(One("127.0.0.1", 99))  # all are at work


def test_an_answer_that_nobody_takes_is_given_up(inferencer, clock):
    """It holds a piece of memory meanwhile, not the whole; and pipelined requests hold no more."""
    name = "/docs/swagger-ui-bundle.js"  # 1.5 MB
    held = {"most": 20, "clock": clock}
    with (
        live(inferencer, Limits(), alone=False, send_buffer=4096, held=held) as service,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % name.encode() * 50)
        assert connection.recv(8) == b"HTTP/1.1"
        service.health()
        (one,) = [
            c for c in service.running.server_state.connections if c.cycle and c.cycle.scope["path"] == name
        ]
        assert 0 < one.transport.get_write_buffer_size() <= 3 * PIECE
        clock.now += 21
        swept(service)
        service.health()
        assert one not in service.running.server_state.connections


def test_an_early_answer_arrives_though_more_is_sent(service):
    """The answer can be read to its end; the connection is not reset under it."""
    with service.connect(
        request("POST", "/score", b"", KIND, b"Content-Length: 9000000", length=False)
    ) as connection:
        for _ in range(50):
            connection.sendall(bytes(20_000))
        status, body = read(connection)
    assert (status, "token" in json.loads(body)["detail"]) == (401, True)


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 100_000], ids=["none", "small", "left unread"])
def test_an_answer_says_when_its_connection_ends(service, body):
    """Else a client, or a proxy that keeps connections, sends its next request into one that is ended."""
    sent = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with service.connect(sent + body[:10]) as connection:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1 << 16)
        assert head.startswith(b"HTTP/1.1 401")
        assert (b"\r\nconnection: close\r\n" in head.lower()) == (len(body) > 10)


def test_the_cap_lies_below_the_limit_on_open_files(monkeypatch):
    import resource

    limits = {"now": (256, 300)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.update(now=new))
    assert most_connections() == 150
    assert limits["now"] == (300, 300)
    limits["now"] = (1024, resource.RLIM_INFINITY)
    assert most_connections() == 1000
    assert limits["now"][0] == 8192
