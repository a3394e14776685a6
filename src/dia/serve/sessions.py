"""Sessions of readers: who has logged in, and what the server holds for each until it ends. In memory alone.

Knows names, cookies' values and seconds; knows no requests, models or images.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .limits import Refused

COOKIE = "dia_session"
IDLE = 12 * 3600.0  # seconds without a request after which a session ends
MOST = 200  # sessions at a time; beyond them the one untouched longest ends
MOST_NAME = 100  # characters of a reader's name, which stands in every mark
NO_SESSION = "no session: open the page, or log in"
Held = TypeVar("Held")


class Session:
    """What the server holds for one reader's browser.

    Args:
        key: value of the cookie.
        reader: the name given at the login; empty where none was.
        now: seconds, of a clock that never goes back.

    Attributes:
        seen: when it last asked.
        ended: whether it holds nothing any more, and never will.
        named: whether a login gave the name, which then stays.
    """

    def __init__(self, key: str, reader: str, now: float):
        self.key, self.reader, self.seen, self.ended = key, plain_reader(reader), now, False
        self.named = bool(self.reader)
        self._held: dict[type, Any] = {}
        self._lock = threading.RLock()

    def hold(self, kind: type[Held], make: Callable[[], Held]) -> Held:
        """Returns the session's own object of a class, made when it is first asked for.

        Args:
            kind: the class; if it has a method `close`, that is called when the session ends.
            make: makes the object.

        Raises:
            Refused: the session has ended meanwhile (401).
        """
        with self._lock:
            if self.ended:
                raise Refused(401, NO_SESSION)
            if kind not in self._held:
                self._held[kind] = make()
            found: Held = self._held[kind]
            return found

    def close(self) -> None:
        """Ends what the session holds."""
        with self._lock:
            self.ended = True
            held, self._held = list(self._held.values()), {}
        for one in held:
            if hasattr(one, "close"):
                one.close()


class Sessions:
    """All sessions of this process.

    What an ended session held is closed in a thread: it may take a while, and nobody need wait for it.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._all: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, reader: str = "") -> Session:
        """Begins a session, with a key that nobody knows or has chosen.

        Args:
            reader: the name of who reads.
        """
        session = Session(secrets.token_urlsafe(32), reader, self._clock())
        with self._lock:
            ended = self._old()
            self._all[session.key] = session
            while len(self._all) > MOST:
                ended.append(self._all.popitem(last=False)[1])
        _close(ended)
        return session

    def find(self, key: str) -> Session | None:
        """Returns the session of a cookie's value, which counts as a sign of life; None where there is none.

        Args:
            key: the value.
        """
        with self._lock:
            ended = self._old()
            if session := self._all.get(key):
                session.seen = self._clock()
                self._all.move_to_end(key)
        _close(ended)
        return session

    def end(self, key: str) -> None:
        """Ends a session, if there is one.

        Args:
            key: the value of its cookie.
        """
        with self._lock:
            session = self._all.pop(key, None)
        if session:
            _close([session])

    def sweep(self) -> None:
        """Ends the sessions that have not asked for too long."""
        with self._lock:
            ended = self._old()
        _close(ended)

    def close(self) -> None:
        """Ends all, and waits for it."""
        with self._lock:
            ended = list(self._all.values())
            self._all.clear()
        for one in ended:
            one.close()

    def _old(self) -> list[Session]:
        """Takes out, and returns, the sessions that have not asked for too long."""
        late, old = self._clock() - IDLE, []
        while self._all and next(iter(self._all.values())).seen < late:  # they stand in the order of `seen`
            old.append(self._all.popitem(last=False)[1])
        return old


def _close(ended: Sequence[Session]) -> None:
    def close() -> None:
        for one in ended:
            one.close()

    if ended:
        threading.Thread(target=close, name="dia-session-end").start()


def cookie_name(scope: Mapping[str, Any]) -> str:
    """Returns the name of the session's cookie; over TLS one that no other host can set.

    Args:
        scope: of the request.
    """
    return f"__Host-{COOKIE}" if scope["scheme"] == "https" else COOKIE


def plain_reader(name: str) -> str:
    """Returns a reader's name as it stands in marks: printable, on one line, 100 characters at most.

    Args:
        name: as it was given.
    """
    return "".join(c for c in name if c.isprintable()).strip()[:MOST_NAME].strip()


def session_of(request: Any) -> Session:
    """Returns the session of a request, which the guard found.

    Args:
        request: of starlette.

    Raises:
        Refused: there is none (401).
    """
    found: Session | None = getattr(request.state, "session", None)
    if found is None:
        raise Refused(401, NO_SESSION)
    return found
