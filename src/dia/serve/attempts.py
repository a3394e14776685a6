"""Wrong tokens: counted for each client and in all, so that guessing is slow; and a log that grows slowly.

Knows the token, addresses and seconds; knows no requests.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from ..core.errors import printable
from .limits import Refused

LOG = logging.getLogger("dia.serve")
OWN, OWN_EVERY = 10, 2.0  # wrong tokens that a client may send at once, and seconds for each one more
ALL, ALL_EVERY = 100, 0.1  # and all clients together
LINE_EVERY = 10.0  # seconds between two lines of the log
LINES, LINES_EVERY = 100, 0.5  # other lines of the log at once, and seconds for each one more
NEEDED = "a token is needed: Authorization: Bearer TOKEN"
_MOST = 10_000  # clients that are remembered
Client = tuple[str, int]  # address and port


class _Bucket:
    """So many at once, and one more every so many seconds."""

    def __init__(self, most: int, every: float, now: float):
        self.most, self.every, self.level, self.at = most, every, float(most), now

    def fill(self, now: float) -> _Bucket:
        self.level = min(self.level + (now - self.at) / self.every, self.most)
        self.at = now
        return self


class Attempts:
    """Whether a token may still be looked at, by the wrong ones that came before.

    A client is an address (of IPv6, its network of 64 bits). One that has sent no wrong token lately is
    always heard, and so is a connection on which the right one came last: a stranger keeps out nobody but who
    begins anew at the stranger's own address.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._all = _Bucket(ALL, ALL_EVERY, clock())
        self._own: OrderedDict[str, _Bucket] = OrderedDict()
        self._right: OrderedDict[Client, None] = OrderedDict()
        self._wrong = self._unread = 0  # since the last line
        self._last = ""
        self._said: float | None = None

    def begin(self, client: Client) -> None:
        """Counts a token as wrong, before it is looked at: others may come meanwhile.

        Args:
            client: the sender's address and port.

        Raises:
            Refused: too many were wrong; the token is not looked at.
        """
        if client in self._right:
            return
        now = self._clock()
        own, every = self._bucket(client, now), self._all.fill(now)
        innocent = own.level >= own.most
        if own.level < 1 or (every.level < 1 and not innocent):
            self._unread += 1
            self._tell(client, now)
            raise Refused(429, "too many wrong tokens were sent; try again later")
        self._take(client, 1)

    def right(self, client: Client) -> None:
        """Takes back what `begin` counted, as the token was right."""
        if client not in self._right:
            self._take(client, -1)
        self._right[client] = None
        self._right.move_to_end(client)
        while len(self._right) > _MOST:
            self._right.popitem(last=False)

    def wrong(self, client: Client) -> None:
        """Notes that the token was wrong."""
        if client in self._right:
            del self._right[client]
            self._take(client, 1)
        self._wrong += 1
        self._tell(client, self._clock())

    def _take(self, client: Client, count: int) -> None:
        for bucket in (self._bucket(client, self._clock()), self._all):
            bucket.level = min(max(bucket.level - count, 0), bucket.most)

    def close(self) -> None:
        """Writes what the log does not say yet."""
        if self._wrong or self._unread:
            self._write(self._clock())

    def _bucket(self, client: Client, now: float) -> _Bucket:
        key = _network(client[0])
        found = self._own.pop(key, None) or _Bucket(OWN, OWN_EVERY, now)
        self._own[key] = found
        if len(self._own) > _MOST:
            self._own.popitem(last=False)
        return found.fill(now)

    def _tell(self, client: Client, now: float) -> None:
        self._last = client[0]
        if self._said is None or now - self._said >= LINE_EVERY:
            self._write(now)

    def _write(self, now: float) -> None:
        unread = f", {self._unread} more not looked at" if self._unread else ""
        LOG.warning("wrong tokens: %d%s; the last from %s", self._wrong, unread, printable(self._last[:45]))
        self._wrong = self._unread = 0
        self._said = now


class Keys:
    """The token, and who has shown a wrong one.

    Args:
        token: None for none.
        attempts: counts wrong ones.
    """

    def __init__(self, token: str | None, attempts: Attempts):
        self.attempts, self.needed = attempts, token is not None
        self._token = (token or "").encode()

    def check(self, given: str, client: Client) -> None:
        """Looks at a token.

        Args:
            given: what was sent as the token, as headers have it (Latin-1).
            client: the sender's address and port.

        Raises:
            Refused: it is wrong (401), or too many were (429).
        """
        self.attempts.begin(client)
        # as bytes: compare_digest takes only ASCII text
        if not (self.needed and hmac.compare_digest(given.encode("latin-1", "replace"), self._token)):
            self.attempts.wrong(client)
            raise Refused(401, NEEDED)
        self.attempts.right(client)


class Bounded(logging.Filter):
    """Lets a logger write only so many lines; the next line that it may write tells how many it did not.

    A record with `always` is let through.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock, self._bucket = clock, _Bucket(LINES, LINES_EVERY, clock())
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a line is written.

        Args:
            record: the line.
        """
        if getattr(record, "always", False):
            return True
        bucket = self._bucket.fill(self._clock())
        if bucket.level < 1:
            self._left_out += 1
            return False
        bucket.level -= 1
        if self._left_out:
            record.msg, record.args = (
                f"{record.getMessage()} ({self._left_out} lines before it are left out)",
                (),
            )
            self._left_out = 0
        return True


def _network(address: str) -> str:
    """Returns the part of an address that one client cannot choose."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:45]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
