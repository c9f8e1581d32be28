"""One window of a request while it fills up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.align.trace import Trace
from evospec.wire import Fingerprints

_LOWEST_LOGPROB = -60_000.0  # float16 has no lower finite decade; a probability of 0 all the same


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Sizes of a window's buffers: positions, taps * hidden, and target tokens per position."""

    positions: int
    feature_size: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """Versions in force when a window was opened."""

    adapter_version: int = 0
    vocabulary_epoch: int = 0


@dataclass(frozen=True, slots=True)
class RequestPast:
    """Keys and values that the drafter had for consecutive positions of a request.

    Attributes:
        first: position of the first of them.
        pairs: bfloat16 [2, kv_heads, positions, head_dim].
        stamp: what was in force when they were read: a window opens behind them.
    """

    first: int
    pairs: Tensor
    stamp: Stamp = Stamp()

    def before(self, position: int) -> Tensor:
        """Those of lower positions."""
        return self.pairs[:, :, : max(position - self.first, 0)]


@dataclass(frozen=True, slots=True, eq=False)
class Provenance:
    """Which request a window belongs to.

    Attributes:
        tenant: key of whose it is.
        prompt_length: tokens of its prompt.
        context: what it is about, of length 1, bfloat16 [hidden].
    """

    tenant: str
    prompt_length: int
    context: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cycle:
    """What one cycle yielded for one request: m tokens.

    Row i of each array belongs to the position whose logits gave token i: the last known
    position before the cycle for i = 0, that of token i - 1 after it. Rows from m on are nobody's.

    Attributes:
        features: target features [m or more, taps * hidden], on any device.
        tokens: emitted token ids, m of them, end-of-sequence included.
        top_ids: the target's best tokens, distinct [m or more, trace_top_k].
        top_logprobs: their log-probabilities at temperature 1 [m or more, trace_top_k].
        drafted: draft tokens verified in this cycle; 0 for the token that prefill yields.
        accepted: how many of them the target accepted; m may end before that.
        missed: whether token i was outside the active rows, bool [m or more].
        past: what the drafter has for earlier positions; needed where a window fills up, see
            `WindowClock`.
    """

    features: Tensor
    tokens: Sequence[int]
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    drafted: int
    accepted: int
    missed: np.ndarray
    past: RequestPast | None = None

    def check(self, request_id: str) -> None:
        """Raises ValueError where counts disagree."""
        count = len(self.tokens)
        rows = min(self.features.shape[0], len(self.top_ids), len(self.top_logprobs), len(self.missed))
        if count <= rows and count <= self.accepted + 1 <= self.drafted + 1:
            return
        raise ValueError(
            f"request {request_id}: {count} tokens, of {self.drafted} drafted and {self.accepted} accepted, "
            f"come with {rows} rows"
        )


class TraceWindow:
    """An open window: `filled` positions, and the token of the position that comes next.

    What cycles yield is kept as it comes and put together once: that is what makes recording cheap.
    """

    __slots__ = (
        "_parts",
        "context",
        "features",
        "filled",
        "layout",
        "past",
        "provenance",
        "stamp",
        "start",
        "tokens",
    )

    def __init__(
        self,
        layout: WindowLayout,
        provenance: Provenance,
        start: int,
        tokens: list[int],
        features: Tensor,
        past: RequestPast,
    ) -> None:
        """`features` [context, taps * hidden] belong to all of `tokens` but the last."""
        self.layout = layout
        self.provenance = provenance
        self.start = start
        self.tokens = tokens
        self.features = features
        self.past = past.before(start)
        self.stamp = past.stamp
        self.context = self.filled = len(tokens) - 1
        self._parts: list[_Part] = []

    @property
    def room(self) -> int:
        return self.layout.positions - self.filled

    @property
    def scored(self) -> int:
        return self.filled - self.context

    def append(self, cycle: Cycle, first: int, last: int) -> None:
        """Adds tokens first..last - 1 of a cycle; there must be room."""
        self._parts.append(_Part(cycle, first, last))
        self.tokens.extend(cycle.tokens[first:last])
        self.filled += last - first

    def close(self) -> None:
        """Puts features together; nothing is appended any more."""
        fresh = [part.cycle.features[part.first : part.last] for part in self._parts]
        self.features = torch.cat((self.features, *fresh)).bfloat16()

    def successor(self, context: int, past: RequestPast) -> TraceWindow:
        """The next window of the request; the last `context` positions of this closed one are repeated
        unscored."""
        return TraceWindow(
            self.layout,
            self.provenance,
            start=self.start + self.filled - context,
            tokens=self.tokens[-(context + 1) :],
            features=self.features[self.filled - context : self.filled],
            past=past,
        )

    def to_trace(self, fingerprints: Fingerprints) -> Trace:
        """Of a closed window; a trace owns no more than its bytes."""
        context, parts = self.context, self._parts
        unscored = np.zeros((context, self.layout.top_k))
        logprobs = [unscored, *(part.cycle.top_logprobs[part.first : part.last] for part in parts)]
        cycles = [
            (place, part.cycle.drafted, part.cycle.accepted)
            for part in parts
            for place in range(part.first, part.last)
        ]
        # All at once: array operations on each cycle's few tokens would take longer than the rest.
        place, drafted, accepted = np.array([(0, 0, 0)] * context + cycles, dtype=np.int64).reshape(-1, 3).T
        return Trace(
            fingerprints=fingerprints,
            adapter_version=self.stamp.adapter_version,
            vocabulary_epoch=self.stamp.vocabulary_epoch,
            tenant=self.provenance.tenant,
            prompt_length=self.provenance.prompt_length,
            start=self.start,
            token_ids=np.asarray(self.tokens, dtype=np.int32),
            features=_bits(self.features),
            top_ids=np.concatenate(
                [unscored, *(part.cycle.top_ids[part.first : part.last] for part in parts)]
            ).astype(np.int32),
            # Rounding may lift a log-probability over 0, and float16 ends where probabilities are 0 anyway.
            top_logprobs=np.concatenate(logprobs).clip(_LOWEST_LOGPROB, 0.0).astype(np.float16),
            generated=np.arange(self.filled) >= context,
            draft_position=np.where(place < drafted, place, -1).astype(np.int8),
            accepted=place < accepted,
            missed=np.concatenate(
                [
                    np.zeros(context, dtype=bool),
                    *(part.cycle.missed[part.first : part.last] for part in parts),
                ]
            ),
            past=_bits(self.past),
            context=_bits(self.provenance.context),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens first..last - 1 of a cycle."""

    cycle: Cycle
    first: int
    last: int


def _bits(numbers: Tensor) -> np.ndarray:
    """A copy of bfloat16 numbers as bit patterns, uint16."""
    bits: np.ndarray = numbers.contiguous().view(torch.int16).to("cpu", copy=True).numpy().view(np.uint16)
    return bits


class WindowClock:
    """Says which windows fill up as tokens are emitted, before a recorder gets to see them: what the
    drafter's cache holds has to be fetched at once, while learning may wait.

    Args:
        positions: of a window.
        context: of these, repeated from the window before.
    """

    __slots__ = ("_context", "_positions", "_room")

    def __init__(self, positions: int, context: int) -> None:
        self._positions, self._context = positions, context
        self._room: dict[str, int] = {}

    def open(self, request_id: str, context: int) -> int:
        """A request's first window begins with so many positions of its prompt, or with `context` of them
        if they are more; returns how many."""
        context = min(context, self._context)
        self._room[request_id] = self._positions - context
        return context

    def emitted(self, request_id: str, tokens: int) -> bool:
        """Whether a window fills up with so many tokens; never for a request that was not opened."""
        room = self._room.get(request_id)
        if room is None:
            return False
        left = room - tokens
        full = left <= 0
        while left <= 0:
            left += self._positions - self._context
        self._room[request_id] = left
        return full

    def finish(self, request_id: str) -> None:
        self._room.pop(request_id, None)
