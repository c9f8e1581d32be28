"""A cluster with faults to order: its registry and its token index can be broken at any time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor

from actors.aligner import AlignerStatus
from actors.names import ALIGNER
from actors.status import ReplicaStatus
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
from evospec.errors import DecisionRefusedError
from evospec.wire import Decision
from services.local_cluster import LocalCluster
from services.ray_runtime import ClusterError
from services.registry import RedisWeightRegistry, open_registry
from tests.chaos.kit.learned_models import LearnedModels
from tests.chaos.kit.load import Load
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.processes import actor_process
from tests.chaos.kit.registry_server import RegistryServer
from tests.chaos.kit.scenario import Scenario
from tests.chaos.kit.tcp_proxy import TcpProxy
from tests.chaos.kit.versions import HARMLESS, RANK, HandPublisher, random_adapter
from tests.integration.qdrant_rest import Qdrant

MODEL = "tiny"
SIGNING_KEY = "key of the chaos tier"
CLIENTS = 6


@dataclass(frozen=True, slots=True)
class Rig:
    """A running cluster, and everything it depends on within reach."""

    cluster: LocalCluster
    models: LearnedModels
    server: RegistryServer
    qdrant: Qdrant
    qdrant_proxy: TcpProxy

    def scenario(
        self, part: str, title: str, *, harmless: bool = False, cuts: bool = False, clients: int = CLIENTS
    ) -> Scenario:
        load = Load(self.cluster.url, MODEL, self.models.prompts, clients=clients)
        return Scenario(part, title, load, harmless=harmless, cuts=cuts)

    def replicas(self) -> list[ReplicaStatus]:
        """Status of each replica that takes traffic; none while one of those asked is dying."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            return self.cluster.replicas()
        except (RayError, RayServeException, TimeoutError):
            return []

    def names(self) -> set[str]:
        return {status.replica for status in self.replicas()}

    def complete(self) -> bool:
        """Whether as many replicas take traffic as shall."""
        return len(self.replicas()) == self.cluster.config.serve.replicas

    def run(self, version: int) -> bool:
        """Whether all replicas are there and decode with `version`."""
        statuses = self.replicas()
        return len(statuses) == self.cluster.config.serve.replicas and all(
            status.engine.adapter_version == version for status in statuses
        )

    def aligner(self) -> AlignerStatus | None:
        """None between two of its lives."""
        try:
            return self.cluster.aligner()
        except ClusterError:
            return None

    @contextmanager
    def registry(self) -> Iterator[RedisWeightRegistry]:
        """The registry, past the proxy."""
        config = self.cluster.config.registry.model_copy(update={"url": self.server.direct_url})
        with closing(open_registry(config)) as opened:
            yield opened

    @contextmanager
    def publisher(self) -> Iterator[HandPublisher]:
        """Publishes past the proxy."""
        with self.registry() as registry:
            yield HandPublisher(registry, self.replicas()[0].fingerprints)

    def harmless_version(self, seed: int, rank: int = RANK) -> dict[str, Tensor]:
        """An adapter that changes next to nothing; each seed has its own bytes."""
        return random_adapter(self.models.drafter(), HARMLESS, seed, rank)

    def repair(self) -> None:
        """Ends all faults, and shuts the aligner out; all replicas are there, on the stable version."""
        self.qdrant.fault = None
        self.qdrant_proxy.restore()
        self.server.proxy.restore()
        self.server.restart()
        with self.registry() as registry:
            registry.acquire_epoch()
            if candidate := registry.rollout().candidate:
                registry.decide(Decision(kind="revoke", version=candidate, by="chaos tier"))
            wait_for(lambda: self.run(registry.rollout().stable))

    def start_learning(self) -> None:
        """Gives the registry back to the aligner, by way of a new life."""
        with self.registry() as registry:
            epoch = registry.acquire_epoch()
        actor_process(ALIGNER).kill()
        wait_for(lambda: self.epoch() > epoch)

    def settled(self, registry: RedisWeightRegistry) -> bool:
        """Whether all replicas are there, each on the version that is wanted of it."""
        rollout, statuses = registry.rollout(), self.replicas()
        return len(statuses) == self.cluster.config.serve.replicas and all(
            status.engine.adapter_version == rollout.wanted(status.replica) for status in statuses
        )

    def let_through(self, registry: RedisWeightRegistry) -> None:
        """Promotes a candidate, as an operator can: between equals the controller takes its time."""
        if candidate := registry.rollout().candidate:
            with suppress(DecisionRefusedError):  # the controller was faster
                registry.decide(Decision(kind="promote", version=candidate, by="chaos tier"))

    def promote_next(self, registry: RedisWeightRegistry) -> int:
        """Lets the aligner's next version through; returns the stable version."""
        before = registry.rollout().stable

        def promoted() -> bool:
            self.let_through(registry)
            return registry.rollout().stable > before

        wait_for(promoted)
        wait_for(lambda: self.settled(registry))
        return registry.rollout().stable

    def epoch(self) -> int:
        """The aligner's publisher epoch; 0 when it has none."""
        status = self.aligner()
        return 0 if status is None else status.publisher.epoch


def rig_config(models: LearnedModels, replicas: int) -> Config:
    """Everything but the addresses of registry and token index."""
    return Config(
        model=ModelConfig(
            target=str(models.folders.target),
            drafter=str(models.folders.drafter),
            device="cpu",
            dtype="float32",
            threads=1,
        ),
        engine=EngineConfig(max_batch=2, max_length=256, draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(refresh_tokens=16),
        # Any version passes its gate: this is about what happens to versions, not about their worth.
        alignment=AlignmentConfig(
            trace_positions=32, min_traces=4, steps_per_version=2, learning_rate=1e-5, min_gain=-10.0
        ),
        registry=RegistryConfig(poll_s=0.5, signing_key=SIGNING_KEY),
        rollout=RolloutConfig(min_requests=4, soak_s=2.0, poll_s=0.5),
        serve=ServeConfig(
            port=0, replicas=replicas, cpus_per_replica=0.5, model_name=MODEL, max_queued_requests=8
        ),
    )


@contextmanager
def started_rig(models: LearnedModels, config: Config, folder: Path) -> Iterator[Rig]:
    """A cluster of `config`, whose registry keeps its data in `folder`."""
    with ExitStack() as started:
        server = started.enter_context(RegistryServer(folder))
        qdrant = started.enter_context(Qdrant())
        proxy = started.enter_context(TcpProxy(urlsplit(qdrant.url).port or 0))
        sections = {
            "registry": config.registry.model_copy(update={"url": server.url}),
            "semantic": config.semantic.model_copy(update={"url": proxy.url}),
        }
        cluster = started.enter_context(LocalCluster(config.model_copy(update=sections)))
        yield Rig(cluster, models, server, qdrant, proxy)
