"""NanoSpec: a vocabulary made of nothing but the requests at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evospec.engine.request import Request
from evospec.vocab.active import ActiveRows, ActiveSlot
from evospec.vocab.head_rows import HeadView
from evospec.vocab.proposals import NOTHING, Origin, Proposals
from evospec.vocab.protocol import Ranked, Wishes
from evospec.vocab.successor_table import SuccessorTables

TOP_K = 3  # the target's best tokens per position, as in the paper
_SCORE = 1.0  # of every token: what was used longest ago leaves first


@dataclass(slots=True)
class _Held:
    """What one request brought in, and what came since the last `apply`."""

    tokens: set[int] = field(default_factory=set)
    fresh: dict[Origin, list[int]] = field(default_factory=dict)

    def add(self, origin: Origin, token_ids: Iterable[int]) -> None:
        ids = list(token_ids)
        self.tokens.update(ids)
        self.fresh.setdefault(origin, []).extend(ids)

    def take(self) -> dict[Origin, list[int]]:
        taken, self.fresh = self.fresh, {}
        return taken


class NanoSpecVocabulary:
    """Training-free, after NanoSpec (2605.26444): the prompt's tokens, the target's three best tokens at
    every prompt position and every verified one, what it emits, and all draft tokens, the rejected ones too.
    No static list, and nothing outlives a request.

    What differs here: end-of-sequence and special tokens are always active; the paper decodes one
    request at a time, several at once share the union of what they bring; a full buffer (`capacity`)
    drops what was used longest ago.

    Args:
        always: token ids that are always active.
        prompt_ranked: latest prompt positions whose best tokens are taken.
    """

    def __init__(self, rows: ActiveRows, always: np.ndarray, prompt_ranked: int) -> None:
        self._rows = rows
        self._prompt_ranked = prompt_ranked
        self._held: dict[str, _Held] = {}
        rows.activate(always, np.inf, Origin.CORE)
        rows.pin(always)
        rows.write()

    @property
    def wishes(self) -> Wishes:
        return Wishes(ranked=TOP_K, prompt_ranked=self._prompt_ranked, drafted=True)

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
        self._held[request.id] = _Held()
        self._add(request.id, Origin.CONTEXT, request.prompt_ids)

    def ranked(self, best: Ranked) -> None:
        first = 0
        for request_id, count in zip(best.request_ids, best.counts, strict=True):
            ids = best.token_ids[first : first + count]
            self._add(request_id, Origin.VERIFICATION, ids.ravel().tolist())
            first += count

    def drafted(self, token_ids: Mapping[str, np.ndarray]) -> None:
        for request_id, ids in token_ids.items():
            self._add(request_id, Origin.DRAFT, ids.tolist())

    def emitted(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        for request_id, ids in token_ids.items():
            self._add(request_id, Origin.CONTEXT, ids)

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        pass

    def finish(self, request_id: str, *, learn: bool) -> None:
        gone = self._held.pop(request_id, None)
        if gone is None:
            return
        kept = set[int]().union(*(held.tokens for held in self._held.values()))
        self._rows.deactivate(np.fromiter(gone.tokens - kept, dtype=np.int64))

    def timed(self, seconds: float, steps: int, requests: int) -> None:
        pass

    def recore(self, ranks: np.ndarray | None) -> None:
        pass

    def adopt(self, successors: SuccessorTables) -> None:
        pass

    def study(self) -> None:
        pass

    def apply(self) -> int:
        self._rows.tick()
        proposals = dict.fromkeys((Origin.CONTEXT, Origin.VERIFICATION, Origin.DRAFT), NOTHING)
        for held in self._held.values():
            for origin, ids in held.take().items():
                proposals[origin] = Proposals.joined([proposals[origin], Proposals.of(ids, _SCORE)])
        written = self._rows.propose(proposals)
        self._rows.write()
        return written

    def _add(self, request_id: str, origin: Origin, token_ids: Iterable[int]) -> None:
        held = self._held.get(request_id)
        if held is not None:
            held.add(origin, token_ids)
