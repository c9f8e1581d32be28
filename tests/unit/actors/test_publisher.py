from __future__ import annotations

import pytest

from actors.publisher import WeightPublisher
from evospec.errors import RegistryError
from evospec.ports import WeightRegistry
from evospec.wire import Fingerprints
from tests.unit.actors.fakes import FINGERPRINTS, FakeRegistry, adapter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def publisher(registry: FakeRegistry, clock: Clock) -> WeightPublisher:
    return WeightPublisher(lambda: registry, FINGERPRINTS, clock)


def test_versions_grow_by_one_with_parent_epoch_and_specs(registry: FakeRegistry, clock: Clock) -> None:
    mine = publisher(registry, clock)
    assert mine.join() is None
    for version in (1, 2):
        assert mine.next_version == version
        assert mine.publish(adapter(version), {"acceptance_length": 1.5})
    manifest = registry.versions[2].manifest
    assert (manifest.version, manifest.parent, manifest.epoch) == (2, 1, 1)
    assert manifest.fingerprints == FINGERPRINTS
    assert [(spec.name, spec.shape, spec.dtype) for spec in manifest.tensors] == [
        ("fc.lora_a", (1, 2), "float32"),
        ("fc.lora_b", (2, 1), "float32"),
    ]
    assert manifest.metrics == {"acceptance_length": 1.5}


def test_joining_returns_the_version_to_resume_from(registry: FakeRegistry, clock: Clock) -> None:
    registry.put(4)
    mine = publisher(registry, clock)
    weights = mine.join()
    assert weights is not None
    assert weights.manifest.version == 4
    assert mine.next_version == 5


def test_weights_of_other_models_are_not_resumed_but_their_number_counts(
    registry: FakeRegistry, clock: Clock
) -> None:
    registry.put(4, fingerprints=Fingerprints(target="other", drafter="d", tokenizer="k"))
    mine = publisher(registry, clock)
    assert mine.join() is None
    assert mine.joined
    assert mine.next_version == 5


def test_a_damaged_version_is_not_resumed(registry: FakeRegistry, clock: Clock) -> None:
    registry.put(4)
    registry.corrupt.add(4)
    mine = publisher(registry, clock)
    assert mine.join() is None
    assert mine.joined
    assert mine.next_version == 5


def test_after_a_flush_numbers_go_on_behind_the_replicas(registry: FakeRegistry, clock: Clock) -> None:
    registry.acks = {"r1": 7, "r2": 6}
    mine = publisher(registry, clock)
    mine.join()
    assert mine.next_version == 8


def test_failures_pause_ever_longer_and_publishing_goes_on_afterwards(
    registry: FakeRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    mine = publisher(registry, clock)
    mine.join()
    registry.down = True
    for pause in (1.0, 2.0, 4.0):
        assert not mine.publish(adapter(1), {})
        assert not mine.may_call
        clock.now += pause * 1.01
        assert mine.may_call
    assert mine.counts.registry_failures == 3
    assert len(caplog.records) == 1
    registry.down = False
    assert mine.publish(adapter(1), {})
    assert registry.current == 1


def test_an_unreachable_registry_is_joined_later(registry: FakeRegistry, clock: Clock) -> None:
    reachable = False

    def open_registry() -> WeightRegistry:
        if not reachable:
            raise RegistryError("connection refused")
        return registry

    mine = WeightPublisher(open_registry, FINGERPRINTS, clock)
    assert mine.join() is None
    assert not mine.joined
    reachable = True
    mine.join()
    assert mine.joined


def test_a_publication_whose_answer_was_lost_counts(registry: FakeRegistry, clock: Clock) -> None:
    mine = publisher(registry, clock)
    mine.join()
    registry.lose_next_answer = True
    assert not mine.publish(adapter(1), {})
    assert not mine.publish(adapter(1), {})  # it had landed
    assert mine.next_version == 2
    assert not mine.counts.superseded
    assert mine.publish(adapter(2), {})


@pytest.mark.parametrize("published", [True, False])
def test_a_newer_publisher_shuts_out_the_older(registry: FakeRegistry, clock: Clock, published: bool) -> None:
    old, new = publisher(registry, clock), publisher(registry, clock)
    old.join()
    new.join()
    if published:
        assert new.publish(adapter(1), {})
    assert not old.publish(adapter(1), {})
    assert old.counts.superseded
    assert not old.may_call
    assert registry.current == int(published)
