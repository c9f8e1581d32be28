"""One model's part of the gateway: its tokenizer, its replicas, and the API in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from evospec.config import Config
from evospec.models.loading import load_tokenizer
from services.cluster_state import RayCluster
from services.completion import CompletionService
from services.http_api import create_app
from services.pace import Pace
from services.prompt_encoder import PromptEncoder
from services.replica_pool import ServeReplicaPool


class ModelEndpoint:
    """
    Args:
        config: this model's.
        pace: the gateway's; all models share it.

    Raises:
        EvoSpecError: the target's tokenizer can't be had.
    """

    def __init__(
        self, config: Config, replicas: DeploymentHandle[Any], cluster: RayCluster, pace: Pace
    ) -> None:
        self.name = config.served_name
        self._encoder = PromptEncoder(load_tokenizer(config.model.target))
        self._service = CompletionService(
            ServeReplicaPool(replicas), self.name, config.serve.request_timeout_s, pace
        )
        self._access = config.access
        self._cluster = cluster

    def set_timeout(self, timeout_s: float) -> None:
        """For requests that begin from now on."""
        self._service.set_timeout(timeout_s)

    def app(self, names: Sequence[str]) -> FastAPI:
        """Args:
        names: of all models behind the gateway's address.
        """
        return create_app(self._service, self._encoder, self._access, self._cluster.state, names)
