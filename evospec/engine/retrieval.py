"""Synchronous retrieval: what an engine wants looked up and written, done between its steps."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from evospec.ports import TokenIndex
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits


class RetrievingEngine(Protocol):
    """What the pump needs of `evospec.engine.engine.Engine`."""

    def take_lookups(self) -> list[Lookup]: ...
    def take_points(self) -> list[IndexPoint]: ...
    def offer_hits(self, request_id: str, hits: TokenHits) -> None: ...


class RetrievalPump:
    """Moves look-ups, hits and points between one engine and one index; call `run` after each step.

    For programs that decode in one process: the index is asked at once, so it must be
    quick and must not fail. Replicas of a server ask theirs from another thread.
    """

    def __init__(self, engine: RetrievingEngine, index: TokenIndex, neighbours: int) -> None:
        self._engine = engine
        self.index = index
        self._neighbours = neighbours

    def run(self) -> None:
        tenants: dict[str, list[Lookup]] = {}
        for lookup in self._engine.take_lookups():
            tenants.setdefault(lookup.tenant, []).append(lookup)
        for tenant, lookups in tenants.items():
            queries = np.stack([lookup.vector for lookup in lookups])  # [look-ups, dim]
            found = self.index.search(queries, tenant, self._neighbours)
            for lookup, hits in zip(lookups, found, strict=True):
                self._engine.offer_hits(lookup.request_id, hits)
        points = self._engine.take_points()
        if points:
            self.index.write(points)
