"""Why an arm is as much faster than another as it is: by acceptance, by cycle, by what is lost between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from evospec.bench.paper.gains import PARTS, part_of
from evospec.bench.paper.view import PartView
from evospec.bench.results import Run


@dataclass(frozen=True, slots=True)
class Cause:
    """One arm (own) against another (base), means over domains.

    ratio = length x cycle x between x prompts, but for rounding of means.

    Attributes:
        ratio: of tokens/s.
        length: of tokens per cycle.
        own_ms, base_ms: of a cycle.
        decode: of tokens/s without prompts.
        head_ms: the draft head of the arm's own cycle; None: it was not broken down.
        longer: milliseconds that parts of its cycle take longer than the other's.
    """

    ratio: float
    length: float
    own_ms: float
    base_ms: float
    decode: float
    head_ms: float | None
    longer: dict[str, float]

    @property
    def cycle(self) -> float:
        """How much shorter a cycle makes it faster."""
        return self.base_ms / self.own_ms

    @property
    def between(self) -> float:
        """Decode speed by what lengths and cycles say: below 1, time is lost between cycles."""
        return self.decode / (self.length * self.cycle)

    @property
    def prompts(self) -> float:
        """What prompt processing, the same for both, leaves of the ratio."""
        return self.ratio / self.decode

    @property
    def without_head(self) -> float | None:
        """The ratio if scoring rows took no time: no choice of rows gives more at this acceptance."""
        if self.head_ms is None:
            return None
        return self.ratio * self.own_ms / (self.own_ms - self.head_ms)

    def length_for(self, bar: float) -> float:
        """Tokens per cycle, by the other's, that the bar takes at these cycles."""
        return self.length * bar / self.ratio


def cause_of(view: PartView, own: str, base: str, domains: Sequence[str]) -> Cause | None:
    """None where something of it was not measured."""
    whole, decode = view.ratio(own, base, domains), view.ratio(own, base, domains, decoding=True)
    mine, theirs = (view.mean(arm, domains, _length) for arm in (own, base))
    own_ms, base_ms = (view.mean(arm, domains, _cycle) for arm in (own, base))
    if whole is None or decode is None or not mine or not theirs or not own_ms or not base_ms:
        return None
    longer: dict[str, float] = {}
    for label in PARTS.values():
        value = partial(part_of, label=label)
        this, other = view.mean(own, domains, value), view.mean(base, domains, value)
        if this is not None and other is not None:
            longer[label] = this - other
    return Cause(
        ratio=whole.value,
        length=mine / theirs,
        own_ms=own_ms,
        base_ms=base_ms,
        decode=decode.value,
        head_ms=view.mean(own, domains, lambda run: part_of(run, "draft head")),
        longer=longer,
    )


def _length(run: Run) -> float | None:
    return run.tokens_per_cycle


def _cycle(run: Run) -> float | None:
    return run.cycle_ms
