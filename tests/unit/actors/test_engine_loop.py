from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from actors.emission import Emission, OutputStream
from actors.engine_loop import EngineLoop, Outlets
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EngineFailedError, EvoSpecError, InvalidRequestError, WireError
from evospec.models.adapter_slot import StagedAdapter
from evospec.vocab.semantic import Lookup
from evospec.wire import TokenHits
from tests.unit.actors.fakes import FakeEngine, staged, wait_until


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def loop(engine: FakeEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    engine.gate.set()
    loop.stop()


class Inbox:
    """Collects what one request is delivered."""

    def __init__(self) -> None:
        self.items: list[Emission | EvoSpecError] = []

    def __call__(self, item: Emission | EvoSpecError) -> None:
        self.items.append(item)

    @property
    def finished(self) -> bool:
        last = self.items[-1] if self.items else None
        return isinstance(last, EvoSpecError) or (last is not None and last.output.finish_reason is not None)

    @property
    def tokens(self) -> list[int]:
        return [token for item in self.items if isinstance(item, Emission) for token in item.output.tokens]


def request(name: str, token: int = 7, max_tokens: int = 3) -> Request:
    return Request(name, (token,), SamplingParams(max_tokens=max_tokens))


def test_dispatches_each_request_its_own_tokens_from_one_thread(engine: FakeEngine, loop: EngineLoop) -> None:
    loop.start(Outlets())
    inboxes = {token: Inbox() for token in (1, 2, 3)}
    for token, inbox in inboxes.items():
        loop.admit(request(str(token), token, max_tokens=token + 2), inbox)
    wait_until(lambda: all(inbox.finished for inbox in inboxes.values()))
    assert {token: inbox.tokens for token, inbox in inboxes.items()} == {1: [1] * 3, 2: [2] * 4, 3: [3] * 5}
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_a_refused_request_gets_its_error_and_the_loop_goes_on(loop: EngineLoop) -> None:
    loop.start(Outlets())
    refused, served = Inbox(), Inbox()
    loop.admit(Request("empty", ()), refused)
    loop.admit(request("good"), served)
    wait_until(lambda: served.finished)
    assert isinstance(refused.items[0], InvalidRequestError)
    assert refused.items[0].param == "prompt"
    loop.check()


def test_cancellation_reaches_the_engine_and_late_ones_are_ignored(
    engine: FakeEngine, loop: EngineLoop
) -> None:
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("long", max_tokens=1_000_000), inbox)
    wait_until(lambda: len(inbox.items) > 2)
    loop.cancel("long")
    wait_until(lambda: inbox.finished)
    assert isinstance(inbox.items[-1], Emission)
    assert inbox.items[-1].output.finish_reason == "cancelled"
    loop.cancel("long")
    loop.cancel("never seen")
    after = Inbox()
    loop.admit(request("after"), after)
    wait_until(lambda: after.finished)
    assert engine.cancelled == {"long"}


def test_swaps_between_steps_and_stamps_what_follows(engine: FakeEngine, loop: EngineLoop) -> None:
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("long", max_tokens=1_000_000), inbox)
    for version in (1, 2, 3):
        loop.swap(staged(version)).result(20)
    seen = len(inbox.items)
    wait_until(lambda: len(inbox.items) > seen + 1)
    last = inbox.items[-1]
    assert isinstance(last, Emission)
    assert last.adapter_version == 3
    assert engine.swaps == [1, 2, 3]
    assert not engine.swapped_while_stepping


def test_a_refused_swap_is_reported_and_harmless(engine: FakeEngine, loop: EngineLoop) -> None:
    loop.start(Outlets())
    with pytest.raises(WireError):
        loop.swap(staged(-1)).result(20)
    loop.swap(staged(4)).result(20)
    assert engine.swaps == [4]


def test_a_swap_given_up_before_its_turn_is_not_carried_out(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.gate.clear()
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("slow"), inbox)
    wait_until(lambda: engine.in_step)
    given_up, wanted = loop.swap(staged(1)), loop.swap(staged(2))
    assert given_up.cancel()
    engine.gate.set()
    wanted.result(20)
    assert engine.swaps == [2]
    wait_until(lambda: inbox.finished)


def test_a_crash_while_swapping_reaches_whoever_waits_for_the_swap(
    engine: FakeEngine, loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(adapter: StagedAdapter) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "swap_adapter", run_out_of_memory)
    loop.start(Outlets())
    with pytest.raises(EngineFailedError, match="out of memory"):
        loop.swap(staged(1)).result(20)
    given_up = loop.swap(staged(2))
    given_up.cancel()  # whether before or after the loop has ended
    wait_until(lambda: has_failed(loop))


def has_failed(loop: EngineLoop) -> bool:
    try:
        loop.check()
    except EngineFailedError:
        return True
    return False


def test_requests_are_summed_up_by_the_version_that_served_them(engine: FakeEngine, loop: EngineLoop) -> None:
    loop.start(Outlets())
    for version in (3, 2):
        loop.swap(staged(version)).result(20)
        inboxes = [Inbox(), Inbox()]
        for number, inbox in enumerate(inboxes):
            loop.admit(request(f"{version}-{number}", max_tokens=5), inbox)
        wait_until(lambda inboxes=inboxes: all(inbox.finished for inbox in inboxes))
    arms = loop.arms()
    assert set(arms) == {2, 3}
    for sums in arms.values():
        assert (sums.requests, sums.tokens, sums.cycles) == (2, 8, 8)  # the first token is prefill's
        assert sums.seconds > 0


def test_time_spent_on_prompts_is_nobodys(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.prefill_seconds = 1000.0
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("one"), inbox)
    wait_until(lambda: inbox.finished)
    assert loop.arms()[0].seconds < -1000.0


def test_outboxes_are_forwarded_and_hits_come_back(engine: FakeEngine, loop: EngineLoop) -> None:
    lookups: list[Lookup] = []
    loop.start(Outlets(lookups=lookups.extend))
    inbox = Inbox()
    loop.admit(request("asks"), inbox)
    wait_until(lambda: inbox.finished and bool(lookups))
    assert lookups[0].request_id == "asks"
    loop.offer_hits("asks", TokenHits((5,), (1.0,)))
    wait_until(lambda: bool(engine.hits))  # an idle loop wakes for it
    assert engine.hits == [("asks", TokenHits((5,), (1.0,)))]


def test_a_crash_fails_running_waiting_and_later_requests(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.gate.clear()
    loop.start(Outlets())
    running, waiting, later = Inbox(), Inbox(), Inbox()
    loop.admit(request("running"), running)
    wait_until(lambda: engine.in_step)
    loop.admit(request("waiting"), waiting)
    swap = loop.swap(staged(1))
    engine.crash = ValueError("bad tensor")
    engine.gate.set()
    wait_until(lambda: running.finished and waiting.finished)
    loop.admit(request("later"), later)
    for inbox in (running, waiting, later):
        assert isinstance(inbox.items[-1], EngineFailedError)
        assert "bad tensor" in str(inbox.items[-1])
    with pytest.raises(EngineFailedError):
        swap.result(20)
    with pytest.raises(EngineFailedError, match="crashed: ValueError: bad tensor"):
        loop.check()


def test_a_stuck_step_fails_the_health_check_but_a_quick_one_does_not(
    engine: FakeEngine, loop: EngineLoop
) -> None:
    engine.gate.clear()
    loop.start(Outlets())
    loop.admit(request("stuck"), Inbox())
    wait_until(lambda: engine.in_step)
    loop.check(stall_limit_s=3600)
    with pytest.raises(EngineFailedError, match="one step"):
        loop.check(stall_limit_s=0)


def test_stopping_fails_what_is_running(loop: EngineLoop) -> None:
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("long", max_tokens=1_000_000), inbox)
    wait_until(lambda: bool(inbox.items))
    loop.stop()
    assert isinstance(inbox.items[-1], EngineFailedError)


def test_the_snapshot_does_not_change_under_its_reader(engine: FakeEngine, loop: EngineLoop) -> None:
    loop.start(Outlets())
    inbox = Inbox()
    loop.admit(request("one"), inbox)
    wait_until(lambda: inbox.finished and loop.stats().cycles == 3)
    before = loop.stats()
    loop.admit(request("two"), Inbox())
    wait_until(lambda: loop.stats().cycles == 6)
    assert before.cycles == 3
    assert before.attempted_per_position is not engine.stats.attempted_per_position


def test_an_output_stream_crosses_into_its_event_loop(loop: EngineLoop) -> None:
    loop.start(Outlets())

    async def consume() -> list[int]:
        stream = OutputStream()
        loop.admit(request("async"), stream.deliver)
        tokens: list[int] = []
        while True:
            emission = await stream.next()
            tokens += emission.output.tokens
            if emission.output.finish_reason:
                return tokens

    assert asyncio.run(consume()) == [7, 7, 7]


def test_an_output_for_a_closed_event_loop_does_not_hurt(loop: EngineLoop) -> None:
    loop.start(Outlets())

    async def leave() -> None:
        stream = OutputStream()
        loop.admit(request("gone", max_tokens=1_000_000), stream.deliver)
        await stream.next()

    asyncio.run(leave())
    inbox = Inbox()
    loop.admit(request("next"), inbox)
    wait_until(lambda: inbox.finished)
    loop.check()
