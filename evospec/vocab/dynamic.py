"""EvoSpec's dynamic vocabulary: a static core, and what the context at hand calls for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from evospec.config import VocabularyConfig
from evospec.vocab.active import ActiveRows
from evospec.vocab.head_rows import HeadView

# Scores of the sources. Only their order and distance to eviction matter; the values are ours.
CORE_SCORE = 1.0  # pinned as well, so never evicted
CONTEXT_SCORE = 1.0
RANKED_SCORE = 0.5  # the target's best token at a position; rank r has half of it per step down
RETRIEVED_SCORE = 0.75  # the heaviest retrieved token; the others in proportion


class _Context:
    """The latest distinct tokens of one request, oldest first: the ids it holds pinned."""

    __slots__ = ("limit", "pinned")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pinned: dict[int, None] = {}

    def use(self, token_ids: Sequence[int]) -> list[int]:
        """Marks tokens as the latest, oldest first, and drops those beyond the limit.

        Returns:
            What is left of them: distinct, latest first.
        """
        latest = list(islice(dict.fromkeys(reversed(token_ids)), self.limit))
        for token in reversed(latest):
            self.pinned.pop(token, None)
            self.pinned[token] = None
        return latest

    def overflow(self) -> list[int]:
        """Removes and returns the oldest ids beyond the limit."""
        excess = list(islice(self.pinned, max(0, len(self.pinned) - self.limit)))
        for token in excess:
            del self.pinned[token]
        return excess


class DynamicVocabulary:
    """Core, context, verification and retrieval feed one buffer of active rows.

    Reports are collected and brought in at once by `apply`, with one copy to the device
    and one gather.
    """

    def __init__(self, rows: ActiveRows, core: np.ndarray, config: VocabularyConfig, max_batch: int) -> None:
        self._rows = rows
        rows.activate(core, CORE_SCORE)
        rows.pin(core)
        rows.write()
        # Requests may pin three quarters of what the core leaves; the rest stays for the other sources.
        self._pin_limit = min(config.context_window, (rows.capacity - len(core)) * 3 // 4 // max_batch)
        self._contexts: dict[str, _Context] = {}
        self._used: dict[str, list[int]] = {}
        self._proposed: dict[int, float] = {}  # best score of each token

    @property
    def epoch(self) -> int:
        return self._rows.epoch

    def head(self) -> HeadView:
        return self._rows.view()

    def admit(self, request_id: str, prompt_ids: Sequence[int]) -> None:
        self._contexts[request_id] = _Context(self._pin_limit)
        self.emitted(request_id, prompt_ids)

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._used.setdefault(request_id, []).extend(token_ids)

    def ranked(self, top_ids: np.ndarray) -> None:
        for rank, token_ids in enumerate(top_ids.T.tolist()):
            score = RANKED_SCORE * 0.5**rank
            for token in token_ids:
                self._propose(token, score)

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        if not len(token_ids):
            return
        heaviest = max(weights)
        for token, weight in zip(token_ids, weights, strict=True):
            self._propose(token, RETRIEVED_SCORE * weight / heaviest)

    def finish(self, request_id: str) -> None:
        context = self._contexts.pop(request_id, None)
        self._used.pop(request_id, None)
        if context is not None and context.pinned:
            self._rows.unpin(np.fromiter(context.pinned, dtype=np.int64))

    def apply(self) -> int:
        self._rows.tick()
        proposed, self._proposed = self._proposed, {}
        fresh: list[tuple[_Context, int]] = []
        left: list[int] = []
        for request_id, tokens in self._used.items():
            context = self._contexts[request_id]
            fresh += [(context, token) for token in dict.fromkeys(tokens) if token not in context.pinned]
            proposed.update(dict.fromkeys(context.use(tokens), CONTEXT_SCORE))
            left += context.overflow()
        self._used.clear()
        if left:
            # Unpin first: a full buffer makes room from what just left the windows.
            self._rows.unpin(np.array(left, dtype=np.int64))
        written = 0
        if proposed:
            ids = np.fromiter(proposed, dtype=np.int64, count=len(proposed))
            scores = np.fromiter(proposed.values(), dtype=np.float64, count=len(proposed))
            written = self._rows.activate_distinct(ids, scores)
        self._pin([(context, token) for context, token in fresh if token in context.pinned])
        self._rows.write()
        return written

    def _pin(self, fresh: list[tuple[_Context, int]]) -> None:
        """Pins what windows took in; a token that found no room leaves them again."""
        if not fresh:
            return
        ids = np.array([token for _, token in fresh], dtype=np.int64)
        active = self._rows.contains(ids)
        self._rows.pin(ids[active])
        for index in np.flatnonzero(~active).tolist():
            context, token = fresh[index]
            del context.pinned[token]

    def _propose(self, token: int, score: float) -> None:
        if score > self._proposed.get(token, 0.0):
            self._proposed[token] = score
