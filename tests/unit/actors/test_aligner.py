from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from actors.aligner import MAX_INBOX, Aligner
from evospec.align.trace_codec import encode
from evospec.align.trainer import AlignmentTrainer
from evospec.config import Config, RolloutConfig
from evospec.models.adapter import AdapterWeights
from evospec.wire import Decision, Fingerprints
from tests.unit.actors.fakes import FakeRegistry, wait_until
from tests.unit.align_tiny import (
    FINGERPRINTS,
    kind_trace,
    learnable_trace,
    tiny_config,
    tiny_drafter,
    tiny_trainer,
)

Start = Callable[..., Aligner]


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def start(registry: FakeRegistry) -> Iterator[Start]:
    started: list[Aligner] = []

    def build(
        crashed: Callable[[], None] = lambda: None, *, canary: bool = False, **settings: object
    ) -> Aligner:
        settings = {"steps_per_version": 2, "steps_per_trace": 2.0, **settings}
        config = Config(alignment=tiny_config(**settings), rollout=RolloutConfig(canary=canary))
        aligner = Aligner(config, lambda: registry, lambda _: tiny_trainer(**settings), crashed)
        started.append(aligner)
        return aligner

    yield build
    for aligner in started:
        aligner.close()


def feed_kinds(aligner: Aligner, count: int, first: int = 0) -> None:
    """Of two kinds of traffic, in turns."""
    for seed in range(first, first + count):
        aligner.submit(encode(kind_trace(seed % 2, seed)))


def feed(aligner: Aligner, count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        aligner.submit(encode(learnable_trace(seed)))


def published_length(registry: FakeRegistry) -> float:
    """Expected acceptance length of the current version; 1 without one."""
    if not registry.current:
        return 1.0
    return registry.versions[registry.current].manifest.metrics["acceptance_length"]


def test_traces_become_versions_that_replicas_can_load(start: Start, registry: FakeRegistry) -> None:
    aligner = start()
    feed(aligner, 16)
    wait_until(lambda: registry.current >= 2, 120)
    weights = registry.versions[2]
    assert weights.manifest.fingerprints == FINGERPRINTS
    assert weights.manifest.parent == 1
    metrics = weights.manifest.metrics
    assert metrics["acceptance_length"] > metrics["parent_acceptance_length"]
    AdapterWeights.from_bytes(weights.blob, 2, tiny_drafter())
    wait_until(lambda: aligner.status().publisher.version == registry.current)


def banked(registry: FakeRegistry) -> list[int]:
    """Kinds with an adapter in the current version."""
    if not registry.current:
        return []
    adapter = AdapterWeights.from_bytes(
        registry.versions[registry.current].blob, registry.current, tiny_drafter()
    )
    assert adapter.tensors == {}
    assert adapter.bank is not None
    return [kind for kind, deltas in enumerate(adapter.bank.adapters) if deltas.tensors]


def test_versions_bring_an_adapter_for_each_kind_of_traffic(start: Start, registry: FakeRegistry) -> None:
    first = start(adapters=2)
    feed_kinds(first, 48)
    wait_until(lambda: banked(registry) == [0, 1], 120)
    first.close()
    version = registry.current
    manifest = registry.versions[version].manifest
    assert manifest.metrics["acceptance_length"] > manifest.metrics["parent_acceptance_length"]
    gains = {name: value for name, value in manifest.metrics.items() if name.startswith("kind_")}
    assert gains
    assert min(gains.values()) > 0
    second = start(adapters=2)
    steps = int(manifest.metrics["steps"])
    wait_until(lambda: second.status().trainer.steps == steps)
    feed_kinds(second, 48, first=100)
    wait_until(lambda: registry.current > version, 120)
    assert registry.versions[version + 1].manifest.parent == version
    assert banked(registry) == [0, 1]


def decide(registry: FakeRegistry, kind: str, version: int) -> None:
    registry.decide(Decision.model_validate({"kind": kind, "version": version, "by": "test"}))


def test_one_candidate_at_a_time_and_training_goes_on_meanwhile(start: Start, registry: FakeRegistry) -> None:
    aligner = start(canary=True)
    feed(aligner, 16)
    wait_until(lambda: registry.now.candidate == 1, 120)
    assert registry.versions[1].manifest.state == "candidate"
    steps = aligner.status().trainer.steps
    feed(aligner, 4, first=16)
    wait_until(lambda: aligner.status().trainer.steps >= steps + 6, 120)  # thrice what a version takes
    assert registry.newest == 1
    decide(registry, "promote", 1)
    wait_until(lambda: registry.now.candidate == 2, 120)
    assert registry.versions[2].manifest.parent == 1
    wait_until(lambda: aligner.status().publisher.published == 2)
    publisher = aligner.status().publisher
    assert (publisher.promoted, publisher.revoked, publisher.pending) == (1, 0, 2)
    assert aligner.status().progress.returns == 0


def test_after_a_revocation_it_has_to_beat_the_stable_version_again(
    start: Start, registry: FakeRegistry
) -> None:
    aligner = start(canary=True)
    feed(aligner, 16)
    wait_until(lambda: registry.now.candidate == 1, 120)
    decide(registry, "revoke", 1)
    wait_until(lambda: aligner.status().progress.returns == 1, 120)
    feed(aligner, 16, first=16)
    wait_until(lambda: registry.now.candidate == 2, 120)
    manifest = registry.versions[2].manifest
    assert manifest.parent == 0
    assert manifest.metrics["parent_acceptance_length"] < 1.2  # the base, which the revoked one was above
    assert aligner.status().publisher.revoked == 1


def test_a_second_aligner_takes_over_and_the_first_publishes_no_more(
    start: Start, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    feed(first, 16)
    wait_until(lambda: registry.current >= 1, 120)
    second = start()
    wait_until(lambda: second.status().publisher.epoch == 2)
    feed(second, 48, first=100)
    wait_until(lambda: second.status().publisher.published >= 1, 120)
    wait_until(lambda: first.status().publisher.superseded, 120)
    assert "another aligner took over" in caplog.text
    published = first.status().publisher.published
    feed(first, 16, first=50)
    wait_until(lambda: first.status().progress.admitted + first.status().replay.degenerate >= 32, 120)
    assert first.status().publisher.published == published
    assert registry.versions[registry.newest].manifest.epoch == 2


def test_without_new_traces_it_rests(start: Start) -> None:
    aligner = start(steps_per_trace=0.5)
    feed(aligner, 8)
    wait_until(lambda: aligner.status().trainer.steps == 4, 120)
    feed(aligner, 2, first=8)
    wait_until(lambda: aligner.status().trainer.steps == 5, 120)
    assert aligner.status().replay.training + aligner.status().replay.held_out == 10


def test_bad_traces_are_refused_counted_and_harmless(
    start: Start, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    aligner = start()
    good = encode(learnable_trace(0))
    for blob in (b"", b"junk", good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        aligner.submit(blob)
    wait_until(lambda: aligner.status().trainer.refused_traces == 4)
    assert len([record for record in caplog.records if "refused" in record.message]) == 1
    feed(aligner, 16)
    wait_until(lambda: registry.current >= 1, 120)


def test_a_restarted_aligner_goes_on_from_the_registry(start: Start, registry: FakeRegistry) -> None:
    first = start()
    feed(first, 48)
    wait_until(lambda: published_length(registry) > 1.5, 120)
    first.close()
    version = registry.current
    steps = int(registry.versions[version].manifest.metrics["steps"])
    second = start()
    wait_until(lambda: second.status().trainer.steps == steps)
    assert second.status().publisher.version == version
    feed(second, 48, first=100)
    wait_until(lambda: registry.current > version, 120)
    manifest = registry.versions[version + 1].manifest
    assert (manifest.parent, manifest.epoch) == (version, 2)
    # It did not start over: what it had to beat is far better than the base, which is near 1.
    assert manifest.metrics["parent_acceptance_length"] > 1.3


def test_it_trains_on_while_the_registry_is_away_and_publishes_later(
    start: Start, registry: FakeRegistry
) -> None:
    aligner = start()
    wait_until(lambda: aligner.status().publisher.epoch == 1)
    registry.down = True
    feed(aligner, 16)
    wait_until(lambda: aligner.status().publisher.registry_failures >= 1, 120)
    steps = aligner.status().trainer.steps
    feed(aligner, 8, first=16)
    wait_until(lambda: aligner.status().trainer.steps > steps, 120)
    registry.down = False
    wait_until(lambda: registry.current >= 1, 120)


def test_a_candidate_that_is_not_better_is_not_published(start: Start, registry: FakeRegistry) -> None:
    aligner = start(min_gain=100.0)
    feed(aligner, 8)
    wait_until(lambda: aligner.status().progress.rejected >= 2, 120)
    assert registry.current == 0


def test_the_inbox_is_bounded(start: Start, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, released = threading.Event(), threading.Event()

    def slow(trainer: AlignmentTrainer, trace: bytes) -> None:
        stuck.set()
        released.wait(60)

    monkeypatch.setattr(AlignmentTrainer, "add", slow)
    aligner = start()
    aligner.submit(b"first")
    stuck.wait(60)
    for _ in range(MAX_INBOX + 5):
        aligner.submit(b"x")
    progress = aligner.status().progress
    released.set()
    assert (progress.received, progress.dropped) == (MAX_INBOX + 6, 5)


def test_a_crash_is_reported_to_the_process(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[None] = []

    def broken(trainer: AlignmentTrainer) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AlignmentTrainer, "step", broken)
    aligner = start(crashed=lambda: crashes.append(None))
    feed(aligner, 8)
    wait_until(lambda: len(crashes) == 1)


def test_weights_of_another_rank_are_not_resumed(start: Start, registry: FakeRegistry) -> None:
    first = start(rank=4)
    feed(first, 16)
    wait_until(lambda: registry.current >= 1, 120)
    first.close()
    second = start(rank=8)
    version = registry.current
    feed(second, 16, first=50)
    wait_until(lambda: registry.current > version, 120)
    assert registry.versions[version + 1].manifest.tensors[0].shape[0] == 8


def test_fingerprints_of_other_models_are_not_resumed(start: Start, registry: FakeRegistry) -> None:
    registry.put(3, fingerprints=Fingerprints(target="x", drafter="y", tokenizer="z"))
    aligner = start()
    feed(aligner, 16)
    wait_until(lambda: registry.current == 4, 120)
