"""EvoSpec's dynamic vocabulary: a static core, and what the context at hand calls for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evospec.engine.request import Request
from evospec.vocab.active import ActiveRows, ActiveSlot
from evospec.vocab.budget import RowBudget
from evospec.vocab.context import ContextSource
from evospec.vocab.core import CoreLists
from evospec.vocab.head_rows import HeadView
from evospec.vocab.proposals import NOTHING, Origin, Proposals
from evospec.vocab.protocol import Ranked, Wishes
from evospec.vocab.retrieved import RetrievedSource
from evospec.vocab.statistical import StatisticalSource
from evospec.vocab.successor_table import SuccessorTables
from evospec.vocab.verification import VerificationSource
from evospec.vocab.watched import WatchedRows

# Scores only order rows for eviction; all values here are ours.
CORE_SCORE = np.inf  # pinned as well
FREQUENT_SCORE = 0.02  # of the most frequent token outside the core; the last one has half of it
_REFILL = 64  # cycles after which frequent tokens come back in place of rows that nobody asks for


@dataclass(frozen=True, slots=True)
class Sources:
    """Where active tokens come from beside the core; each may be absent."""

    context: ContextSource | None = None
    verification: VerificationSource | None = None
    statistical: StatisticalSource | None = None
    semantic: RetrievedSource | None = None


class DynamicVocabulary:
    """A pinned core, and sources that feed one buffer of active rows.

    What is reported goes to the sources; `apply` takes all they propose in at once, with one copy to the
    device and one gather. Rows that no source wants hold the next most frequent tokens.

    Args:
        lists: core and frequent tokens.
        budget: how many rows are kept.
        lists_of: what they are by other ranks; None: they stay.
    """

    def __init__(
        self,
        rows: ActiveRows,
        lists: CoreLists,
        sources: Sources,
        budget: RowBudget,
        lists_of: Callable[[np.ndarray], CoreLists] | None = None,
    ) -> None:
        self._rows = rows
        self._sources = sources
        self._budget = budget
        self._own_lists, self._lists_of = lists, lists_of
        self._lists = lists  # in force
        self._core = lists.core
        self._frequent = _falling(lists.frequent)
        self._refill = 0  # cycles until then
        self._emitted: list[int] = []  # since the last `apply`
        self._watched = WatchedRows(rows, budget)
        rows.activate(lists.core, CORE_SCORE, Origin.CORE)
        rows.pin(lists.core)
        self.apply()

    @property
    def wishes(self) -> Wishes:
        sources = self._sources
        return Wishes(
            ranked=0 if sources.verification is None else sources.verification.top_k,
            prompt_ranked=0 if sources.verification is None else sources.verification.prompt_ranked,
            retrieval=sources.semantic is not None,
        )

    @property
    def epoch(self) -> int:
        return self._rows.epoch

    def head(self) -> HeadView:
        return self._rows.view()

    def slots(self) -> list[ActiveSlot]:
        return self._rows.slots()

    def sources(self) -> dict[str, int]:
        return self._rows.sources()

    def admit(self, request: Request) -> None:
        if self._sources.context is not None:
            self._sources.context.admit(request.id, request.prompt_ids)
        if self._sources.statistical is not None:
            self._sources.statistical.admit(request)

    def ranked(self, best: Ranked) -> None:
        if self._sources.verification is not None:
            self._sources.verification.ranked(best.token_ids)

    def drafted(self, token_ids: Mapping[str, np.ndarray]) -> None:
        pass  # a draft holds active tokens only

    def emitted(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        context, statistical = self._sources.context, self._sources.statistical
        for request_id, ids in token_ids.items():
            self._emitted.extend(ids)
            if context is not None:
                context.emitted(request_id, ids)
            if statistical is not None:
                statistical.emitted(request_id, ids)

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        if self._sources.semantic is not None:
            self._sources.semantic.retrieved(token_ids, weights)

    def finish(self, request_id: str, *, learn: bool) -> None:
        if self._sources.context is not None:
            self._sources.context.finish(request_id)
        if self._sources.statistical is not None:
            self._sources.statistical.finish(request_id, learn=learn)

    def timed(self, seconds: float, steps: int, requests: int) -> None:
        self._budget.timed(seconds, steps, requests)

    def recore(self, ranks: np.ndarray | None) -> None:
        if self._lists_of is None:
            return
        lists = self._own_lists if ranks is None else self._lists_of(ranks)
        if lists.same(self._lists) and len(self._core) == len(lists.core):  # as most versions have it
            return
        self._lists = lists
        left = np.setdiff1d(self._core, lists.core)
        self._rows.unpin(left)
        self._rows.rescore(left, FREQUENT_SCORE)
        new = np.setdiff1d(lists.core, self._core)
        self._rows.activate(new, CORE_SCORE, Origin.CORE)
        new = new[self._rows.contains(new)]  # running requests may pin every other row
        self._rows.pin(new)
        self._core = np.concatenate((np.setdiff1d(self._core, left), new))
        self._frequent = _falling(lists.frequent)

    def adopt(self, successors: SuccessorTables) -> None:
        if self._sources.statistical is not None:
            self._sources.statistical.adopt(successors)

    def study(self) -> None:
        if self._sources.statistical is not None:
            self._sources.statistical.study()

    def apply(self) -> int:
        if self._emitted:
            self._watched.emitted(self._emitted)
            self._emitted.clear()
        self._rows.tick()
        written = self._rows.propose(self._proposals())
        if self._sources.context is not None:
            self._sources.context.pin()
        self._watched.left(self._rows.write())
        return written

    def _proposals(self) -> dict[Origin, Proposals]:
        sources = self._sources
        return {
            Origin.FREQUENT: self._due(),
            Origin.CONTEXT: NOTHING if sources.context is None else sources.context.propose(),
            Origin.VERIFICATION: NOTHING if sources.verification is None else sources.verification.propose(),
            Origin.STATISTICAL: NOTHING if sources.statistical is None else sources.statistical.propose(),
            Origin.SEMANTIC: NOTHING if sources.semantic is None else sources.semantic.propose(),
        }

    def _due(self) -> Proposals:
        """The frequent tokens, whenever it is time for them."""
        self._refill -= 1
        if self._refill > 0:
            return NOTHING
        self._refill = _REFILL
        self._rows.limit(self._budget.review())
        self._watched.choose()
        return self._frequent


def _falling(frequent: np.ndarray) -> Proposals:
    return Proposals(frequent, FREQUENT_SCORE * np.linspace(1.0, 0.5, len(frequent)))
