"""What the engine tells a vocabulary policy, and what it reads from one.

All policies speak one protocol, so that peers are compared inside one engine. The
engine tells a policy what happened; `apply` is the only place where rows change. It is
called while a cycle runs, and the change is enqueued behind that cycle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from evospec.engine.request import Request
from evospec.vocab.active import ActiveSlot
from evospec.vocab.head_rows import HeadView
from evospec.vocab.successor_table import SuccessorTables


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a policy wants to be told; nothing else is computed for it.

    Attributes:
        ranked: the target's best tokens per position that decided a token.
        prompt_ranked: latest prompt positions that they are reported for at prefill.
        drafted: whether it wants the draft tokens.
        retrieval: whether it wants what a semantic index finds.
    """

    ranked: int = 0
    prompt_ranked: int = 0
    drafted: bool = False
    retrieval: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The target's best tokens at positions of some requests.

    Attributes:
        request_ids: whose, one after the other.
        counts: positions of each.
        token_ids: of all these positions, best first, int64 [positions, k].
    """

    request_ids: Sequence[str]
    counts: Sequence[int]
    token_ids: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Ranked]) -> Ranked:
        """One after the other; all of one k."""
        return cls(
            list(chain.from_iterable(part.request_ids for part in parts)),
            list(chain.from_iterable(part.counts for part in parts)),
            np.concatenate([part.token_ids for part in parts]),
        )


class VocabularyPolicy(Protocol):
    """Decides which rows of the head the drafter scores."""

    @property
    def wishes(self) -> Wishes: ...

    @property
    def epoch(self) -> int:
        """Grows whenever rows changed; 0 for a vocabulary that never changes."""
        ...

    def head(self) -> HeadView: ...

    def slots(self) -> list[ActiveSlot]:
        """What is active and why, for people to read; empty for a vocabulary that never changes."""
        ...

    def sources(self) -> dict[str, int]:
        """How many active rows each source gave, by its name; empty for a vocabulary that never changes."""
        ...

    def admit(self, request: Request) -> None:
        """A request begins: its prompt is about to be processed."""
        ...

    def ranked(self, best: Ranked) -> None:
        """The target's best tokens where it decided, or read a prompt."""
        ...

    def drafted(self, token_ids: Mapping[str, np.ndarray]) -> None:
        """Draft tokens of a cycle by request, those that were rejected too, int64 [n] each."""
        ...

    def emitted(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        """What a cycle emitted, by request."""
        ...

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None: ...

    def finish(self, request_id: str, *, learn: bool) -> None:
        """A request has ended; unknown ones are ignored.

        Args:
            learn: whether others may profit from its text: it did not opt out, and was not cancelled.
        """
        ...

    def timed(self, seconds: float, steps: int, requests: int) -> None:
        """What a cycle took, of so many draft steps and requests: what rows are worth is weighed by it."""
        ...

    def recore(self, ranks: np.ndarray | None) -> None:
        """What is always active shall follow other frequencies; a vocabulary without a core ignores it.

        Args:
            ranks: token ids by falling frequency, distinct [n]; None returns to those it began with.
        """
        ...

    def adopt(self, successors: SuccessorTables) -> None:
        """What the whole cluster learned of successors, by tenant, takes the place of what was adopted
        before; a vocabulary without a statistical source ignores it.

        Args:
            successors: empty: nothing but what is learned here counts.
        """
        ...

    def apply(self) -> int:
        """Brings what was reported into the active rows, behind what the device does already.

        Returns:
            Number of rows written.
        """
        ...

    def study(self) -> None:
        """Learns from one of the requests that have ended, which takes about as long as `apply`."""
        ...
