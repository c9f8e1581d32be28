"""Named Ray actors, found when they are needed and found again after they were replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from evospec.align.trace import Trace
from evospec.align.trace_codec import encode
from evospec.wire import IndexPoint, TokenHits

NAMESPACE = "evospec"
ALIGNER = "aligner"
INDEX_HOST = "token-index"


class NamedActor:
    """Looks an actor up by name and keeps the handle until a call shows that it is dead."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: Any = None

    def call(self, method: Callable[[Any], ray.ObjectRef[Any]]) -> Future[Any]:
        """Calls a method of the actor; whatever goes wrong is found in the future."""
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._name, namespace=NAMESPACE)
            future: Future[Any] = method(self._handle).future()
        except (ValueError, RayError) as error:  # ValueError: no such actor
            self._handle = None
            future = Future()
            future.set_exception(error)
        else:
            future.add_done_callback(self._forget_if_dead)
        return future

    def _forget_if_dead(self, done: Future[Any]) -> None:
        if isinstance(done.exception(), RayActorError):
            self._handle = None


class RemoteAligner:
    """The aligner as replicas see it."""

    def __init__(self) -> None:
        self._actor = NamedActor(ALIGNER)

    def submit(self, trace: Trace) -> Future[None]:
        return self._actor.call(lambda aligner: aligner.submit.remote(encode(trace)))


class RemoteTokenIndex:
    """The token index as replicas see it."""

    def __init__(self) -> None:
        self._actor = NamedActor(INDEX_HOST)

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> Future[list[TokenHits]]:
        return self._actor.call(lambda host: host.search.remote(vectors, tenant, limit))

    def write(self, points: Sequence[IndexPoint]) -> Future[None]:
        return self._actor.call(lambda host: host.write.remote(list(points)))
