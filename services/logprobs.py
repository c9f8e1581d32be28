"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.generation import TokenLogprob
from evospec.engine.token_text import TokenText

Json = dict[str, Any]
LEAST = -9999.0  # of what is impossible: JSON knows no infinity (as in vLLM)


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    """As /v1/chat/completions has them."""
    return {"content": [_content(token) for token in tokens], "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> Json:
    """As /v1/completions has them.

    Args:
        offset: characters of the answer before the first of these tokens.
    """
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token.text)
    return {
        "tokens": [token.token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token) for token in tokens] if any(token.top for token in tokens) else None,
        "text_offset": offsets,
    }


def length_of(tokens: Sequence[TokenLogprob]) -> int:
    """Characters by which they move the offset of what follows."""
    return sum(len(token.token.text) for token in tokens)


def _content(token: TokenLogprob) -> Json:
    top = [_entry(other, logprob) for other, logprob in token.top]
    return {**_entry(token.token, token.logprob), "top_logprobs": top}


def _entry(token: TokenText, logprob: float) -> Json:
    raw = None if token.raw is None else list(token.raw)
    return {"token": token.text, "logprob": _finite(logprob), "bytes": raw}


def _top(token: TokenLogprob) -> dict[str, float]:
    """The best tokens, and the one that was chosen where it is not among them."""
    best = {other.text: _finite(logprob) for other, logprob in token.top}
    return best | {token.token.text: _finite(token.logprob)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
