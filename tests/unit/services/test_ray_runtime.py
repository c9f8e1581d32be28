from __future__ import annotations

import importlib
import os
import sys

import pytest

from services import ray_runtime, unanswered
from services.ray_runtime import ClusterError, LocalRay, own_error
from services.serve_environment import CALLS, NICENESS, OF_NODES, OWN_LOOP
from services.serve_environment import PROXY_MIDDLEWARES as PROXY_CALLBACK

REMOTE = """Deploying application evospec failed: The deployment failed to start 2 times in a row.
Error:
Traceback (most recent call last):
  File "/somewhere/replica.py", line 50, in __init__
    engine = load_engine(config)
evospec.errors.DrafterMismatchError: the drafter was made for a, not for this target
  See the logs for more."""


def test_the_own_error_of_a_remote_traceback_is_told_alone() -> None:
    error = own_error(REMOTE)
    assert str(error) == "the drafter was made for a, not for this target"


def test_other_errors_keep_their_first_line() -> None:
    assert str(own_error("\n no space left\n more")) == ("the cluster does not start: no space left")


@pytest.mark.usefixtures("environment")
def test_a_start_that_takes_too_long_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")  # as Ray does

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ClusterError, match=r"^Ray does not start: The current node timed out.*startup\.$"):
        LocalRay().start(cpus=1, dashboard=False, verbose=False)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", ray_runtime.AUTO_CONNECT, *OF_NODES]
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("mode", "calls"), [("token", "1"), ("disabled", "0")])
def test_ports_that_no_token_guards_are_not_used(
    monkeypatch: pytest.MonkeyPatch, mode: str, calls: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    ray_runtime._prepare_environment()
    assert os.environ[CALLS] == calls


@pytest.mark.usefixtures("environment")
def test_authentication_is_on_with_a_token_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    ray_runtime._prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.usefixtures("environment")
def test_what_the_user_decided_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray_runtime._prepare_environment()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.usefixtures("environment")
def test_the_proxy_finds_its_middlewares() -> None:
    ray_runtime._prepare_environment()
    module, _, name = os.environ[PROXY_CALLBACK].partition(":")
    assert getattr(importlib.import_module(module), name) is unanswered.middlewares


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", [OWN_LOOP, NICENESS])
def test_replicas_have_usual_priority_and_one_event_loop(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ray_runtime._prepare_environment()
    assert os.environ[name] == "0"
    monkeypatch.setenv(name, "5")
    ray_runtime._prepare_environment()
    assert os.environ[name] == "5"  # what the user decided stays
