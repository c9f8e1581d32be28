from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from torch import Tensor

import actors.weight_follower as follower_module
from actors.adoption import Adoption
from actors.weight_follower import WeightFollower
from evospec.errors import EngineFailedError, RegistryError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.ports import WeightRegistry
from evospec.wire import Decision, VersionedWeights
from tests.unit.actors.fakes import FakeRegistry, adapter, done, failed, wait_until


class Replica:
    """What a follower does to its replica."""

    def __init__(self) -> None:
        self.swapped: list[int] = []
        self.refuse_build: set[int] = set()
        self.swap_error: Exception | None = None
        self.build_error: Exception | None = None
        self.tensors: dict[str, Tensor] = {}

    def build(self, weights: VersionedWeights) -> AdapterWeights:
        version = weights.manifest.version
        if version in self.refuse_build:
            raise WireError("holds NaN")
        if self.build_error is not None:
            raise self.build_error
        return adapter(version)

    def swap(self, weights: AdapterWeights) -> Future[None]:
        if self.swap_error is not None:
            return failed(self.swap_error)
        self.swapped.append(weights.version)
        self.tensors = weights.tensors
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


def pauses_of(follower: WeightFollower, count: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a follower waits for hints, or not even for those, between `count` polls."""
    pauses: list[float] = []

    def pause(timeout_s: float) -> bool:
        pauses.append(timeout_s)
        return len(pauses) == count

    monkeypatch.setattr(follower._stopping, "wait", pause)
    monkeypatch.setattr(follower._stopping, "is_set", lambda: len(pauses) == count)
    if follower._registry is not None:
        monkeypatch.setattr(follower._registry, "wait", pause)
    follower._run()
    return pauses


def test_a_missing_version_is_looked_for_at_each_poll(
    registry: FakeRegistry,
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The registry is there: no reason to ask it ever less often."""
    registry.put(1)
    lost = registry.versions.pop(1)
    follower = follow(registry, replica, poll_s=1.0)
    follower.poll()
    pauses = pauses_of(follower, 8, monkeypatch)
    assert all(0.75 <= seconds <= 1.25 for seconds in pauses)
    assert follower.counts().missing == len(registry.fetches) == 8
    assert follower.counts().registry_failures == 0
    assert len(caplog.records) == 1
    assert registry.acks == {"r1": 0}
    registry.versions[1] = lost
    follower.poll()
    assert replica.swapped == [1]
    assert registry.acks == {"r1": 1}


def test_a_version_is_acknowledged_again_and_again(
    registry: FakeRegistry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.put(1)
    follower = follow(registry, replica)
    follower.poll()
    registry.acks.clear()
    follower.poll()
    assert registry.acks == {}  # not at each poll
    monkeypatch.setattr(follower_module, "ACKNOWLEDGE_EVERY_S", 0.0)
    registry.put(2)
    follower.poll()
    registry.acks.clear()
    follower.poll()
    assert registry.acks == {"r1": 2}


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
    registry.lose_everything()
    follower.poll()
    assert replica.swapped == [7]
    assert registry.acks == {"r1": 7}
    registry.lose_everything()  # once more, before anything was published
    follower.poll()
    assert registry.acks == {"r1": 7}
    registry.put(8)
    follower.poll()
    assert replica.swapped == [7, 8]
    assert registry.acks == {"r1": 8}


def test_a_registry_restored_from_an_older_state_learns_where_the_replica_is(
    registry: FakeRegistry, replica: Replica
) -> None:
    registry.put(1)
    registry.put(2)
    follower = follow(registry, replica)
    follower.poll()
    registry.lose_everything()
    registry.put(2)  # serial 1 instead of 2
    follower.poll()
    assert registry.acks == {"r1": 2}
    assert replica.swapped == [2]


def test_an_empty_registry_learns_of_a_replica_at_the_base(registry: FakeRegistry, replica: Replica) -> None:
    follow(registry, replica).poll()
    assert registry.acks == {"r1": 0}
    assert replica.swapped == []


def test_a_candidate_runs_on_canaries_only(registry: FakeRegistry, replica: Replica) -> None:
    other = Replica()
    canary = follow(registry, replica)
    control = WeightFollower("r2", lambda: registry, Adoption(other.build, other.swap), 0.01)
    registry.put(1)
    registry.try_out(2)  # it waits for its canary
    for follower in (canary, control):
        follower.poll()
    assert registry.acks == {"r1": 1, "r2": 1}
    registry.decide(Decision(kind="canary", version=2, by="test", replicas=("r1",)))
    for follower in (canary, control):
        follower.poll()
    assert registry.acks == {"r1": 2, "r2": 1}
    registry.decide(Decision(kind="revoke", version=2, by="test"))
    for follower in (canary, control):
        follower.poll()
    assert registry.acks == {"r1": 1, "r2": 1}
    assert (replica.swapped, other.swapped) == ([1, 2, 1], [1])
    assert (canary.counts().swaps, canary.counts().rollbacks) == (3, 1)
    assert control.counts().rollbacks == 0


def test_a_rollback_to_the_base_needs_no_fetch(registry: FakeRegistry, replica: Replica) -> None:
    registry.put(4)
    follower = follow(registry, replica)
    follower.poll()
    registry.decide(Decision(kind="rollback", version=0, by="test"))
    follower.poll()
    follower.poll()
    assert replica.swapped == [4, 0]
    assert replica.tensors == {}
    assert list(registry.fetches) == [4]
    assert registry.acks == {"r1": 0}
    assert (follower.counts().version, follower.counts().rollbacks) == (0, 1)


def test_a_refused_version_is_tried_again_once_another_one_was_wanted(
    registry: FakeRegistry, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    registry.put(1)
    follower = follow(registry, replica)
    follower.poll()
    registry.corrupt.add(2)
    registry.put(2)
    follower.poll()
    follower.poll()
    registry.corrupt.clear()
    registry.put(1)  # rolled back: what runs already
    follower.poll()
    registry.put(2)
    follower.poll()
    assert list(registry.fetches) == [1, 2, 2]
    assert replica.swapped == [1, 2]
    assert registry.acks == {"r1": 2}
    assert follower.counts().refused == 1


def test_each_refused_version_is_logged(
    registry: FakeRegistry, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    follower = follow(registry, replica)
    replica.refuse_build.update((1, 2))
    for version in (1, 2):
        registry.put(version)
        follower.poll()
        follower.poll()
    assert follower.counts().refused == 2
    assert len(caplog.records) == 2


def test_a_swap_given_up_is_not_carried_out_later(
    registry: FakeRegistry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "SWAP_TIMEOUT_S", 0.0)
    stuck: Future[None] = Future()
    follower = WeightFollower("r1", lambda: registry, Adoption(replica.build, lambda adapter: stuck), 0.01)
    registry.put(1)
    follower.poll()
    assert stuck.cancelled()
    assert follower.counts().not_applied == 1
    assert registry.acks == {"r1": 0}


def test_a_swap_that_began_in_time_is_waited_for(
    registry: FakeRegistry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "SWAP_TIMEOUT_S", 0.0)
    writing: Future[None] = Future()
    writing.set_running_or_notify_cancel()
    follower = WeightFollower("r1", lambda: registry, Adoption(replica.build, lambda adapter: writing), 0.01)
    registry.put(1)
    polling = threading.Thread(target=follower.poll)
    polling.start()
    wait_until(lambda: bool(registry.fetches))
    writing.set_result(None)
    polling.join()
    assert registry.acks == {"r1": 1}
    assert follower.counts().version == 1


def test_what_nobody_expected_ends_neither_start_nor_the_following(
    registry: FakeRegistry, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    replica.build_error = RuntimeError("not enough memory")
    registry.put(1)
    follower = follow(registry, replica)
    follower.start()
    wait_until(lambda: follower.counts().not_applied >= 2)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    replica.build_error = None
    wait_until(lambda: registry.acks == {"r1": 1})
    follower.stop()


def test_pauses_grow_while_the_engine_does_not_get_to_a_swap(
    registry: FakeRegistry, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob is not fetched every poll for an engine that has failed."""
    replica.swap_error = EngineFailedError("crashed")
    follower = follow(registry, replica, poll_s=1.0)
    registry.put(1)
    follower.poll()
    pauses = pauses_of(follower, 8, monkeypatch)
    for number, seconds in enumerate(pauses, start=1):
        expected = min(2.0**number, follower_module.MAX_PAUSE_S)
        assert expected * 0.75 <= seconds <= expected * 1.25
    assert follower.counts().not_applied == len(registry.fetches) == 8
