"""The memory that a session's images may take, beside that of all sessions. Counts bytes and slices alone."""

from __future__ import annotations

from collections.abc import Sequence

from ...limits import Limits
from ..drops import Budget, Share
from .case import Case

_OF_ALL = Budget()  # bytes of all sessions of this process


class Memory:
    """One session's part.

    Args:
        limits: of slices and bytes, of a session and of all.
    """

    def __init__(self, limits: Limits):
        self._share = Share(_OF_ALL, limits.max_held_mb * 1e6, limits.max_all_held_mb * 1e6)
        self._slices, self._most = Budget(), limits.max_listed

    def take(self, size: int) -> str:
        """Takes room for a slice of so many bytes; returns why not, or nothing."""
        if not self._slices.take(1, self._most):
            return f"the list is full with {self._most} images; export it, and forget these images for more"
        if self._share.take(size):
            return ""
        self._slices.give(1)
        return "no room for it in memory: forget the images of this list, or drop fewer at a time"

    def give(self, sizes: Sequence[int]) -> None:
        """Gives slices of so many bytes back."""
        self._slices.give(len(sizes))
        self._share.give(sum(sizes))

    def forget(self, case: Case) -> None:
        """Gives back what a case holds, once."""
        if case.size:
            self._slices.give(len(case.slices))
            self._share.give(case.size)
            case.size = 0

    @property
    def used(self) -> int:
        """Bytes in use by this session."""
        return self._share.own.used
