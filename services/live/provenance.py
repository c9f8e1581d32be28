"""A streamed answer in which each token says where it came from."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from actors.generation import GenerationChunk
from evospec.engine.text import TextStream, Tokenizer
from services import api_errors
from services.api_errors import ApiError
from services.completion import Completion, Tally
from services.live.sse import event

logger = logging.getLogger(__name__)

# accepted: a draft token that the target confirmed; bonus: the target's own, which ends each cycle;
# miss: the same, but outside the active rows, so that no draft could have had it; plain: nothing was drafted.
Source = Literal["accepted", "bonus", "miss", "plain"]


def sources(chunk: GenerationChunk) -> list[Source]:
    """Where each of a chunk's tokens came from."""
    if not chunk.drafted:
        return ["plain"] * len(chunk.token_ids)
    covered = chunk.covered or (True,) * len(chunk.token_ids)
    return [
        "accepted" if place < chunk.accepted else "bonus" if is_covered else "miss"
        for place, is_covered in enumerate(covered)
    ]


async def render_sources(completion: Completion, tokenizer: Tokenizer) -> AsyncGenerator[str]:
    """Server-sent events: `cycle` with its tokens as [text, source], `end` or `error` last.

    A token's text is empty while a character is incomplete; the token that completes it brings all of it.
    """
    text = TextStream(tokenizer)
    tally = Tally(len(completion.prompt_ids))
    try:
        async with aclosing(completion.chunks) as chunks:
            async for item in chunks:
                chunk = item.chunk
                tally.add(chunk)
                pieces = [
                    [text.push((token,)).text, source]
                    for token, source in zip(chunk.token_ids, sources(chunk), strict=True)
                ]
                if chunk.finish_reason is not None and pieces:
                    pieces[-1][0] += text.finish().text
                yield event("cycle", {"tokens": pieces, "drafted": chunk.drafted, "accepted": chunk.accepted})
                if chunk.finish_reason is not None:
                    usage = tally.usage().model_dump()
                    yield event("end", {"finish_reason": chunk.finish_reason, "usage": usage})
    except ApiError as error:
        yield event("error", error.body())
    except Exception:  # the status line is out already: all that is left is to say so in the stream
        logger.exception("an answer for the dashboard failed")
        yield event("error", api_errors.server_error("The server failed while it answered.").body())
