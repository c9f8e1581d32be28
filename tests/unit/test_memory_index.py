"""The token index in memory, and the pump between it and an engine."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from evospec.engine.retrieval import RetrievalPump
from evospec.errors import TokenIndexError
from evospec.vocab.memory_index import MemoryIndex
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits
from tests.unit.bench_kit import ScriptedEngine

EAST, NORTH = (1.0, 0.0), (0.0, 1.0)


def vector(*values: float) -> np.ndarray:
    array = np.asarray(values, dtype=np.float32)
    return array / np.linalg.norm(array)


def point(at: tuple[float, ...], tokens: dict[int, float], tenant: str = "") -> IndexPoint:
    return IndexPoint(vector(*at), tuple(tokens), tuple(tokens.values()), tenant, "target")


def search(index: MemoryIndex, *at: float, tenant: str = "", limit: int = 4) -> TokenHits:
    (hits,) = index.search(np.stack([vector(*at)]), tenant, limit)
    return hits


def test_weights_are_summed_over_neighbours_and_scaled_by_similarity() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {7: 2.0, 8: 1.0}), point((1.0, 1.0), {7: 1.0, 9: 4.0})])
    hits = search(index, *EAST)
    similar = 2**-0.5
    assert hits.token_ids == (9, 7, 8)
    assert hits.weights == pytest.approx((4 * similar, 2 + similar, 1.0), rel=1e-6)


def test_only_the_nearest_points_count_and_none_that_points_away() -> None:
    index = MemoryIndex(10)
    index.write([point(NORTH, {1: 1.0}), point(EAST, {2: 1.0}), point((-1.0, 0.1), {3: 1.0})])
    assert search(index, *EAST, limit=1).token_ids == (2,)
    assert search(index, *EAST, limit=3).token_ids == (2,)


def test_equal_weights_come_in_the_order_of_token_ids() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {9: 1.0, 3: 1.0, 5: 1.0})])
    assert search(index, *EAST).token_ids == (3, 5, 9)


def test_a_query_yields_the_heaviest_tokens_only() -> None:
    index = MemoryIndex(10, max_tokens=2)
    index.write([point(EAST, {1: 1.0, 2: 3.0, 3: 2.0})])
    assert search(index, *EAST).token_ids == (2, 3)


def test_tenants_see_their_own_points_only() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {1: 1.0}, "a"), point(EAST, {2: 1.0}, "b")])
    assert search(index, *EAST, tenant="b").token_ids == (2,)
    assert search(index, *EAST, tenant="c") == TokenHits((), ())


def test_the_oldest_points_leave_first() -> None:
    index = MemoryIndex(2)
    for token in range(4):
        index.write([point(EAST, {token: 1.0})])
    assert index.count() == 2
    assert search(index, *EAST).token_ids == (2, 3)


def test_a_search_answers_each_query_in_its_place() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {1: 1.0}), point(NORTH, {2: 1.0})])
    found = index.search(np.stack([vector(*NORTH), vector(*EAST)]), "", 1)
    assert [hits.token_ids for hits in found] == [(2,), (1,)]


def test_vectors_of_another_size_are_refused() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {1: 1.0})])
    with pytest.raises(TokenIndexError, match="vectors of 2 numbers, the query has 3"):
        index.search(np.ones((1, 3), dtype=np.float32), "", 1)


def test_a_closed_index_is_empty() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {1: 1.0})])
    index.close()
    assert index.count() == 0
    assert search(index, *EAST) == TokenHits((), ())


def test_the_pump_answers_lookups_and_stores_points() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {7: 1.0}, "a")])
    engine = ScriptedEngine("engine", [1])
    engine.lookups = [Lookup("r1", "a", vector(*EAST)), Lookup("r2", "b", vector(*EAST))]
    engine.points = [point(NORTH, {8: 1.0}, "b")]
    RetrievalPump(engine, index, 4).run()
    assert engine.hits == {"r1": TokenHits((7,), (1.0,)), "r2": TokenHits((), ())}
    assert index.count() == 2
    assert not engine.lookups
    assert not engine.points


def test_a_pump_beside_the_engine_answers_later() -> None:
    asked = threading.Event()

    class Slow(MemoryIndex):
        def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
            asked.wait(10)
            return super().search(vectors, tenant, limit)

    index = Slow(10)
    index.write([point(EAST, {7: 1.0}, "a")])
    engine = ScriptedEngine("engine", [1])
    engine.lookups = [Lookup("r1", "a", vector(*EAST))]
    engine.points = [point(NORTH, {8: 1.0}, "b")]
    pump = RetrievalPump(engine, index, 4, beside=True)
    pump.run()
    pump.run()
    assert engine.hits == {}
    asked.set()
    while not engine.hits:
        pump.run()
    assert engine.hits == {"r1": TokenHits((7,), (1.0,))}
    assert index.count() == 2


def test_what_an_index_beside_the_engine_raises_is_raised() -> None:
    index = MemoryIndex(10)
    index.write([point(EAST, {7: 1.0}, "a")])
    engine = ScriptedEngine("engine", [1])
    engine.lookups = [Lookup("r1", "a", np.ones(3, dtype=np.float32))]
    pump = RetrievalPump(engine, index, 4, beside=True)
    with pytest.raises(TokenIndexError, match="vectors of 2 numbers, the query has 3"):
        run_on(pump)


def run_on(pump: RetrievalPump) -> None:
    while True:
        pump.run()


def test_the_latest_points_come_newest_first_whosever_they_are() -> None:
    index = MemoryIndex(3)
    tenants = ["a", "b", "a", "b"]
    index.write([point(EAST, {number: 1.0}, tenant) for number, tenant in enumerate(tenants)])
    assert [(found.token_ids, found.tenant) for found in index.latest(2)] == [((3,), "b"), ((2,), "a")]
    assert [found.token_ids for found in index.latest(9)] == [(3,), (2,), (1,)]
