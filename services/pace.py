"""How often a running answer is sent on: what a chunk costs is the same however many tokens it holds."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

FEW = 4  # answers under way up to which chunks come as often as they may
MOST_S = 0.2  # five pieces a second still read as a stream


@dataclass(slots=True)
class Pace:
    """Least time between two chunks of an answer.

    Attributes:
        chunk_s: with few answers under way. With more it grows with their number: replica, gateway and proxy
            pass on so many chunks a second and no more, and the replica's share is time that its engine
            lacks. 0: one chunk a cycle, always.
    """

    chunk_s: float = 0.0
    _under_way: int = field(default=0, init=False)

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[None]:
        """Counts an answer as under way."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def interval(self, *, streamed: bool) -> float:
        """Seconds, for an answer that begins now. One that nobody sees before its end needs no pieces."""
        if not streamed:
            return math.inf
        crowded = min(self.chunk_s * self._under_way / FEW, MOST_S)
        return max(self.chunk_s, crowded)
