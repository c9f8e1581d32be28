"""What works for the replicas of one model: registry, aligner, token index, rollout controller."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from evospec.config import Config
from evospec.models.inspection import TargetCard
from evospec.ports import RegistryFactory, WeightRegistry
from services.ray_runtime import own_error
from services.registry import open_registry, open_replica_registry
from services.token_index import open_token_index

if TYPE_CHECKING:
    from actors.aligner import AlignerStatus
    from actors.rollout_controller import RolloutStatus
    from actors.status import ReplicaStatus
    from services.app import Served

CALL_TIMEOUT_S = 60.0


class ModelGroup:
    """Started in the order of the methods; Ray must run for all but `open_registry`.

    Args:
        suffix: behind the names of actors and deployment; empty for a single model.
    """

    def __init__(self, config: Config, target: TargetCard, suffix: str) -> None:
        self.config = config
        self._target = target
        self._suffix = suffix
        self._registry: WeightRegistry | None = None
        self._aligner: Any = None
        self._controller: Any = None
        self._index: Any = None
        self._replicas: Any = None

    def open_registry(self) -> None:
        """Does nothing where none is configured."""
        if self.config.registry.url is not None:
            self._registry = open_registry(self.config.registry)

    def start_actors(self) -> None:
        """Aligner and token index: they load beside the replicas."""
        # Ray reads its environment on import: not before `LocalRay.start` has set it.
        from services.app import start_aligner, start_index_host

        config, target = self.config, self._target
        if aligns(config):
            opened = functools.partial(open_registry, config.registry)
            self._aligner = start_aligner(config, opened, self._suffix)
        if retrieves(config):
            index = functools.partial(
                open_token_index, config.semantic, target.fingerprint.target, target.hidden_size
            )
            self._index = start_index_host(index, self._suffix)

    def served(self, config: Config) -> Served:
        """For the application; `config` is this model's, with its limits as they are now."""
        from services.app import Served

        self.config = config
        registry: RegistryFactory | None = None
        if self._registry is not None:
            registry = functools.partial(open_replica_registry, config.registry)
        return Served(config, registry, self._suffix)

    def start_rollouts(self) -> None:
        """After the replicas, which the controller asks."""
        from services.app import start_rollout_controller

        if rolls_out(self.config):
            opened = functools.partial(open_registry, self.config.registry)
            self._controller = start_rollout_controller(self.config, opened, self._suffix)

    def replicas(self) -> list[ReplicaStatus]:
        """Status of each replica that takes traffic."""
        from ray import serve

        from services.app import APPLICATION, REPLICAS

        # Serve keeps it, for as long as its controller lives.
        self._replicas = serve.get_deployment_handle(REPLICAS + self._suffix, APPLICATION)
        calls = self._replicas.broadcast("status")
        statuses: list[ReplicaStatus] = calls.results(timeout_s=CALL_TIMEOUT_S)
        return statuses

    def aligner(self) -> AlignerStatus | None:
        """Status of the aligner; None where alignment is off."""
        return None if self._aligner is None else _call(self._aligner.status.remote())

    def rollout(self) -> RolloutStatus | None:
        """Status of the rollout controller; None where versions reach all replicas at once."""
        return None if self._controller is None else _call(self._controller.status.remote())

    def index_points(self) -> int:
        """Points in the token index; 0 where it is off."""
        return 0 if self._index is None else _call(self._index.count.remote())

    def acknowledgements(self) -> dict[str, int]:
        """Adapter version last acknowledged by each replica; empty without a registry."""
        return {} if self._registry is None else self._registry.acknowledgements()

    def end_calls(self) -> None:
        """While replicas follow the load, Serve goes on to report calls from here, however little is left."""
        if self._replicas is not None:
            self._replicas.shutdown()

    def close_index(self) -> None:
        """An embedded index on disk is closed rather than its owner killed."""
        if self._index is not None:
            _call(self._index.close.remote())

    def close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()


def aligns(config: Config) -> bool:
    """Whether there is an aligner, which needs a registry."""
    return config.alignment.enabled and config.model.drafter is not None


def retrieves(config: Config) -> bool:
    """Whether there is a token index."""
    return config.semantic.enabled and config.model.drafter is not None


def rolls_out(config: Config) -> bool:
    """Whether versions go through a canary here."""
    follows = config.registry.url is not None and config.model.drafter is not None
    return follows and config.rollout.canary


def _call(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference, timeout=CALL_TIMEOUT_S)
    except RayError as error:
        raise own_error(str(error)) from error
