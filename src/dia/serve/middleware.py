"""The middleware before the service: token, hosts and origins, sizes, time limits, and the log.

An ASGI middleware, so that a request is refused before its body is stored. Knows headers, bytes and seconds;
knows nothing of images or models.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.errors import first_line, printable
from .attempts import LOG, Attempts, Client
from .limits import STOPPING, Deadline, Limits, Refused

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/health",)  # of the paths that are guarded, those that need no token
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
_NEEDED = "a token is needed: Authorization: Bearer TOKEN"
_GUESSES = (401, 429)  # answers that are counted in lines of their own, which a flood of them does not fill


@dataclass
class Work:
    """The state of a guarded request, as `request.state.work`.

    Args:
        deadline: the end of its time.
        thread: works for it; the request counts as being worked on until that ends, though it may be
            answered before.
        note: what the log says of it.
    """

    deadline: Deadline
    thread: Future[Any] | None = None
    note: str = ""


class Guard:
    """The middleware.

    Args:
        app: the application that it guards.
        paths: that it guards. For others it checks hosts and origins alone: a page has rules of its own.
        limits: of a request, and of all together.
        token: that a request must send as `Authorization: Bearer TOKEN`; None for none.
        hosts: that may be named in `Host`, without ports; None for any. On loopback this keeps a page of
            another site, whose name was made to lead here, from reading answers (DNS rebinding).
        counter: counts requests worked on.
        attempts: counts wrong tokens.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Sequence[str],
        limits: Limits,
        token: str | None,
        hosts: Sequence[str] | None,
        counter: Counter,
        attempts: Attempts,
    ):
        self.app, self.paths, self.limits, self.counter = app, paths, limits, counter
        self.attempts = attempts
        self.token = None if token is None else token.encode()
        self.hosts = None if hosts is None else [h.lower() for h in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes the request on."""
        if scope["type"] == "websocket":  # neither the service nor the page has any
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # as routes are matched
        guarded = path in self.paths
        guessed = self.token is not None and "authorization" in headers
        reply = _Reply(send)
        start = time.perf_counter()
        work = Work(Deadline(self.limits.max_seconds))
        try:
            self._check_origin(scope, headers)
            if guarded:
                if path not in _OPEN:
                    self._check_token(headers, client_of(scope))
                await self._guarded(scope, headers, receive, reply, work)
            else:
                await self.app(scope, receive, reply)
        except Refused as refused:
            await reply.refuse(refused)
        except asyncio.CancelledError:  # the server stops, and waits no longer
            work.deadline.end()
            await reply.refuse(Refused(503, STOPPING))
            await reply.end()
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            if not guarded and reply.status:  # as where a window's stream is of a window that is not known
                LOG.warning("an answer of the page broke off: %s", printable(first_line(error)[:200]))
                return await reply.end()
            LOG.exception("%s failed", path if guarded else "the page")
            await reply.refuse(Refused(500, "an error of the service; its log says more"))
        finally:
            if guarded and not (guessed and reply.status in _GUESSES):
                took = time.perf_counter() - start
                LOG.info("%s %s %s %.3f s%s", scope["method"], path, reply.status, took, work.note)

    async def _guarded(
        self, scope: Scope, headers: Headers, receive: Receive, reply: _Reply, work: Work
    ) -> None:
        scope.setdefault("state", {})["work"] = work
        if scope["method"] != "POST":
            return await self.app(scope, receive, reply)
        body = Body(receive, headers, self.limits.max_bytes)
        self.counter.enter(self.limits.max_concurrent)
        try:
            async with asyncio.timeout(work.deadline.left()):
                await self.app(scope, body, reply.unless(lambda: body.refused))
            if body.refused:
                raise body.refused
        except TimeoutError:
            arriving = Refused(408, f"the request did not arrive within {work.deadline.seconds:g} seconds")
            raise (body.refused or (work.deadline.late() if body.complete else arriving)) from None
        finally:
            self.counter.leave_after(work.thread)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # a proxy that takes the other for true sees other requests in the same bytes
            raise Refused(400, "a request has a Content-Length or a Transfer-Encoding, not both")
        host = headers.get("host", "").lower()
        if self.hosts is not None and re.sub(r":\d*$", "", host) not in self.hosts:
            raise Refused(400, "this host name is not served; name it with --allowed_hosts")
        # browsers tell where a form or script comes from: only our own pages may send
        origin = headers.get("origin")
        if scope["method"] in _UNSAFE and origin is not None and urlsplit(origin).netloc.lower() != host:
            raise Refused(403, "requests from pages of other sites are not answered")

    def _check_token(self, headers: Headers, client: Client) -> None:
        if self.token is None:
            return
        if "authorization" not in headers:  # no guess
            raise Refused(401, _NEEDED)
        self.attempts.begin(client)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # as bytes: compare_digest takes only ASCII text
        right = hmac.compare_digest(given.strip().encode("latin-1"), self.token)
        if scheme.lower() != "bearer" or not right:
            self.attempts.wrong(client)
            raise Refused(401, _NEEDED)
        self.attempts.right(client)


def client_of(scope: Scope) -> Client:
    """Returns address and port of who asks."""
    return tuple(scope.get("client") or ("", 0))


class Counter:
    """The number of requests being worked on, counted by any number of threads."""

    def __init__(self) -> None:
        self.active = 0
        self._lock = threading.Lock()

    def enter(self, most: int) -> None:
        """Counts one more, or refuses it."""
        with self._lock:
            if self.active >= most:
                raise Refused(503, f"{most} requests are being worked on; try again later")
            self.active += 1

    def leave_after(self, thread: Future[Any] | None) -> None:
        """Counts one less, when its thread has ended too."""
        if thread is None:
            self._leave()
        else:
            thread.add_done_callback(self._leave)

    def _leave(self, _: object = None) -> None:
        with self._lock:
            self.active -= 1


class Body:
    """A request's body on its way: counted piece by piece, whatever its header promises.

    Args:
        receive: where it comes from.
        headers: of the request.
        most: the bytes that it may have.

    Attributes:
        complete: whether all has come.
        refused: the refusal, once there was more.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int):
        self._receive, self._most = receive, most
        self._count = 0
        self.complete = False
        self.refused: Refused | None = None
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise self._too_large()

    async def __call__(self) -> Message:
        """Returns the next piece.

        Raises:
            Refused: there are too many bytes.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._count > self._most:
                self.refused = self._too_large()
                raise self.refused
        return message

    def _too_large(self) -> Refused:
        return Refused(413, f"more than {self._most / 1e6:g} MB; send fewer files at a time")


class _Reply:
    """Sends an answer, and keeps its status."""

    def __init__(self, send: Send):
        self._send = send
        self.status = 0  # nothing was sent

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    def unless(self, refused: Callable[[], object]) -> Send:
        """Returns the same, but silent after a refusal: frameworks answer for errors in a body themselves."""

        async def send(message: Message) -> None:
            if not refused():
                await self(message)

        return send

    async def end(self) -> None:
        """Ends an answer that has begun, where its length was not promised."""
        with suppress(Exception):
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refused: Refused) -> None:
        """Sends one line as JSON, where no answer has begun."""
        if self.status:
            return
        body = json.dumps({"detail": refused.line}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        await self({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})
