"""What keeps a token index bounded: how many points it holds, and how old they grow."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable

from services.qdrant_store import PointId, QdrantStore, StoredPoint

SPARE_SHARE = 0.02  # room made at once when the index is full, so that not every write makes some
SWEEPS_PER_LIFE = 100  # how often old points are looked for, within the age that they may reach
SWEEP_BATCH = 256
DAY_S = 86_400.0


class Retention:
    """Removes the points of a store's collections that were written longest ago. Not thread-safe.

    Args:
        names: the collections that together may hold `max_points`.
        max_age_days: points written longer ago are removed.
    """

    def __init__(
        self,
        store: QdrantStore,
        names: Callable[[], list[str]],
        *,
        max_points: int,
        max_age_days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._names = names
        self._max_points = max_points
        self._max_age_s = max_age_days * DAY_S
        self._clock = clock
        self._next_sweep_s = 0.0
        # The embedded index never frees the row of a deleted point: its id is used again.
        self._freed: dict[str, list[PointId]] = defaultdict(list)

    def new_id(self, name: str) -> PointId:
        """For a point that is about to be added to a collection."""
        freed = self._freed.get(name)
        return freed.pop() if freed else str(uuid.uuid4())

    def make_room(self, incoming: int) -> None:
        """Removes the oldest points, of whichever collection, when `incoming` don't fit."""
        points = sum(self._store.count(name) for name in self._names())
        excess = points + incoming - self._max_points
        if excess <= 0:
            return
        excess = min(points, excess + int(SPARE_SHARE * self._max_points))
        candidates = [(point, name) for name in self._names() for point in self._store.oldest(name, excess)]
        candidates.sort(key=lambda candidate: candidate[0].time_s)
        removed: dict[str, list[StoredPoint]] = defaultdict(list)
        for point, name in candidates[:excess]:
            removed[name].append(point)
        for name, points_ in removed.items():
            self._remove(name, points_)

    def sweep(self) -> None:
        """Removes points that have grown too old; most calls do nothing."""
        now = self._clock()
        if now < self._next_sweep_s:
            return
        for name in self._names():
            self._sweep(name, before_s=now - self._max_age_s)
        self._next_sweep_s = now + self._max_age_s / SWEEPS_PER_LIFE

    def _sweep(self, name: str, before_s: float) -> None:
        while True:
            found = self._store.oldest(name, SWEEP_BATCH)
            old = [point for point in found if point.time_s < before_s]
            if old:
                self._remove(name, old)
            if len(old) < SWEEP_BATCH:
                return

    def _remove(self, name: str, points: Iterable[StoredPoint]) -> None:
        ids = [point.id for point in points]
        self._store.delete(name, ids)
        if not self._store.embedded:
            return
        if self._store.count(name):
            self._freed[name].extend(ids)
        else:  # tenants that are gone leave no collection behind
            self._freed.pop(name, None)
            self._store.drop(name)
