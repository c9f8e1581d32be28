"""What is behind a handle: replicas that do not answer are left out, and told once; actors are found again
after they died, and their errors are their own."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException

from actors import handles
from actors.handles import NoReplicaError, RemoteReplicas, RemoteTokenIndex
from evospec.errors import TokenIndexError
from tests.unit.actors.canary_kit import Replica

A, B = Replica("a").status(), Replica("b").status()


class Serve:
    """`ray.serve` with one deployment; `answers` is what a broadcast gives, or raises."""

    def __init__(self, answers: list[Any] | Exception) -> None:
        self.answers = answers
        self.handles = 0

    def get_deployment_handle(self, deployment: str, application: str) -> Serve:
        assert (deployment, application) == ("D", "app")
        self.handles += 1
        return self

    def broadcast(self, method: str) -> Serve:
        assert method == "status"
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s == 3.0
        assert return_exceptions
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    serve = Serve([A, B])
    monkeypatch.setattr(handles, "serve", serve)
    return serve


@pytest.fixture
def replicas() -> RemoteReplicas:
    return RemoteReplicas("D", "app", timeout_s=3.0)


def test_the_handle_is_kept(serve: Serve, replicas: RemoteReplicas) -> None:
    assert replicas.statuses() == [A, B]
    assert replicas.statuses() == [A, B]
    assert serve.handles == 1


def test_a_replica_that_does_not_answer_is_left_out_and_told_once(
    serve: Serve, replicas: RemoteReplicas, caplog: pytest.LogCaptureFixture
) -> None:
    serve.answers = [A, TimeoutError(), RayActorError()]
    with caplog.at_level(logging.WARNING):
        assert replicas.statuses() == [A]
        assert replicas.statuses() == [A]
        serve.answers = [A, B]
        replicas.statuses()
        serve.answers = [RayActorError(), B]
        replicas.statuses()
    assert [one.message for one in caplog.records] == [
        "2 of 3 replicas do not answer: TimeoutError",
        f"1 of 2 replicas do not answer: {RayActorError()}",
    ]


@pytest.mark.parametrize(
    "answers",
    [
        [TimeoutError()],
        TimeoutError("too late\nsee logs"),
        RayServeException("no application"),
        RayActorError(),
    ],
)
def test_no_answer_at_all_is_an_error_of_one_line(
    serve: Serve, replicas: RemoteReplicas, answers: list[Any] | Exception
) -> None:
    serve.answers = answers
    with pytest.raises(NoReplicaError) as raised:
        replicas.statuses()
    assert len(str(raised.value).splitlines()) == 1
    serve.answers = [A]
    assert replicas.statuses() == [A]


def test_a_serve_that_was_replaced_is_asked_anew(serve: Serve, replicas: RemoteReplicas) -> None:
    serve.answers = RayActorError()
    with pytest.raises(NoReplicaError):
        replicas.statuses()
    serve.answers = [A]
    replicas.statuses()
    assert serve.handles == 2


class Actors:
    """`ray` with one index host; `answers` are those of its searches, in turn."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.found = 0

    def get_actor(self, name: str, namespace: str) -> Actors:
        assert (name, namespace) == (handles.INDEX_HOST, handles.NAMESPACE)
        self.found += 1
        return self

    @property
    def search(self) -> Actors:
        return self

    def remote(self, vectors: np.ndarray, tenant: str, limit: int) -> Actors:
        return self

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


def test_an_actors_error_is_its_own_and_only_a_dead_actor_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's error would put the actor's whole traceback into a log line."""
    own = TokenIndexError("cannot search the token index: it is not reachable")
    raised = RayTaskError("search", "Traceback:\n  ...", own, proctitle="host", pid=1, ip="127.0.0.1")
    actors = Actors([raised.as_instanceof_cause(), [], RayActorError(), []])
    monkeypatch.setattr(handles, "ray", actors)
    index = RemoteTokenIndex()
    futures = [index.search(np.zeros((1, 2)), "a", 8) for _ in range(4)]
    assert futures[0].exception() is own
    assert futures[1].result() == futures[3].result() == []
    assert isinstance(futures[2].exception(), RayActorError)
    assert actors.found == 2
