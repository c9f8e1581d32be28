"""The statistical source: what came, in earlier requests of the tenant, after the tokens at hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evospec.engine.request import Request
from evospec.vocab.proposals import NOTHING, Proposals
from evospec.vocab.successor_table import Successors, SuccessorTables
from evospec.vocab.successors import SuccessorLimits
from evospec.vocab.tenants import TenantIndexes, tenant_key

_SCORE = 0.4  # of a token that always came
_LEAST = 0.05  # tokens that came after a smaller share of a head's occurrences are not proposed
_BACKLOG = 256  # finished requests that wait to be learned from; beyond that the oldest are not
_RECENT = 64  # prompt tokens looked up at first, the latest


@dataclass(frozen=True, slots=True)
class _Reading:
    """A running request: its tenant's key, and what it has said so far."""

    tenant: str
    tokens: list[int]


class StatisticalSource:
    """Learns from finished requests, and looks up the tokens that running ones just used.

    Looked up is what this replica learned itself, and beside it what the version in force brought from the
    whole cluster. Much of the replica's own is in there as well, so that shares are never added up: the
    larger one counts. Every tenant has tables of its own: what one tenant's text taught is never proposed
    to another's requests.

    Args:
        common: see `SuccessorIndex`.
        tenants: indexes kept.
    """

    def __init__(self, vocab_size: int, common: np.ndarray, limits: SuccessorLimits, tenants: int) -> None:
        self._own = TenantIndexes(vocab_size, common, limits, tenants)
        self._cluster: SuccessorTables = {}
        self._readings: dict[str, _Reading] = {}
        self._heads: dict[str, list[int]] = {}  # by tenant: tokens to look up
        self._finished: deque[_Reading] = deque(maxlen=_BACKLOG)

    def admit(self, request: Request) -> None:
        reading = _Reading(tenant_key(request.tenant), list(request.prompt_ids))
        self._readings[request.id] = reading
        self._ask(reading.tenant, reading.tokens[-_RECENT:])

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        reading = self._readings[request_id]
        reading.tokens.extend(token_ids)
        self._ask(reading.tenant, token_ids)

    def finish(self, request_id: str, *, learn: bool) -> None:
        reading = self._readings.pop(request_id, None)
        if reading is not None and learn:
            self._finished.append(reading)

    def adopt(self, tables: SuccessorTables) -> None:
        """Looks up these from now on, in place of those that an earlier version brought."""
        self._cluster = tables
        for reading in self._readings.values():
            self._ask(reading.tenant, reading.tokens[-_RECENT:])

    def study(self) -> None:
        """Learns from one finished request: all that end at once would hold decoding up."""
        if self._finished:
            reading = self._finished.popleft()
            self._own.of(reading.tenant).learn(reading.tokens)

    def propose(self) -> Proposals:
        """What came after the tokens that were used since the last call."""
        heads, self._heads = self._heads, {}
        found: list[Proposals] = []
        for tenant, used in heads.items():
            tokens = np.array(sorted(set(used)), dtype=np.int64)
            tables = (self._own.find(tenant), self._cluster.get(tenant))
            found += [_proposed(table.look_up(tokens)) for table in tables if table is not None]
        if not found:
            return NOTHING
        return Proposals.joined(found)

    def _ask(self, tenant: str, token_ids: Sequence[int]) -> None:
        self._heads.setdefault(tenant, []).extend(token_ids)


def _proposed(found: Successors) -> Proposals:
    likely = found.shares >= _LEAST
    shares = found.shares[likely].astype(np.float64)
    return Proposals(found.token_ids[likely].astype(np.int64), _SCORE * np.minimum(shares, 1.0))
