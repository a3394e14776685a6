"""The server and its connections: who neither asks nor takes the answer is let go. uvicorn waits for ever.

Knows sockets and seconds; what a request is about is `guard.py`'s. A connection waits from its opening, and
again from the end of each answer, for the whole head of a request; bytes that do not complete one (a slow
head, a body that was refused already) buy no time.
"""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_GRACE = 5  # seconds that open connections get when the server stops


def server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """What `dia serve` runs; logs no addresses of requests, as they may hold what is not to be kept."""
    config = uvicorn.Config(
        app,
        http=connection(limits),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def connection(limits: Limits) -> type[H11Protocol]:
    """The class of connections of one server; websockets must be off.

    Args:
        limits: `patience` and `max_idle` of them.
    """
    waiting: dict[asyncio.Protocol, None] = {}  # since they began to; all in the thread of one event loop

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            self._wait()
            before = self.cycle
            super().on_response_complete()  # which begins with the next request where one is there already
            self._asked(before)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            self._asked(before)

        def send_400_response(self, msg: str) -> None:
            """uvicorn's, of bytes that are no HTTP, though a request before or around them is under way."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # what is worked out for it is sent to nobody
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._look_again()

        def connection_lost(self, exc: Exception | None) -> None:
            waiting.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _asked(self, before: object) -> None:
            if self.cycle is not before:
                waiting.pop(self, None)

        def _wait(self) -> None:
            waiting.pop(self, None)
            if len(waiting) >= limits.max_idle:
                next(iter(waiting)).transport.abort()  # type: ignore[attr-defined]
            waiting[self] = None
            self._look_again()

        def _look_again(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            unsent = self.transport.get_write_buffer_size()
            self._timer = self.loop.call_later(limits.patience, self._look, self.cycle, unsent)

        def _look(self, cycle: object, unsent: int) -> None:
            """Ends the connection if since then no request came, nor was anything taken of an answer."""
            left = self.transport.get_write_buffer_size()
            if left and left != unsent:
                self._look_again()
            elif left or (self.cycle is cycle and self in waiting):
                self.transport.abort()

    return Connection
