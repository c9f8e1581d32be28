"""Which slots still hold the beginning of a prompt: keys that need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evospec.engine.scheduler import SlotMove
from evospec.engine.state import RequestState

_LEAST = 16  # tokens in common below which a copy is not worth its while
_FRESH = 32  # last tokens of a prompt processed in any case: vocabulary and index learn from their states


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `length` positions of a slot are a prompt's own."""

    slot: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Tokens whose keys a slot holds, int64 [positions], and whose they were."""

    tenant: str
    tokens: np.ndarray


class PrefixIndex:
    """What each slot's caches hold, beyond the request that wrote it.

    A tenant finds its own requests only: how long a prompt takes must tell nobody what others ask.
    """

    def __init__(self, slots: int) -> None:
        self._held: list[_Held | None] = [None] * slots

    def record(self, state: RequestState) -> None:
        """Remembers what a request leaves in its slot, or has written so far."""
        length = state.cached if state.emitted else state.prefilled
        tokens = np.asarray(state.tokens[:length], dtype=np.int64)
        self._held[state.slot] = _Held(state.request.tenant, tokens)

    def forget(self, slot: int) -> None:
        """The slot is about to be written anew."""
        self._held[slot] = None

    def move(self, move: SlotMove) -> None:
        """The target slot now holds what the source held; the source still does, too."""
        self.record(move.state)

    def find(self, tenant: str, prompt: Sequence[int], running: Sequence[RequestState]) -> Prefix | None:
        """The longest beginning of a prompt that some slot holds, short of its last tokens."""
        for state in running:
            self.record(state)
        wanted = np.asarray(prompt[:-_FRESH], dtype=np.int64)
        best: Prefix | None = None
        for slot, held in enumerate(self._held):
            if held is None or held.tenant != tenant:
                continue
            length = _common(held.tokens, wanted)
            if length >= _LEAST and (best is None or length > best.length):
                best = Prefix(slot, length)
        return best


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """How many leading elements are equal."""
    shorter = min(len(left), len(right))
    different = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(different[0]) if len(different) else shorter
