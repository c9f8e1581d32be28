"""Versions on their way through a canary of real replicas, on real Ray Serve and Valkey."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count

import pytest
import ray
import torch
from openai import OpenAI

from actors.names import NAMESPACE, ROLLOUT_CONTROLLER
from actors.rollout_controller import RolloutStatus
from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    RegistryConfig,
    RolloutConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from evospec.errors import EvoSpecError
from evospec.models.adapter import AdapterWeights
from services.local_cluster import LocalCluster
from services.registry import RedisWeightRegistry, open_registry
from services.valkey import EmbeddedValkey
from tests.tiny import tiny_folders
from tests.unit.actors.fakes import versioned, wait_until

MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class Served:
    """Two replicas under traffic, and the registry that a publisher and an operator have."""

    cluster: LocalCluster
    registry: RedisWeightRegistry

    def offer(self, weight: float) -> int:
        """Publishes a candidate whose delta is 0, or NaN with a weight of NaN."""
        version = self.registry.newest_version() + 1
        tensors = {"fc.lora_a": torch.full((1, 96), weight), "fc.lora_b": torch.zeros(32, 1)}
        blob = AdapterWeights(version, tensors).to_bytes()
        fingerprints = self.cluster.replicas()[0].fingerprints
        made = versioned(version, epoch=self.registry.acquire_epoch(), fingerprints=fingerprints, blob=blob)
        self.registry.publish(made.manifest.model_copy(update={"state": "candidate"}), blob)
        return version

    def controller(self) -> RolloutStatus:
        status = self.cluster.rollout()
        assert status is not None
        return status

    def decided(self, version: int) -> list[str]:
        """What the audit trail says of a version, in order of time."""
        return [event.event for event in self.registry.events() if event.version == version]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folders = tiny_folders(tmp_path_factory.mktemp("tiny"))
    with EmbeddedValkey() as server:
        config = Config(
            model=ModelConfig(
                target=str(folders.target),
                drafter=str(folders.drafter),
                device="cpu",
                dtype="float32",
                threads=1,
            ),
            engine=EngineConfig(max_batch=4, max_length=512, draft_length=3),
            vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
            semantic=SemanticConfig(enabled=False),
            alignment=AlignmentConfig(enabled=False),
            registry=RegistryConfig(url=server.url, poll_s=0.2),
            # Nothing is revoked for being slow: this is about the way of a version, on any machine.
            rollout=RolloutConfig(
                error_rate=1e-6, speed_margin=0.99, min_requests=2, soak_s=0.5, max_minutes=0.2, poll_s=0.2
            ),
            serve=ServeConfig(port=0, replicas=2, model_name=MODEL),
        )
        with LocalCluster(config) as cluster, closing(open_registry(config.registry)) as registry:
            stopping = threading.Event()
            client = OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
            traffic = threading.Thread(target=send, args=(client, stopping), daemon=True)
            traffic.start()
            yield Served(cluster, registry)
            stopping.set()
            traffic.join(60)


def send(client: OpenAI, stopping: threading.Event) -> None:
    for number in count():
        if stopping.is_set():
            return
        prompt = f"{number} and {number * number % 97}"
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=8 + number % 40, temperature=0)


def test_a_version_is_tried_on_one_replica_and_then_runs_on_both(served: Served) -> None:
    version = served.offer(0.0)
    wait_until(lambda: len(served.decided(version)) == 3, 120)
    assert served.decided(version) == ["published", "canary", "promote"]
    canary, promote = served.registry.events()[-2:]
    assert canary.by == promote.by == "controller"
    assert canary.reason == "1 of 2 replicas"
    assert "tokens/s per request" in promote.reason
    wait_until(lambda: {one.engine.adapter_version for one in served.cluster.replicas()} == {version}, 60)
    wait_until(lambda: served.controller().phase == "idle", 60)
    assert served.controller().counts.promoted >= 1
    assert served.controller().stable == version


def test_a_version_that_the_canary_refuses_is_revoked(served: Served) -> None:
    stable = served.registry.rollout().stable
    version = served.offer(float("nan"))
    wait_until(lambda: "revoke" in served.decided(version), 120)
    assert served.registry.events()[-1].reason.startswith("refused by all replicas that were to try it")
    assert served.registry.rollout().stable == stable
    assert sorted(one.weights.refused for one in served.cluster.replicas()) == [0, 1]


def test_a_controller_that_died_is_started_again_and_goes_on(served: Served) -> None:
    ray.kill(ray.get_actor(ROLLOUT_CONTROLLER, namespace=NAMESPACE), no_restart=False)
    version = served.offer(1.0)
    wait_until(lambda: len(served.decided(version)) == 3, 120)
    assert served.decided(version) == ["published", "canary", "promote"]
    wait_until(lambda: _promoted(served) == 1, 60)  # it counts from its start


def _promoted(served: Served) -> int:
    try:
        return served.controller().counts.promoted
    except EvoSpecError:  # between two lives
        return 0
