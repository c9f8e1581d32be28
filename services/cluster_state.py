"""What the parts of a cluster report of themselves, for administrators."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import asdict, is_dataclass
from typing import Any

from ray.exceptions import RayError

from actors.handles import ALIGNER, ROLLOUT_CONTROLLER, NamedActor, NoReplicaError, RemoteReplicas

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
Json = dict[str, Any]


class RayCluster:
    """The actors of this Ray cluster that work for a model, asked each time.

    Args:
        group: behind the names of deployment and actors; empty for a single model.
    """

    def __init__(self, deployment: str, application: str, group: str) -> None:
        self._replicas = RemoteReplicas(deployment + group, application, TIMEOUT_S)
        self._aligner = NamedActor(ALIGNER + group)
        self._rollout = NamedActor(ROLLOUT_CONTROLLER + group)

    async def state(self) -> Json:
        """As `ClusterState` describes it."""
        replicas, aligner, rollout = await asyncio.gather(
            asyncio.to_thread(self._statuses), _status_of(self._aligner), _status_of(self._rollout)
        )
        return {"replicas": replicas, "aligner": aligner, "rollout": rollout}

    def _statuses(self) -> list[Json] | None:
        try:
            return [asdict(status) for status in self._replicas.statuses()]
        except NoReplicaError as error:
            logger.warning("the state of the cluster lacks its replicas: %s", error)
            return None


async def _status_of(actor: NamedActor) -> Json | None:
    """None where there is no such actor, or it does not answer."""
    answer: Future[Any] = actor.call(lambda remote: remote.status.remote())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status = await asyncio.wrap_future(answer)
    except (ValueError, RayError, TimeoutError) as error:  # ValueError: no such actor
        logger.info("the state of the cluster lacks an actor: %s", error)
        return None
    return asdict(status) if is_dataclass(status) and not isinstance(status, type) else None
