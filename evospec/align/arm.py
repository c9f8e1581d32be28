"""What the requests that one adapter version served add up to: all that comparing versions needs."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Observation:
    """One request's cycles under one version, prefill not counted.

    `seconds` is the wall time of the engine steps that these cycles were part of, less what
    those steps spent on prompts: that depends on who arrives, not on the version. `drafts` of the
    cycles drafted, and in `hits` of these the best guess for the first token was accepted. Tokens
    per cycle depends on how long a draft, or which tree, each replica has chosen; hits per draft
    does not.
    """

    tokens: int
    cycles: int
    seconds: float
    drafts: int = 0
    hits: int = 0


@dataclass(frozen=True, slots=True)
class ArmSums:
    """Sums over observations; they add up over replicas, and what came later is a difference.

    With them the variance of a ratio of means (hits per draft, tokens per second) over requests is
    known without the requests.
    """

    requests: int = 0
    drafted_requests: int = 0
    tokens: int = 0
    cycles: int = 0
    seconds: float = 0.0
    drafts: int = 0
    hits: int = 0
    tokens_squared: int = 0
    seconds_squared: float = 0.0
    tokens_seconds: float = 0.0
    drafts_squared: int = 0
    hits_squared: int = 0
    drafts_hits: int = 0

    @classmethod
    def of(cls, seen: Observation) -> ArmSums:
        return cls(
            requests=1,
            drafted_requests=int(seen.drafts > 0),
            tokens=seen.tokens,
            cycles=seen.cycles,
            seconds=seen.seconds,
            drafts=seen.drafts,
            hits=seen.hits,
            tokens_squared=seen.tokens**2,
            seconds_squared=seen.seconds**2,
            tokens_seconds=seen.tokens * seen.seconds,
            drafts_squared=seen.drafts**2,
            hits_squared=seen.hits**2,
            drafts_hits=seen.drafts * seen.hits,
        )

    def __add__(self, other: ArmSums) -> ArmSums:
        return ArmSums(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, earlier: ArmSums) -> ArmSums:
        return ArmSums(*(mine - its for mine, its in zip(astuple(self), astuple(earlier), strict=True)))
