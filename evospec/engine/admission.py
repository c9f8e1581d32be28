"""Requests that can never be served are refused before they are queued."""

from __future__ import annotations

from evospec.engine.request import Request
from evospec.engine.token_scores import MOST_ALTERNATIVES
from evospec.errors import InvalidRequestError


def check_request(request: Request, max_length: int, vocab_size: int) -> None:
    """Raises InvalidRequestError naming the field: empty or too long a prompt, values out of bounds."""
    count = len(request.prompt_ids)
    if not count:
        raise InvalidRequestError("the prompt is empty", "prompt")
    invalid = request.sampling.invalid_field()
    if invalid is not None:
        raise InvalidRequestError(f"{invalid} is out of bounds", invalid)
    if request.logprobs is not None and not 0 <= request.logprobs <= min(MOST_ALTERNATIVES, vocab_size):
        raise InvalidRequestError(f"logprobs must be at most {MOST_ALTERNATIVES}", "logprobs")
    if count + request.sampling.max_tokens > max_length:
        raise InvalidRequestError(
            f"prompt ({count} tokens) and max_tokens ({request.sampling.max_tokens}) exceed "
            f"the limit of {max_length} tokens",
            "prompt" if count >= max_length else "max_tokens",
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
        raise InvalidRequestError(f"a prompt token id is outside the vocabulary of {vocab_size}", "prompt")
