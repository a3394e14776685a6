"""Connections: counted, timed and closed, around uvicorn's own protocol, which has no such limits.

A connection waits for its client with a head, a body or an answer under way, or it works. One that waits too
long is closed; where there are too many, a new one takes the place of the one that waits longest, of those
who have shown no token first. So whoever holds connections keeps nobody out. Knows sockets, seconds and
bytes; knows nothing of routes, tokens or images.
"""

from __future__ import annotations

import asyncio
import copy
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000  # connections at a time, where the limit on open files allows as many
HEAD, ANSWER, LINGER = 20.0, 20.0, 2.0  # seconds for a whole head; for 64 kB of an answer; after a refusal
PIECE = 1 << 16  # bytes of an answer that are handed over at a time
_FORGOTTEN = 32 << 20  # bytes that are taken and forgotten after a refusal
_FILES = 8192  # open files wanted for all


def most_connections() -> int:
    """Raises this process' limit on open files where it may, and returns the connections to hold at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST if soft == resource.RLIM_INFINITY else min(MOST, soft // 2)


class Connections:
    """All connections of a server.

    Args:
        most: held at a time; of one address a quarter, but for this machine's, behind which a proxy may be.
        head: seconds in which the head of a request is complete, from the connection or the last answer on.
        answer: seconds in which a piece of an answer is taken.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        most: int,
        *,
        head: float = HEAD,
        answer: float = ANSWER,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.clock = most, clock
        self._patience = {"head": head, "answer": answer, "linger": LINGER}  # a body's time is the guard's
        self._held: dict[Connection, None] = {}
        self._of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def protocol(
        self, config: Config, server_state: Any, app_state: dict[str, Any], _loop: Any = None
    ) -> Any:
        """Returns the protocol of a new connection, as uvicorn asks for it.

        Args:
            config: of uvicorn, as are the others.
            server_state: what connections share.
            app_state: of the lifespan.
        """
        return Connection(self, config, server_state, app_state, _loop)

    def add(self, new: Connection) -> bool:
        """Takes a connection in, or returns that there is no place for it.

        Args:
            new: just made.
        """
        own, here = self._of[new.address], None
        if not _is_loopback(new.address) and own >= max(self.most // 4, 1):
            here = new.address
        if here or len(self._held) >= self.most:
            waiting = [c for c in self._held if c.state != "work" and here in (None, c.address)]
            if not waiting:
                return False
            # last those with a token; first those of who holds most
            min(waiting, key=lambda c: (c.trusted, -self._of[c.address], c.since)).abort()
        self._held[new] = None
        self._of[new.address] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1, self.sweep)
        return True

    def remove(self, old: Connection) -> None:
        """Forgets a connection.

        Args:
            old: one that ends.
        """
        if old in self._held:
            del self._held[old]
            self._of[old.address] -= 1
            if not self._of[old.address]:
                del self._of[old.address]

    def sweep(self) -> None:
        """Closes those that have waited too long; once a second."""
        now = self.clock()
        for one in list(self._held):
            if now - one.since > self._patience.get(one.state, float("inf")):
                one.abort()
        self._timer = asyncio.get_running_loop().call_later(1, self.sweep) if self._held else None


class Connection(asyncio.Protocol):
    """One connection: uvicorn's protocol, and what it waits for.

    Args:
        all_: which it belongs to.
        config: of uvicorn, as are the rest.

    Attributes:
        address: of the other side.
        state: `head`, `body`, `answer` or `linger`, where it waits for the client; or `work`.
        since: when it began to.
        trusted: whether a token or session was shown on it; the guard says so.
    """

    def __init__(self, all_: Connections, config: Config, *rest: Any):
        own = copy.copy(config)  # the application of this connection says when a head is complete
        own.loaded_app = self._asked
        self._app, self._all, self._inner = config.loaded_app, all_, H11Protocol(own, *rest)
        self.address, self.state, self.since, self.trusted = "", "head", all_.clock(), False
        self._begun, self._requests, self._forgotten = False, 0, 0

    def _now(self, state: str) -> None:
        self.state, self.since = state, self._all.clock()

    # --- what asyncio calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 - of asyncio
        self._transport: Any = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._inner.connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if not self._all.add(self):
            self.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.state == "linger":  # nobody wants it
            self._forgotten += len(data)
            if self._forgotten > _FORGOTTEN:
                self.abort()
            return
        if self.state == "head" and not self._begun:  # from here on, however many bytes come
            self._begun = True
            self._now("head")
        self._inner.data_received(data)

    def eof_received(self) -> None:  # noqa: D102
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._all.remove(self)
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:  # noqa: D102
        self._inner.pause_writing()

    def resume_writing(self) -> None:  # noqa: D102
        self._inner.resume_writing()

    # --- the application ----------------------------------------------------------------------------

    async def _asked(self, scope: Any, receive: Any, send: Any) -> None:
        """The head of a request is complete."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        self._begun, answering = False, False
        self._requests = mine = self._requests + 1
        self._now("work")

        async def received() -> Any:
            if not answering:
                self._now("body")
            try:
                return await receive()
            finally:
                self._now("work")

        async def sent(message: Any) -> None:
            nonlocal answering
            answering = True
            unfinished = self._unfinished()
            if (
                unfinished and message["type"] == "http.response.start"
            ):  # it will end, so nobody may use it again
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            for piece in _pieces(message):
                self._now("answer")
                await send(piece)
            self._now("work")
            if unfinished and message["type"] == "http.response.body" and not message.get("more_body"):
                self.linger()

        try:
            await self._app({**scope, "dia.connection": self}, received, sent)
        finally:
            if self.state != "linger" and self._requests == mine:  # the next may have come already
                self._now("head")

    # --- its end ------------------------------------------------------------------------------------

    def _unfinished(self) -> bool:
        return self._inner.conn.their_state is h11.SEND_BODY

    def close(self) -> None:
        """Closes it as uvicorn asks for; who still sends can read the answer first."""
        if self._unfinished():
            self.linger()
        else:
            self._transport.close()

    def linger(self) -> None:
        """Takes what comes for a moment, and forgets it: closed at once, the answer might not arrive."""
        if self.state == "linger" or self._transport.is_closing():
            return
        self._now("linger")
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()

    def abort(self) -> None:
        """Closes it now; what is not yet sent is forgotten."""
        self._all.remove(self)
        self._transport.abort()


class _Transport:
    """The connection's transport, as uvicorn's protocol sees it: the end is ours to make."""

    def __init__(self, real: asyncio.BaseTransport, connection: Connection):
        self._real, self._connection = real, connection
        self.close = connection.close

    def is_closing(self) -> bool:
        return self._connection.state == "linger" or self._real.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _pieces(message: Any) -> Iterator[Any]:
    """A large body of an answer in pieces, so that uvicorn waits until they are taken."""
    body = message.get("body", b"")
    if len(body) <= PIECE:
        yield message
        return
    whole = memoryview(body)
    for start in range(0, len(body), PIECE):
        more = start + PIECE < len(body) or message.get("more_body", False)
        yield {**message, "body": bytes(whole[start : start + PIECE]), "more_body": more}


def _is_loopback(address: str) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return True  # a socket of this machine
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
