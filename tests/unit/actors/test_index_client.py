from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from actors.breaker import CircuitBreaker
from actors.index_client import MAX_LOOKUPS, MAX_POINTS, IndexClient
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits
from tests.unit.actors.fakes import done, failed, points, wait_until

HITS = TokenHits((5, 6), (2.0, 1.0))


class Index:
    """Answers at once, never, or with an error."""

    def __init__(self) -> None:
        self.mode = "answer"
        self.searches: list[tuple[np.ndarray, str, int]] = []
        self.writes: list[Future[None]] = []

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> Future[list[TokenHits]]:
        self.searches.append((vectors, tenant, limit))
        if self.mode == "hang":
            return Future()
        if self.mode == "fail":
            return failed(RuntimeError("503"))
        return done([HITS for _ in vectors])

    def write(self, points: Sequence[IndexPoint]) -> Future[Any]:
        future: Future[Any] = Future()
        self.writes.append(future)
        return future


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Setup:
    def __init__(self) -> None:
        self.index = Index()
        self.clock = Clock()
        self.offered: list[tuple[str, TokenHits]] = []
        self.client = IndexClient(
            self.index,
            lambda request_id, hits: self.offered.append((request_id, hits)),
            limit=4,
            deadline_s=0.05,
            breaker=CircuitBreaker(threshold=2, pause_s=10.0, clock=self.clock),
        )


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.client.stop()


def lookup(name: str, tenant: str = "") -> Lookup:
    return Lookup(name, tenant, np.array([1.0, 0.0], np.float32))


def test_hits_go_to_the_request_that_asked_and_tenants_are_kept_apart(setup: Setup) -> None:
    setup.client.look_up([lookup("a", "x"), lookup("b", "y"), lookup("c", "x")])
    setup.client.start()
    wait_until(lambda: len(setup.offered) == 3)
    assert sorted(setup.offered) == [("a", HITS), ("b", HITS), ("c", HITS)]
    assert [(vectors.shape, tenant, limit) for vectors, tenant, limit in setup.index.searches] == [
        ((2, 2), "x", 4),
        ((1, 2), "y", 4),
    ]
    assert setup.client.counts().hits == 3


def test_a_dead_index_is_asked_ever_less_and_found_again(setup: Setup) -> None:
    setup.index.mode = "fail"
    setup.client.start()
    for count in (1, 2):
        setup.client.look_up([lookup("a")])
        wait_until(lambda count=count: setup.client.counts().failed == count)
    for count in (1, 2, 3):
        setup.client.look_up([lookup("a")])
        wait_until(lambda count=count: setup.client.counts().skipped == count)
    assert len(setup.index.searches) == 2
    assert setup.client.counts().breaker_opened == 1
    setup.index.mode = "answer"
    setup.clock.now = 10.1
    setup.client.look_up([lookup("a")])
    wait_until(lambda: setup.offered == [("a", HITS)])


def test_a_slow_index_is_given_up_at_the_deadline(setup: Setup) -> None:
    setup.index.mode = "hang"
    setup.client.start()
    setup.client.look_up([lookup("a")])
    wait_until(lambda: setup.client.counts().late == 1)
    assert setup.offered == []


def test_what_waits_is_bounded_and_the_oldest_goes(setup: Setup) -> None:
    setup.client.look_up([lookup(str(number)) for number in range(MAX_LOOKUPS + 3)])
    setup.client.write(points(MAX_POINTS + 2))
    counts = setup.client.counts()
    assert (counts.skipped, counts.points_dropped) == (3, 2)
    setup.client.start()
    wait_until(lambda: len(setup.offered) == MAX_LOOKUPS)
    assert setup.offered[0][0] == "3"


def test_look_ups_do_not_queue_behind_a_slow_write(setup: Setup) -> None:
    setup.client.start()
    setup.client.write(points(1))
    wait_until(lambda: len(setup.index.writes) == 1)
    setup.client.write(points(2))
    setup.client.look_up([lookup("a")])
    wait_until(lambda: setup.offered == [("a", HITS)])
    assert len(setup.index.writes) == 1  # one at a time
    setup.index.writes[0].set_result(None)
    wait_until(lambda: len(setup.index.writes) == 2)
    setup.index.writes[1].set_exception(RuntimeError("disk full"))
    wait_until(lambda: setup.client.counts().points_dropped == 2)
    assert setup.client.counts().points_written == 1


def test_an_empty_hit_is_not_offered(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.index, "search", lambda *_: done([TokenHits((), ())]))
    setup.client.start()
    setup.client.look_up([lookup("a")])
    wait_until(lambda: setup.client.counts().lookups == 1)
    setup.client.stop()
    assert setup.offered == []
    assert setup.client.counts().hits == 0
