"""Points that nothing renewed go, and their places are used again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from evospec.config import SemanticConfig
from services.point_retention import DAY_S, SWEEP_BATCH, Retention
from services.qdrant_store import QdrantStore, StoredPoint
from tests.integration.qdrant_rest import Qdrant
from tests.integration.token_index_kit import DIM, axis

AGE_DAYS = 10.0


@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest, qdrant: Qdrant) -> Iterator[QdrantStore]:
    opened = QdrantStore(SemanticConfig(url=qdrant.url if request.param == "server" else None))
    for name in ("x-1", "x-2"):
        opened.ensure(name, DIM)
    yield opened
    opened.close()


@pytest.fixture
def retention(store: QdrantStore, clock: Clock) -> Retention:
    return Retention(
        store, lambda: store.collections("x-"), max_points=1000, max_age_days=AGE_DAYS, clock=clock
    )


def add(store: QdrantStore, retention: Retention, name: str, time_s: float, count: int = 1) -> None:
    points = [StoredPoint(retention.new_id(name), {"time": time_s}) for _ in range(count)]
    store.insert(name, np.stack([axis(0)] * count), points)


def test_points_go_when_they_have_grown_too_old(
    store: QdrantStore, retention: Retention, clock: Clock
) -> None:
    add(store, retention, "x-1", clock.now, count=2)
    add(store, retention, "x-1", clock.now + DAY_S)
    add(store, retention, "x-2", clock.now + DAY_S)
    clock.now += AGE_DAYS * DAY_S
    retention.sweep()
    assert (store.count("x-1"), store.count("x-2")) == (3, 1)  # just old enough to stay
    clock.now += 0.5 * DAY_S
    retention.sweep()
    assert (store.count("x-1"), store.count("x-2")) == (1, 1)


def test_more_old_points_than_are_read_at_once_go(
    store: QdrantStore, retention: Retention, clock: Clock
) -> None:
    add(store, retention, "x-1", clock.now - 11 * DAY_S, count=2 * SWEEP_BATCH)
    add(store, retention, "x-1", clock.now)
    retention.sweep()
    assert store.count("x-1") == 1


def test_sweeps_are_rare(store: QdrantStore, retention: Retention, clock: Clock) -> None:
    retention.sweep()
    add(store, retention, "x-1", clock.now - 11 * DAY_S)
    add(store, retention, "x-1", clock.now)
    clock.now += 60.0
    retention.sweep()
    assert store.count("x-1") == 2  # it is not time yet
    clock.now += DAY_S
    retention.sweep()
    assert store.count("x-1") == 1


def test_an_embedded_collection_that_sweeping_emptied_is_dropped(
    store: QdrantStore, retention: Retention, clock: Clock
) -> None:
    add(store, retention, "x-1", clock.now - 11 * DAY_S)
    retention.sweep()
    assert store.collections("x-") == (["x-2"] if store.embedded else ["x-1", "x-2"])
