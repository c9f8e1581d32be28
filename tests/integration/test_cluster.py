"""A cluster of several nodes runs the Serve config that `evospec serve --dump-config` prints."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import torch
import yaml

from evospec.config import (
    AccessConfig,
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
from evospec.models.adapter import AdapterWeights
from evospec.wire import Fingerprints
from services.app import APPLICATION
from services.keys_command import make_key
from services.registry import RedisWeightRegistry, open_registry
from services.serve_config import dump
from services.valkey import EmbeddedValkey
from tests.integration.cluster_kit import RayNodes, wait_until_running
from tests.integration.server_kit import free_port
from tests.tiny import tiny_folders
from tests.unit.actors.fakes import versioned, wait_until

MODEL = "tiny"
REPLICAS = 2
PAUSE_S = 0.1  # between a client's requests: two processors start new replicas beside the load


@dataclass(slots=True)
class Told:
    """What clients were told, by status or error, and the texts they got."""

    statuses: Counter[str] = field(default_factory=Counter)
    texts: set[str] = field(default_factory=set)
    complete: int = 0

    @property
    def failed(self) -> Counter[str]:
        return self.statuses - Counter({"200": self.statuses["200"]})


@dataclass(frozen=True, slots=True)
class Cluster:
    """The endpoint, and what an operator has of it."""

    nodes: RayNodes
    config: Config
    registry: RedisWeightRegistry
    admin_key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.serve.port}"

    def ask(self) -> httpx.Response:
        body = {"model": MODEL, "prompt": "abc", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=90, trust_env=False)

    def replicas(self) -> list[dict[str, Any]]:
        """Status of each that answers; none while no gateway does."""
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        try:
            found = httpx.get(f"{self.url}/admin/status", headers=headers, timeout=60, trust_env=False)
        except httpx.TransportError:
            return []
        return list(found.json()["replicas"] or []) if found.is_success else []

    def names(self) -> set[str]:
        return {one["replica"] for one in self.replicas()}

    def nodes_of(self, deployment: str) -> list[str]:
        """Addresses where its replicas run."""
        found = self.nodes.applications()["applications"][APPLICATION]["deployments"][deployment]
        return sorted(one["node_ip"] for one in found["replicas"] if one["state"] == "RUNNING")

    def proxies(self) -> list[str]:
        """State of each node's HTTP proxy."""
        return [one["status"] for one in self.nodes.applications()["proxies"].values()]

    def deploy(self, config: Config) -> None:
        """What a user has: the text that the command prints."""
        self.nodes.deploy(yaml.safe_load(dump(config)))

    @contextmanager
    def load(self, clients: int = 2) -> Iterator[Told]:
        """Clients that ask one request after the other and never try again."""
        told, stopping, lock = Told(), threading.Event(), threading.Lock()

        def work() -> None:
            while not stopping.wait(PAUSE_S):
                try:
                    answer = self.ask()
                except httpx.TransportError as error:
                    with lock:
                        told.statuses[type(error).__name__] += 1
                    continue
                with lock:
                    told.statuses[str(answer.status_code)] += 1
                    if answer.is_success:
                        told.complete += 1
                        told.texts.add(answer.json()["choices"][0]["text"])

        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield told
        finally:
            stopping.set()
            for thread in threads:
                thread.join(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folders = tiny_folders(tmp_path_factory.mktemp("tiny"))
    admin = make_key("operator", "", admin=True)
    with EmbeddedValkey() as server:
        registry = RegistryConfig(url=server.url, poll_s=0.2)
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
            registry=registry,
            rollout=RolloutConfig(
                error_rate=1e-6, speed_margin=0.99, min_requests=2, soak_s=0.5, max_minutes=0.2, poll_s=0.2
            ),
            serve=ServeConfig(
                port=free_port(), replicas=REPLICAS, gateways=2, cpus_per_actor=0.1, model_name=MODEL
            ),
            access=AccessConfig.model_validate({"admin_keys": [admin.config]}),
        )
        secrets = {
            "EVOSPEC_REGISTRY__URL": server.url,
            "EVOSPEC_ACCESS__ADMIN_KEYS": json.dumps([admin.config]),
        }
        with RayNodes(workers=2, settings=secrets) as nodes, closing(open_registry(registry)) as opened:
            found = Cluster(nodes, config, opened, admin.key)
            found.deploy(config)
            wait_until_running(nodes, APPLICATION)
            settled(lambda: len(found.replicas()) == REPLICAS)
            yield found


def settled(condition: Callable[[], bool], timeout_s: float = 240.0) -> None:
    """Asks over HTTP, a few times a second."""

    def look() -> bool:
        time.sleep(0.3)
        return condition()

    wait_until(look, timeout_s)


def test_replicas_and_gateways_are_spread_over_the_workers(cluster: Cluster) -> None:
    assert cluster.nodes_of("DecodingReplica") == cluster.nodes.workers
    assert cluster.nodes_of("Gateway") == cluster.nodes.workers
    settled(lambda: cluster.proxies() == ["HEALTHY"] * (1 + len(cluster.nodes.workers)))
    assert cluster.ask().status_code == 200


def test_the_config_holds_no_secret(cluster: Cluster) -> None:
    printed = dump(cluster.config)
    assert cluster.config.registry.url is not None
    assert cluster.config.registry.url not in printed
    assert cluster.config.access.admin_keys[0].sha256 not in printed


def test_a_version_reaches_all_replicas_by_way_of_a_canary(cluster: Cluster) -> None:
    registry = cluster.registry
    fingerprints = Fingerprints.model_validate(cluster.replicas()[0]["fingerprints"])
    tensors = {"fc.lora_a": torch.zeros(1, 96), "fc.lora_b": torch.zeros(32, 1)}
    blob = AdapterWeights(1, tensors).to_bytes()
    made = versioned(1, epoch=registry.acquire_epoch(), fingerprints=fingerprints, blob=blob)
    with cluster.load() as told:
        registry.publish(made.manifest.model_copy(update={"state": "candidate"}), blob)
        settled(lambda: set(cluster.registry.acknowledgements().values()) == {1})
        settled(lambda: [one["engine"]["adapter_version"] for one in cluster.replicas()] == [1] * REPLICAS)
    assert [event.event for event in registry.events()] == ["published", "canary", "promote"]
    assert not told.failed


def test_a_rolling_update_loses_no_request_and_changes_no_token(cluster: Cluster) -> None:
    before = cluster.names()
    engine = cluster.config.engine.model_copy(update={"draft_length": 2})
    with cluster.load() as told:
        cluster.deploy(cluster.config.model_copy(update={"engine": engine}))
        settled(lambda: len(cluster.names()) == REPLICAS and not cluster.names() & before)
        wait_until_running(cluster.nodes, APPLICATION)
        more = told.complete + 5
        wait_until(lambda: told.complete >= more, 120)
    assert not told.failed
    assert len(told.texts) == 1
    # They are new, and took the stable version before they took traffic.
    assert [one["engine"]["adapter_version"] for one in cluster.replicas()] == [1] * REPLICAS


def test_a_lost_node_is_made_up_for(cluster: Cluster) -> None:
    """Last: the node does not come back."""
    lost, left = cluster.nodes.workers
    before = cluster.ask().json()["choices"][0]["text"]
    with cluster.load() as told:
        wait_until(lambda: told.complete > 3, 120)
        cluster.nodes.lose(lost)
        settled(lambda: cluster.nodes_of("DecodingReplica") == [left] * REPLICAS)
        settled(lambda: cluster.nodes_of("Gateway") == [left] * REPLICAS)
        settled(lambda: [one["engine"]["adapter_version"] for one in cluster.replicas()] == [1] * REPLICAS)
        failed = sum(told.failed.values())
        more = told.complete + 10
        wait_until(lambda: told.complete >= more, 120)
    assert sum(told.failed.values()) == failed  # none once all is back
    assert told.texts == {before}
    assert set(told.failed) <= {"503", "ConnectError", "ReadError", "RemoteProtocolError"}
