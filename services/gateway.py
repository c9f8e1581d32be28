"""The gateway deployment: OpenAI's HTTP API in front of the decoding replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from actors.serve_logs import join_serve_logs
from evospec.config import Config, ServeConfig
from services.access import Authentication
from services.live.cluster_view import ClusterView
from services.model_endpoint import ModelEndpoint
from services.model_switch import ModelSwitch
from services.pace import Pace
from services.request_metrics import CountedResponses
from services.tracing import TracedRequests, tracer_from


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """What a running gateway takes over from `user_config`."""

    request_timeout_s: float
    chunk_ms: float

    @classmethod
    def of(cls, settings: ServeConfig) -> GatewayLimits:
        return cls(settings.request_timeout_s, settings.chunk_ms)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Gateway:
    """Ray Serve ingress class: tokenises, checks, and streams what the replicas generate.

    Args:
        configs: one per model; its limits and keys are the first one's.
        replicas: of each model.
        views: of the actors that work for each model.
        companions: these actors; they are only named here so that they are deployed as well.

    Raises:
        EvoSpecError: a target's tokenizer can't be had.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        replicas: Sequence[DeploymentHandle[Any]],
        views: Sequence[ClusterView],
        companions: DeploymentHandle[Any] | None = None,
    ) -> None:
        join_serve_logs()
        self._access = configs[0].access
        self._pace = Pace()
        self._tracer = tracer_from()
        self._models = [
            ModelEndpoint(config, handle, view, self._pace)
            for config, handle, view in zip(configs, replicas, views, strict=True)
        ]
        self.reconfigure(GatewayLimits.of(configs[0].serve).as_dict())

    def reconfigure(self, user_config: dict[str, float]) -> None:
        """Called by Serve when limits change; requests that run keep theirs."""
        limits = GatewayLimits(**user_config)
        for model in self._models:
            model.set_timeout(limits.request_timeout_s)
        self._pace.chunk_s = limits.chunk_ms / 1e3

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve once the constructor is done (see `serve.ingress`)."""
        names = [model.name for model in self._models]
        apps = {model.name: model.app(names) for model in self._models}
        app: ASGIApp = apps[names[0]]
        if len(apps) > 1:  # keys before anything else: the switch reads the bodies of requests
            app = Authentication(ModelSwitch(apps), self._access)
        counted = CountedResponses(app)
        return counted if self._tracer is None else TracedRequests(counted, self._tracer)
