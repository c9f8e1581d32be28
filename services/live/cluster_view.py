"""How the gateway looks at the rest of the cluster; all of it blocks, and belongs on a thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ray.exceptions import RayError

from actors.aligner import AlignerStatus
from actors.handles import NamedActor, NoReplicaError, RemoteReplicas
from actors.names import ALIGNER, INDEX_HOST, ROLLOUT_CONTROLLER
from actors.rollout_controller import RolloutStatus
from evospec.errors import EvoSpecError
from evospec.ports import RegistryFactory, WeightRegistry
from evospec.wire import IndexPoint, RolloutEvent
from services.live.sighting import Sighting

logger = logging.getLogger(__name__)

ANSWER_S = 5.0  # what needs longer is shown as absent, and asked again later


class ClusterView(Protocol):
    """What the page shows of the cluster. Parts that don't answer are left out, not waited for."""

    def look(self) -> Sighting: ...

    def events(self, limit: int) -> list[RolloutEvent]:
        """The audit trail's latest entries, oldest first."""
        ...

    def points(self, limit: int) -> list[IndexPoint]:
        """The token index's latest points, newest first."""
        ...


class RayClusterView:
    """`ClusterView` of a running application.

    Args:
        registry: opens the weight registry; None where there is none.
        group: behind the names of actors; empty for a single model.
        aligns, tries, retrieves: whether there is an aligner, a rollout controller, a token index.
    """

    def __init__(
        self,
        replicas: RemoteReplicas,
        registry: RegistryFactory | None,
        group: str,
        *,
        aligns: bool,
        tries: bool,
        retrieves: bool,
    ) -> None:
        self._replicas = replicas
        self._open = registry
        self._registry: WeightRegistry | None = None
        self._aligner = NamedActor(ALIGNER + group) if aligns else None
        self._controller = NamedActor(ROLLOUT_CONTROLLER + group) if tries else None
        self._index = NamedActor(INDEX_HOST + group) if retrieves else None
        self._absent: set[str] = set()

    def look(self) -> Sighting:
        asked_aligner = _ask(self._aligner, lambda actor: actor.status.remote())
        asked_controller = _ask(self._controller, lambda actor: actor.status.remote())
        try:
            replicas = tuple(self._replicas.statuses())
        except NoReplicaError:  # said by `RemoteReplicas`, and by the page
            replicas = ()
        aligner: AlignerStatus | None = self._answer("aligner", asked_aligner)
        rollout: RolloutStatus | None = self._answer("rollout controller", asked_controller)
        return Sighting(time.time(), replicas, rollout, aligner)

    def events(self, limit: int) -> list[RolloutEvent]:
        if self._open is None:
            return []
        try:
            if self._registry is None:
                self._registry = self._open()
            found = self._registry.events(limit)
        except EvoSpecError as error:
            self._tell_once("registry", error)
            return []
        self._absent.discard("registry")
        return found

    def points(self, limit: int) -> list[IndexPoint]:
        found: list[IndexPoint] | None = self._answer(
            "token index", _ask(self._index, lambda host: host.latest.remote(limit))
        )
        return found or []

    def _answer(self, what: str, asked: Future[Any] | None) -> Any:
        """None when nobody was asked, or nobody answers."""
        if asked is None:
            return None
        try:
            answer = asked.result(ANSWER_S)
        except (RayError, EvoSpecError, ValueError, TimeoutError) as error:  # ValueError: no such actor
            self._tell_once(what, error)
            return None
        self._absent.discard(what)
        return answer

    def _tell_once(self, what: str, error: Exception) -> None:
        if what not in self._absent:
            self._absent.add(what)
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            logger.warning("the dashboard does without the %s, which does not answer: %s", what, reason)


def _ask(actor: NamedActor | None, method: Callable[[Any], Any]) -> Future[Any] | None:
    return None if actor is None else actor.call(method)
