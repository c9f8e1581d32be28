from __future__ import annotations

import pytest

from actors.offer import Offer
from actors.publisher import LOOK_S, Publication, WeightPublisher
from evospec.errors import DecisionRefusedError, RegistryError, WireError
from evospec.ports import WeightRegistry
from evospec.wire import Decision, Fingerprints, Manifest
from tests.unit.actors.fakes import FINGERPRINTS, FakeRegistry, adapter

PUBLISHED, REFUSED, FAILED = Publication.PUBLISHED, Publication.REFUSED, Publication.FAILED


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


def publisher(registry: FakeRegistry, clock: Clock, *, canary: bool = False) -> WeightPublisher:
    return WeightPublisher(lambda: registry, FINGERPRINTS, canary=canary, clock=clock)


def joined(registry: FakeRegistry, clock: Clock, *, canary: bool = False) -> WeightPublisher:
    mine = publisher(registry, clock, canary=canary)
    mine.join()
    return mine


def offer(version: int, training_state: bytes | None = None) -> Offer:
    return Offer(adapter(version), version - 1, {"acceptance_length": 1.5}, training_state)


def decide(registry: FakeRegistry, kind: str, version: int) -> None:
    registry.decide(Decision.model_validate({"kind": kind, "version": version, "by": "test"}))


def test_versions_grow_by_one_with_parent_epoch_and_specs(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock)
    for version in (1, 2):
        assert mine.next_version == version
        assert mine.publish(offer(version, b"moments")) is PUBLISHED
    manifest = registry.versions[2].manifest
    assert (manifest.version, manifest.parent, manifest.epoch) == (2, 1, 1)
    assert manifest.state == "stable"
    assert manifest.fingerprints == FINGERPRINTS
    assert [(spec.name, spec.shape, spec.dtype) for spec in manifest.tensors] == [
        ("fc.lora_a", (1, 2), "float32"),
        ("fc.lora_b", (2, 1), "float32"),
    ]
    assert manifest.metrics == {"acceptance_length": 1.5}
    assert registry.fetch_training_state(2) == b"moments"
    assert (mine.counts.published, mine.counts.pending) == (2, 0)


def test_joining_finds_where_numbers_go_on(registry: FakeRegistry, clock: Clock) -> None:
    registry.put(4)
    decide(registry, "rollback", 2)
    assert joined(registry, clock).next_version == 5


def test_after_a_flush_numbers_go_on_behind_the_replicas(registry: FakeRegistry, clock: Clock) -> None:
    registry.acks = {"r1": 7, "r2": 6}
    assert joined(registry, clock).next_version == 8


@pytest.mark.parametrize("fate", ["promote", "revoke"])
def test_a_candidate_is_waited_for_until_its_fate_is_known(
    registry: FakeRegistry, clock: Clock, fate: str
) -> None:
    mine = joined(registry, clock, canary=True)
    assert mine.publish(offer(1)) is PUBLISHED
    assert registry.versions[1].manifest.state == "candidate"
    assert not mine.may_offer
    mine.look()
    assert (mine.counts.pending, mine.may_offer) == (1, False)
    decide(registry, "canary", 1)
    clock.now += LOOK_S
    mine.look()
    assert not mine.may_offer
    decide(registry, fate, 1)
    clock.now += LOOK_S
    mine.look()
    assert mine.may_offer
    assert mine.next_version == 2
    counts = mine.counts
    assert (counts.published, counts.promoted, counts.revoked) == (
        1,
        int(fate == "promote"),
        int(fate == "revoke"),
    )
    assert counts.stable == registry.current


def test_a_publication_without_a_canary_by_exception(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock, canary=True)
    assert mine.publish(offer(1), at_once=True) is PUBLISHED
    assert registry.current == 1
    assert mine.may_offer


def test_the_registry_is_asked_once_a_second_at_most(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock)
    assert mine.look() is not None
    clock.now += LOOK_S * 0.9
    assert mine.look() is None
    clock.now += LOOK_S * 0.2
    assert mine.look() is not None


def test_a_registry_that_lost_its_data_tells_nothing_of_a_fate(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock, canary=True)
    mine.publish(offer(1))
    registry.lose_everything()
    mine.look()
    assert (mine.counts.promoted, mine.counts.revoked) == (0, 0)
    assert mine.may_offer
    assert mine.next_version == 2
    assert mine.publish(offer(2)) is PUBLISHED


def test_another_candidate_is_a_refusal_after_which_it_waits(
    registry: FakeRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    mine = joined(registry, clock, canary=True)
    mine.look()
    registry.try_out(1)
    mine.counts.version = 1
    for refused in (1, 2):
        assert mine.publish(offer(2)) is REFUSED
        assert mine.counts.refused == refused
    assert len(caplog.records) == 1
    assert mine.counts.registry_failures == 0
    assert mine.look() is not None  # without waiting
    assert not mine.may_offer


def test_quarantined_content_is_a_refusal(
    registry: FakeRegistry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quarantined(manifest: Manifest, blob: bytes, training_state: bytes | None = None) -> None:
        raise DecisionRefusedError("this content was revoked as version 1")

    mine = joined(registry, clock)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "publish", quarantined)
        assert mine.publish(offer(1)) is REFUSED
    assert mine.may_offer
    assert mine.publish(offer(1)) is PUBLISHED


def test_failures_pause_ever_longer_and_publishing_goes_on_afterwards(
    registry: FakeRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    mine = joined(registry, clock)
    registry.down = True
    for pause in (1.0, 2.0, 4.0):
        assert mine.publish(offer(1)) is FAILED
        assert not mine.may_call
        clock.now += pause * 1.01
        assert mine.may_call
    assert mine.counts.registry_failures == 3
    assert len(caplog.records) == 1
    registry.down = False
    assert mine.publish(offer(1)) is PUBLISHED
    assert registry.current == 1


def test_an_unreachable_registry_is_joined_later(registry: FakeRegistry, clock: Clock) -> None:
    reachable = False

    def open_registry() -> WeightRegistry:
        if not reachable:
            raise RegistryError("connection refused")
        return registry

    mine = WeightPublisher(open_registry, FINGERPRINTS, canary=False, clock=clock)
    mine.join()
    assert not mine.joined
    reachable = True
    mine.join()
    assert mine.joined


@pytest.mark.parametrize("canary", [False, True])
def test_a_publication_whose_answer_was_lost_counts(
    registry: FakeRegistry, clock: Clock, canary: bool
) -> None:
    mine = joined(registry, clock, canary=canary)
    registry.lose_next_answer = True
    assert mine.publish(offer(1)) is FAILED
    assert mine.publish(offer(1)) is FAILED  # it had landed
    assert (mine.next_version, mine.counts.published) == (2, 1)
    assert not mine.counts.superseded
    if canary:
        decide(registry, "promote", 1)
    assert mine.publish(offer(2)) is PUBLISHED


def test_a_look_finds_a_publication_whose_answer_was_lost(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock, canary=True)
    registry.lose_next_answer = True
    mine.publish(offer(1))
    clock.now += 2.0
    mine.look()
    assert (mine.next_version, mine.counts.published, mine.counts.pending) == (2, 1, 1)


def test_a_number_that_is_taken_by_something_unreadable_is_passed_over(
    registry: FakeRegistry, clock: Clock
) -> None:
    mine = joined(registry, clock)
    registry.lose_next_answer = True
    registry.corrupt.add(1)
    mine.publish(offer(1))
    assert mine.publish(offer(1)) is FAILED
    assert mine.publish(offer(2)) is PUBLISHED


@pytest.mark.parametrize("published", [True, False])
def test_a_newer_publisher_shuts_out_the_older(registry: FakeRegistry, clock: Clock, published: bool) -> None:
    old, new = joined(registry, clock), joined(registry, clock)
    if published:
        assert new.publish(offer(1)) is PUBLISHED
    assert old.publish(offer(1)) is FAILED
    assert old.counts.superseded
    assert not old.may_call
    assert not old.may_offer
    assert old.look() is None
    assert registry.current == int(published)
    assert not new.counts.superseded


def test_a_look_finds_that_another_publisher_took_over(
    registry: FakeRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = joined(registry, clock), joined(registry, clock)
    new.publish(offer(1))
    old.look()
    assert old.counts.superseded
    assert "another aligner took over" in caplog.text


def test_versions_are_fetched_and_their_training_states(registry: FakeRegistry, clock: Clock) -> None:
    mine = joined(registry, clock)
    mine.publish(offer(1, b"moments"))
    assert mine.fetch(1) == registry.versions[1]
    assert mine.fetch_training_state(1) == b"moments"
    registry.down = True
    assert mine.fetch(1) is None
    assert mine.fetch_training_state(1) is None
    assert mine.counts.registry_failures == 2


def test_versions_of_other_models_and_damaged_ones_are_not_fetched(
    registry: FakeRegistry, clock: Clock
) -> None:
    mine = joined(registry, clock)
    registry.put(4, fingerprints=Fingerprints(target="other", drafter="d", tokenizer="k"))
    with pytest.raises(WireError, match="made for target='other'"):
        mine.fetch(4)
    registry.put(5)
    registry.corrupt.add(5)
    with pytest.raises(WireError, match="SHA-256"):
        mine.fetch(5)
