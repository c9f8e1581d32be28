"""What the drafter's cache holds for requests, on its way to their traces."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evospec.align.recorder import TraceRecorder
from evospec.align.window import RequestPast, Stamp
from evospec.engine.host_copy import Fetched, fetch
from evospec.engine.state import RequestState
from evospec.engine.stats import EngineStats
from evospec.models.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class FetchedPast:
    """Keys and values on their way to the host."""

    first: int
    pairs: Fetched
    stamp: Stamp

    def read(self) -> RequestPast:
        return RequestPast(self.first, self.pairs.tensor(), self.stamp)


class TracePasts:
    """Fetches what trace windows begin behind, when they are about to: learning may come so late that
    another request has the slot.

    Args:
        cache: the drafter's.
        stats: say which versions are in force.
    """

    __slots__ = ("_cache", "_clock", "_most", "_stats")

    def __init__(self, recorder: TraceRecorder, cache: KVCache, stats: EngineStats) -> None:
        self._cache = cache
        self._stats = stats
        self._clock = recorder.clock()
        self._most = recorder.past

    def prompt(self, state: RequestState, features: int) -> FetchedPast:
        """For a request whose prompt is complete, with target features of so many of its latest positions
        before the last."""
        context = self._clock.open(state.request.id, features)
        return self._fetch(state.slot, state.prompt_length - 1 - context)

    def emitted(self, state: RequestState, tokens: int) -> FetchedPast | None:
        """For a request that has emitted so many tokens, if a window fills up with them."""
        if not self._clock.emitted(state.request.id, tokens):
            return None
        return self._fetch(state.slot, state.cached - state.pending)

    def finish(self, request_id: str) -> None:
        self._clock.finish(request_id)

    @torch.inference_mode()
    def _fetch(self, slot: int, end: int) -> FetchedPast:
        """Of a slot's positions before `end`, the latest."""
        end = max(end, 0)
        first = max(end - self._most, 0)
        keys, values = (
            side[0][slot, :, first:end] for side in (self._cache.keys, self._cache.values)
        )  # [kv_heads, positions, head_dim]
        stamp = Stamp(self._stats.adapter_version, self._stats.vocabulary_epoch)
        return FetchedPast(first, fetch(torch.stack((keys, values)).bfloat16()), stamp)
