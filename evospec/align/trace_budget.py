"""How many bytes of traces a replica may make."""

from __future__ import annotations

import time
from collections.abc import Callable


class TraceBudget:
    """Bytes that come in at a steady rate; what is not used within a second is lost.

    Args:
        bytes_per_s: the rate.
        clock: seconds.
    """

    __slots__ = ("_bytes_per_s", "_clock", "_left", "_since")

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._left = bytes_per_s
        self._since = clock()

    @property
    def left(self) -> bool:
        """Whether there is any; what is under way when it ends is paid for later."""
        now = self._clock()
        earned = (now - self._since) * self._bytes_per_s
        self._left, self._since = min(self._left + earned, self._bytes_per_s), now
        return self._left > 0

    def spend(self, count: int) -> None:
        self._left -= count
