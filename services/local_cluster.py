"""All of EvoSpec on this machine: started together, stopped together."""

from __future__ import annotations

import functools
import logging
from contextlib import ExitStack
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from evospec.config import Config
from evospec.models.inspection import TargetCard
from evospec.ports import RegistryFactory, WeightRegistry
from services import preflight
from services.limits import with_limits
from services.ray_runtime import ClusterError, LocalRay, own_error
from services.registry import open_registry, open_replica_registry
from services.token_index import open_token_index
from services.valkey import EmbeddedValkey

if TYPE_CHECKING:
    from actors.aligner import AlignerStatus
    from actors.rollout_controller import RolloutStatus
    from actors.status import ReplicaStatus

CALL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class LocalCluster:
    """Ray, registry, token index, aligner, replicas, gateway and rollout controller, as a context manager.

    `start` checks the configuration before it starts anything. Whatever happens after
    that, `stop` ends all that was started.
    """

    def __init__(self, config: Config, *, verbose: bool = False) -> None:
        """
        Args:
            verbose: show what all processes log on stderr.
        """
        self._asked = config  # before anything is filled in
        self._config = config
        self._verbose = verbose
        self._started = ExitStack()
        self._ray = LocalRay()
        self._registry: WeightRegistry | None = None
        self._aligner: Any = None
        self._controller: Any = None
        self._index: Any = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def config(self) -> Config:
        """The configuration with everything filled in that was left open: port, threads, registry URL."""
        return self._config

    @property
    def url(self) -> str:
        """Base URL of the HTTP endpoint; the OpenAI API is below /v1."""
        return f"http://{_reachable(self._config.serve.host)}:{self._config.serve.port}"

    def start(self) -> str:
        """Returns the base URL once the endpoint answers.

        Raises:
            EvoSpecError: see `preflight.check`; or the cluster does not start.
        """
        target = preflight.check(self._config)
        try:
            self._start(target)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Ends everything; may be called twice, and while `start` is interrupted."""
        self._started.close()
        self._registry = self._aligner = self._controller = self._index = None

    def reconfigure(self, config: Config) -> None:
        """Applies other limits while requests run: nothing is restarted.

        Args:
            config: as it was read; what was left open there stays as it was filled in.

        Raises:
            EvoSpecError: it differs in more than limits (`services.limits`), which needs a restart.
        """
        self._config = with_limits(self._config, self._asked, config)
        self._asked = config
        self._deploy()

    def replicas(self) -> list[ReplicaStatus]:
        """Status of each replica that takes traffic."""
        from ray import serve

        from services.app import APPLICATION, REPLICAS

        handle = serve.get_deployment_handle(REPLICAS, APPLICATION)
        statuses: list[ReplicaStatus] = handle.broadcast("status").results(timeout_s=CALL_TIMEOUT_S)
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

    def _start(self, target: TargetCard) -> None:
        self._fill_in()
        self._open_registry()
        serving = self._config.serve
        self._started.callback(self._ray.stop)
        self._ray.start(
            cpus=serving.most_replicas * serving.cpus_per_replica,
            dashboard=serving.dashboard,
            verbose=self._verbose,
        )
        self._started.callback(self._wind_down)
        self._start_actors(target)
        self._run_application()
        self._start_rollouts()
        self._wait_until_served()

    def _fill_in(self) -> None:
        config = self._config
        serving = config.serve.model_copy(update={"port": preflight.check_port(config.serve)})
        model = config.model.model_copy(update={"threads": preflight.threads_per_replica(config)})
        self._config = config.model_copy(update={"serve": serving, "model": model})

    def _open_registry(self) -> None:
        """The registry that is configured, or an embedded one where the aligner needs it."""
        settings = self._config.registry
        if settings.url is None:
            if not self._aligns:
                return
            server = EmbeddedValkey()
            self._started.callback(server.stop)
            server.start()
            settings = settings.model_copy(update={"url": server.url})
            self._config = self._config.model_copy(update={"registry": settings})
        registry = open_registry(settings)
        self._started.callback(registry.close)
        self._registry = registry

    @property
    def _aligns(self) -> bool:
        return self._config.alignment.enabled and self._config.model.drafter is not None

    @property
    def _rolls_out(self) -> bool:
        """Whether versions go through a canary here."""
        follows = self._registry is not None and self._config.model.drafter is not None
        return follows and self._config.rollout.canary

    def _start_actors(self, target: TargetCard) -> None:
        # Ray reads its environment on import: not before `LocalRay.start` has set it.
        from services.app import start_aligner, start_index_host

        if self._aligns and self._registry is not None:
            self._aligner = start_aligner(
                self._config, functools.partial(open_registry, self._config.registry)
            )
        if self._config.semantic.enabled and self._config.model.drafter is not None:
            self._index = start_index_host(
                functools.partial(
                    open_token_index, self._config.semantic, target.fingerprint.target, target.hidden_size
                )
            )

    def _run_application(self) -> None:
        from ray import serve

        serving = self._config.serve
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": serving.host, "port": serving.port}, logging_config=_quiet())
        try:
            self._deploy()
        except RuntimeError as error:
            raise own_error(f"{error}\n{_deployment_messages()}") from error

    def _deploy(self) -> None:
        """Starts the application, or brings the one that runs up to the configuration."""
        from ray import serve

        from services.app import APPLICATION, build_application

        registry: RegistryFactory | None = None
        if self._registry is not None:
            registry = functools.partial(open_replica_registry, self._config.registry)
        serve.run(build_application(self._config, registry), name=APPLICATION, logging_config=_quiet())

    def _start_rollouts(self) -> None:
        """After the replicas, which it asks."""
        from services.app import start_rollout_controller

        if self._rolls_out:
            self._controller = start_rollout_controller(
                self._config, functools.partial(open_registry, self._config.registry)
            )

    def _wind_down(self) -> None:
        """Drains the replicas, and closes an embedded index on disk rather than killing its owner."""
        from ray import serve

        from services.app import APPLICATION

        # `serve.shutdown` would do more, and Ray would complain of it on stdout.
        limit_s = STOP_TIMEOUT_S + self._config.serve.drain_s
        self._ray.run_while_alive(lambda: serve.delete(APPLICATION), limit_s)
        if self._index is not None:
            self._ray.run_while_alive(lambda: _call(self._index.close.remote()), STOP_TIMEOUT_S)

    def _wait_until_served(self) -> None:
        """The actors load beside the replicas; what keeps one from working is told now."""
        self.aligner()
        self.rollout()
        self.index_points()
        try:
            # This machine's address is not for a proxy that the environment may name.
            health = httpx.get(f"{self.url}/health", timeout=CALL_TIMEOUT_S, trust_env=False)
            health.raise_for_status()
        except httpx.HTTPError as error:
            raise ClusterError(f"the endpoint {self.url} does not answer: {error}") from error


def _reachable(host: str) -> str:
    """How a URL names a listening address; one that means every address is reached as localhost."""
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return host
    if address.is_unspecified:
        return "localhost"
    return f"[{address}]" if address.version == 6 else str(address)


def _quiet() -> Any:
    from ray.serve.schema import LoggingConfig

    return LoggingConfig(log_level="WARNING", enable_access_log=False)


def _call(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference, timeout=CALL_TIMEOUT_S)
    except RayError as error:
        raise own_error(str(error)) from error


def _deployment_messages() -> str:
    """What Serve tells of the deployments: why a replica does not start stands only there."""
    from ray import serve

    applications = serve.status().applications.values()
    return "\n".join(
        deployment.message for application in applications for deployment in application.deployments.values()
    )
