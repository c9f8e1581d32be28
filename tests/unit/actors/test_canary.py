"""Verdicts on a canary, and the choice of its replicas: pure decisions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.canary import choose_canaries, judge
from evospec.align.arm import ArmSums, Observation
from evospec.config import RolloutConfig

CONFIG = RolloutConfig(min_requests=8, soak_s=20, max_minutes=30)
NAMES = st.sets(st.text("abcdef", min_size=1, max_size=4), max_size=12)


def arm(requests: int, acceptance: float, tokens_per_s: float = 20.0) -> ArmSums:
    """Requests of 60 to 140 tokens, whose hits per draft and speeds vary by a tenth up and down.

    `acceptance` is the length that drafts of one token have, 1 to 2.
    """
    sums = ArmSums()
    for number in range(requests):
        tokens = 60 + 20 * (number % 5)
        wave = 1 + 0.1 * (-1) ** number
        hits = round(tokens * (acceptance - 1) * wave)
        sums += ArmSums.of(Observation(tokens, tokens, tokens / (tokens_per_s * wave), tokens, hits))
    return sums


def test_a_version_that_drafts_worse_is_revoked_with_its_figures() -> None:
    verdict = judge(CONFIG, 1.0, arm(14, 1.04), arm(17, 1.45))
    assert verdict.kind == "revoke"
    assert verdict.reason == (
        "acceptance length of one-token drafts 1.04 against 1.45 "
        "(-28 %, at most -24 % with 99.5 % confidence) over 14 and 17 requests"
    )


def test_a_version_that_is_slower_is_revoked_beyond_the_margin_only() -> None:
    slower = judge(CONFIG, 1.0, arm(40, 1.4, 12.0), arm(40, 1.4, 20.0))
    assert slower.kind == "revoke"
    assert slower.reason == (
        "11.88 against 19.80 tokens/s per request (-40 %, at most -34 % with 99.5 % confidence) "
        "over 40 and 40 requests; 10 % less is allowed"
    )
    assert judge(CONFIG, 1.0, arm(4000, 1.4, 18.5), arm(4000, 1.4, 20.0)).kind == "continue"


def test_one_that_is_not_worse_is_promoted_after_soak_and_requests() -> None:
    better, stable = arm(20, 1.5), arm(20, 1.4)
    soaking = judge(CONFIG, 19.0, better, stable)
    assert (soaking.kind, soaking.reason[:15]) == ("continue", "19 of 20 s over")
    few = judge(CONFIG, 25.0, arm(7, 1.5), stable)
    assert (few.kind, few.reason[:36]) == ("continue", "fewer than 8 requests on a side yet:")
    verdict = judge(CONFIG, 25.0, better, stable)
    assert verdict.kind == "promote"
    assert verdict.reason == (
        "acceptance length of one-token drafts 1.50 against 1.40 "
        "(+7.1 %, at least +1.5 % with 99.5 % confidence), 19.80 against 19.80 tokens/s per request "
        "(+0.0 %, at least -14 % with 99.5 % confidence) over 20 and 20 requests"
    )


def test_one_that_looks_worse_waits_until_time_is_over() -> None:
    worse, stable = arm(10, 1.38), arm(10, 1.4)
    waiting = judge(CONFIG, 60.0, worse, stable)
    assert waiting.kind == "continue"
    assert waiting.reason.startswith("looks worse, but that may be chance: acceptance length")
    in_the_end = judge(CONFIG, 30 * 60.0, worse, stable)
    assert in_the_end.kind == "promote"
    assert in_the_end.reason.startswith("not shown to be worse in 30 minutes: ")


def test_one_that_is_worse_is_not_promoted_when_time_is_over() -> None:
    assert judge(CONFIG, 30 * 60.0, arm(20, 1.05), arm(20, 1.4)).kind == "revoke"


def test_without_requests_time_alone_promotes() -> None:
    assert judge(CONFIG, 100.0, ArmSums(), arm(10, 1.4)).kind == "continue"
    assert judge(CONFIG, 100.0, ArmSums(), ArmSums()).kind == "continue"
    verdict = judge(CONFIG, 1800.0, ArmSums(), ArmSums())
    assert verdict.kind == "promote"
    assert verdict.reason.startswith("not shown to be worse in 30 minutes: ")
    assert verdict.reason.endswith("over 0 and 0 requests")


@given(NAMES.filter(bool), NAMES, st.floats(0.01, 0.5), st.integers(1, 1000))
def test_canaries_are_as_many_as_allowed_and_stay(
    present: set[str], canary: set[str], share: float, version: int
) -> None:
    chosen = choose_canaries(version, present, frozenset(canary), share)
    assert len(chosen) == max(1, math.floor(share * len(present)))
    assert chosen <= present
    still_there = canary & present
    assert still_there <= chosen or chosen <= still_there
    assert choose_canaries(version, sorted(present), chosen, share) == chosen


def test_versions_take_turns_on_the_replicas() -> None:
    names = [f"replica-{number}" for number in range(4)]
    first = {choose_canaries(version, names, frozenset(), 0.25) for version in range(1, 40)}
    assert len(first) == 4


@pytest.mark.parametrize(("replicas", "canaries"), [(1, 1), (2, 1), (7, 1), (8, 2), (11, 2), (12, 3)])
def test_a_quarter_is_rounded_down_to_at_least_one(replicas: int, canaries: int) -> None:
    names = [str(number) for number in range(replicas)]
    assert len(choose_canaries(3, names, frozenset(), 0.25)) == canaries
