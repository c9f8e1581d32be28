"""The statistical source: what came, in earlier requests of the tenant, after the tokens at hand."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evospec.engine.request import Request
from evospec.vocab.proposals import NOTHING, Proposals
from evospec.vocab.successors import SuccessorIndex, SuccessorLimits

_SCORE = 0.4  # of a token that always came
_LEAST = 0.05  # tokens that came after a smaller share of a head's occurrences are not proposed
_BACKLOG = 256  # finished requests that wait to be learned from; beyond that the oldest are not
_RECENT = 64  # prompt tokens looked up at first, the latest


@dataclass(slots=True)
class _Reading:
    """A running request, and what it has said so far."""

    request: Request
    tokens: list[int]


class StatisticalSource:
    """Learns from finished requests, and looks up the tokens that running ones just used.

    Every tenant has an index of its own: what one tenant's text taught is never proposed to another's
    requests. The index of the tenant that was heard of least recently leaves when there are too many.

    Args:
        common: see `SuccessorIndex`.
        tenants: indexes kept.
    """

    def __init__(self, vocab_size: int, common: np.ndarray, limits: SuccessorLimits, tenants: int) -> None:
        self._vocab_size = vocab_size
        self._common = common
        self._limits = limits
        self._tenants = tenants
        self._indexes: OrderedDict[str, SuccessorIndex] = OrderedDict()
        self._readings: dict[str, _Reading] = {}
        self._heads: dict[str, list[int]] = {}  # by tenant: tokens to look up
        self._finished: deque[_Reading] = deque(maxlen=_BACKLOG)

    def admit(self, request: Request) -> None:
        self._readings[request.id] = _Reading(request, list(request.prompt_ids))
        self._heads.setdefault(request.tenant, []).extend(request.prompt_ids[-_RECENT:])

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        reading = self._readings[request_id]
        reading.tokens.extend(token_ids)
        self._heads.setdefault(reading.request.tenant, []).extend(token_ids)

    def finish(self, request_id: str, *, learn: bool) -> None:
        reading = self._readings.pop(request_id, None)
        if reading is not None and learn:
            self._finished.append(reading)

    def index(self, tenant: str) -> SuccessorIndex:
        """The tenant's index; a new one when there is none."""
        index = self._indexes.pop(tenant, None)
        if index is None:
            index = SuccessorIndex(self._vocab_size, self._common, self._limits)
            if len(self._indexes) == self._tenants:
                self._indexes.popitem(last=False)
        self._indexes[tenant] = index
        return index

    def propose(self) -> Proposals:
        """What came after the tokens that were used since the last call; learns from one finished request
        before that, which takes about as long as a cycle."""
        if self._finished:
            reading = self._finished.popleft()
            self.index(reading.request.tenant).learn(reading.tokens)
        heads, self._heads = self._heads, {}
        found = [
            self._look_up(self._indexes[tenant], used)
            for tenant, used in heads.items()
            if tenant in self._indexes
        ]
        if not found:
            return NOTHING
        return Proposals.joined(found)

    def _look_up(self, index: SuccessorIndex, heads: list[int]) -> Proposals:
        found = index.look_up(np.unique(np.array(heads, dtype=np.int64)))
        likely = found.shares >= _LEAST
        shares = found.shares[likely].astype(np.float64)
        return Proposals(found.token_ids[likely].astype(np.int64), _SCORE * np.minimum(shares, 1.0))
