"""The middleware before every route: hosts, origins, token or session, sizes, times, headers, and the log.

An ASGI middleware, so that a request is refused before its body is read. Knows headers, cookies, bytes and
seconds; knows nothing of images, models or marks.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .attempts import LOG, NEEDED, Client, Keys
from .current import Current
from .limits import STOPPING, Deadline, Limits, Refused
from .sessions import NO_SESSION, Session, Sessions, cookie_name

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SCORING = ("/score", "/dissolve")
SERVICE = (*SCORING, "/model", "/health")
PAGES = ("/", "/train", "/login")  # which may be opened from anywhere, and say themselves who must log in
_OPEN = re.compile(r"/health|/login|/static/[^/]*")  # which need neither token nor session
_ROOM = re.compile(r"/room(/.*)?|/logout", re.DOTALL)  # which need a session
_UPLOAD = re.compile(r"/score|/dissolve|/room/drops/[^/]+/files")  # whose bodies are files
_BODY, _BODY_SECONDS = 64_000, 20.0  # bytes, and seconds to arrive, of all other bodies
_LOGIN, _LOGIN_SECONDS = 4_000, 10.0
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
_FOREIGN = "requests from pages of other sites are not answered"
_GUESSES = (401, 429)  # answers that are counted in lines of their own, which a flood of them does not fill
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {  # of every answer, where it has none of its own
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Work:
    """The state of a request, as `request.state.work`.

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

    A route gets, as `request.state`: `work`; `session`, None where there is none; `foreign`, whether a link
    of another site leads here, for which no session is taken or made; and, of the service's own, `served`,
    the model with which the request is answered.

    Args:
        app: the application that it guards.
        limits: of a request, and of all together.
        keys: the token that a request must send as `Authorization: Bearer TOKEN`, where it has no session.
        sessions: of the page's readers; None where there is no page.
        hosts: that may be named in `Host`, without ports; None for any. On loopback this keeps a page of
            another site, whose name was made to lead here, from reading answers (DNS rebinding).
        counter: counts requests worked on.
        current: the model in use, whose loading requests wait for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        keys: Keys,
        sessions: Sessions | None,
        hosts: Sequence[str] | None,
        counter: Counter,
        current: Current,
    ):
        self.app, self.limits, self.keys, self.sessions = app, limits, keys, sessions
        self.counter, self.current = counter, current
        self.hosts = None if hosts is None else [h.lower() for h in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes the request on."""
        if scope["type"] == "websocket":  # there are none
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # as routes are matched
        reply = _Reply(send)
        start = time.perf_counter()
        work = Work(Deadline(self.limits.max_seconds))
        state = scope.setdefault("state", {})
        state |= {"work": work, "session": None, "foreign": False}
        try:
            state["foreign"] = self._check_origin(scope, headers, path)
            if not state["foreign"]:
                state["session"] = self._enter(scope, headers, path)
            await self._answer(scope, headers, path, receive, reply, work)
        except Refused as refused:
            await reply.refuse(refused)
        except asyncio.CancelledError:  # the server stops, and waits no longer
            work.deadline.end()
            await reply.refuse(Refused(503, STOPPING))
            await reply.end()
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            LOG.error("%s failed: %s", _place(scope, path), frames(error))
            await reply.refuse(Refused(500, "an error of the service; its log says more"))
            await reply.end()
        finally:
            self._log(scope, path, reply.status, time.perf_counter() - start, work.note)

    async def _answer(
        self, scope: Scope, headers: Headers, path: str, receive: Receive, reply: _Reply, work: Work
    ) -> None:
        upload = scope["method"] == "POST" and _UPLOAD.fullmatch(path) is not None
        if upload:
            most, arriving = self.limits.max_bytes, work.deadline
        elif path == "/login":
            most, arriving = _LOGIN, Deadline(_LOGIN_SECONDS)
        else:
            most, arriving = _BODY, Deadline(_BODY_SECONDS)
        body = Body(receive, headers, most, arriving)
        if upload:
            self.counter.enter(self.limits.max_concurrent)
        try:
            async with asyncio.timeout(work.deadline.left()) as limit:
                if _needs_model(path):
                    await self.current.ready()
                    if path in SERVICE:
                        scope["state"]["served"] = self.current.get()
                reply.begun = lambda: (
                    None if limit.expired() else limit.reschedule(None)
                )  # it must be taken now
                await self.app(scope, body, reply.unless(lambda: body.refused))
            if body.refused:
                raise body.refused
        except TimeoutError:
            late = body.late() if upload and not body.complete else work.deadline.late()
            raise (body.refused or late) from None
        finally:
            reply.begun = lambda: None
            if upload:
                self.counter.leave_after(work.thread)

    def _check_origin(self, scope: Scope, headers: Headers, path: str) -> bool:
        """Returns whether a link on another site's page leads here; refuses all else that comes from one."""
        if "content-length" in headers and "transfer-encoding" in headers:
            # a proxy that takes the other for true sees other requests in the same bytes
            raise Refused(400, "a request has a Content-Length or a Transfer-Encoding, not both")
        host = headers.get("host", "").lower()
        if self.hosts is not None and re.sub(r":\d*$", "", host) not in self.hosts:
            raise Refused(400, "this host name is not served; name it with --allowed_hosts")
        # browsers tell where a form, script or picture comes from: only our own pages may ask
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and _netloc(origin) != host:
            raise Refused(403, _FOREIGN)
        if site not in (None, "same-origin", "none"):
            by_link = (
                headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            )
            if not (by_link and scope["method"] in ("GET", "HEAD") and path in PAGES):
                raise Refused(403, _FOREIGN)
            return True
        if scope["method"] in _UNSAFE and path not in SERVICE and origin is None and site is None:
            raise Refused(403, "the page's addresses ask for Origin or Sec-Fetch-Site, as browsers send them")
        return False

    def _enter(self, scope: Scope, headers: Headers, path: str) -> Session | None:
        """Returns the session of a request, if it has one; refuses who needs one, or a token."""
        session, shown = self._session(scope, headers), False
        if self.keys.needed and "authorization" in headers and not _OPEN.fullmatch(path):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            self.keys.check(given.strip() if scheme.lower() == "bearer" else "", client_of(scope))
            shown = True
        if (connection := scope.get("dia.connection")) is not None and (session or shown):
            connection.trusted = True
        if session is None and self.sessions is not None and _ROOM.fullmatch(path):
            raise Refused(401, NO_SESSION)
        leads_to_login = self.sessions is not None and path in PAGES and scope["method"] in ("GET", "HEAD")
        if self.keys.needed and not (session or shown or leads_to_login or _OPEN.fullmatch(path)):
            raise Refused(401, NEEDED)
        if self.keys.needed and not shown and path in SCORING and not _has_origin(headers):
            raise Refused(401, NEEDED)  # a session alone is a browser's, which says where it asks from
        return session

    def _session(self, scope: Scope, headers: Headers) -> Session | None:
        if self.sessions is None:
            return None
        name = cookie_name(scope)
        found = {
            value.strip()
            for line in headers.getlist("cookie")
            for key, _, value in (part.partition("=") for part in line.split(";"))
            if key.strip() == name
        }
        # two are of two places, one of which another site may have set
        return self.sessions.find(found.pop()) if len(found) == 1 else None

    def _log(self, scope: Scope, path: str, status: int, took: float, note: str) -> None:
        """One line, at a bounded rate but for what was scored."""
        guess = status in _GUESSES and self.keys.needed
        if guess or (path not in SERVICE and status < 400):
            return
        scored = path in SCORING and 200 <= status < 300
        method = scope["method"] if scope["method"] in ("GET", "HEAD", *_UNSAFE) else "another method"
        line = "%s %s %s %.3f s%s", method, _place(scope, path), status, took, note
        LOG.info(*line, extra={"always": scored})


def client_of(scope: Scope) -> Client:
    """Returns address and port of who asks."""
    return tuple(scope.get("client") or ("", 0))


def _needs_model(path: str) -> bool:
    return path in (*SCORING, "/model") or path.startswith("/room/")


def _has_origin(headers: Headers) -> bool:
    return "origin" in headers or "sec-fetch-site" in headers


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _place(scope: Scope, path: str) -> str:
    """The route, for the log: an address itself may name anything."""
    known = getattr(scope.get("route"), "path", "")
    return path if path in SERVICE else known or "the page"


def frames(error: BaseException) -> str:
    """Returns where an error comes from, and its kind: its words may be a file's name, or a patient's."""
    why = f" ({error.strerror})" if isinstance(error, OSError) else ""
    last = traceback.extract_tb(error.__traceback__)[-8:]
    return f"{type(error).__name__}{why} at " + " > ".join(
        f"{Path(f.filename).name}:{f.lineno}" for f in last
    )


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
        deadline: the time in which it must have come.

    Attributes:
        complete: whether all has come.
        refused: the refusal, once there was more.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int, deadline: Deadline):
        self._receive, self._most, self._deadline = receive, most, deadline
        self._count = 0
        self.complete = False
        self.refused: Refused | None = None
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise self._too_large()

    async def __call__(self) -> Message:
        """Returns the next piece.

        Raises:
            Refused: there are too many bytes, or they did not come in time.
        """
        if self.complete:  # what follows is that the client has gone, for which nobody waits
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline.left()):
                message = await self._receive()
        except TimeoutError:
            self.refused = self.late()
            raise self.refused from None
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self._count > self._most:
                self.refused = self._too_large()
                raise self.refused
        return message

    def late(self) -> Refused:
        """Returns the refusal of what did not come in time."""
        return Refused(408, f"the request did not arrive within {self._deadline.seconds:g} seconds")

    def _too_large(self) -> Refused:
        if self._most < 1e5:
            return Refused(413, f"more than {self._most / 1e3:g} kB")
        return Refused(413, f"more than {self._most / 1e6:g} MB; send fewer files at a time")


class _Reply:
    """Sends an answer with the headers of all, and keeps its status."""

    def __init__(self, send: Send):
        self._send = send
        self.status = 0  # nothing was sent
        self.begun: Callable[[], None] = lambda: None  # called when it begins

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun()
            self.status = message["status"]
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
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
