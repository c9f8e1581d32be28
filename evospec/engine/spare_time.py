"""How long the host may be busy with other things before the device waits for it."""

from __future__ import annotations

import math

_MOST = 0.005  # seconds that can be saved up


class SpareTime:
    """An account: what the host waits for the device is paid in, what it takes for itself is paid out.

    Without bounds until the device first had to wait: where that never happens, nothing is counted.

    Attributes:
        seconds: what may be taken now; below 0 it has to be earned first.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = math.inf

    def took(self, seconds: float) -> None:
        self.seconds -= seconds

    def waited(self, seconds: float, *, late: bool) -> None:
        """How long the host waited for a cycle; `late`: it had ended before."""
        if late:
            self.seconds = min(self.seconds, 0.0)
        else:
            self.seconds = min(self.seconds + seconds, max(self.seconds, _MOST))
