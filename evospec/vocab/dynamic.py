"""EvoSpec's dynamic vocabulary: a static core, and what the context at hand calls for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evospec.config import VocabularyConfig
from evospec.vocab.active import ActiveRows, HeadView

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

    def use(self, token_ids: Sequence[int]) -> None:
        """Marks tokens as the latest."""
        for token in token_ids:
            self.pinned.pop(token, None)
            self.pinned[token] = None

    def overflow(self) -> list[int]:
        """Removes and returns the oldest ids beyond the limit."""
        excess = list(self.pinned)[: max(0, len(self.pinned) - self.limit)]
        for token in excess:
            del self.pinned[token]
        return excess


class DynamicVocabulary:
    """Core, context, verification and retrieval feed one buffer of active rows.

    Reports are collected and brought in at once by `apply`, so that a cycle pays
    for one gather at most.
    """

    def __init__(self, rows: ActiveRows, core: np.ndarray, config: VocabularyConfig, max_batch: int) -> None:
        self._rows = rows
        rows.activate(core, CORE_SCORE)
        rows.pin(core)
        # Requests may pin three quarters of what the core leaves; the rest stays for the other sources.
        self._pin_limit = min(config.context_window, (rows.capacity - len(core)) * 3 // 4 // max_batch)
        self._contexts: dict[str, _Context] = {}
        self._used: dict[str, list[int]] = {}
        self._ids: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    @property
    def epoch(self) -> int:
        return self._rows.epoch

    def head(self) -> HeadView:
        return self._rows.view()

    def contains(self, token_ids: np.ndarray) -> np.ndarray:
        return self._rows.contains(token_ids)

    def admit(self, request_id: str, prompt_ids: Sequence[int]) -> None:
        self._contexts[request_id] = _Context(self._pin_limit)
        self.emitted(request_id, prompt_ids)

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._used.setdefault(request_id, []).extend(token_ids)

    def ranked(self, top_ids: np.ndarray) -> None:
        if not top_ids.size:
            return
        scores = RANKED_SCORE * 0.5 ** np.arange(top_ids.shape[1])
        self._propose(top_ids.ravel(), np.tile(scores, top_ids.shape[0]))

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        if not len(token_ids):
            return
        values = np.asarray(weights, dtype=np.float64)
        self._propose(np.asarray(token_ids, dtype=np.int64), RETRIEVED_SCORE * values / values.max())

    def finish(self, request_id: str) -> None:
        context = self._contexts.pop(request_id, None)
        self._used.pop(request_id, None)
        if context is not None and context.pinned:
            self._rows.unpin(np.fromiter(context.pinned, dtype=np.int64))

    def apply(self) -> int:
        self._rows.tick()
        written = 0
        for request_id, tokens in self._used.items():
            written += self._pin_context(self._contexts[request_id], tokens)
        self._used.clear()
        if self._ids:
            ids, scores = np.concatenate(self._ids), np.concatenate(self._scores)
            best_first = np.argsort(-scores, kind="stable")
            written += self._rows.activate(ids[best_first], scores[best_first])
            self._ids.clear()
            self._scores.clear()
        return written

    def _propose(self, ids: np.ndarray, scores: np.ndarray) -> None:
        self._ids.append(ids)
        self._scores.append(scores)

    def _pin_context(self, context: _Context, tokens: list[int]) -> int:
        latest = list(dict.fromkeys(reversed(tokens)))[: context.limit]
        latest.reverse()
        ids = np.asarray(latest, dtype=np.int64)
        fresh = np.asarray([token for token in latest if token not in context.pinned], dtype=np.int64)
        context.use(latest)
        # Unpin first: a full buffer makes room from what just left the window.
        self._rows.unpin(np.asarray(context.overflow(), dtype=np.int64))
        written = self._rows.activate(ids, CONTEXT_SCORE)
        active = self._rows.contains(fresh)
        self._rows.pin(fresh[active])
        for token in fresh[~active].tolist():
            del context.pinned[token]
        return written
