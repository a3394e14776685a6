"""A process that asks no other host: what Python would look up or connect to is refused, and no more."""

import asyncio
import errno
import socket

import pytest

from dia.serve import alone as module
from dia.serve.alone import alone

OTHER = "198.51.100.7"  # for documentation: nobody has it


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server, alone(server.getsockname()[1]):
        yield server.getsockname()[1]
    assert not module._own


def udp(send):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        send(one)


ASKS = {
    "getaddrinfo": lambda: socket.getaddrinfo("dia.invalid", 80),
    "gethostbyname": lambda: socket.gethostbyname("dia.invalid"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("dia.invalid"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("dia.invalid"),
    "getnameinfo": lambda: socket.getnameinfo(("dia.invalid", 80), 0),
    "create_connection": lambda: socket.create_connection((OTHER, 80), timeout=1),
    "connect_ex": lambda: udp(lambda one: one.connect_ex((OTHER, 53))),
    "connect of UDP": lambda: udp(lambda one: one.connect((OTHER, 53))),
    "sendto": lambda: udp(lambda one: one.sendto(b"x", (OTHER, 53))),
    "sendmsg": lambda: udp(lambda one: one.sendmsg([b"x"], [], 0, (OTHER, 53))),
    "another port of this machine": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "asyncio": lambda: asyncio.run(asyncio.open_connection("dia.invalid", 80)),
    "asyncio, an address": lambda: asyncio.run(asyncio.open_connection(OTHER, 80)),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_no_other_host_is_asked(port, ask):
    with pytest.raises(PermissionError) as refused:
        ask()
    assert refused.value.errno == errno.EPERM


def test_it_may_ask_itself_and_talk_within_the_machine(port, tmp_path):
    with socket.create_connection(("localhost", port), timeout=5):
        pass
    assert socket.getaddrinfo("127.0.0.1", 1)
    assert socket.getaddrinfo(OTHER, 1)[0][4][0] == OTHER  # an address needs no look-up
    if hasattr(socket, "AF_UNIX"):
        one, other = socket.socketpair()
        with one, other:
            one.sendmsg([b"x"])
            assert other.recv(1) == b"x"
        with socket.socket(socket.AF_UNIX) as file, pytest.raises(FileNotFoundError):
            file.connect(str(tmp_path / "none"))


def test_it_ends_with_the_service():
    with alone(9):
        pass
    with pytest.raises(ConnectionRefusedError), socket.socket() as one:
        one.connect(("127.0.0.1", 9))
