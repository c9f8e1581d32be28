"""The sequential test behind canaries: how often it is wrong, and how soon it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from actors.canary import judge
from evospec.align.arm import ArmSums, Observation
from evospec.align.sequential import (
    EXPECTED_CHANGE,
    MIN_REQUESTS,
    Change,
    acceptance_change,
    mixture_boundary,
    speed_change,
    student_from_normal,
)
from evospec.config import RolloutConfig
from tests.unit.canary_traffic import Requests, Trials, draw_requests

Compare = Callable[[ArmSums, ArmSums, float], Change | None]

CONFIG = RolloutConfig(soak_s=1e9, max_minutes=1e9)  # nothing ends a run but being worse
SPEED_SPREAD = 0.05  # of replicas, up and down
CHUNK = 100
LEAST_ERRORS = 3.0  # standard errors short of which nothing is revoked at the default error rate


def arm(*seen: tuple[int, float, int, int]) -> ArmSums:
    """Tokens, seconds, drafts and hits of each request."""
    return reduce(
        add, (ArmSums.of(Observation(one[0], one[0], one[1], one[2], one[3])) for one in seen), ArmSums()
    )


def trials(
    seed: int, runs: int, requests: int, share: float, *, factor: float = 1.0, useless: bool = False
) -> Iterator[Trials]:
    """Canaries with `share` of the requests; in each run the replicas' speeds differ."""
    random = np.random.default_rng(seed)
    for _ in range(runs // CHUNK):
        shape = (CHUNK, requests)
        of_canary = random.random(shape) < share
        stable = draw_requests(random, shape)
        candidate = draw_requests(random, shape, factor=factor, useless=useless)
        slower = 1 + random.uniform(-SPEED_SPREAD, SPEED_SPREAD, (2, CHUNK, 1))
        yield Trials.of(
            Requests(
                np.where(of_canary, candidate.tokens, stable.tokens),
                np.where(of_canary, candidate.seconds * slower[0], stable.seconds * slower[1]),
                np.where(of_canary, candidate.drafts, stable.drafts),
                np.where(of_canary, candidate.hits, stable.hits),
            ),
            of_canary,
        )


def revoked_after(played: Trials) -> list[tuple[int, int] | None]:
    """Requests of canary and control when each run was revoked, looked at after every request.

    Looks that are not `suspicious` are left out: they can't revoke, and they are nearly all.
    """
    return [_first_revocation(played, run, looks) for run, looks in enumerate(suspicious(played))]


def _first_revocation(played: Trials, run: int, looks: np.ndarray) -> tuple[int, int] | None:
    for look in np.flatnonzero(looks):
        canary, control = played.arms(run, look)
        if judge(CONFIG, 0.0, canary, control).kind == "revoke":
            return canary.requests, control.requests
    return None


def suspicious(played: Trials) -> np.ndarray:
    """Looks [runs, requests] at which canaries are worse by `LEAST_ERRORS` of the arms' own errors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        drafts_worse = _worse(played, "hits", "drafts", 1.0, 0.0)
        slower = _worse(played, "tokens", "seconds", 0.0, math.log1p(-CONFIG.speed_margin))
    enough = np.minimum(played.canary["requests"], played.control["requests"]) >= MIN_REQUESTS
    return (drafts_worse | slower) & enough


def _worse(played: Trials, above: str, below: str, offset: float, limit: float) -> np.ndarray:
    canary, control = (_log_rate(sums, above, below, offset) for sums in (played.canary, played.control))
    return canary[0] - control[0] - limit < -LEAST_ERRORS * np.sqrt(canary[1] + control[1])


def _log_rate(
    sums: dict[str, np.ndarray], above: str, below: str, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of `offset` plus a ratio of sums, and its variance; [runs, requests] each."""
    ratio = sums[above] / sums[below]
    product = sums["drafts_hits"] if above == "hits" else sums["tokens_seconds"]
    residuals = sums[f"{above}_squared"] - 2 * ratio * product + ratio**2 * sums[f"{below}_squared"]
    requests, rate = sums["requests"], offset + ratio
    variance = np.maximum(residuals, 0) * requests / (requests - 1) / (rate * sums[below]) ** 2
    return np.log(rate), variance


def test_a_version_as_good_as_the_stable_one_is_revoked_in_one_percent_of_runs_at_most() -> None:
    """2,000 runs of 3,000 requests, each looked at 3,000 times, for one canary of two and of four."""
    outcomes = [
        outcome
        for seed, share in enumerate((0.5, 0.25))
        for played in trials(seed, 1000, 3000, share)
        for outcome in revoked_after(played)
    ]
    assert len(outcomes) == 2000
    revoked = [outcome for outcome in outcomes if outcome is not None]
    assert len(revoked) / len(outcomes) <= CONFIG.error_rate
    assert revoked  # else the simulation, or the test, sees nothing at all


def test_looks_left_out_in_simulations_revoke_nothing() -> None:
    informations = np.geomspace(1e-3, 1e9, 500)
    assert min(mixture_boundary(float(one), CONFIG.error_rate / 2) for one in informations) > LEAST_ERRORS
    played = next(trials(5, 100, 60, 0.5, useless=True))
    for run, look in np.argwhere(~suspicious(played))[::7]:
        assert judge(CONFIG, 0.0, *played.arms(run, look)).kind == "continue"


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_useless_version_is_revoked_within_twenty_requests(share: float) -> None:
    outcomes = revoked_after(next(trials(2, 100, 400, share, useless=True)))
    after = [outcome[0] for outcome in outcomes if outcome is not None]
    assert len(after) == len(outcomes)
    assert np.median(after) <= 15
    assert np.quantile(after, 0.9) <= 25


def test_a_version_that_is_a_twentieth_worse_is_revoked_in_the_end() -> None:
    """Of 1.45 tokens with one-token drafts, 1.38 are left."""
    outcomes = revoked_after(next(trials(3, 100, 8000, 0.5, factor=0.84)))
    assert sum(outcome is not None for outcome in outcomes) >= 95


def test_a_better_version_is_not_revoked() -> None:
    assert not any(revoked_after(next(trials(4, 100, 1000, 0.5, factor=1.1))))


REQUESTS = st.builds(
    lambda tokens, seconds, drafts, hits: (tokens, seconds, drafts, min(hits, drafts)),
    st.integers(1, 500),
    st.floats(0.01, 10.0),
    st.integers(1, 500),
    st.integers(0, 500),
)


@given(st.lists(REQUESTS, min_size=8, max_size=20), st.lists(REQUESTS, min_size=8, max_size=20))
def test_bounds_hold_the_estimate_and_turn_round_with_the_arms(
    seen: list[tuple[int, float, int, int]], others: list[tuple[int, float, int, int]]
) -> None:
    for compare in (acceptance_change, speed_change):
        there, back = compare(arm(*seen), arm(*others), 0.01), compare(arm(*others), arm(*seen), 0.01)
        assert there is not None
        assert back is not None
        assert there.lower <= there.estimate <= there.upper
        assert there.estimate == pytest.approx(-back.estimate)
        assert there.upper == pytest.approx(-back.lower)
        narrower = compare(arm(*seen), arm(*others), 0.1)
        assert narrower is not None
        assert narrower.upper <= there.upper


def test_estimates_are_ratios_of_sums() -> None:
    some = arm(*[(10, 1.0, 10, 5)] * 6, *[(100, 5.0, 50, 5)] * 6)
    others = arm(*[(10, 0.5, 10, 4)] * 12)
    acceptance, speed = acceptance_change(some, others, 0.01), speed_change(some, others, 0.01)
    assert acceptance is not None
    assert acceptance.estimate == pytest.approx(math.log((1 + 60 / 360) / 1.4))
    assert speed is not None
    assert speed.estimate == pytest.approx(math.log((660 / 36) / 20))


@pytest.mark.parametrize("compare", [acceptance_change, speed_change])
def test_the_width_is_that_of_the_delta_method(compare: Compare) -> None:
    """The boundary, for as few requests, times the difference's standard error."""
    random = np.random.default_rng(0)
    sides = [draw_requests(random, (1, size)) for size in (300, 300)]
    arms = []
    for one in sides:
        columns = (part[0].tolist() for part in (one.tokens, one.seconds, one.drafts, one.hits))
        arms.append(arm(*zip(*columns, strict=True)))
    change = compare(arms[0], arms[1], 0.01)
    assert change is not None
    variance = 0.0
    for one in sides:
        above, below = one.drafts + one.hits, one.drafts
        if compare is speed_change:
            above, below = one.tokens, one.seconds
        influence = above / above.mean() - below / below.mean()
        variance += influence.var() / influence.size
    errors = student_from_normal(mixture_boundary(1 / variance, 0.01), 299)
    expected = errors * math.sqrt(variance)
    assert change.upper - change.estimate == pytest.approx(expected, rel=0.01)


def test_few_requests_are_no_evidence() -> None:
    few, enough = arm(*[(10, 1.0, 9, 3)] * (MIN_REQUESTS - 1)), arm(*[(20, 1.0, 9, 3)] * MIN_REQUESTS)
    assert acceptance_change(few, enough, 0.01) is None
    assert speed_change(enough, few, 0.01) is None
    assert acceptance_change(ArmSums(), enough, 0.01) is None


def test_requests_that_did_not_draft_tell_nothing_of_acceptance() -> None:
    plain, drafted = (10, 1.0, 0, 0), (10, 1.0, 10, 4)
    seldom, enough = arm(*[plain] * 50, *[drafted] * 7), arm(*[drafted] * 20)
    assert acceptance_change(seldom, enough, 0.01) is None
    assert speed_change(seldom, enough, 0.01) is not None
    mixed = arm(*[plain] * 50, *[drafted] * 20)
    assert acceptance_change(mixed, enough, 0.01) == acceptance_change(enough, enough, 0.01)


def test_how_long_drafts_are_makes_no_difference() -> None:
    """Chains of five and of one, of the same drafter: unlike tokens per cycle, hits per draft are alike."""
    chance, random = 0.6, np.random.default_rng(2)

    def served(depth: int) -> ArmSums:
        stands = random.random((400, 40, depth)) < chance
        accepted = stands.cumprod(axis=2).sum(axis=2)
        return arm(*[(40 + int(own.sum()), 1.0, 40, int((own > 0).sum())) for own in accepted])

    longer, short = served(5), served(1)
    assert longer.tokens > 1.3 * short.tokens
    change = acceptance_change(short, longer, 0.01)
    assert change is not None
    assert change.lower < 0 < change.upper


def test_an_arm_of_few_requests_that_are_all_alike_is_not_certain() -> None:
    """One request in fifty drafts well: eight that did not tell nothing about the arm."""
    control = arm(*[(20, 1.0, 10, 0)] * 9800, *[(20, 1.0, 10, 10)] * 200)
    change = acceptance_change(arm(*[(20, 1.0, 10, 0)] * MIN_REQUESTS), control, 0.005)
    assert change is not None
    assert change.estimate < 0 < change.upper


def test_a_difference_as_between_replicas_of_one_version_is_no_evidence() -> None:
    """However many requests show it: 1.45 against 1.41 and against 1.37."""

    def served(hits: int) -> ArmSums:
        return ArmSums(*(100_000 * part for part in astuple(arm((20, 1.0, 1000, hits)))))

    barely, clearly = (acceptance_change(served(hits), served(450), 0.005) for hits in (410, 370))
    assert barely is not None
    assert barely.estimate < -0.025
    assert barely.upper > 0
    assert clearly is not None
    assert clearly.upper < 0


def test_requests_that_are_all_alike_can_be_compared() -> None:
    same, less = arm(*[(20, 1.0, 10, 5)] * 10), arm(*[(20, 1.0, 10, 0)] * 10)
    equal, worse = acceptance_change(same, same, 0.01), acceptance_change(less, same, 0.01)
    assert equal is not None
    assert equal.lower < 0 < equal.upper
    assert worse is not None
    assert worse.upper < 0


@pytest.mark.parametrize("information", [0.1, 10.0, 130.0, 1e4, 1e7])
def test_the_boundary_is_that_of_the_mixture_and_a_little_wider(information: float) -> None:
    """The exact one is where the mixture over half-normal changes reaches 1 / error_rate."""
    prior, error_rate = EXPECTED_CHANGE**-2, 0.005

    def excess(errors: float) -> float:
        deviate = errors * math.sqrt(information / (information + prior))
        log_mixture = math.log(2) + deviate**2 / 2 + stats.norm.logcdf(deviate)
        return log_mixture + math.log(prior / (information + prior)) / 2 + math.log(error_rate)

    exact = optimize.brentq(excess, 0.0, 1000.0)
    assert exact <= mixture_boundary(information, error_rate) <= 1.01 * exact


@pytest.mark.parametrize("freedom", [7, 12, 30, 300])
@pytest.mark.parametrize("deviate", [3.0, 3.5, 4.5])
def test_quantiles_of_students_t_are_close_and_never_short(freedom: int, deviate: float) -> None:
    exact = stats.t.isf(stats.norm.sf(deviate), freedom)
    assert 0.9999 * exact <= student_from_normal(deviate, freedom) <= 1.03 * exact


def test_no_evidence_overflows_to_no_bound() -> None:
    assert student_from_normal(100.0, 7) == math.inf
