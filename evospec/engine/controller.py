"""Chooses how the next cycle drafts, from measured times and recent acceptance.

A plan's worth is the tokens it is expected to emit per row and second. Times are medians of
recent cycles with as many rows; acceptance is counted per draft position and forgotten
slowly, so that the choice follows the traffic. With another number of rows, only plain decoding and
the plan in use are measured anew before anything is chosen: the others' times are guessed from those
they took elsewhere, and measured when that makes them the best.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from statistics import median

from evospec.engine.plan import DraftPlan

_TIMES = 15  # cycles that a time is the median of
_STALE = 30  # cycles after which only a plan's last two times count beside a new one
_TRIALS = 4  # measured cycles before a plan's time counts; one more, unmeasured, warms it up
_FORGET = 0.98  # weight that a row's older acceptance keeps at each new draft
_PROBE_SOON, _PROBE_LATE = 6, 40  # cycles between two looks at other plans: as long as the choice holds, more
_PROBE_WITHIN = 0.7  # plans below this share of the best rate are looked at rarely
_HYSTERESIS = 1.03  # a rival must be this much better
_HOPE = 2.0  # successes credited to plans when deciding which to look at
_PRIOR = 0.5  # acceptance of a position never attempted


@dataclass(slots=True)
class _Acceptance:
    """Accepted and attempted drafts per position, with forgetting."""

    accepted: list[float] = field(default_factory=list)
    attempted: list[float] = field(default_factory=list)

    def count(self, depth: int, accepted: int) -> None:
        missing = depth - len(self.attempted)
        self.accepted.extend([0.0] * missing)
        self.attempted.extend([0.0] * missing)
        for position in range(min(accepted + 1, depth)):
            self.attempted[position] = self.attempted[position] * _FORGET + 1.0
            self.accepted[position] = self.accepted[position] * _FORGET + (position < accepted)

    def expected_tokens(self, depth: int, hope: float = 0.0) -> float:
        """Tokens of a cycle with drafts of this depth, bonus token included.

        Args:
            hope: successes that each position is credited with: counts where few were seen.
        """
        rates = []
        last = _PRIOR
        for position in range(depth):
            if position < len(self.attempted) and self.attempted[position] > 0:
                # One attempt's worth of prior keeps a few chances from deciding.
                seen = self.attempted[position] + 1.0 + hope
                last = (self.accepted[position] + last + hope) / seen
            rates.append(last)
        return 1.0 + sum(accumulate(rates, mul))


@dataclass(slots=True)
class _Measured:
    """Times of one plan at one number of rows, seconds per cycle."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    seconds: float = 0.0
    warm: bool = False
    known: bool = False
    last_cycle: int = 0

    def take(self, seconds: float, cycle: int) -> None:
        if self.warm:
            while cycle - self.last_cycle > _STALE and len(self.times) > 2:
                self.times.popleft()
            self.times.append(seconds)
            self.seconds = median(self.times)
            self.known = self.known or len(self.times) >= _TRIALS
        self.warm = True
        self.last_cycle = cycle


class Controller:
    """One plan for each cycle.

    Args:
        plans: what may be chosen; the first is taken until something is known. With one plan
            nothing is measured.

    Attributes:
        current: the plan that is thought best.
        switches: how often that has changed.
    """

    def __init__(self, plans: Sequence[DraftPlan]) -> None:
        self.plans = tuple(plans)
        self.current = self.plans[0]
        self.switches = 0
        self._cycle = 0
        self._probes = 0
        self._next_probe = 0
        self._patience = _PROBE_SOON
        self._measured: dict[tuple[DraftPlan, int], _Measured] = {}
        # Chains are told from each other by what they score, not by their length; trees are each their own.
        self._chains = {full_head: _Acceptance() for full_head in (False, True)}
        self._trees = {plan: _Acceptance() for plan in self.plans if plan.tree is not None}

    def choose(self, rows: int) -> DraftPlan:
        """The plan for a cycle of this many rows."""
        if len(self.plans) == 1:
            return self.current
        self._cycle += 1
        size = _size_class(rows)
        plans = [plan for plan in self.plans if plan.least_rows <= size]
        if self.current not in plans:
            self.current = plans[0]
        unknown = self._unknown(plans, size)
        if unknown is not None:
            return unknown
        rates = {plan: self._rate(plan, size) for plan in plans}
        best = max(plans, key=rates.__getitem__)
        if best != self.current and rates[best] > _HYSTERESIS * rates[self.current]:
            self.current = best
            self.switches += 1
            self._patience = _PROBE_SOON
        return self._probe(rates, size) or self.current

    def _unknown(self, plans: Sequence[DraftPlan], size: int) -> DraftPlan | None:
        """A plan that must be measured before there is a choice."""
        for plan in plans:
            anchor = plan == self.current or not plan.depth
            if not self._at(plan, size).known and (anchor or not self._sizes_of(plan)):
                return plan
        return None

    def _seconds(self, plan: DraftPlan, size: int) -> float:
        """What a cycle takes at this size; where that was not measured, what it took at the nearest one,
        in proportion to the plan most like it."""
        measured = self._at(plan, size)
        if measured.known:
            return measured.seconds
        nearest = min(self._sizes_of(plan), key=lambda other: max(size, other) / min(size, other))
        both = [
            other for other in self.plans if self._at(other, size).known and self._at(other, nearest).known
        ]
        seconds = self._at(plan, nearest).seconds
        if not both:
            return seconds
        like = min(both, key=lambda other: (other.full_head != plan.full_head, abs(other.nodes - plan.nodes)))
        return seconds * self._at(like, size).seconds / self._at(like, nearest).seconds

    def _sizes_of(self, plan: DraftPlan) -> list[int]:
        """Where the plan has been measured."""
        return [
            size for (other, size), measured in self._measured.items() if other == plan and measured.known
        ]

    def _probe(self, rates: dict[DraftPlan, float], size: int) -> DraftPlan | None:
        """Now and then, the plan that was looked at longest ago: what it would do may have changed."""
        if self._cycle < self._next_probe:
            return None
        self._next_probe = self._cycle + self._patience
        self._patience = min(self._patience * 3 // 2, _PROBE_LATE)
        self._probes += 1
        far = self._probes % 8 == 0
        near = _PROBE_WITHIN * rates[self.current]
        others = [
            plan for plan in rates if plan != self.current and (far or self._rate(plan, size, _HOPE) >= near)
        ]
        return min(others, key=lambda plan: self._at(plan, size).last_cycle, default=None)

    def observe(
        self, plan: DraftPlan, rows: int, seconds: float, depths: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """Takes in a finished cycle.

        Args:
            rows: that it was chosen for.
            depths: how deep each draft that counts could be accepted; `accepted`: how deep it was.
        """
        if len(self.plans) == 1:
            return
        measured = self._at(plan, _size_class(rows))
        measured.take(seconds, self._cycle)
        counts = self._counts(plan)
        for depth, taken in zip(depths, accepted, strict=True):
            counts.count(depth, taken)

    def _rate(self, plan: DraftPlan, size: int, hope: float = 0.0) -> float:
        return self._counts(plan).expected_tokens(plan.depth, hope) / self._seconds(plan, size)

    def _counts(self, plan: DraftPlan) -> _Acceptance:
        return self._chains[plan.full_head] if plan.tree is None else self._trees[plan]

    def _at(self, plan: DraftPlan, size: int) -> _Measured:
        return self._measured.setdefault((plan, size), _Measured())


def _size_class(rows: int) -> int:
    """Numbers of rows that are timed together: up to the next power of two."""
    return 1 << max(rows - 1, 0).bit_length()
