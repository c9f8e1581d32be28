"""Is one adapter version slower than another? A comparison that may be looked at after every request.

Two rates are compared: tokens per second, and the acceptance length that drafts of one token would
have, 1 + hits per draft (see `Observation`). That of the drafts as they were would compare how the
replicas draft, not what with. Each rate is a ratio of sums over its arm's requests. Its logarithm
is estimated with the delta method's variance, and the difference of two such estimates gets a
confidence sequence: bounds that hold at all looks together, so that stopping at the first one that
tells something costs no error (Robbins 1970, "Statistical methods related to the law of the
iterated logarithm"). They are asymptotic in the number of requests (Waudby-Smith et al. 2024,
"Time-uniform central limit theory and asymptotic confidence sequences"). Few requests are made up
for in three ways: no bounds below `MIN_REQUESTS`; Student's t in place of the normal distribution;
and a variance that is at least the pooled one, so that an arm of few requests, all alike by chance,
does not look certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evospec.align.arm import ArmSums

MIN_REQUESTS = 8  # of each arm, before its variance means anything
# Log ratio that the bounds are made for: a loss of a quarter, which costs users most and shows first.
# A loss of a twentieth takes a fifth more requests to show than with bounds made for that.
EXPECTED_CHANGE = 0.3
# Of the log ratio: replicas with the same version differ by a percent or so, since each one's active
# rows come from what it has served. No number of requests shows less than that.
MIN_VARIANCE = 0.01**2
MAX_EXPONENT = 700.0  # e**709 is the largest double


@dataclass(frozen=True, slots=True)
class Change:
    """By how much one arm's rate differs from another's, as a log ratio.

    The true value is ever above `upper` with a probability of at most the error rate asked for,
    over all looks; the same goes for `lower`.
    """

    estimate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class _LogRate:
    """Logarithm of a ratio of sums; its variance is `spread`, that of one request, over `requests`."""

    value: float
    spread: float
    requests: int


def acceptance_change(arm: ArmSums, reference: ArmSums, error_rate: float) -> Change | None:
    """Change of the acceptance length of single-token drafts from `reference` to `arm`.

    None before both have drafted in `MIN_REQUESTS`.
    """
    if min(arm.drafted_requests, reference.drafted_requests) < MIN_REQUESTS:
        return None
    return _change(_acceptance(arm), _acceptance(reference), error_rate)


def speed_change(arm: ArmSums, reference: ArmSums, error_rate: float) -> Change | None:
    """Change of a request's tokens per second from `reference` to `arm`.

    None before both have served `MIN_REQUESTS`.
    """
    if min(arm.requests, reference.requests) < MIN_REQUESTS or not (arm.seconds and reference.seconds):
        return None
    return _change(_speed(arm), _speed(reference), error_rate)


def _acceptance(arm: ArmSums) -> _LogRate:
    # The residuals of 1 + hits / drafts are those of hits / drafts.
    ratio = arm.hits / arm.drafts
    residuals = arm.hits_squared - 2 * ratio * arm.drafts_hits + ratio**2 * arm.drafts_squared
    return _log_rate(1 + ratio, residuals, arm.drafts, arm.drafted_requests)


def _speed(arm: ArmSums) -> _LogRate:
    ratio = arm.tokens / arm.seconds
    residuals = arm.tokens_squared - 2 * ratio * arm.tokens_seconds + ratio**2 * arm.seconds_squared
    return _log_rate(ratio, residuals, arm.seconds, arm.requests)


def _log_rate(rate: float, residuals: float, denominator: float, requests: int) -> _LogRate:
    """Delta method (Cochran 1977, "Sampling Techniques", chapter 6), in logarithms.

    Args:
        residuals: sum over requests of (numerator - rate * denominator)^2; these residuals add up
            to 0.
        denominator: its sum over requests.
    """
    mean = rate * denominator / requests
    spread = max(residuals, 0.0) / (requests - 1) / mean**2
    return _LogRate(math.log(rate), spread, requests)


def _change(arm: _LogRate, reference: _LogRate, error_rate: float) -> Change:
    variance = _variance(arm, reference)
    errors = mixture_boundary(1 / variance, error_rate)
    errors = student_from_normal(errors, min(arm.requests, reference.requests) - 1)
    estimate = arm.value - reference.value
    width = errors * math.sqrt(variance)
    return Change(estimate, estimate - width, estimate + width)


def _variance(arm: _LogRate, reference: _LogRate) -> float:
    """Of the difference: the arms' own variances or the pooled one, whichever is larger."""
    own = arm.spread / arm.requests + reference.spread / reference.requests
    freedom = arm.requests + reference.requests - 2
    pooled = ((arm.requests - 1) * arm.spread + (reference.requests - 1) * reference.spread) / freedom
    return max(own, pooled * (1 / arm.requests + 1 / reference.requests), MIN_VARIANCE)


def mixture_boundary(information: float, error_rate: float) -> float:
    """Standard errors that an estimate is off by, ever and to one side, with probability `error_rate`.

    The one-sided normal mixture boundary u(V) = sqrt(2 (V + r) log(1 + sqrt((V + r) / r) / (2 a))) of
    Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", divided by
    sqrt(V). The estimate times its information V = 1 / variance is a Brownian motion in V, also when
    the two arms grow unevenly (Jennison and Turnbull 1999, "Group Sequential Methods", chapter 11).
    It mixes over changes that are half-normal with standard deviation 1 / sqrt(r): r is 1 /
    `EXPECTED_CHANGE`^2. At an error rate of 0.005 the bounds are then tightest at V = 130, which is 10
    requests on each side if the log rates of single requests deviate by 0.2.
    """
    prior = EXPECTED_CHANGE**-2
    growth = 1 + information / prior
    return math.sqrt(2 * growth * prior / information * math.log1p(math.sqrt(growth) / (2 * error_rate)))


def student_from_normal(deviate: float, freedom: int) -> float:
    """Quantile of Student's t at the probability that `deviate`, positive, has under a normal distribution.

    Wallace's approximation, solved for t (Wallace 1959, "Bounds on normal approximations to
    Student's and the chi-square distributions").
    """
    exponent = (deviate * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom
    return math.inf if exponent > MAX_EXPONENT else math.sqrt(freedom * math.expm1(exponent))
