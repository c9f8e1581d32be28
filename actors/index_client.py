"""A replica's look-ups in the semantic token index: asynchronous, under a deadline, given up when it ails."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from actors.breaker import CircuitBreaker
from actors.counts import IndexCounts
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_LOOKUPS = 256  # waiting ones; older ones are of no use to their requests any more
MAX_POINTS = 1024
BATCH = 8  # of either: the embedded index answers one call at a time, and none shall wait long for others


class RemoteIndex(Protocol):
    """The token index as seen from a replica: calls return at once, errors are in the future."""

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> Future[list[TokenHits]]: ...

    def write(self, points: Sequence[IndexPoint]) -> Future[None]: ...


class IndexClient:
    """Serves the engine's look-ups and points from a thread of its own, one call at a time.

    Args:
        offer: receives (request id, hits); called on the client's thread.
        limit: points read per look-up.
        deadline_s: a batch of look-ups that takes longer is given up.
    """

    def __init__(
        self,
        index: RemoteIndex,
        offer: Callable[[str, TokenHits], None],
        *,
        limit: int,
        deadline_s: float,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._index = index
        self._offer = offer
        self._limit = limit
        self._deadline_s = deadline_s
        self._breaker = breaker or CircuitBreaker()
        self._wake = threading.Condition()
        self._lookups: deque[Lookup] = deque()
        self._points: deque[IndexPoint] = deque()
        self._counts = IndexCounts()
        self._stopping = False
        self._writing = False
        self._thread = threading.Thread(target=self._run, name="index-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def look_up(self, lookups: Sequence[Lookup]) -> None:
        with self._wake:
            self._lookups.extend(lookups)
            self._counts.skipped += _trim(self._lookups, MAX_LOOKUPS)
            self._wake.notify()

    def write(self, points: Sequence[IndexPoint]) -> None:
        with self._wake:
            self._points.extend(points)
            self._counts.points_dropped += _trim(self._points, MAX_POINTS)
            self._wake.notify()

    def counts(self) -> IndexCounts:
        with self._wake:
            return replace(self._counts, breaker_opened=self._breaker.opened)

    def _run(self) -> None:
        while self._wait_for_work():
            if lookups := self._next_lookups():
                self._search(lookups)
            if points := self._next_points():
                self._store(points)

    def _wait_for_work(self) -> bool:
        """False when the client stops."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._lookups or (self._points and not self._writing)
            )
            return not self._stopping

    def _next_lookups(self) -> list[Lookup]:
        """Waiting look-ups of one tenant, oldest first; none while the breaker is open."""
        with self._wake:
            if not self._breaker.allows:
                self._counts.skipped += len(self._lookups)
                self._lookups.clear()
            if not self._lookups:
                return []
            tenant = self._lookups[0].tenant
            batch: list[Lookup] = []
            rest: deque[Lookup] = deque()
            for lookup in self._lookups:
                (batch if lookup.tenant == tenant and len(batch) < BATCH else rest).append(lookup)
            self._lookups = rest
            self._counts.lookups += len(batch)
            return batch

    def _next_points(self) -> list[IndexPoint]:
        with self._wake:
            if self._writing:
                return []
            points = [self._points.popleft() for _ in range(min(BATCH, len(self._points)))]
            if not self._breaker.allows:
                self._counts.points_dropped += len(points)
                return []
            self._writing = bool(points)
            return points

    def _search(self, lookups: list[Lookup]) -> None:
        vectors = np.stack([lookup.vector for lookup in lookups])
        future = self._index.search(vectors, lookups[0].tenant, self._limit)
        try:
            error = future.exception(self._deadline_s)
        except TimeoutError as late:
            error = late
        if error is not None:
            self._failed(error)
            return
        found = future.result()
        with self._wake:
            self._breaker.success()
            self._counts.hits += sum(1 for hits in found if hits.token_ids)
        for lookup, hits in zip(lookups, found, strict=True):
            if hits.token_ids:
                self._offer(lookup.request_id, hits)

    def _store(self, points: list[IndexPoint]) -> None:
        """Sends points without waiting: look-ups must not queue behind a slow write."""
        future = self._index.write(points)
        future.add_done_callback(lambda done: self._stored(len(points), done.exception()))

    def _stored(self, points: int, error: BaseException | None) -> None:
        with self._wake:
            self._writing = False
            if error is None:
                self._counts.points_written += points
            else:
                self._counts.points_dropped += points
            self._wake.notify()
        if error is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        with self._wake:
            self._breaker.failure()
            if isinstance(error, TimeoutError):
                self._counts.late += 1
            else:
                self._counts.failed += 1
            if self._counts.failures == 1:
                reason = str(error) or f"no answer within {self._deadline_s:g} s"
                logger.warning("the token index failed; later failures are only counted: %s", reason)


def _trim(queue: deque[Item], limit: int) -> int:
    """Removes the oldest entries above `limit`; returns how many."""
    excess = max(len(queue) - limit, 0)
    for _ in range(excess):
        queue.popleft()
    return excess
