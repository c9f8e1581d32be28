"""A policy whose output is not the target's has failed, however fast it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from evospec.bench.exactness import (
    Exactness,
    NearTies,
    compare_turns,
    demand_equality,
    first_difference,
    judge_places,
)
from evospec.bench.roofline import Roofline, Traffic
from evospec.bench.summary import ArmFacts, Subject, summarise
from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.models.target import Target
from evospec.wire import Fingerprints
from tests.tiny import tiny_target
from tests.unit.bench_kit import arm_name, batch_of, turn_of

PLAIN = [5, 6, 7, 8]
SUBJECT = Subject(
    "tiny",
    1,
    {
        "plain": ArmFacts(arm_name("plain")),
        "full": ArmFacts(arm_name("full"), "drafter"),
        "evospec": ArmFacts(arm_name("evospec"), "drafter"),
    },
)


def test_the_first_difference_is_named() -> None:
    assert first_difference(PLAIN, PLAIN) is None
    assert first_difference([5, 6, 9, 8], PLAIN) == "output token 2 is 9, plain decoding's is 7"
    assert first_difference([5, 6], PLAIN) == "output has 2 tokens, plain decoding's has 4"


def test_speed_is_compared_batch_by_batch() -> None:
    batches = [batch_of(0, "law"), batch_of(1, "law"), batch_of(2, "law")]
    turns = [
        turn_of("plain", batch, PLAIN, seconds) for batch, seconds in zip(batches, (1, 2, 4), strict=True)
    ]
    turns += [
        turn_of("full", batch, PLAIN, seconds) for batch, seconds in zip(batches, (0.5, 1, 4), strict=True)
    ]
    plain, full = summarise(turns, SUBJECT, demand_equality)
    assert plain.tokens_per_s == 2.0
    assert full.tokens_per_s == 4.0
    assert full.speedup == 2.0  # of 2, 2 and 1
    assert full.identical_to_plain
    assert full.acceptance_length == 3.0  # 3 and 1 accepted of two drafts
    assert full.acceptance_by_position == (1.0, 0.5, 1.0, 0.0)
    assert full.active_rows == 1000
    assert full.coverage == 0.9
    assert full.draft_ms == pytest.approx(2.0)
    assert full.verify_ms == pytest.approx(10.0)
    assert plain.active_rows == plain.coverage == 0.0
    assert plain.drafter is None
    assert plain.drafting is None
    assert full.drafting == "chain"
    assert full.plan_shares == {"chain-5": 1.0}
    assert full.cycle_ms == pytest.approx(12.0)
    assert full.tokens_per_cycle == 1.5  # 3 tokens after the first, in two cycles
    assert full.decode_tokens_per_s == 3 / 0.8
    assert full.decode_speedup == 2.0
    assert full.ttft_ms == 200.0
    assert full.roofline_ms is None


def test_the_speed_up_that_cycles_predict() -> None:
    batch = batch_of(0, "law")
    plain, full = turn_of("plain", batch, PLAIN, 1), turn_of("full", batch, PLAIN, 1)
    plain.counters.cycles, plain.counters.verify_seconds, plain.counters.draft_seconds = 3, 0.03, 0.0
    full.counters.verify_seconds, full.counters.draft_seconds = 0.02, 0.004
    _, row = summarise([plain, full], SUBJECT, demand_equality)
    # 1.5 tokens per cycle, times a plain step of 10 ms, by a cycle of 12 ms.
    assert row.predicted_speedup == pytest.approx(1.5 * 10 / 12)


def test_a_cycle_is_held_against_its_bytes() -> None:
    traffic = Traffic(target_weights=1000, target_key=1, sliding_key=0, window=0, draft_layer=90)
    facts = ArmFacts(arm_name("full"), "drafter", Roofline(traffic, {"chain-5": 5}, bandwidth=310_000.0))
    subject = Subject("tiny", 1, {**SUBJECT.arms, "full": facts})
    batch = batch_of(0, "law")
    turns = [turn_of("plain", batch, PLAIN, 1), turn_of("full", batch, PLAIN, 1)]
    _, full = summarise(turns, subject, demand_equality)
    # 1000 bytes, 100 keys and 5 steps of 90: 1550 bytes at 310 a millisecond; the cycle took 12 ms.
    assert full.roofline_ms == pytest.approx(5.0)
    assert full.roofline_share == pytest.approx(5 / 12)
    assert full.roofline_tokens_per_s == pytest.approx(1.5 / 0.005)


def test_a_policy_that_changes_one_token_fails_everywhere_and_has_no_speed() -> None:
    law, code = batch_of(0, "law"), batch_of(1, "code")
    turns = [turn_of("plain", law, PLAIN, 1), turn_of("evospec", law, PLAIN, 0.1)]
    turns += [turn_of("plain", code, PLAIN, 1), turn_of("evospec", code, [5, 6, 7, 99], 0.1)]
    _, in_law, _, in_code = summarise(turns, SUBJECT, demand_equality)
    assert in_law.identical_to_plain
    assert in_code.identical_to_plain is False
    for run in (in_law, in_code):
        assert run.failed
        assert run.tokens_per_s == 0.0
        assert run.speedup is None
        assert run.decode_speedup is None
        assert run.predicted_speedup is None
        assert run.failure == "1/0: output token 3 is 99, plain decoding's is 8"


def test_sampled_outputs_are_not_compared() -> None:
    batch = batch_of(0, "law")
    turns = [turn_of("plain", batch, PLAIN, 1), turn_of("full", batch, [1, 2, 3, 4], 0.5)]
    _, full = summarise(turns, SUBJECT, None)
    assert full.identical_to_plain is None
    assert not full.failed
    assert full.speedup == 2.0


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def request_(target: Target) -> Request:
    return Request("law/1", (10, 20, 30), SamplingParams(max_tokens=12))


@pytest.fixture(scope="module")
def output(target: Target, request_: Request) -> list[int]:
    """The target's own greedy output."""
    fingerprints = Fingerprints(target="", drafter="", tokenizer="")
    engine = Engine(target, None, EngineConfig(max_batch=1, max_length=64), fingerprints)
    engine.admit(request_)
    tokens: list[int] = []
    while engine.has_work:
        for step in engine.step():
            tokens.extend(step.tokens)
    return tokens


def test_recomputing_confirms_the_targets_own_output(
    target: Target, request_: Request, output: list[int]
) -> None:
    verdict = NearTies(target)(request_, output, "differs")
    assert verdict.exact
    assert verdict.near_ties == 0


@pytest.mark.parametrize("place", [0, 5, 11])
def test_recomputing_finds_one_corrupted_token(
    target: Target, request_: Request, output: list[int], place: int
) -> None:
    corrupted = list(output)
    corrupted[place] = (corrupted[place] + 1) % 256
    verdict = NearTies(target)(request_, corrupted, "differs")
    assert not verdict.exact
    assert verdict.problem is not None
    assert verdict.problem.startswith(f"law/1: output token {place} is {corrupted[place]}, ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tokens: tokens[:-1], "stops after 11 tokens"),
        (lambda tokens: [*tokens[:4], 256, *tokens[5:]], "goes on after its end-of-sequence token at 4"),
        (lambda tokens: [], "empty"),
    ],
)
def test_an_output_that_ends_wrongly_is_found(
    target: Target, request_: Request, output: list[int], change: object, problem: str
) -> None:
    assert callable(change)
    verdict = NearTies(target)(request_, change(output), "differs")
    assert verdict.problem is not None
    assert problem in verdict.problem


def test_only_a_gap_within_rounding_is_a_near_tie() -> None:
    # 6 units of bfloat16 (2^-8) of the best logit 16 are 0.375.
    logits = torch.tensor([[16.0, 15.7, 3.0], [16.0, 15.5, 3.0]])
    near = judge_places(logits[:1], torch.tensor([1]), "token", 0)
    assert near.exact
    assert near.near_ties == 1
    assert near.largest_gap == pytest.approx(0.3)
    far = judge_places(logits, torch.tensor([0, 1]), "token", 7)
    assert far.problem == "token 8 is 1, 0.50 below the target's best logit (near-ties reach 0.38)"


def test_equal_outputs_are_not_judged() -> None:
    batch = batch_of(0, "law")

    def refuse(request: Request, output: Sequence[int], difference: str) -> Exactness:
        raise AssertionError(difference)

    turn = turn_of("full", batch, PLAIN, 1)
    assert compare_turns(turn, turn_of("plain", batch, PLAIN, 1), refuse).exact
