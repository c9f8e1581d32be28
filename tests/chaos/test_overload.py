"""Many times as many requests as there is room for."""

from __future__ import annotations

import statistics
import time

import pytest

from evospec.config import Config
from tests.chaos.kit.flood import flood, memory_mb, seconds_for_one
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.record import ScenarioRecord, publish
from tests.chaos.kit.rig import MODEL, Rig

PART = "Overload"
CALM_S = 10.0  # until latency is what it was
MOST_GROWTH_MB = 32.0  # of any process; a leak of 64 KiB a request would be twice that


def room_of(config: Config) -> int:
    """Requests that can run or wait."""
    return 2 * config.engine.max_batch * config.serve.replicas + config.serve.max_queued_requests


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])
def test_overload_is_429_and_the_rest_is_served(rig: Rig, times: int) -> None:
    room = room_of(rig.cluster.config)
    title = f"{times * room} clients at once, {times} times as many as can run and wait"
    with rig.scenario(PART, title, clients=times * room) as scenario:
        scenario.load.served(room)
    tally = scenario.load.stop()
    assert tally.failed == 0
    assert tally.sent == tally.complete >= times * room  # each client has its answer in the end
    assert tally.retried.keys() == {"429"}  # all of them with Retry-After


def test_a_thousand_requests_at_four_times_the_capacity(rig: Rig) -> None:
    url, prompts, at_once = rig.cluster.url, rig.models.prompts, 4 * room_of(rig.cluster.config)

    def seconds() -> float:
        return statistics.median(seconds_for_one(url, MODEL, prompt) for prompt in prompts[:3])

    flood(url, MODEL, prompts, requests=3 * at_once, at_once=at_once)  # allocators take what they need once
    normal, before = seconds(), memory_mb()
    answered = flood(url, MODEL, prompts, requests=1000, at_once=at_once)
    ended = time.monotonic()
    wait_for(lambda: seconds() <= 2 * normal)
    calm = time.monotonic() - ended
    grown = {name: mb - before[name] for name, mb in memory_mb().items() if name in before}
    publish(
        ScenarioRecord(
            part=PART,
            scenario=f"1,000 requests, {at_once} at a time: 4 times as many as can run and wait",
            sent=answered.statuses.total(),
            failed=0,
            lost=0,
            retried={"429": answered.statuses["429"]},
            compared=answered.compared,
            wrong=answered.wrong,
            took=calm,
            what="from the last answer until one takes at most twice what it took before",
            bar=CALM_S,
            notes=(f"No process grew by more than {max(grown.values()):.0f} MiB.",),
        )
    )
    assert answered.statuses.keys() == {"200", "429"}
    assert answered.statuses.total() == 1000
    assert answered.wrong == 0
    assert answered.retry_after.keys() == {"1"}
    assert max(grown.values()) < MOST_GROWTH_MB, grown
