"""A running model as this process sees it: its replicas, and what works for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.names import ALIGNER, INDEX_HOST, NAMESPACE, ROLLOUT_CONTROLLER
from evospec.config import Config
from evospec.ports import WeightRegistry
from services.ray_runtime import ClusterError, own_error
from services.registry import open_registry
from services.served import Served, aligns, retrieves, rolls_out

if TYPE_CHECKING:
    from actors.aligner import AlignerStatus
    from actors.rollout_controller import RolloutStatus
    from actors.status import ReplicaStatus

CALL_TIMEOUT_S = 60.0


class ModelGroup:
    """The application must run for all but `open_registry`."""

    def __init__(self, model: Served) -> None:
        self._model = model
        self._registry: WeightRegistry | None = None
        self._replicas: Any = None

    @property
    def config(self) -> Config:
        return self._model.config

    def open_registry(self) -> None:
        """Does nothing where none is configured."""
        if self.config.registry.url is not None:
            self._registry = open_registry(self.config.registry)

    def replicas(self) -> list[ReplicaStatus]:
        """Status of each replica that takes traffic."""
        from ray import serve

        from services.app import APPLICATION, REPLICAS

        # Serve keeps it, for as long as its controller lives.
        self._replicas = serve.get_deployment_handle(REPLICAS + self._model.group, APPLICATION)
        calls = self._replicas.broadcast("status")
        statuses: list[ReplicaStatus] = calls.results(timeout_s=CALL_TIMEOUT_S)
        return statuses

    def aligner(self) -> AlignerStatus | None:
        """Status of the aligner; None where alignment is off."""
        return self._ask(ALIGNER, lambda actor: actor.status.remote()) if aligns(self.config) else None

    def rollout(self) -> RolloutStatus | None:
        """Status of the rollout controller; None where versions reach all replicas at once."""
        if not rolls_out(self.config):
            return None
        return self._ask(ROLLOUT_CONTROLLER, lambda actor: actor.status.remote())

    def index_points(self) -> int:
        """Points in the token index; 0 where it is off."""
        return self._ask(INDEX_HOST, lambda actor: actor.count.remote()) if retrieves(self.config) else 0

    def acknowledgements(self) -> dict[str, int]:
        """Adapter version last acknowledged by each replica; empty without a registry."""
        return {} if self._registry is None else self._registry.acknowledgements()

    def end_calls(self) -> None:
        """While replicas follow the load, Serve goes on to report calls from here, however little is left."""
        if self._replicas is not None:
            self._replicas.shutdown()

    def close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def _ask(self, actor: str, call: Callable[[Any], Any]) -> Any:
        """Raises ClusterError when the actor is not there, or does not answer."""
        import ray
        from ray.exceptions import RayError

        name = actor + self._model.group
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
            return ray.get(call(handle), timeout=CALL_TIMEOUT_S)
        except ValueError:
            raise ClusterError(f"the actor {name} does not run") from None
        except RayError as error:
            raise own_error(str(error)) from error
