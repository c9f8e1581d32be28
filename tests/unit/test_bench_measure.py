"""Turns: their order, and what they count."""

from __future__ import annotations

import pytest
import torch

from evospec.bench.clock import Clock
from evospec.bench.measure import interleave
from evospec.bench.memory import PeakMemory
from tests.unit.bench_kit import ScriptedEngine, batch_of, scripted_arm, turn_of

MEMORY = PeakMemory(torch.device("cpu"))


def test_arms_take_turns_on_every_batch() -> None:
    log: list[str] = []
    arms = [scripted_arm(policy, [4, 5], log) for policy in ("plain", "full", "evospec")]
    batches = [batch_of(0, "law"), batch_of(1, "law"), batch_of(2, "code")]
    turns = list(interleave(arms, batches, MEMORY))
    assert log == ["plain", "full", "evospec"] * 3
    assert [(turn.batch.number, turn.arm) for turn in turns] == [
        (number, policy) for number in range(3) for policy in ("plain", "full", "evospec")
    ]


def test_a_turn_counts_what_it_added_alone() -> None:
    arm = scripted_arm("full", [4, 5, 6, 7, 8])
    first = arm.run(batch_of(0, "law", size=2), MEMORY)
    second = arm.run(batch_of(1, "law", size=2), MEMORY)
    for turn in (first, second):
        assert turn.outputs == ((4, 5, 6, 7, 8),) * 2
        assert turn.tokens == 10
        assert turn.counters.cycles == 3
        assert turn.counters.cycles_per_plan == {"chain-5": 3}
        assert turn.request_cycles == 6
        assert turn.key_cycles == 2 * (3 + 5 + 7)  # a prompt of 3, then two tokens a cycle
        assert turn.counters.drafts == 6
        assert turn.counters.accepted_per_position == [4, 0, 0, 0, 0]
        assert turn.counters.attempted_per_position == [6, 4, 0, 0, 0]
    # Rows grow by 10 a step; each cycle scores those of the step before: 0, 10, 20 and 30, 40, 50.
    assert first.row_cycles == 30
    assert second.row_cycles == 120


def test_requests_are_timed_to_their_own_last_token() -> None:
    turn = turn_of("full", batch_of(0, "law"), [5, 6, 7, 8], seconds=2.0)
    assert turn.request_speeds == (2.0,)
    longer = scripted_arm("full", [4, 5, 6]).run(batch_of(0, "law", size=2), MEMORY)
    assert all(
        first <= last <= longer.seconds
        for first, last in zip(longer.first_token_seconds, longer.last_token_seconds, strict=True)
    )


def test_captures_are_those_of_the_turn() -> None:
    arm = scripted_arm("full", [4])
    assert isinstance(arm.engine, ScriptedEngine)
    arm.engine.captures = 7
    assert arm.run(batch_of(0, "law"), MEMORY).captures == 0


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    MEMORY.restart()
    before = MEMORY.read_mb()
    block = torch.ones(32 << 20, dtype=torch.uint8)
    assert block.sum() == 32 << 20
    del block
    assert MEMORY.read_mb() >= before + 30


@pytest.mark.parametrize("size", [1, 3])
def test_outputs_are_in_the_order_of_the_requests(size: int) -> None:
    batch = batch_of(0, "law", size)
    turn = scripted_arm("full", [9]).run(batch, MEMORY)
    assert len(turn.outputs) == size
    assert turn.tokens_per_s == pytest.approx(turn.tokens / turn.seconds)


def test_decoding_is_timed_without_the_prompt() -> None:
    turn = turn_of("full", batch_of(0, "law"), [5, 6, 7, 8, 9], seconds=1.0)
    assert turn.tokens_per_s == 5.0
    assert turn.decode_tokens_per_s == pytest.approx(4 / 0.8)


def test_first_tokens_are_timed_per_request() -> None:
    turn = scripted_arm("full", [4, 5, 6]).run(batch_of(0, "law", size=3), MEMORY)
    assert len(turn.first_token_seconds) == 3
    assert all(0 < seconds <= turn.seconds for seconds in turn.first_token_seconds)


def test_the_wall_clock_alone_times_a_cpu() -> None:
    clock = Clock(torch.device("cpu"))
    clock.start()
    elapsed = clock.read()
    assert elapsed.device is None
    assert elapsed.wall <= clock.glance()
