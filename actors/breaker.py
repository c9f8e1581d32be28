"""Circuit breaker: stop asking a peer that keeps failing, and ask again ever more rarely."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class CircuitBreaker:
    """Closed until `threshold` consecutive failures; then open for a pause that doubles each time.

    After a pause one call is let through: its success closes the breaker, its
    failure opens it for twice as long, up to `max_pause_s`. Not thread-safe.
    """

    threshold: int = 3
    pause_s: float = 1.0
    max_pause_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    opened: int = 0  # times the breaker opened
    _open_until: float = 0.0

    @property
    def allows(self) -> bool:
        return self.failures < self.threshold or self.clock() >= self._open_until

    def success(self) -> None:
        self.failures = 0

    def failure(self) -> None:
        self.failures += 1
        if self.failures >= self.threshold:
            doublings = min(self.failures - self.threshold, 32)
            self._open_until = self.clock() + min(self.pause_s * 2.0**doublings, self.max_pause_s)
            self.opened += 1
