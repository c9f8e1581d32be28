"""What versions bring beside weights: the cluster's core, and what is known of successors."""

from __future__ import annotations

from dataclasses import replace

import torch

from evospec.align.trace import Trace
from evospec.models.adapter import AdapterWeights
from evospec.vocab.live_core import LiveCore
from evospec.vocab.tenants import TenantIndexes


class VersionTables:
    """Counts what admitted traces hold.

    Args:
        core: for versions to bring a core; None: they bring none.
        successors: for versions to bring tables of it; likewise.
        most_bytes: of these tables, all tenants together.
    """

    __slots__ = ("_core", "_most_bytes", "_successors")

    def __init__(self, core: LiveCore | None, successors: TenantIndexes | None, most_bytes: int) -> None:
        self._core = core
        self._successors = successors
        self._most_bytes = most_bytes

    def learn(self, trace: Trace) -> None:
        if self._core is not None:
            self._core.learn(trace.token_ids[1:][trace.generated])
        if self._successors is not None:
            self._successors.of(trace.tenant).learn(trace.token_ids, first=trace.first_new)

    def added_to(self, adapter: AdapterWeights) -> AdapterWeights:
        ranks = None if self._core is None else torch.from_numpy(self._core.ranks())
        tables = {} if self._successors is None else self._successors.tables(self._most_bytes)
        return replace(adapter, core_ranks=ranks, successors=tables)

    def begin_with(self, adapter: AdapterWeights) -> None:
        """Goes on from what a version brought."""
        if self._core is not None and adapter.core_ranks is not None:
            self._core.begin_with(adapter.core_ranks.numpy())
        if self._successors is not None:
            self._successors.begin_with(adapter.successors)
