"""Ten times as many requests as there is room for."""

from __future__ import annotations

import pytest

from tests.chaos.kit.rig import Rig

PART = "Overload"


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
def test_overload_is_429_and_the_rest_is_served(rig: Rig, times: int) -> None:
    config = rig.cluster.config
    room = 2 * config.engine.max_batch * config.serve.replicas + config.serve.max_queued_requests
    title = f"{times * room} clients at once, {times} times as many as can run and wait"
    with rig.scenario(PART, title, clients=times * room) as scenario:
        scenario.load.served(room)
    tally = scenario.load.stop()
    assert tally.failed == 0
    assert tally.sent == tally.complete >= times * room  # each client has its answer in the end
    assert tally.retried.keys() == {"429"}  # all of them with Retry-After
