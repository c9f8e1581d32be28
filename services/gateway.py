"""The gateway deployment: OpenAI's HTTP API in front of the decoding replicas."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from evospec.config import Config, ServeConfig
from evospec.models.loading import load_tokenizer
from services.cluster_state import RayCluster
from services.completion import CompletionService
from services.http_api import create_app
from services.pace import Pace
from services.prompt_encoder import PromptEncoder
from services.replica_pool import ServeReplicaPool


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

    Raises:
        EvoSpecError: the target's tokenizer can't be had.
    """

    def __init__(self, config: Config, replicas: DeploymentHandle[Any], cluster: RayCluster) -> None:
        model = served_name(config)
        self._encoder = PromptEncoder(load_tokenizer(config.model.target))
        self._access = config.access
        self._cluster = cluster
        self._pace = Pace()
        self._service = CompletionService(
            ServeReplicaPool(replicas), model, config.serve.request_timeout_s, self._pace
        )
        self.reconfigure(GatewayLimits.of(config.serve).as_dict())

    def reconfigure(self, user_config: dict[str, float]) -> None:
        """Called by Serve when limits change; requests that run keep theirs."""
        limits = GatewayLimits(**user_config)
        self._service.set_timeout(limits.request_timeout_s)
        self._pace.chunk_s = limits.chunk_ms / 1e3

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the constructor is done (see `serve.ingress`)."""
        return create_app(self._service, self._encoder, self._access, self._cluster.state)


def served_name(config: Config) -> str:
    """Name of the model in the API."""
    return config.serve.model_name or config.model.target
