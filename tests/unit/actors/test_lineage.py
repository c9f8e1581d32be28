"""Which version training goes on from, for everything that a registry may say."""

from __future__ import annotations

import pytest
import torch

from actors.lineage import MAX_MISSES, Lineage
from actors.publisher import LOOK_S, Publication, WeightPublisher
from evospec.align.trainer import AlignmentTrainer
from evospec.errors import RegistryError
from evospec.models.adapter import AdapterWeights
from evospec.wire import Decision, VersionedWeights
from tests.unit.actors.fakes import FakeRegistry
from tests.unit.align_tiny import FINGERPRINTS, learnable_trace, tiny_trainer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A registry, and one aligner's trainer, publisher and lineage."""

    def __init__(self, registry: FakeRegistry | None = None, *, canary: bool = True, rank: int = 8) -> None:
        self.registry = registry or FakeRegistry()
        self.clock = Clock()
        self.trainer: AlignmentTrainer = tiny_trainer(rank=rank)
        for seed in range(12):
            self.trainer.add(learnable_trace(seed))
        self.publisher = WeightPublisher(lambda: self.registry, FINGERPRINTS, canary=canary, clock=self.clock)
        self.lineage = Lineage(self.trainer, self.publisher)
        self.publisher.join()

    def follow(self) -> bool:
        self.clock.now += 60.0 + LOOK_S  # longer than any pause
        return self.lineage.follow()

    def train_and_offer(self) -> AdapterWeights:
        self.trainer.step()
        adapter = self.trainer.candidate(self.publisher.next_version)
        assert self.lineage.offer(adapter, {"acceptance_length": 1.5}) is Publication.PUBLISHED
        return adapter

    def promoted(self) -> AdapterWeights:
        adapter = self.train_and_offer()
        self.decide("promote", adapter.version)
        assert not self.follow()
        return adapter

    def decide(self, kind: str, version: int) -> None:
        self.registry.decide(Decision.model_validate({"kind": kind, "version": version, "by": "test"}))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.trainer.candidate(99).tensors

    @property
    def has_moments(self) -> bool:
        return bool(self.trainer.training_state(1).moments)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_empty_registry_starts_at_the_base() -> None:
    world = World()
    assert not world.lineage.started
    assert not world.follow()
    assert world.lineage.started
    assert world.trainer.current.version == 0


def test_nothing_is_started_before_the_registry_answered() -> None:
    world = World()
    world.registry.down = True
    world.follow()
    assert not world.lineage.started


def test_a_candidate_is_trained_on_from_while_it_is_tried_and_after() -> None:
    world = World()
    world.follow()
    first = world.train_and_offer()
    world.trainer.step()
    ahead = world.weights
    for kind in ("canary", "promote"):
        world.decide(kind, 1)
        assert not world.follow()
        assert same(world.weights, ahead)
    assert world.trainer.current is first
    world.train_and_offer()
    assert world.registry.versions[2].manifest.parent == 1


def test_after_a_revocation_training_goes_back_with_fresh_moments() -> None:
    world = World()
    world.follow()
    stable = world.promoted()
    world.train_and_offer()
    world.trainer.step()
    world.decide("revoke", 2)
    assert world.follow()
    assert world.trainer.current is stable
    assert same(world.weights, stable.tensors)
    assert not world.has_moments
    assert world.publisher.counts.revoked == 1
    world.train_and_offer()
    manifest = world.registry.versions[3].manifest
    assert (manifest.version, manifest.parent) == (3, 1)


def test_the_first_candidate_revoked_means_the_base_again() -> None:
    world = World()
    world.follow()
    world.train_and_offer()
    world.decide("revoke", 1)
    assert world.follow()
    assert world.trainer.current.version == 0
    assert not any(tensor.any() for name, tensor in world.weights.items() if name.endswith("lora_b"))


@pytest.mark.parametrize("version", [0, 1])
def test_an_operators_rollback_is_followed(version: int) -> None:
    world = World()
    world.follow()
    first = world.promoted()
    world.promoted()
    world.decide("rollback", version)
    assert world.follow()
    assert world.trainer.current.version == version
    if version:
        assert same(world.weights, first.tensors)
    assert not world.has_moments
    assert not world.follow()
    world.train_and_offer()
    assert world.registry.versions[3].manifest.parent == version


def test_another_aligner_goes_on_from_the_stable_version_and_its_training_state() -> None:
    first = World()
    first.follow()
    stable = first.promoted()
    first.train_and_offer()  # a candidate that is still being tried
    second = World(first.registry)
    assert not second.follow()
    assert second.trainer.current.version == 1
    assert same(second.weights, stable.tensors)
    assert second.has_moments
    assert second.trainer.counts.steps == 1
    assert second.publisher.next_version == 3
    assert not second.publisher.may_offer
    first.decide("promote", 2)
    assert second.follow()  # it did not have these weights
    assert second.trainer.current.version == 2
    # The first one is fenced.
    first.trainer.step()
    outcome = first.lineage.offer(first.trainer.candidate(3), {})
    assert outcome is Publication.FAILED
    assert first.publisher.counts.superseded
    second.train_and_offer()


@pytest.mark.parametrize("state", [None, b"junk"])
def test_without_a_usable_training_state_moments_are_fresh(
    state: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    first = World()
    first.follow()
    stable = first.promoted()
    if state is None:
        first.registry.states.clear()
    else:
        first.registry.states[1] = state
    second = World(first.registry)
    second.follow()
    second.follow()
    assert same(second.weights, stable.tensors)
    assert not second.has_moments
    assert second.trainer.counts.steps == 0
    assert len([record for record in caplog.records if "fresh moments" in record.message]) == 1


def test_a_version_that_cannot_be_trained_on_means_the_base(caplog: pytest.LogCaptureFixture) -> None:
    first = World(rank=4)
    first.follow()
    first.promoted()
    second = World(first.registry)
    second.follow()
    assert second.lineage.started
    assert second.trainer.current.version == 0
    fetched = len(first.registry.fetches)
    assert not second.follow()
    assert len(first.registry.fetches) == fetched
    assert "rank 4, this aligner trains rank 8" in caplog.text
    second.train_and_offer()
    manifest = first.registry.versions[2].manifest
    assert (manifest.parent, manifest.tensors[0].shape[0]) == (0, 8)


def test_a_stable_version_that_is_not_delivered_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first = World()
    first.follow()
    first.promoted()

    def gone(version: int) -> VersionedWeights:
        raise RegistryError(f"version {version} is not there")

    monkeypatch.setattr(first.registry, "fetch", gone)
    second = World(first.registry)
    for _ in range(MAX_MISSES):
        assert not second.lineage.started
        second.follow()
    assert second.lineage.started
    assert second.trainer.current.version == 0
    second.train_and_offer()


def test_a_publication_whose_answer_was_lost_becomes_the_basis_once_it_is_stable() -> None:
    world = World(canary=False)
    world.follow()
    world.trainer.step()
    lost = world.trainer.candidate(1)
    world.registry.lose_next_answer = True
    assert world.lineage.offer(lost, {}) is Publication.FAILED
    world.trainer.step()
    assert world.follow()
    assert same(world.weights, lost.tensors)
    assert world.trainer.current.version == 1
    assert world.publisher.counts.published == 1


def test_what_a_registry_lost_is_published_again() -> None:
    world = World()
    world.follow()
    stable = world.promoted()
    world.trainer.step()
    ahead = world.weights
    world.registry.lose_everything()
    world.follow()
    assert world.registry.current == 2
    again = world.registry.versions[2]
    assert (again.manifest.state, again.manifest.metrics) == ("stable", {"acceptance_length": 1.5})
    assert same(AdapterWeights.from_bytes(again.blob, 2, world.trainer.drafter).tensors, stable.tensors)
    assert not world.follow()
    assert same(world.weights, ahead)
    assert world.trainer.current.version == 2
    world.train_and_offer()
    assert world.registry.versions[3].manifest.parent == 2


def test_a_candidate_that_a_registry_lost_is_given_up_for_the_stable_version() -> None:
    world = World()
    world.follow()
    stable = world.promoted()
    world.train_and_offer()
    world.registry.lose_everything()
    assert not world.follow()
    assert world.registry.current == 3
    assert world.follow()
    assert world.trainer.current.version == 3
    assert same(world.weights, stable.tensors)
    assert world.publisher.counts.revoked == 0
