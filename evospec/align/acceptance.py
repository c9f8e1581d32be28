"""Acceptance length of greedy drafting, simulated on text that is known already."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AcceptanceCounts:
    """Numerator and denominator of an acceptance length.

    Attributes:
        accepted_by_step: cycles whose draft was accepted to this step or further [steps].
    """

    cycles: int = 0
    tokens: int = 0
    accepted_by_step: tuple[int, ...] = field(default=(), compare=False)

    @property
    def acceptance_length(self) -> float:
        """Tokens per cycle, bonus token included; 1.0 before any cycle."""
        return self.tokens / self.cycles if self.cycles else 1.0

    @property
    def acceptance_by_step(self) -> tuple[float, ...]:
        """Share of cycles whose draft was accepted to this step or further; the acceptance length
        is 1 plus their sum."""
        return tuple(accepted / self.cycles for accepted in self.accepted_by_step) if self.cycles else ()

    def __add__(self, other: AcceptanceCounts) -> AcceptanceCounts:
        pairs = zip_longest(self.accepted_by_step, other.accepted_by_step, fillvalue=0)
        return AcceptanceCounts(
            self.cycles + other.cycles, self.tokens + other.tokens, tuple(map(sum, pairs))
        )


def acceptance_length(matches: Tensor) -> AcceptanceCounts:
    """Runs draft-and-verify cycles over consecutive roots of one text.

    A cycle at root r accepts the leading matches of row r, emits one token more, and the
    next cycle starts that many roots later. Every root given has its whole draft inside the
    text: leaving out cycles that the text cuts short, by where they start and not by how
    they end, keeps the ratio unbiased.

    Args:
        matches: whether draft step j from root r, after correct steps before it, predicts
            the text's own token; bool [roots, steps].

    Example: rows (1 1), (1 0), (0 1), (1 0). The first cycle accepts 2 and goes to root 3,
    which accepts 1: 2 cycles, 5 tokens.
    """
    accepted: list[int] = matches.int().cumprod(dim=1).sum(dim=1).tolist()
    by_step = [0] * matches.shape[1]
    root = cycles = 0
    while root < len(accepted):
        for step in range(accepted[root]):
            by_step[step] += 1
        root += accepted[root] + 1
        cycles += 1
    # The last cycle's tokens may lie past the last root: they are inside the text all the same.
    return AcceptanceCounts(cycles=cycles, tokens=root, accepted_by_step=tuple(by_step))
