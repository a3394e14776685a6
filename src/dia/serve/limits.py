"""Limits of the service, of one request and of all together. Knows numbers; checks no request itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

from ..core.errors import DataError

STOPPING = "the service is stopping"


@dataclass(frozen=True)
class Limits:
    """The limits: a request above one of them is refused, and nothing of it is kept.

    Args:
        max_mb: size of a request's body, in MB of 10⁶ bytes; counted while it arrives.
        max_files: files in a request, those in a zip included.
        max_unpacked_mb: size of what a request's zip and gzip files hold, in MB; counted while unpacking.
        max_pixels: pixels of one image, frame or slice, read from its header before it is decoded.
        max_images: images in a request: files, frames and slices; times the number of t when dissolving.
        max_seconds: time for a request, from its first byte to the answer.
        max_concurrent: requests worked on at the same time.
        max_waiting: images waiting for the model, of all requests.
        batch: images that the model takes at a time.
        batch_wait_ms: how long a batch that is not full waits for images of other requests.
        max_dropped_mb: files on the disk that one reader dropped on the page, in MB, until they are read.
        max_all_dropped_mb: likewise, of all readers together.
        max_held_mb: images, heatmaps and pixels that the page holds in memory for one reader, in MB.
        max_all_held_mb: likewise, for all readers together.
        max_listed: images, slices counted, in one reader's list.
    """

    max_mb: float = 256.0
    max_files: int = 500
    max_unpacked_mb: float = 1024.0
    max_pixels: int = 50_000_000
    max_images: int = 500
    max_seconds: float = 120.0
    max_concurrent: int = 8
    max_waiting: int = 2000
    batch: int = 32
    batch_wait_ms: float = 5.0
    max_dropped_mb: float = 4096.0
    max_all_dropped_mb: float = 16384.0
    max_held_mb: float = 2048.0
    max_all_held_mb: float = 8192.0
    max_listed: int = 5000

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, int) and value < 1:
                raise DataError(f"--{f.name} must be at least 1, not {value}")
            if not value >= 0:
                raise DataError(f"--{f.name} must be a number from 0, not {value}")

    @property
    def max_bytes(self) -> int:
        """The bytes that a request's body may have."""
        return int(self.max_mb * 1e6)

    @property
    def max_unpacked(self) -> int:
        """The bytes that may be unpacked for a request."""
        return int(self.max_unpacked_mb * 1e6)


class Refused(Exception):
    """A request that is not answered: an HTTP status and one line for the client.

    Args:
        status: 4xx where the client can do better, 429, 503 or 504 where it can only wait.
        line: what and why, without a place on this machine.
    """

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status, self.line = status, line
        of_status = {
            401: {"WWW-Authenticate": "Bearer"},
            429: {"Retry-After": "2"},
            503: {"Retry-After": "1"},
        }
        self.headers: dict[str, str] = of_status.get(status, {})


class Deadline:
    """The end of a request's time. It is asked between steps: a step itself is not interrupted.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left, at least 0."""
        return max(self._end - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raises `Refused` when the time is over."""
        if not self.left():
            raise self.late()

    def end(self) -> None:
        """Ends the time now, as nobody waits any more."""
        self._end = time.monotonic()

    def late(self) -> Refused:
        """Returns the refusal."""
        return Refused(504, f"not done within {self.seconds:g} seconds; send fewer images at a time")
