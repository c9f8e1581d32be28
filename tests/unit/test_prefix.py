"""Prompts that begin alike are processed once; nothing but the time they take changes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.models.target import Target
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

PREFIX = tuple(random.Random(1).randrange(256) for _ in range(90))


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def engine_of(target: Target, max_batch: int, **settings: Any) -> Engine:
    drafter = tiny_drafter(target)
    target.tap(drafter.config.tap_layers)
    chosen = {"draft_length": 3, "prefill_chunk": 40} | settings
    config = EngineConfig(max_batch=max_batch, max_length=256, **chosen)
    return Engine(target, drafter, config, Fingerprints(target="t", drafter="d", tokenizer="k"))


def tail(seed: int, length: int = 40) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(256) for _ in range(length))


def run(engine: Engine, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    """One after the other is admitted as the one before has begun."""
    written: dict[str, tuple[int, ...]] = {}
    waiting = list(requests)
    while waiting or engine.has_work:
        if waiting:
            engine.admit(waiting.pop(0))
        for output in engine.step():
            written[output.request_id] = written.get(output.request_id, ()) + output.tokens
    return written


def request(name: str, prompt: tuple[int, ...], tenant: str = "", tokens: int = 24) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=tokens, ignore_eos=True), tenant)


def alone(target: Target, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    return {each.id: run(engine_of(target, 1), [each])[each.id] for each in requests}


@pytest.mark.parametrize("max_batch", [1, 3])
def test_outputs_do_not_change(target: Target, max_batch: int) -> None:
    requests = [request(str(seed), PREFIX + tail(seed), tokens=10 + 7 * (seed % 3)) for seed in range(8)]
    engine = engine_of(target, max_batch)
    assert run(engine, requests) == alone(target, requests)
    prompt = len(requests[0].prompt_ids)
    stats = engine.stats
    assert stats.prompt_tokens + stats.reused_prompt_tokens == len(requests) * prompt
    assert stats.reused_prompt_tokens >= (len(requests) - max_batch) * (len(PREFIX) - 1)


def test_the_next_turn_of_a_conversation_begins_where_the_last_one_ended(target: Target) -> None:
    engine = engine_of(target, 2)
    first = request("first", PREFIX)
    answer = run(engine, [first])["first"]
    second = request("second", PREFIX + answer + tail(0))
    assert run(engine, [second]) == alone(target, [second])
    # All but the answer's last token, whose keys were never written.
    assert engine.stats.reused_prompt_tokens >= len(PREFIX) + len(answer) - 2


def test_tenants_do_not_share(target: Target) -> None:
    requests = [request(str(seed), PREFIX + tail(seed), tenant=str(seed)) for seed in range(3)]
    engine = engine_of(target, 2)
    assert run(engine, requests) == alone(target, requests)
    assert engine.stats.reused_prompt_tokens == 0


def test_slots_that_move_and_requests_that_leave(target: Target) -> None:
    """Requests of different lengths, some cancelled, so that slots are moved under shared prefixes."""
    rng = random.Random(3)
    requests = [
        request(str(number), PREFIX[: rng.choice([60, 90])] + tail(number % 4), tokens=rng.randrange(3, 30))
        for number in range(24)
    ]
    engine = engine_of(target, 4)
    expected = alone(target, requests)
    written: dict[str, tuple[int, ...]] = {}
    waiting, steps = list(requests), 0
    cancelled: set[str] = set()
    while waiting or engine.has_work:
        if waiting:
            engine.admit(waiting.pop(0))
        steps += 1
        if steps % 5 == 0:
            victim = str(rng.randrange(24))
            engine.cancel(victim)
            cancelled.add(victim)
        for output in engine.step():
            written[output.request_id] = written.get(output.request_id, ()) + output.tokens
    assert engine.stats.reused_prompt_tokens > 500
    for name, tokens in expected.items():
        got = written.get(name, ())
        assert got == tokens[: len(got)]
        assert len(got) == len(tokens) or name in cancelled


def test_neighbours_that_end_together_leave_what_they_held(target: Target) -> None:
    """The one request that stays takes the first slot; the second slot still holds what ended in it."""
    first, second, third = (tail(seed, 60) for seed in (11, 12, 13))
    engine = engine_of(target, 3, draft_length=0, prefill_chunk=64)
    limits = {"a": 6, "b": 5, "c": 40}  # they begin one step after the other: a and b end in the same one
    requests = [
        request("a", first, tokens=limits["a"]),
        request("b", second, tokens=limits["b"]),
        request("c", third, tokens=limits["c"]),
    ]
    again = request("d", second + tail(14))
    expected = alone(target, [*requests, again])
    written: dict[str, tuple[int, ...]] = {}
    for each in requests:
        engine.admit(each)
    ended: dict[str, int] = {}
    step = 0
    while engine.has_work:
        step += 1
        for output in engine.step():
            written[output.request_id] = written.get(output.request_id, ()) + output.tokens
            if output.finish_reason is not None:
                ended[output.request_id] = step
        if len(ended) == 2 and "d" not in written:
            written["d"] = ()
            engine.admit(again)
    assert ended["a"] == ended["b"] < ended["c"]
    assert engine.stats.reused_prompt_tokens > 0
    assert written == expected
