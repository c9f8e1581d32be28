"""What a cycle teaches: reported to the vocabulary, the trace recorder and the semantic source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.align.recorder import TraceRecorder
from evospec.engine.passes import Prompted, Verified
from evospec.engine.state import RequestState
from evospec.models.target import Target
from evospec.vocab.policy import VocabularyPolicy
from evospec.vocab.semantic import SemanticSource


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The target's best tokens per position, on the host.

    `ids` int64 and `logprobs` float32, [rows, places, k].
    """

    ids: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, k: int) -> TopTokens:
        values, ids = logits.topk(k, dim=-1)
        logprobs = values - logits.logsumexp(dim=-1, keepdim=True)
        return cls(ids.cpu().numpy(), logprobs.cpu().numpy())


@dataclass(frozen=True, slots=True)
class Emission:
    """What one row of a cycle emitted.

    Attributes:
        tokens: the kept tokens.
        missed: whether each was outside the active rows when the draft was made, bool [tokens].
    """

    row: int
    tokens: list[int]
    drafted: int
    accepted: int
    missed: np.ndarray


class Observer:
    """Feeds the optional learners; each may be absent."""

    def __init__(
        self,
        target: Target,
        vocabulary: VocabularyPolicy | None,
        recorder: TraceRecorder | None,
        semantic: SemanticSource | None,
        *,
        ranked_k: int,
        prompt_ranked: int,
        trace_k: int,
    ) -> None:
        self._target = target
        self._vocabulary = vocabulary
        self._recorder = recorder
        self._semantic = semantic
        self._ranked_k = ranked_k if vocabulary is not None else 0
        self._prompt_ranked = prompt_ranked
        self._trace_k = trace_k if recorder is not None else 0

    def admit(self, state: RequestState) -> None:
        if self._vocabulary is not None:
            self._vocabulary.admit(state.request.id, state.request.prompt_ids)

    def missed(self, tokens: list[int]) -> np.ndarray:
        if self._vocabulary is None:
            return np.zeros(len(tokens), dtype=bool)
        return ~self._vocabulary.contains(np.asarray(tokens, dtype=np.int64))

    @torch.inference_mode()
    def prompt(self, state: RequestState, prompted: Prompted) -> None:
        """Reports a completed prefill, before its first token is reported."""
        if self._semantic is not None:
            self._semantic.admit(state.request, prompted.hidden)
        if self._ranked_k and self._prompt_ranked and self._vocabulary is not None:
            logits = self._target.logits(prompted.hidden[-self._prompt_ranked :])
            self._vocabulary.ranked(logits.topk(self._ranked_k, dim=-1).indices.cpu().numpy())
        if self._recorder is not None and prompted.features is not None and state.request.trace:
            self._recorder.prompt(state.request.id, state.request.prompt_ids, prompted.features[:-1])

    def top_tokens(self, logits: Tensor) -> TopTokens | None:
        """Best tokens of a batch [rows, places, vocab], once for all who want them."""
        k = min(max(self._ranked_k, self._trace_k), logits.shape[-1])
        return TopTokens.of(logits, k) if k else None

    def emitted(
        self, state: RequestState, emission: Emission, decided: Verified, top: TopTokens | None
    ) -> None:
        """Reports the tokens one row emitted."""
        request_id, count, row = state.request.id, len(emission.tokens), emission.row
        if self._vocabulary is not None:
            self._vocabulary.emitted(request_id, emission.tokens)
            if top is not None and self._ranked_k:
                self._vocabulary.ranked(top.ids[row, :count, : self._ranked_k])
        if self._semantic is not None:
            self._semantic.emitted(request_id, emission.tokens, decided.hidden[row, :count])
        if self._recorder is None or not state.request.trace or decided.features is None or top is None:
            return
        self._recorder.emitted(
            request_id,
            features=decided.features[row, :count],
            tokens=emission.tokens,
            top_ids=top.ids[row, :count, : self._trace_k],
            top_logprobs=top.logprobs[row, :count, : self._trace_k],
            drafted=emission.drafted,
            accepted=emission.accepted,
            missed=emission.missed,
        )

    def finish(self, state: RequestState) -> None:
        request_id = state.request.id
        if self._vocabulary is not None:
            self._vocabulary.finish(request_id)
        if self._semantic is not None:
            self._semantic.finish(request_id, learn=state.request.trace and not state.cancelled)
        if self._recorder is not None and state.request.trace:
            self._recorder.finish(request_id)
