"""An aligner's training on real servers: handed on to another one, and taken back after a revocation."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from redis import Redis

from actors.lineage import Lineage
from actors.publisher import Publication, WeightPublisher
from evospec.config import RegistryConfig
from evospec.models.adapter import AdapterWeights
from services.registry import RedisWeightRegistry, open_registry
from tests.integration.registry_kit import decide, states
from tests.unit.align_tiny import FINGERPRINTS, learnable_trace, tiny_trainer


class Training:
    """What an aligner consists of, without its thread, and with a clock of its own."""

    def __init__(self, config: RegistryConfig) -> None:
        self.now = 0.0
        self.trainer = tiny_trainer()
        for seed in range(16):
            self.trainer.add(learnable_trace(seed))
        self.publisher = WeightPublisher(
            functools.partial(open_registry, config), FINGERPRINTS, canary=True, clock=lambda: self.now
        )
        self.lineage = Lineage(self.trainer, self.publisher)
        self.publisher.join()
        self.follow()

    def follow(self) -> bool:
        self.now += 100.0
        return self.lineage.follow()

    def step_and_offer(self) -> Publication:
        self.trainer.step()
        return self.offer(self.trainer.candidate(self.publisher.next_version))

    def offer(self, adapter: AdapterWeights) -> Publication:
        return self.lineage.offer(adapter, {"acceptance_length": 1.5})

    def weights(self) -> dict[str, torch.Tensor]:
        return self.trainer.candidate(99).tensors


@pytest.fixture
def first(registry_config: RegistryConfig) -> Iterator[Training]:
    training = Training(registry_config)
    yield training
    training.publisher.close()


@pytest.fixture
def version_1(first: Training, registry: RedisWeightRegistry) -> dict[str, torch.Tensor]:
    """Weights of a version that `first` published and that its canary promoted."""
    assert first.step_and_offer() is Publication.PUBLISHED
    weights = first.weights()
    decide(registry, "canary", 1, "replica")
    assert not first.publisher.may_offer
    decide(registry, "promote", 1)
    assert not first.follow()
    return weights


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_another_aligner_goes_on_and_the_first_is_fenced(
    first: Training, version_1: dict[str, torch.Tensor], registry_config: RegistryConfig
) -> None:
    second = Training(registry_config)
    try:
        assert same(second.weights(), version_1)
        first.trainer.step()
        second.trainer.step()
        assert same(second.weights(), first.weights())  # by the moments it found, and the same traces
        assert second.trainer.counts.steps == first.trainer.counts.steps == 2
        assert first.offer(first.trainer.candidate(2)) is Publication.FAILED
        assert first.publisher.counts.superseded
        assert second.offer(second.trainer.candidate(2)) is Publication.PUBLISHED
    finally:
        second.publisher.close()


def test_a_damaged_training_state_costs_the_moments_only(
    version_1: dict[str, torch.Tensor],
    registry_config: RegistryConfig,
    raw: Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw.setrange("test:t:1", 100, b"damage")
    second = Training(registry_config)
    try:
        assert same(second.weights(), version_1)
        assert not second.trainer.training_state(1).moments
        assert "going on with fresh moments" in caplog.text
    finally:
        second.publisher.close()


def test_revoked_weights_are_left_and_never_accepted_again(
    first: Training, version_1: dict[str, torch.Tensor], registry: RedisWeightRegistry
) -> None:
    assert first.step_and_offer() is Publication.PUBLISHED
    revoked = first.trainer.current
    decide(registry, "revoke", 2)
    assert first.follow()
    assert same(first.weights(), version_1)
    again = AdapterWeights(first.publisher.next_version, revoked.tensors)
    assert first.offer(again) is Publication.REFUSED
    assert first.publisher.counts.refused == 1
    assert first.step_and_offer() is Publication.PUBLISHED
    assert states(registry) == {1: "stable", 2: "revoked", 3: "candidate"}


def test_a_flushed_server_gets_the_stable_version_back(
    first: Training, version_1: dict[str, torch.Tensor], registry: RedisWeightRegistry, raw: Redis
) -> None:
    raw.flushall()
    first.follow()
    assert registry.rollout().stable == 2
    found = AdapterWeights.from_bytes(registry.fetch(2).blob, 2, first.trainer.drafter)
    assert same(found.tensors, version_1)
    assert first.step_and_offer() is Publication.PUBLISHED
    assert states(registry) == {2: "stable", 3: "candidate"}
