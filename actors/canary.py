"""What is decided about a version in its canary: which replicas run it, and whether it may go on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evospec.align.arm import ArmSums
from evospec.align.sequential import Change, acceptance_change, speed_change
from evospec.config import RolloutConfig


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` holds the figures, for people."""

    kind: Literal["continue", "promote", "revoke"]
    reason: str


def choose_canaries(
    version: int, replicas: Iterable[str], canary: frozenset[str], share: float
) -> frozenset[str]:
    """Replicas that `version` is tried on: at least one, at most `share` of them.

    Those in the canary stay while they are there. The order in which others join depends on version
    and name only: a controller that was restarted goes on alike, and no replica, which may be a slow
    one, is the canary of every version.
    """
    names = set(replicas)
    size = max(1, math.floor(share * len(names)))

    def order(name: str) -> tuple[bool, str]:
        return name not in canary, hashlib.sha256(f"{version}:{name}".encode()).hexdigest()

    return frozenset(sorted(names, key=order)[:size])


def judge(config: RolloutConfig, elapsed_s: float, canary: ArmSums, control: ArmSums) -> Verdict:
    """Verdict on a version that has been in its canary for `elapsed_s`.

    A version as good as the stable one is revoked with a probability of at most `error_rate`, over
    all looks together: half of it for the acceptance length, half for the speed.
    """
    acceptance, speed = _acceptance(config, canary, control), _speed(config, canary, control)
    over = f"over {canary.requests} and {control.requests} requests"
    if acceptance.shown_worse:
        return Verdict("revoke", f"{acceptance.at_most()} {over}")
    if speed.shown_worse:
        return Verdict("revoke", f"{speed.at_most()} {over}; {100 * config.speed_margin:g} % less is allowed")
    figures = f"{acceptance.at_least()}, {speed.at_least()} {over}"
    if elapsed_s >= 60 * config.max_minutes:
        return Verdict("promote", f"not shown to be worse in {config.max_minutes:g} minutes: {figures}")
    if min(canary.requests, control.requests) < config.min_requests:
        return Verdict("continue", f"fewer than {config.min_requests} requests on a side yet: {figures}")
    if elapsed_s < config.soak_s:
        return Verdict("continue", f"{elapsed_s:.0f} of {config.soak_s:g} s over: {figures}")
    if acceptance.looks_worse or speed.looks_worse:
        return Verdict("continue", f"looks worse, but that may be chance: {figures}")
    return Verdict("promote", figures)


@dataclass(frozen=True, slots=True)
class _Figure:
    """A rate of both arms; `allowed` is the loss, as a share, that is not yet worse."""

    text: str
    canary: float
    control: float
    change: Change | None
    allowed: float
    confidence: float

    @property
    def shown_worse(self) -> bool:
        return self.change is not None and self.change.upper < math.log1p(-self.allowed)

    @property
    def looks_worse(self) -> bool:
        return self.canary < (1 - self.allowed) * self.control

    def at_most(self) -> str:
        return self._told("at most", None if self.change is None else self.change.upper)

    def at_least(self) -> str:
        return self._told("at least", None if self.change is None else self.change.lower)

    def _told(self, side: str, bound: float | None) -> str:
        parts = [] if not self.control else [_percent(self.canary / self.control - 1)]
        if bound is not None and math.isfinite(bound):
            parts.append(f"{side} {_percent(math.expm1(bound))} with {100 * self.confidence:g} % confidence")
        values = self.text.format(f"{self.canary:.2f} against {self.control:.2f}")
        return f"{values} ({', '.join(parts)})" if parts else values


def _acceptance(config: RolloutConfig, canary: ArmSums, control: ArmSums) -> _Figure:
    error_rate = config.error_rate / 2
    return _Figure(
        text="acceptance length of one-token drafts {}",
        canary=1 + _ratio(canary.hits, canary.drafts),
        control=1 + _ratio(control.hits, control.drafts),
        change=acceptance_change(canary, control, error_rate),
        allowed=0.0,
        confidence=1 - error_rate,
    )


def _speed(config: RolloutConfig, canary: ArmSums, control: ArmSums) -> _Figure:
    error_rate = config.error_rate / 2
    return _Figure(
        text="{} tokens/s per request",
        canary=_ratio(canary.tokens, canary.seconds),
        control=_ratio(control.tokens, control.seconds),
        change=speed_change(canary, control, error_rate),
        allowed=config.speed_margin,
        confidence=1 - error_rate,
    )


def _ratio(numerator: int, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"
