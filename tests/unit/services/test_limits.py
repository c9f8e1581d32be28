"""What may change while a server runs, and what Serve is told of replicas."""

from __future__ import annotations

from typing import Any

import pytest

from evospec.config import Config
from services.app import replica_count, request_router
from services.limits import LIMITS, NeedsRestartError, with_limits


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_limits_are_taken_over_and_what_was_filled_in_stays() -> None:
    running = config(serve={"port": 4711, "replicas": 2}, model={"threads": 3})
    asked = config(serve={"port": 0, "replicas": 2})
    after = config(serve={"port": 0, "replicas": 2, "max_replicas": 5, "request_timeout_s": 9})
    changed = with_limits(running, asked, after)
    assert (changed.serve.max_replicas, changed.serve.request_timeout_s) == (5, 9)
    assert (changed.serve.port, changed.model.threads) == (4711, 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"serve": {"port": 1}}, "serve.port"),
        ({"engine": {"max_batch": 1}, "serve": {"chunk_ms": 1, "routing": "domain"}}, "engine.max_batch"),
        ({"models": [{"name": "a"}]}, "models"),
    ],
)
def test_anything_else_needs_a_restart(change: dict[str, Any], named: str) -> None:
    with pytest.raises(NeedsRestartError, match=named):
        with_limits(Config(), Config(), config(**change))


def test_limits_are_keys_of_the_section() -> None:
    assert set(Config().serve.model_dump()) > LIMITS


def test_replicas_are_fixed_unless_a_maximum_says_otherwise() -> None:
    assert replica_count(config(serve={"replicas": 3})) == {"num_replicas": 3}
    found = replica_count(config(serve={"replicas": 2, "max_replicas": 4}, engine={"max_batch": 6}))
    scaling = found["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 4, 6)


def test_a_maximum_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_replicas \(1\) is below replicas \(2\)"):
        config(serve={"replicas": 2, "max_replicas": 1})


def test_the_router_is_serves_own_unless_asked_for() -> None:
    assert "PowerOfTwo" in str(request_router(Config()).get_request_router_class())
    ours = request_router(config(serve={"routing": "domain"}, engine={"max_batch": 8}))
    assert "DomainRouter" in str(ours.get_request_router_class())
    assert ours.request_router_kwargs == {"slack": 4}
