"""How long requests wait for a place in a batch: a queue before many equal servers.

Erlang's C formula gives the chance to wait for Poisson arrivals and exponential times; Allen and Cunneen's
factor (Ca² + Cs²) / 2 corrects the wait for other variations (Allen, "Probability, Statistics, and Queueing
Theory", 1990, section 5.3.4). Requests that wait are taken to wait an exponential time, which is exact in
the first case.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log


@dataclass(frozen=True, slots=True)
class Queue:
    """
    Attributes:
        servers: places in batches.
        offered: requests that would be running if there were room for all, the load in erlangs.
        service_s: how long one takes, on average.
        factor: (Ca² + Cs²) / 2.
    """

    servers: int
    offered: float
    service_s: float
    factor: float = 1.0

    @property
    def waits(self) -> float:
        """Chance that a request has to wait; 1 where the load is more than the servers can do."""
        if self.offered >= self.servers:
            return 1.0
        blocked = 1.0  # Erlang's B, by its recursion over servers
        for count in range(1, self.servers + 1):
            blocked = self.offered * blocked / (count + self.offered * blocked)
        return blocked / (1 - (self.offered / self.servers) * (1 - blocked))

    @property
    def mean_wait_s(self) -> float:
        return self.waits * self._relief_s

    def wait_s(self, share: float) -> float:
        """So long, or less, waits this share of the requests."""
        waiting = self.waits
        if waiting <= 1 - share:
            return 0.0
        return self._relief_s * log(waiting / (1 - share))

    @property
    def _relief_s(self) -> float:
        """Mean wait of those that wait."""
        spare = self.servers - self.offered
        return self.factor * self.service_s / spare if spare > 0 else float("inf")
