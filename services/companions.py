"""The actors that work beside the replicas, and the deployment that keeps them."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from actors.handles import RemoteReplicas
from actors.index_host import IndexHost
from actors.names import ALIGNER, INDEX_HOST, NAMESPACE, ROLLOUT_CONTROLLER
from actors.serve_logs import join_serve_logs
from actors.watched import WatchedAligner, WatchedRolloutController
from evospec.config import Config
from evospec.errors import EvoSpecError
from evospec.models.inspection import inspect_target
from services.placement import marked
from services.served import Served, aligns, retrieves, rolls_out
from services.token_index import open_token_index

logger = logging.getLogger(__name__)

GONE_WITHIN_S = 30.0
CLOSED_WITHIN_S = 10.0
POLL_S = 0.1


class NameTakenError(EvoSpecError):
    """An actor of an earlier application does not go."""


class Companions:
    """Ray Serve deployment class with a single replica, which owns all actors beside the decoding replicas.

    Ray starts an actor again whose process dies. One that fails while it is made is not: this
    deployment's health says so, and Serve starts all of them anew. They end with it.

    Args:
        replicas: how rollout controllers reach the replicas; one per model.
    """

    def __init__(self, models: Sequence[Served], replicas: Sequence[RemoteReplicas]) -> None:
        join_serve_logs()
        self._indexes: list[Any] = []
        self._actors: list[Any] = []
        for model, reached in zip(models, replicas, strict=True):
            self._start(model, reached)
        self._pending = [actor.__ray_ready__.remote() for actor in self._actors]

    async def ready(self) -> None:
        """Returns when all are made. Raises what keeps one from it, as Ray tells it."""
        await asyncio.gather(*(actor.__ray_ready__.remote() for actor in self._actors))

    def check_health(self) -> None:
        """Called by Serve. Raises RayError when an actor is gone for good; one that is busy is well."""
        for place, pending in enumerate(self._pending):
            if not ray.wait([pending], timeout=0)[0]:
                continue
            self._pending[place] = self._actors[place].__ray_ready__.remote()
            try:
                ray.get(pending)
            except ActorUnavailableError:
                logger.warning("an actor beside the replicas is being started again")

    def __del__(self) -> None:
        """Called by Serve before the end: an embedded index is closed rather than its owner killed."""
        while self._indexes:
            try:
                ray.get(self._indexes.pop().close.remote(), timeout=CLOSED_WITHIN_S)
            except RayError as error:
                logger.warning("the token index was not closed: %s", type(error).__name__)

    def _start(self, model: Served, replicas: RemoteReplicas) -> None:
        config, group = model.config, model.group
        if retrieves(config):
            target = inspect_target(config.model.target)
            opened = functools.partial(
                open_token_index, config.semantic, target.fingerprint.target, target.hidden_size
            )
            index = _start_index_host(config, opened, group)
            self._indexes.append(index)
            self._actors.append(index)
        if aligns(config):
            self._actors.append(_start_aligner(model))
        if rolls_out(config):
            self._actors.append(_start_rollout_controller(model, replicas.statuses))


def _start_aligner(model: Served) -> Any:
    """By default without a GPU; see `alignment.gpus`."""
    settings = model.config.alignment
    device = "cuda" if settings.gpus else "cpu"
    config = model.config.model_copy(
        update={"model": model.config.model.model_copy(update={"device": device})}
    )
    actor = _named(
        WatchedAligner,
        ALIGNER + model.group,
        config,
        max_concurrency=4,
        num_gpus=settings.gpus,
        resources=marked(settings.resource),
    )
    return actor.remote(config, model.publishing_registry)


def _start_rollout_controller(model: Served, replicas: Callable[[], Any]) -> Any:
    name = ROLLOUT_CONTROLLER + model.group
    actor = _named(WatchedRolloutController, name, model.config, max_concurrency=2)
    return actor.remote(model.config, model.publishing_registry, replicas)


def _start_index_host(config: Config, open_index: Callable[[], Any], group: str) -> Any:
    return _named(IndexHost, INDEX_HOST + group, config).remote(open_index)


def _named(kind: type, name: str, config: Config, **options: Any) -> Any:
    """An actor class with options; whoever has the name, from an application before this one, is ended."""
    _free(name)
    return ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        num_cpus=config.serve.cpus_per_actor,
        max_restarts=-1,
        **options,
    )


def _free(name: str) -> None:
    limit = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < limit:
        try:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        except ValueError:  # there is none
            return
        time.sleep(POLL_S)
    raise NameTakenError(f"the actor {name} of an earlier application did not end within {GONE_WITHIN_S:g} s")
