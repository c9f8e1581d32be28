"""What the device knows of the request in each slot: a cycle reads and advances it without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.decoding.sampling import SamplingBatch, SamplingParams
from evospec.decoding.verify import Verdict


class BatchState:
    """One row per slot; running requests hold the first ones.

    With n tokens known, the target's cache holds positions 0..n-2: the last token's keys are
    written by the next cycle. The drafter's cache holds pairs 0..n-2-pending.

    Attributes:
        last: last known token, int64 [slots].
        cached: positions of the target's cache that count, int64 [slots].
        remaining: tokens that may still be emitted, int64 [slots].
        drawn: draft tokens drawn so far, int64 [slots].
        pending: confirmed pairs that wait to be written to the drafter's cache, int64 [slots].
        pending_tokens: their tokens, int64 [slots, width].
        pending_features: their target features [slots, width, features].
        choice: which variant of the drafter's weights it drafts with, int64 [slots]; see `RowChoice`.
    """

    __slots__ = (
        "_all",
        "_seeds",
        "_temperature",
        "_top_k",
        "_top_p",
        "cached",
        "choice",
        "drawn",
        "last",
        "pending",
        "pending_features",
        "pending_tokens",
        "remaining",
    )

    def __init__(
        self, slots: int, pending_width: int, feature_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.last, self.cached, self.remaining = integers(slots), integers(slots), integers(slots)
        self.drawn, self.pending = integers(slots), integers(slots)
        self.pending_tokens = integers(slots, pending_width)
        self.pending_features = torch.zeros(slots, pending_width, feature_size, dtype=dtype, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._top_p = torch.ones(slots, device=device)
        self._top_k, self._seeds = integers(slots), integers(slots)
        self.choice = integers(slots)
        self._all = [
            self.last,
            self.cached,
            self.remaining,
            self.drawn,
            self.pending,
            self.pending_tokens,
            self.pending_features,
            self._temperature,
            self._top_p,
            self._top_k,
            self._seeds,
            self.choice,
        ]

    @property
    def advancing(self) -> list[Tensor]:
        """What a cycle changes by reading it."""
        return self._all[:7]

    def set_sampling(self, slot: int, params: SamplingParams) -> None:
        """Prepares a slot for the request that prefills in it."""
        # Filled, not assigned: the host would wait for numbers that it sends.
        self._temperature[slot].fill_(params.heat)
        self._top_p[slot].fill_(params.top_p)
        self._top_k[slot].fill_(params.top_k)
        self._seeds[slot].fill_(params.seed)

    def sampling(self, first: int, rows: int, *, any_sampled: bool, truncated: bool) -> SamplingBatch:
        """Sampling parameters of slots [first, first + rows), as views."""
        part = slice(first, first + rows)
        return SamplingBatch(
            self._temperature[part],
            self._top_p[part],
            self._top_k[part],
            self._seeds[part],
            any_sampled,
            truncated,
        )

    def start(
        self, slot: int, prompt_length: int, max_tokens: int, first: Tensor, features: Tensor | None
    ) -> None:
        """A prompt is complete.

        Args:
            first: the token that the target decided on [].
            features: the target's at the prompt's last position [features].
        """
        self.last[slot] = first
        self.cached[slot].fill_(prompt_length)
        self.remaining[slot].fill_(max_tokens - 1)
        self.drawn[slot].fill_(0)
        if features is not None:
            self.pending[slot].fill_(1)
            self.pending_tokens[slot, 0] = first
            self.pending_features[slot, 0] = features

    def move(self, source: int, target: int) -> None:
        for tensor in self._all:
            tensor[target] = tensor[source]

    def lengths(self, rows: int, deepest: int) -> Tensor:
        """Draft tokens that each row can use: one token more is emitted than accepted [rows]."""
        return (self.remaining[:rows] - 1).clamp(0, deepest)

    def advance(self, verdict: Verdict, features: Tensor | None, *, absorbed: bool, drawn: int) -> Tensor:
        """Takes in a cycle's outcome; returns the tokens that each row emits [rows].

        Args:
            features: of the places that decided the emitted tokens [rows, depth + 1, features].
            absorbed: whether this cycle wrote the pending pairs to the drafter's cache.
            drawn: draft tokens drawn per row.
        """
        rows = verdict.tokens.shape[0]
        # No draft reaches past what remains, so this is accepted + 1; without a request it is 0.
        count = torch.minimum(verdict.accepted + 1, self.remaining[:rows])
        if features is not None:
            self._keep_pending(verdict.tokens, features, count, absorbed=absorbed)
        self.last[:rows] = verdict.tokens.gather(1, verdict.accepted[:, None])[:, 0]
        self.cached[:rows] += count
        self.remaining[:rows] -= count
        if drawn:
            self.drawn[:rows] += drawn
        return count

    def _keep_pending(self, tokens: Tensor, features: Tensor, count: Tensor, *, absorbed: bool) -> None:
        """Adds a cycle's pairs [rows, width] to those that wait, or begins anew.

        Places past a row's count are written too; the next cycle overwrites them.
        """
        rows, width = tokens.shape
        if absorbed:
            self.pending_tokens[:rows, :width] = tokens
            self.pending_features[:rows, :width] = features
            self.pending[:rows] = count
            return
        where = self.pending[:rows, None] + torch.arange(width, device=tokens.device)  # [rows, width]
        self.pending_tokens[:rows].scatter_(1, where, tokens)
        wide = where[..., None].expand(-1, -1, features.shape[-1])
        self.pending_features[:rows].scatter_(1, wide, features)
        self.pending[:rows] += count
