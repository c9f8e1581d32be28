"""Runs the models over the slot caches: `prepare` builds inputs, the rest is tensors.

Knows nothing of scheduling, vocabularies or text.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evospec.decoding.chain import ChainDrafter
from evospec.decoding.sampling import SamplingBatch
from evospec.decoding.verify import Draft, Verdict, verify
from evospec.engine.scheduler import SlotMove
from evospec.engine.state import RequestState
from evospec.models.kv_cache import Window
from evospec.models.target import Target
from evospec.vocab.active import HeadView


@dataclass(frozen=True, slots=True)
class Verified:
    """The target's pass over a draft, and what it decided.

    Attributes:
        logits: float32 [rows, length + 1, vocab].
        hidden: [rows, length + 1, hidden]; of a prefill: of every position of its last chunk.
        features: [rows, length + 1, taps * hidden]; None when nothing is tapped.
    """

    verdict: Verdict
    logits: Tensor
    hidden: Tensor
    features: Tensor | None


class Runner:
    """Target, drafter and their caches."""

    def __init__(
        self, target: Target, chain: ChainDrafter | None, slots: int, max_length: int, longest_draft: int
    ) -> None:
        self.target = target
        self.chain = chain
        self.device = target.device
        positions = max_length + longest_draft + 1  # a draft may run past the last token that is kept
        self._cache = target.new_cache(slots, positions)
        self._sampling: SamplingBatch | None = None
        self._sampling_of: list[RequestState] = []
        if chain is not None:
            taps = len(chain.drafter.config.tap_layers)
            self._draft_cache = chain.drafter.new_cache(slots, positions)
            self._pending = torch.zeros(
                slots,
                longest_draft + 1,
                taps * target.hidden_size,
                dtype=target.dtype,
                device=target.device,
            )

    def sampling(self, states: Sequence[RequestState]) -> SamplingBatch:
        """Sampling parameters of the batch, rebuilt only when its members change."""
        same = len(states) == len(self._sampling_of) and all(map(operator.is_, states, self._sampling_of))
        if self._sampling is None or not same:
            self._sampling = SamplingBatch.of([state.request.sampling for state in states], self.device)
            self._sampling_of = list(states)
        return self._sampling

    @torch.inference_mode()
    def prefill(self, state: RequestState, chunk: int) -> Verified | None:
        """Processes up to `chunk` prompt tokens; on the last ones also decides the first token.

        Returns:
            The decision (one row, no draft) once the prompt is complete, else None.
        """
        start = state.prefilled
        stop = min(start + chunk, state.prompt_length)
        window = Window.of([start], stop - start, self.device, first_slot=state.slot)
        tokens = torch.tensor([state.tokens[start:stop]], device=self.device)
        output = self.target.forward(tokens, window, self._cache)
        state.prefilled = stop
        complete = stop == state.prompt_length
        if output.features is not None and self.chain is not None:
            self._absorb_prompt(self.chain, state, output.features, start, complete)
        if not complete:
            return None
        decided = self._decide(Draft.empty(1, self.device), output.hidden[:, -1:], None, [state])
        return replace(decided, hidden=output.hidden, features=output.features)

    def _absorb_prompt(
        self, chain: ChainDrafter, state: RequestState, features: Tensor, start: int, complete: bool
    ) -> None:
        """Writes the chunk's pairs to the drafter; the pair of the token not yet known stays pending."""
        width = features.shape[1]
        if complete:
            self._pending[state.slot, :1] = features[0, -1:]
            state.pending = 1
            width -= 1
        if not width:
            return
        tokens = torch.tensor([state.tokens[start + 1 : start + 1 + width]], device=self.device)
        window = Window.of([start], width, self.device, first_slot=state.slot)
        chain.absorb(features[:, :width], tokens, window, self._draft_cache)

    @torch.inference_mode()
    def draft(self, states: Sequence[RequestState], lengths: list[int], head: HeadView) -> Draft:
        """Catches the drafter up with what was confirmed, then drafts."""
        if self.chain is None:
            return Draft.empty(len(states), self.device)
        longest = max(lengths)
        width = max(state.pending for state in states)
        starts = [state.cached - state.pending for state in states]
        tokens = torch.zeros(len(states), width, dtype=torch.int64)
        for row, state in enumerate(states):
            tokens[row, : state.pending] = torch.tensor(state.tokens[len(state.tokens) - state.pending :])
        # Rows with fewer pending pairs write padding past them; the draft steps overwrite it.
        hidden = self.chain.absorb(
            self._pending[: len(states), :width],
            tokens.to(self.device),
            Window.of(starts, width, self.device),
            self._draft_cache,
        )  # [rows, width, hidden]
        if not longest:
            return Draft.empty(len(states), self.device)
        last = torch.tensor([state.pending - 1 for state in states], device=self.device)
        hidden = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))
        cached = [state.cached for state in states]
        draft = self.chain.draft(
            hidden,
            torch.tensor(cached, device=self.device),
            torch.tensor(lengths, device=self.device),
            longest,
            head,
            self.sampling(states),
            torch.tensor([state.drawn for state in states], device=self.device),
            self._draft_cache,
            max(cached),
        )
        for state in states:
            state.drawn += longest
        return draft

    @torch.inference_mode()
    def verify(self, states: Sequence[RequestState], draft: Draft) -> Verified:
        """One target pass over each row's last token and its draft."""
        last = torch.tensor([[state.tokens[-1]] for state in states], device=self.device)
        tokens = torch.cat((last, draft.tokens), dim=1)  # [rows, length + 1]
        window = Window.of([state.cached for state in states], tokens.shape[1], self.device)
        output = self.target.forward(tokens, window, self._cache)
        return self._decide(draft, output.hidden, output.features, states)

    def _decide(
        self, draft: Draft, hidden: Tensor, features: Tensor | None, states: Sequence[RequestState]
    ) -> Verified:
        logits = self.target.logits(hidden)
        first_position = torch.tensor([len(state.tokens) for state in states], device=self.device)
        verdict = verify(draft, logits, self.sampling(states), first_position)
        return Verified(verdict, logits, hidden, features)

    def confirm(self, states: Sequence[RequestState], features: Tensor | None, emitted: list[int]) -> None:
        """Keeps the features of each row's emitted tokens for the drafter to catch up with."""
        if features is None or self.chain is None:
            return
        self._pending[: len(states), : features.shape[1]] = features
        for state, count in zip(states, emitted, strict=True):
            state.pending = count

    def move(self, move: SlotMove) -> None:
        """Copies a request's caches to another slot."""
        state = move.state
        length = state.cached if state.emitted else state.prefilled
        self._cache.move(move.source, move.target, length)
        if self.chain is not None:
            self._draft_cache.move(move.source, move.target, length)
            self._pending[move.target] = self._pending[move.source]
