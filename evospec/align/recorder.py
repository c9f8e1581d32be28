"""Traces in the making: collects what each request's cycles yielded, window by window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.align.int8_features import quantised
from evospec.align.trace import Trace
from evospec.align.trace_budget import TraceBudget
from evospec.align.trace_check import finite_bfloat16
from evospec.align.window import Cycle, Provenance, RequestPast, TraceWindow, WindowClock, WindowLayout
from evospec.config import AlignmentConfig
from evospec.vocab.tenants import tenant_key
from evospec.wire import Fingerprints

FEWEST_SCORED = 4  # a shorter rest of a request costs more context bytes than it teaches


@dataclass(slots=True)
class RecorderCounts:
    """Monotonic counters, of windows but the first."""

    skipped: int = 0  # requests that came while recording was behind, or over its budget
    recorded: int = 0
    dropped: int = 0  # the outbox was full: oldest first
    short: int = 0  # fewer than FEWEST_SCORED positions when the request ended
    nonfinite: int = 0  # NaN or infinity in what the models computed


class TraceRecorder:
    """Assembles the traces of all running requests of one engine.

    Per request, the engine calls `prompt` once, `emitted` with what prefill (the first
    token) and all cycles yielded, then `finish`. Arrays are kept as they are until a window is complete,
    features on their device: nobody may write to them. Calls for a request that `prompt` did not open
    are ignored: one that opted out stays unrecorded.

    A window holds at most `config.trace_positions` positions. It begins with up to
    `context` positions that were prompt, or that the previous window of the request has
    scored: they give the drafter left context, and `Trace.generated` is False for them,
    so that no position is learned or judged twice.

    Complete traces wait in an outbox of `config.trace_buffer_mb`, oldest dropped first, and are paid for
    from `budget`: whether there is any left is asked before a request is opened.
    """

    def __init__(self, config: AlignmentConfig, fingerprints: Fingerprints) -> None:
        self._config = config
        self._fingerprints = fingerprints
        self._capacity = int(config.trace_buffer_mb * 2**20)
        self._open: dict[str, TraceWindow] = {}
        self._outbox: deque[Trace] = deque()
        self._outbox_bytes = 0
        self.budget = TraceBudget(config.trace_mb_per_s * 2**20)
        self.counts = RecorderCounts()

    @property
    def context(self) -> int:
        """Unscored positions that a window begins with, at most: a quarter of it."""
        return self._config.trace_positions // 4

    @property
    def past(self) -> int:
        """Positions before a window that it brings the drafter's keys and values of, at most."""
        return self._config.trace_past

    def clock(self) -> WindowClock:
        """Tells when windows of this recorder fill up."""
        return WindowClock(self._config.trace_positions, self.context)

    @property
    def outbox_bytes(self) -> int:
        return self._outbox_bytes

    @torch.inference_mode()
    def prompt(
        self,
        request_id: str,
        token_ids: Sequence[int],
        features: Tensor,
        past: RequestPast,
        context: Tensor,
        tenant: str,
    ) -> None:
        """Opens a request once its prompt is prefilled.

        Args:
            token_ids: the whole prompt, at least one token.
            features: of the n prompt positions before the very last [n, taps * hidden], n >= 0;
                more than `context` are ignored. The very last position comes with the first
                `emitted` call, together with what it predicted.
            past: what the drafter has for the positions before those.
            context: what the request is about, of length 1 [hidden].
        """
        known = len(token_ids) - 1
        rows = min(features.shape[0], self.context)
        self._open[request_id] = TraceWindow(
            WindowLayout(self._config.trace_positions, features.shape[1], self._config.trace_top_k),
            Provenance(tenant_key(tenant), len(token_ids), context.bfloat16()),
            start=known - rows,
            tokens=list(token_ids[known - rows :]),
            features=features[features.shape[0] - rows :],
            past=past,
        )

    def emitted(self, request_id: str, cycles: Iterable[Cycle]) -> None:
        """Adds what one or several cycles yielded for a request, in order.

        Raises:
            ValueError: the counts disagree, or a past is missing.
        """
        window = self._open.get(request_id)
        if window is None:
            return
        for cycle in cycles:
            cycle.check(request_id)
            window = self._add(request_id, window, cycle)

    def _add(self, request_id: str, window: TraceWindow, cycle: Cycle) -> TraceWindow:
        """Returns the window that is open afterwards."""
        first, count = 0, len(cycle.tokens)
        while first < count:
            last = min(first + window.room, count)
            window.append(cycle, first, last)
            first = last
            if not window.room:
                if cycle.past is None:
                    raise ValueError(f"request {request_id}: a window is full, and no past for the next")
                self._complete(window)
                window = window.successor(self.context, cycle.past)
                self._open[request_id] = window
        return window

    def finish(self, request_id: str) -> None:
        """Closes a request, also a cancelled one: what was emitted is the target's text all the same.

        Its open window is recorded unless too little of it is scored.
        """
        window = self._open.pop(request_id, None)
        if window is None:
            return
        if window.scored < FEWEST_SCORED:
            self.counts.short += bool(window.scored)
            return
        self._complete(window)

    def take(self) -> list[Trace]:
        """Empties the outbox, oldest trace first."""
        traces = list(self._outbox)
        self._outbox.clear()
        self._outbox_bytes = 0
        return traces

    @torch.inference_mode()
    def _complete(self, window: TraceWindow) -> None:
        window.close()
        trace = window.to_trace(self._fingerprints)
        finite = all(finite_bfloat16(bits) for bits in (trace.features, trace.past, trace.context))
        if not finite or np.isnan(trace.top_logprobs).any():
            self.counts.nonfinite += 1
            return
        if self._config.trace_features == "int8":
            trace = quantised(trace)
        self.counts.recorded += 1
        self.budget.spend(trace.nbytes)
        self._outbox.append(trace)
        self._outbox_bytes += trace.nbytes
        while self._outbox_bytes > self._capacity:
            self._outbox_bytes -= self._outbox.popleft().nbytes
            self.counts.dropped += 1
