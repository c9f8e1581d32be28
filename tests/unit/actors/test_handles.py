"""Asking Serve's replicas for their status: who does not answer is left out, and told once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from actors import handles
from actors.handles import NoReplicaError, RemoteReplicas
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
