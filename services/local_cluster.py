"""All of EvoSpec on this machine: started together, stopped together."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from evospec.config import Config
from services import preflight
from services.addresses import reachable
from services.limits import with_limits
from services.model_group import CALL_TIMEOUT_S, ModelGroup
from services.placement import named_resources, reserved_cpus
from services.ray_runtime import ClusterError, LocalRay, own_error
from services.served import aligns, served_models
from services.valkey import EmbeddedValkey

if TYPE_CHECKING:
    from actors.aligner import AlignerStatus
    from actors.rollout_controller import RolloutStatus
    from actors.status import ReplicaStatus

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
        self._groups: dict[str, ModelGroup] = {}

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
        return f"http://{reachable(self._config.serve.host)}:{self._config.serve.port}"

    def start(self) -> str:
        """Returns the base URL once the endpoint answers.

        Raises:
            EvoSpecError: see `preflight.check`; or the cluster does not start.
        """
        for model in self._config.each_model():
            preflight.check(model)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Ends everything; may be called twice, and while `start` is interrupted."""
        self._started.close()
        self._groups = {}

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

    def replicas(self, model: str | None = None) -> list[ReplicaStatus]:
        """Status of each replica that takes traffic.

        Args:
            model: where several are served; default: the first. So it is below.
        """
        return self._group(model).replicas()

    def aligner(self, model: str | None = None) -> AlignerStatus | None:
        """Status of the aligner; None where alignment is off."""
        return self._group(model).aligner()

    def rollout(self, model: str | None = None) -> RolloutStatus | None:
        """Status of the rollout controller; None where versions reach all replicas at once."""
        return self._group(model).rollout()

    def index_points(self, model: str | None = None) -> int:
        """Points in the token index; 0 where it is off."""
        return self._group(model).index_points()

    def acknowledgements(self, model: str | None = None) -> dict[str, int]:
        """Adapter version last acknowledged by each replica; empty without a registry."""
        return self._group(model).acknowledgements()

    def _group(self, model: str | None) -> ModelGroup:
        return self._groups[model] if model is not None else next(iter(self._groups.values()))

    def _start(self) -> None:
        self._fill_in()
        self._start_registry()
        self._open_groups()
        self._started.callback(self._ray.stop)
        models = [group.config for group in self._groups.values()]
        self._ray.start(
            cpus=reserved_cpus(models),
            resources=named_resources(models),
            dashboard=self._config.serve.dashboard,
            verbose=self._verbose,
            json_logs=self._config.serve.log_format == "json",
        )
        self._started.callback(self._wind_down)
        self._run_application()
        self._wait_until_served()

    def _fill_in(self) -> None:
        config = self._config
        serving = config.serve.model_copy(update={"port": preflight.check_port(config.serve)})
        model = config.model.model_copy(update={"threads": preflight.threads_per_replica(config)})
        self._config = config.model_copy(update={"serve": serving, "model": model})

    def _start_registry(self) -> None:
        """An embedded server, where an aligner needs one and none is configured."""
        settings = self._config.registry
        if settings.url is None and any(aligns(model) for model in self._config.each_model()):
            server = EmbeddedValkey()
            self._started.callback(server.stop)
            server.start()
            settings = settings.model_copy(update={"url": server.url})
            self._config = self._config.model_copy(update={"registry": settings})

    def _open_groups(self) -> None:
        for model in served_models(self._config):
            group = ModelGroup(model)
            self._started.callback(group.close_registry)
            group.open_registry()
            self._groups[model.config.served_name] = group

    def _run_application(self) -> None:
        from ray import serve
        from ray.exceptions import RayError

        from services.serve_logs import quiet_logs

        serving = self._config.serve
        quiet = quiet_logs(serving.log_format)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start(http_options={"host": serving.host, "port": serving.port}, logging_config=quiet)
            self._deploy()
        except (RuntimeError, RayError) as error:
            raise own_error(f"{error}\n{_deployment_messages()}") from error

    def _deploy(self) -> None:
        """Starts the application, or brings the one that runs up to the configuration."""
        from ray import serve

        from services.app import APPLICATION, build_application
        from services.serve_logs import quiet_logs

        application = build_application(served_models(self._config))
        serve.run(application, name=APPLICATION, logging_config=quiet_logs(self._config.serve.log_format))

    def _wind_down(self) -> None:
        """Drains the replicas."""
        from ray import serve

        from services.app import APPLICATION

        # `serve.shutdown` would do more, and Ray would complain of it on stdout.
        limit_s = STOP_TIMEOUT_S + self._config.serve.drain_s
        self._ray.run_while_alive(lambda: serve.delete(APPLICATION), limit_s)
        for group in self._groups.values():
            self._ray.run_while_alive(group.end_calls, STOP_TIMEOUT_S)

    def _wait_until_served(self) -> None:
        """The actors load beside the replicas; what keeps one from working is told now."""
        self._wait_for_companions()
        for group in self._groups.values():
            group.aligner()
            group.rollout()
            group.index_points()
        try:
            # This machine's address is not for a proxy that the environment may name.
            health = httpx.get(f"{self.url}/health", timeout=CALL_TIMEOUT_S, trust_env=False)
            health.raise_for_status()
        except httpx.HTTPError as error:
            raise ClusterError(f"the endpoint {self.url} does not answer: {error}") from error

    def _wait_for_companions(self) -> None:
        from ray import serve
        from ray.exceptions import RayError

        from services.app import APPLICATION, COMPANIONS

        if COMPANIONS not in serve.status().applications[APPLICATION].deployments:
            return
        companions = serve.get_deployment_handle(COMPANIONS, APPLICATION)
        try:
            # On a thread: Serve refuses to wait on one whose event loop runs, as a notebook's does.
            with ThreadPoolExecutor(1) as waiting:
                waiting.submit(lambda: companions.ready.remote().result(timeout_s=CALL_TIMEOUT_S)).result()
        except RayError as error:
            raise own_error(str(error)) from error


def _deployment_messages() -> str:
    """What Serve tells of the deployments: why a replica does not start stands only there."""
    from ray import serve

    applications = serve.status().applications.values()
    return "\n".join(
        deployment.message for application in applications for deployment in application.deployments.values()
    )
