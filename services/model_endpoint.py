"""One model's part of the gateway: its tokenizer, its replicas, and what is served in front of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from evospec.config import Config
from evospec.engine.text import Tokenizer
from evospec.models.loading import load_tokenizer
from services.cluster_state import cluster_state
from services.completion import CompletionService
from services.http_api import create_app
from services.live.cluster_view import ClusterView
from services.live.feed import LiveFeed
from services.live.routes import dashboard_routes
from services.pace import Pace
from services.prompt_encoder import PromptEncoder
from services.replica_pool import ServeReplicaPool
from services.request_metrics import MeasuredPool


class ModelEndpoint:
    """OpenAI's API and the dashboard.

    Args:
        config: this model's.
        view: the actors that work for it.
        pace: the gateway's; all models share it.

    Raises:
        EvoSpecError: the target's tokenizer can't be had.
    """

    def __init__(
        self, config: Config, replicas: DeploymentHandle[Any], view: ClusterView, pace: Pace
    ) -> None:
        self.name = config.served_name
        self._encoder = PromptEncoder(load_tokenizer(config.model.target))
        self._decoder = load_tokenizer(config.model.target)
        self._service = CompletionService(
            MeasuredPool(ServeReplicaPool(replicas), self.name),
            self.name,
            config.serve.request_timeout_s,
            pace,
        )
        self._access = config.access
        self._view = view

    def set_timeout(self, timeout_s: float) -> None:
        """For requests that begin from now on."""
        self._service.set_timeout(timeout_s)

    def app(self, names: Sequence[str]) -> FastAPI:
        """Args:
        names: of all models behind the gateway's address.
        """
        state = functools.partial(cluster_state, self._view)
        app = create_app(self._service, self._encoder, self._access, state, names)
        app.include_router(
            dashboard_routes(
                LiveFeed(self._view, self.name, self._text_of),
                self._service,
                self._encoder,
                cast(Tokenizer, self._decoder),  # its `decode` also takes batches
                chats=self._decoder.chat_template is not None,
            )
        )
        return app

    def _text_of(self, token_id: int) -> str:
        return str(self._decoder.decode([token_id], skip_special_tokens=True))
