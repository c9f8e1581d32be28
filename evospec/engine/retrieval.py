"""Retrieval without a server: what an engine wants looked up and written, done between its steps."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evospec.config import SemanticConfig
from evospec.ports import TokenIndex
from evospec.vocab.memory_index import MemoryIndex
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits


class RetrievingEngine(Protocol):
    """What the pump needs of `evospec.engine.engine.Engine`."""

    def take_lookups(self) -> list[Lookup]: ...
    def take_points(self) -> list[IndexPoint]: ...
    def offer_hits(self, request_id: str, hits: TokenHits) -> None: ...


class RetrievalPump:
    """Moves look-ups, hits and points between one engine and one index; call `run` after each step.

    For programs that decode in one process: the index must not fail.

    Args:
        beside: asks the index on a thread of its own, as replicas of a server do, so that cycles don't wait
            for it; hits come with a later `run`. False: at once, so that every run is like every other.
    """

    def __init__(
        self, engine: RetrievingEngine, index: TokenIndex, neighbours: int, *, beside: bool = False
    ) -> None:
        self._engine = engine
        self.index = index
        self._neighbours = neighbours
        self._thread = ThreadPoolExecutor(1, "retrieval") if beside else None
        self._asked: deque[Future[list[_Found]]] = deque()

    @classmethod
    def in_memory(
        cls, engine: RetrievingEngine, config: SemanticConfig, *, beside: bool = False
    ) -> RetrievalPump:
        """Over an index that ends with the process."""
        index = MemoryIndex(config.max_points, config.tokens_per_lookup)
        return cls(engine, index, config.neighbours, beside=beside)

    def run(self) -> None:
        lookups, points = self._engine.take_lookups(), self._engine.take_points()
        if self._thread is None:
            self._offer(self._ask(lookups, points))
            return
        if lookups or points:
            self._asked.append(self._thread.submit(self._ask, lookups, points))
        while self._asked and self._asked[0].done():
            self._offer(self._asked.popleft().result())

    def _ask(self, lookups: list[Lookup], points: list[IndexPoint]) -> list[_Found]:
        tenants: dict[str, list[Lookup]] = {}
        for lookup in lookups:
            tenants.setdefault(lookup.tenant, []).append(lookup)
        found: list[_Found] = []
        for tenant, own in tenants.items():
            queries = np.stack([lookup.vector for lookup in own])  # [look-ups, dim]
            hits = self.index.search(queries, tenant, self._neighbours)
            found += [_Found(lookup.request_id, each) for lookup, each in zip(own, hits, strict=True)]
        if points:
            self.index.write(points)
        return found

    def _offer(self, found: list[_Found]) -> None:
        for each in found:
            self._engine.offer_hits(each.request_id, each.hits)


@dataclass(frozen=True, slots=True)
class _Found:
    request_id: str
    hits: TokenHits
