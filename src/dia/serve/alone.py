"""A process that asks no other host: names are not looked up and connections not made, whoever tries.

The service fetches nothing, and a request that made a library fetch something would reach what the sender
cannot. So Python itself refuses, whichever library asks. Knows addresses; knows nothing of requests.
"""

from __future__ import annotations

import errno
import ipaddress
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOOKS_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_ASKS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_own: list[int] = []  # ports of this process; where there are none, nothing is refused
_hooked = False


@contextmanager
def alone(port: int) -> Iterator[None]:
    """Refuses, while it lasts, every look-up of a name and every connection of this process, of all threads.

    It still accepts connections, and may ask itself. Sockets of this machine's file system are left alone,
    and so is what libraries in C do by themselves.

    Args:
        port: of this process, on loopback.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_refuse)  # it stays; but does nothing while there are no ports
        _hooked = True
    _own.append(port)
    try:
        yield
    finally:
        _own.remove(port)


def is_own(host: Any, port: Any) -> bool:
    """Returns whether an address needs no other host: of loopback, and of a port of this process.

    Args:
        host: a name or address as `socket` takes it.
        port: None for a look-up alone, which no address needs.
    """
    name = host.decode("latin-1") if isinstance(host, bytes | bytearray) else host
    if name in (None, "", "localhost"):
        address = None
    else:
        try:
            address = ipaddress.ip_address(str(name).partition("%")[0])
        except ValueError:
            return False
    return port is None or (port in _own and (address is None or address.is_loopback))


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if not _own or not event.startswith("socket."):
        return
    if event in _LOOKS_UP:
        host = args[0][0] if event == "socket.getnameinfo" else args[0]
        allowed = is_own(host, None)
    elif event in _ASKS:
        address = args[1]  # a path is that of a socket of this machine; None is where it is connected to
        allowed = not isinstance(address, tuple) or is_own(*address[:2])
    else:
        return
    if not allowed:
        raise PermissionError(errno.EPERM, "dia serve asks no other host")
