"""Turns: their order, and what they count."""

from __future__ import annotations

import pytest
import torch

from evospec.bench.measure import interleave, run_turn
from evospec.bench.memory import PeakMemory
from tests.unit.bench_kit import batch_of, scripted_arm

MEMORY = PeakMemory(torch.device("cpu"))


def test_arms_take_turns_on_every_batch() -> None:
    log: list[str] = []
    arms = [scripted_arm(policy, [4, 5], log) for policy in ("plain", "full", "evospec")]
    batches = [batch_of(0, "law"), batch_of(1, "law"), batch_of(2, "code")]
    turns = list(interleave(arms, batches, MEMORY))
    assert log == ["plain", "full", "evospec"] * 3
    assert [(turn.batch.number, turn.policy) for turn in turns] == [
        (number, policy) for number in range(3) for policy in ("plain", "full", "evospec")
    ]


def test_a_turn_counts_what_it_added_alone() -> None:
    arm = scripted_arm("full", [4, 5, 6, 7, 8])
    first = run_turn(arm, batch_of(0, "law", size=2), MEMORY)
    second = run_turn(arm, batch_of(1, "law", size=2), MEMORY)
    for turn in (first, second):
        assert turn.outputs == ((4, 5, 6, 7, 8),) * 2
        assert turn.tokens == 10
        assert turn.counters.cycles == 3
        assert turn.counters.drafts == 6
        assert turn.counters.accepted_per_position == [4, 0, 0, 0, 0]
        assert turn.counters.attempted_per_position == [6, 4, 0, 0, 0]
    # Rows grow by 10 a step; each cycle scores those of the step before: 0, 10, 20 and 30, 40, 50.
    assert first.row_cycles == 30
    assert second.row_cycles == 120


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
    turn = run_turn(scripted_arm("full", [9]), batch, MEMORY)
    assert len(turn.outputs) == size
    assert turn.tokens_per_s == pytest.approx(turn.tokens / turn.seconds)
