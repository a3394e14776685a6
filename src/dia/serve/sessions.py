"""Sessions of readers: who has logged in, and what the server holds for each until it ends. In memory alone.

Knows names, cookies' values and seconds; knows no requests, models or images.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from .limits import Refused

COOKIE = "dia_session"
IDLE = 12 * 3600.0  # seconds without a request after which a session ends
MOST = 200  # sessions at a time; beyond them the one untouched longest ends
MOST_NAME = 100  # characters of a reader's name, which stands in every mark
Held = TypeVar("Held")


class Session:
    """What the server holds for one reader's browser.

    Args:
        key: value of the cookie.
        reader: the name given at the login; empty where none was.
        now: seconds, of a clock that never goes back.

    Attributes:
        seen: when it last asked.
    """

    def __init__(self, key: str, reader: str, now: float):
        self.key, self.reader, self.seen = key, reader, now
        self._held: dict[type, Any] = {}
        self._lock = threading.RLock()

    def hold(self, kind: type[Held], make: Callable[[], Held]) -> Held:
        """Returns the session's own object of a class, made when it is first asked for.

        Args:
            kind: the class; if it has a method `close`, that is called when the session ends.
            make: makes the object.
        """
        with self._lock:
            if kind not in self._held:
                self._held[kind] = make()
            found: Held = self._held[kind]
            return found

    def close(self) -> None:
        """Ends what the session holds."""
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for one in held:
            if hasattr(one, "close"):
                one.close()


class Sessions:
    """All sessions of this process.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._all: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, reader: str = "") -> Session:
        """Begins a session.

        Args:
            reader: the name of who reads.
        """
        session = Session(secrets.token_urlsafe(32), reader[:MOST_NAME], self._clock())
        with self._lock:
            ended = self._old()
            self._all[session.key] = session
            while len(self._all) > MOST:
                ended.append(self._all.popitem(last=False)[1])
        for one in ended:
            one.close()
        return session

    def find(self, key: str) -> Session | None:
        """Returns the session of a cookie's value, which counts as a sign of life; None where there is none."""
        with self._lock:
            ended = self._old()
            if session := self._all.get(key):
                session.seen = self._clock()
                self._all.move_to_end(key)
        for one in ended:
            one.close()
        return session

    def end(self, key: str) -> None:
        """Ends a session, if there is one."""
        with self._lock:
            session = self._all.pop(key, None)
        if session:
            session.close()

    def close(self) -> None:
        """Ends all."""
        for key in list(self._all):
            self.end(key)

    def _old(self) -> list[Session]:
        """Takes out, and returns, the sessions that have not asked for too long."""
        late = self._clock() - IDLE
        keys = [key for key, session in self._all.items() if session.seen < late]
        return [self._all.pop(key) for key in keys]


def session_of(request: Any) -> Session:
    """Returns the session of a request, which the guard found.

    Args:
        request: of starlette.

    Raises:
        Refused: there is none (401).
    """
    found: Session | None = getattr(request.state, "session", None)
    if found is None:
        raise Refused(401, "no session: open the page, or log in")
    return found
