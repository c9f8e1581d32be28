"""How long the host may be busy with other things before the device waits for it."""

from __future__ import annotations

import math


class SpareTime:
    """In each cycle the host may take for itself what it had to spare in the last one.

    Without bounds until the device first had to wait: where that never happens, nothing is counted.

    Attributes:
        seconds: what is left to take; below 0 more was taken than there seemed to be.
    """

    __slots__ = ("_taken", "seconds")

    def __init__(self) -> None:
        self.seconds = math.inf
        self._taken = 0.0

    @property
    def is_scarce(self) -> bool:
        """Whether the device has had to wait."""
        return self.seconds < math.inf

    def took(self, seconds: float) -> None:
        self.seconds -= seconds
        self._taken += seconds

    def waited(self, seconds: float, *, late: bool) -> None:
        """How long the host waited for a cycle; `late`: the device had nothing to do meanwhile."""
        if late:
            self.seconds = 0.0
        elif self.is_scarce:
            self.seconds = self._taken + seconds
        self._taken = 0.0
