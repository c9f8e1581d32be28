"""A part's results, asked by arm and domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from evospec.bench.paper.domains import headline_domains
from evospec.bench.results import Results, Run
from evospec.bench.turn_speed import TurnSpeed


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much faster than another arm on the same batches.

    Attributes:
        value: mean over domains of the medians over their batches.
        low, high: quartiles over all these batches.
    """

    value: float
    low: float
    high: float
    batches: int


@dataclass(frozen=True, slots=True)
class PartView:
    results: Results

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.domain for run in self.results.runs))

    @property
    def headline(self) -> tuple[str, ...]:
        """The domains that the claim is about."""
        return headline_domains(self.domains)

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.name for run in self.results.runs))

    def has(self, *arms: str) -> bool:
        return set(arms) <= set(self.arms)

    def failed(self, arm: str) -> str | None:
        """Why an arm's speed does not count; None: it does."""
        return next(
            (run.failure or "failed" for run in self.results.runs if run.name == arm and run.failed), None
        )

    def runs(self, arm: str, domains: Sequence[str]) -> list[Run]:
        return [run for run in self.results.runs if run.name == arm and run.domain in domains]

    def mean(self, arm: str, domains: Sequence[str], value: Callable[[Run], float | None]) -> float | None:
        """Over domains; None unless all have it."""
        found = [value(run) for run in self.runs(arm, domains)]
        known = [one for one in found if one is not None]
        return fmean(known) if known and len(known) == len(domains) else None

    def ratio(
        self, arm: str, against: str, domains: Sequence[str], *, decoding: bool = False
    ) -> Ratio | None:
        """Of tokens/s, turn by turn; None where either arm failed or is missing.

        Args:
            decoding: without prompt processing and the tokens that it yields.
        """
        if self.failed(arm) or self.failed(against):
            return None
        pairs = {domain: self._pairs(arm, against, domain, decoding) for domain in domains}
        if not pairs or not all(pairs.values()):
            return None
        pooled = [one for members in pairs.values() for one in members]
        low, high = np.percentile(pooled, [25, 75])
        value = fmean(float(np.median(members)) for members in pairs.values())
        return Ratio(value, float(low), float(high), len(pooled))

    def _pairs(self, arm: str, against: str, domain: str, decoding: bool) -> list[float]:
        def speed(turn: TurnSpeed) -> float:
            return turn.decode_tokens_per_s if decoding else turn.tokens_per_s

        turns = [turn for turn in self.results.turns if turn.domain == domain]
        other = {turn.number: speed(turn) for turn in turns if turn.arm == against}
        own = {turn.number: speed(turn) for turn in turns if turn.arm == arm}
        return [own[number] / other[number] for number in own if other.get(number) and own[number]]
