"""Where replayed traces are kept: the latest ones, and samples of all before them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection

import numpy as np

from evospec.align.trace import Trace

RECENT_SHARE = 0.25
_OBJECT_BYTES = 2048  # Python objects around the arrays: they count when traces are tiny


class Reservoir:
    """A uniform sample, bounded in bytes, of everything ever offered.

    Each item draws a key from U(0, 1); items with the smallest keys stay, as many as
    fit, and no item above the smallest key ever turned away is let in later. With equal
    sizes that is reservoir sampling (Vitter 1985) in the random-sort form of Efraimidis
    and Spirakis (2006) with equal weights: after n offers each item is kept with the same
    probability, whether it came first or last. Unlike Vitter's slots it needs no equal sizes.
    """

    __slots__ = ("_heap", "_offers", "_threshold", "capacity", "nbytes")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self._heap: list[tuple[float, int, Trace]] = []  # the largest key on top, hence negated
        self._offers = 0
        self._threshold = 1.0

    def shrink(self, capacity: int) -> int:
        """Has less room from now on; returns how many traces were put out."""
        self.capacity = capacity
        return self._put_out()

    def offer(self, trace: Trace, key: float) -> int:
        """Returns how many traces were turned away or put out."""
        self._offers += 1
        if key >= self._threshold:
            return 1
        heapq.heappush(self._heap, (-key, self._offers, trace))
        self.nbytes += stored_bytes(trace)
        return self._put_out()

    def _put_out(self) -> int:
        evicted = 0
        while self.nbytes > self.capacity:
            negated, _, victim = heapq.heappop(self._heap)
            self.nbytes -= stored_bytes(victim)
            self._threshold = -negated
            evicted += 1
        return evicted

    def remove(self, identities: Collection[int]) -> int:
        kept = [entry for entry in self._heap if id(entry[2]) not in identities]
        removed = len(self._heap) - len(kept)
        heapq.heapify(kept)
        self._heap = kept
        self.nbytes = sum(stored_bytes(entry[2]) for entry in kept)
        return removed

    def traces(self) -> list[Trace]:
        return [trace for _, _, trace in self._heap]


class ReplayStore:
    """The latest traces, and a uniform sample of all those before them, per kind of traffic.

    A pure reservoir of a long stream hardly takes anything new, and a pure queue
    forgets a topic as soon as another fills it. So RECENT_SHARE of the bytes is a
    queue, and what falls out of it is offered to the reservoir of its cluster, as clusters are by then.
    Reservoirs share the rest in equal parts: a kind of traffic keeps its part however much of others comes.
    """

    __slots__ = (
        "_capacity",
        "_place",
        "_recent",
        "_recent_bytes",
        "_recent_capacity",
        "_reservoirs",
        "_rng",
    )

    def __init__(self, capacity: int, rng: np.random.Generator, place: Callable[[Trace], int]) -> None:
        """`place` tells a trace's cluster."""
        self._rng = rng
        self._place = place
        self._recent: deque[Trace] = deque()
        self._recent_bytes = 0
        self._recent_capacity = int(capacity * RECENT_SHARE)
        self._capacity = capacity - self._recent_capacity
        self._reservoirs: dict[int, Reservoir] = {}

    @property
    def nbytes(self) -> int:
        return self._recent_bytes + sum(reservoir.nbytes for reservoir in self._reservoirs.values())

    def __len__(self) -> int:
        return len(self._recent) + sum(len(reservoir.traces()) for reservoir in self._reservoirs.values())

    def add(self, trace: Trace) -> int:
        """Returns how many traces left for it."""
        self._recent.append(trace)
        self._recent_bytes += stored_bytes(trace)
        evicted = 0
        while self._recent_bytes > self._recent_capacity:
            oldest = self._recent.popleft()
            self._recent_bytes -= stored_bytes(oldest)
            cluster = self._place(oldest)
            evicted += self._open(cluster)
            evicted += self._reservoirs[cluster].offer(oldest, self._rng.random())
        return evicted

    def traces(self) -> list[Trace]:
        kept = [trace for reservoir in self._reservoirs.values() for trace in reservoir.traces()]
        return [*kept, *self._recent]

    def remove(self, identities: Collection[int]) -> int:
        kept = [trace for trace in self._recent if id(trace) not in identities]
        removed = len(self._recent) - len(kept)
        self._recent = deque(kept)
        self._recent_bytes = sum(map(stored_bytes, kept))
        return removed + sum(reservoir.remove(identities) for reservoir in self._reservoirs.values())

    def _open(self, cluster: int) -> int:
        """Makes room for a cluster that has no reservoir; returns how many traces left for it."""
        if cluster in self._reservoirs:
            return 0
        part = self._capacity // (len(self._reservoirs) + 1)
        evicted = sum(reservoir.shrink(part) for reservoir in self._reservoirs.values())
        self._reservoirs[cluster] = Reservoir(part)
        return evicted


def stored_bytes(trace: Trace) -> int:
    return trace.nbytes + _OBJECT_BYTES
