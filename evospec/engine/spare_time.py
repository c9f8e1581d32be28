"""How long the host may be busy with other things before the device waits for it."""

from __future__ import annotations

import math

_CAUTION = 0.8  # of the time that the host had to wait, so much is taken in addition
_RETREAT = 0.7  # of what was taken, so much is allowed after the device had to wait


class SpareTime:
    """Found by trial: without bounds until the device first had to wait, shorter each time that it has to,
    and longer again when the host waits.

    Attributes:
        seconds: the allowance of the next cycle.
    """

    __slots__ = ("_used", "seconds")

    def __init__(self) -> None:
        self.seconds = math.inf
        self._used = 0.0

    def used(self, seconds: float) -> None:
        """What was made of the allowance in this cycle."""
        self._used = seconds

    def waited(self, seconds: float, *, late: bool) -> None:
        """How long the host then waited for the cycle; `late`: it had ended before."""
        if late:
            self.seconds = _RETREAT * min(self.seconds, self._used)
        else:
            self.seconds = max(self.seconds, self._used + _CAUTION * seconds)
