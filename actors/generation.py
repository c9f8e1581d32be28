"""What passes between gateway and replica: one request in, a stream of chunks out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evospec.engine.request import FinishReason, SamplingParams
from evospec.engine.token_text import TokenText


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, tokenised; `stop` strings end the text before they appear in it.

    `trace` False keeps the request out of training and of the semantic index. `logprobs` asks for each
    token's log-probability, and for those of so many of the best tokens at its place. `chunk_s` is the
    least time between two chunks, cycles in between go together; 0: one chunk a cycle, inf: all but the
    first token in one.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    tenant: str = ""
    trace: bool = True
    logprobs: int | None = None
    chunk_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer and its log-probability; `top`: the best tokens of its place, best first."""

    token: TokenText
    logprob: float
    top: tuple[tuple[TokenText, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one or several cycles added to a request.

    Attributes:
        text: new text; empty while a character or a possible stop string is incomplete.
        token_ids: emitted tokens, end-of-sequence included.
        drafted: draft tokens verified; 0 for the token that prefill yields.
        accepted: how many of them were accepted.
        finish_reason: set on the last chunk.
        logprobs: of each of the tokens, where the request asks for them.
        cycles: that are in it; the token that prefill yields counts as one.
        covered: whether each of the tokens was among the active rows.
    """

    text: str
    token_ids: tuple[int, ...]
    drafted: int
    accepted: int
    adapter_version: int
    vocabulary_epoch: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cycles: int = 1
    covered: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """Ends a stream instead of a last chunk.

    `invalid`: the request can't be served, `param` says why; `failed`: the replica could not.
    """

    kind: Literal["invalid", "failed"]
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a gateway must know of the model behind it.

    `max_length` bounds prompt and output tokens of one request together.
    """

    max_length: int
    vocab_size: int
