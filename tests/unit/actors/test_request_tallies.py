"""Observations by adapter version: what is counted, and for whom."""

from __future__ import annotations

import pytest

from actors.request_tallies import KEPT_VERSIONS, RequestTallies
from evospec.align.arm import ArmSums, Observation
from evospec.engine.request import FinishReason, StepOutput


def out(name: str, tokens: int, finish: FinishReason | None = None) -> StepOutput:
    return StepOutput(name, tuple(range(tokens)), finish_reason=finish)


def sums(*seen: Observation) -> ArmSums:
    total = ArmSums()
    for observation in seen:
        total += ArmSums.of(observation)
    return total


@pytest.fixture
def tallies() -> RequestTallies:
    return RequestTallies()


def test_a_request_is_observed_when_it_ends_and_not_before(tallies: RequestTallies) -> None:
    tallies.record([out("a", 1), out("a", 3)], 1, 0.5)  # prefill's token and a cycle in the same step
    tallies.record([out("a", 2)], 1, 0.25)
    assert tallies.sums() == {}
    tallies.record([out("a", 1, "stop")], 1, 0.25)
    assert tallies.sums() == {1: sums(Observation(tokens=6, cycles=3, seconds=1.0))}


def test_requests_that_run_together_are_told_apart(tallies: RequestTallies) -> None:
    tallies.record([out("a", 1), out("a", 4)], 7, 1.0)
    tallies.record([out("b", 1), out("a", 4), out("b", 2)], 7, 1.0)
    tallies.record([out("a", 1, "length"), out("b", 2)], 7, 1.0)
    tallies.record([out("b", 1, "stop")], 7, 1.0)
    assert tallies.sums() == {7: sums(Observation(9, 3, 3.0), Observation(5, 3, 3.0))}


@pytest.mark.parametrize("version", [3, 1, 0], ids=["up", "down", "base"])
def test_a_swap_closes_one_observation_and_opens_another(tallies: RequestTallies, version: int) -> None:
    tallies.record([out("a", 1), out("b", 1), out("a", 2), out("b", 2)], 2, 1.0)
    tallies.record([out("a", 3), out("b", 1, "stop")], version, 2.0)
    tallies.record([out("a", 3, "length")], version, 2.0)
    assert tallies.sums() == {
        2: sums(Observation(2, 1, 1.0), Observation(2, 1, 1.0)),
        version: sums(Observation(1, 1, 2.0), Observation(6, 2, 4.0)),
    }


def test_nothing_is_observed_of_requests_that_had_no_cycle(tallies: RequestTallies) -> None:
    tallies.record([out("waiting", 0, "cancelled"), out("one token", 1, "length")], 1, 1.0)
    tallies.record([out("prefilled", 1)], 1, 1.0)
    tallies.record([out("prefilled", 0, "cancelled")], 1, 1.0)
    assert tallies.sums() == {}


def test_what_a_cancelled_request_had_counts(tallies: RequestTallies) -> None:
    tallies.record([out("a", 1), out("a", 4)], 1, 1.0)
    tallies.record([out("a", 0, "cancelled")], 1, 9.0)
    assert tallies.sums() == {1: sums(Observation(4, 1, 1.0))}


def test_an_id_that_comes_back_is_a_new_request(tallies: RequestTallies) -> None:
    for _ in range(2):
        tallies.record([out("a", 1), out("a", 2, "stop")], 1, 1.0)
    assert tallies.sums() == {1: sums(Observation(2, 1, 1.0), Observation(2, 1, 1.0))}


def test_the_versions_in_use_longest_ago_are_forgotten(tallies: RequestTallies) -> None:
    def serve(version: int) -> None:
        tallies.record([out("a", 1), out("a", 2, "stop")], version, 1.0)

    for version in range(KEPT_VERSIONS + 2):
        serve(version)
        serve(1)  # the stable one, whatever is tried beside it
    assert list(tallies.sums()) == [*range(3, KEPT_VERSIONS + 2), 1]
    assert tallies.sums()[1].requests == KEPT_VERSIONS + 3


def test_sums_handed_out_do_not_change(tallies: RequestTallies) -> None:
    tallies.record([out("a", 1), out("a", 2, "stop")], 1, 1.0)
    before = tallies.sums()
    tallies.record([out("b", 1), out("b", 2, "stop")], 1, 1.0)
    tallies.record([out("c", 1), out("c", 2, "stop")], 2, 1.0)
    assert before == {1: sums(Observation(2, 1, 1.0))}


def test_drafts_and_first_guesses_are_counted(tallies: RequestTallies) -> None:
    """Cycles that decoded plainly are cycles, but no drafts."""
    cycles = [
        StepOutput("a", (1, 2, 3), drafted=5, accepted=2, first_accepted=True),
        StepOutput("a", (4, 5), drafted=4, accepted=1),  # a tree: not with its first guess
        StepOutput("a", (6,)),
        StepOutput("a", (7,), drafted=1, finish_reason="stop"),
    ]
    tallies.record([StepOutput("a", (0,))], 1, 1.0)
    for cycle in cycles:
        tallies.record([cycle], 1, 1.0)
    assert tallies.sums() == {1: sums(Observation(tokens=7, cycles=4, seconds=4.0, drafts=3, hits=1))}
