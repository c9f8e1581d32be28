"""Named Ray actors, found when they are needed and found again after they were replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from actors.names import ALIGNER, INDEX_HOST, NAMESPACE
from actors.status import ReplicaStatus
from evospec.align.trace import Trace
from evospec.align.trace_codec import encode
from evospec.errors import EvoSpecError
from evospec.wire import IndexPoint, TokenHits

logger = logging.getLogger(__name__)


class NoReplicaError(EvoSpecError):
    """No decoding replica answers."""


class NamedActor:
    """Looks an actor up by name and keeps the handle until a call shows that it is dead."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None

    def call(self, method: Callable[[Any], ray.ObjectRef[Any]]) -> Future[Any]:
        """Calls a method of the actor; whatever goes wrong is found in the future.

        What the method raised is there as it was: around it, Ray's own error has the whole traceback.
        """
        answer: Future[Any] = Future()
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=NAMESPACE)
            future: Future[Any] = method(self._handle).future()
        except (ValueError, RayError) as error:  # ValueError: no such actor
            self._handle = None
            answer.set_exception(error)
        else:
            future.add_done_callback(lambda done: self._pass_on(done, answer))
        return answer

    def _pass_on(self, done: Future[Any], answer: Future[Any]) -> None:
        error = done.exception()
        if isinstance(error, RayActorError):
            self._handle = None
        if error is None:
            answer.set_result(done.result())
        else:
            answer.set_exception(error.cause if isinstance(error, RayTaskError) else error)


class RemoteAligner:
    """The aligner as replicas see it."""

    def __init__(self, name: str = ALIGNER) -> None:
        self._actor = NamedActor(name)

    def submit(self, trace: Trace) -> Future[None]:
        return self._actor.call(lambda aligner: aligner.submit.remote(encode(trace)))


class RemoteTokenIndex:
    """The token index as replicas see it."""

    def __init__(self, name: str = INDEX_HOST) -> None:
        self._actor = NamedActor(name)

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> Future[list[TokenHits]]:
        return self._actor.call(lambda host: host.search.remote(vectors, tenant, limit))

    def write(self, points: Sequence[IndexPoint]) -> Future[None]:
        return self._actor.call(lambda host: host.write.remote(list(points)))


class RemoteReplicas:
    """The decoding replicas as the rollout controller sees them.

    Args:
        timeout_s: replicas that need longer are taken as not answering.
    """

    def __init__(self, deployment: str, application: str, timeout_s: float) -> None:
        self._deployment = deployment
        self._application = application
        self._timeout_s = timeout_s
        self._handle: Any = None
        self._told = False

    def statuses(self) -> list[ReplicaStatus]:
        """Of each replica that answers. Raises NoReplicaError when none does."""
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(self._deployment, self._application)
            calls = self._handle.broadcast("status")
            answers = calls.results(timeout_s=self._timeout_s, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            if isinstance(error, RayError):  # Serve itself was replaced
                self._handle = None
            raise NoReplicaError(f"no replica answers: {_first_line(error)}") from None
        statuses = [answer for answer in answers if isinstance(answer, ReplicaStatus)]
        if not statuses:
            raise NoReplicaError(f"none of {len(answers)} replicas answers")
        self._tell(answers)
        return statuses

    def _tell(self, answers: Sequence[object]) -> None:
        """Logs that replicas don't answer when that begins."""
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and not self._told:
            first = _first_line(errors[0])
            logger.warning("%d of %d replicas do not answer: %s", len(errors), len(answers), first)
        self._told = bool(errors)


def _first_line(error: Exception) -> str:
    """Ray's errors hold whole tracebacks."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
