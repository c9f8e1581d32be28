from __future__ import annotations

from concurrent.futures import Future

import pytest

from actors.weight_follower import Adoption, WeightFollower
from evospec.errors import EngineFailedError, RegistryError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.ports import WeightRegistry
from evospec.wire import VersionedWeights
from tests.unit.actors.fakes import FakeRegistry, adapter, done, failed, wait_until


class Replica:
    """What a follower does to its replica."""

    def __init__(self) -> None:
        self.swapped: list[int] = []
        self.refuse_build: set[int] = set()
        self.swap_error: Exception | None = None

    def build(self, weights: VersionedWeights) -> AdapterWeights:
        version = weights.manifest.version
        if version in self.refuse_build:
            raise WireError("holds NaN")
        return adapter(version)

    def swap(self, weights: AdapterWeights) -> Future[None]:
        if self.swap_error is not None:
            return failed(self.swap_error)
        self.swapped.append(weights.version)
        return done(None)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def replica() -> Replica:
    return Replica()


def follow(registry: FakeRegistry, replica: Replica, poll_s: float = 0.01) -> WeightFollower:
    return WeightFollower("r1", lambda: registry, Adoption(replica.build, replica.swap), poll_s)


def test_the_current_version_is_adopted_before_start_returns(
    registry: FakeRegistry, replica: Replica
) -> None:
    registry.put(3)
    follower = follow(registry, replica, poll_s=3600)
    follower.start()
    assert replica.swapped == [3]
    assert registry.acks == {"r1": 3}
    assert follower.counts().version == 3


def test_a_hint_wakes_it_long_before_the_poll(registry: FakeRegistry, replica: Replica) -> None:
    follower = follow(registry, replica, poll_s=3600)
    follower.start()
    registry.put(1)
    wait_until(lambda: registry.acks == {"r1": 1})
    registry.put(2)
    wait_until(lambda: registry.acks == {"r1": 2})
    assert replica.swapped == [1, 2]


def test_without_hints_polling_finds_the_version(registry: FakeRegistry, replica: Replica) -> None:
    follower = follow(registry, replica)
    follower.start()
    registry.put(1)
    registry.hint.clear()
    wait_until(lambda: registry.acks == {"r1": 1})
    follower.stop()
    assert registry.closed


def test_an_unreachable_registry_at_start_means_version_0_and_catching_up_later(
    registry: FakeRegistry, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    registry.put(5)
    reachable = False

    def open_registry() -> WeightRegistry:
        if not reachable:
            raise RegistryError("connection refused")
        return registry

    follower = WeightFollower("r1", open_registry, Adoption(replica.build, replica.swap), 0.01)
    follower.start()
    assert follower.counts().version == 0
    wait_until(lambda: follower.counts().registry_failures >= 3)
    assert len(caplog.records) == 1
    reachable = True
    wait_until(lambda: registry.acks == {"r1": 5})
    follower.stop()


def test_a_registry_that_goes_away_costs_nothing_but_time(registry: FakeRegistry, replica: Replica) -> None:
    registry.put(1)
    follower = follow(registry, replica)
    follower.poll()
    registry.down = True
    follower.poll()
    follower.poll()
    assert follower.counts().version == 1
    assert follower.counts().registry_failures == 2
    registry.down = False
    registry.put(2)
    follower.poll()
    assert registry.acks == {"r1": 2}


@pytest.mark.parametrize("where", ["fetch", "build", "swap"])
def test_a_bad_version_is_refused_once_and_the_next_one_taken(
    registry: FakeRegistry, replica: Replica, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry.put(1)
    follower = follow(registry, replica)
    follower.poll()
    registry.put(2)
    if where == "fetch":
        registry.corrupt.add(2)
    elif where == "build":
        replica.refuse_build.add(2)
    else:
        replica.swap_error = WireError("does not fit")
    for _ in range(5):
        follower.poll()
    assert list(registry.fetches) == [1, 2]  # not again and again
    assert follower.counts().refused == 1
    assert registry.acks == {"r1": 1}
    assert len(caplog.records) == 1
    replica.swap_error = None
    registry.put(3)
    follower.poll()
    assert replica.swapped == [1, 3]
    assert registry.acks == {"r1": 3}


def test_a_swap_that_the_engine_did_not_get_to_is_tried_again(
    registry: FakeRegistry, replica: Replica
) -> None:
    registry.put(1)
    replica.swap_error = EngineFailedError("stopping")
    follower = follow(registry, replica)
    follower.poll()
    assert follower.counts().not_applied == 1
    assert registry.acks == {"r1": 0}
    replica.swap_error = None
    follower.poll()
    assert registry.acks == {"r1": 1}


def test_a_lost_acknowledgement_is_made_up_for(registry: FakeRegistry, replica: Replica) -> None:
    follower = follow(registry, replica)
    follower.poll()
    registry.put(1)
    registry.deaf = True
    follower.poll()
    assert follower.counts().version == 1
    registry.deaf = False
    follower.poll()
    assert registry.acks == {"r1": 1}
    assert replica.swapped == [1]


def test_a_flushed_registry_changes_nothing_and_learns_where_the_replica_is(
    registry: FakeRegistry, replica: Replica
) -> None:
    registry.put(7)
    follower = follow(registry, replica)
    follower.poll()
    registry.current = 0
    registry.acks.clear()
    follower.poll()
    assert replica.swapped == [7]
    assert registry.acks == {"r1": 7}
