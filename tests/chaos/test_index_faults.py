"""The token index is away, slow, or refuses: serving goes on without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.rig import Rig
from tests.integration.qdrant_rest import reply

PART = "Token index (Qdrant)"
SLOW_S = 5.0

Fault = Callable[[Rig], None]


def refuses_connections(rig: Rig) -> None:
    rig.qdrant_proxy.refuse()


def hangs(rig: Rig) -> None:
    rig.qdrant_proxy.stall()


def answers_slowly(rig: Rig) -> None:
    rig.qdrant_proxy.delay_s = SLOW_S / 2  # there, and back


def answers_with(status: int, **headers: str) -> Fault:
    def break_it(rig: Rig) -> None:
        rig.qdrant.fault = lambda handler: reply(handler, status, b"{}", **headers)

    return break_it


@pytest.mark.parametrize(
    ("title", "fault"),
    [
        ("refuses connections", refuses_connections),
        pytest.param("accepts connections and never answers", hangs, marks=pytest.mark.long),
        pytest.param(f"takes {SLOW_S:g} s for an answer", answers_slowly, marks=pytest.mark.long),
        ("answers 500", answers_with(500)),
        pytest.param("answers 429", answers_with(429, Retry_After="1"), marks=pytest.mark.long),
    ],
)
def test_the_token_index_ails(rig: Rig, title: str, fault: Fault) -> None:
    with rig.scenario(PART, title, harmless=True) as scenario:
        wait_for(lambda: hits(rig) > 0)
        opened, skipped = breakers_opened(rig), skips(rig)
        fault(rig)
        # Calls fail, then calls are no longer made.
        wait_for(lambda: breakers_opened(rig) > opened and skips(rig) > skipped)
        rig.qdrant.fault = None
        rig.qdrant_proxy.restore()
        scenario.start_clock()
        before = hits(rig)
        wait_for(lambda: hits(rig) > before)
        scenario.recovered("from its return until a look-up finds something")


def hits(rig: Rig) -> int:
    return sum(status.index.hits for status in rig.replicas())


def skips(rig: Rig) -> int:
    return sum(status.index.skipped for status in rig.replicas())


def breakers_opened(rig: Rig) -> int:
    return sum(status.index.breaker_opened for status in rig.replicas())
